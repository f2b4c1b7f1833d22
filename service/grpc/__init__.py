"""gRPC, for Envoy: what is carried, and how its connections outlive a worker. Needs the extra `onequota[grpc]`.

    socket of all workers → door → a server of the gRPC library, on a private unix socket → ratelimit → engine

The library can neither share a listening socket nor end gently: told to stop, it cancels calls that come in meanwhile
(about ten of them, from twenty busy clients). So a door stands in front of it.
"""

import importlib.util
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.callers import Callers
from service.errors import ConfigurationError
from service.limits import Limiter
from service.limits.catalog import Catalog
from service.settings import Settings

_MODULES = ("grpc", "grpc_health", "grpc_reflection", "envoy.service.ratelimit.v3")
COMMAND = "pip install 'onequota[grpc]'"


def check() -> None:
    """See that gRPC can be served here, without loading any of it.

    Raises:
        ConfigurationError: It cannot; says what to do.
    """
    if sys.platform == "win32":
        raise ConfigurationError("gRPC is not served on Windows: leave out --grpc-port (ONEQUOTA_GRPC_PORT)")
    missing = [name for name in _MODULES if not _exists(name)]
    if missing:
        raise ConfigurationError(f"gRPC (--grpc-port) needs packages that are missing here: {COMMAND}")


@asynccontextmanager
async def serving(
    listener: socket.socket | None,
    limiter: Limiter,
    catalog: Callable[[], Catalog],
    callers: Callers,
    settings: Settings,
) -> AsyncIterator[None]:
    """gRPC beside the app, until this worker is retired; nothing without a listener."""
    if listener is None:
        yield
        return
    from service.grpc.ratelimit import NAME, RateLimit  # noqa: PLC0415  (an extra)
    from service.grpc.server import Server  # noqa: PLC0415

    def scope(peer: str) -> dict[str, Any]:
        address = server.door.address(peer)
        return {"client": address and (address, 0), "headers": []}

    ratelimit = RateLimit(
        limiter.engine,
        catalog,
        callers,
        address=lambda peer: limiter.addresses.of(scope(peer)),
        denied=lambda peer: limiter.access is not None and limiter.access.listed(scope(peer)) is False,
        max_in_flight=settings.max_in_flight,
    )
    methods = {"ShouldRateLimit": ratelimit.should_rate_limit}
    server = Server(listener, {NAME: methods}, header_s=settings.header_timeout_s, drain_s=settings.drain_s)
    async with server:
        yield


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

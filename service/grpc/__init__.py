"""gRPC, for Envoy: what is carried, and how its connections outlive a worker. Needs the extra `onequota[grpc]`.

    socket of all workers → door → a server of the gRPC library, on a private unix socket → ratelimit → engine

The library can neither share a listening socket nor end gently: told to stop, it cancels calls that come in meanwhile
(about ten of them, from twenty busy clients). So a door stands in front of it.
"""

import importlib.util
import sys

from service.errors import ConfigurationError

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


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

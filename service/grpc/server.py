"""The gRPC server of one worker: started and ended with the app, behind a door on the socket of all workers."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import status
from service.grpc.door import Door
from service.logs import events

Method = Callable[[bytes, Any], Awaitable[bytes]]
"""A unary method: the request's bytes and the library's context, to the answer's bytes."""

LARGEST_BYTES = 1 << 20
"""Of one request."""

_LEAVING_S = 2.0  # for clients to go elsewhere, once they are told; half of the drain at most
_STOP_S = 1.0  # for the calls of those that stay; a quarter of the drain at most
_log = events()


class Server:
    """The server. Within it, gRPC is served until the worker is retired; leaving waits for its end.

    Args:
        listener: The socket of all workers.
        services: By full name, their methods by name.
        header_s: How long a connection may take to become HTTP/2; 0 = for ever.
        drain_s: How long the end may take.
    """

    def __init__(
        self,
        listener: socket.socket,
        services: Mapping[str, Mapping[str, Method]],
        *,
        header_s: float = 15,
        drain_s: float = 20,
    ) -> None:
        self._leaving_s, self._stop_s = min(_LEAVING_S, drain_s / 2), min(_STOP_S, drain_s / 4)
        self._folder = Path(tempfile.mkdtemp(prefix="onequota-grpc-"))
        inner = self._folder / "grpc"
        options: list[tuple[str, int]] = [
            ("grpc.max_receive_message_length", LARGEST_BYTES),
            ("grpc.http2.max_ping_strikes", 0),  # clients may look as often as they like whether we are there
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        if header_s:
            options.append(("grpc.server_handshake_timeout_ms", int(header_s * 1000)))
        self._server = grpc.aio.server(options=options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name, methods in services.items():
            handlers = {of: grpc.unary_unary_rpc_method_handler(method) for of, method in methods.items()}
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])
        self._names = list(services)
        shown = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(shown, self._server)
        self._server.add_insecure_port(f"unix:{inner}")
        self.door = Door(listener, self._folder, inner)
        self._watching = contextlib.ExitStack()
        self._end: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self.door.open()

    def retire(self) -> None:
        """Begin to end: from now on no new connections, and none of the old ones for long."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_task(self._ended())

    async def _ended(self) -> None:
        stopping = status.stopping()
        if stopping:  # else the others serve: whoever heard that this worker does not would take it for all of them
            await self._health.enter_graceful_shutdown()
        self.door.retire(last=stopping)
        await self.door.emptied(self._leaving_s)
        await self._server.stop(self._stop_s)
        self.door.cut()

    async def aclose(self) -> None:
        """Until it has ended."""
        self.retire()
        assert self._end is not None
        try:
            await self._end
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def __aenter__(self) -> "Server":
        await self.start()
        self._watching.enter_context(status.when_retired(self.retire))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.close()
        await self.aclose()

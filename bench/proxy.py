"""A proxy that does to a connection what networks do: delay, lose, stall, cut, refuse.

It runs in a thread of its own, so that whoever is tested may block its event loop. What it does is changed at any time.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from bench.redises import Served

Target = str | tuple[str, int]
"""A unix socket's path, or a host and a port."""

_PIECE_BYTES = 1 << 16
_LOOK_S = 0.002


class FaultProxy(Served):
    """Listens on loopback and passes on to one server, and back.

    Args:
        target: The server.
        port: To listen on; 0 = any free one.
        only: Faults befall only those connections whose client has said this, for example b"PSYNC".
        seed: Of what is lost.

    Attributes:
        port: Where it listens.
        delay_s: How long each piece takes, each way.
        stalled: Nothing is passed on, either way; what comes waits.
        deaf: The server's replies are swallowed: what was asked is done, and nobody hears of it.
        lost: Share of the server's pieces at which the connection is cut instead, 0 to 1.
        connections: Accepted so far.
        swallowed: Pieces of the server that nobody got to read.
    """

    def __init__(self, target: Target, *, port: int = 0, only: bytes | None = None, seed: int = 0) -> None:
        self._target = target
        self._only = only
        self._random = random.Random(seed)
        self.delay_s = 0.0
        self.stalled = False
        self.deaf = False
        self.lost = 0.0
        self.connections = 0
        self.swallowed = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = port
        self.accept()

    @property
    def open(self) -> int:
        """Clients that are connected."""
        return len(self._open)

    def accept(self) -> None:
        """Listen, after `refuse` on the same port."""
        self._run(self._listen)

    def refuse(self) -> None:
        """Cut all connections, and let nobody connect."""
        self._run(self._close)
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        self._run(self._cut)

    def close(self) -> None:
        self.refuse()
        self._run(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, do: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cut(self) -> None:
        for writer in self._open:
            _reset(writer)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            if isinstance(self._target, str):
                back, there = await asyncio.open_unix_connection(self._target)
            else:
                back, there = await asyncio.open_connection(*self._target)
            way = _Way(self, writer)
            passing = [asyncio.ensure_future(way.out(reader, there)), asyncio.ensure_future(way.back(back))]
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in passing:
                    one.cancel()
                await asyncio.gather(*passing, return_exceptions=True)
        except OSError:
            pass  # the server refuses: so do we
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    end.transport.abort() if end is writer and there is None else end.close()

    def loses(self) -> bool:
        """Whether this piece of the server's is lost."""
        return self.lost > 0 and self._random.random() < self.lost

    def befalls(self, said: bytes) -> bool:
        """Whether faults befall a connection whose client has said this."""
        return self._only is None or self._only in said


class _Way:
    """One connection."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._faulty = proxy.befalls(b"")

    async def out(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        said = b""
        while data := await reader.read(_PIECE_BYTES):
            if not self._faulty:
                said = (said + data)[-1024:]
                self._faulty = self._proxy.befalls(said)
            await self._wait()
            server.write(data)
            await server.drain()

    async def back(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_PIECE_BYTES):
            await self._wait()
            if self._faulty and self._proxy.deaf:
                self._proxy.swallowed += 1
                continue
            if self._faulty and self._proxy.loses():
                self._proxy.swallowed += 1
                _reset(self._client)
                return
            self._client.write(data)
            await self._client.drain()

    async def _wait(self) -> None:
        if self._faulty and self._proxy.delay_s:
            await asyncio.sleep(self._proxy.delay_s)
        while self._faulty and self._proxy.stalled:  # noqa: ASYNC110  set from another thread
            await asyncio.sleep(_LOOK_S)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a host that has lost the connection does."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

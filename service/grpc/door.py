"""The door: takes gRPC connections from the socket that all workers share, and carries their bytes to the server.

    open       who has the fewest connections accepts the next: the others give it time. There are few of them, for
               long, and each is one worker's
    retired    no more are accepted; every client is told GOAWAY, between two frames: it opens a connection elsewhere,
               ends its calls here, whatever came in meanwhile included, and closes
    ended      what has not closed by then is left to the server's own stop

The library would answer calls that cross its GOAWAY with CANCELLED. Here they are simply served.

A connection costs two file descriptors, and a call about 10 µs of carrying.
"""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import cast

from service.grpc.frames import GO_ELSEWHERE, Frames
from service.logs import events

_AGAIN_S = 0.5  # after the system had no descriptor or memory left
_COURTESY_S = 0.0005  # a connection one has, that others may be faster
_MOST_COURTESY_S = 0.004
_log = events()


class Door:
    """The door of one worker.

    Args:
        listener: The shared one; closed here when the door is retired.
        folder: Private to this process; holds the server's socket, and names of connections for a moment.
        inner: Path of the server's socket.
    """

    def __init__(self, listener: socket.socket, folder: Path, inner: Path) -> None:
        self._listener = listener
        self._folder = folder
        self._inner = str(inner)
        self._loop = asyncio.get_running_loop()
        self._outside: set[_Outside] = set()
        self._peers: dict[str, str] = {}
        self._number = 0
        self._empty = asyncio.Event()
        self._joining: set[asyncio.Task[None]] = set()
        self._retired = False
        self._pausing = False

    def open(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._listen()

    def address(self, peer: str) -> str | None:
        """The client's address, of a peer as the library names it; None = it is not known, as on a unix socket."""
        return self._peers.get(peer.removeprefix("unix:"))

    @property
    def connections(self) -> int:
        return len(self._outside) + len(self._joining)

    def retire(self, *, last: bool) -> None:
        """Accept no more, and send all clients elsewhere; `last`: nobody else accepts what the kernel has taken."""
        if self._retired:
            return
        while last and self._accept():
            pass
        self._retired = True
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for outside in self._outside:
            outside.send_away()

    async def emptied(self, within_s: float) -> None:
        """Until every client has closed, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()

    def cut(self) -> None:
        """Close what is still open."""
        for task in self._joining:
            task.cancel()
        for outside in list(self._outside):
            outside.abort()

    def _listen(self) -> None:
        if not self._retired:
            self._loop.add_reader(self._listener.fileno(), self._ready)

    def _ready(self) -> None:
        """Somebody wants in."""
        if not self.connections:
            self._accept()
            return
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(min(self.connections * _COURTESY_S, _MOST_COURTESY_S), self._accept_now)

    def _accept_now(self) -> None:
        if not self._retired:
            self._accept()
        if not self._pausing:
            self._listen()

    def _accept(self) -> bool:
        """Take one connection; false = there is none."""
        try:
            accepted, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker was faster
            return False
        except OSError as error:
            _log.error("grpc_accept_failed", error=error, next_try_s=_AGAIN_S)
            self._pausing = True
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(_AGAIN_S, self._listen_again)
            return False
        task = self._loop.create_task(self._join(accepted, address[0] if isinstance(address, tuple) else None))
        self._joining.add(task)
        task.add_done_callback(lambda task: self._joined(task, accepted))
        return True

    def _listen_again(self) -> None:
        self._pausing = False
        self._listen()

    def _joined(self, task: "asyncio.Task[None]", accepted: socket.socket) -> None:
        self._joining.discard(task)
        self._empty.set()
        if task.cancelled():
            accepted.close()  # it may not have begun
        elif (error := task.exception()) is not None:
            _log.error("grpc_connection_failed", error=error)

    async def _join(self, accepted: socket.socket, address: str | None) -> None:
        """Connect an accepted client to the server, by a name under which its address can be found."""
        accepted.setblocking(False)
        inner = socket.socket(socket.AF_UNIX)
        self._number += 1
        name = self._folder / f"{self._number}"
        outside = _Outside(self, str(name))
        try:
            inner.setblocking(False)
            inner.bind(str(name))
            await self._loop.sock_connect(inner, self._inner)
            name.unlink()
            if address is not None:
                self._peers[str(name)] = address
            await self._loop.connect_accepted_socket(lambda: outside, accepted)
            await self._loop.create_unix_connection(lambda: outside.inside, sock=inner)
        except BaseException:
            self._peers.pop(str(name), None)
            name.unlink(missing_ok=True)
            inner.close()
            outside.abort()
            accepted.close()
            raise

    def entered(self, outside: "_Outside") -> None:
        self._outside.add(outside)
        if self._retired:
            outside.send_away()

    def left(self, outside: "_Outside") -> None:
        self._outside.discard(outside)
        self._peers.pop(outside.name, None)
        self._empty.set()


class _Outside(asyncio.Protocol):
    """The client's end of a carried connection.

    Attributes:
        early: What it has said before the server's end was there; None = that is there.
    """

    transport: asyncio.Transport

    def __init__(self, door: Door, name: str) -> None:
        self.name = name
        self.early: bytes | None = b""
        self.inside = _Inside(self)
        self._door = door
        self._frames = Frames()
        self._away = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._door.entered(self)

    def data_received(self, data: bytes) -> None:
        if self.early is None:
            self.inside.transport.write(data)
        else:
            self.early += data
            self.transport.pause_reading()

    def say(self, data: bytes) -> None:
        """What the server says, to the client; if it is to go, GOAWAY at the next place for it."""
        place = self._frames.feed(data)
        if self._away and place is not None:
            self._away = False
            data = data[:place] + GO_ELSEWHERE + data[place:]
        self.transport.write(data)

    def abort(self) -> None:
        if hasattr(self, "transport"):
            self.transport.abort()

    def send_away(self) -> None:
        if self._frames.between:
            self.transport.write(GO_ELSEWHERE)
        else:
            self._away = True

    def pause_writing(self) -> None:
        self.inside.transport.pause_reading()

    def resume_writing(self) -> None:
        self.inside.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.inside.close()
        self._door.left(self)


class _Inside(asyncio.Protocol):
    """The server's end."""

    transport: asyncio.Transport

    def __init__(self, outside: _Outside) -> None:
        self._outside = outside
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._closed:  # the client was faster
            self.transport.close()
        else:
            self.transport.write(self._outside.early or b"")
            self._outside.early = None
            self._outside.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._outside.say(data)

    def close(self) -> None:
        self._closed = True
        if hasattr(self, "transport"):
            self.transport.close()

    def pause_writing(self) -> None:
        self._outside.transport.pause_reading()

    def resume_writing(self) -> None:
        self._outside.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._outside.transport.close()

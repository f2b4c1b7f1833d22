"""The door by itself: before a server of two lines, which says what it hears in HTTP/2 frames."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, SettingsFrame

from service.grpc.door import Door
from service.grpc.frames import GO_ELSEWHERE

HELLO = SettingsFrame(0).serialize()
BUFFER = 100_000  # bytes that the kernel keeps at each end: left to itself, it may take all a test sends
GONE = GoAwayFrame(0, last_stream_id=2**31 - 1).serialize()


def said(data: bytes) -> bytes:
    return DataFrame(1, data).serialize()


class Place:
    """A listening socket, and the server behind its doors."""

    def __init__(self, folder: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)  # who is accepted inherits it
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.folder = folder
        self.inner = folder / "inner"
        self.peers: list[str] = []
        self.doors: list[Door] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.open: list[asyncio.StreamWriter] = []  # both ends

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername"))
        self.open.append(writer)
        writer.write(HELLO)
        with contextlib.suppress(ConnectionError):
            while heard := await reader.read(1000):
                await self.hold.wait()
                if heard == b"end":
                    break
                writer.write(said(heard))
                await writer.drain()
        writer.close()

    def door(self) -> Door:
        """One more worker's."""
        folder = self.folder / f"{len(self.doors)}"
        folder.mkdir()
        self.doors.append(Door(self.listener.dup(), folder, self.inner))
        self.doors[-1].open()
        return self.doors[-1]

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        near.setblocking(False)
        await asyncio.get_running_loop().sock_connect(near, self.listener.getsockname())
        reader, writer = await asyncio.open_connection(sock=near)
        self.open.append(writer)
        return reader, writer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The server has said hello."""
        reader, writer = await self.reach()
        assert await reader.readexactly(len(HELLO)) == HELLO
        return reader, writer

    async def close(self) -> None:
        for door in self.doors:
            door.retire(last=False)
            door.cut()
        self.listener.close()
        self.hold.set()
        for door in self.doors:
            await door.emptied(10)
        for writer in self.open:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    here = Place(folder)
    async with await asyncio.start_unix_server(here.serve, here.inner), asyncio.timeout(30):
        try:
            yield here
        finally:
            await here.close()


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def settled(writer: asyncio.StreamWriter) -> int:
    """Bytes that are not sent, once they get no fewer."""
    left, before = writer.transport.get_write_buffer_size(), -1
    while left != before:
        await asyncio.sleep(0.3)
        left, before = writer.transport.get_write_buffer_size(), left
    return left


async def test_what_is_said_is_heard_on_both_sides_and_in_order(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        here.door()
        reader, writer = await here.connect()
        for word in (b"one", b"two", b"three"):
            writer.write(word)
            assert await reader.readexactly(len(said(word))) == said(word)
        writer.close()


async def test_who_speaks_before_the_server_is_reached_is_heard_too(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        reader, writer = await here.reach()
        writer.write(b"early")
        await asyncio.sleep(0.05)
        here.door()
        assert await reader.readexactly(len(HELLO + said(b"early"))) == HELLO + said(b"early")
        writer.close()


async def test_a_client_that_closes_is_gone_at_the_server_and_the_other_way_round(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        door = here.door()
        _, writer = await here.connect()
        writer.close()
        await until(lambda: not door.connections)
        reader, writer = await here.connect()
        writer.write(b"end")
        assert await reader.read() == b""
        await until(lambda: not door.connections)
        writer.close()


async def test_nothing_piles_up_before_who_does_not_read(tmp_path: Path) -> None:
    """20 MB are sent to a server that waits: they stay at the sender, not here; then all arrive."""
    size = 20_000_000
    async with place(tmp_path) as here:
        here.door()
        here.hold.clear()
        reader, writer = await here.connect()
        writer.write(bytes(size))
        assert size - await settled(writer) < 2_000_000
        here.hold.set()
        heard = 0
        while heard < size:
            head = await reader.readexactly(9)
            heard += len(await reader.readexactly(int.from_bytes(head[:3], "big")))
        assert heard == size
        writer.close()


async def test_nothing_piles_up_for_who_does_not_read(tmp_path: Path) -> None:
    """A server that sends 20 MB waits for its client; then all arrive."""
    size = 20_000_000
    async with place(tmp_path) as here:
        here.door()
        reader, _ = await here.connect()
        server = here.open[-1]
        server.write(bytes(size))
        assert size - await settled(server) < 2_000_000
        assert await reader.readexactly(size) == bytes(size)


async def test_a_client_is_known_by_its_address(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        door = here.door()
        _, writer = await here.connect()
        assert door.address(f"unix:{here.peers[0]}") == "127.0.0.1"
        assert door.address("unix:elsewhere") is None
        writer.close()
        await until(lambda: door.address(f"unix:{here.peers[0]}") is None)
        assert list((tmp_path / "0").iterdir()) == []


async def test_the_next_connection_is_that_workers_who_has_the_fewest(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        old = here.door()
        for _ in range(12):
            await here.connect()
        new = here.door()
        for _ in range(6):
            await here.connect()
        assert old.connections + new.connections == 18
        assert new.connections >= 4, "a busy machine may be late once or twice"


async def test_workers_share_connections_evenly_also_when_all_come_at_once(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        doors = [here.door() for _ in range(4)]
        await asyncio.gather(*(here.connect() for _ in range(32)))
        counts = sorted(door.connections for door in doors)
        assert sum(counts) == 32
        assert counts[0] >= 4 and counts[-1] <= 12, counts


async def test_a_retired_door_sends_its_clients_away_and_serves_what_they_still_say(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        old, new = here.door(), None
        reader, writer = await here.connect()
        old.retire(last=False)
        assert await reader.readexactly(len(GONE)) == GONE == GO_ELSEWHERE
        writer.write(b"late")
        assert await reader.readexactly(len(said(b"late"))) == said(b"late")
        new = here.door()
        _, other = await here.connect()
        assert (old.connections, new.connections) == (1, 1)
        writer.close()
        await old.emptied(10)
        assert old.connections == 0
        other.close()


async def test_who_was_let_in_as_the_door_is_retired_is_sent_away_at_once(tmp_path: Path) -> None:
    """Not before the server's first frame."""
    async with place(tmp_path) as here:
        door = here.door()
        reader, writer = await here.reach()
        await until(lambda: door.connections)
        door.retire(last=False)
        assert await reader.readexactly(len(HELLO + GONE)) == HELLO + GONE
        writer.close()


@pytest.mark.parametrize("last", [False, True])
async def test_the_last_door_lets_in_whom_the_kernel_has_accepted(tmp_path: Path, last: bool) -> None:
    """The others leave them to who comes after them."""
    async with place(tmp_path) as here:
        door = here.door()
        clients = [socket.create_connection(here.listener.getsockname()) for _ in range(5)]
        door.retire(last=last)
        assert door.connections == (5 if last else 0)
        for client in clients:
            client.close()


async def test_emptied_waits_no_longer_than_it_is_told(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        door = here.door()
        reader, writer = await here.connect()
        began = asyncio.get_running_loop().time()
        await door.emptied(0.2)
        assert 0.15 < asyncio.get_running_loop().time() - began < 10
        door.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_a_system_without_descriptors_is_asked_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.grpc.door._AGAIN_S", 0.1)
    async with place(tmp_path) as here:
        door = here.door()
        accept = door._listener.accept
        refusals = iter([OSError(errno.EMFILE, "Too many open files"), OSError(errno.EMFILE, "Too many open files")])

        class Listener:
            """A socket that fails twice."""

            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def accept(self) -> object:
                for error in refusals:
                    raise error
                return accept()

        real, door._listener = door._listener, Listener()  # type: ignore[assignment]
        _, writer = await here.connect()
        assert caplog.text.count("grpc_accept_failed") == 2
        writer.close()

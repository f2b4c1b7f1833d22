"""A Redis that is none, and the wires to it: commands and replies travel, are late, are lost, and connections break.

The store under test is the real one (`stores/redis.py`); here are the few calls it makes of redis-py. The server
decides by the twins, which are held equal to the script elsewhere (tests/contract), one call at a time, by its own
clock. What a client has sent still arrives when the client is gone, as it does over TCP.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any

from hiredis import Reader
from redis.exceptions import BusyLoadingError, ConnectionError, NoScriptError, ResponseError

from bench.simulation.loop import VirtualLoop
from service.errors import StoreUnavailable
from service.limits import keys
from service.limits.decision import Ask
from service.limits.stores.faults import REFUSED
from service.limits.stores.memory import MemoryStore
from service.limits.stores.redis import RedisStore

if TYPE_CHECKING:
    from bench.simulation.ledger import Ledger

EPOCH_US = 1_790_000_000_000_000
OPENED_BY = 2
"""Calls in a row without an answer after which a worker asks for nobody any more, as promised."""
PROBE_US = 1_000_000
"""Between two looks of a worker at a server that is away, at least."""


class Fate(StrEnum):
    """What becomes of one command on the wire."""

    FINE = "fine"
    LATE = "late"  # and so is its reply
    LOST = "lost"  # from then on nothing passes
    MUTE = "mute"  # it arrives; from then on nothing comes back
    RESET = "reset"  # the connection breaks before it arrives
    CUT = "cut"  # the connection breaks behind it: it is decided, and nobody hears


class Memory(MemoryStore):
    """What the server keeps, and what of it a restart brings back."""

    def saved(self) -> dict[bytes, tuple[object, int]]:
        return dict(self._kept)

    def restore(self, kept: dict[bytes, tuple[object, int]]) -> None:
        self._kept = dict(kept)


class Server:
    """The one Redis of a run.

    Attributes:
        memory: The counters.
        full: It refuses to write: out of memory.
        open: Connections that clients have not closed, by number.
        elapsed_us: Time that has passed for counters: what the clock went forward, microseconds. A clock that is set
            back gives nobody anything.
        steps_back: How often the clock was set back.
    """

    def __init__(self, loop: VirtualLoop, ledger: "Ledger", trace: Callable[[str], None]) -> None:
        self._loop = loop
        self.ledger = ledger
        self._trace = trace
        self._offset_us = EPOCH_US
        self._forward_us = 0
        self._inbox: deque[tuple[Connection, tuple[Any, ...], Sequence[Ask]]] = deque()
        self._up = True
        self._awake = True
        self._working = False
        self._loading = False
        self._knows_script = False
        self._saved: dict[bytes, tuple[object, int]] = {}
        self.memory = Memory(self.clock)
        self._number = 0
        self.full = False
        self.open: dict[int, Connection] = {}
        self.steps_back = 0

    def clock(self) -> int:
        """Microseconds since the epoch, as the server believes."""
        return self._loop.now_us + self._offset_us

    def number(self) -> int:
        """Of the next connection."""
        self._number += 1
        return self._number

    @property
    def elapsed_us(self) -> int:
        return self._loop.now_us + self._forward_us

    @property
    def up(self) -> bool:
        return self._up

    # ── what happens to it ───────────────────────────────────────────────────────────────────────────────────

    def set_clock(self, by_us: int) -> None:
        self._offset_us += by_us
        if by_us > 0:
            self._forward_us += by_us
        else:
            self.steps_back += 1
            self.ledger.clock_set_back()

    def sleep(self) -> None:
        """SIGSTOP: connections stay, the kernel takes what comes, nothing is decided."""
        self._awake = False

    def wake(self) -> None:
        self._awake = True
        self._work()

    def forget_scripts(self) -> None:
        self._knows_script = False

    def save(self) -> None:
        """What a restart may bring back."""
        self._saved = self.memory.saved()

    def crash(self, keeps: str) -> None:
        """All connections break, what waits is gone. `keeps`: "all", "saved", or "nothing"."""
        self._up = False
        self._awake = True
        self._knows_script = False
        self._inbox.clear()
        if keeps != "all":
            self.memory.restore(self._saved if keeps == "saved" else {})
            self.ledger.forget(wholly=keeps == "nothing")
        for connection in list(self.open.values()):
            connection.breaks()

    def start(self) -> None:
        """Up again; for a moment it only says that it is loading."""
        self._up, self._loading = True, True
        self._loop.call_later(0.02, self._loaded)

    def _loaded(self) -> None:
        self._loading = False

    # ── what it does ─────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, connection: "Connection", command: tuple[Any, ...], batch: Sequence[Ask]) -> None:
        if self._up:
            self._inbox.append((connection, command, batch))
            self._work()

    def _work(self) -> None:
        if self._working or not self._awake or not self._inbox:
            return
        connection, command, batch = self._inbox.popleft()
        self._working = True
        reply = self._execute(command, batch)
        took_us = 10 + 8 * sum(len(ask.charges) for ask in batch)
        self._loop.call_later(took_us / 1_000_000, self._done, connection, reply)

    def _done(self, connection: "Connection", reply: Any) -> None:
        self._working = False
        connection.answered(reply)
        self._work()

    def _execute(self, command: tuple[Any, ...], batch: Sequence[Ask]) -> Any:
        if self._loading:
            return BusyLoadingError("LOADING Redis is loading the dataset in memory")
        if command[:2] == ("SCRIPT", "LOAD"):
            self._knows_script = True
            return b"sha"
        if not self._knows_script:
            return NoScriptError("NOSCRIPT No matching script. Please use EVAL.")
        if self.full:
            return ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
        names = [name for ask in batch for name in ask.names]
        assert list(command[3 : 3 + int(command[2])]) == names, "the command is not that of the batch"
        before = self.memory.saved()
        numbers = self.memory.decide_now(batch)
        self._trace(f"decides {' '.join(map(str, numbers))}")
        if probes(batch[0]):
            return numbers
        self.ledger.decided(batch, numbers, self.elapsed_us)
        if len(batch) == 1 and not self.steps_back:  # a clock that was set back is mended whatever the answer
            self.ledger.compared(batch[0], before, self.memory.saved())
        return numbers


class Wires:
    """How messages fare: drawn from the seed, message by message.

    Attributes:
        rough: Other fates than fine are met while this is above 0.

    Args:
        fates: How likely each is, then.
        delay_us: Least and most of a fine message, one way.
        late_us: The same of a late one.
    """

    def __init__(
        self, random: Random, fates: dict[Fate, float], delay_us: tuple[int, int], late_us: tuple[int, int]
    ) -> None:
        self._random = random
        self._fates = fates
        self._delay_us = delay_us
        self._late_us = late_us
        self.rough = 0

    def fate(self) -> Fate:
        if self.rough:
            drawn = self._random.random()
            for fate, share in self._fates.items():
                drawn -= share
                if drawn < 0:
                    return fate
        return Fate.FINE

    def delay_us(self, fate: Fate = Fate.FINE) -> int:
        return self._random.randint(*(self._late_us if fate is Fate.LATE else self._delay_us))


def probes(ask: Ask) -> bool:
    """Whether a breaker asks, and no caller. A probe travels alone."""
    return ask.names[0] == keys.probe(ask.names[0])


class Link:
    """A worker's way to the server: what stands for redis-py's client, and for its pool.

    Attributes:
        batch: What the store is about to send.
        hole: Nothing passes, and nobody is told: a partition, or a worker that is dead.
        failures: Calls in a row that were not answered.
    """

    def __init__(
        self, name: str, loop: VirtualLoop, server: Server, wires: Wires, trace: Callable[[str], None]
    ) -> None:
        self.name = name
        self.loop = loop
        self.server = server
        self.wires = wires
        self.trace = trace
        self.batch: Sequence[Ask] = ()
        self.hole = False
        self.dead = False
        self.failures = 0
        self._probed_us: int | None = None
        self.connection_pool = self

    @property
    def given_up(self) -> bool:
        """Two calls in a row were not answered: until a probe is, nobody asks the server for a caller."""
        return self.failures >= OPENED_BY

    def sends(self) -> None:
        """A call begins."""
        ledger, now_us = self.server.ledger, self.loop.now_us
        if not probes(self.batch[0]):
            ledger.sent(self.batch)
            if self.given_up:
                ledger.fault(f"{self.name} asks for a caller although {self.failures} calls were not answered")
            return
        if self._probed_us is not None and now_us < self._probed_us + PROBE_US:
            ledger.fault(f"{self.name} probes {now_us - self._probed_us} us after its last probe")
        if not self.given_up:
            ledger.fault(f"{self.name} probes after {self.failures} calls that were not answered")
        self._probed_us = now_us

    def make_connection(self) -> "Connection":
        return Connection(self)

    async def aclose(self) -> None:
        """Nothing is pooled."""

    def heal(self) -> None:
        """The partition is over; a process that is dead stays dead."""
        self.hole = self.dead

    def die(self) -> None:
        """The process is gone, and its kernel closes what it had open."""
        self.hole = self.dead = True
        for number, connection in list(self.server.open.items()):
            if connection.link is self:
                del self.server.open[number]


class Connection:
    """One connection, as redis-py's; a command at a time."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.number = link.server.number()
        self._replies: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._waits = False
        self._fate = Fate.FINE
        self._broken = False
        self._dropped = False  # by the server, who could not tell us
        self._sent_us = 0
        self._came_us = 0

    async def connect(self) -> None:
        link = self.link
        await self._while_hole()
        await asyncio.sleep(4 * link.wires.delay_us() / 1_000_000)  # SYN and HELLO, there and back
        await self._while_hole()
        if not link.server.up:
            raise ConnectionError("Connection refused.")
        link.server.open[self.number] = self
        link.trace(f"{link.name} connects #{self.number}")

    async def _while_hole(self) -> None:
        if self.link.hole:
            await asyncio.get_running_loop().create_future()

    @property
    def _writer(self) -> "Connection":
        """As the store writes packed commands: to the stream itself."""
        return self

    transport = _writer

    def abort(self) -> None:
        """`disconnect` comes next."""

    def writelines(self, packed: Sequence[bytes]) -> None:
        reader = Reader()
        for part in packed:
            reader.feed(part)
            name, *words = reader.gets()
            self._put(name.decode(), *words)

    async def drain(self) -> None:
        """The network takes all at once."""

    async def send_command(self, *command: Any) -> None:
        self._put(*command)

    def _put(self, *command: Any) -> None:
        link, loop = self.link, self.link.loop
        if self._broken:
            raise ConnectionError("Connection closed by server.")
        if self._waits:
            link.server.ledger.fault(f"{link.name} sends on #{self.number} before it was answered")
        self._waits = True
        fate = Fate.LOST if link.hole else self._fate if self._fate in (Fate.LOST, Fate.MUTE) else link.wires.fate()
        self._fate = fate
        link.trace(f"{link.name} sends {command[0]} of {len(link.batch)} on #{self.number}: {fate}")
        if fate is Fate.RESET or (self._dropped and not link.hole):
            loop.call_later(link.wires.delay_us() / 1_000_000, self.breaks)
        elif fate is not Fate.LOST:
            self._sent_us = max(self._sent_us, loop.now_us + link.wires.delay_us(fate))
            loop.call_at(self._sent_us / 1_000_000, link.server.receive, self, command, link.batch)

    def answered(self, reply: Any) -> None:
        """The server's word, on its way."""
        loop, wires = self.link.loop, self.link.wires
        if self._fate is Fate.CUT:
            loop.call_later(wires.delay_us() / 1_000_000, self.breaks)
        elif self._fate not in (Fate.LOST, Fate.MUTE) and not self.link.hole:
            self._came_us = max(self._came_us, loop.now_us + wires.delay_us(self._fate))
            loop.call_at(self._came_us / 1_000_000, self._deliver, reply)

    def breaks(self) -> None:
        """Reset by the other end, or by something between."""
        self.link.server.open.pop(self.number, None)
        self._dropped = True
        if not self.link.hole:
            self._broken = True
            self._deliver(ConnectionError("Connection reset by peer."))

    def _deliver(self, reply: Any) -> None:
        self._replies.append(reply)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read_response(self, disable_decoding: bool = False) -> Any:
        while not self._replies:
            self._reader = self.link.loop.create_future()
            await self._reader
        self._waits = False
        reply = self._replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def can_read_destructive(self) -> bool:
        return bool(self._replies)

    async def disconnect(self, nowait: bool = False) -> None:
        self._broken = True
        self.link.server.open.pop(self.number, None)


class SimulatedStore(RedisStore):
    """The store of one worker; the clock is the server's."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)  # type: ignore[arg-type]
        self._link = link

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        link = self._link
        link.batch = asks
        link.sends()
        try:
            numbers = await super().decide(asks)
        except StoreUnavailable as error:
            link.failures += error.reason != REFUSED
            raise
        except asyncio.CancelledError:
            link.failures += 1
            raise
        link.failures = 0
        return numbers

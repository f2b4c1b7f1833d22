"""What workers tell each other through the store: short messages that all read, in order, and soon.

Each worker reads what is new every POLL_S while there are requests: one call, whose cost does not depend on how many
they are. A worker that had none for STALE_S reads before it answers the next one, so whatever was posted more than
STALE_S ago is known wherever a request is decided; usually it is a quarter of a second. A worker that starts reads
what the board still keeps. While the store is away, what is known holds, and nobody waits.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from service.errors import StoreUnavailable

if TYPE_CHECKING:
    from service.limits.engine import Engine

POLL_S = 0.25
STALE_S = 1.0

MOST_KEPT = 10_000
"""Messages a board keeps, about: a worker that starts later than that many ago does not hear the first ones."""

BEGINNING = b"-"


class Board:
    """One board of a limiter, for all its event loops.

    Args:
        engine: Whose store it is in.
        key: Of the board, from `keys.py`.
        keep_s: How long a message matters, seconds: so long after the last one the board is gone.
        heard: Called with each new message, and the store's clock, microseconds since the epoch; ours included.
        clock: Seconds, only going on; tests pass one they move.
    """

    def __init__(
        self,
        engine: "Engine",
        key: bytes,
        keep_s: int,
        heard: Callable[[bytes, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._key = key
        self._keep_ms = keep_s * 1000 + 1000
        self._heard = heard
        self._clock = clock
        self._after = BEGINNING
        self._tried_s = self._read_s = -STALE_S
        self._offset_us: float | None = None
        self._failed = False
        self._reading: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    def look(self) -> Awaitable[None] | None:
        """To be called for each request: reads if it is time; to be awaited if what is known is too old."""
        now_s = self._clock()
        if now_s - self._tried_s < POLL_S:
            return None
        reading = self._begin(now_s)
        return asyncio.shield(reading) if now_s - self._read_s >= STALE_S and not self._failed else None

    async def read(self) -> None:
        """Hear what is new, now. Raises StoreUnavailable."""
        await self._call(b"")

    async def post(self, message: bytes) -> None:
        """Tell all workers, this one included. Raises StoreUnavailable."""
        await self._call(message)

    def now_us(self) -> int:
        """The store's clock, as far as it is known without asking."""
        clock = getattr(self._engine.store(), "clock", None)
        if clock is not None:  # in this process, and perhaps a test's
            return int(clock())
        return int((self._offset_us or 0) + self._clock() * 1_000_000)

    def _begin(self, now_s: float) -> "asyncio.Task[None]":
        loop = asyncio.get_running_loop()
        reading = self._reading.get(loop)
        if reading is None:
            self._tried_s = now_s
            # its own context: it must not live in the one of the request that happened to come
            reading = self._reading[loop] = loop.create_task(self._read(), context=contextvars.Context())
            reading.add_done_callback(lambda _: self._reading.pop(loop, None))
        return reading

    async def _read(self) -> None:
        try:
            await self.read()
        except StoreUnavailable:  # the decisions themselves tell of that
            self._failed = True
        else:
            self._failed = False

    async def _call(self, message: bytes) -> None:
        more = True
        while more:
            sent_s = self._clock()
            now_us, found = await self._engine.board(self._key, self._after, message, self._keep_ms, MOST_KEPT)
            self._offset_us = now_us - sent_s * 1_000_000
            for id_, text in found:
                self._after = b"(" + id_
                self._heard(text, now_us)
            message, more = b"", len(found) == MOST_KEPT
            if not found and _after_ms(self._after) > now_us // 1000:  # another server, whose clock is behind
                self._after, more = BEGINNING, True
            self._read_s = sent_s


def _after_ms(after: bytes) -> int:
    return 0 if after == BEGINNING else int(after[1:].partition(b"-")[0])

"""Asks in, decisions out: one call to the store for all that arrive together.

Arrivals of one event-loop tick, or while a call is under way, share the next call; there is no timer, so an idle
server adds no wait. Each event loop has a lane of its own (store, connection, queue), closed with the loop; where the
counters are on several servers, one for each.

Nothing is sent twice but what Redis says it has not run (see `stores/redis.py`, `stores/cluster.py`). While the store
is away each limit is decided by its `on_outage` (`fallback.py`).
"""

import asyncio
from collections.abc import Sequence
from threading import get_ident
from typing import TypeVar
from weakref import WeakKeyDictionary

from service.errors import InvalidInput
from service.limits.decision import Alike, Ask, Decision, Decisions
from service.limits.fallback import Fallback
from service.limits.lane import MOST_CHARGES, Counters, Lane, close_with_loop
from service.limits.spread import Spread
from service.limits.stores.contract import Keeper, Opener, Sharded

__all__ = ["DEADLINE_S", "MOST_CHARGES", "Counters", "Engine", "all_of"]

T = TypeVar("T")

DEADLINE_S = 0.25
"""At 50 ms a healthy Redis on two saturated cores gave 251 false timeouts in 12,000; at 250 ms none in 41,000."""


class Engine:
    """Decides asks over a store.

    Args:
        open_store: Opens the store for the running event loop.
        deadline_s: Seconds an ask may take from its arrival; above 0.
        fallback: What decides while the store is away; None = each worker its share.
    """

    def __init__(self, open_store: Opener, deadline_s: float = DEADLINE_S, *, fallback: Fallback | None = None) -> None:
        self.open_store = open_store
        self.deadline_s = deadline_s
        self.fallback = fallback or Fallback()
        self.counters = Counters()
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, Lane | Spread] = WeakKeyDictionary()
        self._latest: Lane | Spread | None = None  # nearly always the one that is wanted
        self._thread = 0  # of its loop: whether that is the running one is told without a system call

    def decide(self, ask: Ask, *, here: bool = False) -> "asyncio.Future[Decision]":
        """The decision, to be awaited on the running event loop.

        Args:
            ask: What is asked.
            here: It undoes or settles a decision that was `degraded`, which the store knows nothing of.

        Raises:
            StoreUnavailable: From the future: no answer within the deadline, and `on_outage` is "deny", or there is
                something to give back.
            InvalidInput: More charges than fit into one call. From the future: the ask's token came with other
                content before.
        """
        if len(ask.charges) > MOST_CHARGES:
            raise InvalidInput("limits", f"{len(ask.charges)} limits in one request; use at most {MOST_CHARGES}")
        lane = self._latest
        if lane is None or self._thread != get_ident() or not lane.loop.is_running():
            lane = self._lane()
        return lane.stand_in(ask, here=True) if here else lane.submit(ask)

    def decide_alike(self, asked: Alike) -> "asyncio.Future[Decisions]":
        """The decisions of many, each for itself; at most 128 of them. As `decide` otherwise.

        Raises:
            StoreUnavailable: From the future, as in `decide`; some of them may have been charged.
            InvalidInput: More than fit into one call.
        """
        lane = self._lane()
        if asked.times > 1 and isinstance(lane, Lane):
            return self.decide(asked)  # type: ignore[return-value]
        if asked.times > MOST_CHARGES:
            raise InvalidInput("limits", f"{asked.times} requests in one; use at most {MOST_CHARGES}")
        return lane.loop.create_task(self._one_by_one(asked))  # on several servers, each on its own

    async def _one_by_one(self, asked: Alike) -> Decisions:
        return Decisions.of(asked, await all_of([self.decide(ask) for ask in asked.each()]))

    def store(self) -> Keeper:
        """The running loop's store, for what is no decision."""
        return self._lane().store

    async def forget(self, prefix: str, identity: str | None) -> int:
        """Drop the counters of one identity, or all under the prefix. Returns how many there were.

        In force here at once, in other workers within `denials.HELD_S`.

        Raises:
            StoreUnavailable: It may or may not be done.
        """
        return await self._lane().forget(prefix, identity)

    def use(self, open_store: Opener) -> None:
        """Decide over another store from now on; what is under way ends where it began. For tests."""
        self.open_store = open_store
        self._lanes.clear()
        self._latest = None

    async def ping(self) -> str:
        """What answers, e.g. "redis 7.0.15". Raises StoreUnavailable after the deadline, or at once in an outage."""
        return await self._lane().ping()

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """As `Keeper.board`. Raises StoreUnavailable after the deadline, or at once in an outage."""
        return await self._lane().board(key, after, message, keep_ms, most)

    def _lane(self) -> Lane | Spread:
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            store = self.open_store()
            if isinstance(store, Sharded):
                lane = Spread(loop, store, self.deadline_s, self.counters, self.fallback)
            else:
                lane = Lane(loop, store, self.deadline_s, self.counters, self.fallback)
            self._lanes[loop] = lane
            self._close_with(lane)
        self._latest, self._thread = lane, get_ident()
        return lane

    def _close_with(self, lane: Lane | Spread) -> None:
        async def close() -> None:
            self._forget(lane.loop)
            await lane.aclose()

        lane.closer = close_with_loop(close)

    def _forget(self, loop: asyncio.AbstractEventLoop) -> Lane | Spread | None:
        self._latest = None
        return self._lanes.pop(loop, None)

    async def aclose(self) -> None:
        """Close the running loop's connections. The engine opens new ones when asked again."""
        lane = self._forget(asyncio.get_running_loop())
        if lane is not None:
            await lane.aclose()


async def all_of(futures: "Sequence[asyncio.Future[T]]") -> list[T]:
    """All answers, in order, or the first exception; then nobody waits for the others."""
    try:
        return [await future for future in futures]
    except BaseException:
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen: else it is complained of
        raise

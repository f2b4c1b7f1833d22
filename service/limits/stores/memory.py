"""Counters in this process, decided by the twins: for one worker, for tests, for trying things out."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

from service.limits import keys
from service.limits.algorithms import TWINS
from service.limits.algorithms.concurrency import Concurrency
from service.limits.algorithms.contract import Definition, Twin
from service.limits.decision import (
    CHARGE,
    CLOSED,
    CONFLICT,
    DEBIT,
    DONE,
    GIVE_BACK,
    LOOK,
    RENEW,
    REPLAYED,
    Alike,
    Ask,
    SettleAsk,
    TokenAsk,
)

NOTHING = 7
"""A kind that only shows: what a token asks for again is neither done nor waited for."""
SWEEP_EVERY = 10_000
"""Decisions between two walks that drop counters nobody asked for again."""


def wall_clock_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class MemoryStore:
    """A dictionary of counters. Safe across threads; shared by all event loops of the process.

    Args:
        clock: Now, microseconds since the epoch; tests pass one they can move.
        most: Counters kept; beyond, looked at every SWEEP_EVERY decisions, the oldest are forgotten. None = any number.
    """

    far = False

    def __init__(self, clock: Callable[[], int] = wall_clock_us, most: int | None = None) -> None:
        self.clock = clock
        self._most = most
        self._kept: dict[bytes, tuple[object, int]] = {}
        self._lock = threading.Lock()
        self._until_sweep = SWEEP_EVERY

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        with self._lock:
            return self.decide_now(asks)

    def decide_now(self, asks: Sequence[Ask]) -> list[int]:
        """`decide` for callers without an event loop; the caller sees to it that nobody comes between."""
        now_us = self.clock()
        numbers = [now_us]
        for ask in asks:
            if isinstance(ask, Alike):
                for one in ask.each():
                    numbers += self._one(one, one.kind, now_us)
                continue
            numbers += self._once(ask, now_us) if isinstance(ask, TokenAsk) else self._one(ask, ask.kind, now_us)
        self._until_sweep -= len(asks)
        if self._until_sweep <= 0:
            self._sweep(now_us)
        return numbers

    def _once(self, ask: TokenAsk, now_us: int) -> list[int]:
        """The twin of `once.lua`. A record: ((fingerprint and counters, at_us, settled, standings), until_us)."""
        keep_us, *marks = ask.numbers
        known, until_us = self._kept.get(ask.token.key, (None, 0))
        known = cast("tuple[list[int], int, int, list[int]] | None", known if until_us > now_us else None)
        if isinstance(ask, SettleAsk):
            return self._settle(ask, known, now_us)
        if known is None:
            standings = self._one(ask, ask.kind, now_us)
            self._kept[ask.token.key] = ((marks, now_us, 0, standings), now_us + keep_us)
            return [DONE, now_us, *standings]
        first, at_us, _, standings = known
        if first[:4] != marks[:4]:
            return [CONFLICT, now_us, *[0] * (4 * len(ask.charges))]
        if first != marks:  # other limits than then: the same verdict, on these as they stand
            passed = not any(standings[2::4])
            standings = self._one(ask, LOOK if ask.kind == CHARGE else NOTHING, now_us)
            standings[2::4] = [0 if passed else max(1, retry_us) for retry_us in standings[2::4]]
            at_us = now_us
        return [REPLAYED, at_us, *standings]

    def _settle(self, ask: SettleAsk, known: tuple[list[int], int, int, list[int]] | None, now_us: int) -> list[int]:
        nothing = [0] * (4 * len(ask.charges))
        keep_us, *marks = ask.numbers
        if known is None or known[0] != marks or any(known[3][2::4]):
            return [CLOSED, now_us, *nothing]
        _, at_us, settled, standings = known
        if settled:
            again = settled == ask.settled + 1
            return [REPLAYED, at_us, *standings] if again else [CONFLICT, now_us, *nothing]
        if now_us >= at_us + ask.open_s * 1_000_000:
            return [CLOSED, now_us, *nothing]
        standings = self._one(ask, ask.kind, now_us, at_us)
        self._kept[ask.token.key] = ((marks, now_us, ask.settled + 1, standings), now_us + keep_us)
        return [DONE, now_us, *standings]

    def _one(self, ask: Ask, kind: int, now_us: int, at_us: int = 0) -> list[int]:
        twins = [self._load(charge.key, charge.limit.definition, now_us) for charge in ask.charges]
        costs = [charge.cost for charge in ask.charges]
        waits = [_wait(twin, cost, kind, ask.lease) for twin, cost in zip(twins, costs, strict=True)]
        passes = not any(waits)
        at_us = min(at_us or ask.at_us or now_us, now_us)
        numbers: list[int] = []
        for charge, twin, wait_us in zip(ask.charges, twins, waits, strict=True):
            changed = kind in (CHARGE, RENEW, DEBIT) and charge.cost > 0 and passes
            if kind == GIVE_BACK:
                changed = twin.give_back(charge.cost, at_us)
            elif changed:
                (twin.debit if kind == DEBIT else twin.charge)(charge.cost)
            if changed or twin.stale:
                self._kept[charge.key] = (twin.state(), twin.until_us())
            remaining, reset_us = twin.show()
            next_us = twin.wait(remaining + 1) if remaining < charge.limit.capacity else 0
            numbers += (remaining, reset_us, wait_us, next_us)
        return numbers

    def _load(self, key: bytes, definition: Definition, now_us: int) -> Twin:
        state, until_us = self._kept.get(key, (None, 0))
        if until_us <= now_us:
            state = None
        return TWINS[definition.code](definition, state, now_us)

    def _sweep(self, now_us: int) -> None:
        live = {key: kept for key, kept in self._kept.items() if kept[1] > now_us}
        if self._most is not None and len(live) > self._most:
            live = dict(list(live.items())[-self._most :])
        self._kept = live
        self._until_sweep = max(SWEEP_EVERY, len(self._kept))

    def kept(self, key: bytes) -> tuple[object, int] | None:
        """A counter's state and until when it counts, microseconds; None = untouched."""
        return self._kept.get(key)

    def keep(self, key: bytes, state: object, until_us: int) -> None:
        """Go on from what `kept` told once."""
        self._kept[key] = (state, until_us)

    async def ping(self) -> str:
        return "memory of this process"

    async def doubts(self) -> list[str]:
        return []

    async def forget(self, prefix: str, identity: str | None) -> int:
        return self.forget_now(prefix, identity)

    def forget_now(self, prefix: str, identity: str | None) -> int:
        """`forget` for callers without an event loop."""
        head, _ = keys.around(prefix, "", "")
        start = head if identity is None else head + keys.who(identity) + b"}"
        with self._lock:
            found = [key for key in self._kept if key.startswith(start)]
            for key in found:
                del self._kept[key]
        return len(found)

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """The twin of `board.lua`. A board: ((id, message), ...), until_us."""
        with self._lock:
            now_us = self.clock()
            kept, until_us = self._kept.get(key, ((), 0))
            entries = cast("tuple[tuple[tuple[int, int], bytes], ...]", kept if until_us > now_us else ())
            if message:
                last = entries[-1][0] if entries else (0, 0)
                entries = (*entries[-most + 1 :], (max((now_us // 1000, 0), (last[0], last[1] + 1)), message))
                self._kept[key] = entries, now_us + keep_ms * 1000
        start = tuple(map(int, after[1:].split(b"-"))) if after != b"-" else (-1, 0)
        return now_us, [(b"%d-%d" % id_, text) for id_, text in entries if id_ > start][:most]

    async def aclose(self) -> None:
        """Nothing to let go of."""


def _wait(twin: Twin, cost: int, kind: int, lease: str | None) -> int:
    """Until this charge could pass; where a lease gives back or renews what it does not hold, more than 0."""
    asking = kind in (CHARGE, LOOK)
    wait_us = twin.wait(cost) if asking else 0
    if lease is None or not isinstance(twin, Concurrency):
        return wait_us
    twin.lease = lease
    if twin.holds():
        return 0
    return wait_us if asking else max(1, twin.wait(1))

"""A limit by address on a route of our own, which costs next to nothing while it is far from used up.

Units are charged in advance, a ten-thousandth of the limit at a time, and handed out here. So a limit up to 19,999 is
charged unit by unit, and one of 10,000,000 once in 1,000 requests. Never do more pass than the limit admits; fewer by
what the workers still hold when it is used up, a ten-thousandth each at most. A refusal is repeated from memory until
it has expired, so that a flood costs the store nothing.
"""

import asyncio
import time
from collections.abc import Callable

from service.errors import StoreUnavailable
from service.limits import keys
from service.limits.access.newcomers import Crowd
from service.limits.decision import Ask, Charge, Decision
from service.limits.engine import Engine
from service.limits.limit import Limit

PARTS = 10_000
MOST_HELD = 8192
"""Addresses that are remembered; beyond, all are forgotten, which costs calls and units, and admits nobody."""

PATIENCE = 0.02
"""Of a decision's deadline: who waits for this waits for what he asked, too. An answer that comes later holds from then
on."""

BLIND_S = 1.0
"""How long everybody passes when the store gave no answer: what is asked then has its own answer to that."""


class _Held:
    """What one address may still do without asking.

    Attributes:
        units: Charged, and not used.
        until_s: When they, or the refusal, are worth nothing any more.
        refusal: Why nothing passes, and since when.
        asking: A charge is under way; done when it is over.
    """

    __slots__ = ("asking", "refusal", "units", "until_s")

    def __init__(self) -> None:
        self.units: float = 0
        self.until_s = 0.0
        self.refusal: tuple[Decision, float] | None = None
        self.asking: asyncio.Event | None = None


class Allowance:
    """One limit string, by address.

    Args:
        engine: What counts.
        text: The limit, or several.
        name: What a refusal calls it.
        scope: Of its keys.
        crowd: How many strangers may have counters of their own; None = any number.
        clock: Seconds; tests pass their own.

    Raises:
        InvalidLimit: The text cannot be meant.
    """

    def __init__(
        self,
        engine: Engine,
        text: str,
        *,
        name: str,
        scope: str,
        crowd: Crowd | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._crowd = crowd
        self._clock = clock
        limits = Limit.parse(text, on_outage="deny")  # that is, StoreUnavailable, and everybody passes
        self._limits = Limit.parse(text, name=name, on_outage="deny") if len(limits) == 1 else limits
        self._places = [keys.around("", scope, limit.spelling) for limit in self._limits]
        self.step = max(1, min(limit.capacity for limit in self._limits) // PARTS)
        self._held: dict[str, _Held] = {}

    def take(self, who: str) -> bool:
        """Use a unit that is held; false = `ask`."""
        held = self._held.get(who)
        if held is None or held.units < 1 or self._clock() >= held.until_s:
            return False
        held.units -= 1
        return True

    async def ask(self, who: str) -> Decision | None:
        """Charge, and use a unit of it. None = it passes; else why not, as of now."""
        name = keys.who(who)
        if self._crowd is not None:
            name = self._crowd.name(who, self._limits, int(self._clock() * 1e6))
            if name.startswith(keys.CROWD):  # what is held, and refused, is the network's
                who = name.decode()
        while not self.take(who):
            held = self._held.get(who)
            if held is None:
                if len(self._held) >= MOST_HELD:
                    self._held.clear()
                held = self._held[who] = _Held()
            if held.refusal is not None and (left := self._left(held)) is not None:
                return left
            if held.asking is not None:  # one charge for all who wait
                await held.asking.wait()
                continue
            if self.step == 1:
                return await self._charge(held, name, 1)
            held.asking = asyncio.Event()
            try:
                decision = await self._charge(held, name, self.step)
                if decision is not None and min(standing.remaining for standing in decision.standings):
                    held.refusal = None
                    decision = await self._charge(held, name, 1)  # what is left of it, one by one
            finally:
                held.asking.set()
                held.asking = None
            return decision
        return None

    async def _charge(self, held: _Held, name: bytes, units: int) -> Decision | None:
        """Charge so many units and use one of them."""
        places = zip(self._limits, self._places, strict=True)
        ask = Ask([Charge(limit, head + name + tail, units) for limit, (head, tail) in places])
        sent_s, answer = self._clock(), self._engine.decide(ask)
        try:
            await asyncio.wait((answer,), timeout=self._engine.deadline_s * PATIENCE)
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if answer.done():
            return self._told(held, answer, units, sent_s)
        self._pass_all(held)
        answer.add_done_callback(lambda answer: self._told_late(held, answer, units, sent_s))
        return None

    def _told(self, held: _Held, answer: "asyncio.Future[Decision]", units: int, sent_s: float) -> Decision | None:
        """Learn from an answer. What it refused; None = it passes."""
        try:
            decision = answer.result()
        except StoreUnavailable:
            self._pass_all(held)
            return None
        if decision.allowed:
            held.units = units - 1
            held.until_s = sent_s + min(standing.reset_us for standing in decision.standings) / 1e6
            return None
        held.units = 0
        held.refusal, held.until_s = (decision, sent_s), sent_s + decision.retry_us / 1e6
        return decision

    def _told_late(self, held: _Held, answer: "asyncio.Future[Decision]", units: int, sent_s: float) -> None:
        """The same, when nobody waits for it any more."""
        if answer.cancelled():
            return
        decision = self._told(held, answer, units, sent_s)
        if decision is not None and min(standing.remaining for standing in decision.standings):
            held.refusal = None  # a smaller part may pass

    def _pass_all(self, held: _Held) -> None:
        held.units, held.until_s = float("inf"), self._clock() + BLIND_S

    def _left(self, held: _Held) -> Decision | None:
        """The refusal with what is left of its times; None = it is over."""
        assert held.refusal is not None
        decision, sent_s = held.refusal
        gone_us = int((self._clock() - sent_s) * 1e6)
        if gone_us >= decision.retry_us:
            held.refusal = None
            return None
        return decision._replace(
            standings=tuple(
                standing._replace(
                    reset_us=max(0, standing.reset_us - gone_us),
                    retry_us=max(0, standing.retry_us - gone_us),
                    next_us=max(0, standing.next_us - gone_us),
                )
                for standing in decision.standings
            )
        )

"""Who asked, what was decided, who was told what; and, after each step, whether all of it may be.

The promises it watches:

- what the server decides is decided once, and what it charged fits the limit in the sense of its algorithm, as long as
  it lost no data; a token is charged once, however often it comes; no more leases live than there are units
- what is refused changes no counter; what nobody waits for any more is not sent
- a caller is answered once, with what was decided for him, and no later than the deadline
- a charge that its worker heard nothing of is counted as unsettled; nothing else is
- while the server is away: two calls in a row, then a probe a second, and no caller waits; what workers let pass by
  themselves fits the limit, all of them together
- whoever waits as long as he was told, alone, passes
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.simulation.bounds import ANY_WINDOW, BOUNDS, Bound
from bench.simulation.loop import VirtualLoop
from service.errors import StoreUnavailable
from service.limits.decision import CHARGE, GIVE_BACK, LOOK, Ask, Decision, LeaseAsk, TokenAsk, read
from service.limits.denials import HELD_S
from service.limits.lane import Counters
from service.limits.limit import Limit

ROUNDING_US = 2
"""Of the loop's float seconds."""


@dataclass(slots=True, eq=False)
class Asked:
    """One ask on its way.

    Attributes:
        of: What a GIVE_BACK gives back.
        decided: By the server; None = not yet, or never.
        at_once: Its worker knows that the server is away.
        told: "decision", "degraded", "unavailable", or "gone" for a caller who left or whose worker died; "" = nothing
            yet.
    """

    worker: str
    ask: Ask
    at_us: int
    of: Ask | None = None
    at_once: bool = False
    decided: Decision | None = None
    told: str = ""

    @property
    def charged(self) -> bool:
        """Units were taken for it."""
        found = self.decided
        return found is not None and found.allowed and not found.replayed and self.ask.kind == CHARGE

    def __str__(self) -> str:
        keys = ", ".join(charge.key.decode() for charge in self.ask.charges)
        return f"the ask of {self.worker} at {self.at_us} us for {keys}"


@dataclass(slots=True)
class Passed:
    """What passed one counter since data was last lost.

    Attributes:
        bound: What may pass.
        log: (instant, units, for which ask).
        returned: Asks of the log whose units were given back. From the first on, the counter is judged at the end.
        spoilt: Units came or went by other ways: a debit, or giving back what the server had forgotten.
    """

    limit: Limit
    bound: Bound
    log: list[tuple[int, int, Ask]] = field(default_factory=list)
    returned: set[Ask] = field(default_factory=set)
    spoilt: bool = False


class Ledger:
    """Of one run.

    Args:
        loop: Whose time it is.
        deadline_s: Seconds an ask may take.
        shares: While the server is away, workers let pass their shares, and nothing else.

    Attributes:
        broken: The promise that did not hold first; never set if all did.
        counts: How often what came to pass.
        losses: How often the server lost data.
        charges: How often anything was done to a counter, by key.
    """

    def __init__(self, loop: VirtualLoop, deadline_s: float, *, shares: bool) -> None:
        self._loop = loop
        self._latest_us = round(deadline_s * 1_000_000) + ROUNDING_US
        self._asked: dict[Ask, Asked] = {}
        self._counters: dict[bytes, Passed] = {}
        self._here: dict[bytes, Passed] = {}
        self._held: dict[bytes, dict[str, int]] = {}
        self._shares = shares
        self._tokens: set[bytes] = set()
        self._refused: dict[tuple[str, ...], tuple[int, int]] = {}
        self._bounds = BOUNDS
        self.broken: asyncio.Future[str] = loop.create_future()
        self.counts: Counter[str] = Counter()
        self.charges: Counter[bytes] = Counter()
        self.losses = 0

    def fault(self, sentence: str) -> None:
        """A promise did not hold."""
        if not self.broken.done():
            self.broken.set_result(sentence)

    # ── asked, decided, told ─────────────────────────────────────────────────────────────────────────────────

    def asks(self, worker: str, ask: Ask, of: Ask | None = None, *, at_once: bool = False) -> Asked:
        """A caller asks; every ask is another object."""
        asked = self._asked[ask] = Asked(worker, ask, self._loop.now_us, of, at_once)
        return asked

    def sent(self, batch: Sequence[Ask]) -> None:
        """A worker sends these."""
        for asked in (self._asked[ask] for ask in batch):
            if asked.told:
                self.fault(f"{asked} was sent although its caller had been told {asked.told}")

    def decided(self, batch: Sequence[Ask], numbers: Sequence[int], elapsed_us: int) -> None:
        """The server has decided a batch."""
        start = 1
        for ask in batch:
            asked = self._asked[ask]
            if asked.decided is not None:
                self.fault(f"{asked} was decided twice")
            asked.decided = read(ask, numbers[0], numbers, start)
            start += ask.width
            self.counts["decided"] += 1
            if not asked.decided.allowed:
                self._refused[_question(asked)] = self._loop.now_us, asked.decided.retry_us
            if isinstance(ask, LeaseAsk):
                self._hold(ask, asked.decided.allowed, elapsed_us)
            elif ask.kind != LOOK and asked.decided.allowed and not asked.decided.replayed:
                self._count(asked, elapsed_us)

    def compared(self, ask: Ask, before: object, after: object) -> None:
        """What the server kept before and after it decided one ask: a refusal changes no counter."""
        asked = self._asked[ask]
        assert asked.decided is not None
        if not asked.decided.allowed and not isinstance(ask, TokenAsk) and before != after:
            self.fault(f"{asked} was refused, and changed a counter")

    def told(self, asked: Asked, outcome: Decision | StoreUnavailable) -> None:
        """The caller has an answer."""
        if asked.told:
            self.fault(f"{asked} was answered twice")
        late_us = self._loop.now_us - asked.at_us - (0 if asked.at_once else self._latest_us)
        if late_us > 0:
            self.fault(f"{asked} was answered {late_us} us {'' if asked.at_once else 'after its deadline'}")
        if isinstance(outcome, StoreUnavailable):
            asked.told = "unavailable"
            self.counts["unavailable"] += 1
            return
        if outcome.degraded:
            asked.told = "degraded"
            self.counts["degraded"] += 1
            self._count_here(asked, outcome)
            return
        asked.told = "decision"
        self.counts["admitted" if outcome.allowed else "refused"] += 1
        if asked.decided is None and not outcome.allowed:
            self.counts["repeated"] += 1
            self._judge_repeated(asked)
        elif outcome != asked.decided:
            self.fault(f"{asked} was told {outcome}, decided was {asked.decided}")

    def _judge_repeated(self, asked: Asked) -> None:
        """A worker refused without asking: the server had just refused it the same, for a time that is not over."""
        refused_us, wait_us = self._refused.get(_question(asked), (0, 0))
        since_us = self._loop.now_us - refused_us
        if since_us > min(wait_us, HELD_S * 1_000_000) or asked.ask.kind != CHARGE or isinstance(asked.ask, TokenAsk):
            self.fault(f"{asked} was refused from memory, {since_us} us after the server refused it for {wait_us} us")

    def gone(self, asked: Asked) -> None:
        """The caller left, or its worker died: nobody was told."""
        asked.told = "gone"
        self.counts["gone"] += 1

    # ── what a counter may let pass ──────────────────────────────────────────────────────────────────────────

    def _count(self, asked: Asked, elapsed_us: int) -> None:
        ask = asked.ask
        if isinstance(ask, TokenAsk):
            if ask.token.key in self._tokens:
                self.fault(f"{asked}: its token was charged before")
            self._tokens.add(ask.token.key)
        for limit, key, cost in ask.charges:
            self.charges[key] += 1
            passed = self._counters.setdefault(key, Passed(limit, self._bounds[limit.algorithm](limit)))
            if ask.kind == CHARGE:
                passed.log.append((elapsed_us, cost, ask))
                if not passed.returned and not passed.spoilt:
                    self._judge(key, passed.bound.passed(elapsed_us, cost))
            elif asked.of is not None and any(one is asked.of for _, _, one in passed.log):
                passed.returned.add(asked.of)
            else:
                passed.spoilt = True

    def _hold(self, ask: LeaseAsk, allowed: bool, elapsed_us: int) -> None:
        """Leases that live at once, at most as many as there are units."""
        assert ask.lease is not None
        for limit, key, _ in ask.charges:
            live = {one: until for one, until in self._held.get(key, {}).items() if until > elapsed_us}
            if ask.kind == GIVE_BACK:
                live.pop(ask.lease, None)
            elif allowed:
                live[ask.lease] = elapsed_us + limit.window_s * 1_000_000
            self._held[key] = live
            if len(live) > limit.capacity:
                self._judge(key, f"{len(live)} leases live at once, of {limit.capacity}")

    def _count_here(self, asked: Asked, outcome: Decision) -> None:
        """A worker let units pass by itself: all workers together, at most the limit.

        Windows begin for each by itself, unless they are longer than the run.
        """
        if not self._shares or asked.ask.kind == LOOK or not outcome.allowed or isinstance(asked.ask, LeaseAsk):
            return
        for limit, key, cost in asked.ask.charges:
            known = BOUNDS if limit.window_s > 3_600 else ANY_WINDOW
            passed = self._here.setdefault(key, Passed(limit, known[limit.algorithm](limit)))
            if asked.ask.kind != CHARGE or isinstance(asked.ask, TokenAsk):
                passed.spoilt = True
            if not passed.spoilt:
                sentence = passed.bound.passed(self._loop.now_us, cost)
                self._judge(key, sentence and f"without the server, {sentence}")

    def _judge(self, key: bytes, sentence: str | None) -> None:
        if sentence is not None:
            self.fault(f"{key.decode()}: {sentence}")

    def forget(self, *, wholly: bool) -> None:
        """The server lost data: what passed before binds it no longer. `wholly`: it knows of no window either."""
        self.losses += 1
        self._bounds = self._bounds if wholly else ANY_WINDOW
        self._judge_returned()
        self._counters.clear()
        self._held.clear()
        self._tokens.clear()

    def clock_set_back(self) -> None:
        """Windows begin anew where nobody can tell from outside."""
        self._bounds = ANY_WINDOW
        for passed in self._counters.values():
            passed.bound = self._bounds[passed.limit.algorithm](passed.limit)
            for at_us, cost, _ in passed.log:
                passed.bound.passed(at_us, cost)

    def _judge_returned(self) -> None:
        """Counters from which units were given back: as if those had never been charged.

        Only a window's beginning stays where they had set it: it is held to what holds wherever windows begin.
        """
        for key, passed in self._counters.items():
            if passed.spoilt or not passed.returned:
                continue
            bound = ANY_WINDOW[passed.limit.algorithm](passed.limit)
            for at_us, cost, ask in passed.log:
                if ask not in passed.returned:
                    self._judge(key, bound.passed(at_us, cost))

    # ── at the end ───────────────────────────────────────────────────────────────────────────────────────────

    def closed(self, counters: dict[str, Counters]) -> None:
        """All is over. `counters`: of each worker that lives."""
        self._judge_returned()
        told: Counter[str] = Counter()
        late: Counter[str] = Counter()
        without: Counter[str] = Counter()
        for asked in self._asked.values():
            if not asked.told:
                self.fault(f"{asked} was never answered")
            if asked.told in ("unavailable", "degraded"):
                without[asked.worker] += 1
                if asked.ask.kind == CHARGE:
                    told[asked.worker] += 1
                    late[asked.worker] += asked.charged
        self.counts["charged late"] = sum(late.values())
        for worker, counted in counters.items():
            if not late[worker] <= counted.unsettled <= told[worker]:
                self.fault(
                    f"{worker} counted {counted.unsettled} unsettled asks; of the {told[worker]} that were decided "
                    f"without the server, it had charged {late[worker]}"
                )
            if sum(counted.degraded.values()) < without[worker]:
                self.fault(f"{worker} counted {counted.degraded}, but decided {without[worker]} without the server")

    def used(self, key: bytes) -> tuple[int, int]:
        """(units that passed a counter, asks that were decided on it)."""
        passed = self._counters.get(key)
        return (
            sum(cost for _, cost, _ in passed.log) if passed else 0,
            sum(one.decided is not None and one.ask.charges[0].key == key for one in self._asked.values()),
        )


def _question(asked: Asked) -> tuple[str, ...]:
    """Who asks, and about which counters."""
    return asked.worker, *(charge.key.decode() for charge in asked.ask.charges)

"""The deny cache: what was refused a moment ago is refused again without asking. A flood on one key costs the store
five calls a second and worker.

Nothing can be admitted before the wait of a refusal is over, unless units come back some other way: somebody resets,
refunds, settles low, deletes a key by hand, or the store loses its data. So a refusal is repeated for at most
HELD_S from when its call was sent, and then the store is asked again: that is how every worker hears of all of these,
announced or not, over the connection it has. Within its own worker a reset or refund is in force at once.

Whoever waits as long as Retry-After says, a second at least, is always answered by the store.

Repeated is only what is the same question: the same limits of the same identity, at the same cost. Of one limit alone
also at a higher cost, where the wait for that can be computed (fixed windows, GCRA). Never a lease, a token, a look.
What this worker charges, debits or gives back is known at once. What others charge meanwhile is not: as long as others
can charge less than was asked for, a wait by GCRA is told as if they had charged all there is, and one by windows that
move is not told from memory. Of several limits, those that let pass are told as they were.

Pure: time comes from outside, seconds of a clock that only moves on.
"""

from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, Ask, Charge, Decision, Standing
from service.limits.limit import Limit

HELD_S = 0.2
"""The staleness bound: so long after units came back some other way a worker may still refuse."""

MOST_KEPT = 4096
"""Questions; some 4 MB."""


class _Refusal(NamedTuple):
    """What was refused.

    Attributes:
        ask: The question.
        decision: The answer, as of then.
        until_s: When it has to be asked again.
        came_s: When the answer came.
    """

    ask: Ask
    decision: Decision
    until_s: float
    came_s: float


class Denials:
    """Those of one lane.

    Attributes:
        kept: By counter, or by counters if a question is about several.
    """

    def __init__(self) -> None:
        self.kept: dict[Any, _Refusal] = {}
        self._among: set[bytes] = set()  # counters of questions about several

    def learn(self, ask: Ask, decision: Decision, sent_s: float, came_s: float) -> None:
        """Keep a refusal whose call was sent at `sent_s`, if it may be repeated."""
        if type(ask) is not Ask or ask.kind != CHARGE:
            return
        if any(charge.limit.algorithm not in ALGORITHMS for charge in ask.charges):  # leases are released at any time
            return
        if len(self.kept) >= MOST_KEPT:
            self._tidy(came_s)
        key = _key(ask)
        before = self.kept.get(key)
        if before is None or before.until_s <= came_s or ask.charges[0].cost <= before.ask.charges[0].cost:
            until_s = sent_s + min(_lasts_us(decision) / 1_000_000, HELD_S)
            self.kept[key] = _Refusal(ask, decision, until_s, came_s)
            if len(ask.names) > 1:
                self._among.update(ask.names)

    def find(self, ask: Ask, now_s: float) -> Decision | None:
        """The refusal of an ask, as of now; None = the store has to be asked."""
        known = self.kept.get(_key(ask))
        if known is None or now_s >= known.until_s:
            return None
        if ask.words != known.ask.words and not _harder(ask, known.ask):
            return None
        age_us = floor((now_s - known.came_s) * 1_000_000)
        _, at_us, then = known.decision
        standings = [_aged(standing, charge, age_us) for standing, charge in zip(then, ask.charges, strict=True)]
        return Decision(False, at_us + age_us, tuple(standings))

    def changed(self, ask: Ask) -> None:
        """Its counters did: they were charged, or given back."""
        for name in ask.names:
            self.kept.pop(name, None)
        if not self._among.isdisjoint(ask.names):
            self.clear()

    def clear(self) -> None:
        """Units may have come back anywhere."""
        self.kept.clear()
        self._among.clear()

    def _tidy(self, now_s: float) -> None:
        live = {key: known for key, known in self.kept.items() if known.until_s > now_s}
        self.clear()
        if len(live) < MOST_KEPT:
            self.kept = live
            self._among.update(name for known in live.values() if len(known.ask.names) > 1 for name in known.ask.names)


def _key(ask: Ask) -> Any:
    names = ask.names
    return names[0] if len(names) == 1 else tuple(names)


def _lasts_us(decision: Decision) -> int:
    """So long what the refusing limits say can be told."""
    lasts_us = decision.retry_us
    for standing in decision.exceeded:
        if standing.limit.algorithm not in ("fixed-window", "gcra"):  # nobody is charged before one more unit is there
            lasts_us = min(lasts_us, 0 if standing.remaining else standing.next_us)
    return lasts_us


def _harder(ask: Ask, known: Ask) -> bool:
    """Whether an ask is about the same limit at a higher cost, and the wait for that is known."""
    if type(ask) is not Ask or ask.kind != CHARGE or len(ask.charges) > 1:
        return False
    limit, _, cost = ask.charges[0]
    return cost > known.charges[0].cost and limit.algorithm in ("fixed-window", "gcra")


def _aged(standing: Standing, charge: Charge, age_us: int) -> Standing:
    """As it is by now: never more than is there, never earlier than it comes."""
    limit, _, cost = charge
    _, asked, remaining, reset_us, retry_us, next_us = standing
    if reset_us <= age_us:
        return Standing(limit, cost, limit.capacity, 0, 0, 0)
    untouched = remaining == 0 and age_us < next_us  # others could not be charged either
    interval = _interval(limit)
    if retry_us and interval is not None:
        retry_us = retry_us + ceil((cost - asked) * interval) if untouched else age_us + ceil(cost * interval)
    if next_us <= age_us:
        back = 1 if interval is None else 1 + floor((age_us - next_us) / interval)
        next_us = reset_us if interval is None else next_us + ceil(back * interval)
        remaining = min(limit.capacity, remaining + back)
    return Standing(
        limit,
        cost,
        remaining,
        reset_us - age_us,
        retry_us - age_us if retry_us else 0,
        min(next_us, reset_us) - age_us if remaining < limit.capacity else 0,
    )


def _interval(limit: Limit) -> Fraction | None:
    """Between two units of a bucket, microseconds; None = units come back some other way."""
    if limit.algorithm != "gcra":
        return None
    found = limit.definition
    return found.a + Fraction(found.b, found.window_us)

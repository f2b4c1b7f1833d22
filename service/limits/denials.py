"""The deny cache: what was refused a moment ago is refused again without asking. A flood on one key costs the store
five calls a second and worker.

Nothing can be admitted before the wait of a refusal is over, unless units come back some other way: somebody resets,
refunds, settles low, deletes a key by hand, or the store loses its data. So a refusal is repeated for at most
HELD_S from when its call was sent, and then the store is asked again: that is how every worker hears of all of these,
announced or not, over the connection it has. Within its own worker a reset or refund is in force at once.

Whoever waits as long as Retry-After says, a second at least, is always answered by the store.

Repeated is only what is the same question: the same limits of the same identity, at the same cost. Of one limit alone
also at a higher cost, where the wait for that can be computed (fixed windows, GCRA). Never a lease, a token, a look.
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

    def learn(self, ask: Ask, decision: Decision, sent_s: float, came_s: float) -> None:
        """Keep a refusal whose call was sent at `sent_s`, if it may be repeated."""
        if type(ask) is not Ask or ask.kind != CHARGE:
            return
        if any(charge.limit.algorithm not in ALGORITHMS for charge in ask.charges):  # leases are released at any time
            return
        if len(self.kept) >= MOST_KEPT:
            self.kept = {key: known for key, known in self.kept.items() if known.until_s > came_s}
            if len(self.kept) >= MOST_KEPT:
                self.kept.clear()
        key = _key(ask)
        before = self.kept.get(key)
        if before is None or before.until_s <= came_s or ask.charges[0].cost <= before.ask.charges[0].cost:
            until_s = sent_s + min(decision.retry_us / 1_000_000, HELD_S)
            self.kept[key] = _Refusal(ask, decision, until_s, came_s)

    def find(self, ask: Ask, now_s: float) -> Decision | None:
        """The refusal of an ask, as of now; None = the store has to be asked."""
        known = self.kept.get(_key(ask))
        if known is None or now_s >= known.until_s:
            return None
        longer_us = 0
        if ask.words != known.ask.words:
            found = _longer_us(ask, known.ask)
            if found is None:
                return None
            longer_us = found
        age_us = floor((now_s - known.came_s) * 1_000_000)
        _, at_us, then = known.decision
        standings = [
            _aged(standing, charge, age_us, longer_us) for standing, charge in zip(then, ask.charges, strict=True)
        ]
        return Decision(False, at_us + age_us, tuple(standings))

    def clear(self) -> None:
        """Units may have come back."""
        self.kept.clear()


def _key(ask: Ask) -> Any:
    names = ask.names
    return names[0] if len(names) == 1 else tuple(names)


def _longer_us(ask: Ask, known: Ask) -> int | None:
    """How much longer another cost of the same limit has to wait; None = that cannot be told, or it may pass."""
    if type(ask) is not Ask or ask.kind != CHARGE or len(ask.charges) > 1:
        return None
    more = ask.charges[0].cost - known.charges[0].cost
    if more < 0:
        return None
    limit = ask.charges[0].limit
    interval = _interval(limit)
    if interval is not None:
        return ceil(more * interval)
    return 0 if limit.algorithm == "fixed-window" else None


def _aged(standing: Standing, charge: Charge, age_us: int, longer_us: int) -> Standing:
    """As it is by now, if nobody was charged: never more than is there, never earlier than it comes."""
    limit, _, cost = charge
    _, _, remaining, reset_us, retry_us, next_us = standing
    if reset_us <= age_us:
        return Standing(limit, cost, limit.capacity, 0, 0, 0)
    if next_us <= age_us:
        interval = _interval(limit)
        back = 1 if interval is None else 1 + floor((age_us - next_us) / interval)
        next_us = reset_us if interval is None else next_us + ceil(back * interval)
        remaining = min(limit.capacity, remaining + back)
    return Standing(
        limit,
        cost,
        remaining,
        reset_us - age_us,
        retry_us + longer_us - age_us if retry_us else 0,
        min(next_us, reset_us) - age_us if remaining < limit.capacity else 0,
    )


def _interval(limit: Limit) -> Fraction | None:
    """Between two units of a bucket, microseconds; None = units come back some other way."""
    if limit.algorithm != "gcra":
        return None
    found = limit.definition
    return found.a + Fraction(found.b, found.window_us)

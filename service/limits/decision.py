"""What was asked and what came out: plain frozen values. Pure.

A refusal is a value, not an exception: `Decision.allowed` is false and `retry_after` says when to come again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from service.limits.limit import Limit

CHARGE, LOOK, GIVE_BACK = 0, 1, 2
"""What an `Ask` wants done; the script reads these numbers."""


class Charge(NamedTuple):
    """One limit of one caller in one request.

    Attributes:
        limit: Which limit.
        key: The Redis key of the counter, from `keys.py`.
        cost: Units, 0 to `limit.capacity`; 0 looks without spending.
    """

    limit: Limit
    key: bytes
    cost: int


class Ask:
    """One request to the engine: all its charges pass, or none is made. Not to be changed; may be asked again.

    Attributes:
        charges: At least one; no key twice.
        kind: CHARGE, LOOK or GIVE_BACK.
        at_us: GIVE_BACK only: the `at_us` of the decision that charged.
        names: The keys.
        words: The rest, as the script reads it.
    """

    __slots__ = ("at_us", "charges", "kind", "names", "words")

    def __init__(self, charges: Sequence[Charge], kind: int = CHARGE, at_us: int = 0) -> None:
        self.charges = charges
        self.kind = kind
        self.at_us = at_us
        self.names = [key for _, key, _ in charges]
        words = [f"{kind} {len(charges)}" if kind != GIVE_BACK else f"{kind} {len(charges)} {at_us}"]
        words += [f"{limit.words} {cost}" for limit, _, cost in charges]
        self.words = " ".join(words)


class Standing(NamedTuple):
    """Where one limit stands after a decision.

    Attributes:
        limit: The limit.
        cost: Units asked for.
        remaining: Units left, 0 to `limit.capacity`.
        reset_us: Until the quota is whole again, microseconds; 0 = it is.
        retry_us: Until this cost could pass, microseconds; 0 = it passes now.
        next_us: Until one more unit is there, microseconds; 0 = the quota is whole.
    """

    limit: Limit
    cost: int
    remaining: int
    reset_us: int
    retry_us: int
    next_us: int

    @property
    def passes(self) -> bool:
        """Whether this limit alone would let the cost through."""
        return self.retry_us == 0


class Decision(NamedTuple):
    """The answer to one `Ask`.

    Attributes:
        allowed: Every limit passes. If false, none was charged.
        at_us: The store's clock when it decided, microseconds since the epoch.
        standings: One per charge, in the order asked.
    """

    allowed: bool
    at_us: int
    standings: tuple[Standing, ...]

    @property
    def retry_us(self) -> int:
        """Until the whole request could pass, microseconds; 0 when allowed."""
        return max(standing.retry_us for standing in self.standings)

    @property
    def retry_after(self) -> int | None:
        """Whole seconds after which a lone caller succeeds, rounded up, at least 1; None when allowed."""
        return None if self.allowed else seconds(self.retry_us)

    @property
    def exceeded(self) -> tuple[Standing, ...]:
        """The limits that refused."""
        return tuple(standing for standing in self.standings if standing.retry_us)


_tuple = tuple.__new__


def seconds(us: int) -> int:
    """Microseconds as whole seconds, rounded up: a caller who waits that long has waited enough."""
    return -(-us // 1_000_000)


def read(ask: Ask, at_us: int, numbers: Sequence[int], start: int) -> Decision:
    """The decision in a store's flat answer: four integers a charge from `numbers[start]` on."""
    charges = ask.charges
    if len(charges) == 1:  # nearly every request has one limit; what it costs is paid on each
        remaining, reset_us, retry_us, next_us = numbers[start : start + 4]
        limit, _, cost = charges[0]
        standing = _tuple(Standing, (limit, cost, remaining, reset_us, retry_us, next_us))
        return _tuple(Decision, (retry_us == 0, at_us, (standing,)))
    standings = []
    allowed = True
    for limit, _key, cost in charges:
        remaining, reset_us, retry_us, next_us = numbers[start : start + 4]
        if retry_us:
            allowed = False
        standings.append(Standing(limit, cost, remaining, reset_us, retry_us, next_us))
        start += 4
    return Decision(allowed, at_us, tuple(standings))

"""What was asked and what came out: plain frozen values. Pure.

A refusal is a value, not an exception: `Decision.allowed` is false and `retry_after` says when to come again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

from service.errors import AlreadySettled, InvalidInput, NotHeld
from service.limits.limit import Limit

CHARGE, LOOK, GIVE_BACK, DEBIT, RENEW = range(5)
"""What an `Ask` wants done; the script reads these numbers.

A DEBIT charges what was used, and is never refused. Under a lease a CHARGE takes units of concurrency (or renews what
the lease holds already), GIVE_BACK releases them and RENEW makes them last: refused, if the lease did not hold them.
"""

ONCE = 8
"""Added to the kind of an ask that carries a token."""

HELD = 16
"""Added to the kind of an ask under a lease."""

SETTLES = 32
"""Added, with ONCE, to the kind of an ask that settles what was charged with a token."""

DONE, REPLAYED, CONFLICT, CLOSED = range(4)
"""What became of an ask that carries a token, as its reply says."""


class Charge(NamedTuple):
    """One limit of one caller in one request.

    Attributes:
        limit: Which limit.
        key: The Redis key of the counter, from `keys.py`.
        cost: Units, 0 to `limit.capacity`, in a DEBIT to 10^9; 0 looks without spending.
    """

    limit: Limit
    key: bytes
    cost: int


class Ask:
    """One request to the engine: all its charges pass, or none is made. Not to be changed; may be asked again.

    Attributes:
        charges: At least one; no key twice.
        kind: CHARGE, LOOK, GIVE_BACK, DEBIT or RENEW.
        at_us: GIVE_BACK, and a DEBIT of what was charged before: the `at_us` of the decision that did; 0 = now.
        lease: Under which units of concurrency are held, as `lease.py` spells it for the script; None = nobody's.
        names: The keys.
        words: The rest, as the script reads it.
        width: How many integers the reply has.
        times: How many requests it stands for: 1, but for `Alike`.
    """

    __slots__ = ("at_us", "charges", "kind", "names", "width", "words")

    lease: str | None = None
    times: int = 1

    def __init__(self, charges: Sequence[Charge], kind: int = CHARGE, at_us: int = 0) -> None:
        self.charges = charges
        self.kind = kind
        self.at_us = at_us
        if len(charges) == 1 and kind != GIVE_BACK:  # nearly all; what it costs is paid on each request
            limit, key, cost = charges[0]
            self.width = 4
            self.names = [key]
            self.words = f"{kind} 1 {limit.words} {cost}"
            return
        self.width = 4 * len(charges)
        self.names = [key for _, key, _ in charges]
        words = [f"{kind} {len(charges)}" if kind != GIVE_BACK else f"{kind} {len(charges)} {at_us}"]
        words += [f"{limit.words} {cost}" for limit, _, cost in charges]
        self.words = " ".join(words)


class Alike(Ask):
    """Many requests that are alike but for whom they charge, each decided for itself, in order: a tenth of the work.

    Attributes:
        limit: Of all of them.
        cost: Units of each, 0 to `limit.capacity`.
    """

    __slots__ = ("cost", "limit", "times")

    def __init__(self, limit: Limit, names: list[bytes], cost: int, kind: int = CHARGE) -> None:
        """`names`: the key of each, one at least; `kind`: CHARGE or LOOK."""
        self.limit = limit
        self.cost = cost
        self.charges = _Charges(limit, names, cost)
        self.kind = kind
        self.at_us = 0
        self.names = names
        self.times = len(names)
        self.width = 4 * len(names)
        self.words = f"{kind} 1 {limit.words} {cost}"

    def each(self) -> Iterator[Ask]:
        """One by one, as they could have been asked."""
        for charge in self.charges:
            yield Ask((charge,), self.kind)


class _Charges(Sequence[Charge]):
    """The charges of `Alike`, made when they are looked at, which is seldom."""

    def __init__(self, limit: Limit, names: Sequence[bytes], cost: int) -> None:
        self._limit = limit
        self._names = names
        self._cost = cost

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Charge: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Charge]: ...
    def __getitem__(self, index: int | slice) -> Charge | Sequence[Charge]:
        if isinstance(index, slice):
            return _Charges(self._limit, self._names[index], self._cost)
        return Charge(self._limit, self._names[index], self._cost)


class Token(NamedTuple):
    """What makes an ask happen once: asked again with it, nothing is charged and the first answer comes again.

    Made by `token.py`, which checks what callers send.

    Attributes:
        key: The Redis key of its record, from `keys.py`.
        fingerprint: Of the content it came with, 16 bytes: with other content it is a mistake, and refused.
        keep_s: How long it is remembered from the first time on, seconds; at least 1.
    """

    key: bytes
    fingerprint: bytes
    keep_s: int


class LeaseAsk(Ask):
    """An ask under a lease. What else it charges is charged like that of any ask; see the kinds."""

    __slots__ = ("lease",)

    def __init__(self, charges: Sequence[Charge], lease: str, kind: int = CHARGE, at_us: int = 0) -> None:
        super().__init__(charges, kind, at_us)
        self.lease = lease
        self.words = _words(self, kind + HELD, lease)


class TokenAsk(Ask):
    """An ask that carries a token. Its reply begins with what became of it, and the instant of the first decision.

    A LOOK spends nothing: it has no use for a token.

    Attributes:
        token: The token.
        numbers: It again but for the key, as the script reads it: microseconds to keep it, four times 32 bits of
            content and kind, 48 bits that stand for the counters. Were these others the first time (a catalog changed
            in between), the first verdict is told again, on today's limits as they stand.
    """

    __slots__ = ("lease", "numbers", "token")

    def __init__(
        self, charges: Sequence[Charge], token: Token, kind: int = CHARGE, at_us: int = 0, lease: str | None = None
    ) -> None:
        super().__init__(charges, kind, at_us)
        counters = hashlib.blake2b(b" ".join(self.names), digest_size=6).digest()
        content = hashlib.blake2b(token.fingerprint + bytes([self._bound_to(kind)]), digest_size=16).digest()
        parts = [content[at : at + 4] for at in (0, 4, 8, 12)] + [counters]
        self.token = token
        self.lease = lease
        self.numbers = (token.keep_s * 1_000_000, *(int.from_bytes(part, "big") for part in parts))
        self.names.append(token.key)
        self.width += 2
        held = () if lease is None else (lease,)
        self.words = _words(self, kind + ONCE + (0 if lease is None else HELD), *held, *self.numbers)

    def _bound_to(self, kind: int) -> int:
        """The kind that a token comes again with."""
        return kind


class SettleAsk(TokenAsk):
    """Makes what was charged with a token cost what is true, once: gives back too much, or debits too little.

    Attributes:
        token: The token of that charge; kept as long again from now on.
        settled: The true cost: asked again with it, the answer comes again.
        open_s: How long after the charge it may be settled, seconds.
    """

    __slots__ = ("open_s", "settled")

    def __init__(self, charges: Sequence[Charge], token: Token, kind: int, settled: int, open_s: int) -> None:
        super().__init__(charges, token, kind)
        self.settled = settled
        self.open_s = open_s
        self.words = _words(self, kind + ONCE + SETTLES, *self.numbers, settled + 1, open_s * 1_000_000)

    def _bound_to(self, kind: int) -> int:
        return CHARGE


def remade(ask: Ask, charges: Sequence[Charge], kind: int, *, token: Token | None = None, at_us: int = 0) -> Ask:
    """The same ask of other charges: a part of it, or what stands for it elsewhere.

    Args:
        ask: Which.
        charges: These instead.
        kind: That of `ask`; LOOK, which has no token; or what undoes it.
        token: In place of its own, if it has one.
        at_us: For GIVE_BACK.
    """
    if isinstance(ask, TokenAsk) and kind != LOOK:
        if isinstance(ask, SettleAsk):
            return SettleAsk(charges, token or ask.token, kind, ask.settled, ask.open_s)
        return TokenAsk(charges, token or ask.token, kind, at_us, ask.lease)
    return Ask(charges, kind, at_us) if ask.lease is None else LeaseAsk(charges, ask.lease, kind, at_us)


def _words(ask: Ask, kind: int, *head: object) -> str:
    """An ask as the script reads it, with more in its head than its kind."""
    given = (ask.at_us,) if ask.kind == GIVE_BACK else ()
    charges = [f"{limit.words} {cost}" for limit, _, cost in ask.charges]
    return " ".join([*map(str, (kind, len(charges), *given, *head)), *charges])


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
    def replayed(self) -> bool:
        """Its token was known: this is the first answer once more, with times as of then, and nothing was charged."""
        return False

    @property
    def degraded(self) -> bool:
        """It was made without the store, by the limits' `on_outage`: what remains is not known."""
        return False

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


class Replayed(Decision):
    """The decision of an earlier ask with the same token: the wait it tells counts from its `at_us`, which is past."""

    __slots__ = ()

    @property
    def replayed(self) -> bool:
        return True


class Degraded(Decision):
    """A decision made while the store was away; see `outage.py` for what its standings say."""

    __slots__ = ()

    @property
    def degraded(self) -> bool:
        return True


class Decisions(NamedTuple):
    """The answers to an `Alike`.

    Attributes:
        asked: What it was.
        at_us: The store's clock when it decided, microseconds since the epoch.
        numbers: Of each request: remaining, reset_us, retry_us, next_us, as in `Standing`.
        degraded: Some of it was made without the store, as in `Decision`.
    """

    asked: Alike
    at_us: int
    numbers: Sequence[int]
    degraded: bool = False

    @property
    def allowed(self) -> int:
        """How many pass."""
        return sum(not retry_us for retry_us in self.numbers[2::4])

    @classmethod
    def of(cls, asked: Alike, decisions: Sequence[Decision]) -> "Decisions":
        """What was asked one by one after all."""
        numbers = [number for decision in decisions for number in decision.standings[0][2:]]
        at_us = min(decision.at_us for decision in decisions)
        return cls(asked, at_us, numbers, any(decision.degraded for decision in decisions))


_tuple = tuple.__new__


def seconds(us: int) -> int:
    """Microseconds as whole seconds, rounded up: a caller who waits that long has waited enough."""
    return -(-us // 1_000_000)


def read(ask: Ask, at_us: int, numbers: Sequence[int], start: int) -> Decision:
    """The decision in a store's flat answer: four integers a charge from `numbers[start]` on; for `Alike`, `Decisions`.

    Raises:
        InvalidInput: The ask carries a token that came with other content before.
        AlreadySettled, NotHeld: There is nothing to settle, or it was settled at another cost.
    """
    charges = ask.charges
    if ask.width == 4:  # nearly every request has one limit; what it costs is paid on each
        remaining, reset_us, retry_us, next_us = numbers[start : start + 4]
        limit, _, cost = charges[0]
        standing = _tuple(Standing, (limit, cost, remaining, reset_us, retry_us, next_us))
        return _tuple(Decision, (retry_us == 0, at_us, (standing,)))
    if ask.times > 1:
        return Decisions(ask, at_us, numbers[start : start + ask.width])  # type: ignore[arg-type, return-value]
    kind = Decision
    if isinstance(ask, TokenAsk):
        outcome, at_us = numbers[start : start + 2]
        start += 2
        if outcome == CLOSED:
            raise NotHeld("id", "names no reservation that is open: unknown, refused, or too long ago")
        if outcome == CONFLICT and isinstance(ask, SettleAsk):
            raise AlreadySettled("cost", "it was settled before, at another cost")
        if outcome == CONFLICT:
            raise InvalidInput("Idempotency-Key", "was used before for something else; send a new one")
        if outcome == REPLAYED:
            kind = Replayed
    standings = []
    allowed = True
    for limit, _key, cost in charges:
        remaining, reset_us, retry_us, next_us = numbers[start : start + 4]
        if retry_us:
            allowed = False
        standings.append(Standing(limit, cost, remaining, reset_us, retry_us, next_us))
        start += 4
    return kind(allowed, at_us, tuple(standings))

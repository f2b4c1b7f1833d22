"""What a catalog says of a request: (domain, descriptors) → the limits that apply → a verdict.

`plan` is pure: it finds each descriptor's rule and its counters. `decide` asks the engine.

    | a rule that is              | counts                    | refuses                                              |
    | plain                       | if the request passes     | when it is over                                      |
    | `shadow_mode`               | by itself, in any case    | never; `Status.over` says what it would have done    |
    | `quota_mode`                | if the request passes     | when all rules with this mark are over               |
    | `unlimited`; none at all    | nothing                   | never                                                |
    | `requests_per_unit: 0`      | nothing                   | always                                               |

Of a domain with `atomic: true` (the default) all plain descriptors of a request pass in one script call, or nothing is
charged. With `atomic: false` each is charged for itself, whether or not the others pass, as Envoy's service does it.
Rules with `quota_mode` are asked before the plain ones, and given back what they took if those do not pass.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from service.errors import InvalidInput, StoreUnavailable
from service.limits import keys
from service.limits.catalog import UNITS_S, Catalog, Entry, Match, Rule
from service.limits.catalog.rules import counter
from service.limits.decision import CHARGE, GIVE_BACK, LOOK, Ask, Charge, Decision, Standing, Token, TokenAsk, seconds
from service.limits.engine import MOST_CHARGES, Engine
from service.limits.limit import LARGEST_AMOUNT, Limit

MOST_DESCRIPTORS = 100
"""Descriptors of one request."""


class Wanted(NamedTuple):
    """One descriptor of a request.

    Attributes:
        entries: (key, value) in order.
        cost: Units, 0 to 10^9; 0 looks without spending; None = as the request says.
        limit: Counted instead of what the catalog says, in a domain that it knows; None = the catalog's.
    """

    entries: tuple[Entry, ...]
    cost: int | None = None
    limit: Limit | None = None


class Status(NamedTuple):
    """What became of one descriptor.

    Attributes:
        match: The rule that holds, and how it was found; None = none, or another rule of the request replaces it, or
            the request brought a limit of its own.
        standings: Of its limits; empty where nothing was counted.
        over: It had no room for the cost; with `shadow_mode` nothing was refused for that.
        retry_us: Until it may have room, microseconds; 0 = it has. A blocked rule, or a cost beyond what a limit ever
            admits, says its window: nothing passes then either.
    """

    match: Match | None
    standings: tuple[Standing, ...] = ()
    over: bool = False
    retry_us: int = 0

    @property
    def rule(self) -> Rule | None:
        """The rule that holds."""
        return None if self.match is None else self.match.rule


class Verdict(NamedTuple):
    """The answer to a request.

    Attributes:
        allowed: Nothing that may refuse did. If false, nothing was charged but by `atomic: false` and shadow mode.
        statuses: One a descriptor, in the order asked.
        at_us: The store's clock, microseconds since the epoch; 0 = it was not asked.
        retry_us: Until the request could pass, microseconds; 0 when allowed.
        degraded: The store was away, and an outage policy answered for it.
        replayed: Its token was known: this is the first answer once more.
    """

    allowed: bool
    statuses: tuple[Status, ...]
    at_us: int = 0
    retry_us: int = 0
    degraded: bool = False
    replayed: bool = False

    @property
    def retry_after(self) -> int | None:
        """Whole seconds after which a lone caller succeeds, rounded up, at least 1; None when allowed."""
        return None if self.allowed else seconds(self.retry_us)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Of all limits that may refuse, each once, in the order asked: what headers tell."""
        told = {s: None for status in self.statuses if not _is_shadow(status) for s in status.standings}
        return tuple(told)

    @property
    def exceeded(self) -> tuple[str, ...]:
        """The names of the limits that refused; of a rule that blocks, its path."""
        names: dict[str, None] = {}
        for status in self.statuses if not self.allowed else ():
            if status.over and not _is_shadow(status):
                over = [standing.limit.name for standing in status.standings if standing.retry_us]
                names.update(dict.fromkeys(over or [status.rule.path if status.rule else "cost"]))
        return tuple(names)


def _is_shadow(status: Status) -> bool:
    return status.match is not None and status.match.rule.shadow_mode


@dataclass(frozen=True, slots=True)
class Part:
    """What one descriptor takes part with.

    Attributes:
        match: As in `Status`.
        charges: Its limits, each with its counter.
        hopeless_us: Above 0: nothing can pass, because the rule blocks or the cost is more than a limit ever admits;
            so many microseconds its window lasts.
    """

    match: Match | None
    charges: tuple[Charge, ...] = ()
    hopeless_us: int = 0

    @property
    def shadow(self) -> bool:
        """It never refuses."""
        return self.match is not None and self.match.rule.shadow_mode

    @property
    def quota(self) -> bool:
        """One of several ways."""
        return self.match is not None and self.match.rule.quota_mode and not self.shadow


@dataclass(frozen=True, slots=True)
class Planned:
    """What a request is about to be charged.

    Attributes:
        parts: One a descriptor, in order.
        atomic: As the domain says.
        ask: The one question to the engine, where there is no more to it; else None.
    """

    parts: tuple[Part, ...]
    atomic: bool = True
    ask: Ask | None = None

    @property
    def charges(self) -> list[Charge]:
        """All charges of what may refuse, a counter once with the costs added up."""
        return _together(part for part in self.parts if not part.shadow)


def plan(
    catalog: Catalog,
    domain: str,
    descriptors: Sequence[Wanted],
    *,
    now_us: int,
    cost: int = 1,
    prefix: str = "",
    strict: bool = True,
) -> Planned:
    """The limits that apply to a request; nothing is asked yet.

    Args:
        catalog: The one in force; take it once for a request.
        domain: Which part of it; one that it does not know limits nothing.
        descriptors: What is asked about; 1 to 100.
        now_us: Which period of the calendar it is, microseconds since the epoch.
        cost: Units of the descriptors that say none, 0 to 10^9.
        prefix: Of the keys.
        strict: A cost that a limit never admits is an error of the caller's; else it is refused like any other.

    Raises:
        InvalidInput: Nothing is asked about, or too much, or a cost is wrong.
    """
    if not descriptors or len(descriptors) > MOST_DESCRIPTORS:
        raise InvalidInput("descriptors", f"{len(descriptors)} of them; use 1 to {MOST_DESCRIPTORS}")
    known = catalog.domains.get(domain)
    if known is None:
        return Planned(tuple(Part(None) for _ in descriptors))
    matches = catalog.match_all(domain, [wanted.entries for wanted in descriptors])
    parts: list[Part] = []
    for index, (wanted, match) in enumerate(zip(descriptors, matches, strict=True)):
        units = cost if wanted.cost is None else wanted.cost
        where = "cost" if wanted.cost is None else f"descriptors[{index}].cost"
        if type(units) is not int or not 0 <= units <= LARGEST_AMOUNT:
            raise InvalidInput(where, f"{units!r} is out of range; use a whole number, 0 to {LARGEST_AMOUNT}")
        part = _part(domain, wanted, match, units, now_us, prefix)
        if strict and part.hopeless_us and part.charges and not part.shadow:
            for charge in part.charges:
                charge.limit.admits(units, where=where)
        parts.append(part)
    if sum(len(part.charges) for part in parts) > MOST_CHARGES:
        raise InvalidInput("descriptors", f"more than {MOST_CHARGES} limits apply; ask about fewer at once")
    simple = known.atomic and not any(part.shadow or part.quota or part.hopeless_us for part in parts)
    charges = _together(parts) if simple else []
    if any(charge.cost > charge.limit.capacity for charge in charges):
        charges = []  # together they are more than ever passes
    return Planned(tuple(parts), known.atomic, Ask(charges) if charges else None)


def _part(domain: str, wanted: Wanted, match: Match | None, units: int, now_us: int, prefix: str) -> Part:
    scope = f"d.{domain}"
    limits: tuple[Limit, ...]
    if wanted.limit is not None:
        match, identity, limits = None, counter(wanted.entries), (wanted.limit,)
    elif match is None or match.rule.unlimited:
        return Part(match)
    else:
        rule, identity = match.rule, match.counter
        if rule.blocked:
            return Part(match, (), UNITS_S[rule.unit or "second"] * 1_000_000)
        limits = rule.limits
        if rule.calendar is not None:
            limit = rule.calendar.limit(now_us, rule.name if not limits else "")
            limits = (*limits, replace(limit, on_outage=rule.on_outage))
    # of what is held a request takes one
    least = [min(units, 1) if limit.leases else units for limit in limits]
    over = [limit.refill_s * 1_000_000 for limit, cost in zip(limits, least, strict=True) if cost > limit.capacity]
    hopeless_us = max(over, default=0)
    who = keys.who(identity)
    charges = []
    for limit, cost in zip(limits, least, strict=True):
        head, tail = _around(prefix, scope, limit)
        charges.append(Charge(limit, head + who + tail, 0 if hopeless_us else cost))
    return Part(match, tuple(charges), hopeless_us)


@lru_cache(maxsize=4096)
def _around(prefix: str, scope: str, limit: Limit) -> tuple[bytes, bytes]:
    return keys.around(prefix, scope, limit.spelling)


def _together(parts: Iterable[Part]) -> list[Charge]:
    """The charges of several descriptors, a counter once: what they take of it is added up."""
    found: dict[bytes, Charge] = {}
    for part in parts:
        for charge in part.charges:
            before = found.get(charge.key)
            if before is None or charge.limit.leases:
                found[charge.key] = charge
            else:
                found[charge.key] = charge._replace(cost=before.cost + charge.cost)
    return list(found.values())


Once = Callable[[int], Token]
"""The token of the n-th question that a request asks the engine."""


async def decide(engine: Engine, planned: Planned, *, peek: bool = False, once: Once | None = None) -> Verdict:
    """Ask the engine what `planned` says.

    Args:
        engine: Of the counters.
        planned: From `plan`.
        peek: Look without spending.
        once: Tokens, if the request may come again; each number must have one of its own.

    Raises:
        StoreUnavailable: Nobody could decide.
        InvalidInput: A token came with other content before.
    """
    if planned.ask is not None and once is None and not peek:
        return verdict_of(planned, await engine.decide(planned.ask))
    return await _Deciding(engine, planned, peek, once).verdict()


def verdict_of(planned: Planned, decision: Decision) -> Verdict:
    """What `decide` makes of the answer to `planned.ask`, or to the same charges asked in another way."""
    found = {charge.key: s for charge, s in zip(planned.ask.charges, decision.standings, strict=True)}  # type: ignore[union-attr]
    statuses = tuple(_status(part, [found[charge.key] for charge in part.charges]) for part in planned.parts)
    return Verdict(
        decision.allowed,
        statuses,
        decision.at_us,
        decision.retry_us,
        decision.degraded,
        decision.replayed,
    )


def _status(part: Part, standings: Sequence[Standing]) -> Status:
    retry_us = max([part.hopeless_us, *(standing.retry_us for standing in standings)])
    return Status(part.match, tuple(standings), retry_us > 0, retry_us)


class _Taken(NamedTuple):
    """What may have to be given back: a question to the engine, the number of its token, and the answer."""

    charges: Sequence[Charge]
    number: int
    answer: "asyncio.Future[Decision]"


_undoing: set[asyncio.Task[None]] = set()


class _Deciding:
    """One request that takes more than one question."""

    def __init__(self, engine: Engine, planned: Planned, peek: bool, once: Once | None) -> None:
        self._engine = engine
        self._parts = planned.parts
        self._atomic = planned.atomic
        self._peek = peek
        self._once = once
        self._statuses: dict[int, Status] = {}
        self._decisions: list[Decision] = []
        self._taken: list[_Taken] = []

    async def verdict(self) -> Verdict:
        ways = [index for index, part in enumerate(self._parts) if part.quota]
        shadows = [index for index, part in enumerate(self._parts) if part.shadow]
        plain = [index for index in range(len(self._parts)) if index not in ways and index not in shadows]
        by_itself = (self._ask([index], self._peek) for index in shadows)
        if not self._atomic:
            await asyncio.gather(*by_itself, *(self._ask([index], self._peek) for index in [*ways, *plain]))
        else:
            hopeless = any(self._parts[index].hopeless_us for index in plain) or self._beyond(plain)
            looks = self._peek or hopeless
            try:
                await asyncio.gather(*(self._ask([index], looks) for index in ways))
                blocked = bool(ways) and all(self._statuses[index].over for index in ways)
                passed, *_ = await asyncio.gather(self._ask(plain, looks or blocked), *by_itself)
            except BaseException:
                if self._once is None:  # with tokens, who asks again goes on from there
                    self._undo()
                raise
            if passed is not None and not passed.allowed and self._taken:
                await asyncio.shield(self._undo())
        retry_us = max([0, *(self._statuses[index].retry_us for index in plain)])
        if ways and all(self._statuses[index].over for index in ways):
            retry_us = max(retry_us, min(self._statuses[index].retry_us for index in ways))
        return Verdict(
            retry_us == 0,
            tuple(self._statuses[index] for index in range(len(self._parts))),
            max((decision.at_us for decision in self._decisions), default=0),
            retry_us,
            any(decision.degraded for decision in self._decisions),
            any(decision.replayed for decision in self._decisions),
        )

    def _beyond(self, indexes: Sequence[int]) -> bool:
        """Whether several descriptors together want more of a counter than it ever has."""
        return any(charge.cost > charge.limit.capacity for charge in _together(self._parts[i] for i in indexes))

    async def _ask(self, indexes: Sequence[int], look: bool) -> Decision | None:
        """Decide these descriptors together, and note each one's status; None = they have no limits."""
        charges = _together(self._parts[index] for index in indexes)
        beyond_us = 0
        if charges and self._beyond(indexes):
            over = [charge.limit.refill_s for charge in charges if charge.cost > charge.limit.capacity]
            beyond_us = max(over) * 1_000_000
            charges = [charge._replace(cost=0) for charge in charges]
        decision = None
        if charges:
            number = indexes[0] + 1 if len(indexes) == 1 else 0
            answer = self._engine.decide(self._made(charges, number, LOOK if look else CHARGE))
            if self._atomic and not look and not self._parts[indexes[0]].shadow:
                self._taken.append(_Taken(charges, number, answer))
                answer = asyncio.shield(answer)  # whoever is cancelled has to know what to give back
            decision = await answer
            self._decisions.append(decision)
        found = dict(zip([c.key for c in charges], decision.standings if decision else (), strict=True))
        for index in indexes:
            part = self._parts[index]
            status = _status(part, [found[charge.key] for charge in part.charges])
            if beyond_us and not status.over:
                status = status._replace(over=True, retry_us=beyond_us)
            self._statuses[index] = status
        return decision

    def _made(self, charges: Sequence[Charge], number: int, kind: int, at_us: int = 0) -> Ask:
        if self._once is None or kind == LOOK:
            return Ask(charges, kind, at_us)
        return TokenAsk(charges, self._once(number), kind, at_us)

    def _undo(self) -> "asyncio.Task[None]":
        """Give back what was taken, and what is under way when that is known; whether anybody waits for it or not."""
        undoing = asyncio.get_running_loop().create_task(self._give_all_back())
        _undoing.add(undoing)
        undoing.add_done_callback(_undoing.discard)
        return undoing

    async def _give_all_back(self) -> None:
        await asyncio.gather(*map(self._give_back, self._taken))

    async def _give_back(self, taken: _Taken) -> None:
        with contextlib.suppress(StoreUnavailable):  # refused is refused; what was taken stays so
            decision = await taken.answer
            if decision.allowed:
                number = MOST_DESCRIPTORS + taken.number
                back = self._made(taken.charges, number, GIVE_BACK, decision.at_us)
                await self._engine.decide(back, here=decision.degraded)

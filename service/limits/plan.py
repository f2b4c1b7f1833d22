"""Which limits apply to a request: what decorators declared, compiled once per route and method. Pure.

A `Rule` is one declaration; a `Plan` is the rules of one place in the order slowapi applies them: application limits,
the route's own, and the defaults where the route does not override them. Where nothing has to be computed per
request (no callables but the key function), the plan carries ready-made parts of the keys: `Plan.ready`.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError, InvalidInput, InvalidLimit, NoIdentity, Unauthenticated
from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.calling import ask, is_coroutine, wants
from service.limits.decision import Ask, Charge
from service.limits.identity import Vouched, client_address
from service.limits.limit import Limit, OnOutage

MOST_KEPT = 4096
LONGEST_KEPT = 256
"""Characters of the identities whose asks are kept: clients may choose them, and memory must not grow with that."""
APPLICATION = "app"
UNMATCHED = "unmatched"
"""The scope all requests share that match no route."""


def shared(name: str) -> str:
    """The scope of a limit that several routes share by name."""
    return f"s.{name}"


def outside(name: str) -> str:
    """The scope of a check made outside a request."""
    return f"c.{name}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """One declared limit, or several in one string.

    Attributes:
        limits: What is limited; or a function of (), (key) or (request) that answers a limit string.
        key_func: Who is charged; a function of () or (request), perhaps a coroutine function.
        algorithm, burst, name, on_outage: How strings of a `limits` function are read.
        scope: None for the route's own; else a shared name, or a function that answers one.
        per_method: Each HTTP method counts for itself (HEAD counts as GET).
        methods: Only these count, upper case; None = all.
        cost: Units a request takes, or a function of () or (request); a float is rounded up.
        exempt_when: A function of () or (request); true = this rule does not apply.
        deduct_when: A function of (response); false = the charge is given back when the response starts.
        override_defaults: The route's defaults do not apply beside this rule.
        error_message: What a refusal says, or a function of () or (request).
        origin: The decorated function's name, for error messages.
    """

    limits: tuple[Limit, ...] | Callable[..., Any]
    key_func: Callable[..., Any]
    algorithm: str = "fixed-window"
    burst: int | None = None
    name: str | None = None
    on_outage: OnOutage | None = None
    scope: str | Callable[..., Any] | None = None
    per_method: bool = False
    methods: frozenset[str] | None = None
    cost: int | Callable[..., Any] = 1
    exempt_when: Callable[..., Any] | None = None
    deduct_when: Callable[..., Any] | None = None
    override_defaults: bool = True
    error_message: str | Callable[..., Any] | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        if not callable(self.key_func):
            raise ConfigurationError(f"key_func {self.key_func!r} is not callable; pass a function of the request")
        if self.algorithm not in ALGORITHMS:
            raise InvalidLimit(f'unknown algorithm "{self.algorithm}"; use {", ".join(ALGORITHMS)}')
        if callable(self.cost):
            return
        if type(self.cost) is not int or self.cost < 1:
            raise ConfigurationError(f"{self.origin}: cost {self.cost!r} is not a whole number of at least 1")
        for limit in () if callable(self.limits) else self.limits:
            if self.cost > limit.capacity:
                raise ConfigurationError(f"{self.origin}: cost {self.cost} is more than {limit.name} ever admits")

    @property
    def static(self) -> bool:
        """Whether only the key has to be computed per request."""
        computed = (self.limits, self.cost, self.scope, self.exempt_when, self.deduct_when)
        return not any(map(callable, computed)) and not is_coroutine(self.key_func)

    @property
    def holds(self) -> bool:
        """Whether it is about units of concurrency."""
        return not callable(self.limits) and any(limit.leases for limit in self.limits)

    def read(self, text: object) -> tuple[Limit, ...]:
        """The limits a `limits` function answered with."""
        return _read(text, self.algorithm, self.burst, self.name, self.on_outage)


@lru_cache(maxsize=1024)
def _read(
    text: object, algorithm: str, burst: int | None, name: str | None, on_outage: OnOutage | None
) -> tuple[Limit, ...]:
    return Limit.parse(text, algorithm=algorithm, burst=burst, name=name, on_outage=on_outage)


class Ready(NamedTuple):
    """A charge but for the identity: key = head + identity + tail."""

    rule: Rule
    limit: Limit
    head: bytes
    tail: bytes
    cost: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What one place and method are charged.

    Attributes:
        prefix: Of the keys.
        entries: (rule, scope of its counters), in order; a None scope is computed per request.
        method: The method `per_method` counts under.
        covered: The functions whose decorators this plan carries out.
        ready: The charges of a plan of static rules that share one key function; else None.
        rules: The rule of each of them.
        key_func: That key function.
        key_takes: How many arguments it takes, 0 or 1.
        by_address: It is `identity.client_address`, which needs only the ASGI scope.
        reads: A function gets the request, and may want to read the body.
        holds: Units of concurrency are taken, under a lease.
        deducts: A charge may be given back when the response starts.
        asked: What `ask_ready` has made, by key.
    """

    prefix: str
    entries: tuple[tuple[Rule, str | None], ...]
    method: str
    covered: frozenset[Any]
    ready: tuple[Ready, ...] | None = field(init=False)
    rules: list[Rule] = field(init=False)
    key_func: Callable[..., Any] = field(init=False)
    key_takes: int = field(init=False)
    by_address: bool = field(init=False)
    reads: bool = field(init=False)
    holds: bool = field(init=False)
    deducts: bool = field(init=False)
    asked: dict[str, Ask] = field(init=False)

    def __post_init__(self) -> None:
        key_funcs = {rule.key_func for rule, _ in self.entries}
        ready = None
        if len(key_funcs) == 1 and all(rule.static for rule, _ in self.entries):
            ready = self._prepare()
        key_func = next(iter(key_funcs))
        object.__setattr__(self, "ready", ready)
        object.__setattr__(self, "rules", [part.rule for part in ready or ()])
        object.__setattr__(self, "key_func", key_func)
        object.__setattr__(self, "key_takes", len(wants(key_func)))
        object.__setattr__(self, "by_address", ready is not None and key_func is client_address)
        reads = ready is None or (self.key_takes > 0 and getattr(key_func, "reads_body", True))
        reads = reads and not self.by_address
        object.__setattr__(self, "reads", reads)
        object.__setattr__(self, "asked", {})
        object.__setattr__(self, "holds", any(rule.holds for rule, _ in self.entries))
        object.__setattr__(self, "deducts", any(rule.deduct_when is not None for rule, _ in self.entries))

    def _prepare(self) -> tuple[Ready, ...]:
        found: dict[bytes, Ready] = {}
        for rule, scope in self.entries:
            assert scope is not None and not callable(rule.limits) and isinstance(rule.cost, int)
            for limit in rule.limits:
                head, tail = keys.around(self.prefix, scope, limit.spelling)
                before = found.get(tail)  # one counter, declared twice: charged once
                cost = max(rule.cost, before.cost if before else 0)
                found[tail] = Ready(rule, _stricter(limit, before and before.limit), head, tail, cost)
        return tuple(found.values())

    def ask_ready(self, key: object) -> Ask:
        """What a `ready` plan asks for one key; the last few thousand are kept. Raises NoIdentity."""
        found = self.asked.get(key) if type(key) is str or type(key) is Vouched else None
        if found is None:
            who = identity(key, self.key_func)
            assert self.ready is not None
            found = Ask([Charge(limit, head + who + tail, cost) for _, limit, head, tail, cost in self.ready])
            if (type(key) is str or type(key) is Vouched) and len(key) <= LONGEST_KEPT:
                if len(self.asked) >= MOST_KEPT:
                    self.asked.clear()
                self.asked[key] = found
        return found

    async def charge(self, connection: HTTPConnection) -> tuple[list[Rule], list[Charge], set[bytes]]:
        """The charges of any plan, the rule of each, and the identities, as keys carry them, that are vouched for.

        Raises InvalidInput, InvalidLimit, NoIdentity.
        """
        rules: dict[bytes, Rule] = {}
        found: dict[bytes, Charge] = {}
        known: dict[Any, Any] = {}
        vouched: set[bytes] = set()
        for rule, scope in self.entries:
            if rule.exempt_when is not None and await ask(rule.exempt_when, connection):
                continue
            if rule.key_func not in known:
                known[rule.key_func] = await ask(rule.key_func, connection)
            key = known[rule.key_func]
            who = identity(key, rule.key_func)
            if type(key) is Vouched:
                vouched.add(who)
            limits = rule.limits
            if callable(limits):
                limits = rule.read(await ask(limits, connection, key=key))
            if scope is None:
                assert callable(rule.scope)
                scope = shared(str(await ask(rule.scope, connection)))  # noqa: PLW2901
            cost = whole(await ask(rule.cost, connection)) if callable(rule.cost) else rule.cost
            for limit in limits:
                head, tail = keys.around(self.prefix, scope, limit.spelling)
                name = head + who + tail
                before = found.get(name)  # one counter, declared twice: charged once
                most = max(limit.admits(cost), before.cost if before else 0)
                found[name] = Charge(_stricter(limit, before and before.limit), name, most)
                rules[name] = rule
        return list(rules.values()), list(found.values()), vouched


def _stricter(limit: Limit, other: Limit | None) -> Limit:
    """Of two declarations of one counter the one whose `on_outage` lets less through; None may be any."""
    order = ("deny", None, "local", "allow")
    return limit if other is None else min(other, limit, key=lambda one: order.index(one.on_outage))


def identity(key: object, key_func: Callable[..., Any]) -> bytes:
    """A key function's answer as keys carry it. Raises NoIdentity if it found nobody."""
    text = key if isinstance(key, str) else "" if key is None or key is False else str(key)
    if not text:
        name = getattr(key_func, "__qualname__", repr(key_func))
        challenge = getattr(key_func, "challenge", None)
        if challenge is not None:
            raise Unauthenticated("key", "this needs a credential, and there is none that holds", challenge)
        raise NoIdentity("key", f"{name} found nobody to charge this request to; it answered {key!r}")
    return keys.who(text)


def whole(cost: object) -> int:
    """A computed cost as the integer it stands for, rounded up. Raises InvalidInput."""
    if isinstance(cost, float) and math.isfinite(cost):
        return math.ceil(cost)
    try:
        if isinstance(cost, bool):
            raise TypeError
        return operator.index(cost)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput("cost", f"{cost!r} is not a number of units") from None


def compose(
    *,
    application: Iterable[Rule],
    own: Iterable[Rule],
    defaults: Iterable[Rule],
    scope: str,
    method: str,
    prefix: str,
    covered: frozenset[Any],
) -> Plan | None:
    """The plan of a place: which of the rules apply to a method, each with the scope of its counters.

    Args:
        application: Limits shared by the whole application.
        own: What the route declares.
        defaults: Limits for every route that does not override them.
        scope: Template and function of the route, or `UNMATCHED`.
        method: HTTP method, "" for a WebSocket.
        prefix: Of the keys.
        covered: The decorated functions of the route.
    """
    counted_as = "GET" if method == "HEAD" else method
    own = list(own)
    rules = [(rule, APPLICATION) for rule in application]
    rules += [(rule, scope) for rule in own]
    if all(not rule.override_defaults for rule in own):
        rules += [(rule, scope) for rule in defaults]
    entries: list[tuple[Rule, str | None]] = []
    for rule, of_place in rules:
        if rule.methods is not None and counted_as not in rule.methods:
            continue
        if callable(rule.scope):
            entries.append((rule, None))
            continue
        at = of_place if rule.scope is None else shared(rule.scope)
        entries.append((rule, f"{at}#{counted_as}" if rule.per_method else at))
    return Plan(prefix, tuple(entries), counted_as, covered) if entries else None

"""What a catalog holds and answers with: frozen values. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from service.limits.catalog.calendar import Calendar
from service.limits.catalog.faults import NOWHERE, Place
from service.limits.catalog.index import Index, index
from service.limits.limit import Limit, OnOutage

UNITS_S = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 30 * 86_400,
    "year": 365 * 86_400,
}
"""Seconds a `unit` of `rate_limit`, as Envoy's service counts them. (A year of `limits:` has 360 days.)"""

Kind = Literal["exact", "wildcard", "cidr", "regex", "any"]
Entry = tuple[str, str]

_PLAIN = re.compile(r"[A-Za-z0-9._@-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is limited where a descriptor has a limit: by `limits`, `calendar` or both; else `unlimited` or `blocked`.

    Attributes:
        domain: Whose rule it is.
        path: `domain.key_value.key`, as Envoy's service names it in logs and metrics.
        limits: All of them hold, and carry `on_outage`. Those of `rate_limit` are one fixed window, aligned to the
            epoch.
        calendar: Holds beside `limits`.
        unlimited: Everything passes; nothing is counted.
        blocked: Nothing passes: `requests_per_unit: 0`.
        unit: Of `rate_limit`, a key of UNITS_S; None where our own keys were used or all is unlimited.
        name: By which others replace it; "" = none.
        replaces: Names of limits that are dropped where this rule matches another descriptor of the request.
        shadow_mode: Counted, never refused.
        quota_mode: One of several ways: the request is refused for its rules with this mark only if all of them are
            over. Envoy's service takes descriptors with equal `backend_name` and `model_name_override` for one way.
        detailed_metric: `Match.metric` carries the request's values.
        on_outage: What is answered while Redis is away; None = as the service is set.
        cost_unit: What a unit is, for people: `tokens`, `bytes`; "" = requests.
        metadata: As written; plain JSON values, not to be changed.
        place: Where it is written; says nothing about what the rule means, so equal rules may differ in it.
    """

    domain: str
    path: str
    limits: tuple[Limit, ...] = ()
    calendar: Calendar | None = None
    unlimited: bool = False
    blocked: bool = False
    unit: str | None = None
    name: str = ""
    replaces: frozenset[str] = frozenset()
    shadow_mode: bool = False
    quota_mode: bool = False
    detailed_metric: bool = False
    on_outage: OnOutage | None = None
    cost_unit: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Descriptor:
    """One descriptor of the file: a step of the way to a rule.

    Attributes:
        key: Of the entry it matches.
        value: As written; "" = any.
        kind: How `value` is meant.
        path: As `Rule.path`.
        share_threshold: All values that match share one counter.
        value_to_metric: `Match.metric` carries this entry's value.
        rule: None = nothing is limited here.
        children: In file order.
        place: Where it is written.
        index: The children, for matching.
    """

    key: str
    value: str
    kind: Kind
    path: str
    share_threshold: bool = False
    value_to_metric: bool = False
    rule: Rule | None = None
    children: tuple["Descriptor", ...] = ()
    place: Place = NOWHERE
    index: Index["Descriptor"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", index(self.children))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domain:
    """One domain.

    Attributes:
        name: As callers give it.
        atomic: All descriptors of a request pass, or none is charged; false = each is charged for itself.
        children: Its descriptors, in file order.
        place: Where it is written.
        index: The children, for matching.
    """

    name: str
    atomic: bool = True
    children: tuple[Descriptor, ...] = ()
    place: Place = NOWHERE
    index: Index[Descriptor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", index(self.children))

    def rules(self) -> Iterator[Rule]:
        """All rules, in file order, a descriptor's own before its children's."""
        ahead = list(reversed(self.children))
        while ahead:
            descriptor = ahead.pop()
            if descriptor.rule is not None:
                yield descriptor.rule
            ahead += reversed(descriptor.children)


class Match(NamedTuple):
    """The rule that one descriptor of a request matched.

    Attributes:
        rule: What holds.
        identity: Whose counter it is: the entries, with the rule's pattern as value where values share one.
        steps: The descriptors that matched, one an entry.
    """

    rule: Rule
    identity: tuple[Entry, ...]
    steps: tuple[Descriptor, ...]

    @property
    def counter(self) -> str:
        """`identity` as one text that no other counter of this domain has: `user:alice`, `path::files%2F%2A`.

        A pattern stands behind two colons: a caller who sends the pattern as his value gets a counter of his own
        unless he matches that very pattern.
        """
        return counter(self.identity, [step.share_threshold for step in self.steps])

    @property
    def metric(self) -> str:
        """The name under which Envoy's service counts this match; patterns stand for values unless asked otherwise."""
        parts = [self.rule.domain]
        for (key, value), step in zip(self.identity, self.steps, strict=True):
            told = self.rule.detailed_metric or step.value_to_metric or step.share_threshold
            shown = value if told else step.value
            parts.append(f"{key}_{shown}" if shown else key)
        return ".".join(parts)


def counter(identity: Iterable[Entry], shares: Iterable[bool] = repeat(False)) -> str:
    """The entries as one text that no others have; where `shares` says so, the value is a rule's pattern."""
    pairs = zip(identity, shares, strict=False)
    return "/".join(f"{_quoted(key)}{'::' if shared else ':'}{_quoted(value)}" for (key, value), shared in pairs)


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else quote(text, safe="@", errors="surrogatepass")

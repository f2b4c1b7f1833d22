"""Which descriptors of a catalog a request meets on its way down, and why the others do not hold. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.commands.words import listed
from service.limits.catalog import Catalog, Descriptor, Entry, Match, Rule
from service.limits.catalog.index import index
from service.limits.catalog.nodes import perhaps

_HOW = {
    "exact": 'value "{}"',
    "wildcard": 'value "{}"',
    "cidr": "value_cidr {}",
    "regex": "value_regex {}",
    "any": "any value",
}
_RANKS = ("exact", "wildcard", "cidr", "regex", "any")


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a request on its way down.

    Attributes:
        entry: (key, value).
        holds: The descriptor that it led to; None = there is none, and the way ends here.
        others: Those that match, too, and do not hold: (descriptor, why).
        reason: Why none holds; "" = one does.
    """

    entry: Entry
    holds: Descriptor | None
    others: tuple[tuple[Descriptor, str], ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """One descriptor of a request, all the way down.

    Attributes:
        steps: One an entry, as far as the way goes.
        match: The rule it leads to; None = nothing limits it.
        reason: Why not; "" where there is a match.
    """

    steps: tuple[Step, ...]
    match: Match | None
    reason: str = ""


def descend(catalog: Catalog, domain: str, entries: Sequence[Entry]) -> Way:
    """The way of one descriptor."""
    found = catalog.domains.get(domain)
    if found is None:
        near = perhaps(domain, catalog.domains)
        return Way((), None, f'there is no domain "{domain}"{near or "; there are: " + listed(catalog.domains)}')
    walked = catalog.walk(domain, entries)
    steps: list[Step] = []
    level, within = found.children, found.name
    for number, entry in enumerate(entries):
        if number >= len(walked):
            steps.append(Step(entry, None, (), _missing(entry, level, within)))
            return Way(tuple(steps), None, "the way ends before all entries are used")
        holds = walked[number]
        steps.append(Step(entry, holds, _others(entry, level, holds)))
        level, within = holds.children, holds.path
    match = catalog.match(domain, entries)
    return Way(tuple(steps), match, "" if match else _no_rule(walked[-1]))


def how(descriptor: Descriptor) -> str:
    """What a descriptor matches, in words."""
    return _HOW[descriptor.kind].format(descriptor.value)


def remarks(rule: Rule) -> list[str]:
    """What is unusual about a rule, a sentence each."""
    found = []
    if rule.unlimited:
        found.append("unlimited: everything passes, nothing is counted")
    if rule.blocked:
        found.append("requests_per_unit 0: nothing passes")
    if rule.shadow_mode:
        found.append("shadow_mode: counted, never refused")
    if rule.quota_mode:
        found.append("quota_mode: of a request's descriptors with it, one that passes is enough")
    if rule.replaces:
        found.append(f"replaces, within one request: {', '.join(sorted(rule.replaces))}")
    if rule.on_outage:
        found.append(f"while Redis is away: {rule.on_outage}")
    if rule.cost_unit:
        found.append(f"a unit is one of: {rule.cost_unit}")
    return found


def limits(rule: Rule) -> str:
    """What a rule admits, in its notation."""
    if rule.unlimited:
        return "unlimited"
    if rule.blocked:
        return f"0/{rule.unit}"
    named = [limit.name for limit in rule.limits]
    return "; ".join([*named, rule.calendar.name] if rule.calendar else named)


def _fits(descriptor: Descriptor, value: str) -> bool:
    branch = index([descriptor])[descriptor.key]
    return branch.exact.get(value) is descriptor or branch.other(value) is descriptor


def _others(entry: Entry, level: Sequence[Descriptor], holds: Descriptor) -> tuple[tuple[Descriptor, str], ...]:
    key, value = entry
    fitting = [other for other in level if other.key == key and other is not holds and _fits(other, value)]
    return tuple((other, _why(holds, other)) for other in fitting)


def _why(holds: Descriptor, other: Descriptor) -> str:
    """Why of two that match the first one holds."""
    if holds.kind != other.kind:
        return f"{how(holds)} goes before {'a wildcard' if other.kind == 'wildcard' else how(other)}"
    if holds.kind == "cidr":
        return "the smaller network holds"
    return "the first in the file holds"


def _missing(entry: Entry, level: Sequence[Descriptor], within: str) -> str:
    key, value = entry
    if not level:
        return f"nothing is within {within}: the request has more entries than the file has levels"
    keys = dict.fromkeys(descriptor.key for descriptor in level)
    if key not in keys:
        return f'no key "{key}" within {within}{perhaps(key, keys) or "; there is: " + listed(keys)}'
    there = [descriptor for descriptor in level if descriptor.key == key]
    ranked = sorted(there, key=lambda descriptor: _RANKS.index(descriptor.kind))
    near = perhaps(value, [descriptor.value for descriptor in there if descriptor.kind == "exact"])
    return f'no descriptor of "{key}" takes "{value}"{near or "; there is: " + listed(map(how, ranked))}'


def _no_rule(last: Descriptor) -> str:
    if last.children:
        wanted = listed(dict.fromkeys(child.key for child in last.children))
        return f"{last.path} has no limit of its own; what is within it wants another entry: {wanted}"
    return f"{last.path} has no limit"

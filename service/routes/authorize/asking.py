"""Which descriptors a gateway's request asks about. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from service.limits.catalog import Descriptor, Domain, Entry
from service.limits.catalog.index import Index


def by_rules(domain: Domain, values: Mapping[str, str]) -> list[tuple[Entry, ...]]:
    """A descriptor for every rule of the domain that these values match, in file order, an outer one before its inner.

    Every key is there once at most: one request has one path. What it costs grows with the rules that match, and with
    the ways that could lead to some, never with the rules of the file.
    """
    return list(_within(domain.index, values, ()))


def _within(
    level: Index[Descriptor], values: Mapping[str, str], above: tuple[Entry, ...]
) -> Iterator[tuple[Entry, ...]]:
    for key, branch in level.items():
        value = values.get(key)
        if value is None or any(key == other for other, _ in above):
            continue
        step = branch.exact.get(value) or branch.other(value)
        if step is None:
            continue
        entries = (*above, (key, value))
        if step.rule is not None:
            yield entries
        if step.index:
            yield from _within(step.index, values, entries)


def by_name(named: Sequence[Sequence[str]], values: Mapping[str, str]) -> list[tuple[Entry, ...]]:
    """The descriptors a gateway names, without those of which the request has not all values."""
    return [tuple((key, values[key]) for key in keys) for keys in named if all(key in values for key in keys)]

"""The descriptors of one level, found by what a request says. Pure.

What a look-up costs does not grow with the number of rules: exact values are one dict; wildcards a dict for each pair
of lengths (what stands before the first `*`, what stands behind the last) that occurs; networks a dict for each prefix
length that occurs; regular expressions one pass over the value for each ten thousand or so. Only wildcards with
several `*` that begin and end alike are tried one after the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from service.limits.catalog import regular
from service.limits.catalog.regular import MOST_TOGETHER, Patterns


class Indexed(Protocol):
    """What is needed of a descriptor."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def kind(self) -> str: ...


T = TypeVar("T", bound=Indexed)


class Branch(Generic[T]):
    """The descriptors of one level that have one key.

    Attributes:
        exact: By value: the first that is asked.
        bare: Without a value: the last that is asked.
    """

    __slots__ = ("_networks", "_regulars", "_wildcards", "bare", "exact")

    def __init__(self, found: Iterable[T]) -> None:
        kinds: dict[str, list[T]] = {"exact": [], "wildcard": [], "cidr": [], "regex": [], "any": []}
        for descriptor in found:
            kinds[descriptor.kind].append(descriptor)
        self.exact = {descriptor.value: descriptor for descriptor in kinds["exact"]}
        self.bare = kinds["any"][0] if kinds["any"] else None
        self._wildcards = Wildcards(kinds["wildcard"]) if kinds["wildcard"] else None
        self._networks = Networks(kinds["cidr"]) if kinds["cidr"] else None
        self._regulars = _regulars(kinds["regex"])

    def other(self, value: str) -> T | None:
        """The descriptor for a value that is not in `exact`."""
        if self._wildcards is not None and (found := self._wildcards.find(value)) is not None:
            return found
        if self._networks is not None and (found := self._networks.find(value)) is not None:
            return found
        for patterns, descriptors in self._regulars:
            if (number := patterns.find(value)) is not None:
                return descriptors[number]
        return self.bare


Index = Mapping[str, Branch[T]]
"""The descriptors of one level, by key."""


def index(descriptors: Iterable[T]) -> Index[T]:
    """The index of one level; descriptors in file order."""
    by_key: dict[str, list[T]] = {}
    for descriptor in descriptors:
        by_key.setdefault(descriptor.key, []).append(descriptor)
    return {key: Branch(found) for key, found in by_key.items()}


class _Wildcard(NamedTuple):
    """A wildcard's place in the file, what stands between its first and last `*`, and whose it is."""

    order: int
    middles: Sequence[str]
    descriptor: Any


class Wildcards(Generic[T]):
    """Values in which `*` stands for any text, none included; of several that match, the first in the file holds."""

    def __init__(self, descriptors: Sequence[T]) -> None:
        shapes: dict[tuple[int, int], dict[tuple[str, str], list[_Wildcard]]] = {}
        for order, descriptor in enumerate(descriptors):
            head, *middles, tail = descriptor.value.split("*")
            table = shapes.setdefault((len(head), len(tail)), {})
            found = _Wildcard(order, [middle for middle in middles if middle], descriptor)
            table.setdefault((head, tail), []).append(found)
        # Filled in file order: a shape's first wildcard is before all the others of it.
        self._shapes = [
            (next(iter(table.values()))[0].order, head, tail, table) for (head, tail), table in shapes.items()
        ]

    def find(self, value: str) -> T | None:
        """The first in the file that matches."""
        best: _Wildcard | None = None
        for first, head, tail, table in self._shapes:
            if best is not None and best.order < first:
                break
            stop = len(value) - tail
            if stop < head:
                continue
            for candidate in table.get((value[:head], value[stop:]), ()):
                if best is not None and best.order < candidate.order:
                    break
                if not candidate.middles or _in_order(candidate.middles, value, head, stop):
                    best = candidate
                    break
        return None if best is None else best.descriptor


def _in_order(pieces: Iterable[str], value: str, start: int, stop: int) -> bool:
    for piece in pieces:
        start = value.find(piece, start, stop)
        if start < 0:
            return False
        start += len(piece)
    return True


class Networks(Generic[T]):
    """Values that are networks; the smallest that holds an address wins."""

    def __init__(self, descriptors: Iterable[T]) -> None:
        self._found: dict[tuple[int, int, int], T] = {}
        for descriptor in descriptors:
            network = ip_network(descriptor.value)
            prefix = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            self._found[network.version, network.prefixlen, prefix] = descriptor
        lengths = {(version, length) for version, length, _ in self._found}
        self._lengths = {
            version: sorted((length for of, length in lengths if of == version), reverse=True) for version in (4, 6)
        }

    def find(self, value: str) -> T | None:
        """The descriptor of the smallest network that holds `value`, an address or itself a network."""
        network = _network(value)
        if network is None:
            return None
        version, number, longest = network
        for length in self._lengths[version]:
            if length <= longest:
                found = self._found.get((version, length, number >> (_BITS[version] - length)))
                if found is not None:
                    return found
        return None


_BITS = {4: 32, 6: 128}


def _network(value: str) -> tuple[int, int, int] | None:
    """What a request says, `192.0.2.1`, `2001:db8::1%eth0` or `2001:db8::/64`: (version, number, prefix length).

    None = it is no address. IPv4 within IPv6 is IPv4.
    """
    try:
        if "/" in value:
            network = ip_network(value, strict=False)
            return network.version, int(network.network_address), network.prefixlen
        address = ip_address(value.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return (6, int(address), 128) if mapped is None else (4, int(mapped), 32)
    return 4, int(address), 32


def _regulars(descriptors: Sequence[T]) -> list[tuple[Patterns, list[T]]]:
    """The regular expressions in file order, in as few passes as their size allows."""
    groups: list[tuple[list[T], int]] = []
    for descriptor in descriptors:
        size = regular.size(descriptor.value)
        if not groups or groups[-1][1] + size > MOST_TOGETHER:
            groups.append(([], 0))
        found, together = groups[-1]
        found.append(descriptor)
        groups[-1] = (found, together + size)
    return [(Patterns([descriptor.value for descriptor in found], together), found) for found, together in groups]

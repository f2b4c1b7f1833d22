"""Nodes → domains and descriptors. Pure."""

import math
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

import yaml

from service.limits.catalog import regular
from service.limits.catalog.faults import Place
from service.limits.catalog.grammar import FLAGS, VALUES, of_descriptor, of_domain
from service.limits.catalog.limiting import Known, Limiting
from service.limits.catalog.nodes import Field, Reader
from service.limits.catalog.rules import Descriptor, Domain, Kind, Rule
from service.limits.limit import ON_OUTAGE, Limit, OnOutage

DEEPEST = 32
"""Descriptors within each other, aliases followed; so deep a request's descriptor may be."""


class Reading:
    """Reads the documents of one file.

    Args:
        reader: Of this file.
        known: Limits made before.
    """

    def __init__(self, reader: Reader, known: Known) -> None:
        self._r = reader
        self._limiting = Limiting(reader, known)

    def domain(self, node: yaml.Node) -> Domain | None:
        """One document; None if it is no domain."""
        fields = self._r.fields(node, "a domain with its descriptors", of_domain)
        name = self._r.needed(node, fields, "domain", "a name is wanted")
        if not name:
            return None
        return Domain(
            name=name,
            atomic=self._r.truth(fields.get("atomic"), default=True),
            children=self._descriptors(fields.get("descriptors"), name, name, 1),
            place=self._r.place(node),
        )

    def _descriptors(self, field: Field | None, domain: str, above: str, depth: int) -> tuple[Descriptor, ...]:
        nodes = self._r.items(field)
        if depth > DEEPEST and nodes:
            self._r.fault(nodes[0], f"more than {DEEPEST} descriptors within each other")
            return ()
        found: dict[tuple[str, str, str], Descriptor] = {}
        for node in nodes:
            descriptor = self._descriptor(node, domain, above, depth)
            if descriptor is None:
                continue
            same = found.setdefault((descriptor.key, descriptor.kind, descriptor.value), descriptor)
            if same is not descriptor:
                said = f'"{descriptor.key}"' + (f' with value "{descriptor.value}"' if descriptor.value else "")
                self._r.fault(
                    node, f"a second descriptor for {said} on this level; the first is in line {same.place.line}"
                )
        return tuple(found.values())

    def _descriptor(self, node: yaml.Node, domain: str, above: str, depth: int) -> Descriptor | None:
        fields = self._r.fields(node, "a descriptor", of_descriptor)
        key = self._r.needed(node, fields, "key", "a descriptor needs one")
        if not key:
            return None
        if "*" in key:
            self._r.fault(fields["key"].value, f'key: "*" stands for any text in values only; got "{key}"')
        place = self._r.place(node)
        kind, value = self._value(fields)
        path = f"{above}.{key}" + (f"_{value}" if value else "")
        share = self._r.truth(fields.get("share_threshold"))
        if share and kind in ("exact", "any"):
            at = fields["share_threshold"].name
            self._r.fault(at, 'share_threshold: goes with a value that has a "*", value_cidr or value_regex')
        return Descriptor(
            key=key,
            value=value,
            kind=kind,
            path=path,
            share_threshold=share,
            value_to_metric=self._r.truth(fields.get("value_to_metric")),
            rule=self._rule(fields, domain, path, place),
            children=self._descriptors(fields.get("descriptors"), domain, path, depth + 1),
            place=place,
        )

    def _value(self, fields: dict[str, Field]) -> tuple[Kind, str]:
        """How values are matched, and by what; a network in its one canonical form."""
        given = [name for name in VALUES if name in fields]
        if len(given) > 1:
            self._r.fault(fields[given[1]].name, f"{given[1]}: contradicts {given[0]}; keep one of them")
        if not given:
            return "any", ""
        field = fields[given[0]]
        value = self._r.text(field)
        if given[0] == "value_cidr":
            return self._network(field, value)
        if given[0] == "value_regex":
            try:
                regular.size(value)
            except regular.InvalidPattern as error:
                self._r.fault(field.value, f'value_regex: "{value[:60]}": {error}')
                return "exact", value
            return "regex", value
        return ("wildcard" if "*" in value else "exact" if value else "any"), value

    def _network(self, field: Field, text: str) -> tuple[Kind, str]:
        try:
            network = ip_network(text, strict=False)
            address = ip_network(text.partition("/")[0]).network_address
        except ValueError:
            self._r.fault(field.value, f'value_cidr: a network such as 10.0.0.0/8 is wanted; got "{text[:60]}"')
            return "exact", text
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            self._r.fault(
                field.value, f"value_cidr: IPv4 within IPv6 is matched as IPv4; write it as that, {mapped}/..."
            )
        elif network.network_address != address:
            self._r.fault(field.value, f'value_cidr: "{text}" is an address within a network; write "{network}"')
        return "cidr", str(network)

    def _rule(self, fields: dict[str, Field], domain: str, path: str, place: Place) -> Rule | None:
        counted = self._limiting.read(fields)
        said: dict[str, Any] = {name: self._r.truth(fields.get(name)) for name in FLAGS[:3]}
        on_outage: OnOutage | None = self._r.one_of(fields.get("on_outage"), ON_OUTAGE)
        cost_unit = self._cost_unit(fields.get("cost_unit"))
        metadata = self._metadata(fields.get("metadata"))
        if counted is None:
            return None
        if on_outage is not None:
            counted["limits"] = _carrying(counted.get("limits", ()), on_outage)
        return Rule(
            domain=domain,
            path=path,
            place=place,
            on_outage=on_outage,
            cost_unit=cost_unit,
            metadata=metadata,
            **said,
            **counted,
        )

    def _cost_unit(self, field: Field | None) -> str:
        word = self._r.text(field)
        if field is not None and not (word.isascii() and word.replace("_", "").isalpha() and len(word) <= 32):
            self._r.fault(field.value, f'cost_unit: a word such as tokens is wanted; got "{word[:60]}"')
        return word

    def _metadata(self, field: Field | None) -> dict[str, Any]:
        if field is None:
            return {}
        found = self._plain(field.value, 0)
        if not isinstance(found, dict):
            self._r.fault(field.value, "metadata: keys and values are wanted")
            return {}
        return found

    def _plain(self, node: yaml.Node, depth: int) -> Any:
        """A node as JSON has it: no dates, no bytes, no NaN; those stay text."""
        self._r.spend(node)
        if depth > DEEPEST:
            self._r.fault(node, f"metadata: more than {DEEPEST} lists and mappings within each other")
            return None
        if isinstance(node, yaml.MappingNode):
            pairs = self._r.pairs(node, "metadata", lambda _: None)
            return {name: self._plain(pair.value, depth + 1) for name, pair in pairs.items()}
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, depth + 1) for item in node.value]
        return _scalar(node.tag.rpartition(":")[2], str(node.value))


@lru_cache(maxsize=1024)
def _carrying(limits: tuple[Limit, ...], on_outage: OnOutage) -> tuple[Limit, ...]:
    """The limits, each with what is answered while Redis is away; cached, for a file says the same again and again."""
    return tuple(replace(limit, on_outage=on_outage) for limit in limits)


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    try:
        if kind == "int" and len(text) < 20:
            return int(text.replace("_", ""))
        if kind == "float" and text[-1].isdigit():
            number = float(text.replace("_", ""))
            return number if math.isfinite(number) else text
    except ValueError:
        pass
    return text

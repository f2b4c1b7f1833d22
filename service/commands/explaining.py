"""onequota explain --domain: which rules of a catalog hold for a request, and why. Nothing is charged."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from service.client.answer import Answer
from service.client.question import DomainCheck
from service.commands import words
from service.commands.asking import Asked
from service.commands.descending import Step, Way, descend, how, limits, remarks
from service.commands.screen import Shown
from service.limits.catalog import Catalog, Descriptor, Entry

_MOST_OTHERS = 5


def explain(
    catalog: Catalog, domain: str, descriptors: Sequence[tuple[Entry, ...]], asked: Asked | None, cost: int = 1
) -> Shown:
    """The way of each descriptor, and what a check would answer.

    Args:
        catalog: What is explained.
        domain: Which part of it.
        descriptors: The request's.
        asked: Who counts; None = nobody is asked where the limits stand.
        cost: Units of the request.

    Raises:
        OnequotaError: Whoever was asked gave no answer.
    """
    ways = [descend(catalog, domain, entries) for entries in descriptors]
    effective = catalog.match_all(domain, descriptors)
    replaced = [way.match is not None and match is None for way, match in zip(ways, effective, strict=True)]
    answer, other = None, None
    if asked is not None and domain in catalog.domains:
        version = asked.version()
        other = version if version != catalog.version else None
        [answer] = asked.decide([DomainCheck(domain, tuple(descriptors), cost, peek=True)])
    parts: list[RenderableType] = [_head(catalog, domain)]
    for entries, way, gone in zip(descriptors, ways, replaced, strict=True):
        parts += _shown(entries, way, gone, alone=len(ways) == 1)
    if answer is not None:
        if other is not None:
            parts.append(Text(f"asked was a service with another catalog, {other}; this is its answer:", "yellow"))
        parts.append(words.verdict(answer, peek=True))
    return Shown(
        text=Group(*parts),
        document=_document(catalog, domain, list(zip(descriptors, ways, replaced, strict=True)), answer)
        | ({} if other is None else {"answered_by": other}),
        code=1 if answer is not None and not answer.allowed else 0,
    )


def _head(catalog: Catalog, domain: str) -> Text:
    found = catalog.domains.get(domain)
    atomic = "" if found is None or found.atomic else ", atomic: false: each descriptor is charged for itself"
    return Text.assemble("domain ", (domain, "bold"), (f"  catalog {catalog.version}{atomic}", "dim"))


def _shown(entries: Sequence[Entry], way: Way, replaced: bool, *, alone: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if not alone:
        parts.append(Text("\n" + " ".join(f"{key}={value}" for key, value in entries), "bold"))
    table = words.grid("fold", "left", "fold")
    for step in way.steps:
        _add(table, step)
    if way.steps:
        parts.append(table)
    rule = way.match.rule if way.match else None
    if rule is None:
        parts.append(Text.assemble("  → ", ("nothing limits it", "yellow"), f": {way.reason}"))
        return parts
    parts.append(Text.assemble("  → ", (limits(rule), "bold cyan"), f"  rule {rule.path}", (f"  {rule.place}", "dim")))
    if replaced:
        parts.append(Text(f'    but another rule of this request replaces "{rule.name}": it does not count', "yellow"))
    parts += [Text(f"    {remark}", "yellow") for remark in remarks(rule)]
    assert way.match is not None
    if rule.limits or rule.calendar:
        parts.append(Text(f"    counter {way.match.counter}", "dim"))
    return parts


def _add(table: Any, step: Step) -> None:
    key, value = step.entry
    said = Text(f"  {key}={value}")
    if step.holds is None:
        table.add_row(said, Text("✗", "red"), Text(step.reason))
        return
    table.add_row(said, Text("✓", "green"), Text.assemble(how(step.holds), (f"  {step.holds.place}", "dim")))
    for other, why in step.others[:_MOST_OTHERS]:
        table.add_row(
            "", Text("·", "dim"), Text.assemble((f"not {how(other)}: {why}", "dim"), (f"  {other.place}", "dim"))
        )
    if len(step.others) > _MOST_OTHERS:
        table.add_row("", Text("·", "dim"), Text(f"nor {len(step.others) - _MOST_OTHERS:,} more that match", "dim"))


def _document(
    catalog: Catalog, domain: str, found: Sequence[tuple[Sequence[Entry], Way, bool]], answer: Answer | None
) -> dict[str, Any]:
    return {
        "domain": domain,
        "version": catalog.version,
        "descriptors": [
            {
                "entries": [{"key": key, "value": value} for key, value in entries],
                "steps": [_step(step) for step in way.steps],
                "rule": _rule(way) if way.match else None,
                "reason": way.reason or None,
                "replaced": replaced,
            }
            for entries, way, replaced in found
        ],
        "answer": None if answer is None else words.document(answer),
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "key": step.entry[0],
        "value": step.entry[1],
        "holds": None if step.holds is None else _descriptor(step.holds),
        "others": [_descriptor(other) | {"reason": why} for other, why in step.others],
        "reason": step.reason or None,
    }


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "path": descriptor.path,
        "kind": descriptor.kind,
        "value": descriptor.value,
        "place": str(descriptor.place),
    }


def _rule(way: Way) -> dict[str, Any]:
    assert way.match is not None
    rule = way.match.rule
    return {
        "path": rule.path,
        "place": str(rule.place),
        "limits": limits(rule),
        "name": rule.name or None,
        "shadow_mode": rule.shadow_mode,
        "quota_mode": rule.quota_mode,
        "unlimited": rule.unlimited,
        "blocked": rule.blocked,
        "counter": way.match.counter,
        "remarks": remarks(rule),
    }

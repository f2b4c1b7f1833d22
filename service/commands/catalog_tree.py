"""onequota limits FILE: all limits of a limits file as a tree, and where each stands for a key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from service.client.answer import Answer
from service.client.question import DomainCheck
from service.commands import words
from service.commands.asking import Asked
from service.commands.descending import how, limits, remarks
from service.commands.screen import Shown
from service.limits.catalog import Catalog, Descriptor, Domain, Entry, Place

MOST_ASKED = 1000
"""Questions at once: what the service takes."""


def tree_of(catalog: Catalog, path: str, key: str | None, asked: Asked | None) -> Shown:
    """The tree of a file.

    Args:
        catalog: Of the file.
        path: Its name.
        key: Every entry of which the file leaves the value open has this one; None = nobody is asked about.
        asked: Who knows where limits stand.

    Raises:
        OnequotaError: Whoever was asked gave no answer.
    """
    trees: list[RenderableType] = []
    documents: dict[str, Any] = {}
    for domain in catalog.domains.values():
        found = {} if key is None or asked is None else _standings(catalog, domain, key, asked)
        head = Text.assemble((domain.name, "bold"), (f"  {Path(path).name}, version {catalog.version}", "dim"))
        if not domain.atomic:
            head.append("  atomic: false", "yellow")
        if key is not None:
            head.append(f"  for {key}", "cyan")
        tree = Tree(head, guide_style="dim")
        documents[domain.name] = [_add(tree, child, found) for child in domain.children]
        trees.append(tree)
    document = {"file": path, "version": catalog.version, "key": key, "domains": documents}
    return Shown(text=Group(*trees), document=document)


def _standings(catalog: Catalog, domain: Domain, key: str, asked: Asked) -> dict[Place, Answer]:
    """By the place of the descriptor; those are missing that do not take the key, or limit nothing."""
    wanted: list[tuple[Place, DomainCheck]] = []
    ahead: list[tuple[Descriptor, tuple[Entry, ...]]] = [(child, ()) for child in domain.children]
    for descriptor, above in ahead:  # grows meanwhile
        entries = (*above, (descriptor.key, descriptor.value if descriptor.kind == "exact" else key))
        match = catalog.match(domain.name, entries)
        if match is not None and match.rule is descriptor.rule and (match.rule.limits or match.rule.calendar):
            wanted.append((descriptor.place, DomainCheck(domain.name, (entries,), peek=True)))
        ahead += [(child, entries) for child in descriptor.children]
    found: dict[Place, Answer] = {}
    for start in range(0, len(wanted), MOST_ASKED):
        part = wanted[start : start + MOST_ASKED]
        answers = asked.decide([question for _, question in part])
        found.update(zip([place for place, _ in part], answers, strict=True))
    return found


def _add(tree: Tree, descriptor: Descriptor, found: Mapping[Place, Answer]) -> dict[str, Any]:
    rule, answer = descriptor.rule, found.get(descriptor.place)
    label = Text(descriptor.key)
    if descriptor.kind in ("exact", "wildcard"):
        label.append(f"={descriptor.value}", "magenta")
    else:
        label.append(f"  {how(descriptor)}", "magenta")
    if rule is not None:
        label.append_text(Text.assemble("  ", (limits(rule), "bold cyan")))
    label.append(f"  {descriptor.place}", "dim")
    branch = tree.add(label)
    for remark in () if rule is None else remarks(rule):
        branch.add(Text(remark, "yellow"))
    if answer is not None:
        branch.add(words.standings(answer.limits, indent=0))
    children = [_add(branch, child, found) for child in descriptor.children]
    return {
        "key": descriptor.key,
        "value": descriptor.value or None,
        "kind": descriptor.kind,
        "path": descriptor.path,
        "place": str(descriptor.place),
        "limits": None if rule is None else limits(rule),
        "remarks": [] if rule is None else remarks(rule),
        "answer": None if answer is None else words.document(answer),
        "descriptors": children,
    }

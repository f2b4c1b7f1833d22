"""onequota limits MODULE:APP: all limits of an app as a tree, and where each stands for a key."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from service.client.answer import Answer
from service.commands import words
from service.commands.routes import Applied, Row, Section, of_app
from service.commands.screen import Shown
from service.commands.standing import Stands, standings
from service.limits.plan import UNMATCHED
from service.redis_url import redacted


def tree_of(app: Any, name: str, key: str | None, redis: str | None) -> Shown:
    """The tree of an app. Raises ConfigurationError, and StoreUnavailable where a key is asked for."""
    trees: list[RenderableType] = []
    documents = []
    for section in of_app(app, name):
        found = None if key is None else standings(section.limiter, section.rows, key, redis)
        trees.append(_tree(name, section, found, key, redis))
        documents.append(_section(section, found))
    return Shown(text=Group(*trees), document={"app": name, "key": key, "limiters": documents})


def _tree(name: str, section: Section, found: list[list[Stands]] | None, key: str | None, redis: str | None) -> Tree:
    limiter = section.limiter
    where = redacted(redis or limiter.storage_uri)
    head = Text.assemble((name + section.prefix, "bold"), (f"  {limiter.strategy}, {where}", "dim"))
    if key is not None:
        head.append(f"  for {key}", "cyan")
    if not section.gated:
        head.append("  no middleware: requests are charged after their body was read", "yellow")
    tree = Tree(head, guide_style="dim")
    branches: dict[str, Tree] = {}
    for index, row in enumerate(section.rows):
        if row.place is not None and row.place.kind == "mount" and not row.applied:
            continue
        parent = _parent(tree, branches, row, section.rows)
        branch = parent.add(_label(row))
        told = {} if found is None else {id(applied): answer for applied, answer in found[index]}
        for applied in row.applied:
            if not applied.reason:
                branch.add(_limit(applied, told.get(id(applied)), key))
    return tree


def _parent(tree: Tree, branches: dict[str, Tree], row: Row, rows: Sequence[Row]) -> Tree:
    """Routes of a mounted app stand below where it is mounted."""
    mounts = [r.path.removesuffix("/{path:path}") for r in rows if r.place is not None and r.place.kind == "mount"]
    above = next((mount for mount in mounts if mount and row.path.startswith(mount + "/")), None)
    if above is None:
        return tree
    if above not in branches:
        branches[above] = tree.add(Text(above, "bold"))
    return branches[above]


def _label(row: Row) -> Text:
    if row.place is None:
        label = Text("what no route takes", "italic")
    elif row.place.kind == "mount":
        label = Text(row.path.replace("{path:path}", "…"))
    else:
        label = Text.assemble((f"{','.join(row.methods):<7}", "magenta"), " ", row.path, (f"  {row.endpoint}", "dim"))
    if row.exempt:
        label.append("  exempt", "yellow")
    elif row.plan is None:
        label.append("  no limit", "yellow")
    return label


def _limit(applied: Applied, answer: Answer | None, key: str | None) -> RenderableType:
    label = _words(applied, key)
    if answer is None:
        return label
    return Group(label, words.standings(answer.limits))


def _words(applied: Applied, key: str | None) -> Text:
    rule = applied.rule
    known = applied.limits(key)
    said = "; ".join(limit.name for limit in known) or f"{_called(rule.limits)}(), computed a request"
    return Text.assemble((said, "bold cyan"), (f"  {described(applied)}", "dim"))


def described(applied: Applied) -> str:
    """What is said of a declared limit beside its numbers."""
    rule = applied.rule
    parts = [applied.origin, f"by {_called(rule.key_func)}"]
    if rule.algorithm != "fixed-window":
        parts.append(rule.algorithm + (f", burst {rule.burst}" if rule.burst is not None else ""))
    if isinstance(rule.scope, str):
        parts.append(f'shared as "{rule.scope}"')
    elif callable(rule.scope):
        parts.append(f"shared by {_called(rule.scope)}")
    if rule.cost != 1:
        parts.append(f"cost {_called(rule.cost) if callable(rule.cost) else rule.cost}")
    if rule.per_method:
        parts.append("each method for itself")
    if rule.methods:
        parts.append(f"{', '.join(sorted(rule.methods))} only")
    if rule.exempt_when is not None:
        parts.append(f"unless {_called(rule.exempt_when)}")
    if rule.deduct_when is not None:
        parts.append(f"given back unless {_called(rule.deduct_when)}")
    return ", ".join(parts)


def _called(function: Any) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    return "a lambda" if name == "<lambda>" else str(name)


def _section(section: Section, found: list[list[Stands]] | None) -> dict[str, Any]:
    return {
        "mounted": section.prefix,
        "storage": redacted(section.limiter.storage_uri),
        "strategy": section.limiter.strategy,
        "middleware": section.gated,
        "routes": [document(row, None if found is None else found[index]) for index, row in enumerate(section.rows)],
    }


def document(row: Row, found: Sequence[Stands] | None, key: str | None = None) -> dict[str, Any]:
    """A row, with all that is declared for it."""
    told = {id(applied): answer for applied, answer in found or ()}
    return {
        "path": row.path if row.place else UNMATCHED,
        "methods": list(row.methods),
        "endpoint": row.endpoint or None,
        "exempt": row.exempt,
        "limits": [
            {
                "limits": [limit.name for limit in applied.limits(key)] or None,
                "from": applied.origin,
                "holds": not applied.reason,
                "reason": applied.reason or None,
                "scope": applied.scope,
                "key_func": _called(applied.rule.key_func),
                "algorithm": applied.rule.algorithm,
                "cost": applied.rule.cost if isinstance(applied.rule.cost, int) else None,
                "answer": words.document(told[id(applied)]) if id(applied) in told else None,
            }
            for applied in row.applied
        ],
    }

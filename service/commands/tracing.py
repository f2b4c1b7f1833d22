"""onequota explain MODULE:APP: which limits a request meets, in order, why others do not hold, and where they stand."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from service.commands import words
from service.commands.app_tree import described, document
from service.commands.routes import Row, Section, find, inner, of_app
from service.commands.screen import Shown
from service.commands.standing import Stands, standings


def explain(app: Any, name: str, method: str, path: str, key: str | None, redis: str | None) -> Shown:
    """Trace a request; code 1 if it would be refused.

    Raises:
        ConfigurationError: The app has no limiter, or its counters cannot be looked into.
        StoreUnavailable: They cannot be reached.
    """
    parts: list[RenderableType] = []
    documents = []
    refused = False
    for section in of_app(app, name):
        if not path.startswith(section.prefix):
            continue
        row = find(
            inner(app, section), section, method.upper(), path.partition("?")[0].removeprefix(section.prefix) or "/"
        )
        [found] = [None] if key is None else standings(section.limiter, [row], key, redis)
        refused |= any(not answer.allowed for _, answer in found or ())
        parts += _shown(section, row, method.upper(), path, found, key)
        documents.append({"mounted": section.prefix, **document(row, found, key)})
    if key is not None:
        verdict = ("would be refused", "bold red") if refused else ("would be allowed", "bold green")
        parts.append(Text.assemble(verdict))
    return Shown(
        text=Group(*parts),
        document={
            "app": name,
            "method": method.upper(),
            "path": path,
            "key": key,
            "allowed": None if key is None else not refused,
            "limiters": documents,
        },
        code=1 if refused else 0,
    )


def _shown(
    section: Section, row: Row, method: str, path: str, found: list[Stands] | None, key: str | None
) -> list[RenderableType]:
    where = Text.assemble((f"{method} {path}", "bold"), "  → ")
    if row.place is None:
        where.append("no route takes it (404 or 405)", "yellow")
    else:
        where.append_text(Text.assemble(section.prefix + row.path, (f"  {row.endpoint}", "dim")))
    parts: list[RenderableType] = [where]
    if not section.gated:
        parts.append(Text("  no middleware: it is charged after its body was read", "yellow"))
    if row.exempt:
        parts.append(Text("  exempt: no limit holds", "yellow"))
    elif not row.applied:
        parts.append(Text("  no limit is declared", "yellow"))
    told = {id(applied): answer for applied, answer in found or ()}
    table = words.grid("left", "fold", "fold")
    rows: list[RenderableType] = []
    for applied in row.applied:
        limits = "; ".join(limit.name for limit in applied.limits(key)) or "computed a request"
        if applied.reason:
            table.add_row(Text("  ✗", "red"), Text(limits, "dim"), Text(f"{applied.origin}: {applied.reason}"))
            continue
        table.add_row(Text("  ✓", "green"), Text(limits, "bold cyan"), Text(described(applied), "dim"))
        if id(applied) in told:
            rows.append(words.standings(told[id(applied)].limits, indent=4))
    if row.applied:
        parts.append(table)
    return [*parts, *rows]

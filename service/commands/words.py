"""Words and numbers as the commands show them. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.client.answer import Answer, Standing

_SPANS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def span(seconds: int) -> str:
    """A time as its two largest parts: `42 s`, `1 h 5 min`, `30 d`."""
    parts = []
    for name, length in _SPANS:
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def plural(count: int, noun: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Iterable[str], most: int = 5) -> str:
    """Words with commas between; of many the first few, and how many more."""
    found = list(words)
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more:,} more" if more > 0 else "")


def grid(*columns: str) -> Table:
    """A table without lines; columns are `left`, `right`, or `fold`: to the left, and the first to be made narrower."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(justify="right" if column == "right" else "left", no_wrap=column != "fold", overflow="fold")
    return table


def style_of(remaining: int, limit: int) -> str:
    """By how much is left."""
    return "red" if remaining == 0 else "yellow" if remaining * 5 <= limit else "green"


def standings(found: Sequence[Standing], indent: int = 2) -> Text:
    """A line a limit: its name, what is left, when it is whole again. In columns, but text: narrow, it wraps."""
    name = max((len(standing.name) for standing in found), default=0)
    counts = [(f"{standing.remaining:,}", f"{standing.limit:,}") for standing in found]
    of = max((len(remaining) + len(limit) for remaining, limit in counts), default=0)
    lines = []
    for standing, (remaining, limit) in zip(found, counts, strict=True):
        whole = f"whole again in {span(standing.reset_after_s)}" if standing.reset_after_s else "whole"
        lines.append(
            Text.assemble(
                " " * indent + standing.name.ljust(name + 2) + " " * (of - len(remaining) - len(limit)),
                (remaining, style_of(standing.remaining, standing.limit)),
                f" of {limit} left  ",
                (whole, "dim"),
            )
        )
    return Text("\n").join(lines)


def verdict(answer: Answer, *, peek: bool = False) -> RenderableType:
    """What was decided, and where each limit stands."""
    if answer.allowed:
        said = Text("would be allowed" if peek else "allowed", "bold green")
    else:
        again = "never passes" if answer.retry_after is None else f"try again in {span(answer.retry_after)}"
        if not answer.limits and not answer.degraded:
            again = "a rule lets nothing pass; onequota explain says which"
        said = Text.assemble(("would be refused" if peek else "refused", "bold red"), f"  {again}")
    if answer.degraded:
        said.append("  (degraded: Redis is away, this is the answer meanwhile)", "yellow")
    if not answer.limits:
        said.append("  no limit applies", "dim") if answer.allowed else None
        return said
    return Group(said, standings(answer.limits))


def document(answer: Answer) -> dict[str, Any]:
    """An answer as `POST /v1/check` gives it."""
    said: dict[str, Any] = {
        "allowed": answer.allowed,
        "retry_after": answer.retry_after,
        "limits": [
            {
                "name": standing.name,
                "limit": standing.limit,
                "window": standing.window_s,
                "remaining": standing.remaining,
                "reset_after": standing.reset_after_s,
            }
            for standing in answer.limits
        ],
    }
    return said | ({"degraded": True} if answer.degraded else {})

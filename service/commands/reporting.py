"""What a replay came to, as `onequota explain --replay` tells it."""

from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from service.commands import words
from service.commands.descending import limits
from service.commands.replaying import Count, Replay, Tally
from service.commands.screen import Shown
from service.limits.catalog import Catalog, Rule

MOST_TOLD = 10


def shown(replay: Replay, file: str, domain: str, catalog: Catalog) -> Shown:
    """What a replay came to; code 1 if anything would have been refused."""
    tally = replay.tally
    return Shown(
        text=_text(replay, file, domain, catalog),
        document=_document(replay, file, domain, catalog),
        code=1 if tally.refused else 0,
    )


def _text(replay: Replay, file: str, domain: str, catalog: Catalog) -> RenderableType:
    tally = replay.tally
    parts: list[RenderableType] = [
        Text.assemble("domain ", (domain, "bold"), (f" of {file}  version {catalog.version}", "dim"))
    ]
    if tally.requests:
        period = words.span((tally.last_us - tally.first_us) // 1_000_000)
        parts.append(Text(f"{words.plural(tally.requests, 'request')} from {_at(tally.first_us)}, {period} long"))
    if tally.unreadable:
        where = ", ".join(f"line {number}: {reason}" for number, reason in tally.first_unreadable[:2])
        parts.append(Text(f"{words.plural(tally.unreadable, 'line')} could not be read; {where}", "yellow"))
    share = f" ({100 * tally.refused / tally.requests:.2f} %)" if tally.requests else ""
    style = "bold red" if tally.refused else "bold green"
    parts.append(
        Text.assemble((f"{tally.refused:,} would have been refused{share}", style), f", {tally.limited:,} met a limit")
    )
    if tally.rules:
        parts.append(_rules(tally))
    unmet = _unmet(tally, catalog, domain)
    if unmet:
        parts.append(Text(f"met by none: {words.listed(rule.path for rule in unmet)}", "dim"))
    if tally.identities:
        parts += [Text("\nmost refused", "bold"), _top(tally)]
    if tally.examples:
        parts += [Text("\nthe first", "bold"), _examples(tally)]
    return Group(*parts)


def _rules(tally: Tally) -> RenderableType:
    table = words.grid("fold", "fold", "right", "right")
    table.add_row("", "", Text("met", "dim"), Text("refused", "dim"))
    for count in sorted(tally.rules.values(), key=lambda count: (-count.refused, -count.met)):
        rule = count.rule
        refused = Text(f"{count.refused:,}", "red" if count.refused and not rule.shadow_mode else "")
        if rule.shadow_mode:
            refused.append(" (shadow)", "dim")
        table.add_row(Text(f"  {rule.path}"), Text(limits(rule), "cyan"), f"{count.met:,}", refused)
    return table


def _top(tally: Tally) -> RenderableType:
    table = words.grid("fold", "right")
    for identity, count in tally.identities.most_common(MOST_TOLD):
        table.add_row(Text(f"  {identity}"), f"{count:,}")
    return table


def _examples(tally: Tally) -> RenderableType:
    table = words.grid("right", "left", "fold", "fold")
    for example in tally.examples:
        again = "never" if example.retry_after is None else f"retry in {words.span(example.retry_after)}"
        table.add_row(f"  line {example.line:,}", _at(example.at_us), Text(example.request), f"{example.rule}, {again}")
    return table


def _unmet(tally: Tally, catalog: Catalog, domain: str) -> list[Rule]:
    return [rule for rule in catalog.domains[domain].rules() if rule.place not in tally.rules]


def _at(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _document(replay: Replay, file: str, domain: str, catalog: Catalog) -> dict[str, Any]:
    tally = replay.tally
    counts = [*tally.rules.values(), *(Count(rule) for rule in _unmet(tally, catalog, domain))]
    return {
        "file": file,
        "version": catalog.version,
        "domain": domain,
        "descriptors": [[f"{key}={name}" for key, name in made] for made in replay.descriptors],
        "requests": tally.requests,
        "limited": tally.limited,
        "refused": tally.refused,
        "other_lines": tally.other_lines,
        "unreadable": tally.unreadable,
        "from": _at(tally.first_us) if tally.requests else None,
        "until": _at(tally.last_us) if tally.requests else None,
        "rules": [
            {
                "path": count.rule.path,
                "limits": limits(count.rule),
                "shadow_mode": count.rule.shadow_mode,
                "met": count.met,
                "refused": count.refused,
            }
            for count in counts
        ],
        "identities": [{"counter": counter, "refused": n} for counter, n in tally.identities.most_common(MOST_TOLD)],
        "examples": [example._asdict() | {"at": _at(example.at_us)} for example in tally.examples],
    }

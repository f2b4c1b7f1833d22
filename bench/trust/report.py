"""Findings as a document: the table, how each figure was measured, and on what."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.redises import newest, version
from bench.trust.finding import FULL, Finding, Row, Size, how

HEAD = """\
# What holds under faults, bad input and attack

Written by `python -m bench trust --full`, not by hand: each figure was measured by the run that wrote its line (`--row`
writes one again), and a promise that did not hold in it stands there as BROKEN. The tests run the same scenarios at a
tenth of their size.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row, and what each of its scenarios found."""

    row: Row
    findings: tuple[Finding, ...]

    @property
    def held(self) -> bool:
        return not any(finding.broken for finding in self.findings)

    def text(self) -> str:
        """For people who watch."""
        lines = [f"{self.row.key}: {self.row.promise}"]
        lines += [line for finding in self.findings for line in finding.text().splitlines()]
        return "\n    ".join(lines)

    def data(self) -> dict[str, object]:
        """For programs."""
        return {
            "key": self.row.key,
            "fault": self.row.fault,
            "promise": self.row.promise,
            "held": self.held,
            "figures": [finding.figure for finding in self.findings],
            "broken": [f"{check.promise}, but {check.found}" for one in self.findings for check in one.broken],
        }


def page(results: Sequence[Result], size: Size = FULL, *, before: str = "", rows: Sequence[Row] = ()) -> str:
    """docs/trust.md.

    Args:
        results: What was measured now.
        size: How much of it.
        before: The page as it was, of the same machine: its lines stay for those of `rows` that were not measured now.
        rows: All there are, in order.
    """
    now, here = {result.row.key: result for result in results}, f"On {machine()}."
    kept = before.splitlines() if here in before else []
    lines = [HEAD, here, ""]
    if size.share < 1:
        lines += [f"At {size.share:g} of the full size.", ""]
    lines += ["| Fault or attack | What must hold | Found |", "|---|---|---|"]
    for row in rows or [result.row for result in results]:
        start = f"| {_escaped(row.fault)} | {_escaped(row.promise)} |"
        if row.key in now:
            lines.append(f"{start} {_escaped('<br>'.join(map(_cell, now[row.key].findings)))} |")
        else:
            lines += [line for line in kept if line.startswith(start)]
    lines += ["", "## How it was measured", ""]
    for row in rows or [result.row for result in results]:
        if row.key in now or any(line.startswith(f"| {_escaped(row.fault)} |") for line in kept):
            ways = " ".join(dict.fromkeys(map(how, row.scenarios)))
            lines.append(f"- **{_escaped(row.fault)}** (`--row {row.key}`): {ways}")
    return "\n".join(lines) + "\n"


def _cell(finding: Finding) -> str:
    broken = "".join(f"; **BROKEN: {check.promise}, but {check.found}**" for check in finding.broken)
    return finding.figure + broken


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def machine() -> str:
    """What it ran on, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{_processor()}, {len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GiB, {platform.system()}",
        _redis(),
        f"Python {platform.python_version()}",
        *(f"{name} {metadata.version(name)}" for name in ("uvicorn", "fastapi", "redis", "onequota")),
    ]
    return "; ".join(parts)


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _redis() -> str:
    return f"redis-server {'.'.join(map(str, version(newest())))}"

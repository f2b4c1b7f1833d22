"""What was measured: a row for each scenario and server, and what was promised of it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from bench.hangups.client import Tally
from bench.hangups.servers import Kind, Server
from bench.promises import Check, exactly

HEAD = f"{'scenario':16}{'server':8}{'requests':>9}{'errors':>8}  by kind; whole answers by status"
_INDENT = " " * 24

Fact = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One scenario on one server.

    Attributes:
        requests: Of all crews.
        errors: Requests without a whole answer, by kind.
        statuses: Whole answers, by "route status".
        facts: What else was measured, in words of the scenario; seconds end in `_s`.
        events: What our runner's log told of, by event.
        checks: The promises; they are made for ours, and looked at for stock too.
    """

    scenario: str
    kind: Kind
    requests: int
    errors: dict[str, int]
    statuses: dict[str, int]
    facts: dict[str, Fact] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    checks: tuple[Check, ...]

    @property
    def broken(self) -> list[Check]:
        return [check for check in self.checks if not check.held]

    def text(self) -> str:
        """For people: a line, what else was seen, and, of ours, promises that did not hold."""
        kinds = _listed(self.errors) or "none"
        statuses: Counter[str] = Counter()
        for name, number in self.statuses.items():
            statuses[name.rpartition(" ")[2]] += number
        total = sum(self.errors.values())
        lines = [f"{self.scenario:16}{self.kind:8}{self.requests:9}{total:8}  {kinds}; {_listed(statuses)}"]
        if self.facts:
            lines.append(_INDENT + ", ".join(f"{_words(name)} {_told(value)}" for name, value in self.facts.items()))
        if self.kind is Kind.OURS:
            lines += [f"{_INDENT}BROKEN  {check.promise}, but {check.found}" for check in self.broken]
        if self.kind is Kind.OURS and self.broken:
            lines.append(f"{_INDENT}its log: {_listed(self.events) or 'nothing'}")
        return "\n".join(lines)

    def data(self) -> dict[str, object]:
        """For programs."""
        return {**asdict(self), "held": not self.broken}


def row(
    scenario: str,
    server: Server,
    tallies: Iterable[Tally],
    *,
    checks: Sequence[Check],
    facts: dict[str, Fact] | None = None,
) -> Row:
    """What several crews saw, together, of a server that has ended."""
    errors: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    requests = 0
    for tally in tallies:
        errors.update(tally.kinds)
        statuses.update(tally.statuses)
        requests += tally.requests
    return Row(
        scenario=scenario,
        kind=server.kind,
        requests=requests,
        errors=dict(errors),
        statuses=dict(statuses),
        facts=facts or {},
        events=server.events,
        checks=tuple(checks),
    )


def no_errors(*tallies: Tally) -> Check:
    """The promise of the whole."""
    return exactly("client errors", sum(tally.errors for tally in tallies), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All rows."""

    rows: list[Row]

    @property
    def broken(self) -> list[Row]:
        """Rows of ours in which a promise did not hold."""
        return [row for row in self.rows if row.kind is Kind.OURS and row.broken]

    def verdict(self) -> str:
        """The last line."""
        number = len(self.broken)
        return f"{number} of our rows break a promise" if number else "every promise holds"

    def text(self) -> str:
        """A table for people."""
        return "\n".join([HEAD, *(one.text() for one in self.rows), self.verdict()])

    def data(self) -> dict[str, object]:
        """The same for programs."""
        return {"rows": [one.data() for one in self.rows], "held": not self.broken}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in sorted(counts.items()))


def _words(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def _told(value: Fact) -> str:
    if value is None:
        return "never"
    return f"{value:.2f} s" if isinstance(value, float) else str(value)

"""What a soak has to show, and whether that is what was promised."""

from collections import Counter
from dataclasses import dataclass

from bench.generator import percentile
from bench.promises import Check, at_most, exactly
from bench.soak.traffic import UNITS, Seen

GROWTH = 0.15
"""Share by which the memory of a worker may grow while it is left alone: caches that fill."""
STEADY_S = 300
"""In less time workers are still warming up: their memory is told, not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A soak.

    Attributes:
        workers: That ran at the end.
        redis_clients, keys: Of Redis, at the end.
        memory: Of the median worker, in bytes, when nobody replaced workers any more, and at the end.
        parent_bytes: Of the parent, at the end.
    """

    seconds: float
    workers: int
    seen: Seen
    events: Counter[str]
    killed: int
    connections: int
    redis_clients: int
    keys: int
    memory: tuple[float, float]
    parent_bytes: int

    @property
    def checks(self) -> tuple[Check, ...]:
        """Requests are lost only on workers that were killed with -9: at most one a connection."""
        inexact = [account for account in self.seen.done if not account.exact]
        first, last = self.memory
        told = ", ".join(f"{one.algorithm} {one.admitted} of {UNITS}, {one.unknown} unknown" for one in inexact[:3])
        grown = at_most("growth of a worker", (last - first) / first if first else None, GROWTH)
        return (
            Check(promise="every account exact", held=not inexact, found=told),
            Check(promise="some accounts used up", held=len(self.seen.done) > 0, found="none"),
            exactly("wrong answers", self.seen.wrong, []),
            at_most("questions without an answer", self.seen.lost, self.killed * self.connections),
            at_most("connections to Redis", self.redis_clients, 2 * self.workers),
            *([grown] if self.seconds >= STEADY_S else ()),
        )

    @property
    def broken(self) -> list[Check]:
        return [check for check in self.checks if not check.held]

    def rows(self) -> list[tuple[str, str]]:
        """Name and figure."""
        seen, (first, last) = self.seen, self.memory
        latencies = sorted(round(one * 1e6) for one in seen.latencies_s)
        exact = sum(account.exact for account in seen.done)
        sharp = sum(account.admitted == UNITS for account in seen.done)
        return [
            ("time", f"{self.seconds / 60:.1f} min, {self.workers} workers, {self.connections} connections"),
            ("events", _listed(self.events)),
            ("answers", f"{sum(seen.answers.values()):,}: {_listed(seen.answers)}"),
            (
                "latency",
                f"p50 {percentile(latencies, 0.5) / 1000:.1f} ms, p99 {percentile(latencies, 0.99) / 1000:.1f} ms",
            ),
            ("wrong answers", str(len(seen.wrong))),
            ("without an answer", f"{seen.lost}, while {self.killed} workers were killed with -9"),
            ("degraded", f"{seen.degraded} decisions while Redis was away"),
            ("accounts", f"{len(seen.done)} used up, {exact} exact; {sharp} admitted {UNITS} of {UNITS} units"),
            ("connections to Redis", f"{self.redis_clients} at the end, {self.keys:,} keys"),
            (
                "memory",
                f"worker {first / 2**20:.1f} → {last / 2**20:.1f} MB, parent {self.parent_bytes / 2**20:.1f} MB",
            ),
        ]

    def text(self) -> str:
        """A table for people."""
        lines = [f"{name:22}{figure}" for name, figure in self.rows()]
        lines += [f"BROKEN  {check.promise}, but {check.found}" for check in self.broken]
        return "\n".join([*lines, "every promise holds" if not self.broken else f"{len(self.broken)} promises broken"])

    def data(self) -> dict[str, object]:
        """For programs."""
        return {**dict(self.rows()), "wrong": self.seen.wrong, "broken": [check.promise for check in self.broken]}


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items())) or "none"

"""Whole fleets in virtual time."""

from bench.promises import at_least, exactly
from bench.simulation import simulate
from bench.trust.finding import Finding, Size


def seeds(size: Size) -> Finding:
    """A thousand seeds of `python -m bench simulate`: real engines and stores, a simulated Redis and network. After
    each step what was decided, told, charged and counted is compared with what was promised."""
    report = simulate(range(size.of(1_000) if size.share == 1 else 20))  # tests/test_simulation.py runs more
    asks = report.counts
    return Finding(
        figure=f"{report.seeds:,} seeds, {sum(report.events.values()):,} faults, {asks['decided']:,} decisions by the "
        f"store, {asks['degraded'] + asks['unavailable']:,} without it, {asks['charged late']:,} charges that nobody "
        f"heard of: {len(report.broken)} seeds broke a promise",
        checks=(
            exactly("seeds that broke a promise", report.broken, []),
            at_least("faults", sum(report.events.values()), report.seeds),
        ),
    )

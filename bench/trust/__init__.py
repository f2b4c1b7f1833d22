"""What must hold under faults, bad input and attack, measured row by row.

finding.py   a row, a scenario, what it found
table.py     the rows
counts.py    scenarios without a fault: exactness
report.py    docs/trust.md
"""

from collections.abc import Callable, Sequence

from bench.trust.finding import FULL, TENTH, Finding, Row, Scenario, Size
from bench.trust.report import Result, page
from bench.trust.table import ROWS


def measure(rows: Sequence[Row], size: Size, *, tell: Callable[[Result], None] = lambda _: None) -> list[Result]:
    """Run the scenarios of rows, one after the other; `tell` hears of each row at once.

    Raises:
        MissingError: A program it needs is not installed.
        NotStartedError: A server did not start.
    """
    results = []
    for row in rows:
        results.append(Result(row=row, findings=tuple(scenario(size) for scenario in row.scenarios)))
        tell(results[-1])
    return results


__all__ = ["FULL", "ROWS", "TENTH", "Finding", "Result", "Row", "Scenario", "Size", "measure", "page"]

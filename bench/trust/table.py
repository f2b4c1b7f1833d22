"""The table: what must hold under faults, bad input and attack, and what measures it. One row a promise.

To add a row, or a scenario to one: a function of a `Size` that answers a `Finding`, and its place here.
"""

from bench.trust import counts
from bench.trust.finding import Row

ROWS: tuple[Row, ...] = (
    Row(
        key="workers",
        fault="8 worker processes, 200,000 decisions, a limit of 10,000",
        promise="exactly 10,000 admitted",
        scenarios=(counts.workers,),
    ),
)

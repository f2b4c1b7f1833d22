"""Whether clients see a connection closed under a request: stock uvicorn and our runner, one application, real Node
clients that keep connections alive and never send anything twice.

    app.py        what both serve
    client.mjs    the users, one Node process a run; client.py: what they are told, what they saw
    servers.py    both servers, by the command a user would type
    watch.py      a stranger who asks over a new connection all the while who serves
    stage.py      the three together
    turnover.py   scenarios in which workers come and go
    answers.py    scenarios of answers that must not cost the connection
    report.py     rows, promises, the table
"""

from collections.abc import Callable, Sequence
from functools import partial

from bench.hangups import answers, turnover
from bench.hangups.client import InconclusiveError
from bench.hangups.report import HEAD, Report, Row
from bench.hangups.servers import Kind
from bench.hangups.stage import FULL, Size

Scenario = Callable[[Kind, Size], Row]

SCENARIOS: dict[str, Scenario] = {
    "recycle-2": partial(turnover.recycle, workers=2),
    "recycle-4": partial(turnover.recycle, workers=4),
    "hup": turnover.hup,
    "hup-streams": turnover.hup_streams,
    "handover": turnover.handover,
    "exceptions": answers.exceptions,
    "think": answers.think,
    "upload-429": answers.upload_429,
    "upload-503": answers.upload_503,
    "kill9": turnover.kill9,
    "stuck": turnover.stuck,
    "stuck-forever": turnover.stuck_forever,
    "sigterm-streams": turnover.sigterm_streams,
    "threads": answers.threads_bounded,
}


def measure(
    scenarios: Sequence[str], size: Size, *, stock: bool = True, tell: Callable[[Row], None] = lambda _: None
) -> Report:
    """Run scenarios one after the other, each on stock (if wanted) and on ours; `tell` hears of each row at once.

    Raises:
        InconclusiveError: What was to be measured did not take place.
        MissingError: No node, or no redis-server.
        NotStartedError: A server did not start.
    """
    rows = []
    for name in scenarios:
        for kind in (Kind.STOCK, Kind.OURS) if stock else (Kind.OURS,):
            rows.append(SCENARIOS[name](kind, size))
            tell(rows[-1])
    return Report(rows=rows)


__all__ = ["FULL", "HEAD", "SCENARIOS", "InconclusiveError", "Kind", "Report", "Row", "Size", "measure"]

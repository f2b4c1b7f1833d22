"""Rows in which nothing is broken: many workers, and exactly the limit."""

from bench import exact
from bench.promises import Check, exactly
from bench.trust.finding import Finding, Size
from service.limits.algorithms import ALGORITHMS


def workers(size: Size) -> Finding:
    """`POST /v1/check` over HTTP on 64 connections, one key, against `onequota serve --workers 8`: 200,000 decisions in
    a fixed window of 10,000, a tenth of both for each other algorithm."""
    others = [name for name in ALGORITHMS if name != "fixed-window"]
    requests, limit = size.of(200_000), size.of(10_000)
    counts = exact.exact(requests=requests, limit=limit, workers=8, algorithms=["fixed-window"])
    counts += exact.exact(requests=requests // 10, limit=limit // 10, workers=8, algorithms=others)
    checks: list[Check] = []
    for count in counts:
        checks.append(exactly(f"{count.algorithm}: admitted", count.admitted, count.expected))
        checks.append(exactly(f"{count.algorithm}: errors", count.errors, 0))
    told = [f"{one.algorithm} {one.admitted:,} of {one.admitted + one.refused + one.errors:,}" for one in counts]
    return Finding(figure=f"admitted: {', '.join(told)}", checks=tuple(checks))

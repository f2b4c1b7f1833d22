"""Rows in which nothing is broken: many workers, and exactly the limit."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from threading import Event, Thread

from bench import exact
from bench.promises import Check, at_least, exactly
from bench.redises import RedisServer
from bench.service import service
from bench.trust.finding import Finding, Size
from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, LOOK, Ask, Charge
from service.limits.engine import Engine
from service.limits.limit import Limit
from service.limits.stores import opener

PROCESSES = 4
PATIENCE_S = 60
"""A deadline that is none: it is counted here, not timed."""
YEAR_S = 360 * 86_400


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


MIXED = {"fixed-window": 5_000, "moving-window": 7_000, "sliding-window-counter": 8_000, "gcra": 6_000}
"""Units a year, of which a fixed window has fewest: it binds."""


def mixed(size: Size) -> Finding:
    """50,000 requests at once from four processes, each an engine over one real Redis; every request asks for four
    limits of one caller, one of each algorithm. Afterwards the counters are looked at."""
    limits = [Limit(amount=size.of(amount), window_s=YEAR_S, algorithm=name) for name, amount in MIXED.items()]
    asks, binding = size.of(50_000), min(limit.amount for limit in limits)
    with RedisServer() as redis, ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as processes:
        shares = [asks // PROCESSES + (number < asks % PROCESSES) for number in range(PROCESSES)]
        admitted = sum(processes.map(_at_once, [redis.url] * PROCESSES, [limits] * PROCESSES, shares))
        left = asyncio.run(_left(redis.url, limits))
    wanted = [limit.amount - binding for limit in limits]
    told = ", ".join(
        f"{limit.algorithm} {units:,} of {limit.amount:,}" for limit, units in zip(limits, left, strict=True)
    )
    return Finding(
        figure=f"{admitted:,} of {asks:,} admitted; left afterwards: {told}",
        checks=(exactly("admitted", admitted, binding), exactly("units left", left, wanted)),
    )


def _ask(limits: Sequence[Limit], kind: int = CHARGE) -> Ask:
    return Ask([Charge(limit, keys.spell("", "caller", "mixed", limit.spelling), 1) for limit in limits], kind)


def _at_once(url: str, limits: Sequence[Limit], asks: int) -> int:
    """In a process of its own: how many of so many asks at once were admitted."""

    async def run() -> int:
        engine = Engine(opener(url), PATIENCE_S)
        decisions = await asyncio.gather(*(engine.decide(_ask(limits)) for _ in range(asks)))
        await engine.aclose()
        assert engine.counters.unsettled == 0 and not any(decision.degraded for decision in decisions)
        return sum(decision.allowed for decision in decisions)

    return asyncio.run(run())


async def _left(url: str, limits: Sequence[Limit]) -> list[int]:
    engine = Engine(opener(url), PATIENCE_S)
    decision = await engine.decide(_ask(limits, LOOK))
    await engine.aclose()
    return [standing.remaining for standing in decision.standings]


def flushed(size: Size) -> Finding:
    """20,000 requests over HTTP against four workers, limit 5,000, while another connection says SCRIPT FLUSH every
    100 ms."""
    requests, limit, flushes = size.of(20_000), size.of(5_000), 0
    ended = Event()

    def flush(redis: RedisServer) -> None:
        nonlocal flushes
        with redis.client() as client:
            while not ended.wait(0.1 * size.share):  # a tenth of the requests are over in a tenth of the time
                client.script_flush()
                flushes += 1

    with RedisServer() as redis, service(redis, workers=4) as server:
        thread = Thread(target=flush, args=[redis])
        thread.start()
        try:
            count = exact.count(redis, server, "fixed-window", requests, limit)
        finally:
            ended.set()
            thread.join()
    return Finding(
        figure=f"{count.admitted:,} of {requests:,} admitted, {count.errors} errors, {flushes} times flushed",
        checks=(
            exactly("admitted", count.admitted, limit),
            exactly("errors", count.errors, 0),
            at_least("flushes", flushes, 3),
        ),
    )

"""Minutes or hours of a real service, several workers, a real Redis, mixed traffic, and things that happen to both.

    traffic.py   callers and their accounts
    weather.py   reloads, handovers, kill -9, a Redis that stalls, restarts, forgets scripts
    report.py    what is promised, the table

In the first half workers are replaced, too; in the second they are left alone, and their memory is looked at.
"""

import asyncio
import contextlib
import statistics
import time

from bench.processes import rss_bytes
from bench.redises import RedisServer
from bench.service import Service, service
from bench.soak.report import Report
from bench.soak.traffic import Traffic
from bench.soak.weather import Weather

DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec")
"""A Redis that is killed and started again has all it answered: it writes before it answers."""


def soak(*, minutes: float, workers: int, connections: int = 32, every_s: float = 10) -> Report:
    """Run it.

    Args:
        minutes: How long, above 0.
        workers: Of the service.
        connections: Callers, each with one.
        every_s: Between two events.

    Raises:
        MissingError: No redis-server.
        NotStartedError: The service did not start.
    """
    with RedisServer(*DURABLE) as redis, service(redis, workers=workers, environment={}) as server:
        return asyncio.run(_run(redis, server, minutes * 60, connections, every_s))


async def _run(redis: RedisServer, server: Service, length_s: float, connections: int, every_s: float) -> Report:
    traffic, weather = Traffic(server.port, connections), Weather(server, redis)
    memory: list[tuple[float, float]] = []
    started = time.monotonic()
    running = asyncio.create_task(traffic.run())
    watching = asyncio.create_task(_watch(server, memory, started))
    try:
        number = 0
        while (passed_s := time.monotonic() - started) < length_s:
            done, _ = await asyncio.wait([running], timeout=min(every_s, length_s - passed_s))
            if done:
                running.result()
            if time.monotonic() - started < length_s - every_s:  # what happens is over before the end
                await weather.turn(number, workers=time.monotonic() - started < length_s / 2)
                number += 1
        traffic.end()
        await running
    finally:
        for task in (running, watching):
            task.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)
    with redis.client() as client:
        clients, keys = client.info("clients")["connected_clients"] - 1, client.dbsize()
    return Report(
        seconds=time.monotonic() - started,
        workers=len(server.workers()),
        seen=traffic.seen,
        events=weather.events,
        killed=weather.killed,
        connections=connections,
        redis_clients=clients,
        keys=keys,
        memory=_halves(memory, length_s),
        parent_bytes=rss_bytes(server.pid),
    )


async def _watch(server: Service, memory: list[tuple[float, float]], started: float) -> None:
    """The workers' median memory, every second."""
    while True:
        with contextlib.suppress(OSError, statistics.StatisticsError):
            memory.append((time.monotonic() - started, statistics.median(map(rss_bytes, server.workers()))))
        await asyncio.sleep(1)


def _halves(memory: list[tuple[float, float]], length_s: float) -> tuple[float, float]:
    """Bytes at the beginning and at the end of the time in which workers were left alone."""
    alone = [size for at_s, size in memory if at_s > length_s * 0.6]
    part = max(1, len(alone) // 5)
    return (statistics.median(alone[:part]), statistics.median(alone[-part:])) if alone else (0.0, 0.0)


__all__ = ["Report", "soak"]

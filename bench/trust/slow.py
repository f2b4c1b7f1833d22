"""Callers who send next to nothing, and callers who send far too much: what the others notice."""

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator

from bench.caller import Caller, LostError
from bench.generator import percentile
from bench.processes import rss_bytes
from bench.promises import at_most, exactly
from bench.redises import RedisServer
from bench.service import Service, service
from bench.trust.finding import Finding, Size

WORKERS = 2
OTHERS = 8
"""Callers who behave."""
ROUNDS = 5
"""With and without attackers in turn: what disturbs the machine disturbs both."""
SLOW = 200
UPLOADS = 4
BODY_BYTES = 100 * 2**20
PER_S = 10 * 2**20
"""Bytes a second of an upload: the attackers' own CPU must not be what the others notice."""
MOST_BYTES = 32 * 2**20
"""By which a worker may grow: under all that at once."""


def attack(size: Size) -> Finding:
    """200 connections that send a byte of a header twice a second, and four that upload bodies of 100 MB to the service
    at 10 MB a second each, against two workers; eight callers meanwhile ask one thing after the other. Rounds with and
    without attackers in turn, medians of the rounds' p99."""
    with RedisServer() as redis, service(redis, workers=WORKERS) as server:
        quiet, loud, failed, grown = asyncio.run(_rounds(server, size))
    ratio = loud / quiet
    return Finding(
        figure=f"p99 of the others {quiet / 1000:.1f} ms without and {loud / 1000:.1f} ms with attackers "
        f"(x {ratio:.2f}), {failed} of them failed; a worker grew by at most {grown / 2**20:.1f} MB",
        checks=(
            at_most("p99 with attackers, times that without", ratio, 2 * size.patience),
            exactly("others who failed", failed, 0),
            at_most("growth of a worker", grown / 2**20, MOST_BYTES / 2**20, " MB"),
        ),
    )


async def _rounds(server: Service, size: Size) -> tuple[float, float, int, int]:
    """(p99 without, p99 with, failures, growth in bytes); latencies in microseconds."""
    asks = size.of(400, least=100)
    await _others(server.port, asks)  # warm
    quiet, loud, failed = list[float](), list[float](), 0
    before = {pid: rss_bytes(pid) for pid in server.workers()}
    most: dict[int, int] = {}
    for _ in range(ROUNDS):
        p99, lost = await _others(server.port, asks)
        quiet.append(p99)
        async with _attackers(server, most):
            p99, more = await _others(server.port, asks)
            loud.append(p99)
        failed += lost + more
    grown = max((size_ - before[pid] for pid, size_ in most.items() if pid in before), default=0)
    return statistics.median(quiet), statistics.median(loud), failed, grown


async def _others(port: int, asks: int) -> tuple[int, int]:
    """Their p99 in microseconds, and how many were not answered as they should."""
    latencies, failed = list[int](), 0

    async def one(number: int) -> None:
        nonlocal failed
        async with Caller(port) as caller:
            for _ in range(asks):
                try:
                    answer = await caller.ask("/v1/check", {"key": f"good-{number}", "limits": "1000000/hour"})
                except LostError:
                    failed += 1
                    continue
                failed += answer.status != 200 or not answer.body["allowed"]
                latencies.append(round(answer.seconds * 1e6))

    await asyncio.gather(*map(one, range(OTHERS)))
    return percentile(sorted(latencies), 0.99), failed


@contextlib.asynccontextmanager
async def _attackers(server: Service, most: dict[int, int]) -> AsyncIterator[None]:
    """While within; `most` learns how large workers became."""

    async def watch() -> None:
        while True:
            for pid in server.workers():
                most[pid] = max(most.get(pid, 0), rss_bytes(pid))
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(_drip(server.port)) for _ in range(SLOW)]
    tasks += [asyncio.create_task(_upload(server.port)) for _ in range(UPLOADS)]
    tasks.append(asyncio.create_task(watch()))
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drip(port: int) -> None:
    """A request that never comes to its end, again and again."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for byte in b"POST /v1/check HTTP/1.1\r\nhost: a\r\nx-slow: " + b"a" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.5)
            finally:
                writer.close()


async def _upload(port: int) -> None:
    """A body of 100 MB, as far as it is taken, again and again."""
    head = "POST /v1/check HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    piece = b" " * (PER_S // 50)
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.format(BODY_BYTES).encode())
                for _ in range(BODY_BYTES // len(piece)):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(1 / 50)
                await reader.read(65536)
            finally:
                writer.close()

"""Callers who behave badly towards the connection."""

import asyncio
import json
import random
import time
from pathlib import Path

from bench.caller import Caller, LostError
from bench.promises import at_least, at_most, exactly
from bench.redises import RedisServer
from bench.service import Service, service
from bench.trust.finding import Finding, Size

WORKERS = 4
CONNECTIONS = 64


def disconnects(size: Size) -> Finding:
    """50,000 requests from 64 callers against four workers; three in ten hang up right after they have asked, or in the
    middle of it. Every other one asks for a key and a limit that nobody else has: the answer must speak of them. Then
    the connections are counted."""
    requests = size.of(50_000)
    with RedisServer() as redis, service(redis, workers=WORKERS) as server:
        before = _sockets(server) - _asking(redis)
        answered, left, wrong = asyncio.run(_all(server.port, requests))
        after = _settled(server, before + WORKERS)
        asking = _asking(redis)
        left_over = after - asking - before
    return Finding(
        figure=f"{left:,} of {requests:,} hung up; {answered:,} answers, {wrong} of them wrong; "
        f"{left_over} connections left over, {asking} to Redis",
        checks=(
            exactly("answers of somebody else's", wrong, 0),
            exactly("answers", answered, requests - left),
            at_least("hung up", left, requests // 4),
            at_most("connections left over", left_over, 0),
            at_most("connections to Redis", asking, WORKERS),
        ),
    )


async def _all(port: int, requests: int) -> tuple[int, int, int]:
    shares = [requests // CONNECTIONS + (number < requests % CONNECTIONS) for number in range(CONNECTIONS)]
    found = await asyncio.gather(*(_one(port, number, share) for number, share in enumerate(shares)))
    answered, left, wrong = (sum(column) for column in zip(*found, strict=True))
    return answered, left, wrong


async def _one(port: int, number: int, requests: int) -> tuple[int, int, int]:
    drawn = random.Random(number)
    answered = left = wrong = 0
    async with Caller(port) as caller:
        for one in range(requests):
            amount = 1_000_000 + number * 100_000 + one  # nobody else asks for as many
            body = {"key": f"caller-{number}-{one}", "limits": f"{amount}/hour"}
            if drawn.random() < 0.3:
                await _hang_up(port, body, drawn)
                left += 1
                continue
            try:
                answer = await caller.ask("/v1/check", body)
            except LostError:
                continue
            answered += 1
            told = answer.body["limits"][0] if answer.status == 200 else {}
            wrong += (told.get("limit"), told.get("remaining")) != (amount, amount - 1)
    return answered, left, wrong


async def _hang_up(port: int, body: dict[str, str], drawn: random.Random) -> None:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/check HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    message = head.encode() + data
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(message if drawn.random() < 0.7 else message[: drawn.randrange(len(message))])
    await asyncio.sleep(drawn.choice((0, 0, 0.001)))
    writer.transport.abort() if drawn.random() < 0.5 else writer.close()


def _asking(redis: RedisServer) -> int:
    """Connections of the workers to Redis."""
    with redis.client() as client:
        return int(client.info("clients")["connected_clients"]) - 1


def _sockets(server: Service) -> int:
    """Open sockets of all workers."""
    found = 0
    for pid in server.workers():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found += str(link.readlink()).startswith("socket:")
            except FileNotFoundError:
                continue
    return found


def _settled(server: Service, wanted: int) -> int:
    """Open sockets, when there are no more than that, or after 5 s."""
    deadline = time.monotonic() + 5
    while (found := _sockets(server)) > wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found

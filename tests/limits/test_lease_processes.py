"""Units of concurrency over processes: never more are held than there are, and those of a killed one come back."""

import asyncio
import json
import os
import subprocess
import sys
import time

from servers import RedisServer

from service.errors import NotAdmitted
from service.limits import Limiter

WORKER = """
import asyncio, json, random, sys
import redis.asyncio
from service.errors import NotAdmitted
from service.limits import Limiter

async def main(url, seed):
    chance, most, held, refused = random.Random(seed), 0, 0, 0
    limiter = Limiter(lambda: "x", storage_uri=url, deadline_s=30)
    client = redis.asyncio.Redis.from_url(url)

    async def one():
        nonlocal most, held, refused
        for _ in range(12):
            try:
                async with limiter.lease("alice", 3, ttl_s=5):
                    held += 1
                    most = max(most, await client.incr("inside"))
                    await asyncio.sleep(chance.random() / 100)
                    await client.decr("inside")
            except NotAdmitted as error:
                refused += 1
                assert 1 <= error.decision.retry_after <= 5
                await asyncio.sleep(chance.random() / 100)

    await asyncio.gather(*(one() for _ in range(8)))
    print(json.dumps([most, held, refused]))
    await client.aclose()
    await limiter.aclose()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

HOLDER = """
import asyncio, contextlib, sys
from service.limits import Limiter

async def main(url):
    limiter = Limiter(lambda: "x", storage_uri=url, deadline_s=30)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(limiter.lease("alice", 3, ttl_s=2))
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(sys.argv[1]))
"""


def started(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=environment)


def test_four_processes_never_hold_more_than_there_are(redis_server: RedisServer):
    """32 tasks want 3 units, each counts how many are inside with it: three at times, and never four."""
    with redis_server.client() as client:
        client.set("inside", 0, px=120_000)
        workers = [started(WORKER, redis_server.url, str(seed)) for seed in range(4)]
        told = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
        assert max(most for most, _, _ in told) == 3
        assert sum(held + refused for _, held, refused in told) == 4 * 8 * 12
        assert all(held and refused for _, held, refused in told)
        assert client.keys() == [b"inside"] and client.get("inside") == b"0"  # all have come back


async def test_what_a_killed_process_held_comes_back_within_a_lease(redis_server: RedisServer):
    """It renews 2 s leases as long as it lives; then none is free before they end, and all are when they have."""
    holder = await asyncio.to_thread(started, HOLDER, redis_server.url)
    assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
    limiter = Limiter(lambda: "x", storage_uri=redis_server.url, deadline_s=30)

    async def free():
        try:
            async with limiter.lease("alice", 3, ttl_s=2):
                return True
        except NotAdmitted:
            return False

    until = time.monotonic() + 3  # longer than a lease: it is renewed
    while time.monotonic() < until:
        assert not await free()
        await asyncio.sleep(0.1)
    holder.kill()
    holder.wait()
    killed = time.monotonic()
    with redis_server.client() as client:
        assert [0 < client.pttl(key) <= 3_000 for key in client.scan_iter()] == [True]
    while not await free():
        assert time.monotonic() - killed < 10
        await asyncio.sleep(0.05)
    took_s = time.monotonic() - killed
    assert 0.5 < took_s < 4, took_s  # the last renewal was up to 0.7 s before the kill; a busy machine looks late
    async with (
        limiter.lease("alice", 3, ttl_s=2),
        limiter.lease("alice", 3, ttl_s=2),
        limiter.lease("alice", 3, ttl_s=2),
    ):
        assert not await free()
    await limiter.aclose()
    holder.stdout.close()

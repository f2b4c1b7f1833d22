"""`onequota serve` on a Cluster and behind Sentinels: workers share one quota, and a failover is no client's error."""

import asyncio
import json
import time
from collections import Counter

import httpx2 as httpx
import pytest
from running import onequota

ASKED = {"limits": "10/hour"}


async def ask(client, key, **more):
    answer = await client.post("/v1/check", json={"key": key, **ASKED, **more})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("kind", ["cluster", "sentinels"])
async def test_two_workers_share_a_quota_and_a_failover_is_no_clients_error(kind, request, tmp_path, record_property):
    redis = request.getfixturevalue(f"redis_{kind}")
    redis.heal()
    redis.flush()
    variables = {"REDIS_URL": redis.url}
    with onequota(tmp_path, "serve", "--port", "0", "--workers", "2", variables=variables) as running:
        assert getattr(redis, "password", "") not in json.dumps(running.banner) or kind == "cluster"
        async with httpx.AsyncClient(base_url=running.banner["url"], timeout=30) as client:
            store = (await client.get("/ready")).json()["store"]
            assert "a cluster of 3" in store if kind == "cluster" else "the primary of counters" in store
            answers = await asyncio.gather(*(ask(client, f"user{n % 3}") for n in range(60)))
            assert Counter(status for status, _ in answers) == {200: 60}
            assert sum(body["allowed"] for _, body in answers) == 30
            statuses, seconds = await through_a_failover(client, redis, kind)
    redis.heal()
    record_property("figure", f"{kind}: {dict(statuses)}; the store decides again {seconds:.1f} s after the kill")
    assert set(statuses) == {"200 exact", "200 degraded"}


async def through_a_failover(client, redis, kind):
    """Ask 20 keys all the time, from before a primary is killed until the store decides about all of them again."""
    primaries = redis.primaries() if kind == "cluster" else [redis.primary()]
    statuses = Counter()
    at_s = time.monotonic()
    deadline_s = at_s + 30
    primaries[0].stop()
    exact = 0
    while exact < 3:
        assert time.monotonic() < deadline_s, "the store never decided again"
        answers = await asyncio.gather(*(ask(client, f"key{n}", peek=True) for n in range(20)))
        told = [f"{status} {'degraded' if body.get('degraded') else 'exact'}" for status, body in answers]
        statuses.update(told)
        exact = exact + 1 if set(told) == {"200 exact"} and statuses["200 degraded"] else 0
        await asyncio.sleep(0.05)
    return statuses, time.monotonic() - at_s

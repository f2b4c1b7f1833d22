"""A Redis that is there and does not do it: loading, full, busy, without replicas, a replica, with too many clients.

Each is StoreUnavailable with its reason, nothing is charged meanwhile, and when it is over, it is over: no restart.
"""

import asyncio
import contextlib
import os
import threading

import pytest
import redis
from loading import Load, answered, ask, counted, engine_of
from servers import RedisServer, needs, redis_binaries

from bench.redises import tell
from service.errors import StoreUnavailable
from service.limits import outage
from service.limits.limit import Limit

(LIMIT,) = Limit.parse("1000000/year")
NAMES = [f"user{number}" for number in range(10)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(outage, "PROBE_S", (0.1, 0.2))


@pytest.fixture(scope="module", params=redis_binaries(), ids=lambda binary: binary.strip("/").replace("/", "-"))
def server(request):
    needs("redis-server")
    with RedisServer(binary=request.param) as server:
        yield server


@contextlib.contextmanager
def configured(server, name, value, back):
    tell(server, "CONFIG", "SET", name, value)
    try:
        yield
    finally:
        tell(server, "CONFIG", "SET", name, back)


@contextlib.contextmanager
def replica(server):
    tell(server, "REPLICAOF", "127.0.0.1", 1)
    try:
        yield
    finally:
        tell(server, "REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def busy(server):
    """Somebody's script hangs."""
    tell(server, "CONFIG", "SET", "lua-time-limit", 1)

    def hang():
        with server.client() as client, contextlib.suppress(redis.RedisError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        yield
    finally:
        tell(server, "SCRIPT", "KILL")
        thread.join()


REFUSALS = {
    "memory": lambda server: configured(server, "maxmemory", 1, 0),
    "replicas": lambda server: configured(server, "min-replicas-to-write", 1, 0),
    "readonly": replica,
    "busy": busy,
}


@pytest.mark.parametrize("reason", REFUSALS)
async def test_what_redis_refuses_is_an_outage_with_its_reason_and_over_when_it_is_over(server, reason):
    tell(server, "FLUSHALL")
    async with Load([engine_of(server.url)], lambda name: ask(name, LIMIT), NAMES) as load:
        await load.until(lambda: sum(load.admitted.values()) > 50)
        assert not load.unexplained()
        with REFUSALS[reason](server):
            await load.until(lambda: len(load.errors) > 50)
            admitted = sum(load.admitted.values())
            await asyncio.sleep(0.3)
            assert sum(load.admitted.values()) == admitted
        await load.until(lambda: sum(load.admitted.values()) > admitted + 50)
        engine = load.engines[0]
        assert engine.counters.unsettled == 0
        reasons = {error.reason for _, _, error in load.errors} - {"timeout"}  # while the breaker is open, none is told
        assert reasons == {reason}
    charged = sum(await counted(server.url, NAMES, LIMIT))
    assert charged == sum(load.admitted.values()), "charged without having been admitted"


async def test_a_redis_that_reads_its_file_is_away_until_it_has(server):
    """150 keys of 200 kB that take 10 ms each to load; it looks up every 2 MB, and then at one thing."""
    engine = engine_of(server.url, 10)
    assert (await engine.decide(ask("a", LIMIT))).allowed
    tell(server, "FLUSHALL")
    with server.client() as client:
        for number in range(150):
            client.set(f"k{number}", os.urandom(200_000))
        client.save()
    server.stop()
    server.start("--key-load-delay", "10000", wait=False)
    decision, errors = await answered(engine, ask("a", LIMIT), within_s=30)
    assert "loading" in {error.reason for error in errors}
    assert engine.counters.unsettled <= 1  # what was sent as it died
    assert decision.standings[0].remaining == LIMIT.capacity - 1, "charged while it was loading"
    await engine.aclose()


async def test_a_redis_with_too_many_clients_is_away_for_those_who_are_not_connected_yet(server):
    early, late = engine_of(server.url), engine_of(server.url)
    assert (await early.decide(ask("early", LIMIT))).allowed
    with server.client(single_connection_client=True) as other:
        other.config_set("maxclients", 2)
        for _ in range(3):
            with pytest.raises(StoreUnavailable) as caught:
                await late.decide(ask("late", LIMIT))
            assert not caught.value.maybe_done
        assert (await early.decide(ask("early", LIMIT))).allowed
        other.config_set("maxclients", 1000)
    decision, _ = await answered(late, ask("late", LIMIT))
    assert decision.standings[0].remaining == LIMIT.capacity - 1
    await early.aclose()
    await late.aclose()

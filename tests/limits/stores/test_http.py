"""A limiter whose counters a service keeps, `Limiter(storage_uri="http://…")`: `onequota serve` with two workers."""

import asyncio
import threading

import httpx2 as httpx
import pytest
from fastapi import FastAPI, Response
from running import onequota
from servers import RedisServer
from starlette.testclient import TestClient

from service.client import Client
from service.errors import AlreadySettled, ConfigurationError, InvalidInput, NotAdmitted, StoreUnavailable
from service.limits import Limiter, keys
from service.limits.decision import DEBIT, GIVE_BACK, Ask, Charge
from service.limits.limit import Limit
from service.limits.stores import opener

ONE, OTHER, TEAM, MATE = (letter * 3 + "0123456789abcdef0123456789abc" for letter in "abcd")
KEYS = f"one:{ONE}:@inline other:{OTHER}:@inline team:{TEAM}:@inline/t,x mate:{MATE}:@inline/t nobody:{'e9' * 16}:chat"
KEYS = KEYS.replace("e9" * 16, "e9f8d7c6" * 4)


@pytest.fixture(scope="module")
def redis():
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def service(redis, tmp_path_factory):
    variables = {"ONEQUOTA_API_KEYS": KEYS, "ONEQUOTA_REDIS_TIMEOUT_MS": "5000"}
    options = ("--workers", "2", "--port", "0", "--redis", redis.url)
    with onequota(tmp_path_factory.mktemp("service"), "serve", *options, variables=variables) as running:
        httpx.get(running.banner["url"] + "/health", timeout=60)  # until a worker serves
        yield running.banner["url"]


@pytest.fixture
def keeper(service, redis):
    """Makes limiters whose counters the service keeps."""
    with redis.client() as client:
        client.flushall()

    def make(api_key=ONE, **more):
        uri = service.replace("http://", f"http://{api_key}@")
        return Limiter(lambda request: request.headers["x-user"], storage_uri=uri, **{"deadline_s": 20, **more})

    return make


def test_processes_of_an_app_share_one_exact_quota(keeper):
    passed = []

    def process():
        async def ask():
            limiter = keeper()
            found = await asyncio.gather(*(limiter.check("alice", "100/minute;1000/hour") for _ in range(150)))
            assert not any(decision.degraded for decision in found)
            passed.extend(decision.allowed for decision in found)

        asyncio.run(ask())

    threads = [threading.Thread(target=process) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(passed), sum(passed)) == (600, 100)


@pytest.mark.parametrize("algorithm", ["fixed-window", "moving-window", "sliding-window-counter", "gcra"])
async def test_every_algorithm_counts_all_or_nothing(keeper, algorithm):
    limiter = keeper(strategy=algorithm)
    found = [await limiter.check("alice", "2/hour;3/day") for _ in range(3)]
    assert [decision.allowed for decision in found] == [True, True, False]
    assert [standing.remaining for standing in found[2].standings] == [0, 1]
    assert found[2].retry_us > 0
    await limiter.aclose()


async def test_tokens_debits_and_giving_back_work_as_over_redis(keeper):
    limiter = keeper()
    first = await limiter.check("alice", "5/hour", cost=2, idempotency_key="k")
    again = await limiter.check("alice", "5/hour", cost=2, idempotency_key="k")
    assert (first.replayed, again.replayed, again.at_us) == (False, True, first.at_us)
    with pytest.raises(InvalidInput, match="was used before for something else"):
        await limiter.check("alice", "5/hour", cost=3, idempotency_key="k")
    [standing] = (await limiter.check("alice", "5/hour", peek=True)).standings
    assert standing.remaining == 3
    (limit,) = Limit.parse("5/hour")
    charge = Charge(limit, b"oq:{alice}:c.:5/3600s/fixed", 2)
    await limiter.engine.decide(Ask([charge], GIVE_BACK, first.at_us))
    assert (await limiter.check("alice", "5/hour", peek=True)).standings[0].remaining == 5
    await limiter.engine.decide(Ask([charge._replace(cost=7)], DEBIT))
    assert (await limiter.check("alice", "5/hour", peek=True)).standings[0].remaining == 0
    await limiter.aclose()


async def test_what_is_held_for_a_while_works_as_over_redis(keeper):
    limiter, elsewhere = keeper(), keeper()

    async def left(limits):
        return (await elsewhere.check("alice", limits, peek=True)).standings[0].remaining

    reserved = await limiter.reserve("alice", "100/hour", cost=70)
    assert await left("100/hour") == 30
    await elsewhere.settle(reserved.id, 40)
    assert await left("100/hour") == 60
    with pytest.raises(AlreadySettled):
        await limiter.settle(reserved.id, 50)
    spare = await limiter.reserve("alice", "100/hour", cost=60)
    assert await left("100/hour") == 0
    await spare.release()
    await limiter.refund("alice", "100/hour", 10)
    assert await left("100/hour") == 70
    async with limiter.lease("alice", 2, ttl_s=2), elsewhere.lease("alice", 2, ttl_s=2):
        await asyncio.sleep(3)  # longer than it would last if nobody renewed it
        with pytest.raises(NotAdmitted):
            async with limiter.lease("alice", 2, ttl_s=2):
                pytest.fail("a third one")
    async with limiter.lease("alice", 2, ttl_s=2), limiter.lease("alice", 2, ttl_s=2):
        pass
    await limiter.aclose()
    await elsewhere.aclose()


def app_of(limiter):
    app = FastAPI()
    app.state.limiter = limiter
    app.add_middleware(limiter.middleware)

    @app.get("/login")
    @limiter.limit("2/minute;9/hour", deduct_when=lambda response: response.status_code == 401)
    async def login(right: bool):
        return Response(status_code=200 if right else 401)

    return app


def test_an_app_limits_by_the_service_and_gives_back_what_should_not_count(keeper):
    limiter = keeper()
    with TestClient(app_of(limiter)) as client:

        def login(right, user="alice"):
            return client.get("/login", params={"right": right}, headers={"x-user": user}).status_code

        assert [login(True) for _ in range(5)] == [200] * 5
        assert [login(False) for _ in range(3)] == [401, 401, 429]
        assert login(False, "bob") == 401
    counters = limiter.engine.counters
    assert (counters.unsettled, counters.failures) == (0, 0)


async def test_no_caller_meets_anothers_counters_nor_the_services(keeper, service, redis):
    async def left(limiter):
        return (await limiter.check("alice", "2/minute")).standings[0].remaining

    limiters = [keeper(key) for key in (ONE, OTHER, TEAM, MATE)] + [keeper(ONE, key_prefix="shop")]
    assert [await left(limiter) for limiter in limiters] == [1, 1, 1, 0, 1]  # two are of one team
    with Client(service, api_key=ONE, deadline_s=20) as client:
        assert client.check("alice", "2/minute").limits[0].remaining == 1
    with redis.client() as client:
        names = [name.decode() for name in client.scan_iter()]
    assert len([name for name in names if "{alice}:c.:2/60s/fixed" in name and name.startswith("~")]) == 4
    for limiter in limiters:
        await limiter.aclose()


async def test_an_identity_or_all_are_forgotten_and_nobody_elses(keeper):
    one, shop, other = keeper(ONE), keeper(ONE, key_prefix="shop"), keeper(OTHER)
    for limiter in (one, shop, other):
        for who in ("alice", "bob"):
            await limiter.check(who, "2/minute;9/hour")
    assert await one.reset("alice") == 2
    assert await one.reset("alice") == 0
    assert await one.reset() == 2
    left = [
        (await limiter.check("bob", "2/minute", peek=True)).standings[0].remaining for limiter in (one, shop, other)
    ]
    assert left == [2, 1, 1]
    for limiter in (one, shop, other):
        await limiter.aclose()


async def test_its_processes_tell_each_other_and_nobody_else(keeper):
    one, two, other = keeper(ONE), keeper(ONE), keeper(OTHER)
    key = keys.board("", "bans")
    _, [(first, message)] = await one.engine.board(key, b"-", b"alice\0\xff", 60_000, 10)
    assert message == b"alice\0\xff"
    await one.engine.board(key, b"-", b"bob", 60_000, 10)
    now_us, found = await two.engine.board(key, b"(" + first, b"", 60_000, 10)
    assert [message for _, message in found] == [b"bob"]
    assert now_us > 10**15
    assert (await other.engine.board(key, b"-", b"", 60_000, 10))[1] == []
    for limiter in (one, two, other):
        await limiter.aclose()


async def test_it_says_what_it_is(keeper, service):
    limiter = keeper()
    assert (await limiter.engine.ping()).startswith(f"onequota at {service} (redis ")
    assert await limiter.engine.store().doubts() == []
    await limiter.aclose()


@pytest.mark.parametrize(
    ("api_key", "says"),
    [("f" * 32, "this API key is not known here"), ("e9f8d7c6" * 4, 'key "nobody" may not ask with limits of its own')],
)
async def test_a_key_that_may_not_is_an_outage_that_says_so(keeper, api_key, says):
    limiter = keeper(api_key, on_outage="deny")
    with pytest.raises(StoreUnavailable, match=says) as caught:
        await limiter.check("alice", "2/minute")
    assert (caught.value.reason, caught.value.maybe_done) == ("permission", False)
    assert api_key not in str(caught.value)
    await limiter.aclose()


async def test_while_the_services_redis_is_away_the_app_decides_by_its_own_policy(tmp_path):
    own = RedisServer()
    try:
        with onequota(tmp_path, "serve", "--workers", "1", "--port", "0", "--redis", own.url) as running:
            url = running.banner["url"]
            httpx.get(url + "/health", timeout=60)
            local, deny = (
                Limiter(lambda: "a", storage_uri=url, deadline_s=5, on_outage=how) for how in ("local", "deny")
            )
            assert not (await local.check("alice", "9/minute")).degraded
            own.stop()
            decision = await local.check("alice", "9/minute")
            assert (decision.allowed, decision.degraded) == (True, True)  # counted here, and not by the service's share
            with pytest.raises(StoreUnavailable):
                await deny.check("alice", "9/minute")
            assert local.engine.counters.unsettled + deny.engine.counters.unsettled <= 2
            await local.aclose()
            await deny.aclose()
    finally:
        own.close()


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("http://", {}, "wanted the service's URL"),
        ("https://s3cret@h?x=1", {}, "https://***@h?x=1: wanted the service's URL"),
        ("http://h", {"socket_timeout": 1}, "storage_options socket_timeout: here are only api_key and verify"),
    ],
)
def test_a_uri_that_cannot_be_meant_is_refused_without_its_key(uri, options, says):
    with pytest.raises(ConfigurationError) as caught:
        opener(uri, options)
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_api_key_may_be_an_option_or_in_the_environment(service, monkeypatch):
    async def ask(**more):
        limiter = Limiter(lambda: "a", storage_uri=service, deadline_s=20, on_outage="deny", **more)
        decision = await limiter.check("carol", "9/minute")
        await limiter.aclose()
        return decision.allowed

    assert asyncio.run(ask(storage_options={"api_key": ONE}))
    monkeypatch.setenv("ONEQUOTA_API_KEY", OTHER)
    assert asyncio.run(ask())

"""Whoever is refused too often is refused everything for a while: by all workers, exactly, and at next to no cost."""

import asyncio
import contextlib

import pytest
from driving import START_US, Clock, Wire, client_of, gated, limiter_of, statuses
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from servers import RedisServer
from starlette.testclient import TestClient

from service.errors import ConfigurationError, StoreUnavailable
from service.limits import Ban, Limiter, identity, keys
from service.limits.access import bans as rules
from service.limits.board import POLL_S, STALE_S

BAN = Ban(after=3, within_s=60, for_s=600)


def by_user(request):
    return request.headers.get("x-user", "alice")


def site(limiter):
    """GET / once an hour, GET /other five times."""
    app = gated(FastAPI(), limiter)
    app.get("/")(limiter.limit("1/minute")(lambda: {}))
    app.get("/other")(limiter.limit("5/minute")(lambda: {}))
    return app


async def get(app, path="/", user="alice"):
    """The status, once what follows from it has been counted."""
    wire = await Wire(app, path, headers={"x-user": user}).run()
    await app.state.limiter.access.bans.counted()
    return wire


async def answers(app, times, path="/", user="alice"):
    return [(await get(app, path, user)).status for _ in range(times)]


async def test_so_many_refusals_are_a_ban_from_everything():
    """One admitted, three refused: then routes that would have room refuse, too; others are not touched."""
    clock = Clock()
    app = site(limiter_of(clock, key_func=by_user, ban=BAN))
    assert await answers(app, 3) == [200, 429, 429]
    assert await answers(app, 1, "/other") == [200]
    assert await answers(app, 1) == [429]
    assert await answers(app, 2, "/other") == [429, 429]
    assert await answers(app, 1, "/other", user="bob") == [200]


async def test_a_banned_client_is_told_how_long_and_is_let_in_then():
    """429 with a Retry-After that holds, `ban` as the violated policy; a second before it is too early."""
    clock = Clock()
    app = site(limiter_of(clock, key_func=by_user, ban=BAN))
    await answers(app, 4)
    clock.forward(100)
    answer = await get(app, "/other")
    assert answer.status == 429
    assert answer.headers["retry-after"] == "500"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["ratelimit-policy"] == '"ban";q=3;w=60'
    assert answer.headers["ratelimit"] == '"ban";r=0;t=500'
    assert b'"violated-policies":["ban"]' in answer.body
    assert b"banned for a while" in answer.body
    clock.forward(499)
    assert (await get(app, "/other")).headers["retry-after"] == "1"
    clock.forward(1)
    assert await answers(app, 2, "/other") == [200, 200]


async def test_refusals_by_a_ban_do_not_prolong_it_and_none_is_left_over():
    """It ends when it said it would; afterwards it takes as many refusals as the first time."""
    clock = Clock()
    app = site(limiter_of(clock, key_func=by_user, ban=BAN))
    await answers(app, 4)
    for _ in range(20):
        clock.forward(25)
        assert await answers(app, 1) == [429]
    clock.forward(100)
    assert await answers(app, 3) == [200, 429, 429]
    assert await answers(app, 1, "/other") == [200]


async def test_refusals_are_counted_within_their_time_only():
    """Two in a minute, again and again, are no three."""
    clock = Clock()
    app = site(limiter_of(clock, key_func=by_user, ban=BAN))
    for _ in range(5):
        assert await answers(app, 3) == [200, 429, 429]
        clock.forward(60)
    assert await answers(app, 4) == [200, 429, 429, 429]
    assert await answers(app, 1, "/other") == [429]


async def test_several_limits_of_one_client_are_one_count_and_of_two_clients_two():
    """A request that two limits of one client refuse is one refusal."""
    limiter = limiter_of(Clock(), key_func=by_user, ban=BAN)
    app = gated(FastAPI(), limiter)
    app.get("/")(limiter.limit("1/minute;1/hour")(lambda: {}))
    app.get("/other")(limiter.limit("5/minute")(lambda: {}))
    assert await answers(app, 3) == [200, 429, 429]
    assert await answers(app, 1, "/other") == [200]
    await answers(app, 1)
    assert await answers(app, 1, "/other") == [429]


async def test_whoever_is_let_through_by_a_list_is_never_banned():
    limiter = limiter_of(Clock(), key_func=by_user, ban=BAN, allow=["admin"])
    assert await answers(site(limiter), 10, user="admin") == [200] * 10


async def test_the_users_hook_and_handler_see_a_ban_as_a_refusal():
    """on_refusal gets the decision, a RateLimitExceeded handler its exception."""
    seen = []

    def hook(request, decision):
        seen.append(decision)
        return PlainTextResponse("gone", 418)

    app = site(limiter_of(Clock(), key_func=by_user, ban=BAN, on_refusal=hook))
    await answers(app, 4)
    assert (await get(app, "/other")).status == 418
    assert [standing.limit.name for standing in seen[-1].exceeded] == ["ban"]


def test_a_decorator_without_the_middleware_bans_too():
    limiter = limiter_of(key_func=by_user, ban=BAN)
    app = FastAPI()
    app.state.limiter = limiter
    app.get("/")(limiter.limit("1/minute")(lambda: {}))
    app.get("/other")(limiter.limit("5/minute")(lambda: {}))
    with client_of(app) as client:
        assert statuses(client, "/", 4) == [200, 429, 429, 429]
        client.portal.call(limiter.access.bans.counted)
        assert statuses(client, "/other", 1) == [429]


async def test_an_answered_reset_lifts_a_ban():
    """`await limiter.reset("alice")`: an administrator's mercy holds at once; of everybody, too."""
    for key in ("alice", None):
        limiter = limiter_of(Clock(), key_func=by_user, ban=BAN)
        app = site(limiter)
        await answers(app, 4)
        assert await answers(app, 1, "/other") == [429]
        await limiter.reset(key)
        assert await answers(app, 3) == [200, 429, 429]
        assert await answers(app, 1, "/other") == [200]


def test_the_test_plugin_bans_by_refusals_and_not_by_exhausting(onequota):
    """`exhaust` spends limits; a ban is no limit to be spent. The clock that is moved ends it."""
    limiter = Limiter(by_user, ban=BAN, storage_uri="memory://")
    app = site(limiter)
    onequota.attach(limiter)
    onequota.exhaust("alice")
    with client_of(app) as client:
        assert statuses(client, "/", 1) == [429]
        client.portal.call(limiter.access.bans.counted)
        assert statuses(client, "/other", 1) == [429]
        onequota.clock.advance(60)
        assert statuses(client, "/", 4) == [200, 429, 429, 429]
        client.portal.call(limiter.access.bans.counted)
        assert onequota.assert_limited(client.get("/other"), "ban") == 600
        onequota.clock.advance(600)
        assert statuses(client, "/other", 1) == [200]


UNMEANT = [
    {"after": 0},
    {"after": -1},
    {"after": 10**10},
    {"after": "many"},
    {"after": 3, "within_s": 0},
    {"after": 3, "within_s": 60, "for_s": 59},
    {"after": 3, "for_s": 10**10},
]


@pytest.mark.parametrize("values", UNMEANT, ids=str)
def test_a_ban_that_cannot_be_meant_is_refused(values):
    """One shorter than its window would begin again when it ends."""
    with pytest.raises(ConfigurationError, match=r"^ban"):
        Ban(**values)


def test_the_environment_may_say_when_somebody_is_banned(monkeypatch):
    """ONEQUOTA_BAN=100/minute, ONEQUOTA_BAN_FOR_S; the code's word goes before."""
    monkeypatch.setenv("ONEQUOTA_BAN", "100/minute")
    assert limiter_of().access.bans.ban == Ban(after=100, within_s=60, for_s=600)
    monkeypatch.setenv("ONEQUOTA_BAN_FOR_S", "3600")
    assert limiter_of().access.bans.ban == Ban(after=100, within_s=60, for_s=3600)
    assert limiter_of(ban=BAN).access.bans.ban == BAN
    for wrong in ("100", "100/minute;5/second", "0/minute", "100/hour"):
        monkeypatch.setenv("ONEQUOTA_BAN", wrong)
        monkeypatch.setenv("ONEQUOTA_BAN_FOR_S", "60")
        with pytest.raises(ConfigurationError):
            limiter_of()


# ── over many workers, on a real Redis ───────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def fleet(redis, workers, ban, **options):
    """Apps that share a Redis and nothing else, as workers do."""
    apps = [site(Limiter(by_user, storage_uri=redis.url, ban=ban, deadline_s=5, **options)) for _ in range(workers)]
    try:
        yield apps
    finally:
        for app in apps:
            await app.state.limiter.aclose()


async def heard(apps):
    """Until every worker reads the board again: the bound that is published."""
    await asyncio.sleep(POLL_S + 0.05)
    for app in apps:
        await app.state.limiter.access.bans.board.read()


async def test_refusals_count_exactly_over_all_workers(redis_server):
    """Four workers, 39 refusals of a client: none bans it. The 40th does, in every one of them; so for ten clients."""
    async with fleet(redis_server, 4, Ban(after=40, within_s=600, for_s=600)) as apps:

        async def refused(user, times):
            wires = [Wire(apps[n % 4], "/", headers={"x-user": user}).run() for n in range(times)]
            found = [wire.status for wire in await asyncio.gather(*wires)]
            for app in apps:
                await app.state.limiter.access.bans.counted()
            return found.count(429)

        users = [f"u{n}" for n in range(10)]
        assert await asyncio.gather(*(refused(user, 40) for user in users)) == [39] * 10
        await heard(apps)
        for user in users:
            assert [(await get(app, "/other", user)).status for app in apps] == [200] * 4
        assert await asyncio.gather(*(refused(user, 1) for user in users)) == [1] * 10
        await heard(apps)
        for user in users:
            assert [(await get(app, "/other", user)).status for app in apps] == [429] * 4
        assert [(await get(app, "/other", "u99")).status for app in apps] == [200] * 4


async def test_all_workers_tell_one_end_and_a_worker_that_starts_later_knows(redis_server):
    """The first mark counts, however many workers find the ban at once; the board keeps it for those to come."""
    async with fleet(redis_server, 3, BAN) as apps:
        await asyncio.gather(*(get(app) for app in apps for _ in range(6)))
        await heard(apps)
        waits = {(await get(app, "/other")).headers["retry-after"] for app in apps}
        assert len(waits) == 1 and 590 <= int(waits.pop()) <= 600
        async with fleet(redis_server, 1, BAN) as later:
            assert (await get(later[0], "/other")).headers["ratelimit-policy"] == '"ban";q=3;w=60'


async def test_an_idle_worker_reads_the_board_before_it_answers(redis_server):
    """It had no request for longer than STALE_S: what was posted meanwhile holds for the first that comes."""
    async with fleet(redis_server, 2, BAN) as (one, other):
        assert (await get(other, "/other", "bob")).status == 200
        await answers(one, 4)
        await asyncio.sleep(STALE_S + 0.05)
        assert (await get(other, "/other")).status == 429


async def test_a_reset_in_one_worker_lifts_the_ban_in_all(redis_server):
    async with fleet(redis_server, 2, BAN) as (one, other):
        await answers(one, 4)
        await heard([one, other])
        assert (await get(other, "/other")).status == 429
        await other.state.limiter.reset("alice")
        await heard([one, other])
        assert [(await get(app, "/other")).status for app in (one, other)] == [200, 200]


async def test_every_key_of_a_ban_expires_in_time(redis_server):
    """Refusals after their window, the ban and the board with the ban's end, each at most 2 × window + 1 s."""
    async with fleet(redis_server, 1, BAN) as (app,):
        await answers(app, 4)
        with redis_server.client() as client:
            lives = {key: client.pttl(key) for key in client.keys("*")}
    assert len(lives) == 4
    assert len([key for key in lives if b"b.refused" in key and 0 < lives[key] <= 121_000]) == 1
    assert len([key for key in lives if b"b.banned" in key and 590_000 < lives[key] <= 601_000]) == 1
    assert 590_000 < lives[b"oq:board:bans"] <= 601_000
    assert all(len(key) <= keys.LONGEST for key in lives)


async def test_a_flood_of_a_banned_client_costs_redis_only_the_reading_of_the_board(redis_server):
    """2,000 refused requests: no counter is asked; before the ban, refusals cost at most 50 calls a second."""
    async with fleet(redis_server, 1, BAN) as (app,):
        await answers(app, 4)
        with redis_server.client() as client:
            client.config_resetstat()
            calls = app.state.limiter.engine.counters.calls
            began = asyncio.get_running_loop().time()
            for _ in range(20):
                wires = await asyncio.gather(*(Wire(app, "/other").run() for _ in range(100)))
                assert {wire.status for wire in wires} == {429}
            took_s = asyncio.get_running_loop().time() - began
            stats = client.info("commandstats")
        assert app.state.limiter.engine.counters.calls == calls
        assert stats.get("cmdstat_evalsha", {"calls": 0})["calls"] <= 1 + took_s / POLL_S


async def test_a_flood_that_is_not_banned_yet_is_counted_in_a_few_calls(redis_server):
    """3,000 refusals of many clients: some 50 calls a second beside those that decide."""
    async with fleet(redis_server, 1, Ban(after=10_000, within_s=60, for_s=60)) as (app,):
        counters = app.state.limiter.engine.counters
        with redis_server.client() as client:
            began = asyncio.get_running_loop().time()
            for _ in range(30):
                await asyncio.gather(*(Wire(app, "/", headers={"x-user": f"u{n % 10}"}).run() for n in range(100)))
            took_s = asyncio.get_running_loop().time() - began
            await app.state.limiter.access.bans.counted()
            counted = [int(client.get(key)[16:]) for key in client.keys("*b.refused*")]
    assert sum(counted) == 3000 - 10
    assert counters.calls <= 30 * 3 + took_s / rules.COUNT_EVERY_S + 2


async def test_while_redis_is_away_known_bans_hold_and_nobody_is_banned():
    """No 500 and no waiting for the board; what a worker refuses by its share is no reason for a ban."""
    server = RedisServer()
    try:
        async with fleet(server, 1, BAN) as (app,):
            await answers(app, 4)
            server.stop()
            assert await answers(app, 3, "/other") == [429] * 3
            assert await answers(app, 9, user="bob") == [200] + [429] * 8
            assert await answers(app, 1, "/other", user="bob") == [200]
            with pytest.raises(StoreUnavailable):
                await app.state.limiter.access.bans.board.read()
    finally:
        server.close()


def test_a_client_behind_a_proxy_is_banned_and_the_proxy_is_not():
    """By the identity that was refused, and nobody else's."""
    limiter = limiter_of(key_func=identity.client_address, ban=BAN, trusted_proxies=["10.0.0.0/8"])
    with TestClient(site(limiter), client=("10.0.0.1", 1)) as client:
        for _ in range(4):
            client.get("/", headers={"x-forwarded-for": "203.0.113.7"})
        client.portal.call(limiter.access.bans.counted)
        peers = ("203.0.113.7", "203.0.113.8", "10.0.0.9")
        found = [client.get("/other", headers={"x-forwarded-for": peer}).status_code for peer in peers]
    assert found == [429, 200, 200]


async def test_a_ban_is_a_line_in_the_log_and_a_thousand_are_one_line_a_second(caplog):
    """With the identity as keys carry it: a digest, where it could be a secret."""
    limiter = limiter_of(Clock(), key_func=by_user, ban=Ban(after=1, for_s=60))
    app = site(limiter)
    for n in range(50):
        for _ in range(2):
            await Wire(app, "/", headers={"x-user": f"a user with a long name and a number, {n}"}).run()
    await limiter.access.bans.counted()
    lines = [record.getMessage() for record in caplog.records if "banned" in record.getMessage()]
    assert len(lines) == 1
    assert "for_s=60" in lines[0] and "identity=~" in lines[0]


async def test_what_a_worker_keeps_of_bans_is_bounded(monkeypatch):
    """The oldest are forgotten; what cannot be noted is not counted."""
    monkeypatch.setattr(rules, "MOST_KNOWN", 10)
    monkeypatch.setattr(rules, "MOST_NOTED", 10)
    limiter = limiter_of(Clock(), key_func=by_user, ban=BAN)
    bans = limiter.access.bans
    for n in range(35):
        bans._heard(b"%d u%d" % (START_US + 10**9, n), START_US)
    assert len(bans._until_us) == 10
    assert bans.refusal(b"u34") is not None
    assert bans.refusal(b"u0") is None
    for n in range(35):
        bans.note(b"n%d" % n)
    assert len(bans._noted) == 10
    await bans.counted()

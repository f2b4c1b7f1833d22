"""However many names somebody makes up, so many have counters and no more; who is known has its own, exactly."""

import asyncio
import itertools

import pytest
from driving import Clock, Wire, gated, limiter_of
from fastapi import FastAPI

from bench.trust.floods import flood
from service.errors import ConfigurationError
from service.limits import Limiter, Newcomers, identity, keys
from service.limits.access.newcomers import _network_of, _Remembered

WHO = identity.first_of(
    identity.vouched(lambda request: request.headers.get("x-account")),
    identity.api_key("x-api-key", secret="a secret of 16 bytes"),
    identity.client_address,
)


def site(limiter):
    app = gated(FastAPI(), limiter)
    app.get("/")(limiter.limit("2/minute;5/hour")(lambda: {}))
    return app


async def get(app, peer="192.0.2.1", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await Wire(app, "/", headers=headers, extra={"client": (peer, 1)}).run()).status


def counters(app):
    """The identities that have counters."""
    store = app.state.limiter.engine.store()
    return {keys.bearer(key) for key in store._kept}


async def test_beyond_so_many_newcomers_share_a_counter_with_their_network():
    """Three addresses have their own 2 a minute; all others of a /16 have 2 together, and another /16 has its 2."""
    app = site(limiter_of(Clock(), key_func=WHO, newcomers=Newcomers(most=3)))
    for n in range(3):
        assert [await get(app, f"198.51.100.{n}") for _ in range(3)] == [200, 200, 429]
    assert [await get(app, f"198.51.{n}.9") for n in range(5)] == [200, 200, 429, 429, 429]
    assert [await get(app, f"203.0.{n}.9") for n in range(3)] == [200, 200, 429]
    assert counters(app) == {
        *(b"198.51.100.%d" % n for n in range(3)),
        b"^198.51.0.0/16",
        b"^203.0.0.0/16",
    }


NETWORKS = [
    ("203.0.113.7", b"^203.0.0.0/16"),
    ("203.1.113.7", b"^203.1.0.0/16"),
    ("2001:db8:1:2::/64", b"^2001:db8:1::/48"),
    ("2001:db8:1:ffff::/64", b"^2001:db8:1::/48"),
    ("2001:db8:2:2::/64", b"^2001:db8:2::/48"),
    ("local", b"^local"),
]


@pytest.mark.parametrize(("address", "network"), NETWORKS)
def test_a_network_is_what_one_provider_hands_out(address, network):
    assert _network_of(address) == network


def test_no_identity_is_spelled_like_a_crowd():
    """Whatever a client calls itself: it cannot use up a network's counter, or hide in one."""
    names = ["^203.0.0.0/16", "203.0.0.0/16", "^", "^all", "~203", "all"]
    assert not {keys.who(name) for name in names} & {keys.crowd("203.0.0.0/16"), keys.crowd("all")}
    assert not any(keys.who(name).startswith(keys.CROWD) for name in names)


async def test_networks_are_counted_too():
    """A sweep through a /32 of IPv6 has 65,536 /48s: beyond so many they are one crowd."""
    app = site(limiter_of(Clock(), key_func=WHO, newcomers=Newcomers(most=1, networks=2)))
    for n in range(50):
        await get(app, f"2001:db8:{n:x}::1")
    assert counters(app) == {b"2001:db8::/64", b"^2001:db8:1::/48", b"^2001:db8:2::/48", b"^all"}


async def test_whoever_is_vouched_for_has_counters_of_its_own_in_any_flood():
    """Two a minute for each account, while keys and addresses are made up."""
    app = site(limiter_of(Clock(), key_func=WHO, newcomers=Newcomers(most=2)))
    answers = []
    for n in range(60):
        await get(app, f"198.51.100.{n}", x_api_key=f"made-up-{n}")
        await get(app, f"203.0.{n}.1")
        answers.append(await get(app, x_account=f"a{n % 20}"))
    assert answers == [200] * 40 + [429] * 20
    assert len(counters(app)) <= 20 + 2 + 60 + 1


@pytest.mark.parametrize("options", [{}, {"cost": lambda: 1}], ids=["ready", "computed"])
async def test_it_holds_for_ready_and_for_computed_plans(options):
    limiter = limiter_of(Clock(), key_func=WHO, newcomers=Newcomers(most=1))
    app = gated(FastAPI(), limiter)
    app.get("/")(limiter.limit("2/minute", **options)(lambda: {}))
    for n in range(10):
        await get(app, f"198.51.100.{n}")
    assert [await get(app, x_account="alice") for _ in range(3)] == [200, 200, 429]
    assert counters(app) == {b"198.51.100.0", b"^198.51.0.0/16", b"1/alice"}


async def test_two_newcomers_of_one_request_are_one_in_a_crowd():
    """A limit by address and the same by key: the network's counter is charged once, at the larger cost."""
    limiter = limiter_of(Clock(), key_func=identity.client_address, newcomers=Newcomers(most=1))
    app = gated(FastAPI(), limiter)
    by_key = identity.api_key("x-api-key", secret="a secret of 16 bytes")

    @app.get("/")
    @limiter.shared_limit("5/minute", scope="s", cost=2, deduct_when=lambda response: True)
    @limiter.shared_limit("5/minute", scope="s", key_func=by_key)
    async def index():
        return {}

    assert await get(app, "192.0.2.9", x_api_key="the first") == 200
    wire = await Wire(app, "/", headers={"x-api-key": "k"}, extra={"client": ("198.51.100.1", 1)}).run()
    assert wire.headers["ratelimit"] == '"5/minute";r=3;t=60'


async def test_a_client_that_keeps_coming_stays_known_and_one_that_left_makes_room():
    """Known for as long as its counters live: at least two hours and a second here, at most twice that."""
    clock = Clock()
    limiter = limiter_of(clock, key_func=WHO, newcomers=Newcomers(most=2))
    limiter.access._clock = lambda: clock.now_us / 1e6
    app = site(limiter)
    assert await get(app, "192.0.2.1") == await get(app, "192.0.2.2") == 200
    for _ in range(6):
        clock.forward(3600)
        assert await get(app, "192.0.2.1") == 200
    assert await get(app, "192.0.2.3") == 200
    assert b"192.0.2.3" in counters(app)
    await get(app, "192.0.2.4")
    assert b"192.0.2.4" not in counters(app)


async def test_nobody_is_forgotten_while_its_counters_live():
    """So the counters are as few as the members: whatever the order and the times."""
    remembered, life_us = _Remembered(5), 10
    last = {}
    for step, who in enumerate(itertools.islice(itertools.cycle([b"a", b"b", b"c", b"d", b"e", b"f", b"g"]), 700)):
        now_us = step * (1 + step % 3)
        if remembered.has(who, now_us, life_us):
            last[who] = now_us
        assert len([seen for seen in last.values() if now_us - seen < life_us]) <= 5


async def test_whoever_has_counters_already_keeps_them_in_every_worker(redis_server):
    """One worker let it in; another one, full, asks Redis before it sends it to the crowd: exactly 2 a minute."""
    options = {"storage_uri": redis_server.url, "deadline_s": 5}
    one, full = (site(Limiter(WHO, newcomers=Newcomers(most=most), **options)) for most in (10, 1))
    try:
        await get(full, "198.51.100.250")
        assert await get(one, "198.51.100.1") == 200
        assert [await get(full, "198.51.100.1") for _ in range(2)] == [200, 429]
        assert await get(one, "198.51.100.1") == 429
        assert [await get(full, f"198.51.100.{n}") for n in (2, 3, 4)] == [200, 200, 429]
        assert await get(full, "198.51.100.1") == 429
    finally:
        for app in (one, full):
            await app.state.limiter.aclose()


async def test_a_flood_makes_only_so_many_keys_on_a_real_redis(redis_server):
    """2,000 made-up names over two workers; 20 each may have counters: two a name, and the crowds'."""
    newcomers = Newcomers(most=20, networks=8)
    apps = [site(Limiter(WHO, newcomers=newcomers, storage_uri=redis_server.url, deadline_s=5)) for _ in range(2)]
    for start in range(0, 2000, 100):
        numbers = range(start, start + 100)
        found = await asyncio.gather(
            *(get(apps[n % 2], f"2001:db8:{n:x}::1", **({"x_api_key": f"k{n}"} if n % 3 else {})) for n in numbers)
        )
        assert set(found) <= {200, 429}
    with redis_server.client() as client:
        assert client.dbsize() <= 2 * (20 + 8 + 1) * 2
    for app in apps:
        await app.state.limiter.aclose()


async def test_refusals_of_a_crowd_ban_nobody():
    """They are not the doing of anybody in particular."""
    from service.limits import Ban

    limiter = limiter_of(Clock(), key_func=WHO, newcomers=Newcomers(most=1), ban=Ban(after=3, for_s=60))
    app = site(limiter)
    for n in range(20):
        await get(app, f"198.51.100.{n}")
    await limiter.access.bans.counted()
    assert limiter.access.bans._until_us == {}
    assert not any(b"b.refused" in key for key in limiter.engine.store()._kept)


@pytest.mark.parametrize(
    "values", [{"most": 0}, {"most": -1}, {"most": 1.5}, {"most": True}, {"networks": 0}, {"most": 10**8}]
)
def test_what_cannot_be_meant_is_refused(values):
    with pytest.raises(ConfigurationError, match=r"^newcomers"):
        Newcomers(**values)


def test_without_a_bound_the_flood_that_the_table_of_trust_measures_fills_redis():
    """So that row cannot hold by itself: strangers and known accounts alike are told 503."""
    told, _, _, evicted = flood(8_000, None, memory=2**19)
    assert sum(one.strangers[503] for one in told) > 1000
    assert sum(one.failed for one in told) > 0
    assert evicted == 0


def test_the_environment_may_say_how_many(monkeypatch):
    monkeypatch.setenv("ONEQUOTA_NEWCOMERS", "500")
    assert limiter_of().access.crowd._known._most == 500
    monkeypatch.setenv("ONEQUOTA_NEWCOMERS", "0")
    assert limiter_of().access is None
    monkeypatch.setenv("ONEQUOTA_NEWCOMERS", "many")
    with pytest.raises(ConfigurationError, match="ONEQUOTA_NEWCOMERS"):
        limiter_of()

"""What slowapi's decorators promise, counted by this package's engine: on all stores, and with a moved clock."""

import asyncio

import pytest
from driving import Clock, by_user, client_of, gated, limiter_of, statuses
from fastapi import FastAPI, Request, Response

from service.limits import Limiter

STRATEGIES = ["fixed-window", "moving-window", "sliding-window-counter", "gcra"]


@pytest.fixture(params=["memory", "fakeredis", "redis"])
def storage_uri(request):
    """Where the counters are: this process, the script on a fake server, the script on a real one."""
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return f"{request.param}://"


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def app(request):
    """An app whose limiter, `app.state.limiter`, the tests replace; with and without the middleware."""
    app = FastAPI()
    app.state.with_gate = request.param
    return app


def attach(app, limiter):
    app.state.limiter = limiter
    if app.state.with_gate:
        app.add_middleware(limiter.middleware)
    return limiter


# ── on every store ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_limit_admits_exactly_its_amount_for_each_caller(storage_uri, strategy, app):
    """Whichever the algorithm and the store, and whether a gate or the decorator does the counting."""
    limiter = attach(app, Limiter(by_user, storage_uri=storage_uri, strategy=strategy, deadline_s=5))

    @app.get("/")
    @limiter.limit("3/hour")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 5) == [200, 200, 200, 429, 429]
    assert statuses(client, "/", 1, headers={"x-user": "bob"}) == [200]


def test_several_limits_are_all_or_nothing(storage_uri, app):
    """`10/hour;2/minute` × 6: 2 pass, and the hour is charged 2, not 6."""
    limiter = attach(app, Limiter(by_user, storage_uri=storage_uri, deadline_s=5))

    @app.get("/")
    @limiter.limit("10/hour;2/minute")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 6) == [200, 200, 429, 429, 429, 429]
    assert client.get("/").headers["ratelimit"].startswith('"10/hour";r=8;')


def test_stacked_decorators_are_one_question_to_the_store(storage_uri):
    """slowapi asks 9 times for three stacked limits; here a request is one call."""
    app = FastAPI()
    limiter = Limiter(by_user, ["500/day"], ["1000/day"], storage_uri=storage_uri, deadline_s=5)
    gated(app, limiter)

    @app.get("/")
    @limiter.limit("3/hour", override_defaults=False)
    @limiter.limit("2/minute", override_defaults=False)
    @limiter.limit("2/second", override_defaults=False)
    async def index():
        return {}

    assert client_of(app).get("/").headers["ratelimit-policy"].count(";q=") == 5
    assert limiter.engine.counters.calls == 1


def test_a_shared_limit_counts_all_its_routes_together(storage_uri, app):
    """Routes with the same scope share one counter; others do not notice."""
    limiter = attach(app, Limiter(by_user, storage_uri=storage_uri, deadline_s=5))
    both = limiter.shared_limit("2/hour", scope="reports")

    @app.get("/a")
    @both
    async def a():
        return {}

    @app.get("/b")
    @both
    def b():
        return {}

    @app.get("/c")
    @limiter.shared_limit("2/hour", scope="others")
    def c():
        return {}

    client = client_of(app)
    assert [client.get(path).status_code for path in ("/a", "/b", "/a", "/b", "/c")] == [200, 200, 429, 429, 200]


def test_a_given_back_charge_can_be_spent_again(storage_uri, app):
    """`deduct_when` with a false answer returns the unit, on every store."""
    limiter = attach(app, Limiter(by_user, storage_uri=storage_uri, deadline_s=5))

    @app.get("/")
    @limiter.limit("2/hour", deduct_when=lambda response: response.status_code == 401)
    async def index(request: Request):
        from fastapi.responses import JSONResponse

        return JSONResponse({}, int(request.headers.get("x-answer", "200")))

    client = client_of(app)
    assert statuses(client, "/", 5) == [200] * 5
    assert statuses(client, "/", 3, headers={"x-answer": "401"}) == [401, 401, 429]


async def test_reset_forgets_one_caller_or_all(storage_uri):
    """`await limiter.reset("alice")` frees alice only; without a key everybody under the prefix."""
    limiter = Limiter(by_user, storage_uri=storage_uri, deadline_s=5)
    for name in ("alice", "bob", "carol"):
        await limiter.check(name, "1/hour;2/day")
    assert await limiter.reset("alice") == 2
    assert (await limiter.check("alice", "1/hour")).allowed
    assert not (await limiter.check("bob", "1/hour")).allowed
    assert await limiter.reset() == 5
    assert (await limiter.check("bob", "1/hour")).allowed
    await limiter.aclose()


async def test_a_check_outside_a_request_decides_and_can_look(storage_uri):
    """`check` answers a decision; `peek` and cost 0 spend nothing; scopes do not meet."""
    limiter = Limiter(by_user, storage_uri=storage_uri, deadline_s=5)
    first = await limiter.check("alice", "10/minute;100/hour", cost=7)
    assert first.allowed
    assert [s.remaining for s in first.standings] == [3, 93]
    refused = await limiter.check("alice", "10/minute;100/hour", cost=4)
    assert not refused.allowed
    assert [s.remaining for s in refused.standings] == [3, 93]
    assert refused.retry_after in range(1, 61)
    assert [s.limit.name for s in refused.exceeded] == ["10/minute"]
    for look in ({"peek": True, "cost": 3}, {"cost": 0}):
        looked = await limiter.check("alice", "10/minute", **look)
        assert looked.allowed
        assert looked.standings[0].remaining == 3
    assert not (await limiter.check("alice", "10/minute", cost=4, peek=True)).allowed
    elsewhere = await limiter.check("alice", "10/minute", scope="elsewhere")
    assert elsewhere.standings[0].remaining == 9
    await limiter.aclose()


# ── with a clock ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_waits_as_long_as_retry_after_says_succeeds(strategy):
    """The wait is honest for every algorithm: one second less is refused where the wait is whole seconds."""
    clock = Clock()
    limiter = limiter_of(clock, strategy=strategy)
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("3/minute")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 3) == [200] * 3
    refused = client.get("/")
    assert refused.status_code == 429
    clock.forward(int(refused.headers["retry-after"]))
    assert client.get("/").status_code == 200


def test_each_limit_may_count_in_its_own_way():
    """A bucket of 2 that refills once a minute, beside an hour's window: 2 at once, then one a minute, 4 an hour."""
    clock = Clock()
    limiter = limiter_of(clock)
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("60/hour", strategy="gcra", burst=2)
    @limiter.limit("4/hour")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 3) == [200, 200, 429]
    assert client.get("/").headers["retry-after"] == "60"
    clock.forward(60)
    assert statuses(client, "/", 2) == [200, 429]
    clock.forward(120)
    assert statuses(client, "/", 2) == [200, 429]
    assert client.get("/").json()["violated-policies"] == ["4/hour"]
    assert client.get("/").headers["retry-after"] == str(3600 - 180)


def test_slowapis_headers_stand_on_every_answer_if_enabled():
    """Retry-After on 200 too, as in slowapi: the time until the quota is whole; a later one of the app's stays."""
    limiter = limiter_of(Clock(), headers_enabled=True)
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("2/hour;9/day")
    async def index(response: Response, wait: str = "1"):
        response.headers["retry-after"] = wait
        return {}

    client = client_of(app)
    answer = client.get("/")
    assert answer.headers["x-ratelimit-limit"] == "2"
    assert answer.headers["x-ratelimit-remaining"] == "1"
    assert answer.headers["x-ratelimit-reset"] == "1790003600"
    assert answer.headers.get_list("retry-after") == ["3600"]
    assert client.get("/?wait=86401").headers.get_list("retry-after") == ["86401"]


def test_a_window_begins_at_the_first_hit_as_in_slowapi():
    """2 a minute, first hit at second 50 of the clock's minute: the third passes 60 s later, not 10."""
    clock = Clock()
    clock.forward(30)  # the clock starts 20 s into a minute
    limiter = limiter_of(clock)
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("2/minute")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 3) == [200, 200, 429]
    clock.forward(59)
    assert statuses(client, "/", 1) == [429]
    clock.forward(1)
    assert statuses(client, "/", 3) == [200, 200, 429]


# ── switches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_enabled_can_be_switched_while_serving(app):
    """Off: nothing is charged and nothing refused."""
    limiter = attach(app, limiter_of(enabled=False))

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 2) == [200, 200]
    limiter.enabled = True
    assert statuses(client, "/", 2) == [200, 429]
    limiter.enabled = False
    assert statuses(client, "/", 1) == [200]


def test_without_auto_check_nothing_is_checked(app):
    """`auto_check=False`, as in slowapi."""
    limiter = attach(app, limiter_of(auto_check=False))

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 3) == [200] * 3


def test_a_key_prefix_keeps_two_apps_in_one_redis_apart(redis_server):
    """The prefix begins every key, and `reset` forgets no other app's counters."""
    apps = []
    for prefix in ("one", "two"):
        limiter = Limiter(by_user, storage_uri=redis_server.url, key_prefix=prefix, deadline_s=5)
        app = gated(FastAPI(), limiter)

        @app.get("/")
        @limiter.limit("1/hour")
        async def index():
            return {}

        apps.append(app)
    assert [statuses(client_of(app), "/", 2) for app in apps] == [[200, 429], [200, 429]]
    with redis_server.client() as client:
        assert sorted(key.split(b":")[0] for key in client.keys("*")) == [b"one", b"two"]
    asyncio.run(_reset(apps[0].state.limiter))
    assert [statuses(client_of(app), "/", 1) for app in apps] == [[200], [429]]


async def _reset(limiter):
    assert await limiter.reset() == 1


def test_slowapis_reset_without_await_works_in_memory(app):
    """Apps and their tests call `limiter.reset()` as they did with slowapi."""
    limiter = attach(app, limiter_of())

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 2) == [200, 429]
    limiter.reset()
    assert statuses(client, "/", 2) == [200, 429]

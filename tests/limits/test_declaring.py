"""What is refused before anything serves, and the names and settings that stay slowapi's."""

import pytest
from driving import by_user, client_of, gated, limiter_of, statuses
from fastapi import FastAPI, Request
from slowapi import Limiter as StockLimiter
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIASGIMiddleware, SlowAPIMiddleware

import service.limits
from service.errors import ConfigurationError, InvalidInput, InvalidLimit
from service.limits import Limiter
from service.limits.limit import Limit


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def app(request):
    """An app whose limiter the tests attach; with and without the middleware."""
    app = FastAPI()
    app.state.with_gate = request.param
    return app


def attach(app, limiter):
    app.state.limiter = limiter
    if app.state.with_gate:
        app.add_middleware(limiter.middleware)
    return limiter


# ── what is refused before anything serves ───────────────────────────────────────────────────────────────────────────

UNMEANT = [
    {"limit_value": "10/fortnight"},
    {"limit_value": "ten/minute"},
    {"limit_value": ""},
    {"limit_value": "0/minute"},
    {"limit_value": "10/minute;;5/hour"},
    {"limit_value": None},
    {"limit_value": 10},
    {"limit_value": "10/minute", "strategy": "leaky-bucket"},
    {"limit_value": "10/minute", "cost": -1},
    {"limit_value": "10/minute", "cost": 0},
    {"limit_value": "10/minute", "cost": 11},
    {"limit_value": "10/minute", "cost": 1.5},
    {"limit_value": "10/minute", "cost": True},
    {"limit_value": "10/minute", "cost": "1"},
    {"limit_value": "10/minute", "cost": float("nan")},
    {"limit_value": lambda: "10/minute", "cost": -1},
    {"limit_value": lambda: "10/minute", "cost": 1.5},
    {"limit_value": lambda: "10/minute", "strategy": "leaky-bucket"},
    {"limit_value": "10/minute", "burst": 5},
    {"limit_value": "10/minute", "burst": 0, "strategy": "gcra"},
    {"limit_value": "10/minute;5/hour", "name": "both"},
    {"limit_value": "10/minute", "key_func": "alice"},
]


@pytest.mark.parametrize("options", UNMEANT)
def test_a_limit_that_cannot_be_meant_is_refused_where_it_is_written(options):
    """slowapi logs and serves without a limit; here the import fails, with a sentence."""
    limiter = limiter_of()

    async def index():
        return {}

    with pytest.raises(ConfigurationError):
        limiter.limit(**options)(index)


def test_default_and_application_limits_are_read_when_the_limiter_is_made():
    """Not when the first request comes."""
    for option in ({"default_limits": ["10/fortnight"]}, {"application_limits": ["10/fortnight"]}):
        with pytest.raises(InvalidLimit, match="fortnight"):
            limiter_of(**option)


UNMEANT_LIMITERS = [
    {"strategy": "leaky-bucket", "default_limits": ["1/minute"]},
    {"strategy": "leaky-bucket"},
    {"on_outage": "panic"},
    {"deadline_s": 0},
    {"deadline_s": 61},
    {"deadline_s": float("nan")},
    {"storage_uri": "memcached://localhost"},
    {"storage_uri": "redis://localhost:notaport"},
    {"storage_uri": "localhost:6379"},
    {"key_func": None},
    {"key_func": "alice"},
]


@pytest.mark.parametrize("options", UNMEANT_LIMITERS)
def test_a_limiter_that_cannot_be_meant_is_refused(options):
    """Every argument is looked at when the limiter is made."""
    with pytest.raises(ConfigurationError):
        Limiter(**{"key_func": by_user, "storage_uri": "memory://", **options})


def test_a_class_or_a_value_is_not_to_be_decorated():
    """A limit goes on functions and methods that handle requests."""
    limiter = limiter_of()
    for thing in (type("Handler", (), {}), "index"):
        with pytest.raises(ConfigurationError, match="decorate the functions"):
            limiter.limit("1/minute")(thing)


UNMEANT_CHECKS = [
    ({"key": ""}, InvalidInput),
    ({"key": None}, InvalidInput),
    ({"cost": -1}, InvalidInput),
    ({"cost": 11}, InvalidInput),
    ({"cost": 1.5}, InvalidInput),
    ({"cost": True}, InvalidInput),
    ({"limits": "10/fortnight"}, InvalidLimit),
    ({"limits": ""}, InvalidLimit),
    ({"limits": []}, (InvalidInput, InvalidLimit)),
    ({"strategy": "leaky-bucket"}, InvalidLimit),
]


@pytest.mark.parametrize(("options", "error"), UNMEANT_CHECKS)
async def test_a_check_that_cannot_be_meant_charges_nothing(options, error):
    """The error names the field; a check on the same key afterwards finds the quota whole."""
    limiter = limiter_of()
    with pytest.raises(error):
        await limiter.check(**{"key": "alice", "limits": "10/minute", **options})
    assert (await limiter.check("alice", "10/minute", peek=True)).standings[0].remaining == 10


async def test_a_limit_given_twice_to_a_check_is_one_limit():
    """As in notation: a key is never charged twice by one check."""
    limiter = limiter_of()
    decision = await limiter.check("alice", [*Limit.parse("10/minute"), *Limit.parse("10/minute")])
    assert [(standing.limit.name, standing.remaining) for standing in decision.standings] == [("10/minute", 9)]


@pytest.mark.parametrize("how", ["start-up", "first request"])
def test_memory_is_refused_when_several_workers_would_each_count(monkeypatch, how):
    """4 workers in memory admit 4 × the limit: the app does not start, and says what to set."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    app = gated(FastAPI(), limiter_of(default_limits=["1/minute"]))
    client = client_of(app, raise_server_exceptions=True)
    with pytest.raises(ConfigurationError, match=r"4 workers .* set REDIS_URL"):
        if how == "start-up":
            client.__enter__()
        else:
            client.get("/")


@pytest.mark.parametrize("workers", ["1", ""])
def test_memory_is_fine_for_one_worker(monkeypatch, workers):
    """One worker counts exactly."""
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    with client_of(gated(FastAPI(), limiter_of(default_limits=["1/minute"]))) as client:
        assert statuses(client, "/", 2) == [404, 429]


def test_memory_with_several_workers_is_refused_without_the_middleware_too(monkeypatch):
    """The decorator alone would admit 4 × the limit just the same."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    limiter = limiter_of()
    app = FastAPI()
    app.state.limiter = limiter

    @app.get("/")
    @limiter.limit("1/minute")
    async def index():
        return {}

    with pytest.raises(ConfigurationError, match="4 workers"):
        client_of(app, raise_server_exceptions=True).get("/")


def test_the_store_is_the_argument_else_redis_url_else_memory(monkeypatch):
    """`storage_uri` wins over REDIS_URL, which wins over memory://."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert Limiter(by_user).storage_uri == "memory://"
    monkeypatch.setenv("REDIS_URL", "redis://redis.internal:6379/0")
    assert Limiter(by_user).storage_uri == "redis://redis.internal:6379/0"
    assert Limiter(by_user, storage_uri="fakeredis://").storage_uri == "fakeredis://"


# ── slowapi's names ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_a_slowapi_limiter_and_the_names_are_slowapis():
    """An app changes its imports and nothing else."""
    assert isinstance(limiter_of(), StockLimiter)
    assert service.limits.RateLimitExceeded is RateLimitExceeded
    for name in ("SlowAPIMiddleware", "SlowAPIASGIMiddleware", "get_remote_address", "get_ipaddr"):
        assert getattr(service.limits, name)
    assert service.limits._rate_limit_exceeded_handler


def test_slowapis_own_middleware_names_the_mend_instead_of_blocking_the_loop():
    """The stock class would check with a blocking client: it raises, and says what to import."""
    for stock in (SlowAPIMiddleware, SlowAPIASGIMiddleware):
        app = FastAPI()
        app.state.limiter = limiter_of(default_limits=["1/minute"])
        app.add_middleware(stock)

        @app.get("/")
        async def index():
            return {}

        with pytest.raises(ConfigurationError, match=r"service\.limits.*limiter\.middleware"):
            client_of(app, raise_server_exceptions=True).get("/")


@pytest.mark.parametrize("name", ["SlowAPIMiddleware", "SlowAPIASGIMiddleware"])
def test_the_middlewares_by_slowapis_names_take_the_apps_limiter(name):
    """`app.add_middleware(SlowAPIMiddleware)` with `app.state.limiter`."""
    app = FastAPI()
    app.state.limiter = limiter_of(default_limits=["1/minute"])
    app.add_middleware(getattr(service.limits, name))

    @app.get("/")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 2) == [200, 429]


def test_a_middleware_without_a_limiter_says_what_to_set():
    """slowapi dies with an AttributeError deep in Starlette."""
    app = FastAPI()
    app.add_middleware(service.limits.SlowAPIMiddleware)
    with pytest.raises(ConfigurationError, match=r"app\.state\.limiter"):
        client_of(app, raise_server_exceptions=True).get("/")


def test_adding_both_middlewares_charges_once():
    """Somebody's app has slowapi's name and ours: a request is charged once."""
    app = gated(FastAPI(), limiter_of(default_limits=["2/minute"]))
    app.add_middleware(service.limits.SlowAPIMiddleware)

    @app.get("/")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 3) == [200, 200, 429]


def test_two_limiters_in_one_app_count_for_themselves():
    """Each middleware carries out its own limiter's limits; the route is refused by whichever is exhausted."""
    app = FastAPI()
    strict, lax = limiter_of(key_prefix="strict"), limiter_of(key_prefix="lax")
    app.add_middleware(strict.middleware)
    app.add_middleware(lax.middleware)

    @app.get("/")
    @strict.limit("2/hour")
    @lax.limit("3/hour")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 4) == [200, 200, 429, 429]


def test_the_request_state_carries_slowapis_record(app):
    """`request.state.view_rate_limit`: (item, [key, scope]), as handlers of slowapi apps read it."""
    limiter = attach(app, limiter_of())
    seen = []

    @app.get("/")
    @limiter.limit("2 per 5 minutes")
    async def index(request: Request):
        seen.append(request.state.view_rate_limit)

    client_of(app).get("/")
    item, args = seen[0]
    assert str(item) == "2 per 5 minute"
    assert len(args) == 2
    assert "alice" in args[0]


def test_request_filters_let_requests_by(app):
    """slowapi's private list, which apps fill: a function that answers true means nothing is charged."""
    limiter = attach(app, limiter_of())
    limiter._request_filters.append(lambda: True)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 3) == [200] * 3


def test_settings_come_from_slowapis_environment(monkeypatch):
    """RATELIMIT_DEFAULT, RATELIMIT_HEADERS_ENABLED and RATELIMIT_STRATEGY are read as by slowapi."""
    monkeypatch.setenv("RATELIMIT_DEFAULT", "1/hour")
    monkeypatch.setenv("RATELIMIT_STRATEGY", "moving-window")
    monkeypatch.setenv("RATELIMIT_HEADERS_ENABLED", "true")
    monkeypatch.setenv("RATELIMIT_HEADER_LIMIT", "X-Quota")
    app = gated(FastAPI(), limiter_of())

    @app.get("/")
    async def index():
        return {}

    client = client_of(app)
    answer = client.get("/")
    assert answer.headers["x-quota"] == "1"
    assert statuses(client, "/", 1) == [429]
    assert app.state.limiter.strategy == "moving-window"

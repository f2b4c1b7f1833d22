"""The stock slowapi 0.1.10 beside ours, one test for each row of the table of what is mended.

Each test asserts what the stock package does, as a fact, and then what ours does with the same application. When a new
slowapi mends a row, its test fails on the stock side and says so.
"""

import asyncio
import inspect
import logging
import threading
import time
import warnings

import pytest
import slowapi
import slowapi.middleware
import slowapi.util
from driving import Wire, by_user, client_of, statuses
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from servers import RedisServer
from starlette.routing import Mount, Route, Router

import service.limits
from service.errors import ConfigurationError, NoIdentity

GONE = "redis://127.0.0.1:1/0"


class Stock:
    """slowapi as it comes from PyPI."""

    name = "stock"
    get_ipaddr = staticmethod(slowapi.util.get_ipaddr)

    @staticmethod
    def limiter(uri="memory://", **options):
        if uri.startswith("unix://"):
            uri = f"redis+{uri}"
        return slowapi.Limiter(options.pop("key_func", by_user_named_request), storage_uri=uri, **options)

    @staticmethod
    def app(limiter, asgi=False):
        app = FastAPI()
        app.state.limiter = limiter
        app.add_exception_handler(slowapi.errors.RateLimitExceeded, slowapi._rate_limit_exceeded_handler)
        if asgi is not None:
            kind = slowapi.middleware.SlowAPIASGIMiddleware if asgi else slowapi.middleware.SlowAPIMiddleware
            app.add_middleware(kind)
        return app


class Ours:
    """The same names from this package."""

    name = "ours"
    get_ipaddr = staticmethod(service.limits.get_ipaddr)

    @staticmethod
    def limiter(uri="memory://", **options):
        return service.limits.Limiter(options.pop("key_func", by_user_named_request), storage_uri=uri, **options)

    @staticmethod
    def app(limiter, asgi=False):
        app = FastAPI()
        app.state.limiter = limiter
        app.add_exception_handler(service.limits.RateLimitExceeded, service.limits._rate_limit_exceeded_handler)
        if asgi is not None:
            app.add_middleware(service.limits.SlowAPIASGIMiddleware if asgi else service.limits.SlowAPIMiddleware)
        return app


def by_user_named_request(request):
    """slowapi passes the request only to a parameter of that name."""
    return by_user(request)


BOTH = pytest.mark.parametrize("package", [Stock, Ours], ids=lambda package: package.name)


@pytest.fixture(autouse=True)
def _stock_warns():
    """slowapi asks asyncio.iscoroutinefunction, which is deprecated in newer Pythons."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="slowapi")
        yield


@pytest.fixture
def own_redis():
    """A server that the test may pause."""
    server = RedisServer()
    yield server
    server.close()


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.impatient
@BOTH
async def test_row_1_a_paused_redis_freezes_the_loop(package, own_redis):
    """Stock: an unrelated route answers when Redis does, half a second later. Ours does not notice."""
    limiter = package.limiter(own_redis.url, **({"on_outage": "deny"} if package is Ours else {}))
    app = package.app(limiter, asgi=None)

    @app.get("/limited")
    @limiter.limit("100/hour")
    async def limited(request: Request):
        return {}

    @app.get("/free")
    async def free():
        return {}

    assert (await Wire(app, "/limited").run()).status == 200
    with own_redis.client() as client:
        client.client_pause(500)
    begin = time.perf_counter()
    waiting = asyncio.create_task(Wire(app, "/limited").run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await Wire(app, "/free").run()).status == 200
    seconds = time.perf_counter() - begin
    assert (await waiting).status == (200 if package is Stock else 503)
    if package is Stock:
        assert seconds > 0.4
    else:
        assert seconds < 0.1
        await limiter.aclose()


def round_trips(redis_server, ask):
    """How many commands clients sent while `ask()` ran, as MONITOR shows them: what scripts call is not counted."""
    seen = []
    with redis_server.client() as client, client.monitor() as monitor:
        done = threading.Event()

        def watch():
            for command in monitor.listen():
                if "end-of-test" in command["command"]:
                    done.set()
                    return
                if command["client_type"] != "lua":
                    seen.append(command["command"])

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        ask()
        with redis_server.client() as marker:
            marker.execute_command("PING", "end-of-test")
        assert done.wait(5)
        watching.join()
    noise = ("CLIENT", "HELLO", "SELECT", "AUTH", "SCRIPT LOAD")
    return [command for command in seen if not command.upper().startswith(noise)]


@BOTH
@pytest.mark.parametrize(("decorators", "stock_trips"), [(1, 3), (3, 9)])
def test_row_2_round_trips_of_a_request(package, decorators, stock_trips, redis_server):
    """Stock: with headers on 3 a limit (hit, and two for the statistics), 9 for three stacked decorators. Ours: 1."""
    options = {} if package is Stock else {"deadline_s": 5}
    limiter = package.limiter(redis_server.url, headers_enabled=True, **options)
    app = package.app(limiter, asgi=None)

    async def index(request: Request, response: Response):
        return {}

    for number in range(decorators):
        index = limiter.limit(f"{100 + number}/hour")(index)
    app.get("/")(index)
    with client_of(app) as client:
        client.get("/")  # loads the scripts
        trips = round_trips(redis_server, lambda: client.get("/"))
    assert len(trips) == (stock_trips if package is Stock else 1), trips


@BOTH
def test_row_3_several_limits_are_charged_one_by_one(package, redis_server):
    """`10/hour;2/minute` × 6. Stock: 2 accepted, and the hour is charged 6. Ours: 2 accepted, 2 charged."""
    options = {} if package is Stock else {"deadline_s": 5}
    limiter = package.limiter(redis_server.url, **options)
    app = package.app(limiter, asgi=None)

    @app.get("/")
    @limiter.limit("10/hour;2/minute")
    async def index(request: Request):
        return {}

    assert statuses(client_of(app), "/", 6) == [200, 200, 429, 429, 429, 429]
    with redis_server.client() as redis:
        hour = [key for key in redis.keys("*") if b"hour" in key or b"3600s" in key]
        spent = redis.get(hour[0]) if redis.type(hour[0]) == b"string" else redis.hvals(hour[0])[0]
    assert len(hour) == 1
    if package is Stock:
        assert int(spent) == 6
    else:
        assert asyncio.run(remaining(limiter, app)) == 8


async def remaining(limiter, app):
    """What the hour has left, read off a refused request."""
    wire = await Wire(app, "/").run()
    await limiter.aclose()
    return int(wire.headers["ratelimit"].split('"10/hour";r=')[1].split(";")[0])


@BOTH
@pytest.mark.parametrize("options", [{}, {"swallow_errors": True}], ids=["default", "swallow_errors"])
@pytest.mark.parametrize(("on_outage", "status"), [("local", 200), ("deny", 503)])
def test_row_7_redis_down(package, options, on_outage, status):
    """Stock: 500, also with swallow_errors, which then trips over its own header injection. Ours: its share, or 503."""
    ours = {} if package is Stock else {"on_outage": on_outage}
    limiter = package.limiter(GONE, headers_enabled=True, **options, **ours)
    app = package.app(limiter, asgi=None)

    @app.get("/")
    @limiter.limit("10/hour")
    async def index(request: Request, response: Response):
        return {}

    begin = time.perf_counter()
    assert client_of(app).get("/").status_code == (500 if package is Stock else status)
    if package is Ours:
        assert time.perf_counter() - begin < 0.5


@BOTH
def test_row_8_four_workers_in_memory_admit_four_times_the_limit(package, monkeypatch):
    """Stock: each worker's fallback counts for itself, 8 of 2 pass. Ours: memory:// is refused for 4 workers."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    workers = []
    for _ in range(4):
        limiter = package.limiter("memory://")
        app = package.app(limiter, asgi=None)

        @app.get("/")
        @limiter.limit("2/hour")
        async def index(request: Request):
            return {}

        workers.append(client_of(app, raise_server_exceptions=True))
    if package is Stock:
        assert sum(statuses(worker, "/", 4).count(200) for worker in workers) == 8
    else:
        with pytest.raises(ConfigurationError, match="4 workers"):
            workers[0].get("/")


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("asgi", [False, True], ids=["SlowAPIMiddleware", "SlowAPIASGIMiddleware"])
@pytest.mark.parametrize("path", ["/included/a", "/mounted/a", "/nowhere"])
def test_row_4_routes_the_middlewares_ignore(package, asgi, path):
    """Stock on FastAPI >= 0.137: default limits never reach included routers, mounts and 404s. Ours: they do."""
    app = package.app(package.limiter(default_limits=["2/hour"]), asgi)
    router = APIRouter(prefix="/included")

    @router.get("/a")
    async def included():
        return {}

    async def mounted(request):
        return Response()

    app.include_router(router)
    app.router.routes.append(Mount("/mounted", Router([Route("/a", mounted)])))
    ok = 404 if path == "/nowhere" else 200
    assert statuses(client_of(app), path, 4) == [ok, ok, *([ok, ok] if package is Stock else [429, 429])]


@BOTH
async def test_row_5_streaming_through_the_asgi_middleware(package):
    """Stock sends http.response.start again before each piece, which servers refuse. Ours sends it once."""
    app = package.app(package.limiter(default_limits=["9/hour"]), asgi=True)

    @app.get("/")
    async def index():
        return StreamingResponse(iter([b"a", b"b", b"c"]))

    wire = await Wire(app, "/").run()
    starts = [message["type"] for message in wire.sent].count("http.response.start")
    assert starts == (4 if package is Stock else 1)


@BOTH
def test_row_9_a_value_returned_without_a_response_parameter(package):
    """Stock with headers on: 500, after the endpoint ran. Ours: 200, with headers."""
    limiter = package.limiter(headers_enabled=True)
    app = package.app(limiter, asgi=None)
    ran = []

    @app.get("/")
    @limiter.limit("9/hour")
    async def index(request: Request):
        ran.append(1)
        return {}

    answer = client_of(app).get("/")
    assert ran == [1]
    assert answer.status_code == (500 if package is Stock else 200)
    if package is Ours:
        assert answer.headers["x-ratelimit-remaining"] == "8"


@BOTH
def test_row_10_a_request_parameter_is_compulsory(package):
    """Stock raises at the decorator. Ours hands itself what it needs."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    async def index():
        return {}

    if package is Stock:
        with pytest.raises(Exception, match='No "request" or "websocket" argument'):
            limiter.limit("1/hour")(index)
        return
    app.get("/")(limiter.limit("1/hour")(index))
    assert statuses(client_of(app), "/", 2) == [200, 429]


@BOTH
def test_row_10_methods(package):
    """A handler object's method. Stock raises at the decorator: `self` is no request. Ours limits it."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    def make():
        class Chat:
            @limiter.limit("1/hour")
            async def send(self, text: str = ""):
                return {}

        return Chat()

    if package is Stock:
        with pytest.raises(Exception, match='No "request" or "websocket" argument'):
            make()
        return
    app.get("/")(make().send)
    assert statuses(client_of(app), "/", 2) == [200, 429]


@BOTH
def test_row_10_dependencies(package):
    """Stock: a decorated dependency works only with a request parameter; there is no quota. Ours: `Depends`."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)
    if package is Stock:
        assert not hasattr(limiter, "quota")
        return

    @app.get("/", dependencies=[Depends(limiter.quota("1/hour"))])
    async def index():
        return {}

    assert statuses(client_of(app), "/", 2) == [200, 429]


@BOTH
def test_row_10_websockets(package):
    """Stock takes the declaration and fails every connection. Ours greets, and refuses the second."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    @app.websocket("/ws")
    @limiter.limit("1/hour")
    async def greet(websocket: WebSocket):
        await websocket.accept()
        await websocket.close()

    client = client_of(app, raise_server_exceptions=True)

    def join():
        with client.websocket_connect("/ws"):
            return "joined"

    if package is Stock:
        with pytest.raises(Exception, match=r"must be an instance of starlette\.requests\.Request"):
            join()
    else:
        assert join() == "joined"
        with pytest.raises(Exception) as refused:
            join()
        assert type(refused.value).__name__ in ("WebSocketDisconnect", "WebSocketDenialResponse")


# ── what is silently no limit ────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_row_11_an_empty_key(package):
    """Stock: no limit for whoever has no key. Ours: 400, and the endpoint does not run."""
    limiter = package.limiter(key_func=lambda request: "")
    app = package.app(limiter, asgi=None)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index(request: Request):
        return {}

    assert statuses(client_of(app), "/", 3) == [200 if package is Stock else 400] * 3
    assert issubclass(NoIdentity, ValueError)


@BOTH
def test_row_11_an_unreadable_limit(package, caplog):
    """Stock: a line in the log, and no limit. Ours: the import fails."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    async def index(request: Request):
        return {}

    if package is Stock:
        with caplog.at_level(logging.ERROR):
            app.get("/")(limiter.limit("1/fortnight")(index))
        assert "Failed to configure throttling" in caplog.text
        assert statuses(client_of(app), "/", 3) == [200] * 3
    else:
        with pytest.raises(ConfigurationError, match="fortnight"):
            limiter.limit("1/fortnight")(index)


@BOTH
def test_row_11_reversed_decorators(package):
    """Stock: no limit, with and without the middleware. Ours: the app does not start."""
    limiter = package.limiter()
    app = package.app(limiter)

    @limiter.limit("1/hour")
    @app.get("/")
    async def index(request: Request):
        return {}

    client = client_of(app, raise_server_exceptions=True)
    if package is Stock:
        assert statuses(client, "/", 3) == [200] * 3
    else:
        with pytest.raises(ConfigurationError, match="above the route decorator"):
            client.__enter__()


# ── counters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_row_12_functions_of_the_same_name(package):
    """Two `def read` in one module. Stock: each is charged both limits, the laxer one is refused at 1. Ours: 3."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    def make(path, text):
        @app.get(path)
        @limiter.limit(text)
        async def read(request: Request):
            return {}

    make("/strict", "1/hour")
    make("/lax", "3/hour")
    lax = statuses(client_of(app), "/lax", 4)
    assert lax == ([200, 429, 429, 429] if package is Stock else [200, 200, 200, 429])


@BOTH
def test_an_enumeration_of_paths(package):
    """/users/{id}. Stock: each id has a quota of its own, a scan is never refused. Ours: the template has one."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    @app.get("/users/{id}")
    @limiter.limit("2/hour")
    async def user(request: Request, id: int):
        return {}

    got = [client_of(app).get(f"/users/{n}").status_code for n in range(4)]
    assert got == ([200] * 4 if package is Stock else [200, 200, 429, 429])


@BOTH
def test_row_13_invalid_requests(package):
    """Stock: 422s are free, so a client may try for ever. Ours, with the middleware before: charged."""
    limiter = package.limiter()
    app = package.app(limiter)

    @app.post("/")
    @limiter.limit("2/hour")
    async def index(request: Request, body: dict[str, int]):
        return {}

    client = client_of(app)
    got = [client.post("/", json="no dictionary").status_code for _ in range(4)]
    assert got == [422, 422, *([422, 422] if package is Stock else [429, 429])]


@BOTH
def test_row_14_get_ipaddr_believes_the_client(package):
    """Stock: a header with underscores, new on each request, is a new identity. Ours: the peer's address."""
    limiter = package.limiter(key_func=package.get_ipaddr)
    app = package.app(limiter, asgi=None)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index(request: Request):
        return {}

    client = client_of(app, client=("203.0.113.7", 1))
    got = [client.get("/", headers={"X_FORWARDED_FOR": f"1.1.1.{n}"}).status_code for n in range(3)]
    assert got == ([200, 200, 200] if package is Stock else [200, 429, 429])


@BOTH
def test_row_15_a_negative_cost_refunds(package):
    """1 allowed. Stock: a request that costs -5 buys five more. Ours: it is refused as unmeant, 422."""
    limiter = package.limiter()
    app = package.app(limiter, asgi=None)

    @app.get("/")
    @limiter.limit("1/hour", cost=lambda request: int(request.headers.get("x-cost", "1")))
    async def index(request: Request):
        return {}

    client = client_of(app)
    got = [client.get("/", headers={"x-cost": cost}).status_code for cost in ("-5", "1", "1", "1")]
    assert got == ([200, 200, 200, 200] if package is Stock else [422, 200, 429, 429])


@BOTH
def test_row_15_a_float_cost(package, redis_server):
    """Tokens estimated as 2.5. Stock on Redis: 500. Ours: rounded up to 3."""
    options = {} if package is Stock else {"deadline_s": 5}
    limiter = package.limiter(redis_server.url, **options)
    app = package.app(limiter, asgi=None)

    @app.get("/")
    @limiter.limit("10/hour", cost=lambda request: 2.5)
    async def index(request: Request):
        return {}

    answer = client_of(app).get("/")
    assert answer.status_code == (500 if package is Stock else 200)
    if package is Ours:
        assert answer.headers["ratelimit"].startswith('"10/hour";r=7;')


# ── what stays ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_arguments_are_slowapis_in_slowapis_order():
    """Whatever an app passes, by place or by name, means the same."""
    for method in ("__init__", "limit", "shared_limit", "exempt"):
        stock = list(inspect.signature(getattr(slowapi.Limiter, method)).parameters)
        ours = list(inspect.signature(getattr(service.limits.Limiter, method)).parameters)
        assert ours[: len(stock)] == stock


@BOTH
def test_an_app_of_slowapis_manual_does_the_same_with_both(package):
    """Its quick start: default limits, a decorator, a shared limit, an exempt route, slowapi's handler."""
    limiter = package.limiter(default_limits=["3/minute"], headers_enabled=True)
    app = package.app(limiter)
    shared = limiter.shared_limit("1/minute", scope="shared")

    @app.get("/default")
    async def default():
        return {}

    @app.get("/home")
    @limiter.limit("2/minute")
    async def homepage(request: Request, response: Response):
        response.headers["x-own"] = "1"
        return {"key": "value"}

    @app.get("/one")
    @shared
    async def one(request: Request, response: Response):
        return {}

    @app.get("/two")
    @shared
    def two(request: Request, response: Response):
        return {}

    @app.get("/free")
    @limiter.exempt
    async def free(request: Request):
        return {}

    client = client_of(app)
    assert statuses(client, "/default", 4) == [200, 200, 200, 429]
    answer = client.get("/home")
    assert (answer.json(), answer.headers["x-own"]) == ({"key": "value"}, "1")
    assert (answer.headers["x-ratelimit-limit"], answer.headers["x-ratelimit-remaining"]) == ("2", "1")
    assert 58 <= int(answer.headers["retry-after"]) <= 60
    assert 58 <= float(answer.headers["x-ratelimit-reset"]) - time.time() <= 62
    assert statuses(client, "/home", 2) == [200, 429]
    assert client.get("/home").json() == {"error": "Rate limit exceeded: 2 per 1 minute"}
    assert client.get("/home").headers["x-ratelimit-remaining"] == "0"
    assert [client.get(path).status_code for path in ("/one", "/two")] == [200, 429]
    assert statuses(client, "/free", 5) == [200] * 5
    limiter.reset()
    assert statuses(client, "/home", 1) == [200]

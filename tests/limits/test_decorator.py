"""The decorated function stays what it was: its parameters, its kind, its errors. Misplaced, it does not serve."""

import functools
import inspect
import threading
from typing import Annotated

import pytest
from driving import by_user, client_of, gated, limiter_of, statuses
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import HTTPConnection
from starlette.routing import Route

from service.errors import ConfigurationError


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def with_gate(request):
    """With the middleware, or the decorator alone."""
    return request.param


@pytest.fixture
def limiter():
    return limiter_of(headers_enabled=True)


@pytest.fixture
def app(limiter, with_gate):
    app = FastAPI()
    app.state.limiter = limiter
    return gated(app, limiter) if with_gate else app


# ── parameters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_parameter_is_compulsory(app, limiter):
    """Nor a `request` nor a `response`: sync and async, with headers on, returning values of any kind."""

    @app.get("/dict")
    @limiter.limit("1/hour")
    async def of_dict():
        return {"a": 1}

    @app.get("/none")
    @limiter.limit("1/hour")
    def of_none():
        return None

    @app.get("/list")
    @limiter.limit("1/hour")
    def of_list(n: int = 2):
        return list(range(n))

    client = client_of(app)
    for path, body in (("/dict", {"a": 1}), ("/none", None), ("/list?n=3", [0, 1, 2])):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, body)
        assert answer.headers["x-ratelimit-remaining"] == "0"
        assert client.get(path).status_code == 429


def test_an_endpoint_keeps_its_own_request_and_response(app, limiter):
    """slowapi's users have both; headers the endpoint sets, and its status, reach the client."""

    @app.get("/")
    @limiter.limit("1/hour")
    async def index(request: Request, response: Response):
        response.headers["x-own"] = request.headers["x-user"]
        response.status_code = 202
        return {"a": 1}

    answer = client_of(app).get("/", headers={"x-user": "bob"})
    assert (answer.status_code, answer.headers["x-own"], answer.json()) == (202, "bob", {"a": 1})
    assert answer.headers["x-ratelimit-remaining"] == "0"


def test_an_endpoint_may_write_its_response_parameter_in_any_way(app, limiter):
    """Subclasses and Annotated ones are the response to FastAPI, and so they are to the limiter."""

    @app.get("/subclass")
    @limiter.limit("1/hour")
    async def subclass(response: PlainTextResponse):
        response.headers["x-own"] = "1"

    @app.get("/annotated")
    @limiter.limit("1/hour")
    async def annotated(response: Annotated[Response, "the answer"], request: "Request"):
        response.headers["x-own"] = "1"

    client = client_of(app)
    for path in ("/subclass", "/annotated"):
        answer = client.get(path)
        assert (answer.headers.get("x-own"), answer.headers.get("x-ratelimit-remaining")) == ("1", "0"), path


def test_an_endpoint_may_take_the_connection_by_any_name(app, limiter):
    """What the limiter needs is handed to it beside the endpoint's own parameters."""

    @app.get("/")
    @limiter.limit("1/hour")
    async def index(conn: HTTPConnection, req: Request, res: Response):
        res.headers["x-path"] = conn.url.path + req.url.path
        return {}

    assert client_of(app).get("/").headers["x-path"] == "//"


def test_validation_dependencies_and_openapi_see_only_the_endpoints_parameters(app, limiter):
    """The documentation shows no parameter of ours, and the endpoint gets none."""
    got = {}

    def somebody(request: Request):
        return by_user(request)

    @app.get("/items/{item}")
    @limiter.limit("9/hour")
    async def read(item: int, q: str = "x", user: str = Depends(somebody), **more):
        got.update(more, item=item, q=q, user=user)

    plain = FastAPI()

    @plain.get("/items/{item}")
    async def read_plain(item: int, q: str = "x", user: str = Depends(somebody), **more): ...

    client = client_of(app)
    assert client.get("/items/x?more=1").status_code == 422
    assert client.get("/items/7?q=y&more=1").status_code == 200
    assert (got["item"], got["q"], got["user"]) == (7, "y", "alice")
    assert not any("onequota" in name for name in got)
    ours = app.openapi()["paths"]["/items/{item}"]["get"]["parameters"]
    assert ours == plain.openapi()["paths"]["/items/{item}"]["get"]["parameters"]


def test_the_wrapper_carries_the_functions_name_doc_and_original(limiter):
    """Tools that read `__name__`, `__doc__` and `__wrapped__` find what was written."""

    @limiter.limit("1/hour")
    async def index():
        """Says hello."""

    assert (index.__name__, index.__doc__) == ("index", "Says hello.")
    assert inspect.iscoroutinefunction(inspect.unwrap(index))


async def test_called_without_a_request_it_says_so(limiter):
    """A decorated endpoint called as a plain function: nobody could be charged, and `__wrapped__` runs it."""

    @limiter.limit("1/hour")
    async def index():
        return 7

    with pytest.raises(ConfigurationError, match="without a request"):
        await index()
    assert await index.__wrapped__() == 7


def test_other_decorators_between_and_around_do_not_matter(app, limiter):
    """As long as they use functools.wraps; the limit still belongs to the innermost function."""

    def tracing(func):
        @functools.wraps(func)
        async def traced(*args, **kwargs):
            return await func(*args, **kwargs)

        return traced

    @app.get("/below")
    @limiter.limit("1/hour")
    @tracing
    async def below():
        return {}

    @app.get("/above")
    @tracing
    @limiter.limit("1/hour")
    async def above():
        return {}

    @app.get("/between")
    @limiter.limit("1/hour")
    @tracing
    @limiter.limit("5/day", override_defaults=False)
    async def between():
        return {}

    client = client_of(app)
    for path in ("/below", "/above", "/between"):
        assert statuses(client, path, 2) == [200, 429], path
    answer = client.get("/between")
    assert answer.headers["ratelimit-policy"].count(";q=") == 2


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sync_endpoint_runs_in_a_thread_and_the_check_on_the_loop(app, limiter):
    """A blocking endpoint blocks nobody, and the store is asked without a thread."""
    threads = {}
    decide = limiter.engine.decide

    def seen(ask):
        threads["check"] = threading.get_ident()
        return decide(ask)

    limiter.engine.decide = seen

    @app.get("/")
    @limiter.limit("1/hour")
    def index():
        threads["endpoint"] = threading.get_ident()
        return {}

    @app.get("/loop")
    async def loop():
        threads["loop"] = threading.get_ident()

    with client_of(app) as client:
        assert statuses(client, "/", 2) == [200, 429]
        client.get("/loop")
    assert threads["check"] == threads["loop"] != threads["endpoint"]


def test_methods_of_an_object_can_be_decorated(app, limiter):
    """slowapi refuses them; a bound method counts for its function."""

    class Chat:
        @limiter.limit("1/hour")
        async def send(self, text: str):
            return text

    app.get("/send")(Chat().send)
    client = client_of(app)
    assert statuses(client, "/send?text=hi", 2) == [200, 429]


def test_a_callable_object_can_be_decorated(app, limiter):
    """`limiter.limit(...)(Handler())` on an object with `__call__`."""

    class Handler:
        async def __call__(self, text: str):
            return text

    app.get("/")(limiter.limit("1/hour")(Handler()))
    assert statuses(client_of(app), "/?text=hi", 2) == [200, 429]


def test_a_partial_can_be_decorated(app, limiter):
    """A function with an argument filled in, as factories of routes make them."""

    async def greet(greeting: str, name: str = "you"):
        return f"{greeting} {name}"

    app.get("/hi")(limiter.limit("1/hour")(functools.partial(greet, greeting="hi")))
    client = client_of(app)
    assert client.get("/hi").json() == "hi you"
    assert client.get("/hi").status_code == 429


def test_class_based_views_are_limited_method_by_method(limiter, with_gate):
    """Starlette's HTTPEndpoint: GET and POST have limits of their own."""

    class Items(HTTPEndpoint):
        @limiter.limit("1/hour")
        async def get(self, request):
            return PlainTextResponse("got")

        @limiter.limit("2/hour")
        def post(self, request):
            return PlainTextResponse("made")

        async def delete(self, request):
            return PlainTextResponse("gone")

    app = Starlette(routes=[Route("/", Items)])
    app.state.limiter = limiter
    if with_gate:
        gated(app, limiter)
    client = client_of(app)
    asked = ["GET", "GET", "HEAD", "POST", "POST", "POST", "DELETE", "DELETE"]
    assert [client.request(method, "/").status_code for method in asked] == [200, 429, 429, 200, 200, 429, 200, 200]


def test_starlettes_own_routes_are_limited(limiter, with_gate):
    """async and sync; on a response the endpoint made itself the headers stand too."""

    @limiter.limit("1/hour")
    async def one(request):
        return PlainTextResponse("one")

    @limiter.limit("1/hour")
    def two(request):
        return PlainTextResponse("two")

    app = Starlette(routes=[Route("/one", one), Route("/two", two)])
    app.state.limiter = limiter
    if with_gate:
        gated(app, limiter)
    client = client_of(app)
    for path in ("/one", "/two"):
        answer = client.get(path)
        assert (answer.text, answer.headers["x-ratelimit-remaining"]) == (path[1:], "0")
        assert client.get(path).status_code == 429


def test_a_function_on_two_routes_has_a_quota_on_each(app, limiter):
    """The counter belongs to the route template and the function; `shared_limit` is for one in common."""

    @app.get("/v1/items")
    @app.get("/v2/items")
    @limiter.limit("1/hour")
    async def items():
        return {}

    client = client_of(app)
    assert [client.get(p).status_code for p in ("/v1/items", "/v2/items", "/v1/items")] == [200, 200, 429]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_functions_of_the_same_name_do_not_share_limits(app, limiter):
    """slowapi keys on `module.name`: two `def read` in one module refuse each other's callers."""

    def make(path, text):
        router = APIRouter(prefix=path)

        @router.get("")
        @limiter.limit(text)
        async def read():
            return {}

        app.include_router(router)

    make("/a", "1/hour")
    make("/b", "2/hour")
    make("/c", "3/hour")
    client = client_of(app)
    assert statuses(client, "/a", 2) == [200, 429]
    assert statuses(client, "/b", 3) == [200, 200, 429]
    assert statuses(client, "/c", 4) == [200, 200, 200, 429]


def test_exempting_one_function_exempts_no_namesake(limiter):
    """slowapi exempts every function of that name in the module."""
    app = gated(FastAPI(), limiter_of(default_limits=["1/hour"]))
    exempt = app.state.limiter.exempt

    def make(path, decorate):
        @app.get(path)
        @decorate
        async def read():
            return {}

    make("/free", exempt)
    make("/limited", lambda func: func)
    client = client_of(app)
    assert statuses(client, "/free", 2) == [200, 200]
    assert statuses(client, "/limited", 2) == [200, 429]


def test_keys_are_the_same_in_every_worker():
    """Two processes that run the same code spell the same keys: no `id()`, no order of requests in them."""
    spelt = []
    for order in (["/a", "/b"], ["/b", "/a"]):
        limiter = limiter_of()
        app = gated(FastAPI(), limiter)

        def make(path, app=app, limiter=limiter):
            @app.get(path)
            @limiter.limit("1/hour")
            async def read():
                return {}

        make("/a")
        make("/b")
        client = client_of(app)
        for path in order:
            client.get(path)
        spelt.append(set(limiter.engine.open_store()._kept))
    assert spelt[0] == spelt[1]
    assert len(spelt[0]) == 2


# ── order of decorators ──────────────────────────────────────────────────────────────────────────────────────────────


def reversed_order(kind, limiter):
    app = FastAPI()
    if kind == "included":
        router = APIRouter()

        @limiter.limit("1/hour")
        @router.get("/")
        async def index():
            return {}

        app.include_router(router)
    elif kind == "mounted":
        sub = FastAPI()

        @limiter.limit("1/hour")
        @sub.get("/")
        async def index():
            return {}

        app.mount("/sub", sub)
    elif kind == "websocket":

        @limiter.limit("1/hour")
        @app.websocket("/ws")
        async def index(websocket): ...
    else:

        @limiter.limit("1/hour")
        @app.get("/")
        async def index():
            return {}

    return gated(app, limiter)


@pytest.mark.parametrize("kind", ["route", "included", "mounted", "websocket"])
@pytest.mark.parametrize("how", ["start-up", "first request"])
def test_a_limit_above_the_route_decorator_is_refused(kind, how):
    """The route would never see it: slowapi serves without a limit, here the app does not start."""
    client = client_of(reversed_order(kind, limiter_of()), raise_server_exceptions=True)
    for _ in range(3):  # whoever tries again is told again
        with pytest.raises(ConfigurationError, match="above the route decorator"):
            if how == "start-up":
                client.__enter__()
            else:
                client.get("/anything")


def test_shared_limits_in_reversed_order_are_refused_too():
    """Every decorator of the limiter."""
    limiter = limiter_of()
    app = gated(FastAPI(), limiter)

    @limiter.shared_limit("1/hour", scope="s")
    @app.get("/")
    async def index():
        return {}

    with pytest.raises(ConfigurationError, match="above the route decorator"):
        client_of(app, raise_server_exceptions=True).get("/")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_http_exception_of_the_endpoint_carries_the_headers(app, limiter):
    """Beside its own; body and status are the app's."""

    @app.get("/")
    @limiter.limit("5/hour")
    async def index():
        raise HTTPException(404, "no such thing", {"x-own": "1"})

    answer = client_of(app).get("/")
    assert (answer.status_code, answer.json()) == (404, {"detail": "no such thing"})
    assert answer.headers["x-own"] == "1"
    assert answer.headers["x-ratelimit-remaining"] == "4"


def test_a_raised_http_exception_is_not_changed(app, limiter):
    """Apps raise constants: one caller's standing must not stand on another's answer, or on another route's."""
    missing = HTTPException(404, "no such thing")

    @app.get("/limited")
    @limiter.limit("5/hour")
    async def limited():
        raise missing

    @app.get("/free")
    @limiter.exempt
    async def free():
        raise missing

    client = client_of(app)
    for _ in range(2):
        answer = client.get("/limited")
    assert answer.headers.get_list("ratelimit") == ['"5/hour";r=3;t=3600']
    assert "ratelimit" not in client.get("/free").headers
    assert missing.headers is None


def test_a_refused_request_never_reaches_the_endpoint(app, limiter):
    """Neither it nor what it would have changed."""
    ran = []

    @app.get("/")
    @limiter.limit("1/hour")
    def index():
        ran.append(1)

    client = client_of(app)
    assert statuses(client, "/", 3) == [200, 429, 429]
    assert ran == [1]

"""Every way a route can be declared is covered, each template is one quota, and streams pass piece by piece."""

import asyncio

import pytest
from driving import Wire, client_of, gated, limiter_of, statuses
from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles


def ok():
    """An endpoint; each call makes another one."""

    async def endpoint():
        return {}

    return endpoint


def plain():
    """One as Starlette calls it."""

    async def endpoint(request):
        return PlainTextResponse("ok")

    return endpoint


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("with_gate", [True, False], ids=["gate", "no-gate"])
def test_a_template_is_one_quota_whatever_the_path(with_gate):
    """slowapi's default gives every /users/{id} a quota of its own: an enumeration is never refused."""
    limiter = limiter_of()
    app = FastAPI()
    app.state.limiter = limiter
    if with_gate:
        gated(app, limiter)
    app.get("/users/{id}")(limiter.limit("2/hour")(ok()))
    client = client_of(app)
    assert [client.get(f"/users/{n}").status_code for n in range(4)] == [200, 200, 429, 429]


def test_a_template_in_an_included_router_is_one_quota_without_the_middleware_too():
    """Router prefixes with parameters included."""
    limiter = limiter_of()
    app = FastAPI()
    app.state.limiter = limiter
    router = APIRouter(prefix="/orgs/{org}")
    router.get("/users/{id}")(limiter.limit("2/hour")(ok()))
    app.include_router(router, prefix="/v1")
    client = client_of(app)
    got = [client.get(f"/v1/orgs/{n % 2}/users/{n}").status_code for n in range(4)]
    assert got == [200, 200, 429, 429]


def test_the_gate_and_the_decorator_spell_one_counter():
    """An app that adds the middleware later goes on counting where it was."""
    limiter = limiter_of()
    endpoint = limiter.limit("3/hour")(ok())
    apps = [FastAPI(), gated(FastAPI(), limiter)]
    for app in apps:
        app.state.limiter = limiter
        router = APIRouter(prefix="/a")
        router.get("/{x}")(endpoint)
        app.include_router(router)
    assert statuses(client_of(apps[0]), "/a/1", 2) == [200, 200]
    assert statuses(client_of(apps[1]), "/a/2", 2) == [200, 429]


def test_unmatched_requests_share_one_scope():
    """404 on any path and 405 on any method count together: scanning is limited by the default limits."""
    app = gated(FastAPI(), limiter_of(default_limits=["3/hour"]))
    app.get("/known")(ok())
    client = client_of(app)
    asked = [("GET", "/a"), ("GET", "/b"), ("POST", "/known"), ("GET", "/c"), ("BREW", "/d"), ("GET", "/known")]
    got = [client.request(method, path).status_code for method, path in asked]
    assert got == [404, 404, 405, 429, 429, 200]


def test_head_counts_as_get():
    """A Starlette route answers both; asking for the headers only is no way around the limit."""
    limiter = limiter_of(default_limits=["2/hour"])
    client = client_of(gated(Starlette(routes=[Route("/", plain())]), limiter))
    assert [client.request(m, "/").status_code for m in ("HEAD", "GET", "HEAD")] == [200, 200, 429]


def test_a_redirect_to_the_other_slash_is_followed_and_the_route_charged_once():
    """/items/ redirects to /items: the redirect is an unmatched request, the second one the route's."""
    limiter = limiter_of(default_limits=["2/hour"])
    app = gated(FastAPI(), limiter)
    app.get("/items")(ok())
    client = client_of(app)
    assert client.get("/items/", follow_redirects=False).status_code == 307
    assert statuses(client, "/items", 3) == [200, 200, 429]


def test_routes_added_while_serving_are_found():
    """The table is built again when the app has more routes."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = gated(FastAPI(), limiter)
    app.get("/a")(ok())
    client = client_of(app)
    assert statuses(client, "/a", 1) == [200]
    app.get("/b")(limiter.limit("2/hour")(ok()))
    assert statuses(client, "/b", 3) == [200, 200, 429]


def test_routes_added_to_an_included_router_while_serving_are_charged_once():
    """FastAPI serves them at once; their application limit is not charged twice."""
    limiter = limiter_of(application_limits=["4/hour"])
    app = gated(FastAPI(), limiter)
    router = APIRouter()
    router.get("/a")(ok())
    app.include_router(router)
    client = client_of(app)
    assert statuses(client, "/a", 1) == [200]
    router.get("/b")(limiter.limit("9/hour")(ok()))
    assert statuses(client, "/b", 4) == [200, 200, 200, 429]


# ── routers, mounts, sub-applications ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_included_routers_are_covered_however_deep(depth):
    """slowapi's middlewares ignore them all on FastAPI >= 0.137, silently."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = gated(FastAPI(), limiter)
    router = APIRouter(prefix="/last")
    router.get("/default")(ok())
    router.get("/own")(limiter.limit("2/hour")(ok()))
    for level in range(depth - 1):
        outer = APIRouter(prefix=f"/{level}")
        outer.include_router(router)
        router = outer
    app.include_router(router, prefix="/v1")
    client = client_of(app)
    path = "/v1" + "".join(f"/{level}" for level in reversed(range(depth - 1))) + "/last"
    assert statuses(client, f"{path}/default", 2) == [200, 429]
    assert statuses(client, f"{path}/own", 3) == [200, 200, 429]


def test_a_router_included_twice_has_a_quota_under_each_prefix():
    """The template is part of the scope."""
    limiter = limiter_of()
    app = gated(FastAPI(), limiter)
    router = APIRouter()
    router.get("/x")(limiter.limit("1/hour")(ok()))
    app.include_router(router, prefix="/v1")
    app.include_router(router, prefix="/v2")
    client = client_of(app)
    assert [client.get(p).status_code for p in ("/v1/x", "/v2/x", "/v1/x", "/v2/x")] == [200, 200, 429, 429]


def test_the_gate_can_be_wrapped_around_an_app_from_outside():
    """`limiter.middleware(app)`, as ASGI middlewares are by hand: the routes of the app inside count."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = FastAPI()
    app.state.limiter = limiter
    app.get("/default/{id}")(ok())
    app.get("/own")(limiter.limit("2/hour")(ok()))
    client = client_of(limiter.middleware(app))
    assert [client.get(f"/default/{n}").status_code for n in range(2)] == [200, 429]
    assert statuses(client, "/own", 3) == [200, 200, 429]


@pytest.mark.parametrize("kind", [FastAPI, Starlette], ids=["FastAPI", "Starlette"])
def test_mounted_applications_are_covered(kind):
    """Their routes, with defaults and limits of their own, and what they answer 404."""
    limiter = limiter_of(default_limits=["1/hour"])
    sub = kind()
    sub.router.add_route("/default", plain())
    sub.router.add_route("/own", limiter.limit("2/hour")(plain()))
    app = gated(FastAPI(), limiter)
    app.mount("/sub", sub)
    client = client_of(app)
    assert statuses(client, "/sub/default", 2) == [200, 429]
    assert statuses(client, "/sub/own", 3) == [200, 200, 429]
    assert [client.get(p).status_code for p in ("/sub/no", "/sub/nor-this")] == [404, 429]
    assert [client.get(p).status_code for p in ("/no", "/nor-this")] == [404, 429]


def test_a_mount_in_a_mount_in_a_router_is_covered():
    """Templates of nested mounts, with parameters of one name."""
    limiter = limiter_of()
    inner = Router([Route("/{id}", limiter.limit("2/hour")(plain()))])
    app = gated(Starlette(routes=[Mount("/a/{id}", routes=[Mount("/b", app=inner)])]), limiter)
    client = client_of(app)
    assert [client.get(p).status_code for p in ("/a/1/b/1", "/a/2/b/2", "/a/3/b/3")] == [200, 200, 429]


def test_static_files_and_other_asgi_apps_are_one_quota_for_each_mount(tmp_path):
    """The app behind a mount has no routes: all its paths count together."""

    async def other(scope, receive, send):
        await Response("other")(scope, receive, send)

    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    app = gated(FastAPI(), limiter_of(default_limits=["2/hour"]))
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.mount("/other", other)
    client = client_of(app)
    assert [client.get(f"/static/{name}").status_code for name in ("a.txt", "b.txt", "a.txt")] == [200, 200, 429]
    assert [client.get(f"/other/{name}").status_code for name in ("a", "b", "c")] == [200, 200, 429]


def test_a_mounted_app_with_a_middleware_of_its_own_is_charged_once():
    """Both gates carry the same limiter: the outer one charges."""
    limiter = limiter_of()
    sub = gated(FastAPI(), limiter)
    sub.get("/")(limiter.limit("2/hour")(ok()))
    app = gated(FastAPI(), limiter)
    app.mount("/sub", sub)
    assert statuses(client_of(app), "/sub/", 3) == [200, 200, 429]


def test_only_the_mounted_app_has_the_middleware():
    """A gate inside a mount knows the mounted app's routes."""
    limiter = limiter_of(default_limits=["1/hour"])
    sub = gated(FastAPI(), limiter)
    sub.get("/own")(limiter.limit("2/hour")(ok()))
    sub.get("/default/{id}")(ok())
    app = FastAPI()
    app.mount("/sub", sub)
    app.get("/free")(ok())
    client = client_of(app)
    assert statuses(client, "/sub/own", 3) == [200, 200, 429]
    assert [client.get(f"/sub/default/{n}").status_code for n in range(2)] == [200, 429]
    assert statuses(client, "/free", 2) == [200, 200]


def test_behind_a_root_path_templates_match():
    """A proxy tells the prefix as root_path; whether it strips it from the path or not, the template is the same."""
    limiter = limiter_of()
    app = gated(FastAPI(), limiter)
    app.get("/users/{id}")(limiter.limit("2/hour")(ok()))
    app.get("/me")(limiter.limit("1/hour")(ok()))
    client = client_of(app, root_path="/api")
    assert [client.get(p).status_code for p in ("/api/users/1", "/users/2", "/api/users/3")] == [200, 200, 429]
    assert [client.get(p).status_code for p in ("/api/me", "/me")] == [200, 429]


def test_routes_of_a_host_are_charged_once():
    """`Host` picks the app by a header: the decorator counts there, the gate counts the default limits."""
    limiter = limiter_of(application_limits=["3/hour"])
    app = Starlette(routes=[Host("api.example", Router([Route("/", limiter.limit("9/hour")(plain()))]))])
    client = client_of(gated(app, limiter), base_url="http://api.example")
    assert statuses(client, "/", 4) == [200, 200, 200, 429]


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Paced:
    """Hands out one piece when told to: what left the server before the next one was made can be seen."""

    def __init__(self):
        self.go = [asyncio.Event() for _ in range(3)]

    async def pieces(self):
        for number, event in enumerate(self.go):
            await event.wait()
            yield f"piece-{number}\n"


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  the application has no event to wait for
            await asyncio.sleep(0)


def bodies(wire):
    return [m["body"] for m in wire.sent if m["type"] == "http.response.body" and m["body"]]


def streaming_response(app, limiter, paced):
    @app.get("/")
    @limiter.limit("9/hour")
    async def index():
        return StreamingResponse(paced.pieces())


def streaming_default(app, limiter, paced):
    @app.get("/")
    async def index():
        return StreamingResponse(paced.pieces())


def server_sent_events(app, limiter, paced):
    @app.get("/", response_class=EventSourceResponse)
    @limiter.limit("9/hour")
    async def index():
        async for piece in paced.pieces():
            yield piece


def server_sent_events_of_sync(app, limiter, paced):
    async def index():
        async for piece in paced.pieces():
            yield {"piece": piece}

    app.get("/", response_class=EventSourceResponse)(limiter.limit("9/hour")(index))


STREAMS = [streaming_response, streaming_default, server_sent_events, server_sent_events_of_sync]


@pytest.mark.parametrize("with_gate", [True, False], ids=["gate", "no-gate"])
@pytest.mark.parametrize("declare", STREAMS)
async def test_a_stream_passes_piece_by_piece(declare, with_gate):
    """slowapi's ASGI middleware holds the start back and sends it with each piece: streaming breaks."""
    limiter = limiter_of(default_limits=["9/hour"], headers_enabled=True)
    app = FastAPI()
    app.state.limiter = limiter
    if with_gate:
        gated(app, limiter)
    paced = Paced()
    declare(app, limiter, paced)
    wire = Wire(app, "/")
    running = asyncio.create_task(wire.run())
    for number, event in enumerate(paced.go):
        event.set()
        await until(lambda number=number: len(bodies(wire)) > number)
        assert f"piece-{number}".encode() in bodies(wire)[number]
        assert len(bodies(wire)) == number + 1
    await running
    assert [m["type"] for m in wire.sent].count("http.response.start") == 1
    if with_gate or declare is not streaming_default:
        assert wire.headers["x-ratelimit-remaining"] == "8"


def test_a_generator_endpoint_is_limited_like_any_other():
    """`yield` in the endpoint: the tenth stream is refused, with a status."""
    for with_gate in (True, False):
        limiter = limiter_of()
        app = FastAPI()
        app.state.limiter = limiter
        if with_gate:
            gated(app, limiter)

        @app.get("/async", response_class=EventSourceResponse)
        @limiter.limit("1/hour")
        async def of_async():
            yield {"n": 1}

        @app.get("/sync", response_class=EventSourceResponse)
        @limiter.limit("1/hour")
        def of_sync():
            yield {"n": 1}

        client = client_of(app)
        for path in ("/async", "/sync"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert 'data: {"n":1}' in answer.text.replace(" ", "").replace("data:", "data: ")
            assert answer.headers["ratelimit"].startswith('"1/hour";r=0')
            assert client.get(path).status_code == 429


def test_a_base_http_middleware_around_it_does_not_matter():
    """Apps have Starlette's BaseHTTPMiddleware on either side."""

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            return await call_next(request)

    limiter = limiter_of()
    app = FastAPI()
    app.add_middleware(Passing)
    gated(app, limiter)
    app.add_middleware(Passing)

    @app.get("/")
    @limiter.limit("2/hour")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 3) == [200, 200, 429]

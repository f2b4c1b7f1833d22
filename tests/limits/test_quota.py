"""`Depends(limiter.quota(...))` on a route, a router, an app; and WebSockets, however they are limited."""

from typing import Annotated

import pytest
from driving import Wire, client_of, gated, limiter_of, statuses
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import WebSocketRoute
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from service.limits import Decision, RateLimitExceeded


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def with_gate(request):
    """With the middleware, or the dependency alone."""
    return request.param


@pytest.fixture
def limiter():
    return limiter_of()


def finish(app, limiter, with_gate):
    app.state.limiter = limiter
    return client_of(gated(app, limiter) if with_gate else app)


async def ok():
    return {}


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_route_can_depend_on_a_quota(limiter, with_gate):
    """The dependency limits the route it stands on, with headers, and answers the decision."""
    app = FastAPI()
    got = []

    @app.get("/")
    async def index(decision: Annotated[Decision | None, Depends(limiter.quota("2/hour"))]):
        got.append(decision.standings[0].remaining)
        return {}

    client = finish(app, limiter, with_gate)
    answer = client.get("/")
    assert answer.headers["ratelimit"] == '"2/hour";r=1;t=3600'
    assert statuses(client, "/", 2) == [200, 429]
    assert got == [1, 0]


def test_a_routers_quota_counts_for_each_of_its_routes(limiter, with_gate):
    """`APIRouter(dependencies=[…])`: each route has its own counter, nested routers' routes too."""
    quota = limiter.quota("1/hour")
    router = APIRouter(prefix="/r", dependencies=[Depends(quota)])
    router.get("/a")(ok)
    nested = APIRouter(prefix="/n")
    nested.get("/b/{id}")(ok)
    router.include_router(nested)
    app = FastAPI()
    app.include_router(router)
    app.get("/free")(ok)
    client = finish(app, limiter, with_gate)
    asked = ["/r/a", "/r/n/b/1", "/r/a", "/r/n/b/2", "/free", "/free"]
    assert [client.get(path).status_code for path in asked] == [200, 200, 429, 429, 200, 200]


def test_a_quota_given_with_include_router_is_found(limiter, with_gate):
    """`app.include_router(router, dependencies=[…])`."""
    router = APIRouter()
    router.get("/a")(ok)
    app = FastAPI()
    app.include_router(router, dependencies=[Depends(limiter.quota("1/hour"))])
    assert statuses(finish(app, limiter, with_gate), "/a", 2) == [200, 429]


def test_an_apps_quota_reaches_all_its_routes(limiter, with_gate):
    """`FastAPI(dependencies=[…])`."""
    app = FastAPI(dependencies=[Depends(limiter.quota("1/hour"))])
    app.get("/a")(ok)
    router = APIRouter()
    router.get("/b")(ok)
    app.include_router(router)
    client = finish(app, limiter, with_gate)
    assert [client.get(path).status_code for path in ("/a", "/b", "/a", "/b")] == [200, 200, 429, 429]


def test_with_a_scope_routes_count_together(limiter, with_gate):
    """`quota("2/hour", scope="api")`, also made twice, also with a shared limit of that name."""
    app = FastAPI()
    app.get("/a", dependencies=[Depends(limiter.quota("3/hour", scope="api"))])(ok)
    app.get("/b", dependencies=[Depends(limiter.quota("3/hour", scope="api"))])(ok)
    app.get("/c")(limiter.shared_limit("3/hour", scope="api")(lambda: {}))
    client = finish(app, limiter, with_gate)
    assert [client.get(path).status_code for path in ("/a", "/b", "/c", "/a")] == [200, 200, 200, 429]


def test_quotas_of_several_levels_and_a_decorator_all_count(limiter, with_gate):
    """App, router, route and decorator: the tightest refuses; behind the gate all or nothing."""
    router = APIRouter(dependencies=[Depends(limiter.quota("4/hour", name="router"))])

    @router.get("/a", dependencies=[Depends(limiter.quota("3/hour", name="route"))])
    @limiter.limit("2/hour", name="decorator")
    async def index():
        return {}

    app = FastAPI(dependencies=[Depends(limiter.quota("5/hour", name="app"))])
    app.include_router(router)
    client = finish(app, limiter, with_gate)
    assert statuses(client, "/a", 3) == [200, 200, 429]
    if with_gate:
        answer = client.get("/a")
        assert {m.strip().split(";t=")[0] for m in answer.headers["ratelimit"].split(",")} == {
            '"app";r=3',
            '"router";r=2',
            '"route";r=1',
            '"decorator";r=0',
        }
        assert answer.json()["violated-policies"] == ["decorator"]


def test_application_limits_are_charged_once_beside_a_quota_and_a_decorator(with_gate):
    """Three declarations on one route, one request: the application's limit loses one unit, the defaults too."""
    limiter = limiter_of(application_limits=["3/hour"], default_limits=["4/day"])
    app = FastAPI()

    @app.get("/", dependencies=[Depends(limiter.quota("9/hour")), Depends(limiter.quota("8/hour"))])
    @limiter.limit("7/hour", override_defaults=False)
    async def index():
        return {}

    assert statuses(finish(app, limiter, with_gate), "/", 4) == [200, 200, 200, 429]


def test_a_quota_does_not_override_the_defaults(limiter):
    """It comes on top; `override_defaults=True` says otherwise."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = FastAPI()
    app.get("/both", dependencies=[Depends(limiter.quota("9/hour"))])(ok)
    app.get("/own", dependencies=[Depends(limiter.quota("2/hour", override_defaults=True))])(ok)
    client = finish(app, limiter, True)
    assert statuses(client, "/both", 2) == [200, 429]
    assert statuses(client, "/own", 3) == [200, 200, 429]


def test_one_quota_reached_by_two_ways_is_charged_once(limiter, with_gate):
    """The router and the route name the same object: FastAPI calls a dependency once a request."""
    quota = limiter.quota("2/hour")
    router = APIRouter(dependencies=[Depends(quota)])
    router.get("/a", dependencies=[Depends(quota)])(ok)
    app = FastAPI()
    app.include_router(router)
    assert statuses(finish(app, limiter, with_gate), "/a", 3) == [200, 200, 429]


def test_a_quota_inside_another_dependency_is_found(limiter, with_gate):
    """A dependency that depends on it."""

    async def current_user(_: Annotated[Decision | None, Depends(limiter.quota("1/hour"))]):
        return "alice"

    app = FastAPI()

    @app.get("/")
    async def index(user: Annotated[str, Depends(current_user)]):
        return user

    assert statuses(finish(app, limiter, with_gate), "/", 2) == [200, 429]


def test_an_overridden_quota_in_a_test_is_not_charged_by_the_dependency(limiter):
    """`app.dependency_overrides[quota]`, as apps switch dependencies off in their tests."""
    quota = limiter.quota("1/hour")
    app = FastAPI()
    app.get("/", dependencies=[Depends(quota)])(ok)
    app.dependency_overrides[quota] = lambda: None
    assert statuses(finish(app, limiter, False), "/", 2) == [200, 200]


def test_quotas_of_a_mounted_app_are_found(limiter, with_gate):
    """The gate outside knows the routes of sub-applications, dependencies included."""
    sub = FastAPI(dependencies=[Depends(limiter.quota("1/hour"))])
    sub.get("/a")(ok)
    sub.state.limiter = limiter
    app = FastAPI()
    app.mount("/sub", sub)
    assert statuses(finish(app, limiter, with_gate), "/sub/a", 2) == [200, 429]


def test_a_quota_takes_the_arguments_of_a_limit(limiter, with_gate):
    """Cost, key function, exemption, message."""
    app = FastAPI()
    quota = limiter.quota(
        "4/hour",
        cost=lambda: 2,
        key_func=lambda request: request.headers["x-tenant"],
        exempt_when=lambda request: request.headers["x-tenant"] == "root",
        error_message="enough",
    )
    app.get("/", dependencies=[Depends(quota)])(ok)
    client = finish(app, limiter, with_gate)
    assert statuses(client, "/", 3, headers={"x-tenant": "acme"}) == [200, 200, 429]
    assert client.get("/", headers={"x-tenant": "acme"}).json()["detail"] == "enough"
    assert statuses(client, "/", 3, headers={"x-tenant": "root"}) == [200] * 3


def test_a_response_made_by_the_endpoint_carries_the_headers_behind_the_gate(limiter):
    """FastAPI merges a dependency's headers into values only; the middleware writes them into any response."""
    app = FastAPI()

    @app.get("/", dependencies=[Depends(limiter.quota("2/hour"))])
    async def index():
        return PlainTextResponse("ok")

    assert finish(app, limiter, True).get("/").headers["ratelimit"] == '"2/hour";r=1;t=3600'


def test_it_shows_nothing_in_openapi(limiter):
    """No parameters of ours in the documentation."""
    app = FastAPI()
    app.get("/", dependencies=[Depends(limiter.quota("2/hour"))])(ok)
    assert "parameters" not in app.openapi()["paths"]["/"]["get"]


# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def greet(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


def by_decorator(limiter):
    app = FastAPI()
    app.websocket("/ws/{room}")(limiter.limit("2/hour")(greet))
    return app


def by_dependency(limiter):
    app = FastAPI()
    app.websocket("/ws/{room}", dependencies=[Depends(limiter.quota("2/hour"))])(greet)
    return app


def by_router(limiter):
    app = FastAPI()
    router = APIRouter(prefix="/ws", dependencies=[Depends(limiter.quota("2/hour"))])
    router.websocket("/{room}")(greet)
    app.include_router(router)
    return app


def by_starlette(limiter):
    return Starlette(routes=[WebSocketRoute("/ws/{room}", limiter.limit("2/hour")(greet))])


def by_endpoint(limiter):
    class Greeting(WebSocketEndpoint):
        @limiter.limit("2/hour")
        async def on_connect(self, websocket):
            await greet(websocket)

    return Starlette(routes=[WebSocketRoute("/ws/{room}", Greeting)])


def joined(client, room):
    with client.websocket_connect(f"/ws/{room}") as socket:
        return socket.receive_text()


@pytest.mark.parametrize("declare", [by_decorator, by_dependency, by_router, by_starlette, by_endpoint])
def test_a_refused_websocket_is_denied_before_it_is_accepted(declare, limiter, with_gate):
    """With a 429 where the server can answer one, else closed with 1008; a template is one quota."""
    client = finish(declare(limiter), limiter, with_gate)
    assert [joined(client, room) for room in "ab"] == ["hello", "hello"]
    with pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)) as caught:
        joined(client, "c")
    refused = caught.value
    if isinstance(refused, WebSocketDenialResponse):
        assert refused.status_code == 429
        assert refused.json()["violated-policies"] == ["2/hour"]
        assert refused.headers["retry-after"] == "3600"
    else:
        assert refused.code == 1008
    if with_gate:
        assert isinstance(refused, WebSocketDenialResponse)


async def websocket(app, extensions):
    """What a WebSocket's handshake is answered, message by message."""
    wire = Wire(app, "/ws/a", extra={"type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": extensions})
    del wire.scope["method"]
    connected = [{"type": "websocket.connect"}]

    async def receive():
        return connected.pop() if connected else {"type": "websocket.disconnect", "code": 1000}

    wire.receive = receive
    return (await wire.run()).sent


async def test_a_server_that_cannot_answer_a_handshake_closes_with_1008(limiter):
    """Servers without the denial extension answer 403 to a close before the accept."""
    app = by_decorator(limiter)
    finish(app, limiter, True)
    for _ in range(2):
        assert (await websocket(app, {}))[0]["type"] == "websocket.accept"
    assert await websocket(app, {}) == [{"type": "websocket.close", "code": 1008, "reason": "rate limit"}]
    denied = await websocket(app, {"websocket.http.response": {}})
    assert [m["type"] for m in denied] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert denied[0]["status"] == 429


async def test_an_accepted_websocket_carries_the_headers(limiter):
    """The standing is in the handshake's answer."""
    app = by_decorator(limiter)
    finish(app, limiter, True)
    accepted = (await websocket(app, {}))[0]
    assert dict(accepted["headers"])[b"ratelimit"] == b'"2/hour";r=1;t=3600'


def test_default_limits_reach_websockets_and_unknown_ones():
    """A WebSocket to nowhere is refused too."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = FastAPI()
    app.websocket("/ws/{room}")(greet)
    client = finish(app, limiter, True)
    assert joined(client, "a") == "hello"
    with pytest.raises(WebSocketDenialResponse):
        joined(client, "b")


def test_a_handler_of_the_app_answers_a_websocket_too(limiter):
    """The denial response is what HTTP requests get."""
    app = by_decorator(limiter)
    app.add_exception_handler(RateLimitExceeded, lambda _, e: JSONResponse({"told": e.detail}, 429))
    client = finish(app, limiter, True)
    for room in "ab":
        joined(client, room)
    with pytest.raises(WebSocketDenialResponse) as caught:
        joined(client, "c")
    assert caught.value.json() == {"told": "2 per 1 hour"}


@pytest.mark.parametrize("declare", [by_decorator, by_dependency])
def test_an_empty_key_of_a_websocket_is_refused(declare, with_gate):
    """400, or closed: nobody to charge is nobody to serve."""
    limiter = limiter_of(key_func=lambda request: "")
    client = finish(declare(limiter), limiter, with_gate)
    with pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)) as caught:
        joined(client, "a")
    assert getattr(caught.value, "status_code", 400) == 400

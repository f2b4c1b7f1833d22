"""What a hostile tester found once, and must not find again."""

import functools

import pytest
from driving import by_user, client_of, gated, limiter_of, statuses
from fastapi import Depends, FastAPI, Request
from starlette.endpoints import HTTPEndpoint
from starlette.responses import Response
from starlette.routing import Route

from service.limits import Limiter, identity


def app_of(limiter, gate):
    app = FastAPI()
    app.state.limiter = limiter
    return gated(app, limiter) if gate else app


def bare(function):
    """A decorator as people write them: plain, whatever it decorates."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("order", ["outside", "inside"])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_plain_decorators_around_and_under_a_limit_work(gate, order, kind):
    limiter = limiter_of()
    app = app_of(limiter, gate)

    async def coroutine():
        return {}

    def function():
        return {}

    endpoint = coroutine if kind == "async" else function
    limit = limiter.limit("2/minute")
    app.get("/")(bare(limit(endpoint)) if order == "outside" else limit(bare(endpoint)))
    assert statuses(client_of(app), "/", 3) == [200, 200, 429]


@pytest.mark.parametrize("gate", [True, False])
def test_a_default_and_a_quota_of_one_string_do_not_halve_each_other(gate):
    limiter = limiter_of(default_limits=["4/minute"])
    app = app_of(limiter, gate)

    @app.get("/", dependencies=[Depends(limiter.quota("4/minute")), Depends(limiter.quota("4/minute"))])
    async def index():
        return {}

    admitted = statuses(client_of(app), "/", 5)
    assert admitted[-1] == 429
    assert admitted[:4] == [200] * 4 if gate else 200 in admitted


@pytest.mark.parametrize("gate", [True, False])
def test_one_function_on_two_routes_has_two_limits(gate):
    limiter = limiter_of()
    app = app_of(limiter, gate)

    async def hello():
        return {}

    app.get("/a")(limiter.limit("3/minute")(hello))
    app.get("/b")(limiter.limit("1/minute")(hello))
    client = client_of(app)
    assert statuses(client, "/a", 4) == [200, 200, 200, 429]
    assert statuses(client, "/b", 2) == [200, 429]


def test_a_newline_at_the_end_of_a_path_is_no_second_bucket():
    limiter = limiter_of(default_limits=["2/minute"])
    app = app_of(limiter, gate=True)
    app.get("/x")(lambda: {})
    client = client_of(app)
    assert statuses(client, "/x", 2) + statuses(client, "/x%0A", 1) == [200, 200, 429]


def test_a_preflights_headers_are_no_way_around_a_class_that_answers_options():
    limiter = limiter_of(default_limits=["2/minute"])
    app = app_of(limiter, gate=True)

    class View(HTTPEndpoint):
        async def options(self, request):
            return Response()

    app.router.routes.append(Route("/view", View))
    preflight = {"origin": "http://a.example", "access-control-request-method": "GET"}
    answers = [client_of(app).options("/view", headers=preflight).status_code for _ in range(3)]
    assert answers == [200, 200, 429]


@pytest.mark.parametrize("options", [{}, {"cost": lambda: 1}, {"exempt_when": lambda: False}], ids=str)
@pytest.mark.parametrize("gate", [True, False])
def test_an_address_is_the_same_whatever_else_is_computed(gate, options):
    """Behind a trusted proxy each client counts for itself, in ready and in computed plans, without app.state."""
    limiter = limiter_of(key_func=identity.client_address, trusted_proxies=["10.0.0.0/8"])
    app = FastAPI()
    if gate:
        app.add_middleware(limiter.middleware)
    app.get("/")(limiter.limit("1/minute", **options)(lambda: {}))
    client = client_of(app, client=("10.1.1.1", 5))
    answers = [client.get("/", headers={"x-forwarded-for": f"192.0.2.{n}"}).status_code for n in range(3)]
    assert answers == [200] * 3


def test_trusted_proxies_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("ONEQUOTA_TRUSTED_PROXIES", "10.0.0.0/8, 192.168.0.0/16")
    scope = {"type": "http", "client": ("192.168.1.1", 1), "headers": [(b"x-forwarded-for", b"192.0.2.7")]}
    assert Limiter(by_user).addresses.of(scope) == "192.0.2.7"
    assert Limiter(by_user, trusted_proxies=[]).addresses.of(scope) == "192.168.1.1"


@pytest.mark.parametrize("gate", [True, False])
def test_a_body_parameter_is_not_mistaken_for_the_response(gate):
    """An annotation that cannot be resolved goes by its whole name."""
    limiter = limiter_of()
    app = app_of(limiter, gate)

    async def answer(payload: "ChatResponse"): ...  # noqa: F821

    answer.__annotations__ = {"payload": dict, "return": "NotToBeResolved"}
    app.post("/", response_model=None)(limiter.limit("2/minute")(answer))
    client = client_of(app)
    assert [client.post("/", json={}).status_code for _ in range(3)] == [200, 200, 429]


async def test_a_client_that_hangs_up_while_its_body_is_read_leaves_no_traceback():
    """Half a body, then nothing: nobody is charged, and nothing is raised to the server."""
    limiter = limiter_of()
    app = app_of(limiter, gate=True)

    async def length(request: Request):
        return len(await request.body())

    app.post("/")(limiter.limit("9/minute", cost=length)(lambda: {}))
    messages = iter([{"type": "http.request", "body": b"ha", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", b"4")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b"", "client": None}
    await app(scope, receive, send)
    assert sent == []

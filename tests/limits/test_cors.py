"""Browsers: preflights cost nothing, refusals can be read by scripts, whichever way the middlewares stand."""

import pytest
from driving import client_of, gated, limiter_of
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware.cors import CORSMiddleware as StarletteCORS

ORIGIN = {"origin": "https://app.example"}
PREFLIGHT = ORIGIN | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


@pytest.fixture(params=["limiter outside", "limiter inside"])
def client(request):
    """POST / once an hour; CORS added before the limiter (and so behind it) or after."""
    limiter = limiter_of(headers_enabled=True, application_limits=["3/hour"])
    app = FastAPI()
    options = {
        "allow_origins": ["https://app.example"],
        "allow_methods": ["POST"],
        "allow_headers": ["content-type"],
        "expose_headers": ["X-Own"],
    }
    if request.param == "limiter outside":
        app.add_middleware(CORSMiddleware, **options)
        gated(app, limiter)
    else:
        gated(app, limiter)
        app.add_middleware(CORSMiddleware, **options)

    @app.post("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    return client_of(app)


def exposed(answer):
    return {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}


def test_a_preflight_is_never_charged_nor_refused(client):
    """Ten of them before, and one after the quota is gone: the browser learns what it may ask."""
    for _ in range(10):
        answer = client.options("/", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
    assert [client.post("/", headers=ORIGIN).status_code for _ in range(2)] == [200, 429]
    assert client.options("/", headers=PREFLIGHT).status_code == 200


def test_a_refusal_carries_the_apps_cors_headers(client):
    """Else a script sees a network error instead of a 429 with Retry-After."""
    client.post("/", headers=ORIGIN)
    answer = client.post("/", headers=ORIGIN)
    assert answer.status_code == 429
    assert answer.headers.get_list("access-control-allow-origin") == ["https://app.example"]
    assert "Origin" in answer.headers["vary"]


def test_scripts_may_read_the_rate_limit_headers_and_those_of_the_app(client):
    """Access-Control-Expose-Headers, on admitted and on refused answers, once."""
    wanted = {"x-own", "ratelimit", "ratelimit-policy", "retry-after", "x-ratelimit-limit", "x-ratelimit-remaining"}
    for status in (200, 429):
        answer = client.post("/", headers=ORIGIN)
        assert answer.status_code == status
        assert wanted <= exposed(answer)
        assert len(answer.headers.get_list("access-control-expose-headers")) == 1


def test_another_origin_is_refused_without_being_allowed(client):
    """The refusal opens nothing that the app keeps closed."""
    client.post("/", headers=ORIGIN)
    answer = client.post("/", headers={"origin": "https://evil.example"})
    assert answer.status_code == 429
    assert "access-control-allow-origin" not in answer.headers


def test_without_an_origin_no_cors_headers_are_sent(client):
    """A request that no browser's script made."""
    client.post("/")
    answer = client.post("/")
    assert answer.status_code == 429
    assert not any(name.startswith("access-control") for name in answer.headers)


NO_PREFLIGHTS = [{}, ORIGIN, {"access-control-request-method": "POST"}]


@pytest.mark.parametrize("headers", NO_PREFLIGHTS, ids=str)
def test_an_options_request_that_is_no_preflight_is_charged(headers):
    """Nobody gets requests for free by choosing the method."""
    app = gated(FastAPI(), limiter_of(default_limits=["1/hour"]))
    client = client_of(app)
    assert [client.options("/", headers=headers).status_code for _ in range(2)] == [404, 429]


def test_an_options_route_of_the_apps_own_is_charged():
    """A route that answers OPTIONS is a route: claiming to be a preflight does not make it free."""
    limiter = limiter_of()
    app = gated(FastAPI(), limiter)

    @app.options("/")
    @limiter.limit("1/hour")
    async def options():
        return {}

    client = client_of(app)
    assert [client.options("/", headers=PREFLIGHT).status_code for _ in range(2)] == [200, 429]


def test_a_preflight_to_a_quota_in_a_dependency_is_not_charged():
    """Router-wide dependencies do not see it either."""
    limiter = limiter_of()
    app = FastAPI(dependencies=[Depends(limiter.quota("1/hour"))])
    app.add_middleware(StarletteCORS, allow_origins=["*"], allow_methods=["*"])
    gated(app, limiter)

    @app.post("/")
    async def index():
        return {}

    client = client_of(app)
    assert [client.options("/", headers=PREFLIGHT).status_code for _ in range(3)] == [200] * 3
    assert [client.post("/", headers=ORIGIN).status_code for _ in range(2)] == [200, 429]


def test_the_decorator_alone_is_enough_for_cors():
    """Without the limiter's middleware refusals pass through the app's CORS as every answer does."""
    limiter = limiter_of()
    app = FastAPI()
    app.state.limiter = limiter
    app.add_middleware(CORSMiddleware, allow_origins=["*"])

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    client.get("/", headers=ORIGIN)
    answer = client.get("/", headers=ORIGIN)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (429, "*")

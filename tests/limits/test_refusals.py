"""What a refused request is answered: the hook's response, else the registered handler's, else problem+json."""

import pytest
from driving import Clock, Wire, client_of, gated, limiter_of
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.limits import RateLimitExceeded, _rate_limit_exceeded_handler


@pytest.fixture(params=["gate", "decorator", "dependency"])
def place(request):
    """Where the refusal is made: by the middleware, or, without it, by the decorator or the dependency."""
    return request.param


def refusing(place, limiter=None, limit="1/hour", handlers=None, **options):
    """The answer to a second request where one is allowed."""
    limiter = limiter or limiter_of(Clock())
    app = FastAPI()
    app.state.limiter = limiter
    for kind, handler in (handlers or {}).items():
        app.add_exception_handler(kind, handler)
    if place == "gate":
        gated(app, limiter)

    async def index():
        return {}

    if place == "dependency":
        app.get("/", dependencies=[Depends(limiter.quota(limit, **options))])(index)
    else:
        app.get("/")(limiter.limit(limit, **options)(index))
    client = client_of(app)
    assert client.get("/").status_code == 200
    return client.get("/")


# ── without a handler ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_is_problem_json_that_names_the_violated_policy(place):
    """RFC 9457, with the type IANA registers for quotas; every header a client needs to come again."""
    answer = refusing(place)
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "1/hour is used up; try again in 3600 s",
        "violated-policies": ["1/hour"],
    }
    assert answer.headers["retry-after"] == "3600"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["ratelimit-policy"] == '"1/hour";q=1;w=3600'
    assert answer.headers["ratelimit"] == '"1/hour";r=0;t=3600'
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_only_the_exhausted_limits_are_violated(place):
    """Of three limits two are used up: both are named, and the longer wait is told."""
    answer = refusing(place, limit="1/minute;5/hour;1/day")
    assert answer.json()["violated-policies"] == ["1/minute", "1/day"]
    assert answer.headers["retry-after"] == "86400"
    assert answer.headers["ratelimit"] == '"1/minute";r=0;t=60, "5/hour";r=4;t=3600, "1/day";r=0;t=86400'


def test_a_name_is_what_the_answer_calls_the_limit(place):
    """`name="logins"` in policies, headers and the sentence."""
    answer = refusing(place, name="logins")
    assert answer.json()["violated-policies"] == ["logins"]
    assert answer.json()["detail"].startswith("logins is used up")
    assert answer.headers["ratelimit-policy"] == '"logins";q=1;w=3600'


async def awaited_message(request):
    return f"not so fast, {request.client.host}"


MESSAGES = [
    ("slow down", "slow down"),
    (lambda: "slow down", "slow down"),
    (lambda request: f"not on {request.url.path}", "not on /"),
    (awaited_message, "not so fast, testclient"),
    ('quote " and ünïcode', 'quote " and ünïcode'),
]


@pytest.mark.parametrize(("message", "told"), MESSAGES)
def test_an_error_message_of_ones_own_is_told(message, told, place):
    """A string, a function of nothing or the request, a coroutine function."""
    assert refusing(place, error_message=message).json()["detail"] == told
    seen = []
    refusing(place, error_message=message, handlers={RateLimitExceeded: lambda _, e: seen.append(e) or JSONResponse(1)})
    assert seen[0].detail == told


def test_slowapis_headers_stand_on_a_refusal_if_they_are_enabled(place):
    """X-RateLimit-* beside the draft's; without the option only the draft's and Retry-After."""
    answer = refusing(place, limiter_of(Clock(), headers_enabled=True))
    assert answer.headers["x-ratelimit-limit"] == "1"
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert answer.headers["x-ratelimit-reset"] == "1790003600"
    assert not any(name.startswith("x-ratelimit") for name in refusing(place).headers)


def test_the_drafts_headers_can_be_switched_off(place):
    """`draft_headers=False` leaves Retry-After, which every refusal carries."""
    answer = refusing(place, limiter_of(Clock(), draft_headers=False))
    assert answer.headers["retry-after"] == "3600"
    assert "ratelimit" not in answer.headers
    assert "ratelimit-policy" not in answer.headers


def test_retry_after_can_be_a_date(place):
    """`retry_after="http-date"`, as in slowapi: 1,790,000,000 + 3600 s."""
    answer = refusing(place, limiter_of(Clock(), headers_enabled=True, retry_after="http-date"))
    assert answer.headers["retry-after"] == "Mon, 21 Sep 2026 15:13:20 GMT"


# ── handlers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_slowapis_own_handler_answers_as_it_always_did(place):
    """`app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)`: its body, our headers."""
    answer = refusing(
        place, limiter_of(Clock(), headers_enabled=True), handlers={RateLimitExceeded: _rate_limit_exceeded_handler}
    )
    assert answer.status_code == 429
    assert answer.json() == {"error": "Rate limit exceeded: 1 per 1 hour"}
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert answer.headers.get_list("retry-after") == ["3600"]


def told(request, error):
    return JSONResponse({"told": error.detail, "path": request.url.path}, 420)


async def told_async(request, error):
    return told(request, error)


@pytest.mark.parametrize("handler", [told, told_async])
@pytest.mark.parametrize("kind", [RateLimitExceeded, 429, HTTPException])
def test_a_registered_handler_wins(handler, kind, place):
    """For the exception, for the status, for every HTTPException; sync or async; its status stands."""
    answer = refusing(place, handlers={kind: handler})
    assert (answer.status_code, answer.json()) == (420, {"told": "1 per 1 hour", "path": "/"})


@pytest.mark.parametrize("kind", [RateLimitExceeded, 429, HTTPException])
def test_a_handlers_answer_carries_the_standing_too(kind, place):
    """Retry-After on every refusal, whoever writes the body: clients need it to come again."""
    answer = refusing(place, handlers={kind: told})
    assert answer.headers["retry-after"] == "3600"
    assert answer.headers["ratelimit"] == '"1/hour";r=0;t=3600'
    assert answer.headers["cache-control"] == "no-store"


def test_the_handlers_are_looked_up_as_starlette_does(place):
    """The status before the exception, the exception before its parents."""
    by_status = {429: lambda *_: PlainTextResponse("status", 429)}
    by_kind = {RateLimitExceeded: lambda *_: PlainTextResponse("kind", 429)}
    by_parent = {HTTPException: lambda *_: PlainTextResponse("parent", 429)}
    assert refusing(place, handlers=by_parent | by_kind | by_status).text == "status"
    assert refusing(place, handlers=by_parent | by_kind).text == "kind"


def test_the_handlers_exception_is_slowapis(place):
    """`exc.limit.limit` is the limits package's item, `exc.detail` the message, `exc.status_code` 429."""
    seen = []

    def handler(request, error):
        seen.append((error, request.state.view_rate_limit))
        return PlainTextResponse("", 429)

    refusing(place, limit="1 per 5 minutes", handlers={RateLimitExceeded: handler})
    (error, view) = seen[0]
    assert isinstance(error, RateLimitExceeded)
    assert (error.status_code, error.detail) == (429, "1 per 5 minute")
    assert (error.limit.limit.amount, error.limit.limit.get_expiry()) == (1, 300)
    assert view[0] == error.limit.limit


def test_the_handler_may_be_registered_after_the_middleware():
    """It is looked up when a request is refused."""
    limiter = limiter_of()
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    @app.exception_handler(RateLimitExceeded)
    async def handler(request: Request, error: RateLimitExceeded):
        return PlainTextResponse("later", 429)

    client = client_of(app)
    client.get("/")
    assert client.get("/").text == "later"


def test_starlettes_handlers_win_too():
    """`Starlette(exception_handlers={429: ...})`."""
    limiter = limiter_of(default_limits=["1/hour"])

    async def index(request):
        return PlainTextResponse("ok")

    handlers = {429: lambda *_: PlainTextResponse("mine", 429)}
    client = client_of(gated(Starlette(routes=[Route("/", index)], exception_handlers=handlers), limiter))
    assert [client.get("/").text for _ in range(2)] == ["ok", "mine"]


# ── the hook ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_hooks_response_is_the_answer(kind, place):
    """`on_refusal(request, decision)`: before any handler; the standing is written into its headers."""
    seen = []

    def hook(request, decision):
        seen.append((request.url.path, decision.allowed, decision.retry_after))
        return PlainTextResponse("hooked", 429)

    async def awaited(request, decision):
        return hook(request, decision)

    limiter = limiter_of(Clock(), on_refusal=hook if kind == "sync" else awaited)
    answer = refusing(place, limiter, handlers={RateLimitExceeded: told})
    assert (answer.status_code, answer.text) == (429, "hooked")
    assert answer.headers["retry-after"] == "3600"
    assert seen == [("/", False, 3600)]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("handlers", [{}, {RateLimitExceeded: told}], ids=["problem", "handler"])
def test_a_hook_that_answers_nothing_only_watches(kind, handlers, place):
    """None leaves the answer to the handler or to problem+json; it is called once."""
    seen = []

    async def awaited(request, decision):
        seen.append(decision.retry_after)

    limiter = limiter_of(Clock(), on_refusal=awaited if kind == "async" else lambda _, d: seen.append(d.retry_after))
    answer = refusing(place, limiter, handlers=handlers)
    assert seen == [3600]
    assert answer.status_code == (420 if handlers else 429)
    assert answer.headers["retry-after"] == "3600"


def test_a_hook_that_fails_is_a_500_and_lets_nothing_by(place):
    """A bug in the hook admits nobody."""
    limiter = limiter_of(Clock(), on_refusal=lambda request, decision: 1 / 0)
    assert refusing(place, limiter).status_code == 500


def test_the_hook_is_not_called_for_admitted_requests(place):
    """Only refusals are refusals."""
    seen = []
    limiter = limiter_of(Clock(), on_refusal=lambda *found: seen.append(found))
    refusing(place, limiter)
    assert len(seen) == 1


# ── before anything else ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refusal_comes_before_the_body_is_read():
    """A flood of uploads costs no reading: the server's `receive` is never called."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = gated(FastAPI(), limiter)

    @app.post("/")
    async def upload(request: Request):
        return len(await request.body())

    first = await Wire(app, "/", method="POST", body=[b"x"] * 3).run()
    second = await Wire(app, "/", method="POST", body=[b"x"] * 3).run()
    assert (first.status, first.received) == (200, 3)
    assert (second.status, second.received) == (429, 0)


@pytest.mark.parametrize("how", ["decorator", "dependency"])
async def test_a_refusal_comes_before_validation_and_dependencies(how):
    """With the middleware invalid requests are charged like others, and a refused one opens no database session."""
    limiter = limiter_of()
    app = gated(FastAPI(), limiter)
    opened = []

    async def session():
        opened.append(1)

    if how == "decorator":

        @app.post("/", dependencies=[Depends(session)])
        @limiter.limit("2/hour")
        async def index(body: dict[str, int]): ...
    else:

        @app.post("/", dependencies=[Depends(session), Depends(limiter.quota("2/hour"))])
        async def index(body: dict[str, int]): ...

    client = client_of(app)
    assert [client.post("/", json="no dictionary").status_code for _ in range(3)] == [422, 422, 429]
    assert len(opened) == 2
    wire = await Wire(app, "/", method="POST", body=[b"{}"]).run()
    assert (wire.status, wire.received) == (429, 0)


def test_nothing_behind_the_middleware_runs_for_a_refused_request():
    """Middlewares added before the limiter stand behind it."""
    limiter = limiter_of(default_limits=["1/hour"])
    app = FastAPI()
    ran = []

    class Watching:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            ran.append(scope["type"])
            await self.app(scope, receive, send)

    app.add_middleware(Watching)
    gated(app, limiter)
    client = client_of(app)
    assert [client.get("/").status_code for _ in range(3)] == [404, 429, 429]
    assert ran == ["http"]

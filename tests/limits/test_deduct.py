"""`deduct_when`: whether the response was worth the charge; otherwise it is given back, once."""

import asyncio

import pytest
from driving import Clock, Wire, client_of, gated, limiter_of, statuses
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse

from service.errors import ConfigurationError, StoreUnavailable
from service.limits.decision import GIVE_BACK
from service.limits.stores import MemoryStore


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def with_gate(request):
    """With the middleware, or the decorator alone."""
    return request.param


def app_of(limiter, with_gate):
    app = FastAPI()
    app.state.limiter = limiter
    return gated(app, limiter) if with_gate else app


def left(response):
    """`r` of the one limit in the RateLimit header."""
    return int(response.headers["ratelimit"].split("r=")[1].split(";")[0])


ONLY_FAILURES = {"deduct_when": lambda response: response.status_code == 401}


def raised(status):
    return {"401": HTTPException(401), "404": HTTPException(404), "500": RuntimeError("bug")}.get(status)


def answering(app, limiter, declare):
    """A route that answers as the request's x-answer says; raised, or returned as a response or a value."""

    async def index(request: Request):
        if (error := raised(request.headers.get("x-answer"))) is not None:
            raise error
        if "x-response" in request.headers:
            return JSONResponse({})
        return {}

    declare(app, limiter, index)
    return client_of(app)


def decorated(app, limiter, index):
    app.get("/")(limiter.limit("2/hour", **ONLY_FAILURES)(index))


def depending(app, limiter, index):
    app.get("/", dependencies=[Depends(limiter.quota("2/hour", **ONLY_FAILURES))])(index)


DECLARED = [(decorated, True), (decorated, False), (depending, True)]
ANSWERS = [{}, {"x-response": "1"}, {"x-answer": "404"}, {"x-answer": "500"}]


@pytest.mark.parametrize(("declare", "gate"), DECLARED)
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_charge_is_given_back_when_deduct_when_says_no(declare, gate, answer):
    """Log-in attempts are charged only if they fail: any other outcome costs nothing, errors included."""
    limiter = limiter_of()
    client = answering(app_of(limiter, gate), limiter, declare)
    want = int(answer.get("x-answer", "200"))
    if want == 500 and not gate:  # an unhandled error: which status it becomes is not known without the gate
        assert statuses(client, "/", 3, headers=answer) == [500, 500, 429]
    else:
        assert statuses(client, "/", 5, headers=answer) == [want] * 5


@pytest.mark.parametrize(("declare", "gate"), DECLARED)
def test_a_charge_is_kept_when_deduct_when_says_yes(declare, gate):
    """Two failures are all; then even a success has to wait, because the quota is checked before."""
    limiter = limiter_of()
    client = answering(app_of(limiter, gate), limiter, declare)
    assert statuses(client, "/", 3, headers={"x-answer": "401"}) == [401, 401, 429]
    assert statuses(client, "/", 1) == [429]


def test_a_dependency_without_the_middleware_cannot_see_a_response_and_says_so():
    """Better no answer than a charge that is never given back: the error names the middleware."""
    limiter = limiter_of()
    app = app_of(limiter, False)

    @app.get("/", dependencies=[Depends(limiter.quota("2/hour", **ONLY_FAILURES))])
    async def index():
        return {}

    with pytest.raises(ConfigurationError, match=r"deduct_when .*limiter\.middleware"):
        client_of(app, raise_server_exceptions=True).get("/")


def test_the_headers_tell_what_is_left_after_giving_back(with_gate):
    """A success leaves 2 of 2, a failure 1."""
    limiter = limiter_of()
    client = answering(app_of(limiter, with_gate), limiter, decorated)
    assert left(client.get("/")) == 2
    assert left(client.get("/", headers={"x-answer": "401"})) == 1
    assert left(client.get("/")) == 1


def test_an_unhandled_error_can_be_what_is_charged(with_gate):
    """`deduct_when` sees status 500 for an exception nobody handles."""
    limiter = limiter_of()

    def declare(app, limiter, index):
        app.get("/")(limiter.limit("2/hour", deduct_when=lambda r: r.status_code >= 500)(index))

    client = answering(app_of(limiter, with_gate), limiter, declare)
    assert statuses(client, "/", 4, headers={"x-answer": "500"}) == [500, 500, 429, 429]


def test_deduct_when_may_be_awaited_and_sees_the_headers(with_gate):
    """Charging by what the response says."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)

    async def cached(response):
        await asyncio.sleep(0)
        return response.headers.get("x-cache") != "hit"

    @app.get("/")
    @limiter.limit("1/hour", deduct_when=cached)
    async def index(request: Request):
        return JSONResponse({}, headers={"x-cache": request.headers["x-cache"]})

    client = client_of(app)
    assert statuses(client, "/", 3, headers={"x-cache": "hit"}) == [200] * 3
    assert statuses(client, "/", 2, headers={"x-cache": "miss"}) == [200, 429]


def test_deduct_when_sees_the_status_the_route_declares(with_gate):
    """`status_code=201` on the route, `response.status_code` set by the endpoint: what the client gets is seen."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)
    seen = []

    @app.get("/declared", status_code=201)
    @limiter.limit("9/hour", deduct_when=lambda r: seen.append(r.status_code))
    async def declared():
        return {}

    @app.get("/set")
    @limiter.limit("9/hour", deduct_when=lambda r: seen.append(r.status_code))
    async def set_(response: Response):
        response.status_code = 202
        return {}

    client = client_of(app)
    assert [client.get("/declared").status_code, client.get("/set").status_code] == [201, 202]
    assert seen == [201, 202]


def test_only_the_limit_that_asks_is_given_back(with_gate):
    """Stacked: every request counts, and failures count once more."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)

    @app.get("/")
    @limiter.limit("4/hour", name="all")
    @limiter.limit("1/day", name="failures", override_defaults=False, **ONLY_FAILURES)
    async def index():
        return {}

    client = client_of(app)
    assert statuses(client, "/", 5) == [200, 200, 200, 200, 429]


def test_a_refused_request_is_not_given_back(with_gate):
    """It was never charged: giving back would be a refund."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)

    @app.get("/")
    @limiter.limit("2/hour", deduct_when=lambda response: response.status_code < 400)
    async def index():
        return {}

    assert statuses(client_of(app), "/", 5) == [200, 200, 429, 429, 429]


def test_a_stream_that_breaks_after_its_start_is_settled_once(with_gate):
    """Given back when its 200 starts; the exception in the middle of the body gives nothing back again."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)

    @app.get("/")
    @limiter.limit("5/hour", **ONLY_FAILURES)
    async def index(request: Request):
        if request.headers.get("x-answer") == "401":
            return JSONResponse({}, 401)

        async def breaking():
            yield b"first"
            raise RuntimeError("bug")

        return StreamingResponse(breaking())

    client = client_of(app)
    failing = {"x-answer": "401"}
    assert [left(client.get("/", headers=failing)) for _ in range(2)] == [4, 3]
    client.get("/")
    assert left(client.get("/", headers=failing)) == 2


def test_deduct_when_on_a_generator_endpoint_needs_the_middleware(with_gate):
    """`async def` with `yield` streams with status 200, which this limit does not count; the gate sees it start."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)

    @app.get("/", response_class=EventSourceResponse)
    @limiter.limit("1/hour", **ONLY_FAILURES)
    async def index():
        yield {"n": 1}

    if with_gate:
        assert statuses(client_of(app), "/", 3) == [200] * 3
    else:
        with pytest.raises(ConfigurationError, match=r"deduct_when .*limiter\.middleware"):
            client_of(app, raise_server_exceptions=True).get("/")


def test_a_failed_give_back_is_a_warning_not_an_error(caplog):
    """The answer is there already: a store that dies in between costs the caller a unit, nothing else."""

    class Forgetful(MemoryStore):
        async def decide(self, asks):
            if any(ask.kind == GIVE_BACK for ask in asks):
                raise StoreUnavailable("gone")
            return await super().decide(asks)

    limiter = limiter_of()
    store = Forgetful()
    limiter.engine.open_store = lambda: store
    app = app_of(limiter, True)

    @app.get("/")
    @limiter.limit("2/hour", **ONLY_FAILURES)
    async def index():
        return {}

    answer = client_of(app).get("/")
    assert (answer.status_code, left(answer)) == (200, 1)
    assert "give_back_failed" in caplog.text


@pytest.mark.parametrize("gate", [True, False])
def test_an_error_that_a_handler_turns_into_what_is_charged_is_charged(gate):
    """Brute force may fail by any exception: where the status is not known, the charge stays."""

    class WrongPassword(Exception):
        pass

    limiter = limiter_of()
    app = app_of(limiter, gate)

    @app.exception_handler(WrongPassword)
    async def told(request, error):
        return JSONResponse({}, 401)

    @app.get("/login")
    @limiter.limit("2/minute", deduct_when=lambda response: response.status_code == 401)
    async def login():
        raise WrongPassword

    assert statuses(client_of(app), "/login", 4) == [401, 401, 429, 429]


async def test_a_request_that_its_deadline_ends_is_given_back_too():
    """The shield cancels what is slow and answers 504 outside: no 401, so nothing is charged."""
    limiter, go = limiter_of(Clock()), asyncio.Event()
    app = gated(FastAPI(), limiter)

    @app.get("/slow")
    @limiter.limit("2/minute", **ONLY_FAILURES)
    async def slow():
        await go.wait()

    for _ in range(4):
        task = asyncio.ensure_future(Wire(app, "/slow").run())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
    go.set()
    wire = await Wire(app, "/slow").run()
    assert (wire.status, wire.headers["ratelimit"]) == (200, '"2/minute";r=2;t=0')

"""What a request costs and who pays it: cost functions, key functions, and the bodies they read."""

import asyncio

import pytest
from driving import Wire, client_of, gated, limiter_of, statuses
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Route


class Message(BaseModel):
    user: str
    tokens: int = 1


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


# ── costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def awaited_three(request):
    await asyncio.sleep(0)
    return 3


COSTS = [
    (3, 7),
    (10, 0),
    (lambda: 3, 7),
    (lambda request: int(request.headers["x-cost"]), 7),
    (awaited_three, 7),
    (lambda: 2.0001, 7),
    (lambda: 3.0, 7),
    (lambda: 0.5, 9),
    (lambda: 0, 10),
    (lambda: -0.5, 10),
]


@pytest.mark.parametrize(("cost", "remaining"), COSTS)
def test_a_cost_is_taken_whole_and_a_float_is_rounded_up(cost, remaining, with_gate):
    """From 10 an hour: an integer, a function of nothing or the request, a coroutine function; 0 is free."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)

    @app.get("/")
    @limiter.limit("10/hour", cost=cost)
    async def index():
        return {}

    answer = client_of(app).get("/", headers={"x-cost": "3"})
    assert answer.status_code == 200
    assert left(answer) == remaining


UNMEANT = [-1, -1.5, float("nan"), float("inf"), True, None, "3", 11, 10.5, 10**30, [3]]


@pytest.mark.parametrize("cost", UNMEANT, ids=repr)
def test_a_computed_cost_that_cannot_be_meant_is_422_and_charges_nothing(cost, with_gate):
    """Negative ones would refund, NaN would never count, what is beyond the limit could never pass."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)
    costs = iter([cost, 1])
    ran = []

    @app.get("/")
    @limiter.limit("10/hour", cost=lambda: next(costs))
    async def index():
        ran.append(1)

    client = client_of(app)
    answer = client.get("/")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "cost"
    assert not ran
    assert left(client.get("/")) == 9


def test_a_cost_beyond_the_smallest_of_several_limits_charges_none_of_them(with_gate):
    """All or nothing holds for what cannot be meant, too."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)
    costs = iter([11, 5])

    @app.get("/")
    @limiter.limit("100/day;10/hour", cost=lambda: next(costs))
    async def index():
        return {}

    client = client_of(app)
    assert client.get("/").status_code == 422
    assert client.get("/").headers["ratelimit"].startswith('"100/day";r=95;')


def test_a_cost_function_that_fails_is_a_500_and_charges_nothing(with_gate):
    """A bug in the app is the app's 500, as everywhere in FastAPI; the endpoint does not run."""
    limiter = limiter_of()
    app = app_of(limiter, with_gate)
    broken = [True]

    def cost(request):
        return 1 / 0 if broken else 1

    @app.get("/")
    @limiter.limit("10/hour", cost=cost)
    async def index():
        return {}

    client = client_of(app)
    assert client.get("/").status_code == 500
    broken.clear()
    assert left(client.get("/")) == 9


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("empty", ["", None], ids=repr)
@pytest.mark.parametrize("kind", ["sync", "async", "quota", "default"])
def test_an_empty_key_is_refused_with_400_and_nothing_is_charged(empty, kind, with_gate):
    """slowapi lets such a request by without any limit; here nobody to charge is an error."""
    ran = []
    answers = iter([empty, "alice"])

    def key(request):
        return next(answers)

    async def awaited(request):
        return next(answers)

    limiter = limiter_of(key_func=awaited if kind == "async" else key)
    if kind == "default":
        limiter = limiter_of(key_func=key, default_limits=["10/hour"])
    app = app_of(limiter, with_gate or kind == "default")

    async def index():
        ran.append(1)

    if kind in ("sync", "async"):
        index = limiter.limit("10/hour")(index)
    app.get("/", dependencies=[Depends(limiter.quota("10/hour"))] if kind == "quota" else [])(index)
    client = client_of(app)
    answer = client.get("/")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "key"
    assert not ran
    assert left(client.get("/")) == 9


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_key_function_may_refuse_by_itself(kind, with_gate):
    """It raises HTTPException(401): the app's own answer for it, and nothing is charged."""

    def key(request):
        if "x-token" not in request.headers:
            raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})
        return "alice"

    async def awaited(request):
        return key(request)

    limiter = limiter_of(key_func=awaited if kind == "async" else key)
    app = app_of(limiter, with_gate)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    for _ in range(2):
        answer = client.get("/")
        assert (answer.status_code, answer.json()) == (401, {"detail": "who are you?"})
        assert answer.headers["www-authenticate"] == "Bearer"
    assert statuses(client, "/", 2, headers={"x-token": "1"}) == [200, 429]


async def test_an_async_key_function_is_awaited_beside_other_requests(with_gate):
    """A database asked for the user: other requests go on meanwhile."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def by_database(request):
        asked.set()
        await answered.wait()
        return "alice"

    limiter = limiter_of(key_func=by_database)
    app = app_of(limiter, with_gate)

    @app.get("/slow")
    @limiter.limit("1/hour")
    async def slow():
        return {}

    @app.get("/free")
    async def free():
        return {}

    waiting = asyncio.create_task(Wire(app, "/slow").run())
    await asked.wait()
    assert (await Wire(app, "/free").run()).status == 200
    answered.set()
    assert (await waiting).status == 200


def test_a_key_need_not_be_a_string(with_gate):
    """A user's number is a key; 7 and "7" are the same caller."""
    limiter = limiter_of(key_func=lambda request: int(request.headers["x-id"]))
    app = app_of(limiter, with_gate)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    client = client_of(app)
    assert [client.get("/", headers={"x-id": i}).status_code for i in ("7", "8", "7")] == [200, 200, 429]


STRANGE = ["a}:b{c", "ключ", "x" * 10_000, "a\x00b", " ", "\ud800", "~", "*"]


@pytest.mark.parametrize("key", STRANGE, ids=ascii)
def test_whatever_a_key_holds_it_counts_for_itself(key, redis_server):
    """Separators, other scripts, NULs, lone surrogates, globs: on a real Redis, and forgotten one by one."""
    limiter = limiter_of(key_func=lambda request: key, storage_uri=redis_server.url, deadline_s=5)
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("1/hour")
    async def index():
        return {}

    assert statuses(client_of(app), "/", 2) == [200, 429]

    async def others():
        other = await limiter.check("somebody", "1/hour")
        forgotten = await limiter.reset(key)
        await limiter.aclose()
        return other.allowed, forgotten

    assert asyncio.run(others()) == (True, 1)


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def by_body(request):
    return (await request.json())["user"]


async def tokens(request):
    return (await request.json())["tokens"]


@pytest.mark.parametrize("chunks", [1, 3], ids=["whole", "in pieces"])
async def test_key_and_cost_read_the_body_and_the_endpoint_gets_it_again(chunks, with_gate):
    """Both await it, the endpoint validates it: nobody waits for a body that was consumed."""
    limiter = limiter_of(key_func=by_body)
    app = app_of(limiter, with_gate)

    @app.post("/chat")
    @limiter.limit("10/hour", cost=tokens)
    async def chat(message: Message):
        return message

    text = b'{"user": "alice", "tokens": 4}'
    size = -(-len(text) // chunks)
    body = [text[i : i + size] for i in range(0, len(text), size)]

    async def post(pieces):
        headers = {"content-type": "application/json"}
        return await Wire(app, "/chat", method="POST", body=pieces, headers=headers).run()

    answers = [await post(body) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0].body == b'{"user":"alice","tokens":4}'
    assert (await post([text.replace(b"alice", b"bob")])).status == 200


async def test_a_starlette_endpoint_gets_the_body_again_too(with_gate):
    """Without FastAPI the endpoint itself reads the request."""
    limiter = limiter_of(key_func=by_body)

    @limiter.limit("1/hour")
    async def echo(request):
        return Response(await request.body())

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    app.state.limiter = limiter
    if with_gate:
        gated(app, limiter)
    wire = await Wire(app, "/", method="POST", body=[b'{"user":', b'"alice"}']).run()
    assert (wire.status, wire.body) == (200, b'{"user":"alice"}')
    assert (await Wire(app, "/", method="POST", body=[b'{"user":"alice"}']).run()).status == 429


async def test_a_key_function_may_stop_reading_and_the_endpoint_still_gets_all():
    """What was read is handed out again, then the rest comes from the server."""

    async def by_first_piece(request):
        async for piece in request.stream():
            return piece.decode()
        return None

    limiter = limiter_of(key_func=by_first_piece)
    app = gated(FastAPI(), limiter)

    @app.post("/")
    @limiter.limit("1/hour")
    async def echo(request: Request):
        return Response(await request.body())

    wire = await Wire(app, "/", method="POST", body=[b"alice", b"-and-", b"more"]).run()
    assert (wire.status, wire.body) == (200, b"alice-and-more")


CAPS = [(99, 200), (100, 200), (101, 413), (100_000, 413)]


@pytest.mark.parametrize(("size", "status"), CAPS)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_body_beyond_the_cap_is_413_and_charges_nothing(size, status, pieces):
    """`body_cap_bytes=100`: nobody makes a worker keep gigabytes to find out whom to charge."""
    limiter = limiter_of(key_func=by_length, body_cap_bytes=100)
    app = gated(FastAPI(), limiter)

    @app.post("/")
    @limiter.limit("10/hour")
    async def index(request: Request):
        return len(await request.body())

    text = b"x" * size
    step = -(-size // pieces)
    wire = Wire(app, "/", method="POST", body=[text[i : i + step] for i in range(0, size, step)])
    await wire.run()
    assert wire.status == status
    if status == 413:
        assert wire.headers["content-type"] == "application/problem+json"
        assert wire.headers["cache-control"] == "no-store"
        assert "100 bytes" in wire.body.decode()
        assert wire.received <= 1 + 100 // step
    after = await Wire(app, "/", method="POST", body=[b"x"]).run()
    assert after.headers["ratelimit"].startswith(f'"10/hour";r={9 if status == 413 else 8};')


async def by_length(request):
    await request.body()
    return "alice"


async def test_a_body_nobody_needs_is_not_read_for_counting():
    """The cap is for key and cost functions; an endpoint may stream a body of any size."""
    limiter = limiter_of(body_cap_bytes=10)
    app = gated(FastAPI(), limiter)

    @app.post("/")
    @limiter.limit("10/hour")
    async def index(request: Request):
        return sum([len(piece) async for piece in request.stream()])

    wire = await Wire(app, "/", method="POST", body=[b"x" * 50] * 4).run()
    assert (wire.status, wire.body) == (200, b"200")

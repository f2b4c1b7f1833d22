"""`limiter.settle(request, cost)`: what a request was charged by an estimate becomes what it really cost."""

import asyncio

import anyio
import pytest
from anyio import from_thread
from driving import Clock, Wire, client_of, gated, limiter_of
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

from service.errors import AlreadySettled, InvalidInput, StoreUnavailable
from service.limits.stores import MemoryStore


def estimate(request):
    return int(request.headers.get("x-estimate", "70"))


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def stage(request):
    """An app with and without the middleware, and its limiter."""
    limiter = limiter_of(Clock())
    app = FastAPI()
    app.state.limiter = limiter
    return (gated(app, limiter) if request.param else app), limiter


def left(response):
    return [int(part.split(";")[0]) for part in response.headers["ratelimit"].split("r=")[1:]]


def stands(client, path="/"):
    """What is left, by a request that is estimated at nothing."""
    return left(client.get(path, headers={"x-estimate": "0", "x-true": "none"}))


def declare(app, limiter, path="/", **more):
    @app.get(path)
    @limiter.limit("100/minute;1000/hour", cost=estimate, **more)
    async def index(request: Request):
        if (true := request.headers.get("x-true")) != "none":
            await limiter.settle(request, int(true))
        return {}


@pytest.mark.parametrize(("true", "remaining"), [(10, [90, 990]), (70, [30, 930]), (0, [100, 1000]), (90, [10, 910])])
def test_the_true_cost_stands_instead_of_the_estimate(stage, true, remaining):
    """And the headers of the very response tell so."""
    declare(*stage)
    client = client_of(stage[0], raise_server_exceptions=True)
    assert left(client.get("/", headers={"x-true": str(true)})) == remaining
    assert stands(client) == remaining


def test_what_was_used_beyond_is_never_refused_and_delays_who_comes_next(stage):
    declare(*stage)
    client = client_of(stage[0], raise_server_exceptions=True)
    assert left(client.get("/", headers={"x-true": "130"})) == [0, 870]
    assert client.get("/", headers={"x-estimate": "1", "x-true": "1"}).status_code == 429


def test_what_is_not_settled_stays_charged(stage):
    declare(*stage)
    client = client_of(stage[0], raise_server_exceptions=True)
    assert left(client.get("/", headers={"x-true": "none"})) == [30, 930] == stands(client)


def test_a_limit_of_requests_beside_it_counts_requests(stage):
    app, limiter = stage

    @app.get("/")
    @limiter.limit("10/minute", name="requests")
    @limiter.limit("100/hour", cost=50, name="tokens")
    async def index(request: Request):
        told = await limiter.settle(request, 20)
        return [standing.limit.name for standing in told.standings]

    response = client_of(app, raise_server_exceptions=True).get("/")
    assert response.json() == ["tokens"] and sorted(left(response)) == [9, 80]


def test_twice_at_the_same_cost_is_once_and_at_another_an_error(stage):
    app, limiter = stage

    @app.get("/")
    @limiter.limit("100/minute", cost=70)
    async def index(request: Request):
        first, again = await limiter.settle(request, 10), await limiter.settle(request, 10)
        with pytest.raises(AlreadySettled):
            await limiter.settle(request, 11)
        for wrong in (-1, 1.5, "1", 10**9 + 1):
            with pytest.raises(InvalidInput, match="cost"):
                await limiter.settle(request, wrong)
        return first == again

    response = client_of(app, raise_server_exceptions=True).get("/")
    assert response.json() is True and left(response) == [90]


def test_a_stream_settles_at_its_end_and_a_task_after_it(stage):
    app, limiter = stage

    @app.get("/stream")
    @limiter.limit("100/minute", cost=70)
    async def stream(request: Request):
        async def pieces():
            yield b"a"
            await limiter.settle(request, 10)
            yield b"b"

        return StreamingResponse(pieces())

    @app.get("/task")
    @limiter.limit("100/minute", cost=70)
    async def task(request: Request, tasks: BackgroundTasks):
        tasks.add_task(limiter.settle, request, 10)

    @app.get("/plain")
    @limiter.limit("100/minute", cost=70)
    def plain(request: Request):
        from_thread.run(limiter.settle, request, 10)

    client = client_of(app, raise_server_exceptions=True)
    for path, first in (("/stream", 30), ("/task", 30), ("/plain", 90)):
        assert left(client.get(path)) == [first]
        assert left(client.get(path)) == [first - 10], path


def test_what_dependencies_and_decorators_charged_is_settled_together(stage):
    """Without a gate each of them charges for itself."""
    app, limiter = stage

    @app.get("/", dependencies=[Depends(limiter.quota("200/hour", cost=60))])
    @limiter.limit("100/minute", cost=70)
    async def index(request: Request):
        told = await limiter.settle(request, 10)
        return sorted((standing.limit.name, standing.remaining) for standing in told.standings)

    client = client_of(app, raise_server_exceptions=True)
    assert client.get("/").json() == [["100/minute", 90], ["200/hour", 190]]
    assert client.get("/").json() == [["100/minute", 80], ["200/hour", 180]]


def test_a_true_cost_between_two_estimates_gives_back_the_one_and_debits_the_other(stage):
    app, limiter = stage

    @app.get("/")
    @limiter.limit("100/minute", cost=70)
    @limiter.limit("100/hour", cost=20)
    async def index(request: Request):
        told = await limiter.settle(request, 50)
        return sorted(standing.remaining for standing in told.standings)

    assert client_of(app, raise_server_exceptions=True).get("/").json() == [50, 50]


def test_what_the_response_gives_back_is_the_true_cost(stage):
    """`deduct_when` after a settlement, both ways round: nothing is left of it, and nothing more is given."""
    app, limiter = stage
    declare(app, limiter, deduct_when=lambda response: False)
    client = client_of(app, raise_server_exceptions=True)
    for true in ("10", "90", "none"):
        client.get("/", headers={"x-true": true})
        assert stands(client) == [100, 1000]


@pytest.mark.parametrize("limited", [True, False])
def test_where_nothing_was_estimated_there_is_nothing_to_settle(stage, limited):
    app, limiter = stage

    async def index(request: Request):
        return await limiter.settle(request, 10) is None

    app.get("/")(limiter.limit("5/minute")(index) if limited else index)
    assert client_of(app, raise_server_exceptions=True).get("/").json() is True


def test_a_settlement_whose_answer_was_lost_is_tried_again_and_carried_out_once(stage):
    app, limiter = stage
    clock = Clock()
    lost = []

    class Lossy(MemoryStore):
        async def decide(self, asks):
            numbers = await super().decide(asks)
            if lost:
                lost.pop()
                raise StoreUnavailable("cut")
            return numbers

    store = Lossy(clock)
    limiter.engine.use(lambda: store)

    @app.get("/")
    @limiter.limit("100/minute", cost=70)
    async def index(request: Request):
        lost.append(True)
        with pytest.raises(StoreUnavailable):
            await limiter.settle(request, 10)
        with pytest.raises(AlreadySettled):
            await limiter.settle(request, 30)
        return (await limiter.settle(request, 10)).standings[0].remaining

    response = client_of(app, raise_server_exceptions=True).get("/")
    assert response.json() == 90 and left(response) == [90]


async def test_a_stream_whose_client_leaves_is_settled_at_what_it_cost():
    limiter = limiter_of(Clock())
    app = gated(FastAPI(), limiter)

    @app.get("/")
    @limiter.limit("100/minute", cost=estimate)
    async def index(request: Request):
        if request.headers.get("x-true") == "none":
            return None

        async def pieces():
            try:
                while True:
                    yield b"x"
                    await asyncio.sleep(60)
            finally:
                await limiter.settle(request, 10)

        return StreamingResponse(pieces())

    async with anyio.create_task_group() as server:  # cancels again whoever awaits anything meanwhile
        server.start_soon(Wire(app, "/").run)
        await asyncio.sleep(0.05)
        server.cancel_scope.cancel()
    await asyncio.sleep(0.05)
    assert stands(client_of(app)) == [90]

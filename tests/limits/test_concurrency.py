"""Units of concurrency: held while a request runs, free with its last byte, or by themselves if its worker died."""

import asyncio
import contextlib

import pytest
from driving import Clock, Wire, client_of, gated, limiter_of
from fastapi import BackgroundTasks, FastAPI, WebSocket
from starlette.responses import StreamingResponse

from service.errors import ConfigurationError, InvalidInput, InvalidLimit, NotAdmitted
from service.limits import Limiter, identity
from service.limits.decision import LOOK, Ask


class Stage:
    """An app whose requests wait until they are told to go on.

    Attributes:
        go: Lets them.
        under_way: How many endpoints run now.
    """

    def __init__(self, limiter, *, behind_middleware=True):
        self.limiter = limiter
        self.go = asyncio.Event()
        self.under_way = 0
        self.app = FastAPI()
        if behind_middleware:
            gated(self.app, limiter)
        self.app.state.limiter = limiter
        self._routes()

    async def _wait(self):
        self.under_way += 1
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1

    def _routes(self):
        app, limiter = self.app, self.limiter

        @app.get("/slow")
        @limiter.concurrency(2)
        async def slow():
            await self._wait()
            return "done"

        @app.get("/both")
        @limiter.limit("3/minute")
        @limiter.concurrency(1, ttl_s=30)
        async def both():
            await self._wait()

        @app.get("/stream")
        @limiter.concurrency(1)
        async def stream():
            async def pieces():
                yield b"a"
                await self._wait()
                yield b"b"

            return StreamingResponse(pieces())

        @app.get("/fails")
        @limiter.concurrency(1)
        async def fails():
            raise RuntimeError("no")

        @app.get("/afterwards")
        @limiter.concurrency(1)
        async def afterwards(tasks: BackgroundTasks):
            tasks.add_task(self._wait)
            return "sent"

        @app.get("/plain")
        @limiter.concurrency(1)
        def plain():
            return "done"

        @app.websocket("/ws")
        @limiter.concurrency(1)
        async def talk(ws: WebSocket):
            await ws.accept()
            await ws.receive_text()

    @contextlib.asynccontextmanager
    async def running(self, path, times=1):
        """So many requests, under way; cancelled at the end."""
        before = self.under_way
        tasks = [asyncio.ensure_future(Wire(self.app, path).run()) for _ in range(times)]
        async with asyncio.timeout(5):
            while self.under_way < before + times:  # noqa: ASYNC110
                await asyncio.sleep(0)
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def status(self, path):
        return (await Wire(self.app, path).run()).status

    async def soon(self, path, status=200):
        """The status, once what was released has come back."""
        for _ in range(100):
            if (found := await self.status(path)) == status:
                break
            await asyncio.sleep(0.01)
        return found


async def test_one_more_than_may_run_is_refused_and_told_when_the_first_lease_ends():
    stage = Stage(limiter_of(Clock()))
    async with stage.running("/slow", 2) as tasks:
        refused = await Wire(stage.app, "/slow").run()
        assert (refused.status, refused.headers["retry-after"]) == (429, "60")
        assert b'"violated-policies":["2 at once"]' in refused.body
        stage.go.set()
        assert [wire.status for wire in await asyncio.gather(*tasks)] == [200, 200]
    assert await stage.soon("/slow") == 200


async def test_a_unit_is_free_again_at_once_when_its_request_has_ended():
    stage = Stage(limiter_of(Clock()))
    assert [await stage.soon("/plain") for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("path", ["/value", "/stream"])
async def test_whoever_has_read_an_answer_finds_its_unit_free(path, redis_server):
    """On another worker, too: it is free in Redis when the last piece goes out, and not before."""
    limiter, app = Limiter(identity.client_address, storage_uri=redis_server.url, deadline_s=5), FastAPI()
    gated(app, limiter)

    @app.get("/value")
    @limiter.concurrency(1)
    async def value():
        return "done"

    @app.get("/stream")
    @limiter.concurrency(1)
    async def stream():
        return StreamingResponse(iter([b"a", b"b"]))

    wire, held = Wire(app, path), []
    with redis_server.client() as client:

        async def send(message, send=wire.send):
            held.append(len(list(client.scan_iter())))
            await send(message)

        wire.send = send
        await wire.run()
    await limiter.aclose()
    assert wire.status == 200 and held == [1] * (len(held) - 1) + [0]


async def test_limits_of_a_rate_beside_it_are_charged_with_it_or_not_at_all():
    stage = Stage(limiter_of(Clock()))
    async with stage.running("/both") as (first,):
        assert [await stage.status("/both") for _ in range(5)] == [429] * 5  # none of them is charged
        stage.go.set()
        await first
    assert await stage.soon("/both") == 200
    assert await stage.soon("/both") == 200
    last = await Wire(stage.app, "/both").run()  # the rate is used up now, and nothing is held
    assert (last.status, last.headers["ratelimit"]) == (429, '"1 at once";r=1;t=0, "3/minute";r=0;t=60')


async def test_a_stream_holds_its_unit_until_the_last_piece():
    stage = Stage(limiter_of(Clock()))
    async with stage.running("/stream") as (first,):
        assert await stage.status("/stream") == 429
        stage.go.set()
        assert (await first).body == b"ab"
    assert await stage.soon("/stream") == 200


async def test_what_is_done_after_the_answer_holds_nothing():
    stage = Stage(limiter_of(Clock()))
    async with stage.running("/afterwards"), stage.running("/afterwards"):
        assert stage.under_way == 2


async def test_an_exception_releases():
    stage = Stage(limiter_of(Clock()))
    for _ in range(3):
        wire = Wire(stage.app, "/fails")
        with contextlib.suppress(RuntimeError):
            await wire.run()
        await asyncio.sleep(0.01)
        assert wire.status == 500


async def test_a_request_that_is_cancelled_releases():
    stage = Stage(limiter_of(Clock()))
    async with stage.running("/slow", 2):
        assert await stage.status("/slow") == 429
    stage.go.set()
    assert await stage.soon("/slow") == 200


async def test_a_worker_that_died_loses_its_units_after_a_lease():
    """Its request never ends, and nobody renews."""
    clock = Clock()
    dead = Stage(limiter_of(clock))
    store = dead.limiter.engine.open_store()
    async with dead.running("/slow", 2):
        for handle in _timers():
            handle.cancel()
        limiter = Limiter(lambda: "alice", storage_uri="memory://")
        limiter.engine.open_store = lambda: store
        alive = Stage(limiter)
        alive.go.set()
        assert await alive.status("/slow") == 429
        clock.forward(59)
        assert await alive.status("/slow") == 429
        clock.forward(1)
        assert await alive.status("/slow") == 200


def _timers():
    loop = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if "_renew" in repr(handle)]


async def test_a_long_request_keeps_its_unit(redis_server):
    """On a real server: three times as long as its lease."""
    limiter = Limiter(identity.client_address, storage_uri=redis_server.url, deadline_s=5)
    go, app = asyncio.Event(), FastAPI()
    gated(app, limiter)

    @app.get("/long")
    @limiter.concurrency(1, ttl_s=1)
    async def long():
        await go.wait()

    first = asyncio.ensure_future(Wire(app, "/long").run())
    for _ in range(12):
        await asyncio.sleep(0.25)
        assert (await Wire(app, "/long").run()).status == 429
    go.set()
    assert (await first).status == 200
    second = await Wire(app, "/long").run()
    await limiter.aclose()
    assert second.status == 200
    with redis_server.client() as client:
        assert all(client.pttl(key) <= 2_001 for key in client.scan_iter())


def test_a_websocket_holds_its_unit_until_it_is_closed():
    stage = Stage(limiter_of(Clock()))
    with client_of(stage.app) as client:
        with client.websocket_connect("/ws") as first:
            with pytest.raises(Exception), client.websocket_connect("/ws"):  # noqa: B017
                pass
            first.send_text("bye")
        with client.websocket_connect("/ws") as second:
            second.send_text("bye")


def test_without_the_middleware_it_says_what_to_do():
    stage = Stage(limiter_of(Clock()), behind_middleware=False)
    told = pytest.raises(ConfigurationError, match=r"concurrency needs the middleware.*add_middleware")
    with client_of(stage.app, raise_server_exceptions=True) as client, told:
        client.get("/plain")


@pytest.mark.parametrize(
    ("units", "ttl_s"), [(0, 60), (-1, 60), ("3", 60), (3, 0), (3, 0.5), (10**9 + 1, 60), (True, 60)]
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(units, ttl_s):
    with pytest.raises(InvalidLimit):
        limiter_of().concurrency(units, ttl_s=ttl_s)


async def test_a_block_holds_a_unit_while_it_runs():
    clock = Clock()
    limiter = limiter_of(clock)
    async with limiter.lease("alice", 2, ttl_s=30) as first:
        assert first.standings[0].remaining == 1
        async with limiter.lease("alice", 2, ttl_s=30), limiter.lease("bob", 2, ttl_s=30):
            with pytest.raises(NotAdmitted, match="2 at once: all are held; try again in 30 s") as refused:
                await limiter.lease("alice", 2, ttl_s=30).__aenter__()
            assert refused.value.decision.retry_after == 30
            async with limiter.lease("alice", 2, ttl_s=30, scope="other"):
                pass
    with contextlib.suppress(RuntimeError):
        async with limiter.lease("alice", 1):
            raise RuntimeError
    await asyncio.sleep(0)
    async with limiter.lease("alice", 1):
        pass


def test_a_lease_needs_somebody():
    with pytest.raises(InvalidInput, match="key"):
        limiter_of().lease("", 3)


@pytest.mark.parametrize("turns", range(9))
async def test_whoever_is_cancelled_while_he_waits_for_a_unit_holds_none_afterwards(redis_server, turns):
    limiter = Limiter(identity.client_address, storage_uri=redis_server.url, deadline_s=5)

    async def hold():
        async with limiter.lease("alice", 1):
            await asyncio.sleep(60)

    task = asyncio.ensure_future(hold())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for _ in range(200):
        if (await limiter.engine.decide(Ask(limiter.lease("alice", 1)._charges, LOOK))).allowed:
            break
        await asyncio.sleep(0.01)
    async with limiter.lease("alice", 1):
        pass
    await limiter.aclose()

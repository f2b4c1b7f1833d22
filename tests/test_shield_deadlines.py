"""Nobody waits for ever: 504 when no byte comes in time, a cut when a response falls silent; and work ends with it."""

import asyncio
import contextlib
import inspect
import re
import threading
import time
from contextvars import Context, ContextVar
from typing import Annotated

import anyio
import pytest
from fastapi import Depends, FastAPI, WebSocket
from shielding import LAST, START, Line, Wire, chunk, events_of, jumping, now_s, ok, served
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.testclient import TestClient

from service import cancelling
from service.shield import ResponseCut, Shield

GRAIN_S = 0.3
"""How late a deadline of 30 s may be kept: what is open is not looked at more often."""


@pytest.fixture
def told(caplog):
    """The fields of all events of a name."""
    caplog.set_level("INFO")
    return lambda event: events_of(caplog.records, event)


class Everything(frozenset):
    """All paths."""

    def __contains__(self, path):
        return True


@pytest.fixture(params=["anyio's scope", "a task's"])
def both_scopes(request, monkeypatch):
    """Once as any app's work is cancelled, and once as that of a hot route."""
    if request.param == "a task's":
        made = Shield.__init__

        def make(self, *arguments, **options):
            made(self, *arguments, **options)
            self.hot = Everything()

        monkeypatch.setattr(Shield, "__init__", make)


def run(app, *arguments, **options):
    """One request, to its end."""
    return jumping(Wire(app, *arguments, **options).run())


async def hangs(scope, receive, send):
    await asyncio.Event().wait()


async def sleeps_well():
    """Nothing is left that would wake the loop."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(100)
    loop.timers = 0
    await asyncio.sleep(100)
    assert loop.timers == 1  # this sleep's


# ── time to first byte ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("both_scopes")
def test_without_a_byte_in_time_the_answer_is_504(told):
    """30 s; problem+json with the request's id; one line at warning."""
    shield = Shield(hangs)
    wire = run(shield, "/slow")
    assert (wire.status, wire.at_s) == (504, [30, 30])
    assert wire.problem["title"] == "Gateway Timeout"
    assert "30 s" in wire.problem["detail"]
    [fields] = told("request_timeout")
    assert fields == {
        "request_id": wire.problem["request_id"],
        "method": "GET",
        "path": "/slow",
        "timeout_s": 30,
    }
    assert (shield.timeouts, shield.in_flight, shield.shed) == (1, 0, 0)


async def notices(scope, receive, send):
    try:
        await hangs(scope, receive, send)
    finally:
        scope["state"]["cancelled_s"] = now_s()


async def swallows(scope, receive, send):
    try:
        await hangs(scope, receive, send)
    except asyncio.CancelledError:
        await ok()(scope, receive, send)


async def translates(scope, receive, send):
    try:
        await hangs(scope, receive, send)
    except asyncio.CancelledError:
        raise asyncio.CancelledError from None  # another one


async def stumbles(scope, receive, send):
    with contextlib.suppress(asyncio.CancelledError):
        await hangs(scope, receive, send)
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def fails(scope, receive, send):
    try:
        await hangs(scope, receive, send)
    except asyncio.CancelledError:
        raise TimeoutError from None


async def answers_late(scope, receive, send):
    await asyncio.sleep(29.9)
    await asyncio.shield(asyncio.sleep(1))
    await ok()(scope, receive, send)


async def asks_for_more(scope, receive, send):
    while True:
        await receive()


async def gathers(scope, receive, send):
    await asyncio.gather(hangs(scope, receive, send), asyncio.sleep(40))


async def in_a_group(scope, receive, send):
    async with asyncio.TaskGroup() as group:
        group.create_task(hangs(scope, receive, send))


async def with_a_deadline_of_its_own(scope, receive, send):
    async with asyncio.timeout(40):
        await hangs(scope, receive, send)


async def fallen_into_plain_text(scope, receive, send):
    """Its 500 is held back, for it may yet be raised."""
    try:
        raise KeyError
    except KeyError:
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
        await hangs(scope, receive, send)


APPS = [
    hangs,
    notices,
    swallows,
    translates,
    stumbles,
    fails,
    answers_late,
    asks_for_more,
    gathers,
    in_a_group,
    with_a_deadline_of_its_own,
    fallen_into_plain_text,
]


@pytest.mark.usefixtures("both_scopes")
@pytest.mark.parametrize("app", APPS)
def test_whatever_the_work_does_with_its_cancellation_the_answer_is_504(app):
    """In time, whole, once; nothing is raised at the server; and the work ends."""
    wire = run(Shield(app))
    assert wire.problem["status"] == 504
    assert wire.at_s == [30, 30]
    assert wire.scope["state"].get("cancelled_s", 30) == 30


@pytest.mark.usefixtures("both_scopes")
@pytest.mark.parametrize("app", APPS)
def test_a_shield_in_a_shield_keeps_the_shorter_deadline(app, caplog):
    assert run(Shield(Shield(app, request_timeout_s=5))).at_s == [5, 5]
    wire = run(Shield(Shield(app), request_timeout_s=5))
    assert wire.at_s == [5, 5]
    assert wire.problem["request_id"] == wire.scope["state"]["request_id"]
    assert run(Shield(Shield(app))).problem["status"] == 504


@pytest.mark.usefixtures("both_scopes")
@pytest.mark.parametrize("after_s", [29.99, 29.9999, 30, 30.0001, 30.01, 30.1])
def test_an_answer_at_the_last_moment_is_whole_whosever_it_is(after_s):
    async def app(scope, receive, send):
        await asyncio.sleep(after_s)
        await ok()(scope, receive, send)

    wire = run(Shield(app))
    assert wire.complete
    assert wire.status in (200, 504)
    assert wire.status == 200 or after_s >= 30


@pytest.mark.usefixtures("both_scopes")
def test_an_app_that_ends_in_the_very_moment_waits_for_the_504():
    """A server that saw it return would answer 500 itself."""

    async def visit():
        due = asyncio.get_running_loop().create_future()

        async def app(scope, receive, send):
            await due

        class Wired(Wire):
            async def send(self, message):
                if not due.done():
                    due.set_result(None)
                for _ in range(10):
                    await asyncio.sleep(0)
                await super().send(message)

        wire = await Wired(Shield(app)).run()
        assert wire.problem["status"] == 504

    jumping(visit())


@pytest.mark.usefixtures("both_scopes")
def test_what_is_sent_after_the_504_is_lost_and_receive_says_that_the_client_has_left():
    heard = []

    async def app(scope, receive, send):
        try:
            await hangs(scope, receive, send)
        except asyncio.CancelledError:
            await send(START)
            await send(chunk())
            heard.append(await receive())

    assert run(Shield(app)).problem["status"] == 504
    assert heard == [{"type": "http.disconnect"}]


@pytest.mark.usefixtures("both_scopes")
@pytest.mark.parametrize("says", [chunk(), START, LAST, None])
def test_an_app_that_talks_or_listens_on_in_a_loop_holds_nobody_up(says):
    """What it sends is lost, and each loss gives others their turn."""
    turns = []

    async def app(scope, receive, send):
        try:
            await hangs(scope, receive, send)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_soon(turns.append, "another's")
            for _ in range(3):
                await (send(says) if says else receive())
            turns.append("the app's")

    assert run(Shield(app)).problem["status"] == 504
    assert turns == ["another's", "the app's"]


def test_an_upload_that_makes_progress_is_not_timed_out():
    """Counted from the last byte that came: 5 × 20 s, and another 20 s until the answer."""

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await asyncio.sleep(20)
        await ok()(scope, receive, send)

    wire = run(Shield(app), method="POST", body=[20, b"a", 20, b"b", 20, b"c", 20, b"d", 20, b"e"])
    assert (wire.status, wire.at_s) == (200, [120, 120])


@pytest.mark.usefixtures("both_scopes")
def test_an_upload_that_stalls_is_504():
    """30 s after its last byte."""

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    wire = run(Shield(app), method="POST", body=[20, b"a", 20, b"b", 3600, b"c"])
    assert wire.problem["status"] == 504
    assert 70 <= wire.at_s[0] <= 70 + GRAIN_S


def test_health_has_the_deadline_too():
    """A probe that hangs would leave one more task behind each time."""
    assert run(Shield(hangs), "/health").problem["status"] == 504


def test_a_websocket_has_none():
    app = FastAPI()
    waited = []

    @app.websocket("/ws")
    async def slow(session: WebSocket):
        await asyncio.sleep(0.05)
        waited.append(True)
        await session.accept()
        await session.close()

    shield = Shield(app, request_timeout_s=0.01, stream_idle_s=0.01)
    with TestClient(shield).websocket_connect("/ws"):
        pass
    assert waited


def test_of_many_each_is_due_in_its_own_time():
    """One timer for all: nobody early, nobody later than its grain."""

    async def crowd():
        shield = Shield(hangs, max_in_flight=0)
        wires, serving = [], []
        for _ in range(100):
            wires.append((now_s(), Wire(shield)))
            serving.append(wires[-1][1].start())
            await asyncio.sleep(0.7)
        await asyncio.gather(*serving)
        for begun_s, wire in wires:
            assert begun_s + 30 <= wire.at_s[0] <= begun_s + 30 + GRAIN_S

    jumping(crowd())


def test_deadlines_cost_no_timer_a_request_or_chunk():
    """Ten thousand in ten minutes: looked over some twenty times."""

    async def crowd():
        loop = asyncio.get_running_loop()

        async def app(scope, receive, send):
            await send(START)
            for _ in range(10):
                await send(chunk())
            await send(LAST)

        shield = Shield(app)
        loop.timers = 0
        for _ in range(1000):
            for _ in range(10):
                await Wire(shield).run()
            loop.timers -= 1
            await asyncio.sleep(0.6)
        assert loop.timers <= 25

    jumping(crowd())


def test_without_traffic_there_is_no_timer():
    """An idle server sleeps."""

    async def visit():
        await Wire(Shield(ok())).run()
        await sleeps_well()

    jumping(visit())


def test_a_deadline_is_for_the_first_byte_only():
    """What is started has another; the rest may take long."""

    async def app(scope, receive, send):
        await send(START)
        for _ in range(10):
            await asyncio.sleep(20)
            await send(chunk())
        await send(LAST)

    assert run(Shield(app)).at_s[-1] == 200


def test_background_tasks_have_no_deadline():
    ended = []

    async def long():
        await asyncio.sleep(3600)
        ended.append(now_s())

    shield = Shield(PlainTextResponse("ok", background=BackgroundTask(long)))
    assert run(shield).status == 200
    assert ended == [3600]
    assert shield.timeouts == 0


@pytest.mark.usefixtures("both_scopes")
def test_a_cancelled_request_may_await_in_its_finally():
    """It is cancelled once, as by asyncio: a connection can be given back in peace."""
    tidied = []

    async def app(scope, receive, send):
        try:
            await hangs(scope, receive, send)
        finally:
            await asyncio.sleep(0.5)
            tidied.append(now_s())

    assert run(Shield(app)).at_s == [30, 30]
    assert tidied == [30.5]


@pytest.mark.usefixtures("both_scopes")
def test_a_request_cancelled_while_it_was_about_to_run_may_await_in_its_finally_too():
    """What a stream is refused for, or a body, happens within its own call."""
    tidied = []

    async def app(scope, receive, send):
        try:
            await receive()
        finally:
            await asyncio.sleep(0.5)
            tidied.append(now_s())

    assert run(Shield(app, max_body_bytes=1), body=[b"xx"]).problem["status"] == 413
    assert tidied == [0.5]


@pytest.mark.usefixtures("both_scopes")
def test_work_that_will_not_end_is_cancelled_once_a_second():
    """And not at every turn of the loop, which would keep a core busy for as long as it lasts."""
    heard = []

    async def app(scope, receive, send):
        while now_s() < 59.5 and len(heard) < 1000:
            try:
                await asyncio.sleep(59.5 - now_s())
            except asyncio.CancelledError:
                heard.append(round(now_s()))

    assert run(Shield(app)).problem["status"] == 504
    assert heard == [*range(30, 60)]


@pytest.mark.usefixtures("both_scopes")
def test_a_timed_out_request_can_still_be_cancelled_by_the_server():
    """At the end of a drain."""

    async def app(scope, receive, send):
        while True:
            try:
                await hangs(scope, receive, send)
            except asyncio.CancelledError as error:
                if error.args == ("the drain is over",):
                    raise

    async def drain():
        wire = Wire(Shield(app))
        serving = wire.start()
        await asyncio.sleep(32.5)
        assert wire.status == 504
        serving.cancel("the drain is over")
        with pytest.raises(asyncio.CancelledError):
            await serving
        await sleeps_well()

    jumping(drain())


@pytest.mark.usefixtures("both_scopes")
def test_a_client_that_does_not_even_take_the_504_is_cut_off():
    """After `stream_idle_s`, as any client that does not read."""

    async def visit():
        wire = Wire(Shield(hangs))
        wire.writable.clear()
        with pytest.raises(ResponseCut):
            await wire.run()
        assert now_s() == 30 + 60

    jumping(visit())


@pytest.mark.usefixtures("both_scopes")
def test_a_client_that_does_not_take_the_500_is_cut_off(told):
    """Its line is the exception's."""

    async def app(scope, receive, send):
        raise KeyError

    async def visit():
        wire = Wire(Shield(app))
        wire.writable.clear()
        with pytest.raises(ResponseCut):
            await wire.run()
        assert now_s() == 60

    jumping(visit())
    assert told("stream_idle") == []


@pytest.mark.usefixtures("both_scopes")
def test_a_request_that_the_server_gives_up_before_its_504_is_taken_is_forgotten():
    async def visit():
        wire = Wire(Shield(notices))
        wire.writable.clear()
        serving = wire.start()
        await asyncio.sleep(31)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await sleeps_well()

    jumping(visit())


def test_a_504_is_sent_in_no_other_requests_context():
    """The timer is started by the first request that comes."""
    whose = ContextVar("whose", default="nobody's")

    async def visit():
        shield = Shield(hangs)

        class Seeing(Wire):
            async def send(self, message):
                seen.append(whose.get())

        seen = []
        whose.set("the first's")
        serving = [Wire(shield).start()]
        await asyncio.sleep(1)
        serving.append(asyncio.get_running_loop().create_task(Seeing(shield).run(), context=Context()))
        await asyncio.gather(*serving)
        assert seen == ["nobody's"] * 2

    jumping(visit())


def test_a_timed_out_request_leaves_the_count_when_it_is_answered_not_when_it_ends():
    async def app(scope, receive, send):
        if scope["path"] == "/":
            while now_s() < 100:
                try:
                    await asyncio.sleep(100 - now_s())
                except asyncio.CancelledError:
                    continue
        await ok()(scope, receive, send)

    async def crowd():
        shield = Shield(app, max_in_flight=1)
        serving = Wire(shield).start()
        await asyncio.sleep(31)
        assert shield.in_flight == 0
        assert (await Wire(shield, "/other").run()).status == 200
        assert not serving.done()
        await serving

    jumping(crowd())


# ── silence within a response ────────────────────────────────────────────────────────────────────────────────────────


def silent_after(*pauses_s, chunks=b"x"):
    """An app that sends a chunk after each pause, then nothing."""

    async def app(scope, receive, send):
        try:
            await send(START)
            for pause_s in pauses_s:
                await asyncio.sleep(pause_s)
                await send(chunk(chunks))
            await hangs(scope, receive, send)
        finally:
            scope["state"]["cancelled_s"] = now_s()

    return app


async def cut(app, **options):
    """The wire of a request that is cut, and when."""
    wire = Wire(app, **options)
    with pytest.raises(ResponseCut):
        await wire.run()
    return wire, now_s()


@pytest.mark.usefixtures("both_scopes")
def test_a_stream_that_falls_silent_is_cut(told):
    """60 s after its last chunk; its work is cancelled; one line."""
    shield = Shield(silent_after(1, 59, 59.9))
    wire, at_s = jumping(cut(shield))
    assert len(wire.sent) == 4
    assert 179.9 <= at_s <= 179.9 + 2 * GRAIN_S
    assert wire.scope["state"]["cancelled_s"] == at_s
    [fields] = told("stream_idle")
    assert fields == {"request_id": wire.headers["x-request-id"], "method": "GET", "path": "/", "idle_s": 60}
    assert (shield.streams, shield.in_flight, shield.timeouts) == (0, 0, 0)


def test_empty_chunks_break_no_silence():
    """Nothing of them reaches the client."""
    wire, at_s = jumping(cut(Shield(silent_after(40, 40, 40, chunks=b""))))
    assert 60 <= at_s <= 61
    assert wire.status == 200


def test_a_client_that_does_not_read_is_cut_off_too():
    """`send` waits for it."""

    async def visit():
        async def app(scope, receive, send):
            await send(START)
            await send(chunk())
            wire.writable.clear()
            await send(chunk())

        wire = Wire(Shield(app))
        with pytest.raises(ResponseCut):
            await wire.run()
        assert 60 <= now_s() <= 61

    jumping(visit())


def test_a_response_of_known_length_may_not_fall_silent_either():
    async def app(scope, receive, send):
        await send({**START, "headers": [(b"content-length", b"2")]})
        await send(chunk())
        await hangs(scope, receive, send)

    assert 60 <= jumping(cut(Shield(app)))[1] <= 61


def test_a_stream_whose_silence_is_short_is_cut_although_requests_may_take_long():
    """Each deadline is kept whichever is the shorter."""
    for timeout_s in (1000, 0, 1):
        wire, at_s = jumping(cut(Shield(silent_after(0.9), request_timeout_s=timeout_s, stream_idle_s=5)))
        assert len(wire.sent) == 2
        assert 5.9 <= at_s <= 6


def test_silence_is_counted_from_the_first_byte():
    """However long that took; and wherever in between the timer has looked."""

    async def app(scope, receive, send):
        await asyncio.sleep(7)
        await silent_after()(scope, receive, send)

    assert 12 <= jumping(cut(Shield(app, request_timeout_s=1000, stream_idle_s=5)))[1] <= 12.1


def test_a_client_that_reads_slowly_is_not_silent():
    """50 s for a chunk, 50 s until the next one comes."""

    async def visit():
        async def app(scope, receive, send):
            await send(START)
            for _ in range(3):
                wire.writable.clear()
                asyncio.get_running_loop().call_later(50, wire.writable.set)
                await send(chunk())
                await asyncio.sleep(50)
            await send(LAST)

        wire = Wire(Shield(app))
        await wire.run()
        assert (wire.complete, now_s()) == (True, 300)

    jumping(visit())


def test_a_stream_that_is_read_from_is_not_silent():
    """Bytes that come count as well as bytes that go: an echo may wait for its client."""

    async def echo(scope, receive, send):
        await send(START)
        while (message := await receive())["more_body"]:
            pass
        await send({**LAST, "body": message["body"]})

    wire = run(Shield(echo), body=[50, b"a", 50, b"b", 50, b"c"])
    assert wire.at_s[-1] == 150


def test_a_file_that_the_server_sends_is_not_silent():
    """`http.response.pathsend`: nobody here can see it move."""

    async def visit():
        async def slow(message):
            if message["type"] == "http.response.pathsend":
                await asyncio.sleep(3600)

        async def app(scope, receive, send):
            await send(START)
            await send({"type": "http.response.pathsend", "path": "/film"})

        await Shield(app)(Wire(None).scope, None, slow)
        assert now_s() == 3600

    jumping(visit())


@pytest.mark.usefixtures("both_scopes")
def test_an_app_whose_stream_was_cut_hears_that_its_client_has_left():
    """At once, whatever that is still sending or not."""
    heard = []

    async def app(scope, receive, send):
        await send(START)
        try:
            await hangs(scope, receive, send)
        except asyncio.CancelledError:
            heard.append((await receive())["type"])

    for body in ([b"a", b"b"], []):
        jumping(cut(Shield(app), body=body))
    assert heard == ["http.disconnect"] * 2


@pytest.mark.usefixtures("both_scopes")
def test_a_stream_cut_by_an_inner_shield_is_cut_by_the_outer():
    wire, at_s = jumping(cut(Shield(Shield(silent_after(1), stream_idle_s=5))))
    assert 6 <= at_s <= 6.1
    assert len(wire.sent) == 2


@pytest.mark.usefixtures("both_scopes")
@pytest.mark.parametrize("before_s", [-1e-10, 0, 1e-10, 1e-6])
def test_a_response_that_ends_at_the_last_moment_is_whole_or_cut(before_s):
    """It may end in the very turn of the loop in which it is due; what is left behind is nothing."""

    async def app(scope, receive, send):
        await send(START)
        wire.writable.clear()
        asyncio.get_running_loop().call_later(60 - before_s, wire.writable.set)
        await send(LAST)

    async def visit():
        nonlocal wire
        shield = Shield(app)
        wire = Wire(shield)
        with contextlib.suppress(ResponseCut):
            await wire.run()
        assert (shield.in_flight, shield.streams) == (0, 0)
        assert wire.complete or before_s <= 0
        await sleeps_well()

    wire = None
    jumping(visit())


# ── threads, frameworks, real connections ────────────────────────────────────────────────────────────────────────────


class Slow:
    """A FastAPI app with endpoints that wait until `free` is set; a thread each, where it says so."""

    def __init__(self):
        self.free = threading.Event()
        self.entered = 0
        self.tidied = []
        self.app = app = FastAPI()

        async def resource():
            try:
                yield
            finally:
                await asyncio.sleep(0)
                self.tidied.append("async")

        def resource_in_a_thread():
            try:
                yield
            finally:
                self.tidied.append("sync")

        def slow_dependency():
            self.free.wait()

        Resource = Annotated[None, Depends(resource)]  # noqa: N806
        ResourceInAThread = Annotated[None, Depends(resource_in_a_thread)]  # noqa: N806

        @app.get("/fast")
        async def fast():
            return {}

        @app.get("/async")
        async def in_the_loop(_: Resource, __: ResourceInAThread):
            await asyncio.sleep(3600)

        @app.get("/sync")
        def in_a_thread(_: Resource):
            self.entered += 1
            self.free.wait()
            return {}

        @app.get("/dependency")
        async def behind(_: Annotated[None, Depends(slow_dependency)]):
            return {}

        @app.get("/swallows")
        async def swallows():
            while not self.free.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)

        @app.get("/falls-silent")
        async def falls_silent():
            async def chunks():
                yield "x"
                await asyncio.sleep(3600)

            return StreamingResponse(chunks())

        @app.get("/falls-silent-in-a-thread")
        async def falls_silent_in_a_thread():
            def chunks():
                yield "x"
                self.free.wait()
                yield "y"

            return StreamingResponse(chunks())


@pytest.fixture
def slow():
    made = Slow()
    yield made
    made.free.set()


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_each_kind_of_endpoint_is_504_in_time_and_its_connection_lives(slow, http, middleware):
    """While its thread is still stuck, too."""
    if middleware:

        async def dispatch(request, call_next):
            return await call_next(request)

        slow.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    with served(Shield(slow.app, request_timeout_s=0.1), http=http) as port:
        with Line(port) as line:
            for path in ("/async", "/sync", "/dependency", "/swallows"):
                status, headers, body = line.ask(path)
                assert (status, headers["content-type"]) == (504, "application/problem+json")
                assert headers["x-request-id"].encode() in body
                assert "connection" not in headers
                assert line.ask("/fast")[0] in (200, 504)  # of a machine that has other things to do
        assert slow.entered == 1
        slow.free.set()
    assert sorted(slow.tidied) == ["async", "async", "sync"]


def test_a_thousand_timeouts_of_sync_endpoints_leave_no_threads_behind(slow):
    """The pool has 40: those that wait for one are cancelled, and no further one is started.

    A native cancel (`asyncio.timeout`, `wait_for`) would free a place in the pool while its thread is stuck: 750.
    """
    before, most = threading.active_count(), 0
    shield = Shield(slow.app, request_timeout_s=0.05, max_in_flight=0)
    with served(shield) as port:
        lines = [Line(port) for _ in range(100)]
        statuses = []
        for _ in range(10):
            for line in lines:
                line.send("/sync")
            for line in lines:
                statuses.append(line.answer()[0])
                most = max(most, threading.active_count())
        for line in lines:
            line.__exit__()
        assert statuses == [504] * 1000
        assert shield.timeouts == 1000
        assert most <= before + 1 + 40 + 10
        assert slow.entered <= 40
        assert shield.in_flight == 0
        slow.free.set()


def test_a_stream_that_falls_silent_is_a_connection_that_ends(slow, caplog):
    """The client must not take it for whole; of us it is one line, of uvicorn none."""
    shield = Shield(slow.app, stream_idle_s=0.1)
    with served(shield) as port:
        with Line(port) as line, pytest.raises(ConnectionError):
            line.ask("/falls-silent")
        with Line(port) as line:
            line.send("/falls-silent-in-a-thread")
            while not events_of(caplog.records, "stream_idle")[1:]:
                time.sleep(0.005)
            slow.free.set()  # it is cut when its thread is back
            with pytest.raises(ConnectionError):
                line.answer()
        assert shield.streams == 0
    assert [record.getMessage().split()[0] for record in caplog.records if record.levelname != "INFO"] == [
        "stream_idle",
        "stream_idle",
    ]


def test_a_stalled_upload_is_504_and_the_rest_of_it_is_no_request(slow):
    """It is read and thrown away when it comes after all."""

    @slow.app.post("/upload")
    async def upload(body: dict):
        return body

    with served(Shield(slow.app, request_timeout_s=0.1)) as port, Line(port) as line:
        line.send("/upload", "POST", content_length="100", content_type="application/json")
        line.socket.sendall(b"GET /evil HTTP/1.1\r\n")
        assert line.answer()[0] == 504
        line.socket.sendall(b"x" * 80)
        assert line.ask("/fast")[0] in (200, 504)


def test_the_insides_of_anyio_that_are_touched_are_where_they_were():
    """Else a request that times out is cancelled at every turn of the loop: see `service.cancelling.cancel`."""
    names = set(re.findall(r'getattr\(scope, "(\w+)"', inspect.getsource(cancelling)))

    async def look():
        with anyio.CancelScope() as scope:
            await asyncio.sleep(0)
            return {name for name in names if hasattr(scope, name)}

    assert asyncio.run(look()) == names
    assert len(names) == 3

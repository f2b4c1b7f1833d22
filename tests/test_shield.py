"""Whatever an app does, its client gets an answer; and what the server is asked for stays within its limits."""

import asyncio
import logging
import os
import re
import threading

import anyio
import httpx2
import pytest
from fastapi import FastAPI, WebSocket
from shielding import LAST, START, Line, Wire, chunk, events_of, jumping, now_s, ok, served
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.testclient import TestClient

from service.errors import ConfigurationError
from service.logs import REQUEST_ID
from service.shield import ResponseCut, Shield, is_stream, sane_request_id


@pytest.fixture
def told(caplog):
    """The fields of all events of a name."""
    caplog.set_level("INFO")
    return lambda event: events_of(caplog.records, event)


def run(app, *arguments, **options):
    """One request, to its end."""
    return jumping(Wire(app, *arguments, **options).run())


def run_with_threads(app, *arguments, **options):
    """The same where a thread works meanwhile: the clock must not jump."""
    return asyncio.run(Wire(app, *arguments, **options).run())


def raising(error, *messages):
    """An app that sends these, then raises."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)
        raise error

    return app


def sending(*messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


# ── the guard ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, BaseException])
def test_what_would_end_a_process_ends_a_request(told, kind):
    """`sys.exit()` in a library that an endpoint calls: 500, and the connection lives as after any exception."""
    wire = run(Shield(raising(kind("out"))))
    assert (wire.status, wire.problem["request_id"]) == (500, wire.headers["x-request-id"])
    assert len(told("unhandled_exception")) == 1


def test_an_exception_is_answered_500_and_not_raised(told):
    """Raised at uvicorn, it would close the connection after an answer that says keep-alive: the next request dies."""
    wire = run(Shield(raising(KeyError("a secret"))))
    assert wire.status == 500
    assert wire.problem["title"] == "Internal Server Error"
    assert "secret" not in wire.body.decode()
    [fields] = told("unhandled_exception")
    assert (fields["method"], fields["path"], fields["request_id"]) == ("GET", "/", wire.problem["request_id"])
    assert isinstance(fields["exc_info"][1], KeyError)
    assert fields["exc_info"][2] is not None


def failing_app(**options):
    app = FastAPI(**options)

    @app.get("/")
    async def fails():
        raise KeyError("a secret")

    return app


def test_starlettes_plain_500_is_replaced(told):
    """ServerErrorMiddleware answers in plain text and raises: the client is told in problem+json, once."""
    wire = run(Shield(failing_app()))
    assert wire.problem["status"] == 500
    assert len(told("unhandled_exception")) == 1


def test_a_500_handler_of_the_apps_own_has_its_way(told):
    app = failing_app()

    @app.exception_handler(Exception)
    async def sorry(request, error):
        return HTMLResponse("<h1>sorry</h1>", 500)

    wire = run(Shield(app))
    assert (wire.status, wire.body) == (500, b"<h1>sorry</h1>")
    assert wire.headers["content-type"] == "text/html; charset=utf-8"
    assert len(told("unhandled_exception")) == 1


def test_a_500_handler_may_speak_plain_text_of_its_own():
    app = failing_app()

    @app.exception_handler(Exception)
    async def sorry(request, error):
        return PlainTextResponse("sorry", 500)

    assert run(Shield(app)).body == b"sorry"


def test_the_page_of_debug_mode_is_shown_unchanged(told):
    wire = run_with_threads(Shield(failing_app(debug=True)), headers={"accept": "text/html"})
    assert b"KeyError" in wire.body
    assert wire.headers["content-type"].startswith("text/html")
    assert len(told("unhandled_exception")) == 1


@pytest.mark.parametrize("handled", [Exception, 500])
def test_as_a_middleware_of_the_app_it_asks_the_apps_500_handler_too(told, handled):
    """That stands outside of it, and would never be reached; what it answers in plain text is no exception either."""
    app = failing_app()
    app.add_middleware(Shield)
    app.add_exception_handler(handled, lambda request, error: PlainTextResponse("Internal Server Error", 500))
    wire = run_with_threads(app)
    assert (wire.status, wire.body, wire.complete) == (500, b"Internal Server Error", True)
    assert len(told("unhandled_exception")) == 1


def test_as_a_middleware_of_the_app_it_shows_the_page_of_debug_mode(told):
    app = failing_app(debug=True)
    app.add_middleware(Shield)
    assert b"Traceback" in run_with_threads(app).body
    assert len(told("unhandled_exception")) == 1


def test_a_500_handler_that_fails_is_a_500_too(told):
    """Both exceptions are logged: the first says what was wrong."""

    def handler(request, error):
        raise ValueError("the handler")

    app = failing_app()
    app.add_middleware(Shield)
    app.add_exception_handler(Exception, handler)
    assert run_with_threads(app).problem["status"] == 500
    kinds = [type(fields["exc_info"][1]) for fields in told("unhandled_exception")]
    assert kinds == [KeyError, ValueError]


def test_without_a_handler_it_answers_itself_as_a_middleware_of_the_app():
    app = failing_app()
    app.add_middleware(Shield)
    assert run(app).problem["status"] == 500


def test_a_plain_500_that_is_no_exception_passes_unchanged_and_at_once():
    """From a handler, and from within an `except`."""
    said = PlainTextResponse("Internal Server Error", 500)

    async def plain(scope, receive, send):
        await said(scope, receive, send)
        await asyncio.sleep(5)  # background work: the answer does not wait for it

    async def rescued(scope, receive, send):
        try:
            raise KeyError
        except KeyError:
            await said(scope, receive, send)

    wire = run(Shield(plain))
    assert (wire.status, wire.body, wire.at_s) == (500, b"Internal Server Error", [0, 0])
    wire = run(Shield(rescued))
    assert (wire.status, wire.body, wire.complete) == (500, b"Internal Server Error", True)
    assert wire.headers["x-request-id"]


def test_another_plain_500_is_not_held_back():
    """Only that very text is Starlette's."""

    async def app(scope, receive, send):
        try:
            raise KeyError
        except KeyError:
            await send({**START, "status": 500, "headers": [(b"content-type", b"text/plain")]})
            await asyncio.sleep(1)
            await send(chunk(b"Internal Server Error"))
            await send(LAST)
            raise

    wire = run(Shield(app))
    assert (wire.body, wire.at_s) == (b"Internal Server Error", [1, 1, 1])


def test_a_stock_start_without_its_body_is_a_500_when_it_raises():
    async def app(scope, receive, send):
        try:
            raise KeyError
        except KeyError:
            await send({**START, "status": 500, "headers": [(b"content-type", b"text/plain")]})
            raise

    assert run(Shield(app)).problem["status"] == 500


def test_what_fails_in_the_background_is_logged_and_raised_at_nobody(told):
    """The response is whole: the connection may live."""

    async def fails():
        raise ValueError("too late")

    wire = run(Shield(PlainTextResponse("ok", background=BackgroundTask(fails))))
    assert (wire.status, wire.body) == (200, b"ok")
    assert len(told("unhandled_exception")) == 1


def test_an_exception_in_the_middle_of_a_response_is_raised_at_the_server(told):
    """It closes the connection, so that the client does not take a half for the whole; and it writes the log."""
    with pytest.raises(KeyError):
        run(Shield(raising(KeyError("x"), START, chunk())))
    assert told("unhandled_exception") == []


def test_an_app_that_gives_no_answer_is_a_500(told):
    assert run(Shield(sending())).problem["status"] == 500
    assert len(told("no_response")) == 1


def test_a_response_that_is_not_ended_cuts_the_connection(told):
    with pytest.raises(ResponseCut):
        run(Shield(sending(START, chunk())))
    assert len(told("response_not_ended")) == 1


async def listens(scope, receive, send):
    """Goes when the client goes."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def streams(scope, receive, send):
    await send(START)
    await send(chunk())
    await listens(scope, receive, send)


async def reads(scope, receive, send):
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


async def reads_in_a_group(scope, receive, send):
    async with anyio.create_task_group() as group:
        group.start_soon(reads, scope, receive, send)


@pytest.mark.parametrize("app", [listens, streams, reads, reads_in_a_group])
def test_a_client_that_leaves_is_no_news(app, caplog):
    """Nothing is raised, logged or counted for ever."""
    shield = Shield(app)

    async def visit():
        wire = Wire(shield)
        serving = wire.start()
        await asyncio.sleep(1)
        wire.leave()
        await serving

    jumping(visit())
    assert caplog.records == []
    assert (shield.in_flight, shield.streams) == (0, 0)


def test_a_bug_is_told_even_when_the_client_has_left(told):
    """Only what says that the client left is silent."""

    async def app(scope, receive, send):
        await listens(scope, receive, send)
        raise ConnectionResetError("the database")

    async def visit():
        wire = Wire(Shield(app))
        wire.leave()
        await wire.run()

    jumping(visit())
    assert len(told("unhandled_exception")) == 1


def test_a_server_that_raises_when_the_client_has_left_is_understood(caplog):
    """ASGI 2.4: `send` raises OSError; the app lets it pass, or not."""

    class Gone(Wire):
        async def send(self, message):
            raise ConnectionResetError

    jumping(Gone(Shield(sending(START))).run())
    assert caplog.records == []


def test_a_cancelled_future_is_a_500_like_any_exception(told):
    """Nobody cancelled the request: something it awaited had been cancelled, as by a pool that closes."""

    async def app(scope, receive, send):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    assert run(Shield(app)).problem["status"] == 500
    assert len(told("unhandled_exception")) == 1


@pytest.mark.parametrize("itself", [True, False])
def test_a_cancelled_request_is_the_servers_affair(told, itself):
    async def app(scope, receive, send):
        if itself:
            asyncio.current_task().cancel()
        await asyncio.sleep(10)

    async def cancelled():
        shield = Shield(app)
        wire = Wire(shield)
        serving = wire.start()
        await asyncio.sleep(1)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert wire.sent == []
        assert shield.in_flight == 0

    jumping(cancelled())
    assert told("unhandled_exception") == []


@pytest.mark.parametrize(
    "start",
    [
        {**START, "headers": [(b"x", b"a\r\nset-cookie: b")]},
        {**START, "headers": [(b"x\n", b"a")]},
        {**START, "headers": [(b"a name", b"a")]},
        {**START, "headers": [("x", "text")]},
        {**START, "headers": [(b"Content-Length", b"many")]},
        {**START, "status": 99},
        {**START, "status": 100},
        {**START, "status": 1000},
        {**START, "status": "200"},
        {"type": "http.response.start"},
    ],
    ids=str,
)
def test_a_response_that_cannot_be_sent_is_a_500(start):
    """uvicorn finds out when it has begun, sends nothing and hangs up."""
    assert run(Shield(sending(start, LAST))).problem["status"] == 500


def test_headers_may_be_any_iterable_and_messages_are_not_written_to():
    """An app may send the same message for ever."""
    start = {**START, "headers": [[b"content-length", b"0"]]}
    app = Shield(sending(start, LAST))
    for _ in range(2):
        assert list(run(app).headers) == ["content-length", "x-request-id"]
    assert start["headers"] == [[b"content-length", b"0"]]
    assert "headers" not in run(Shield(sending({"type": START["type"], "status": 204}, LAST))).headers


@pytest.mark.parametrize("messages", [[LAST], [chunk(), START, LAST]])
def test_a_body_before_the_start_is_a_500(messages):
    assert run(Shield(sending(*messages))).problem["status"] == 500

    async def lax(message):  # not every server minds
        sent.append(message)

    sent = []
    jumping(Shield(sending(*messages))(Wire(None).scope, None, lax))
    assert [message.get("status") for message in sent] == [500, None]


@pytest.mark.parametrize("more", [START, LAST, chunk()])
def test_what_is_sent_after_the_end_is_the_apps_mistake_and_the_clients_gain(more, told):
    """The server refuses it: logged; the response was whole."""
    wire = run(Shield(sending({**START, "headers": [(b"content-length", b"0")]}, LAST, more)))
    assert (wire.status, len(wire.sent)) == (200, 2)
    assert len(told("unhandled_exception")) == 1


def test_a_second_start_is_raised_at_the_server():
    with pytest.raises(RuntimeError):
        run(Shield(sending(START, START)))


def test_a_scope_of_anyio_that_the_app_leaves_open_harms_nobody(told):
    async def app(scope, receive, send):
        anyio.CancelScope().__enter__()
        await ok()(scope, receive, send)

    async def visit():
        return await Wire(Shield(app)).start()

    assert jumping(visit()).status == 200
    assert len(told("unhandled_exception")) == 1


def test_receive_may_be_called_from_several_tasks():
    async def app(scope, receive, send):
        await asyncio.gather(receive(), receive(), ok()(scope, receive, send))

    assert run(Shield(app), body=[b"a", b"b"]).status == 200


def test_a_shield_in_a_shield_changes_nothing(told):
    """The runner's around the app's own: one id, one header of it, one log line, the tighter limit."""
    shield = Shield(Shield(failing_app(), max_in_flight=0), access_log=True)
    wire = run(shield)
    assert wire.problem["status"] == 500
    assert len(told("unhandled_exception")) == 1
    assert [fields["request_id"] for fields in told("request")] == [wire.problem["request_id"]]
    inner = Shield(ok(b"12345"), max_body_bytes=3)
    assert run(Shield(inner, max_body_bytes=5), body=[b"1234"], headers={"content-length": "4"}).status == 413
    assert run(Shield(Shield(ok()))).body == b"ok"


@pytest.mark.parametrize("scope", [{"type": "lifespan"}, {"type": "quic.datagram", "odd": True}])
async def test_what_is_no_request_passes_untouched(scope):
    """The very objects; `state` is not added either."""
    seen = []

    async def app(*arguments):
        seen.append(arguments)

    receive, send = object(), object()
    before = dict(scope)
    await Shield(app)(scope, receive, send)
    assert seen == [(scope, receive, send)]
    assert scope == before


def test_a_lifespan_that_fails_is_told_by_the_app():
    async def app(scope, receive, send):
        raise KeyError

    with pytest.raises(KeyError):
        jumping(Shield(app)({"type": "lifespan"}, None, None))


# ── the request id ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (b"a", True),
        (b"0af7651916cd43dd8448eb211c80319c", True),
        (b"Root=1-67891233-abcdef012345678912345678;Parent=53995c3f42cd8ad8", True),
        (b"105445aa7843bc8bf206b12000100000/1;o=1", True),
        (b"MDEyMzQ1Njc4OQ==", True),
        (b"urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", True),
        (b"!#$%&()*+,-./:;=?@[]^_{|}~", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a\tb", False),
        (b"a\n", False),
        (b"a\r\nset-cookie: b", False),
        (b'"a"', False),
        (b"'a'", False),
        (b"`a`", False),
        (b"a\\n", False),
        (b"<b>", False),
        (b"caf\xe9", False),
        ("ä".encode(), False),
        (b"a\x7f", False),
        (b"a\x00", False),
    ],
)
def test_a_clients_id_is_taken_if_it_can_stand_anywhere(given, taken):
    """Logs, JSON, a page: nothing in it needs an escape. Else a new one is given."""
    assert sane_request_id(given) == (given.decode() if taken else None)
    wire = Wire(Shield(ok()))
    wire.scope["headers"] = [(b"x-request-id", given)]
    jumping(wire.run())
    assert (wire.headers["x-request-id"] == given.decode("latin-1")) == taken


def test_the_id_is_in_the_state_the_log_and_the_response():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["state"]["request_id"], REQUEST_ID.get()))
        await ok()(scope, receive, send)

    wire = run(Shield(app))
    assert seen == [(wire.headers["x-request-id"],) * 2]
    assert REQUEST_ID.get() is None


def test_the_id_is_gone_from_the_log_when_the_request_is_over():
    async def twice():
        await Wire(Shield(ok())).run()
        assert REQUEST_ID.get() is None

    jumping(twice())


@pytest.mark.parametrize("state", [{"scope": None}, {"state": None}])
def test_a_server_without_state_gets_one(state):
    wire = Wire(Shield(ok()), **state)
    if "scope" in state:
        del wire.scope["state"]
    jumping(wire.run())
    assert wire.scope["state"] == {"request_id": wire.headers["x-request-id"]}


def test_ids_differ():
    app = Shield(ok())
    assert len({run(app).headers["x-request-id"] for _ in range(100)}) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gives_other_ids():
    """As gunicorn's workers are, when the app is loaded before."""
    from service import request_id

    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, request_id._prefix.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert len(theirs := pipe.read()) == len(request_id._prefix)
    os.wait()
    assert theirs != request_id._prefix


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-ID"])
def test_an_id_that_the_app_sends_itself_is_left(name):
    """Two would be worse."""
    wire = run(Shield(ok(**{name: "mine"})))
    assert wire.headers[name] == "mine"
    assert len(wire.headers) == 2


def test_a_websocket_has_an_id_too():
    """In its state, in the log, in the handshake's answer; and nothing else is done to it."""
    app = FastAPI()

    @app.websocket("/ws")
    async def echo(socket: WebSocket):
        await socket.accept(headers=[(b"x-mine", b"1")])
        await socket.send_text(f"{socket.state.request_id} {REQUEST_ID.get()}")
        await socket.close()

    @app.websocket("/fails")
    async def fails(socket: WebSocket):
        raise KeyError

    client = TestClient(Shield(app))
    with client.websocket_connect("/ws", headers={"x-request-id": "abc"}) as session:
        assert session.receive_text() == "abc abc"
        headers = dict(session.extra_headers)
    assert (headers[b"x-request-id"], headers[b"x-mine"]) == (b"abc", b"1")
    with pytest.raises(KeyError), client.websocket_connect("/fails"):
        pass


# ── in flight ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Door:
    """An app that answers when it is opened."""

    def __init__(self, app):
        self.app = app
        self.open = asyncio.Event()
        self.entered = 0

    async def __call__(self, scope, receive, send):
        self.entered += 1
        await self.open.wait()
        await self.app(scope, receive, send)


async def started(*wires):
    """They are under way."""
    serving = [wire.start() for wire in wires]
    await asyncio.sleep(0.01)
    return asyncio.gather(*serving)


def test_beyond_max_in_flight_a_request_is_answered_503():
    """RFC 9457 with IANA's type, Retry-After; the app does not run, the body is not read."""

    async def crowd():
        door = Door(ok())
        shield = Shield(door, max_in_flight=2)
        first = await started(Wire(shield), Wire(shield))
        assert (shield.in_flight, door.entered) == (2, 2)
        wire = await Wire(shield, method="POST", body=[b"x" * 10]).run()
        assert wire.status == 503
        assert wire.problem["type"] == "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
        assert wire.headers["retry-after"] == "1"
        assert "connection" not in wire.headers
        assert (wire.received, door.entered, shield.shed, shield.in_flight) == (0, 2, 1, 2)
        door.open.set()
        assert [done.status for done in await first] == [200, 200]
        assert shield.in_flight == 0
        assert (await Wire(shield).run()).status == 200

    jumping(crowd())


@pytest.mark.parametrize(
    ("path", "root_path", "status"),
    [
        ("/health", "", 200),
        ("/ready", "", 200),
        ("/api/health", "/api", 200),
        ("/health", "/api", 200),
        ("/healthy", "", 503),
        ("/health/", "", 503),
        ("/x/health", "", 503),
        ("/api/healthy", "/api", 503),
    ],
)
def test_exempt_paths_are_neither_counted_nor_refused(path, root_path, status):
    async def crowd():
        door = Door(ok())
        shield = Shield(door, max_in_flight=1)
        first = await started(Wire(shield))
        probe = Wire(shield, path, root_path=root_path)
        probing = await started(probe)
        assert shield.in_flight == 1
        door.open.set()
        await asyncio.gather(first, probing)
        assert probe.status == status
        assert shield.in_flight == 0

    jumping(crowd())


def test_what_runs_in_the_background_is_not_in_flight():
    """Its response is complete; and no deadline is set for it."""

    async def crowd():
        background = BackgroundTask(asyncio.sleep, 3600)
        shield = Shield(PlainTextResponse("ok", background=background), max_in_flight=1)
        serving = []
        for _ in range(3):
            wire = Wire(shield)
            serving.append(await started(wire))
            assert (wire.status, wire.complete, shield.in_flight) == (200, True, 0)
        await asyncio.gather(*serving)
        assert now_s() >= 3600

    jumping(crowd())


@pytest.mark.parametrize("app", [raising(KeyError()), raising(KeyError(), START), sending(), sending(START), ok()])
def test_however_a_request_ends_it_is_counted_no_more(app):
    async def visit():
        shield = Shield(app)
        await asyncio.gather(Wire(shield).start(), return_exceptions=True)
        assert (shield.in_flight, shield.streams) == (0, 0)

    jumping(visit())


def test_each_event_loop_has_a_count_of_its_own():
    """As test clients have; what a loop leaves behind when it ends is forgotten."""

    async def never(scope, receive, send):
        await asyncio.Event().wait()

    shield = Shield(never, max_in_flight=1)

    async def abandoned():
        wire = Wire(shield)
        await started(wire)
        assert shield.in_flight == 1

    for _ in range(3):
        jumping(abandoned())
    assert len(shield._watches) == 1


def test_refusals_are_a_line_a_second_with_their_number(told):
    """An overload is no reason to write a line a request."""

    async def crowd():
        door = Door(ok())
        shield = Shield(door, max_in_flight=1)
        first = await started(Wire(shield))
        for _ in range(3):
            await Wire(shield).run()
        assert [fields["count"] for fields in told("shed")] == [1]
        await asyncio.sleep(1)
        assert [fields["count"] for fields in told("shed")] == [1, 2]
        await asyncio.sleep(5)
        await Wire(shield).run()
        assert [fields["count"] for fields in told("shed")] == [1, 2, 1]
        assert all("request_id" not in fields for fields in told("shed"))  # it speaks of many
        assert shield.shed == 4
        door.open.set()
        await first

    jumping(crowd())


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "status", "headers", "streams"),
    [
        ("GET", 200, {}, True),
        ("POST", 201, {}, True),
        ("GET", 500, {}, True),
        ("GET", 200, {"transfer-encoding": "chunked"}, True),
        ("GET", 200, {"content-type": "text/event-stream"}, True),
        ("GET", 200, {"content-length": "0"}, False),
        ("GET", 200, {"Content-Length": "99999999"}, False),
        ("HEAD", 200, {}, False),
        ("HEAD", 200, {"content-length": "5"}, False),
        ("GET", 204, {}, False),
        ("GET", 205, {}, False),
        ("GET", 304, {}, False),
    ],
)
def test_a_stream_is_a_response_of_unknown_length(method, status, headers, streams):
    """Decided by its first message, for that cannot wait for the second."""
    if "content-length" not in {name.lower() for name in headers}:
        assert is_stream(status, method) == streams
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    seen = []

    async def app(scope, receive, send):
        await send({**START, "status": status, "headers": pairs})
        seen.append((shield.in_flight, shield.streams))
        await send(LAST)
        seen.append((shield.in_flight, shield.streams))

    shield = Shield(app)
    run(shield, method=method)
    assert seen == [(0, 1) if streams else (1, 0), (0, 0)]


def test_a_stream_leaves_the_count_at_its_first_byte():
    """A hundred open streams are no reason to refuse a request."""

    async def crowd():
        shield = Shield(streams, max_in_flight=1)
        wires = [Wire(shield) for _ in range(5)]
        serving = [await started(wire) for wire in wires]
        assert [wire.status for wire in wires] == [200] * 5
        assert (shield.in_flight, shield.streams) == (0, 5)
        for wire in wires:
            wire.leave()
        await asyncio.gather(*serving)
        assert shield.streams == 0

    jumping(crowd())


def test_beyond_max_streams_a_stream_is_answered_503_and_its_work_cancelled():
    cancelled = []

    async def app(scope, receive, send):
        try:
            await streams(scope, receive, send)
        except asyncio.CancelledError:
            cancelled.append(now_s())
            raise

    async def crowd():
        shield = Shield(app, max_streams=1)
        first = Wire(shield)
        serving = await started(first)
        second = await Wire(shield).run()
        assert second.problem["status"] == 503
        assert second.headers["retry-after"] == "1"
        assert len(cancelled) == 1
        assert (shield.streams, shield.in_flight, shield.shed) == (1, 0, 1)
        first.leave()
        await serving
        third = Wire(shield)
        serving = await started(third)
        assert third.status == 200
        third.leave()
        await serving

    jumping(crowd())


def test_exempt_streams_and_sized_responses_are_not_among_max_streams():
    async def app(scope, receive, send):
        await (ok() if scope["path"] == "/sized" else streams)(scope, receive, send)

    async def crowd():
        shield = Shield(app, max_streams=1, exempt=["/events"])
        wires = [Wire(shield, path) for path in ("/", "/events", "/events")]
        serving = [await started(wire) for wire in wires]
        assert [wire.status for wire in wires] == [200] * 3
        assert shield.streams == 1
        assert (await Wire(shield, "/sized").run()).status == 200
        for wire in wires:
            wire.leave()
        await asyncio.gather(*serving)

    jumping(crowd())


def test_a_stream_that_awaits_nothing_holds_nobody_up():
    """uvicorn's `send` need not wait: one such generator whose client has left would stop the worker for ever."""

    async def endless():
        while True:
            yield b"x"

    async def crowd():
        wire = Wire(Shield(StreamingResponse(endless())))
        serving = wire.start()
        for _ in range(100):
            await asyncio.sleep(0)
        wire.leave()
        await serving
        assert len(wire.sent) > 100

    jumping(crowd())


FILE = {"type": "http.response.pathsend", "path": "/x"}
COPY = {"type": "http.response.zerocopysend", "file": None}
TRAILERS = {"type": "http.response.trailers"}


@pytest.mark.parametrize(
    "last",
    [[FILE], [{**COPY, "more_body": True}, COPY], [LAST, {**TRAILERS, "more_trailers": True}, TRAILERS]],
    ids=["path", "copy", "trailers"],
)
def test_a_response_may_end_in_ways_that_servers_add(last):
    """Counted until then, whole after."""
    counts = []

    async def send(message):
        counts.append(shield.streams)

    shield = Shield(raising(KeyError(), {**START, "trailers": last[0] is LAST}, *last))
    jumping(shield(Wire(None).scope, None, send))  # nothing is raised: it was whole
    assert counts == [1] * (1 + len(last))
    assert shield.streams == 0


# ── the body ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def counts(scope, receive, send):
    """Answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        size += len(message["body"])
        more = message["more_body"]
    await ok(b"%d" % size)(scope, receive, send)


def test_a_body_that_announces_itself_too_large_is_refused_at_once():
    """Before the app runs, before a byte is read."""
    door = raising(AssertionError("the app ran"))
    wire = run(Shield(door, max_body_bytes=10), method="POST", body=[b"x" * 11], headers={"content-length": "11"})
    assert wire.problem["title"] == "Content Too Large"
    assert (wire.status, wire.received) == (413, 0)


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6, b"x" * 5, b"x" * 100], [b"x"] * 100])
def test_a_body_of_unknown_length_is_refused_when_it_is_too_large(chunks):
    """Its work is cancelled."""
    wire = run(Shield(counts, max_body_bytes=10), method="POST", body=chunks)
    assert wire.problem["status"] == 413


@pytest.mark.parametrize("headers", [{}, {"content-length": "10"}, {"content-length": "lies"}])
def test_a_body_of_the_allowed_size_passes(headers):
    assert run(Shield(counts, max_body_bytes=10), body=[b"x" * 5, b"x" * 5, b""], headers=headers).body == b"10"


def test_without_max_body_bytes_any_body_passes():
    assert run(Shield(counts), body=[b"x" * 5_000_000] * 3).body == b"15000000"


def test_an_app_that_does_not_mind_being_cancelled_is_told_that_the_client_has_left():
    heard = []

    async def app(scope, receive, send):
        for _ in range(3):
            try:
                heard.append((await receive())["type"])
            except asyncio.CancelledError:
                heard.append("cancelled")
        await send(START)
        await send(LAST)

    wire = run(Shield(app, max_body_bytes=1), body=[b"xx", b"x"])
    assert wire.problem["status"] == 413
    assert "http.request" not in heard
    assert heard[-1] == "http.disconnect"


def test_an_app_that_would_wait_for_the_rest_of_a_refused_body_is_cancelled():
    async def app(scope, receive, send):
        await receive()
        await asyncio.Event().wait()

    async def visit():
        wire = await Wire(Shield(app, max_body_bytes=1), body=[b"xx"]).run()
        assert (wire.problem["status"], now_s()) == (413, 0)

    jumping(visit())


def test_a_body_that_grows_too_large_under_a_response_cuts_it():
    """It has begun: no status can be told any more."""

    async def echoes(scope, receive, send):
        await send(START)
        while True:
            await send(chunk((await receive())["body"]))

    async def visit():
        wire = Wire(Shield(echoes, max_body_bytes=3), body=[b"xx", b"x", b"x", b"x"])
        with pytest.raises(ResponseCut):
            await wire.run()
        assert wire.body == b"xxx"

    jumping(visit())


def test_a_fastapi_endpoint_need_not_know_of_413():
    app = FastAPI()

    @app.post("/")
    async def post(body: dict):
        return body

    wire = run(Shield(app, max_body_bytes=10), method="POST", body=[b'{"a": ', b'"123456789"}'])
    assert wire.problem["status"] == 413


# ── Expect: 100-continue ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("app", "options", "expect", "closes"),
    [
        (ok(), {}, "100-continue", True),
        (ok(), {}, "100-Continue", True),
        (ok(), {}, "200-ok", False),
        (ok(), {}, None, False),
        (counts, {}, "100-continue", False),
        (raising(KeyError()), {}, "100-continue", True),
        (counts, {"max_body_bytes": 1}, "100-continue", True),
    ],
)
def test_a_body_that_was_not_asked_for_ends_the_connection(app, options, expect, closes):
    """The client may hold it back, or send it: what comes next could be taken for it."""
    headers = {"content-length": "3"} | ({"expect": expect} if expect else {})
    wire = run(Shield(app, **options), method="PUT", headers=headers, body=[b"abc"])
    assert (wire.headers.get("connection") == "close") == closes


def test_http_2_knows_no_connection_header():
    wire = run(Shield(ok()), method="PUT", headers={"expect": "100-continue"}, http_version="2")
    assert "connection" not in wire.headers


# ── the log of requests ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_access_log_is_a_line_a_request_without_its_query(told):
    """A query may hold secrets."""
    shield = Shield(ok(), access_log=True)
    wire = run(shield, "/items/1", method="PUT")
    [fields] = told("request")
    assert fields.pop("duration_ms") >= 0
    assert fields.pop("request_id") == wire.headers["x-request-id"]
    assert fields == {"method": "PUT", "path": "/items/1", "status": 200, "client": "192.0.2.7"}
    run(shield, client=None)  # a unix socket
    assert told("request")[-1]["client"] is None


def test_without_access_log_no_request_is_logged(told):
    run(Shield(ok()))
    assert told("request") == []


@pytest.mark.parametrize(
    ("app", "options", "status"),
    [
        (raising(KeyError()), {}, 500),
        (sending(), {}, 500),
        (ok(), {"max_body_bytes": 1}, 413),
        (listens, {"request_timeout_s": 5}, 504),
        (failing_app(), {}, 500),
        (FastAPI(), {}, 404),
    ],
)
def test_each_end_is_logged_with_its_status_once(told, app, options, status):
    run(Shield(app, access_log=True, **options), headers={"content-length": "2"}, body=[b"xx"])
    assert [fields["status"] for fields in told("request")] == [status]


@pytest.mark.parametrize(("app", "status"), [(listens, 499), (streams, 200)])
def test_a_client_that_leaves_is_499_or_what_it_was_told(told, app, status):
    async def visit():
        wire = Wire(Shield(app, access_log=True))
        wire.leave()
        await wire.run()

    jumping(visit())
    assert [fields["status"] for fields in told("request")] == [status]


def test_a_response_is_logged_when_it_is_complete_not_when_the_app_is(told):
    background = BackgroundTask(asyncio.sleep, 100)

    async def visit():
        wire = Wire(Shield(PlainTextResponse("ok", background=background), access_log=True))
        serving = wire.start()
        await asyncio.sleep(1)
        assert len(told("request")) == 1
        await serving

    jumping(visit())
    assert len(told("request")) == 1


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_timeout_s", -1),
        ("request_timeout_s", "30"),
        ("request_timeout_s", float("nan")),
        ("request_timeout_s", float("inf")),
        ("request_timeout_s", None),
        ("request_timeout_s", True),
        ("stream_idle_s", -0.5),
        ("stream_idle_s", [1]),
        ("max_in_flight", -1),
        ("max_in_flight", 1.5),
        ("max_in_flight", True),
        ("max_in_flight", None),
        ("max_streams", "3"),
        ("max_streams", -3),
        ("max_body_bytes", 10.0),
        ("max_body_bytes", -10),
        ("exempt", "/health"),
        ("exempt", b"/health"),
        ("exempt", "/"),
        ("exempt", ["health"]),
        ("exempt", [1]),
        ("exempt", None),
        ("access_log", "yes"),
        ("access_log", 1),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=re.escape(f"Shield({name}={value!r}): wanted ")):
        Shield(ok(), **{name: value})


def test_zero_is_off_and_no_deadline_needs_a_timer():
    shield = Shield(
        ok(), request_timeout_s=0, stream_idle_s=0, max_in_flight=0, max_streams=0, max_body_bytes=0, exempt=()
    )

    async def crowd():
        door = Door(ok())
        shield.app = door
        many = await started(*(Wire(shield) for _ in range(200)))
        assert shield.in_flight == 200
        await asyncio.sleep(86_400)
        door.open.set()
        assert {wire.status for wire in await many} == {200}

    jumping(crowd())


# ── a real server, real connections ──────────────────────────────────────────────────────────────────────────────────


def shop():
    app = FastAPI()

    @app.get("/fine")
    async def fine():
        return {"fine": True}

    @app.get("/fails")
    async def fails():
        raise KeyError("x")

    @app.get("/fails-in-the-background")
    async def background():
        async def later():
            raise KeyError("x")

        return PlainTextResponse("ok", background=BackgroundTask(later))

    @app.get("/header")
    async def header():
        return PlainTextResponse("x", headers={"x": "a\nb"})

    @app.get("/raises-halfway")
    async def halfway():
        async def chunks():
            yield "x"
            raise KeyError("x")

        return StreamingResponse(chunks())

    @app.get("/refuses")
    async def refuses():
        raise HTTPException(418)

    @app.head("/fine")
    async def head():
        return PlainTextResponse("ten bytes.")

    @app.get("/empty")
    async def empty():
        return PlainTextResponse("", 204)

    return app


@pytest.fixture(params=["httptools", "h11"])
def http(request):
    return request.param


def test_a_hundred_exceptions_cost_no_connection(http):
    """Stock uvicorn hangs up on the request after each of them."""
    with served(Shield(shop()), http=http) as port:
        lines = [Line(port) for _ in range(10)]
        for _ in range(10):
            for line in lines:
                assert line.ask("/fails")[0] == 500
                assert line.ask("/fine")[0] == 200
        for line in lines:
            with line:
                for path in ("/fails-in-the-background", "/header", "/refuses", "/empty", "/nowhere", "/fails"):
                    line.ask(path)
                    assert line.ask("/fine")[2] == b'{"fine":true}', path
                assert line.ask("/fine", "HEAD")[1]["content-length"] == "10"
                assert line.ask("/fine")[0] == 200


def test_middlewares_of_starlettes_base_class_change_nothing():
    app = shop()

    async def dispatch(request, call_next):
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    with served(Shield(app)) as port, Line(port) as line:
        for _ in range(5):
            assert line.ask("/fails")[1]["content-type"] == "application/problem+json"
            assert line.ask("/fine")[0] == 200


def test_a_response_that_breaks_off_is_noticed_by_the_client():
    with served(Shield(shop())) as port, Line(port) as line, pytest.raises(ConnectionError):
        line.ask("/raises-halfway")


def test_every_exception_is_logged_once_with_its_traceback(caplog):
    """By us, or by uvicorn when it has to close; then with the request's id too."""
    with served(Shield(shop())) as port:
        with Line(port) as line:
            line.ask("/fails")
        with Line(port) as line, pytest.raises(ConnectionError):
            line.ask("/raises-halfway")
    traces = [record for record in caplog.records if record.exc_info]
    assert [record.name for record in traces] == ["onequota", "uvicorn.error"]


def test_the_servers_own_line_of_a_cut_response_bears_the_id():
    """It is written in the request's context."""
    seen = []

    class Watching(logging.Handler):
        def emit(self, record):
            seen.append((record.exc_info is not None, REQUEST_ID.get()))

    handler = Watching()
    logging.getLogger("uvicorn.error").addHandler(handler)
    try:
        with served(Shield(shop())) as port, Line(port) as line, pytest.raises(ConnectionError):
            line.ask("/raises-halfway", x_request_id="abc")
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert (True, "abc") in seen


def test_a_cut_of_ours_is_not_told_twice(caplog):
    """The app returned in the middle: our line says which; uvicorn's traceback would only show this module."""
    shield = Shield(sending(START, chunk()))
    with served(shield, lifespan="off") as port, Line(port) as line, pytest.raises(ConnectionError):
        line.ask("/")
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["onequota"]


def test_clients_that_come_and_go_leave_no_line(caplog):
    """Within an upload, before an answer, within a stream."""
    app = shop()

    @app.post("/upload")
    async def upload(body: dict):
        return {}

    @app.get("/events")
    async def listen():
        async def chunks():
            while True:
                yield "x"
                await asyncio.sleep(0.01)

        return StreamingResponse(chunks())

    shield = Shield(app)
    with served(shield) as port:
        with Line(port) as line:
            line.send("/upload", "POST", content_length="100")
        with Line(port) as line:
            line.send("/events")
            line._read.read(100)
        with Line(port) as line:
            line.send("/fine")
        with Line(port) as line:
            assert line.ask("/fine")[0] == 200
        while shield.in_flight or shield.streams:
            threading.Event().wait(0.01)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


BODY = b"x" * 10_000_000


def whole_body_first(port, path):
    """A client that sends all before it reads, as many do; then uses the connection again."""
    with Line(port) as line:
        line.send(path, "POST", BODY)
        status = line.answer()[0]
        assert line.ask("/health")[0] == 200
    return status


def by_httpx(port, path):
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        return client.post(path, content=BODY).status_code


@pytest.mark.parametrize("client", [whole_body_first, by_httpx])
@pytest.mark.parametrize("status", [503, 413])
def test_a_client_refused_with_ten_megabytes_reads_the_status(client, status):
    """20 of 20 times: no reset. Stock uvicorn's limit_concurrency resets 20 of 20."""

    async def app(scope, receive, send):
        if scope["path"] == "/wait":
            await asyncio.to_thread(free.wait)
        await ok()(scope, receive, send)

    free = threading.Event()
    shield = Shield(app, max_in_flight=1, max_body_bytes=1000 if status == 413 else 0)
    with served(shield, lifespan="off") as port, Line(port) as line:
        if status == 503:
            line.send("/wait")
            while shield.in_flight < 1:
                free.wait(0.005)
        try:
            assert [client(port, "/") for _ in range(20)] == [status] * 20
        finally:
            free.set()
        if status == 503:
            assert line.answer()[0] == 200


def test_a_chunked_body_that_is_too_large_is_refused_on_a_connection_that_lives():
    with served(Shield(counts, max_body_bytes=1000), lifespan="off") as port, Line(port) as line:
        part = b"%x\r\n%b\r\n" % (600, b"x" * 600)
        line.send("/", "POST", transfer_encoding="chunked")
        line.socket.sendall(part * 3 + b"0\r\n\r\n")
        assert line.answer()[0] == 413
        assert line.ask("/", "POST", b"abc")[2] == b"3"


def test_a_client_that_waits_for_100_continue_is_not_left_waiting():
    """Refused, it is told that the connection ends, and what it sends then is no request."""
    with served(Shield(counts, max_body_bytes=10), lifespan="off") as port:
        with Line(port) as line:
            line.send("/", "PUT", expect="100-continue", content_length="11")
            status, headers, _ = line.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert line.closed()
        with Line(port) as line:
            line.send("/", "PUT", expect="100-continue", content_length="3")
            assert line._read.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert line._read.readline() == b"\r\n"
            line.socket.sendall(b"abc")
            assert line.answer()[2] == b"3"
            assert line.ask("/", "POST", b"abcd")[2] == b"4"


def test_one_app_serves_several_loops_at_once():
    """Two servers in two threads over one shield: nothing of one loop is touched from the other."""
    shield = Shield(shop(), request_timeout_s=20)
    with served(shield) as one, served(shield) as two:

        def visit(port):
            with Line(port) as line:
                for _ in range(50):
                    assert line.ask("/fine")[0] == 200

        threads = [threading.Thread(target=visit, args=[port]) for port in (one, two) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (shield.in_flight, len(shield._watches)) == (0, 2)

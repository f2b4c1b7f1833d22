"""One worker's connections, and what it touches of uvicorn. The rest of its life is in test_supervisor."""

import asyncio
import contextlib
import gc
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from servers import needs
from uvicorn.importer import ImportFromStringError

from service import status, worker
from service.errors import ConfigurationError, InvalidLimit
from service.settings import Settings
from service.target import SERVICE, Target


def test_the_pinned_uvicorn_is_here() -> None:
    """Another one moves what the tests below hold on to: read worker.py against it first."""
    assert uvicorn.__version__.startswith("0.54.")


# An app for a target: test_worker:app, answered in this process.

HUGE = bytes(30_000_000)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/huge":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(HUGE))]})
        await send({"type": "http.response.body", "body": HUGE})
        return
    if scope["path"] == "/frozen":
        scope["path"] = f"/{gc.get_freeze_count()}"
    if scope["path"].startswith("/slow-body"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await asyncio.sleep(0.3)
        if scope["method"] != "HEAD":
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
            await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"cd"})
        return
    if scope["path"] == "/later":
        await asyncio.sleep(float(scope["query_string"] or b"0.5"))
    body = scope["path"].encode()
    status = 429 if scope["path"] == "/refused" else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Serving:
    """A worker's server in a thread, with the parent's end of its socket."""

    def __init__(
        self,
        target: Target,
        before: Callable[["Serving"], None],
        listener: socket.socket | None = None,
        **settings: Any,
    ) -> None:
        self.parent, control = socket.socketpair()
        listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        made = Settings(**{"access_log": False, **settings})
        self.server = worker.Server(worker._Config(made, target), worker.Parent(control), made)
        control.setblocking(False)
        before(self)
        self.thread = threading.Thread(target=self._run, args=[listener, control])
        self.thread.start()

    def _run(self, listener: socket.socket, control: socket.socket) -> None:
        with listener, control:
            self.server.run([listener])

    def heard(self) -> bytes:
        return self.parent.recv(65536)

    def retire(self, linger_s: float = 0, drain_s: float = 10) -> None:
        order = {"linger_s": linger_s, "drain_s": drain_s, "end_s": 1}
        self.parent.send(json.dumps({"retire": order}).encode() + b"\n")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []
    monkeypatch.setattr(status, "_retired", False)

    def start(
        target: Target = Target(app="test_worker:app"),  # noqa: B008
        before: Callable[[Serving], None] = lambda _: None,
        **settings: Any,
    ) -> Serving:
        started.append(Serving(target, before, **settings))
        assert b'"state"' in started[-1].heard()
        return started[-1]

    yield start
    gc.unfreeze()
    for each in started:
        with contextlib.suppress(OSError):  # it may be gone
            each.retire()
        each.thread.join(20)
        each.parent.close()
        assert not each.thread.is_alive()


def ask(connection: http.client.HTTPConnection, path: str, **more: Any) -> http.client.HTTPResponse:
    connection.request("POST" if more else "GET", path, **more)
    answer = connection.getresponse()
    answer.read()
    return answer


# Bodies that nobody wants


BIG = bytes(10_000_000)


@pytest.mark.parametrize("close", [False, True], ids=["keep-alive", "close"])
def test_a_client_that_sends_10_mb_and_then_reads_always_reads_its_refusal(
    serving: Callable[..., Serving], close: bool
) -> None:
    """Whoever closes at once under a body sends a reset, which takes the answer with it."""
    server = serving()
    headers = {"connection": "close"} if close else {}
    statuses = []
    for _ in range(20):
        with contextlib.closing(server.connect()) as connection:
            statuses.append(ask(connection, "/refused", body=BIG, headers=headers).status)
            if not close:
                assert ask(connection, "/read", body=b"x").status == 200, "the connection lives"
    assert statuses == [429] * 20


def asked(port: int, *paths: str, method: str = "GET") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall("".join(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n" for path in paths).encode())
    return connection


class Noting:
    """A transport, and what was written to it."""

    written: list[bytes] = []  # noqa: RUF012  (of all)

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.transport.write(data)


def test_head_and_body_of_an_answer_are_written_in_one_piece_unless_it_is_large(
    serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = worker._Patient
    monkeypatch.setattr(worker, "_Patient", lambda transport, http: patient(Noting(transport), http))  # type: ignore[arg-type]
    monkeypatch.setattr(Noting, "written", [])
    port = serving().port
    with asked(port, "/small") as connection:
        assert connection.recv(65536).endswith(b"/small")
    [whole] = Noting.written
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n") and whole.endswith(b"\r\n\r\n/small")
    with asked(port, "/huge") as connection:
        connection.recv(65536)
    assert Noting.written[-1] is HUGE


def test_a_head_whose_body_takes_its_time_does_not_wait_for_it(serving: Callable[..., Serving]) -> None:
    with asked(serving().port, "/slow-body") as connection:
        pieces = [connection.recv(65536) for _ in range(3)]
        assert pieces[0].endswith(b"\r\n\r\n")
        assert pieces[1:] == [b"ab", b"cd"]


def test_a_head_without_a_body_is_sent(serving: Callable[..., Serving]) -> None:
    port = serving().port
    with asked(port, "/slow-body", method="HEAD") as connection:
        assert connection.recv(65536).endswith(b"\r\n\r\n")
    with asked(serving(keep_alive_s=0).port, "/x", method="HEAD") as connection:
        assert connection.makefile("rb").read().endswith(b"\r\n\r\n")


def test_pipelined_requests_are_answered_in_order(serving: Callable[..., Serving]) -> None:
    with asked(serving().port, "/later?0.2", "/slow-body", "/c") as connection:
        text = b""
        while not text.endswith(b"/c"):
            text += connection.recv(65536)
    assert [part.partition(b"HTTP/1.1")[0] for part in text.split(b"\r\n\r\n")[1:]] == [b"/later", b"abcd", b"/c"]


def test_a_client_that_leaves_while_a_head_is_kept_back_harms_nobody(serving: Callable[..., Serving]) -> None:
    port = serving().port
    for _ in range(20):
        with asked(port, "/slow-body"):
            pass
    with asked(port, "/next") as connection:
        assert connection.recv(65536).endswith(b"/next")


def test_what_is_there_after_start_up_is_no_work_for_the_garbage_collector(serving: Callable[..., Serving]) -> None:
    with asked(serving().port, "/frozen") as connection:
        assert int(connection.recv(65536).partition(b"\r\n\r\n/")[2] or 0) > 10_000


def test_a_body_that_is_still_sent_when_the_worker_retires_does_not_reset_its_answer(
    serving: Callable[..., Serving],
) -> None:
    server = serving()
    with server.raw() as client:
        client.sendall(b"POST /later HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")
        server.retire()
        for _ in range(100):
            client.sendall(BIG[:100_000])
            time.sleep(0.01)
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answer
        client.settimeout(2)
        assert client.recv(10) == b"", "and then it is closed"


def test_after_a_refused_body_the_connection_is_kept_as_long_as_any(serving: Callable[..., Serving]) -> None:
    """uvicorn forgets its keep-alive timer when a body goes on after the answer."""
    server = serving(keep_alive_s=1)
    with server.raw() as client:
        client.sendall(b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 429")
        client.sendall(BIG[:100_000])
        began_s = time.monotonic()
        assert client.recv(10) == b""
        assert 0.5 < time.monotonic() - began_s < 10


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off_and_a_slow_one_is_not(
    serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LINGER_S", 0.3)
    server = serving()
    ask_for_it = b"GET /huge HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with server.raw() as idle, server.raw() as slow:
        idle.sendall(ask_for_it)
        slow.sendall(ask_for_it)
        received = 0
        while chunk := slow.recv(1_000_000):
            received += len(chunk)
            time.sleep(0.03)
        assert received > len(HUGE), "whole, though it took several times as long"
        deadline = time.monotonic() + 10
        while server.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# Clients that never send


def test_a_client_that_sends_nothing_is_closed_and_one_that_sends_half_a_header_is_told(
    serving: Callable[..., Serving],
) -> None:
    server = serving(header_timeout_s=0.5)
    with server.raw() as silent, server.raw() as slow, server.raw() as used:
        slow.sendall(b"GET / HTTP/1.1\r\nhost: ")
        used.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert used.recv(65536).startswith(b"HTTP/1.1 200")
        assert silent.recv(10) == b""
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert slow.recv(10) == b""
        used.sendall(b"GET /again HTTP/1.1\r\nhost: ")
        assert used.recv(65536).startswith(b"HTTP/1.1 408"), "the second request of a connection is waited for as long"


def test_a_header_without_end_is_refused(serving: Callable[..., Serving]) -> None:
    server = serving()
    with server.raw() as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(b"y" * 10_000)
                time.sleep(0.001)
        assert client.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_comes_in_one_read_with_its_header_is_no_long_header(
    serving: Callable[..., Serving], tmp_path: Path
) -> None:
    """As over a unix socket, from which more is read at once than from TCP."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        server = serving(listener=listener)
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(path)
                client.sendall(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + BIG[:1_000_000])
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.thread.is_alive()


def test_an_upgrade_that_makes_no_sense_is_not_waited_for(serving: Callable[..., Serving]) -> None:
    server = serving(header_timeout_s=0.5)
    with server.raw() as client:
        upgrade = b"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n\r\nhello"
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\n" + upgrade)
        assert client.recv(65536) == b""


def test_an_idle_connection_and_a_slow_body_are_no_slow_header(serving: Callable[..., Serving]) -> None:
    server = serving(header_timeout_s=0.5)
    with server.raw() as idle, server.raw() as slow:
        idle.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n")
        for _ in range(20):
            time.sleep(0.1)
            slow.sendall(b"x")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        idle.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")


# Retiring


def test_a_retired_worker_accepts_nobody_and_answers_who_is_connected_once(serving: Callable[..., Serving]) -> None:
    server = serving()
    with contextlib.closing(server.connect()) as connection:
        assert ask(connection, "/a").headers["connection"] is None
        assert not status.retired()
        server.retire(linger_s=10)
        deadline = time.monotonic() + 10
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                server.raw().close()
                time.sleep(0.02)
        assert status.retired(), "which an endless stream may ask"
        assert ask(connection, "/b").headers["connection"] == "close"
    server.thread.join(5)
    assert not server.thread.is_alive(), "nothing is left to wait for"


def test_who_waits_for_a_worker_that_is_stopped_as_it_starts_is_answered(serving: Callable[..., Serving]) -> None:
    """What the kernel hands over is no connection of uvicorn's at once, and the loop must not end under it."""
    clients: list[socket.socket] = []

    def stopped_at_once(server: Serving) -> None:
        clients.append(server.raw())
        clients[0].sendall(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n")
        server.server.should_exit = True

    serving(before=stopped_at_once)
    with clients[0] as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_answer_that_began_to_be_made_long_before_still_says_close(serving: Callable[..., Serving]) -> None:
    """uvicorn makes a new list of headers every second, and a request keeps the one it came under."""
    server = serving()
    with contextlib.closing(server.connect()) as connection:
        connection.request("GET", "/later?1.6")
        time.sleep(1.2)
        server.retire()
        assert connection.getresponse().headers["connection"] == "close"


def test_a_request_that_has_arrived_but_was_not_read_keeps_its_connection_from_being_closed(
    serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serving()
    unread = {"bytes": 1}
    monkeypatch.setattr(worker, "_unread_bytes", lambda _: unread["bytes"])
    with server.raw() as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        server.retire(linger_s=0)
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.recv(10)
        unread["bytes"] = 0
        assert client.recv(10) == b""


def test_the_kernel_says_what_is_unread() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert worker._unread_bytes(ours.fileno()) == 0
        theirs.send(b"12345")
        assert worker._unread_bytes(ours.fileno()) == 5


def test_a_parent_that_is_gone_is_an_order_to_retire(serving: Callable[..., Serving]) -> None:
    server = serving()
    server.parent.shutdown(socket.SHUT_RDWR)
    server.thread.join(10)
    assert not server.thread.is_alive()


def test_a_parent_that_does_not_read_blocks_nobody(serving: Callable[..., Serving]) -> None:
    server = serving()
    for _ in range(5_000):
        server.server._parent.say(padding="x" * 500)
    with contextlib.closing(server.connect()) as connection:
        assert ask(connection, "/").status == 200


# What is told


def test_uvicorn_is_configured_as_promised() -> None:
    config = worker._Config(Settings(workers=3), SERVICE)
    assert (config.timeout_keep_alive, config.backlog, config.timeout_graceful_shutdown) == (75, 2048, 20)
    assert (config.proxy_headers, config.server_header, config.factory) == (False, False, True)
    assert config.headers == [("keep-alive", "timeout=70")]


def test_workers_are_due_after_their_requests_and_up_to_a_tenth_more_but_not_together() -> None:
    settings = Settings(max_requests=1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        parent = worker.Parent(ours)
        due = {worker.Server(worker._Config(settings, SERVICE), parent, settings)._recycle_at for _ in range(50)}
    assert min(due) >= 1000
    assert max(due) <= 1100
    assert len(due) > 10


def test_a_short_keep_alive_is_not_hinted_at() -> None:
    """Node's agent takes the hint for the longest it may wait for an answer."""
    assert worker._Config(Settings(keep_alive_s=34), SERVICE).headers == []


def test_no_keep_alive_is_said(serving: Callable[..., Serving]) -> None:
    server = serving(keep_alive_s=0)
    with contextlib.closing(server.connect()) as connection:
        assert ask(connection, "/").headers["connection"] == "close"


def test_certificates_to_trust_are_certificates_to_ask_for() -> None:
    asking = worker._Config(Settings(), Target(app="m:a", ssl_certfile="c", ssl_ca_certs="ca"))
    assert asking.ssl_cert_reqs == ssl.CERT_REQUIRED
    assert worker._Config(Settings(), Target(app="m:a", ssl_certfile="c")).ssl_cert_reqs == ssl.CERT_NONE


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_the_reason_of_a_worker_is_one_line_with_the_place_in_the_code() -> None:
    line = worker._reason("m:a", raised(KeyError("SECRET\nKEY")))
    assert line.startswith('app "m:a" cannot be loaded: KeyError: ')
    assert f"({__file__}, line " in line
    assert "\n" not in line


GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "a", line 1
  |     g()
  | ExceptionGroup: two (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback:
    |   File "b", line 2
    |     h()
    | OSError: no database
    +------------------------------------
"""
SEVERAL_LINES = """\
Traceback (most recent call last):
  File "a", line 1, in b
    c()
ValueError: 1 error
field
  wanted int
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no database", "no database"),
        (SEVERAL_LINES, "ValueError: 1 error field wanted int"),
        (GROUP, "OSError: no database"),
        ("x" * 600, "x" * 500 + "..."),
    ],
)
def test_of_a_traceback_the_exception_is_told(text: str, told: str) -> None:
    assert worker._last_words(text) == told


@pytest.mark.parametrize(("name", "kind"), [("HUGE", "bytes"), ("__name__", "str")])
def test_what_is_no_app_is_told_so(name: str, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"it is {kind}, and no ASGI app"):
        worker._Config(Settings(), Target(app=f"test_worker:{name}")).load()


def test_our_own_sentences_are_told_as_they_are() -> None:
    assert worker._reason("m:a", raised(InvalidLimit('limit "x": what?'))) == 'limit "x": what?'
    missing = ImportFromStringError('Attribute "a" not found in module "m".')
    assert worker._reason("m:a", missing) == 'app "m:a" cannot be loaded: Attribute "a" not found in module "m"'
    assert worker._reason("m:a", worker.AppFailedError("no database")) == "the app failed to start: no database"


# TLS


def test_tls_is_served_and_a_refused_body_is_no_reset_there_either(
    serving: Callable[..., Serving], tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    made = "req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=x"
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([needs("openssl"), *made.split(), *named], check=True, capture_output=True)
    server = serving(Target(app="test_worker:app", ssl_keyfile=str(key), ssl_certfile=str(certificate)))
    trusted = ssl.create_default_context(cafile=str(certificate))
    for headers in ({}, {"connection": "close"}):
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=trusted)
        with contextlib.closing(connection):
            assert ask(connection, "/refused", body=BIG, headers=headers).status == 429

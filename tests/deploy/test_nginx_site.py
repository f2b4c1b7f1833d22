"""The committed nginx site, in a real nginx, in front of a real `onequota run`."""

import contextlib
import http.client
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from nginx import DEPLOY, SITE, Nginx
from running import Running, becomes, onequota
from websockets.sync.client import connect

from service.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

# Says what it was told. `/stream` and `/asked-for` send event `n` when a file of that name exists.
APP = """
import asyncio
from pathlib import Path
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from service.limits import Limiter, identity

limiter = Limiter(key_func=identity.client_address)
app = FastAPI()
app.state.limiter = limiter
app.add_middleware(limiter.middleware)

@app.get("/who")
async def who(request: Request):
    return {
        "client": identity.client_address(request),
        "port": request.client.port,
        "headers": {name: request.headers.getlist(name) for name in request.headers},
    }

@app.get("/limited")
@limiter.limit("1/minute")
async def limited():
    return {}

@app.post("/body")
async def body(request: Request):
    return {"bytes": len(await request.body())}

async def events():
    for number in range(5):
        while not Path(f"{number}").exists():
            await asyncio.sleep(0.01)
        yield f"data: {number}\\n\\n"

@app.get("/stream")
async def stream():
    return StreamingResponse(events(), media_type="text/event-stream")

@app.get("/asked-for")
async def asked_for():
    return StreamingResponse(events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

@app.get("/{kind}/stream")
@app.get("/{kind}/download")
async def large(kind: str):
    async def chunks():
        for _ in range(400):
            yield bytes(100_000)
    headers = {"x-accel-buffering": "no"} if kind == "asked-for" else None
    return StreamingResponse(chunks(), media_type="text/event-stream", headers=headers)

@app.websocket("/chat")
async def chat(socket: WebSocket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(f"{text}, said {identity.client_address(socket)}")
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "site_app.py").write_text(APP)
    told = {"ONEQUOTA_TRUSTED_PROXIES": "127.0.0.1/32", "ONEQUOTA_DRAIN_S": "4"}
    arguments = ("run", "site_app:app", "--port", "0", "--workers", "2", "--no-access-log")
    with onequota(folder, *arguments, variables=told) as app:
        yield app


@pytest.fixture(scope="module")
def nginx(running: Running) -> Iterator[Nginx]:
    with Nginx(running.banner["url"].removeprefix("http://")) as started:
        yield started


def client(nginx: Nginx, address: str = "127.0.0.1") -> http.client.HTTPConnection:
    """A client that comes from `address`."""
    return http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=20, source_address=(address, 0))


def ask(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def numbers() -> dict[str, float]:
    """The seconds of the site's directives: the upstream's `keepalive_timeout` is the one in a unit of its own."""
    text = SITE.read_text()
    found = dict(re.findall(r"^    (proxy_\w+|keepalive_timeout) (\d+)s;", text, re.MULTILINE))
    return {name: float(seconds) for name, seconds in found.items()}


def test_its_deadlines_fit_ours() -> None:
    """nginx closes an idle connection first, and gives up on an answer last."""
    site, ours = numbers(), Settings()
    assert 0 < site["keepalive_timeout"] < ours.keep_alive_s
    assert site["proxy_read_timeout"] > max(ours.request_timeout_s, ours.stream_idle_s)


def test_the_numbers_people_read_are_those_that_hold() -> None:
    """In deploy/README.md, where each stands behind its name."""
    readme, ours = (DEPLOY / "README.md").read_text(), Settings()
    stop_s = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "onequota.service").read_text(), re.MULTILINE)
    held = {"TimeoutStopSec": float(stop_s[0])} | numbers()
    for name in ("keep_alive_s", "drain_s", "request_timeout_s", "stream_idle_s"):
        held[f"ONEQUOTA_{name.upper()}"] = getattr(ours, name)
    told = re.findall(r"`(\w+)` \((\d+) s\)", readme)
    assert len(told) >= 7
    for name, seconds in told:
        assert held[name] == float(seconds), name


def test_the_client_is_whom_nginx_saw_and_not_whom_it_says_it_is(nginx: Nginx) -> None:
    """127.0.0.9 asks; nginx, at 127.0.0.1, is the trusted proxy."""
    with contextlib.closing(client(nginx, "127.0.0.9")) as connection:
        _, honest = ask(connection, "/who")
        _, liar = ask(
            connection, "/who", {"X-Forwarded-For": "6.6.6.6", "X-Request-ID": "mine", "Forwarded": "for=6.6.6.6"}
        )
    assert json.loads(honest)["client"] == json.loads(liar)["client"] == "127.0.0.9"
    assert json.loads(liar)["headers"]["x-forwarded-for"] == ["6.6.6.6, 127.0.0.9"]


def test_the_app_learns_scheme_host_and_request_id(nginx: Nginx) -> None:
    with contextlib.closing(client(nginx)) as connection:
        answer, body = ask(connection, "/who", {"Host": "example.com", "X-Request-ID": "mine"})
    headers = json.loads(body)["headers"]
    assert headers["host"] == headers["x-forwarded-host"] == ["example.com"]
    assert headers["x-forwarded-proto"] == ["http"]
    (request_id,) = headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert answer.headers.get_all("x-request-id") == [request_id]


def test_a_refusal_reaches_the_client_whole(nginx: Nginx) -> None:
    with contextlib.closing(client(nginx, "127.0.0.7")) as connection:
        allowed, _ = ask(connection, "/limited")
        refused, body = ask(connection, "/limited")
    assert (allowed.status, refused.status) == (200, 429)
    assert refused.headers["content-type"] == "application/problem+json"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit-policy"] == '"1/minute";q=1;w=60'
    assert refused.headers["ratelimit"].startswith('"1/minute";r=0;t=')
    assert json.loads(body)["status"] == 429


@pytest.mark.parametrize("path", ["/stream", "/asked-for"])
def test_events_arrive_one_by_one(nginx: Nginx, running: Running, path: str) -> None:
    """None is made before the one before it was read here: nginx holds nothing back."""
    gates = [running.errors.with_name(f"{number}") for number in range(5)]
    gates[0].touch()
    with contextlib.closing(client(nginx)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        for number, gate in enumerate(gates):
            gate.touch()
            assert answer.readline() + answer.readline() == f"data: {number}\n\n".encode()
        assert answer.read() == b""
    for gate in gates:
        gate.unlink()


@pytest.mark.parametrize(
    ("path", "piled_up"), [("/large/stream", False), ("/asked-for/download", False), ("/large/download", True)]
)
def test_a_stream_waits_for_its_reader_and_is_not_piled_up_on_disk(running: Running, path: str, piled_up: bool) -> None:
    """40 MB for a reader that reads nothing until nginx, where it buffers, has written to its disk, and says so."""
    with Nginx(running.banner["url"].removeprefix("http://")) as nginx, contextlib.closing(client(nginx)) as reader:
        reader.request("GET", path)
        answer = reader.getresponse()
        buffered = becomes(lambda: "buffered to a temporary file" in nginx.said(), 10 if piled_up else 0.5)
        assert sum(len(chunk) for chunk in iter(lambda: answer.read(1 << 20), b"")) == 40_000_000
    assert buffered == piled_up


def test_a_websocket_passes_and_knows_its_client(nginx: Nginx) -> None:
    with connect(nginx.url.replace("http", "ws") + "/chat", source_address=("127.0.0.8", 0)) as chat:
        for text in ("one", "two"):
            chat.send(text)
            assert chat.recv(20) == f"{text}, said 127.0.0.8"


def test_five_hundred_requests_of_five_clients_share_a_few_connections(nginx: Nginx) -> None:
    """Told by the ports the app sees: a new one is a new connection."""
    clients = [client(nginx) for _ in range(5)]
    seen = {json.loads(ask(clients[number % 5], "/who")[1])["port"] for number in range(500)}
    for connection in clients:
        connection.close()
    assert len(seen) <= 5


def test_clients_get_one_hint_of_how_long_a_connection_lives(nginx: Nginx) -> None:
    """nginx's, as we would give it: shorter than nginx waits."""
    with contextlib.closing(client(nginx)) as connection:
        answer, _ = ask(connection, "/who")
    assert answer.headers.get_all("keep-alive") == ["timeout=70"]
    assert "keepalive_timeout 75s 70s;" in SITE.read_text()


def test_ten_megabytes_pass_and_seventeen_are_refused(nginx: Nginx) -> None:
    with contextlib.closing(client(nginx)) as connection:
        connection.request("POST", "/body", body=bytes(10_000_000))
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (200, {"bytes": 10_000_000})
        connection.request("POST", "/body", headers={"Content-Length": str(17 << 20)})
        assert connection.getresponse().status == 413


def test_workers_are_replaced_behind_it_and_no_request_is_lost(nginx: Nginx, running: Running) -> None:
    """First the workers, then the whole service; POSTs among the requests, which nginx does not repeat."""
    done, failed = threading.Event(), list[str]()
    answered = [0] * 4

    def load(number: int) -> None:
        with contextlib.closing(client(nginx)) as connection:
            while not done.is_set():
                try:
                    connection.request(("GET", "POST")[number % 2], ("/who", "/body")[number % 2], body=b"x")
                    answer = connection.getresponse()
                    answer.read()
                    answered[number] += 1
                    if answer.status != 200:
                        failed.append(f"{answer.status}")
                except (OSError, http.client.HTTPException) as error:
                    failed.append(repr(error))
                    connection.close()
                time.sleep(0.005)  # the workers that start want a processor too

    assert becomes(lambda: running.said().count("worker_serving") == 2, 20)
    threads = [threading.Thread(target=load, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number, sent in enumerate((signal.SIGHUP, signal.SIGUSR2), start=1):
            running.process.send_signal(sent)
            assert becomes(lambda: running.said().count("worker_ended") == 2 * number, 40), running.said()  # noqa: B023
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[:5]
    assert min(answered) > 10


# -- an upstream that hangs up ------------------------------------------------------------------------------------


class Rude:
    """Answers the first request on each connection and hangs up on the second, which it has read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            if self._request(connection):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                self._request(connection)

    def _request(self, connection: socket.socket) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(65536)
            if not more:
                return False
            received += more
        self.read.append(received.split(b" ", 1)[0].decode())
        return True


@pytest.mark.parametrize(
    ("method", "statuses", "delivered"),
    [
        ("GET", [200, 200], ["GET", "GET", "GET"]),
        ("PUT", [200, 200], ["PUT", "PUT", "PUT"]),
        ("POST", [200, 502], ["POST", "POST"]),
        ("PATCH", [200, 502], ["PATCH", "PATCH"]),
    ],
)
def test_what_may_have_been_done_is_not_sent_twice(method: str, statuses: list[int], delivered: list[str]) -> None:
    """The second request meets a connection that is closed under it."""
    rude = Rude()
    with rude.listener, Nginx(rude.address) as nginx, contextlib.closing(client(nginx)) as connection:
        found = []
        for _ in range(2):
            connection.request(method, "/")
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
    assert (found, rude.read) == (statuses, delivered)

"""The committed configurations of nginx and Caddy, in the real servers, before a real service: who passes, who does
not, what the client is told, and what happens when the service is away."""

import contextlib
import http.client
import http.server
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import caddy
import pytest
from caddy import Caddy
from nginx import DEPLOY, Nginx, free_port, replaced
from running import Running, becomes, onequota
from servers import RedisServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

SECRET = "5f1d7a84e2c09b36a7d41ce80f93b265"
LIMITS = """
domain: site
descriptors:
  - key: remote_address
    value: 127.0.0.99
    rate_limit: {unlimited: true}
  - key: remote_address
    rate_limit: {unit: day, requests_per_unit: 3}
  - key: method
    value: POST
    descriptors:
      - key: path
        value: /login
        descriptors:
          - key: remote_address
            rate_limit: {unit: day, requests_per_unit: 1}
  - key: host
    value: shut.example
    rate_limit: {unit: day, requests_per_unit: 0}
  - key: path
    value: /guarded
    limits: 1000/day
    on_outage: deny
"""
POLICY = '"3/day";q=3;w=86400'


class Backend(http.server.ThreadingHTTPServer):
    """The app behind the gateway: says what it was asked; `/status/403` answers that."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.connections = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str) -> tuple[int, bytes]:
        said = re.fullmatch(r"/status/(\d+)", path)
        return int(said[1]) if said else 200, b'{"path":%s,"bytes":BYTES}' % json.dumps(path).encode()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.asked.append(self.path)
        status, answer = self.server.answer(self.path)
        answer = answer.replace(b"BYTES", b"%d" % len(body))
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


Gateway = Nginx | Caddy
Start = Callable[..., Gateway]
AUTHORIZE = DEPLOY / "nginx" / "authorize.conf"


def nginx_before(upstream: str, backend: Backend, *, closed: bool = False, key: str | None = None) -> Nginx:
    changes = {"server 127.0.0.1:9000;": f"server {backend.address};"}
    if closed:
        changes |= {"proxy_intercept_errors on;": "", "error_page 502 504 = @onequota_away;": ""}
    if key is not None:
        changes |= {
            '#proxy_set_header Authorization "Bearer SECRET";': f'proxy_set_header Authorization "Bearer {key}";'
        }
    return Nginx(upstream, site=AUTHORIZE, changes=changes)


def caddy_before(upstream: str, backend: Backend, *, closed: bool = False, key: str | None = None) -> Caddy:
    yes = free_port()
    changes = {
        "reverse_proxy 127.0.0.1:9000": f"reverse_proxy {backend.address}",
        " 127.0.0.1:8099 {\n\t\tmethod": " {\n\t\tmethod" if closed else f" 127.0.0.1:{yes} {{\n\t\tmethod",
        "http://127.0.0.1:8099 {": f"http://127.0.0.1:{yes} {{",
    }
    if key is not None:
        changes |= {'#header_up Authorization "Bearer SECRET"': f'header_up Authorization "Bearer {key}"'}
    return Caddy(upstream, caddy.SITE.read_text(), changes)


BEFORE: dict[str, Start] = {"nginx": nginx_before, "caddy": caddy_before}


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as server:
        yield server
        server.shutdown()


@contextlib.contextmanager
def service(folder: Path, **variables: str) -> Iterator[Running]:
    (folder / "limits.yaml").write_text(LIMITS)
    told = {"ONEQUOTA_TRUSTED_PROXIES": "127.0.0.1/32", **variables}
    arguments = ("serve", "--port", "0", "--workers", "1", "--limits", "limits.yaml")
    with onequota(folder, *arguments, variables=told) as running:
        assert becomes(lambda: "worker_serving" in running.said(), 30)
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with service(tmp_path_factory.mktemp("gateways")) as started:
        yield started


@pytest.fixture(scope="module", params=BEFORE)
def gateway(request: pytest.FixtureRequest, running: Running, backend: Backend) -> Iterator[Gateway]:
    with BEFORE[request.param](place(running), backend) as started:
        yield started


def place(running: Running) -> str:
    return str(running.banner["url"]).removeprefix("http://")


_last = iter(range(2, 90))


@pytest.fixture
def address() -> str:
    """A client that no other test was."""
    return f"127.0.1.{next(_last)}"


def ask(gateway: Gateway, path: str, address: str, method: str = "GET", **more: Any) -> tuple[int, Any, bytes]:
    """Status, headers and body of the answer to a client that comes from `address`."""
    client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30, source_address=(address, 0))
    with contextlib.closing(client):
        client.request(method, path, headers=more.get("headers", {}), body=more.get("body"))
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()


def statuses(gateway: Gateway, asked: list[tuple[Any, ...]], **more: Any) -> list[int]:
    return [ask(gateway, *each, **more)[0] for each in asked]


def test_below_the_limit_the_backend_answers_and_the_client_learns_what_is_left(gateway: Gateway, address: str) -> None:
    for left in (2, 1, 0):
        status, headers, body = ask(gateway, f"/page?{left}", address)
        assert (status, json.loads(body)["path"]) == (200, f"/page?{left}")
        assert headers["ratelimit-policy"] == POLICY
        assert re.fullmatch(rf'"3/day";r={left};t=\d+', headers["ratelimit"])


def test_above_it_the_client_reads_429_when_to_come_again_and_why(
    gateway: Gateway, backend: Backend, address: str
) -> None:
    assert statuses(gateway, [("/", address)] * 3) == [200] * 3
    before = len(backend.asked)
    status, headers, body = ask(gateway, "/", address)
    assert (status, len(backend.asked)) == (429, before)
    assert 0 < int(headers["retry-after"]) <= 86_400
    assert headers["ratelimit-policy"] == POLICY
    assert re.fullmatch(r'"3/day";r=0;t=\d+', headers["ratelimit"])
    assert (headers["content-type"], headers["cache-control"]) == ("application/problem+json", "no-store")
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == (
        "https://iana.org/assignments/http-problem-types#quota-exceeded",
        429,
    )
    assert headers["retry-after"] in problem["detail"]


def test_what_nothing_limits_is_the_backends_answer_as_it_is(gateway: Gateway) -> None:
    for _ in range(5):
        status, headers, body = ask(gateway, "/page", "127.0.0.99")
        assert (status, json.loads(body)["path"]) == (200, "/page")
        assert "ratelimit" not in headers
        assert headers["content-length"] == str(len(body))


LIES = [
    ("X-Forwarded-For", "6.6.6.{}"),
    ("X-Forwarded-For", "127.0.0.99, 127.0.0.1"),
    ("Forwarded", "for=6.6.6.{}"),
    ("X-Real-IP", "6.6.6.{}"),
    ("X-Client-IP", "6.6.6.{}"),
    ("X-Forwarded-Uri", "/free/{}"),
    ("X-Original-URI", "/free/{}"),
    ("X-Original-URL", "http://free/{}"),
    ("X-Forwarded-Method", "GET"),
    ("X-Original-Method", "GET"),
    ("X-Forwarded-Host", "free{}.example"),
    ("X-Original-Host", "free{}.example"),
    ("X-HTTP-Method-Override", "GET"),
    ("X-API-Key", "free-{}"),
    ("Connection", "X-Forwarded-For, X-Original-URI, X-Forwarded-Uri"),
]


@pytest.mark.parametrize(("name", "value"), LIES, ids=[f"{name}: {value}" for name, value in LIES])
def test_whatever_a_client_says_of_itself_it_has_one_quota(
    gateway: Gateway, address: str, name: str, value: str
) -> None:
    """POST /login passes once, whoever it says it is, and whatever it says it asks for."""
    found = [
        ask(gateway, "/login", address, "POST", headers={name: value.format(number)}, body=b"")[0]
        for number in range(3)
    ]
    assert found == [200, 429, 429]


@pytest.mark.parametrize(
    "path", ["//login", "/login/", "/%6cogin", "/x/../login", "/./login", "/login?a=b", "/login//"]
)
def test_another_spelling_of_a_path_is_no_other_quota(gateway: Gateway, address: str, path: str) -> None:
    assert statuses(gateway, [("/login", address, "POST"), (path, address, "POST")]) == [200, 429]


@pytest.mark.parametrize("host", ["shut.example", "SHUT.Example", "shut.example.", "shut.example:80"])
def test_a_host_is_known_however_it_is_spelled(gateway: Gateway, address: str, host: str) -> None:
    assert ask(gateway, "/", address, headers={"Host": host})[0] == 429


def test_bodies_go_to_the_backend_whole(gateway: Gateway, address: str) -> None:
    status, _, body = ask(gateway, "/upload", address, "PUT", body=bytes(900_000))
    assert (status, json.loads(body)["bytes"]) == (200, 900_000)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503])
def test_what_the_backend_itself_answers_stays(gateway: Gateway, status: int) -> None:
    found, headers, body = ask(gateway, f"/status/{status}", "127.0.0.99")
    assert (found, json.loads(body)["path"]) == (status, f"/status/{status}")
    assert "retry-after" not in headers


@pytest.mark.parametrize(("name", "refusal"), [("nginx", 403), ("caddy", 429)])
def test_a_hundred_questions_share_a_few_connections(name: str, refusal: int, backend: Backend, address: str) -> None:
    """Asked of something that answers as the service does, refuses each second request, and counts."""

    class Counting(Backend):
        def answer(self, path: str) -> tuple[int, bytes]:
            assert path.startswith("/v1/authorize?domain=site")
            return (refusal, b"" if name == "nginx" else b"{}") if len(self.asked) % 2 else (200, b"")

    with Counting() as service, BEFORE[name](service.address, backend) as gateway:
        found = statuses(gateway, [("/", address)] * 100)
        assert found == [refusal, 200] * 50
        assert len(service.asked) == 100
        assert service.connections <= 4
        service.shutdown()


# -- the service is away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BEFORE)
def test_without_the_service_requests_pass(name: str, backend: Backend, address: str) -> None:
    with BEFORE[name](f"127.0.0.1:{free_port()}", backend) as gateway:
        for _ in range(5):
            status, headers, body = ask(gateway, "/page", address)
            assert (status, json.loads(body)["path"]) == (200, "/page")
            assert "ratelimit" not in headers


@pytest.mark.parametrize(("name", "status"), [("nginx", 503), ("caddy", 502)])
def test_without_the_service_nothing_passes_where_it_is_said_so(
    name: str, status: int, backend: Backend, address: str
) -> None:
    with BEFORE[name](f"127.0.0.1:{free_port()}", backend, closed=True) as gateway:
        before = len(backend.asked)
        found, headers, _ = ask(gateway, "/page", address)
        assert (found, len(backend.asked)) == (status, before)
        assert headers.get("retry-after") == ("1" if name == "nginx" else None)


@pytest.mark.parametrize("name", BEFORE)
def test_a_service_that_does_not_answer_is_not_waited_for(name: str, backend: Backend, address: str) -> None:
    """It accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as stalled:
        upstream = f"127.0.0.1:{stalled.getsockname()[1]}"
        with BEFORE[name](upstream, backend) as gateway:
            for _ in range(2):
                began = time.monotonic()
                status, _, body = ask(gateway, "/page", address)
                assert (status, json.loads(body)["path"]) == (200, "/page")
                assert time.monotonic() - began < 5


# -- keys, and no Redis -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Running]:
    """A service that wants keys, on a Redis that tests may stop."""
    keys = f"gateway:{SECRET}:site"
    with service(tmp_path_factory.mktemp("locked"), REDIS_URL=redis.url, ONEQUOTA_API_KEYS=keys) as started:
        yield started


@pytest.mark.parametrize(("name", "without"), [("nginx", 500), ("caddy", 401)])
def test_a_service_with_keys_answers_the_gateway_that_has_one(
    name: str, without: int, locked: Running, backend: Backend, address: str
) -> None:
    """One that has none is an error, and no free pass."""
    with BEFORE[name](place(locked), backend, key=SECRET) as gateway:
        assert statuses(gateway, [("/", address)] * 4) == [200, 200, 200, 429]
        lying = {"Authorization": "Bearer of-the-client", "X-API-Key": "of-the-client"}
        assert ask(gateway, "/", address, headers=lying)[0] == 429
    with BEFORE[name](place(locked), backend) as gateway:
        before = len(backend.asked)
        assert ask(gateway, "/", address)[0] == without
        assert ask(gateway, "/", address, headers={"Authorization": "Bearer of-the-client"})[0] == without
        assert len(backend.asked) == before


@pytest.mark.parametrize("name", BEFORE)
def test_while_redis_is_away_each_limit_has_its_own_answer(
    name: str, locked: Running, redis: RedisServer, backend: Backend, address: str
) -> None:
    """`on_outage: deny` is a 503 that the client reads as such; the others pass by their share."""
    with BEFORE[name](place(locked), backend, key=SECRET) as gateway:
        assert becomes(lambda: ask(gateway, "/guarded", address)[0] == 200, 20)
        redis.stop()
        try:
            for _ in range(3):
                status, headers, body = ask(gateway, "/guarded", address)
                assert (status, headers["retry-after"]) == (503, "1")
                assert json.loads(body)["type"].endswith("#temporary-reduced-capacity")
            assert ask(gateway, "/page", address)[0] == 200
        finally:
            redis.start()


# -- Caddy's short form -------------------------------------------------------------------------------------------


def test_the_short_form_that_people_read(running: Running, backend: Backend, address: str) -> None:
    """In deploy/README.md: refusals are the same; what is left is not told to who passes."""
    (text,) = re.findall(r"```caddyfile\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    changes = {"reverse_proxy 127.0.0.1:9000": f"reverse_proxy {backend.address}"}
    with Caddy(place(running), text, changes) as gateway:
        found = [ask(gateway, "/page", address) for _ in range(4)]
        assert [status for status, _, _ in found] == [200, 200, 200, 429]
        assert json.loads(found[0][2])["path"] == "/page"
        assert "retry-after" in found[3][1]
        assert json.loads(found[3][2])["status"] == 429


def test_what_is_replaced_here_is_there_for_people_to_replace() -> None:
    """The addresses, the domain and the secret of both files."""
    for path in (AUTHORIZE, caddy.SITE):
        text = path.read_text()
        for each in ("127.0.0.1:8000", "127.0.0.1:9000", "domain=site", "Bearer SECRET"):
            assert each in text, (path, each)
    replaced(caddy.SITE.read_text(), "http://:80 {", "")

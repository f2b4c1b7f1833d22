"""Requests that try to be somebody else, or somewhere else, through a real server and the whole gate.

The client is behind a proxy on loopback that tells its address. Whatever it sends, the route it had its two admissions
of does not run a third time, and nobody else has one less.
"""

import socket
import threading
import time

import pytest
import uvicorn
from driving import gated, limiter_of
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Route

from service.limits import identity

CLIENT, OTHER = "203.0.113.7", "203.0.113.8"


class Site:
    """A served app: GET /item and everything else twice an hour, for each client.

    Attributes:
        ran: Which endpoints ran, for whom.
    """

    def __init__(self):
        self.ran = []
        self.limiter = limiter_of(
            key_func=identity.client_address, default_limits=["2/hour"], trusted_proxies=["127.0.0.0/8"]
        )
        self.app = gated(FastAPI(), self.limiter)
        self._routes()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(self.app, http="httptools", proxy_headers=False, log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _routes(self):
        @self.app.get("/item")
        async def item():
            self.ran.append("item")
            return {}

        router = APIRouter(prefix="/api")

        @router.get("/users/{name}")
        async def user(name: str):
            self.ran.append("user")
            return {}

        self.app.include_router(router)

        def page(request):
            self.ran.append("page")
            return PlainTextResponse("page")

        inner = Starlette(routes=[Route("/page", page)])
        self.app.router.routes.append(Host("pages.example", inner))
        self.app.router.routes.append(Route("/page", page))

    def ask(self, request):
        """The status of a raw request; a server that only hangs up answers 0."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return int(answer.split(b" ", 2)[1]) if answer else 0

    def get(self, target="/item", client=CLIENT, *lines, method="GET", host="site.example"):
        """The status of a request as the proxy passes it on."""
        head = [
            f"{method} {target} HTTP/1.1",
            f"Host: {host}",
            *lines,
            f"X-Forwarded-For: {client}",
            "Connection: close",
        ]
        return self.ask("\r\n".join([*head, "", ""]).encode("latin-1"))

    def close(self):
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()


@pytest.fixture(scope="module")
def _site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def site(_site):
    _site.limiter.reset()
    _site.ran.clear()
    return _site


REFUSED, ELSEWHERE, UNREADABLE = 429, 404, 400
"""It is the same route; there is no such route; it is not HTTP."""

TARGETS = [
    # what is asked for, and what it is once /item is used up for this client (other routes are not)
    ("/item", REFUSED),
    ("/item?", REFUSED),
    ("/item?x=1", REFUSED),
    ("/item?/other", REFUSED),
    ("/item#fragment", REFUSED),
    ("/%69tem", REFUSED),
    ("/%69%74%65%6D", REFUSED),
    ("/%69%74%65%6d", REFUSED),
    ("/item%0A", REFUSED),
    ("http://site.example/item", REFUSED),
    ("http://other.example/item", REFUSED),
    ("HTTP://SITE.EXAMPLE/item", REFUSED),
    ("/item/", 307),
    ("/item%2F", 307),
    ("/item%2f", 307),
    ("//item", ELSEWHERE),
    ("///item", ELSEWHERE),
    ("/%2Fitem", ELSEWHERE),
    ("/item//", 307),
    ("/./item", ELSEWHERE),
    ("/item/.", ELSEWHERE),
    ("/x/../item", ELSEWHERE),
    ("/x/%2e%2e/item", ELSEWHERE),
    ("/item/..", ELSEWHERE),
    ("/ITEM", ELSEWHERE),
    ("/Item", ELSEWHERE),
    ("/item;x=1", ELSEWHERE),
    ("/item%3Fx", ELSEWHERE),
    ("/item%23", ELSEWHERE),
    ("/item%00", ELSEWHERE),
    ("/item%0D", ELSEWHERE),
    ("/item%0A%0A", ELSEWHERE),
    ("/item%20", ELSEWHERE),
    ("/item.", ELSEWHERE),
    ("/item.json", ELSEWHERE),
    ("/%2569tem", ELSEWHERE),
    ("/item%", ELSEWHERE),
    ("/item%zz", ELSEWHERE),
    ("/item%C0%AF", ELSEWHERE),
    ("/%C0%AFitem", ELSEWHERE),
    ("/\xefitem", UNREADABLE),
    ("\\item", UNREADABLE),
    ("item", UNREADABLE),
    ("/item x", UNREADABLE),
]


@pytest.mark.parametrize(("target", "status"), TARGETS, ids=ascii)
def test_a_used_up_route_has_no_other_name(site, target, status):
    """Every spelling is the same quota, or is no way to the route."""
    assert [site.get(), site.get()] == [200, 200]
    assert site.get(target) == status
    assert site.ran == ["item", "item"]
    assert [site.get(client=OTHER), site.get(client=OTHER), site.get(client=OTHER)] == [200, 200, 429]


@pytest.mark.parametrize(("target", "status"), TARGETS, ids=ascii)
def test_a_spelling_that_reaches_the_route_is_charged_for_it(site, target, status):
    """The other way round: by this spelling, twice at most, and then not by the plain one."""
    first = [site.get(target) for _ in range(3)]
    if status == REFUSED:
        assert first == [200, 200, 429]
    assert "item" not in site.ran[2:]
    assert [site.get() for _ in range(3)] == ([429] * 3 if status == REFUSED else [200, 200, 429])
    assert len(site.ran) == 2


USERS = [
    "/api/users/a",
    "/api/users/b",
    "/api/users/%61",
    "/api/users/a%0A",
    "/api/users/" + "x" * 2000,
    "/api/users/%FF",
]


def test_an_enumeration_is_one_quota(site):
    """The template counts, not the path."""
    assert [site.get(target) for target in USERS] == [200, 200, 429, 429, 429, 429]


def test_paths_that_reach_nothing_share_one_quota(site):
    """So that inventing paths is no way to fill a Redis, or to go on asking."""
    assert [site.get(f"/no/{n}") for n in range(4)] == [404, 404, 429, 429]
    assert site.get("//item") == 429
    assert site.get("/item") == 200


METHODS = [
    # method, lines, status: none of them runs the endpoint
    ("GET", ["X-HTTP-Method-Override: POST"], 429),
    ("GET", ["X-HTTP-Method: DELETE"], 429),
    ("GET", ["X-Method-Override: HEAD"], 429),
    ("GET", ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"], 429),
    ("GET", ["Upgrade: websocket"], 429),
    ("GET", ["Expect: 100-continue"], 429),
    ("GET", ["Range: bytes=0-0"], 429),
    ("GET", ["Content-Length: 0"], 429),
    ("GET", ["Transfer-Encoding: chunked", "Content-Length: 3"], UNREADABLE),
    ("GET", ["Content-Length: 3", "Content-Length: 4"], UNREADABLE),
    ("HEAD", [], 405),
    ("POST", ["X-HTTP-Method-Override: GET", "Content-Length: 0"], 405),
    ("POST", ["X-HTTP-Method-Override: GET", "Content-Type: text/plain", "Content-Length: 0"], 405),
    ("PUT", ["X-HTTP-Method: GET"], 405),
    ("OPTIONS", [], 405),
    ("OPTIONS", ["Origin: http://a", "Access-Control-Request-Method: GET"], 405),
    ("TRACE", [], 405),
    ("PATCH", [], 405),
    ("get", [], UNREADABLE),
    ("Get", [], UNREADABLE),
    ("GETS", [], UNREADABLE),
    ("PROPFIND", [], 405),
]  # fmt: skip


@pytest.mark.parametrize(("method", "lines", "status"), METHODS, ids=ascii)
def test_no_method_and_no_header_about_methods_runs_a_used_up_route(site, method, lines, status):
    """405s are charged to the quota of what reaches nothing."""
    assert [site.get(), site.get()] == [200, 200]
    assert site.get("/item", CLIENT, *lines, method=method) == status
    assert site.ran == ["item", "item"]
    assert site.get(client=OTHER) == 200


@pytest.mark.parametrize(("one", "other"), [("GET", "HEAD"), ("HEAD", "GET")])
def test_head_is_no_second_quota(site, one, other):
    """Starlette's routes answer HEAD by running the endpoint."""
    answers = [site.get("/page", method=method) for method in (one, other, one, other)]
    assert answers == [200, 200, 429, 429]
    assert site.ran == ["page", "page"]


HOSTS = [
    "site.example",
    "SITE.EXAMPLE",
    "site.example.",
    "site.example:80",
    "other.example",
    "",
    "[::1]",
    "pages.example.",
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_with_a_dot_or_a_port_is_no_second_quota(site, host):
    """Names are no part of a key."""
    assert [site.get(), site.get()] == [200, 200]
    assert site.get(host=host) == 429
    assert site.ran == ["item", "item"]


def test_a_host_of_its_own_is_limited_by_whatever_name_it_is_reached(site):
    """Starlette's Host routes: two admissions for all that is behind them."""
    names = ["pages.example", "pages.example:80", "pages.example:443", "pages.example"]
    assert [site.get("/page", host=host) for host in names] == [200, 200, 429, 429]


FORGED = [
    # lines the client sends; the proxy's own X-Forwarded-For comes after them
    ["X-Forwarded-For: 6.6.6.6"],
    ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 7.7.7.7"],
    ["X-Forwarded-For: 127.0.0.1"],
    ["X-Forwarded-For: 127.0.0.1, 127.0.0.2"],
    [f"X-Forwarded-For: {OTHER}"],
    ["X-Forwarded-For: unknown"],
    ["X-Forwarded-For:"],
    ["X-Forwarded-For: " + "6.6.6.6, " * 500],
    ["X-FORWARDED-FOR: 6.6.6.6"],
    ["X_Forwarded_For: 6.6.6.6"],
    [f"Forwarded: for={OTHER}"],
    [f"X-Real-IP: {OTHER}"],
    [f"True-Client-IP: {OTHER}"],
    [f"CF-Connecting-IP: {OTHER}"],
    [f"X-Client-IP: {OTHER}", f"X-Cluster-Client-IP: {OTHER}"],
    ["X-Forwarded-For: 6.6.6.6\t"],
    ["Connection: X-Forwarded-For"],
    ["X-Forwarded-Host: other.example", "X-Forwarded-Proto: https", "X-Forwarded-Prefix: /other"],
    ["X-Original-URL: /free", "X-Rewrite-URL: /free"],
]


@pytest.mark.parametrize("lines", FORGED, ids=lambda lines: ascii(lines)[:60])
def test_no_header_of_the_clients_makes_it_somebody_else(site, lines):
    """It has two admissions in all, and the other one still has its two."""
    assert [site.get("/item", CLIENT, *lines) for _ in range(3)] == [200, 200, 429]
    assert site.get() == 429
    assert [site.get(client=OTHER) for _ in range(3)] == [200, 200, 429]


FOLDED = [
    b"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n ,203.0.113.7\r\nConnection: close\r\n\r\n",
    b"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For:\r\n 203.0.113.7\r\nConnection: close\r\n\r\n",
    b"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.7\r\n\t\r\nConnection: close\r\n\r\n",
    b"GET /item HTTP/1.1\nHost: a\nX-Forwarded-For: 203.0.113.7\nConnection: close\n\n",
    b"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For : 203.0.113.7\r\nConnection: close\r\n\r\n",
    b"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.7\x00\r\nConnection: close\r\n\r\n",
    b"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\rX: y\r\nConnection: close\r\n\r\n",
    b"GET /item HTTP/1.0\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n",
]


@pytest.mark.parametrize("request_", FOLDED, ids=ascii)
def test_folded_and_broken_lines_are_the_same_client_or_no_request(site, request_):
    """A server may join a folded line or refuse it; the client gets no third admission out of either."""
    assert [site.get(), site.get()] == [200, 200]
    assert site.ask(request_) in (429, 400)
    assert site.ran == ["item", "item"]
    assert site.get(client=OTHER) == 200


def test_two_requests_on_one_connection_are_two(site):
    """Pipelined, behind each other: each is charged."""
    line = f"GET /item HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {CLIENT}\r\n\r\n".encode()
    site.ask(line * 4 + line.replace(b"Host", b"Connection: close\r\nHost"))
    assert site.ran == ["item", "item"]

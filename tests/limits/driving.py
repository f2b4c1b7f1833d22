"""How the limiter's tests build limiters and send requests: with Starlette's client, or one ASGI message at a time."""

import asyncio

from starlette.testclient import TestClient

from service.limits import Limiter
from service.limits.stores import MemoryStore

START_US = 1_790_000_000_000_000


class Clock:
    """A clock that a test moves: microseconds since the epoch."""

    def __init__(self, now_us=START_US):
        self.now_us = now_us

    def __call__(self):
        return self.now_us

    def forward(self, seconds):
        self.now_us += int(seconds * 1_000_000)


def by_user(request):
    """Key function: who the x-user header says; nobody if it is empty."""
    return request.headers.get("x-user", "alice")


def limiter_of(clock=None, /, **options):
    """A limiter in this process; with a clock, one whose time stands still until it is moved."""
    limiter = Limiter(options.pop("key_func", by_user), **{"storage_uri": "memory://", **options})
    if clock is not None:
        store = MemoryStore(clock)
        limiter.engine.open_store = lambda: store
    return limiter


def gated(app, limiter):
    """The app behind the limiter's middleware."""
    app.state.limiter = limiter
    app.add_middleware(limiter.middleware)
    return app


def client_of(app, **options):
    """A client that shows a server's error as its 500."""
    return TestClient(app, **{"raise_server_exceptions": False, **options})


def statuses(client, path, times, **options):
    """What `times` GETs in a row are answered with."""
    return [client.get(path, **options).status_code for _ in range(times)]


class Wire:
    """One HTTP request, message by message.

    Attributes:
        sent: What the application sent so far.
        received: How often it asked for a piece of the body.
    """

    def __init__(self, app, path, *, method="GET", headers=None, body=(), extra=None):
        self.app = app
        self.sent = []
        self.received = 0
        self._bodies = list(body)
        self._finished = asyncio.Event()
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("192.0.2.1", 4711),
            "server": ("testserver", 80),
            **(extra or {}),
        }

    async def receive(self):
        self.received += 1
        if self._bodies:
            piece = self._bodies.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._bodies)}
        await self._finished.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    async def run(self):
        """Let the application answer; hangs never: 5 s."""
        try:
            async with asyncio.timeout(5):
                await self.app(self.scope, self.receive, self.send)
        finally:
            self._finished.set()
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])

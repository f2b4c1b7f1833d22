"""How the shield's tests drive it: one ASGI message at a time on a clock that jumps, or over real connections."""

import asyncio
import contextlib
import json
import selectors
import socket
import threading
import time

import uvicorn


class _Jumping(selectors.DefaultSelector):
    """Where a loop would sleep until its next timer, its clock is put forward instead."""

    now_s = 0.0

    def select(self, timeout=None):
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            self.now_s += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    timers = 0

    def __init__(self):
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self):
        return self._clock.now_s

    def call_at(self, when, callback, *arguments, context=None):
        self.timers += 1
        return super().call_at(when, callback, *arguments, context=context)


def jumping(coroutine):
    """Run it on a loop whose clock starts at 0 and passes over every wait at once: 30 s take no time.

    The loop counts its `timers`.
    """
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(coroutine)


def now_s():
    return asyncio.get_running_loop().time()


class Wire:
    """One HTTP request, message by message, before a server as strict as uvicorn.

    Args:
        body: Its parts; a number is a pause of so many seconds.

    Attributes:
        sent: What the app said, in order.
        at_s: When each of it was said.
        received: How often it asked.
        writable: Cleared while the client does not read: `send` waits.
    """

    def __init__(self, app, path="/", *, method="GET", headers=(), body=(b"",), root_path="", **scope):
        self.app = app
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"secret=1",
            "root_path": root_path,
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in dict(headers).items()],
            "client": ("192.0.2.7", 4711),
            "server": ("127.0.0.1", 80),
            "state": {},
            **scope,
        }
        self._parts = list(body)
        self._over = asyncio.Event()
        self.left = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.received = 0
        self.sent = []
        self.at_s = []

    async def run(self):
        await self.app(self.scope, self.receive, self.send)
        return self

    def start(self):
        """The same, in a task."""
        return asyncio.get_running_loop().create_task(self.run())

    def leave(self):
        self.left = True
        self._over.set()

    async def receive(self):
        self.received += 1
        if self._parts and not self._over.is_set():
            part = self._parts.pop(0)
            if not isinstance(part, bytes):  # the client pauses so long
                await asyncio.sleep(part)
                part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.writable.wait()
        if self.left:
            return
        wanted = "http.response.body" if self.sent else "http.response.start"
        if self.complete or message["type"] != wanted:
            raise RuntimeError(f"wanted {wanted}, got {message['type']} (complete: {self.complete})")
        self.sent.append(message)
        self.at_s.append(now_s())
        if self.complete:
            self._over.set()

    @property
    def complete(self):
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self):
        """By name; a name that comes twice is a mistake."""
        pairs = [(name.decode(), value.decode()) for name, value in self.sent[0]["headers"]]
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def problem(self):
        """The body of an answer of the shield's own, looked over."""
        assert self.complete
        body = json.loads(self.body)
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["content-length"] == str(len(self.body))
        assert self.headers["cache-control"] == "no-store"
        assert body["status"] == self.status
        assert body["request_id"] == self.headers["x-request-id"]
        return body


def ok(body=b"ok", **headers):
    """An app that answers 200 with a length."""
    pairs = [(b"content-length", b"%d" % len(body)), *((k.encode(), v.encode()) for k, v in headers.items())]

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    return app


START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b""}


def chunk(body=b"x"):
    return {"type": "http.response.body", "body": body, "more_body": True}


@contextlib.contextmanager
def served(app, **options):
    """uvicorn on a port of its own, in a thread; yields the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        config = uvicorn.Config(
            app, **{"log_config": None, "access_log": False, "timeout_graceful_shutdown": 1, **options}
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive(), "the server ended at once"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Line:
    """One keep-alive connection, read byte by byte as it comes. A second connection is never made."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._read = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._read.close()
        self.socket.close()

    def send(self, path, method="GET", body=b"", **headers):
        lines = [f"{method} {path} HTTP/1.1", "host: h"]
        if body:
            lines.append(f"content-length: {len(body)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def answer(self, method="GET"):
        """(status, headers, body). Raises ConnectionError where the server hangs up instead."""
        first = self._read.readline()
        if not first.endswith(b"\r\n"):
            raise ConnectionError(f"hung up after {first!r}")
        headers = {}
        while (line := self._read.readline()) != b"\r\n":
            if not line:
                raise ConnectionError("hung up in the header")
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = b""
        if method != "HEAD" and headers.get("transfer-encoding") == "chunked":
            while size := int(self._line() or b"", 16):
                body += self._exactly(size)
                self._line()
            self._line()
        elif method != "HEAD":
            body = self._exactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    def ask(self, path, method="GET", body=b"", **headers):
        self.send(path, method, body, **headers)
        return self.answer(method)

    def closed(self):
        """Whether the server closes; waits for it."""
        return self._read.read(1) == b""

    def _line(self):
        line = self._read.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("hung up within a body")
        return line[:-2]

    def _exactly(self, size):
        data = self._read.read(size)
        if len(data) < size:
            raise ConnectionError(f"hung up after {len(data)} of {size} bytes")
        return data


def events_of(records, event):
    """The fields of all our events of a name, with the request id and `exc_info` if there were any."""
    return [
        {**_request_of(record), **record.onequota[1], **({"exc_info": record.exc_info} if record.exc_info else {})}
        for record in records
        if getattr(record, "onequota", ("",))[0] == event
    ]


def _request_of(record):
    _, found, rest = record.getMessage().partition(" request_id=")
    return {"request_id": rest.split()[0]} if found else {}

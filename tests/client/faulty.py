"""A service that misbehaves: it takes its faults in order, and remembers what it was sent."""

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STANDING = {"name": "10/minute", "limit": 10, "window": 60, "remaining": 9, "reset_after": 60}
ALLOWED = {"allowed": True, "retry_after": None, "limits": [STANDING]}


@dataclass(frozen=True)
class Answered:
    """An answer as it is sent."""

    status: int = 200
    body: Any = field(default_factory=lambda: ALLOWED)
    kind: str = "application/json"
    retry_after: str | None = None


LOSE = "the connection is closed without an answer"
HANG = "nothing is answered"
TRICKLE = "the answer comes a byte at a time, without end"


def problem(status: int, retry_after: str | None = None, **more: Any) -> Answered:
    body = {"type": "about:blank", "title": "t", "status": status, "detail": "so it is", **more}
    return Answered(status, body, "application/problem+json", retry_after)


class Faulty:
    """What it does next is `faults`, then it answers ALLOWED; `heard`: method, path, headers, body of each request."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.faults: deque[Any] = deque()
        self.heard: list[tuple[str, str, dict[str, str], Any]] = []
        self.connections = 0
        self.ended = threading.Event()


@contextlib.contextmanager
def faulty() -> Iterator[Faulty]:
    """Serves on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            served.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.heard.append((self.command, self.path, headers, json.loads(body) if body else None))
            fault = served.faults.popleft() if served.faults else Answered()
            if isinstance(fault, Answered):
                return self._answer(fault)
            if fault == HANG:
                served.ended.wait(20)
            elif fault == TRICKLE:
                self._trickle()
            self.close_connection = True
            return None

        do_PUT = do_DELETE = do_GET = do_POST  # noqa: N815

        def _answer(self, fault: Answered) -> None:
            body = fault.body if isinstance(fault.body, bytes) else json.dumps(fault.body).encode()
            self.send_response(fault.status)
            self.send_header("content-type", fault.kind)
            self.send_header("content-length", str(len(body)))
            if fault.retry_after is not None:
                self.send_header("retry-after", fault.retry_after)
            self.end_headers()
            self.wfile.write(body)

        def _trickle(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not served.ended.is_set():
                    self.wfile.write(b" ")
                    time.sleep(0.02)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        served = Faulty(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            served.ended.set()
            server.shutdown()
            thread.join()


def closed_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

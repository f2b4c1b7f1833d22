"""A load generator: keep-alive connections that each send the next request when the last was answered.

A process of its own: `python -m bench.generator` reads a `Task` as JSON from standard input and writes a `Result`
as JSON to standard output. HTTP/1.1 with Content-Length only, which is what the servers here answer.
"""

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to send.

    Attributes:
        port: On 127.0.0.1.
        requests: How many in all; at least 1.
        connections: Kept alive throughout, or opened again when the server closes one.
        method, path: The same for all.
        body: JSON text; "" = none.
        bodies: Such texts, sent in turn, instead of `body`.
        headers: More of them.
        timeout_s: The whole run's; what is not answered by then is an error.
    """

    port: int
    requests: int
    connections: int
    method: str = "GET"
    path: str = "/"
    body: str = ""
    bodies: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 300

    @property
    def messages(self) -> list[bytes]:
        return [self._message(body) for body in self.bodies or [self.body]]

    def _message(self, body: str) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body.encode())}\r\n"
        return (head + "\r\n" + body).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came back.

    Attributes:
        answers: How many of each "status" or, where the body is JSON with `allowed`, "status true" / "status false".
        errors: Requests sent that got no answer; they are not sent again.
        latencies_us: Of all answers, ascending.
    """

    answers: dict[str, int]
    errors: int
    latencies_us: list[int]


def percentile(ascending: list[int], share: float) -> int:
    """The value below which `share` (0 to 1) of them lie; 0 of none."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] if ascending else 0


class _Load:
    """What the connections share: the requests still to send, and what came back."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.messages = itertools.cycle(task.messages)
        self.left = task.requests
        self.open = 0
        self.errors = 0
        self.answers: Counter[str] = Counter()
        self.latencies_us: list[int] = []
        self.done = asyncio.get_running_loop().create_future()
        self.opening: set[asyncio.Task[None]] = set()

    def connect(self) -> None:
        self.open += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self.opening.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self.opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.task.port)
        except OSError:
            self.errors += 1
            self.left -= 1
            self.closed()

    def closed(self) -> None:
        self.open -= 1
        if self.left > 0:
            self.connect()
        elif not self.open and not self.done.done():
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection, one request under way."""

    transport: asyncio.Transport

    def __init__(self, load: _Load) -> None:
        self.load = load
        self.buffer = b""
        self.sent_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._send()

    def _send(self) -> None:
        if self.load.left <= 0:
            self.transport.close()
            return
        self.load.left -= 1
        self.sent_ns = time.monotonic_ns()
        self.transport.write(next(self.load.messages))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or len(body) < (length := _length(head)):
            return
        self.load.latencies_us.append((time.monotonic_ns() - self.sent_ns) // 1000)
        self.load.answers[_verdict(head, body[:length])] += 1
        self.sent_ns, self.buffer = 0, body[length:]
        if b"\r\nconnection: close" in head.lower():
            self.transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sent_ns:
            self.load.errors += 1
        self.load.closed()


def _length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    return 0 if at < 0 else int(head[at + 17 :].partition(b"\r\n")[0])


def _verdict(head: bytes, body: bytes) -> str:
    status = head[9:12].decode()
    if b'"allowed"' not in body:
        return status
    return f"{status} {json.dumps(json.loads(body).get('allowed'))}"


async def generate(task: Task) -> Result:
    """Send everything; every request is answered or an error when this returns."""
    load = _Load(task)
    for _ in range(min(task.connections, task.requests)):
        load.connect()
    await asyncio.wait([load.done], timeout=task.timeout_s)
    answered = load.answers.total()
    return Result(answers=dict(load.answers), errors=task.requests - answered, latencies_us=sorted(load.latencies_us))


if __name__ == "__main__":
    json.dump(asdict(uvloop.run(generate(Task(**json.load(sys.stdin))))), sys.stdout)

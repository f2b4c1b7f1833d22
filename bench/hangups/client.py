"""The Node client: what it is told to do, what it saw, and a handle on it while it runs."""

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import PATIENCE_S, ended
from bench.redises import MissingError

SCRIPT = Path(__file__).parent / "client.mjs"


class InconclusiveError(Exception):
    """What was to be measured did not take place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Users that behave alike: each sends a request, reads the answer, thinks, sends the next.

    Attributes:
        name: Its results go by it.
        clients: How many at once; as many connections at most.
        wish: Method and path.
        every: (n, method and path): every nth request is that instead.
        requests: Of all of them together; 0 = until told to stop.
        body_bytes: Size of what is sent with a POST.
        think_ms: From, to; at random between answer and next request.
        spread_ms: Their first requests are spread over that time.
        own_connections: Each user has an agent of its own, with one connection; else they share one agent.
        keep_alive: Connections serve again and again; else one each, `Connection: close`.
        timeout_ms: After which a request without a whole answer is given up, an error.
    """

    name: str
    clients: int
    wish: str = "GET /item"
    every: tuple[tuple[int, str], ...] = ()
    requests: int = 0
    body_bytes: int = 0
    think_ms: tuple[int, int] = (0, 0)
    spread_ms: int = 0
    own_connections: bool = False
    keep_alive: bool = True
    timeout_ms: int = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without a whole answer.

    Attributes:
        kind: `socket hang up`, `ECONNRESET`, `ECONNREFUSED`, `EPIPE`, `timeout`, `aborted` (an answer that did not
            end), `cut` (a stream without its last event), or another code of Node's.
        worker: Process that last answered on this connection; None = none had yet.
        reused: It was sent on a connection that had served before.
        started_ms, at_ms: Sent, and known to have failed; Unix time.
    """

    kind: str
    route: str
    worker: int | None
    reused: bool
    started_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a crew saw.

    Attributes:
        requests: Sent and over; each has a status or is a failure.
        statuses: Whole answers, by "route status".
        failures: The rest, one by one.
        late: Errors of a connection after its request was answered whole, by kind: a user does not notice them.
        opened: Connections.
        reused: Requests on a connection that had served before.
        closing, retry_after: Answers with `Connection: close`, with `Retry-After`.
        answered_by: Answers, by worker.
        slowest_ms: Until the end of the slowest answer, by worker.
    """

    requests: int
    statuses: dict[str, int]
    failures: list[Failure] = field(repr=False)
    late: dict[str, int]
    opened: int
    reused: int
    closing: int
    retry_after: int
    answered_by: dict[int, int]
    slowest_ms: dict[int, int]

    @property
    def errors(self) -> int:
        return len(self.failures)

    @property
    def kinds(self) -> dict[str, int]:
        """Failures by kind."""
        return dict(Counter(failure.kind for failure in self.failures))

    def answers(self, status: int) -> int:
        return sum(number for name, number in self.statuses.items() if name.endswith(f" {status}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A crew so far; `open` answers have begun and not ended, `connections` are open."""

    requests: int = 0
    errors: int = 0
    open: int = 0
    connections: int = 0
    answered_by: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One instant: connections, and requests under way, by the worker that last answered on them (None: none yet)."""

    connections: dict[int | None, int]
    underway: dict[int | None, int]


class Client:
    """A running Node process; `client` makes one."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._progress: dict[str, Progress] = {}
        self._marks: list[dict[str, Mark]] = []
        self._result: dict[str, Tally] | None = None
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def progress(self, crew: str) -> Progress:
        with self._changed:
            return self._progress.get(crew, Progress())

    def until(self, holds: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Wait, while the load goes on, until something holds. Raises InconclusiveError."""
        deadline = time.monotonic() + within_s
        while not holds():
            if self.over or self._process.poll() is not None:
                raise InconclusiveError(f"{what}: the load has ended")
            if time.monotonic() > deadline:
                raise InconclusiveError(f"{what}: not within {within_s:.0f} s")
            time.sleep(0.01)

    def answered(self, crew: str, requests: int, *, within_s: float) -> None:
        """Wait until a crew has so many requests behind it."""
        self.until(
            lambda: self.over or self.progress(crew).requests >= requests,
            within_s=within_s,
            what=f"{requests} requests of {crew}",
        )

    def mark(self) -> dict[str, Mark]:
        """What is under way now, by crew."""
        known = len(self._marks)
        self._order("mark")
        self._wait(lambda: len(self._marks) > known, "a mark")
        return self._marks[-1]

    @property
    def over(self) -> bool:
        """Whether all crews are done."""
        return self._result is not None

    def stop(self, *, within_s: float = 90) -> dict[str, Tally]:
        """Send nothing new, wait for what is under way. What each crew saw, by its name."""
        if not self.over:
            self._order("stop")
        return self.result(within_s=within_s)

    def result(self, *, within_s: float) -> dict[str, Tally]:
        """Wait until all crews have sent what they were to send."""
        self._wait(lambda: self.over, "the client's result", within_s=within_s)
        assert self._result is not None
        return self._result

    def join(self) -> None:
        """Wait for the end of what it says; its process is ended by someone else."""
        self._reader.join(PATIENCE_S)

    def _order(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def _wait(self, holds: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
        with self._changed:
            self._changed.wait_for(lambda: holds() or not self._reader.is_alive(), timeout=within_s)
        if not holds():
            raise InconclusiveError(f"{what} did not come within {within_s:.0f} s")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                self._take(message)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _take(self, message: dict[str, dict[str, Any]]) -> None:
        for name, value in message.get("progress", {}).items():
            self._progress[name] = Progress(**{**value, "answered_by": _by_worker(value["answered_by"])})
        if "mark" in message:
            self._marks.append(
                {
                    name: Mark(**{key: _by_worker_or_none(counts) for key, counts in value.items()})
                    for name, value in message["mark"].items()
                }
            )
        if "result" in message:
            self._result = {name: tally(value) for name, value in message["result"].items()}


def tally(value: dict[str, Any]) -> Tally:
    """As Node reports it: the keys of its objects are text."""
    return Tally(
        **{
            **value,
            "failures": [Failure(**failure) for failure in value["failures"]],
            "answered_by": _by_worker(value["answered_by"]),
            "slowest_ms": _by_worker(value["slowest_ms"]),
        }
    )


def _by_worker(counts: dict[str, int]) -> dict[int, int]:
    return {int(name): number for name, number in counts.items()}


def _by_worker_or_none(counts: dict[str, int]) -> dict[int | None, int]:
    return {None if name == "unknown" else int(name): number for name, number in counts.items()}


@contextlib.contextmanager
def client(port: int, crews: Sequence[Crew]) -> Iterator[Client]:
    """Start it on a server at 127.0.0.1. Raises MissingError without node on PATH."""
    binary = shutil.which("node")
    if binary is None:
        raise MissingError("node is not installed; it must be on PATH")
    process = subprocess.Popen([binary, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with ended(process):
        assert process.stdin is not None
        process.stdin.write(json.dumps({"port": port, "crews": [asdict(crew) for crew in crews]}) + "\n")
        process.stdin.flush()
        running = Client(process)
        try:
            yield running
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.terminate()
            running.join()

"""The two servers under the same application: stock uvicorn, and `onequota run`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.processes import PATIENCE_S, ROOT
from bench.service import NotStartedError

APP = "bench.hangups.app"


class Kind(StrEnum):
    """Which server."""

    STOCK = "stock"
    OURS = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a server is to run, in the words of neither.

    Attributes:
        workers: Processes.
        app: Attribute of `bench.hangups.app`; `factory`: it is called first.
        keep_alive_s: None = as the server does by itself.
        max_requests: After which a worker is replaced; 0 = never.
        drain_s: How long a worker that ends may serve what is open; None: ours by its default, stock without end.
        request_timeout_s: Until the first byte; stock has no such thing.
        most_at_once: Requests in flight (ours) or connections (stock, which counts idle ones too); 0 = any.
        redis_url: For the limiter.
    """

    workers: int = 2
    app: str = "app"
    factory: bool = False
    keep_alive_s: int | None = 75
    max_requests: int = 0
    drain_s: int | None = None
    request_timeout_s: float | None = None
    most_at_once: int = 0
    redis_url: str | None = None


def command(kind: Kind, options: Options, port: int) -> list[str]:
    """What a user would type."""
    where = [f"{APP}:{options.app}", "--host", "127.0.0.1", "--port", str(port), "--workers", str(options.workers)]
    where += ["--factory"] if options.factory else []
    if kind is Kind.OURS:
        return [sys.executable, "-m", "service.cli", "run", *where, "--no-reload", "--json"]
    said = {
        "--timeout-keep-alive": options.keep_alive_s,
        "--limit-max-requests": options.max_requests or None,
        "--limit-max-requests-jitter": options.max_requests // 10 or None,
        "--timeout-graceful-shutdown": options.drain_s,
        "--limit-concurrency": options.most_at_once or None,
    }
    words = [word for name, value in said.items() if value is not None for word in (name, str(value))]
    return [sys.executable, "-m", "uvicorn", *where, "--backlog", "2048", "--no-access-log", *words]


def environment(kind: Kind, options: Options) -> dict[str, str]:
    """Of a server: nothing that happens to be set here changes what is measured."""
    foreign = {"REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY", "PYTHONWARNINGS"}
    said: dict[str, object] = {"REDIS_URL": options.redis_url}
    if kind is Kind.OURS:
        said |= {
            "ENVIRONMENT": "production",
            "ONEQUOTA_ACCESS_LOG": "false",
            "ONEQUOTA_LOG_FORMAT": "json",
            "ONEQUOTA_KEEP_ALIVE_S": options.keep_alive_s,
            "ONEQUOTA_MAX_REQUESTS": options.max_requests or None,
            "ONEQUOTA_DRAIN_S": options.drain_s,
            "ONEQUOTA_REQUEST_TIMEOUT_S": options.request_timeout_s,
            "ONEQUOTA_MAX_IN_FLIGHT": options.most_at_once or None,
        }
    elif options.request_timeout_s is not None:
        said["BENCH_PATIENCE_S"] = options.request_timeout_s
    kept = {k: v for k, v in os.environ.items() if k not in foreign and not k.startswith("ONEQUOTA_")}
    return kept | {name: str(value) for name, value in said.items() if value is not None}


class Server:
    """A running one; `pid` is the parent's.

    Attributes:
        events: How often ours told of what, once it has ended.
    """

    def __init__(self, kind: Kind, options: Options, log: Path) -> None:
        self.kind = kind
        self.options = options
        self.log = log
        self.port = _free_port()
        self.events: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command(self.kind, self.options, self.port),
                stdout=subprocess.PIPE if self.kind is Kind.OURS else log,
                stderr=log,
                cwd=ROOT,
                env=environment(self.kind, self.options),
                start_new_session=True,  # so that workers a killed parent leaves behind can be ended too
            )
        if self._process.stdout is not None:
            self._process.stdout.readline()  # its banner; what went wrong is in the log
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def hand_over(self) -> None:
        """Make way for a new version of the whole service, as well as this server can.

        Ours replaces itself behind the socket it has; stock can only be stopped and started again.
        """
        if self.kind is Kind.OURS:
            self.signal(signal.SIGUSR2)
            return
        self.signal(signal.SIGTERM)
        self.ended(within_s=PATIENCE_S)
        self._start()

    def ended(self, *, within_s: float) -> float | None:
        """Wait for its end: seconds it took, None = it goes on."""
        start = time.monotonic()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - start

    def close(self) -> None:
        """End it, if need be by force, and every process it started."""
        self._process.terminate()
        if self.ended(within_s=5) is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.events = _events(self.log.read_text(errors="replace"))

    def complaint(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace").strip()[-1000:] or "it said nothing"


def _events(log: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for line in log.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # what an app printed, or half a line
            found[json.loads(line)["event"]] += 1
    return dict(found)


@contextlib.contextmanager
def serving(kind: Kind, options: Options) -> Iterator[Server]:
    """Start one; its port answers when this returns. Raises NotStartedError."""
    with tempfile.TemporaryDirectory(prefix="oq-bench-") as folder:
        server = Server(kind, options, Path(folder) / "log")
        try:
            _await_port(server)
            yield server
        finally:
            server.close()


def _await_port(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            return
        except OSError:
            if not server.running or time.monotonic() > deadline:
                raise NotStartedError(f"{server.kind} did not start: {server.complaint()}") from None
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def threads(pid: int) -> int:
    """Threads of a process; 0 if it is gone."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0

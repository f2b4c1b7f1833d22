"""What the scenarios have in common: a server, a watch and a Node client at once, and requests of one's own."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from bench.hangups.client import Client, Crew, Failure, InconclusiveError, client
from bench.hangups.servers import Kind, Options, Server, alive, serving
from bench.hangups.watch import Watch, watched

FULL = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it.

    Attributes:
        requests: A scenario and server, where it goes by requests.
        workers: None = as the scenario promises.
        patience: Promised times are multiplied by it: 1 on a machine of one's own, more on one that is shared.
    """

    requests: int = FULL
    workers: int | None = None
    patience: float = 1.0

    def share(self, number: int, *, least: int) -> int:
        """So many at full size, and fewer in proportion, but not fewer than `least`."""
        return max(least, min(number, round(number * self.requests / FULL)))

    @property
    def load(self) -> Crew:
        """Users beside whom something happens. They think, so that the CPUs have air for workers that start."""
        think_ms = (0, 30) if self.requests >= FULL // 4 else (0, 120)
        return Crew(name="load", clients=32, every=((5, "GET /work"),), think_ms=think_ms)

    @property
    def cap_s(self) -> float:
        """How long to wait for the load to get that far, at worst."""
        return 60 + self.requests / 50


@dataclass(frozen=True, slots=True)
class Stage:
    """A server under load."""

    server: Server
    watch: Watch
    client: Client

    @property
    def workers(self) -> int:
        return self.server.options.workers

    def gone(self, pids: set[int], *, within_s: float) -> float | None:
        """Wait for the end of processes: seconds until the last was gone, None = not all are."""
        start = time.monotonic()
        while any(alive(pid) for pid in pids):
            if time.monotonic() - start > within_s:
                return None
            time.sleep(0.01)
        return time.monotonic() - start

    def turn(self, event: Callable[[], None], workers: int, *, within_s: float) -> float | None:
        """Let something happen; seconds until so many new workers have answered, None = they never came.

        Raises:
            InconclusiveError: No request came to its end meanwhile: this was no load.
        """
        known, before = set(self.watch.first), self.client.progress("load").requests
        start = time.monotonic()
        event()
        found = self.watch.until(workers, besides=known, within_s=within_s)
        if found is not None:
            self.client.until(
                lambda: self.client.progress("load").requests > before, within_s=30, what="a request during the event"
            )
        return None if found is None else found - start


@contextlib.contextmanager
def stage(kind: Kind, options: Options, *crews: Crew) -> Iterator[Stage]:
    """All workers serve, and the load has begun, when this returns."""
    with (
        serving(kind, options) as server,
        watched(server, options) as watch,
        client(server.port, crews) as node,
    ):
        yield Stage(server, watch, node)


class Held:
    """A request of ours, held by a worker that is known beforehand; a thread waits for its answer.

    Attributes:
        worker: The process id.
        fate: Its status, or the name of the exception it ended with; None = it still waits.
    """

    def __init__(self, port: int, path: str) -> None:
        self.fate: str | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._connection.request("GET", "/pid")
        answer = self._connection.getresponse()
        self.worker = int(answer.read() or 0) if answer.status == 200 else 0
        self._connection.request("GET", path)
        self._thread = threading.Thread(target=self._await, daemon=True)
        self._thread.start()

    def _await(self) -> None:
        try:
            self.fate = str(self._connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            self.fate = type(error).__name__

    def settled(self, *, within_s: float) -> str:
        """Wait for its fate, "unanswered" if there is none."""
        self._thread.join(within_s)
        return self.fate or "unanswered"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)  # wakes the thread; closing alone would not
        self._thread.join()
        self._connection.close()


def now_ms() -> int:
    """Unix time, as the client tells it."""
    return int(time.time() * 1000)


def sorted_out(failures: list[Failure], worker: int, until_ms: int) -> tuple[list[Failure], list[Failure]]:
    """What was lost with a worker, and the rest.

    A failure on a connection on which nobody had answered yet may be that worker's if it was sent before `until_ms`,
    when it ended.
    """
    lost: list[Failure] = []
    others: list[Failure] = []
    for failure in failures:
        unknown = failure.worker is None and failure.kind != "ECONNREFUSED" and failure.started_ms <= until_ms
        (lost if failure.worker == worker or unknown else others).append(failure)
    return lost, others


__all__ = ["FULL", "Held", "InconclusiveError", "Size", "Stage", "now_ms", "sorted_out", "stage"]

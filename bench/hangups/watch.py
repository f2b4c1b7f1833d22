"""Who serves: a stranger who asks all the while, over a new connection each time."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator

from bench.hangups.client import InconclusiveError
from bench.hangups.servers import Options, Server, alive

PAUSE_S = 0.02
TIMEOUT_S = 2.0
"""After which a new connection is given up: a worker whose loop is blocked may have accepted it."""


class Watch:
    """What the stranger saw; times are those of `time.monotonic`.

    Attributes:
        first: When a worker first answered, by process id.
        refused: Connections that were not accepted, or closed without an answer.
        silence_s: The longest time between two answers.
    """

    def __init__(self, port: int) -> None:
        self.first: dict[int, float] = {}
        self.refused = 0
        self.silence_s = 0.0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def alive(self) -> set[int]:
        """Workers that have answered and still run."""
        return {pid for pid in list(self.first) if alive(pid)}

    def strangers(self, known: set[int]) -> dict[int, float]:
        """Workers that answered and are not among `known`, with the time they did."""
        return {pid: at for pid, at in list(self.first.items()) if pid not in known}

    def until(self, workers: int, *, besides: set[int], within_s: float) -> float | None:
        """Wait until so many others than `besides` have answered: the time of the last, or None if it never came."""
        deadline = time.monotonic() + within_s
        while len(found := self.strangers(besides)) < workers:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)
        return sorted(found.values())[workers - 1]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        heard = None
        while not self._stop.wait(PAUSE_S):
            pid = self._ask()
            if pid is None:
                continue
            now = time.monotonic()
            self.silence_s = max(self.silence_s, now - (heard or now))
            heard = now
            self.first.setdefault(pid, now)

    def _ask(self) -> int | None:
        try:
            return asked(self._port)
        except TimeoutError:
            return None  # the silence is counted
        except (OSError, http.client.HTTPException, ValueError):
            self.refused += 1
            return None


def asked(port: int) -> int:
    """Which worker answers a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/pid", headers={"connection": "close"})
        return int(connection.getresponse().read())
    finally:
        connection.close()


@contextlib.contextmanager
def watched(server: Server, options: Options) -> Iterator[Watch]:
    """Watch a server of which every worker serves when this returns."""
    watch = Watch(server.port)
    try:
        if watch.until(options.workers, besides=set(), within_s=60) is None:
            raise InconclusiveError(f"only {len(watch.first)} of {options.workers} workers serve")
        watch.refused = 0
        watch.silence_s = 0.0
        yield watch
    finally:
        watch.close()

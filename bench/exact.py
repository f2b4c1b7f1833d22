"""Whether exactly the limit is admitted: real worker processes, a real Redis, many connections, one key.

More requests than the limit are sent over HTTP. The twin of the algorithm is asked whether any unit could have come
back between the start and the end of the run, by Redis' clock: if none could, `limit` are to be admitted, not one
more, not one less. So that this is sharp for gcra too, whose 5000/hour gives a unit back every 0.72 s, its limit is
5000/year (one every 1 h 44 min), with a burst of as many.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import redis

from bench.generator import Result, Task
from bench.load import bundled
from bench.redises import RedisServer
from bench.service import Service, service
from service.limits import Limit
from service.limits.algorithms import ALGORITHMS, TWINS

GENERATORS = 2
BUSY_NS = 5_000_000
"""A process that used less CPU than that (5 ms) took no part."""


class InconclusiveError(Exception):
    """The run took so long that units came back: how many should pass is not known exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What became of the requests of one algorithm.

    Attributes:
        admitted, refused: By the answers' `allowed`.
        errors: Requests with another answer, or none.
        expected: How many must be admitted.
        busy_workers: Worker processes that answered a share of them.
    """

    algorithm: str
    limit: str
    admitted: int
    refused: int
    errors: int
    expected: int
    busy_workers: int

    @property
    def exact(self) -> bool:
        return self.admitted == self.expected and self.errors == 0

    def text(self) -> str:
        """A line for people."""
        return (
            f"{self.algorithm:23} {self.limit:12} admitted {self.admitted:6}  refused {self.refused:6}  "
            f"errors {self.errors:3}  by {self.busy_workers} workers  {'exact' if self.exact else 'NOT EXACT'}"
        )

    def data(self) -> dict[str, object]:
        """The same for programs."""
        return {**asdict(self), "exact": self.exact}


def exact(
    *, requests: int, limit: int, workers: int, algorithms: Sequence[str] = tuple(ALGORITHMS), connections: int = 64
) -> list[Count]:
    """Send `requests` for each algorithm through a service of `workers` processes.

    Raises:
        ValueError: Not more requests than the limit: nothing would be refused.
        InconclusiveError: Units came back during the run.
        MissingError: No redis-server.
        NotStartedError: The service did not start.
    """
    if requests <= limit:
        raise ValueError(f"{requests} requests against a limit of {limit}: send more than the limit")
    with _deployment(workers) as (store, server):
        return [count(store, server, name, requests, limit, connections) for name in algorithms]


@contextlib.contextmanager
def _deployment(workers: int) -> Iterator[tuple[RedisServer, Service]]:
    with RedisServer() as store, service(store, workers=workers) as server:
        yield store, server


def count(
    store: RedisServer, server: Service, algorithm: str, requests: int, limit: int, connections: int = 64
) -> Count:
    """Send so many for one algorithm. Raises InconclusiveError."""
    text = f"{limit}/{'year' if algorithm == 'gcra' else 'hour'}"
    body = json.dumps({"key": f"bench-{algorithm}", "limits": text, "algorithm": algorithm})
    with store.client() as client:
        before, start_us = server.cpu_ns(), _now_us(client)
        answers = _send(server.port, body, requests, connections)
        end_us, after = _now_us(client), server.cpu_ns()
    admitted, refused = answers.get("200 true", 0), answers.get("200 false", 0)
    return Count(
        algorithm=algorithm,
        limit=text,
        admitted=admitted,
        refused=refused,
        errors=requests - admitted - refused,
        expected=_expected(Limit.parse(text, algorithm=algorithm)[0], start_us, end_us),
        busy_workers=sum(after[pid] - before.get(pid, 0) > BUSY_NS for pid in after),
    )


def _send(port: int, body: str, requests: int, connections: int) -> dict[str, int]:
    """Answers by status and verdict, of all generators together."""
    shares = [requests // GENERATORS + (number < requests % GENERATORS) for number in range(GENERATORS)]
    tasks = [
        Task(
            port=port,
            method="POST",
            path="/v1/check",
            body=body,
            requests=share,
            connections=max(1, connections // GENERATORS),
        )
        for share in shares
    ]
    with ThreadPoolExecutor(GENERATORS) as threads:
        results: list[Result] = list(threads.map(bundled, tasks))
    found: dict[str, int] = {}
    for result in results:
        for answer, number in result.answers.items():
            found[answer] = found.get(answer, 0) + number
    return found


def _now_us(client: "redis.Redis") -> int:
    seconds, us = client.time()
    return int(seconds) * 1_000_000 + int(us)


def _expected(limit: Limit, start_us: int, end_us: int) -> int:
    """How many requests of cost 1 must pass. The twin, used up at the start, must still refuse at the end.

    What is spent later comes back later, so the real counter, used up after the start, refuses then too.
    """
    make = TWINS[limit.definition.code]
    spent = make(limit.definition, None, start_us)
    spent.charge(limit.capacity)
    if make(limit.definition, spent.state(), end_us).wait(1) == 0:
        raise InconclusiveError(f"{limit.name}, {limit.algorithm}: units came back within the run; use a larger limit")
    return limit.capacity

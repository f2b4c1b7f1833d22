"""What a limiter costs a request: CPU of the worker and of Redis beyond that of the same route without one.

Three servers run side by side and are loaded in turn, in rounds whose order rotates. CPU time comes from the kernel's
scheduler, not from a clock on the wall, so that a shared machine disturbs it little; what disturbs a whole round
cancels in the round's difference, and the median drops what disturbs less than half of the rounds. A process that is
started again costs up to a quarter more or less, for as long as it lives (where its memory happens to lie): the servers
are new every few rounds.

Where Redis runs matters: on another CPU than the worker, as in production, each of stock's blocking calls puts the
worker's CPU to sleep and wakes it again, which costs half as much again as on the same one. Left to the kernel, a run
is a mixture of both; so the worker has a CPU of its own, unless asked otherwise (`--cpus`).
"""

import contextlib
import statistics
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from bench.apps import APPS
from bench.generator import Task
from bench.load import Seen, bundled, has_wrk, seen, wrk
from bench.processes import Cpus, Worker, cpu_ns, placed, worker
from bench.redises import RedisServer

PATH = "/item"
WARM_UP = 1_500
"""Requests before anything is counted: code paths specialised, scripts loaded, connections open."""
ROUNDS_EACH = 3
"""How many rounds one set of servers lives."""
TARGET = 12
"""Ours shall cost at most one part in so many of stock's tax."""


class InexactError(Exception):
    """Requests were served that were not charged, or the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One server in one round.

    Attributes:
        worker_us, redis_us: CPU a request, microseconds.
        p50_us, p99_us: Latency, microseconds, at full load: it tells little but that nothing stalls.
        seen: Answers 200 the generator counted.
        served: Times the route's function ran.
        charged: Units the counters in Redis rose by; 0 without a limiter.
    """

    worker_us: float
    redis_us: float
    p50_us: int
    p99_us: int
    seen: int
    served: int
    charged: int

    @property
    def cpu_us(self) -> float:
        return self.worker_us + self.redis_us


Round = dict[str, Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured; medians over the rounds."""

    generator: str
    connections: int
    cpus: Cpus
    rounds: list[Round] = field(repr=False)

    def median(self, name: str, figure: str) -> float:
        return float(statistics.median(getattr(one[name], figure) for one in self.rounds))

    def tax_us(self, name: str) -> float:
        """CPU a request, worker and Redis, above no limiter in the same round."""
        return statistics.median(one[name].cpu_us - one["none"].cpu_us for one in self.rounds)

    def total(self, name: str, figure: str) -> int:
        return sum(getattr(one[name], figure) for one in self.rounds)

    @property
    def ratio(self) -> float:
        """How many times cheaper than stock: stock's tax over ours."""
        return self.tax_us("stock") / self.tax_us("ours")

    def text(self) -> str:
        """A table for people, times in microseconds."""
        rows = [f"{'':8}{'worker':>9}{'redis':>9}{'tax':>9}{'p50':>9}{'p99':>9}{'200s':>9}{'served':>9}{'charged':>9}"]
        for name in APPS:
            figures = [self.median(name, figure) for figure in ("worker_us", "redis_us")]
            figures += [self.tax_us(name), self.median(name, "p50_us"), self.median(name, "p99_us")]
            counts = [self.total(name, figure) for figure in ("seen", "served", "charged")]
            rows.append(f"{name:8}" + "".join(f"{x:9.0f}" for x in figures) + "".join(f"{x:9}" for x in counts))
        rows.append(
            f"µs of CPU a request; tax = worker + redis above none; {len(self.rounds)} rounds, {self.generator}, "
            f"{self.connections} connections, CPUs of worker and Redis: {self.cpus}"
        )
        rows.append(f"ours / stock = 1/{self.ratio:.1f}   target: at most 1/{TARGET}")
        return "\n".join(rows)

    def data(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "generator": self.generator,
            "connections": self.connections,
            "cpus": self.cpus,
            "tax_us": {name: round(self.tax_us(name), 1) for name in APPS},
            "ratio": round(self.ratio, 2),
            "target": TARGET,
            "rounds": [{name: asdict(sample) for name, sample in one.items()} for one in self.rounds],
        }


def measure(
    *, rounds: int, requests: int, connections: int, with_wrk: bool | None = None, cpus: Cpus = Cpus.APART
) -> Report:
    """Run it all.

    Args:
        rounds: Interleaved rounds.
        requests: A server and round; with wrk about as many.
        connections: Keep-alive connections of the generator.
        with_wrk: None = if it is installed.
        cpus: Whether the worker shares a CPU with Redis.

    Raises:
        InexactError: Served is not charged, or a request failed: then the figures mean nothing.
        MissingError: No redis-server.
    """
    use_wrk = has_wrk() if with_wrk is None else with_wrk
    measured: list[Round] = []
    while len(measured) < rounds:
        with (
            _servers() as (redis, workers),
            placed(cpus, workers=[server.pid for server in workers], others=[redis.pid]),
        ):
            bench = _Bench(redis, requests, connections, use_wrk)
            for server in workers:
                bench.warm_up(server)
            names = [server.name for server in workers]
            for number in range(min(ROUNDS_EACH, rounds - len(measured))):
                turn = number % len(workers)
                found = {server.name: bench.sample(server) for server in workers[turn:] + workers[:turn]}
                measured.append({name: found[name] for name in names})
    generator = "wrk" if use_wrk else "bundled generator"
    return Report(generator=generator, connections=connections, cpus=cpus, rounds=measured)


@contextlib.contextmanager
def _servers() -> Iterator[tuple[RedisServer, list[Worker]]]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        yield redis, [stack.enter_context(worker(name, redis.socket)) for name in APPS]


class _Bench:
    """What stays the same from sample to sample."""

    def __init__(self, redis: RedisServer, requests: int, connections: int, use_wrk: bool) -> None:
        self.redis = redis
        self.requests = requests
        self.connections = connections
        self.use_wrk = use_wrk
        self.seconds: dict[str, int] = {}

    def warm_up(self, server: Worker) -> None:
        """Also finds out for how long wrk has to run."""
        self._bundled(server, WARM_UP)
        start = time.monotonic()
        self._bundled(server, WARM_UP)
        rate = WARM_UP / (time.monotonic() - start)
        self.seconds[server.name] = max(1, round(self.requests / rate))

    def _bundled(self, server: Worker, requests: int) -> Seen:
        return seen(bundled(Task(port=server.port, path=PATH, requests=requests, connections=self.connections)))

    def sample(self, server: Worker) -> Sample:
        """Load one server and measure it."""
        served, charged = _served(server), self._charged(server)
        worker_ns, redis_ns = cpu_ns(server.pid), cpu_ns(self.redis.pid)
        if self.use_wrk:
            found = wrk(server.port, PATH, seconds=self.seconds[server.name], connections=self.connections)
        else:
            found = self._bundled(server, self.requests)
        time.sleep(0.1)  # what wrk left under way comes to its end
        worker_ns, redis_ns = cpu_ns(server.pid) - worker_ns, cpu_ns(self.redis.pid) - redis_ns
        served, charged = _served(server) - served, self._charged(server) - charged
        self._check(server.name, found, served, charged)
        return Sample(
            worker_us=worker_ns / served / 1000,
            redis_us=redis_ns / served / 1000,
            p50_us=found.p50_us,
            p99_us=found.p99_us,
            seen=found.ok,
            served=served,
            charged=charged,
        )

    def _check(self, name: str, found: Seen, served: int, charged: int) -> None:
        if found.bad:
            raise InexactError(f"{name}: {found.bad} requests failed")
        if name != "none" and charged != served:
            raise InexactError(f"{name}: {served} requests served, {charged} charged")
        under_way = self.connections if self.use_wrk else 0
        if not found.ok <= served <= found.ok + under_way:
            raise InexactError(f"{name}: {found.ok} answers seen, {served} requests served")

    def _charged(self, server: Worker) -> int:
        """The units counted in Redis so far."""
        if server.name == "none":
            return 0
        start = 0 if server.name == "stock" else 16  # ours: 16 digits of window start come before the count
        with self.redis.client() as client:
            keys = client.keys("LIMITS*" if server.name == "stock" else "oq:*")
            return sum(int((client.get(key) or b"")[start:] or 0) for key in keys)


def _served(server: Worker) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/count", timeout=10) as response:
        return int(response.read())

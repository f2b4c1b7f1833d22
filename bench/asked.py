"""What an answer of the service costs, in CPU: one check, one by domain, a thousand in one body; beside them, a bare
ASGI handler under stock uvicorn that is sent the same requests.

One worker, behind the shield, asked with an API key by 10,000 callers in turn. The loads take turns within a round, and
CPU time comes from the kernel's scheduler, worker and Redis together: what disturbs a whole round cancels in the ratio
of that round, and the median drops what disturbs less than half of the rounds.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.generator import Task
from bench.load import Seen, bundled, has_wrk, seen, wrk_script
from bench.processes import Cpus, cpu_ns, placed, worker
from bench.redises import RedisServer
from bench.service import PATIENT, service
from bench.tax import InexactError

PATH = "/v1/check"
CALLERS = 10_000
AT_ONCE = 1_000
WARM_UP = 1_000
LEAST_OF_BARE = 0.35
"""One check: at least so many requests a CPU-second, of those a bare handler answers."""
LEAST_OF_ONE = 8
"""A thousand at once: at least so many times the decisions a CPU-second of one at a time."""

SECRET = "0123456789abcdef0123456789abcdef"
LIMIT = "1000000000/hour"
CATALOG = f"domain: bench\ndescriptors:\n  - key: user\n    limits: {LIMIT}\n"
INLINE = '{"key":"user-%d","limits":"' + LIMIT + '"}'
DOMAIN = '{"domain":"bench","descriptors":[[{"key":"user","value":"user-%d"}]]}'
SCRIPT = Path(__file__).with_name("asked.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One load in one round.

    Attributes:
        worker_us, redis_us: CPU a decision (of the bare handler, a request), microseconds.
        decided: How many.
    """

    worker_us: float
    redis_us: float
    decided: int

    @property
    def cpu_us(self) -> float:
        return self.worker_us + self.redis_us


LOADS = {"bare": "bare ASGI handler", "one": "one check", "domain": "one by domain", "many": f"{AT_ONCE} at once"}
Round = dict[str, Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured."""

    generator: str
    connections: int
    cpus: Cpus
    rounds: list[Round] = field(repr=False)

    def median(self, load: str, figure: str) -> float:
        return float(statistics.median(getattr(one[load], figure) for one in self.rounds))

    def ratio(self, dear: str, cheap: str) -> float:
        """How many times the work of `cheap` one of `dear` is; median over the rounds."""
        return statistics.median(one[dear].cpu_us / one[cheap].cpu_us for one in self.rounds)

    @property
    def of_bare(self) -> float:
        """Requests a CPU-second, as a part of a bare handler's."""
        return 1 / self.ratio("one", "bare")

    @property
    def of_one(self) -> float:
        """Decisions a CPU-second of a thousand at once, in those of one at a time."""
        return self.ratio("one", "many")

    @property
    def holds(self) -> bool:
        """Whether both are as promised."""
        return self.of_bare >= LEAST_OF_BARE and self.of_one >= LEAST_OF_ONE

    def text(self) -> str:
        """A table for people."""
        rows = [f"{'':18}{'worker µs':>11}{'redis µs':>10}{'a decision':>12}{'a second':>10}"]
        for load, name in LOADS.items():
            worker_us, redis_us, cpu_us = (self.median(load, at) for at in ("worker_us", "redis_us", "cpu_us"))
            rows.append(f"{name:18}{worker_us:11.1f}{redis_us:10.1f}{cpu_us:12.1f}{1e6 / cpu_us:10.0f}")
        rows.append(
            f"CPU a decision, and decisions a CPU-second; {len(self.rounds)} rounds, {self.generator}, "
            f"{self.connections} connections, CPUs of worker and Redis: {self.cpus}"
        )
        rows.append(f"one check: {self.of_bare:.2f} of a bare handler's requests   promised: {LEAST_OF_BARE}")
        rows.append(f"{AT_ONCE} at once: {self.of_one:.1f} times the decisions of one check   promised: {LEAST_OF_ONE}")
        return "\n".join(rows)

    def data(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "generator": self.generator,
            "connections": self.connections,
            "cpus": self.cpus,
            "cpu_us": {load: round(self.median(load, "cpu_us"), 2) for load in LOADS},
            "of_bare": round(self.of_bare, 3),
            "of_one": round(self.of_one, 2),
            "promised": {"of_bare": LEAST_OF_BARE, "of_one": LEAST_OF_ONE},
            "rounds": [{load: asdict(sample) for load, sample in one.items()} for one in self.rounds],
        }


def measure(
    *,
    rounds: int,
    requests: int,
    bodies: int,
    connections: int,
    with_wrk: bool | None = None,
    cpus: Cpus = Cpus.APART,
) -> Report:
    """Run it all.

    Args:
        rounds: Interleaved rounds.
        requests: Single checks a load and round; with wrk about as many.
        bodies: Bodies of a thousand checks a round.
        connections: Keep-alive connections of the generator.
        with_wrk: None = if it is installed. It sends the single checks; the bodies are sent by the bundled one.
        cpus: Whether the worker shares a CPU with Redis.

    Raises:
        InexactError: What was answered is not what was charged: then the figures mean nothing.
        MissingError: No redis-server.
        NotStartedError: The service did not start.
    """
    use_wrk = has_wrk() if with_wrk is None else with_wrk
    with _servers() as (redis, servers), placed(cpus, workers=[pid for pid, _ in servers.values()], others=[redis.pid]):
        bench = _Bench(redis, servers, requests, bodies, connections, use_wrk)
        bench.warm_up()
        measured = []
        for number in range(rounds):
            turn = number % len(LOADS)
            found = {load: bench.sample(load) for load in [*LOADS][turn:] + [*LOADS][:turn]}
            measured.append({load: found[load] for load in LOADS})
    generator = "wrk" if use_wrk else "bundled generator"
    return Report(generator=generator, connections=connections, cpus=cpus, rounds=measured)


@contextlib.contextmanager
def _servers() -> Iterator[tuple[RedisServer, dict[str, tuple[int, int]]]]:
    """Redis, and (pid of the worker, port) of each of both servers."""
    keys = {"ONEQUOTA_API_KEYS": f"bench:{SECRET}:*"}
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        limits = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oq-bench-")), "limits.yaml")
        limits.write_text(CATALOG)
        bare = stack.enter_context(worker("bare", redis.socket))
        options = ["--limits", str(limits)]
        ours = stack.enter_context(service(redis, workers=1, environment={**PATIENT, **keys}, options=options))
        [pid] = ours.workers()
        yield redis, {"bare": (bare.pid, bare.port), "ours": (pid, ours.port)}


class _Bench:
    """What stays the same from sample to sample."""

    def __init__(
        self,
        redis: RedisServer,
        servers: dict[str, tuple[int, int]],
        requests: int,
        bodies: int,
        connections: int,
        use_wrk: bool,
    ) -> None:
        self.redis = redis
        self.servers = servers
        self.requests = requests
        self.bodies = bodies
        self.connections = connections
        self.use_wrk = use_wrk
        self.seconds: dict[str, int] = {}
        checks = [INLINE % number for number in range(CALLERS)]
        self.many = [f'{{"checks":[{",".join(checks[at : at + AT_ONCE])}]}}' for at in range(0, CALLERS, AT_ONCE)]

    def warm_up(self) -> None:
        """Code paths specialised, counters there, scripts loaded; and for how long wrk has to run."""
        for load in LOADS:
            self._bundled(load, WARM_UP if load != "many" else len(self.many))
            start = time.monotonic()
            self._bundled(load, WARM_UP if load != "many" else len(self.many))
            self.seconds[load] = max(1, round(self.requests * (time.monotonic() - start) / WARM_UP))

    def sample(self, load: str) -> Sample:
        """One load, measured."""
        pid, port = self.servers["bare" if load == "bare" else "ours"]
        charged, worker_ns, redis_ns = self._charged(), cpu_ns(pid), cpu_ns(self.redis.pid)
        if load == "many":
            found = self._bundled(load, self.bodies)
        elif self.use_wrk:
            arguments = [SECRET, _template(load), str(CALLERS)]
            found = wrk_script(port, PATH, SCRIPT, arguments, seconds=self.seconds[load], connections=self.connections)
        else:
            found = self._bundled(load, self.requests)
        time.sleep(0.1)  # what wrk left under way comes to its end
        worker_ns, redis_ns = cpu_ns(pid) - worker_ns, cpu_ns(self.redis.pid) - redis_ns
        decided = self._decided(load, found, self._charged() - charged)
        return Sample(worker_us=worker_ns / decided / 1000, redis_us=redis_ns / decided / 1000, decided=decided)

    def _bundled(self, load: str, requests: int) -> Seen:
        _, port = self.servers["bare" if load == "bare" else "ours"]
        bodies = self.many if load == "many" else [_template(load) % number for number in range(CALLERS)]
        headers = {"authorization": f"Bearer {SECRET}"}
        # A body of a thousand takes a worker for a while: few connections keep it busy.
        connections = min(4, self.connections) if load == "many" else self.connections
        task = Task(
            port=port, method="POST", path=PATH, bodies=bodies, headers=headers, requests=requests,
            connections=connections,
        )  # fmt: skip
        result = bundled(task)
        passed = sum(result.answers.get(answer, 0) for answer in ("200", "200 true", "200 null"))
        return replace(seen(result), ok=passed, bad=requests - passed)

    def _decided(self, load: str, found: Seen, charged: int) -> int:
        """How many decisions it was. Raises InexactError if they were not all answered and charged."""
        if found.bad:
            raise InexactError(f"{load}: {found.bad} requests failed")
        if load == "bare":
            return found.ok
        answered = found.ok * (AT_ONCE if load == "many" else 1)
        under_way = self.connections if self.use_wrk and load != "many" else 0
        if not answered <= charged <= answered + under_way:
            raise InexactError(f"{load}: {answered} decisions answered, {charged} units charged")
        return charged

    def _charged(self) -> int:
        """The units counted in Redis so far, but for the route's own guard."""
        with self.redis.client() as client:
            keys = [key for key in client.keys("oq:*") if b":r." not in key]
            return sum(int((value or b"")[16:] or 0) for value in (client.mget(keys) if keys else ()))


def _template(load: str) -> str:
    return DOMAIN if load == "domain" else INLINE

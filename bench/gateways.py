"""Whether all gateways count together: gRPC, `/json`, `/v1/authorize` and `/v1/check` at once, one counter.

Every fourth request comes another way, all for the client 127.0.0.1. Together exactly the limit is to be admitted.
"""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.exact import BUSY_NS
from bench.generator import Task, generate
from bench.redises import RedisServer
from bench.service import Service, service

CONNECTIONS = 8
"""Of each way."""

_ENTRY = {"key": "remote_address", "value": "127.0.0.1"}
_LIMITS = "domain: mixed\ndescriptors:\n  - {key: remote_address, limits: %d/hour}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What became of the requests that came one way."""

    admitted: int
    refused: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """What became of all.

    Attributes:
        limit: How many must be admitted.
        ways: By name.
        busy_workers: Worker processes that answered a share.
    """

    limit: int
    ways: dict[str, Way]
    busy_workers: int

    @property
    def admitted(self) -> int:
        return sum(way.admitted for way in self.ways.values())

    @property
    def exact(self) -> bool:
        return self.admitted == self.limit and not any(way.errors for way in self.ways.values())

    def text(self) -> str:
        """Lines for people."""
        lines = [
            f"{name:14} admitted {way.admitted:6}  refused {way.refused:6}  errors {way.errors:3}"
            for name, way in self.ways.items()
        ]
        said = "exact" if self.exact else "NOT EXACT"
        return "\n".join([*lines, f"together {self.admitted} of {self.limit}, by {self.busy_workers} workers  {said}"])

    def data(self) -> dict[str, object]:
        """The same for programs."""
        ways = {
            name: {"admitted": way.admitted, "refused": way.refused, "errors": way.errors}
            for name, way in self.ways.items()
        }
        return {"limit": self.limit, "ways": ways, "busy_workers": self.busy_workers, "exact": self.exact}


def mixed(*, requests: int, limit: int, workers: int) -> Mixed:
    """Send `requests` in all, through a service of `workers` processes.

    Raises:
        ValueError: Not more requests than the limit: nothing would be refused.
        MissingError: No redis-server.
        NotStartedError: The service did not start.
    """
    if requests // 4 * 4 <= limit:
        raise ValueError(f"{requests} requests against a limit of {limit}: send more than the limit")
    with _deployment(limit, workers) as server:
        before = server.cpu_ns()
        ways = uvloop.run(_send(server, requests // 4))
        after = server.cpu_ns()
    busy = sum(after[pid] - before.get(pid, 0) > BUSY_NS for pid in after)
    return Mixed(limit=limit, ways=ways, busy_workers=busy)


@contextmanager
def _deployment(limit: int, workers: int) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="oq-bench-") as folder, RedisServer() as store:
        file = Path(folder) / "limits.yaml"
        file.write_text(_LIMITS % limit)
        options = ["--limits", str(file), "--grpc-port", "0"]
        with service(store, workers=workers, options=options) as server:
            yield server


async def _send(server: Service, each: int) -> dict[str, Way]:
    rls = json.dumps({"domain": "mixed", "descriptors": [{"entries": [_ENTRY]}]})
    check = json.dumps({"domain": "mixed", "descriptors": [[_ENTRY]]})
    grpc, *others = await asyncio.gather(
        _grpc(server, each),
        _http(server, each, "/json", rls, "200", "429"),
        _http(server, each, "/v1/authorize?domain=mixed", "", "200", "429"),
        _http(server, each, "/v1/check", check, "200 true", "200 false"),
    )
    return dict(zip(("gRPC", "/json", "/v1/authorize", "/v1/check"), (grpc, *others), strict=True))


async def _http(server: Service, requests: int, path: str, body: str, admitted: str, refused: str) -> Way:
    task = Task(
        port=server.port,
        method="POST" if body else "GET",
        path=path,
        body=body,
        requests=requests,
        connections=CONNECTIONS,
    )
    answers = (await generate(task)).answers
    passed, others = answers.get(admitted, 0), answers.get(refused, 0)
    return Way(admitted=passed, refused=others, errors=requests - passed - others)


async def _grpc(server: Service, requests: int) -> Way:
    import grpc  # noqa: PLC0415  (an extra, and the other measurements do without)
    from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc  # noqa: PLC0415

    request = rls_pb2.RateLimitRequest(domain="mixed")
    request.descriptors.add().entries.add(**_ENTRY)
    left, found = requests, {1: 0, 2: 0}

    async def calls() -> None:
        nonlocal left
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.grpc, options=options) as channel:
            stub = rls_pb2_grpc.RateLimitServiceStub(channel)
            while left > 0:
                left -= 1
                with suppress(grpc.aio.AioRpcError):
                    found[(await stub.ShouldRateLimit(request, timeout=30)).overall_code] += 1

    await asyncio.gather(*(calls() for _ in range(CONNECTIONS)))
    return Way(admitted=found[1], refused=found[2], errors=requests - found[1] - found[2])

"""Redis goes away, comes back, forgets to answer, is full: what callers of the service see, by each outage policy."""

import asyncio
import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bench.caller import Caller, LostError
from bench.promises import Check, at_least, at_most, exactly
from bench.proxy import FaultProxy
from bench.redises import RedisServer
from bench.service import Service, service
from bench.trust.finding import Finding, Size

WORKERS = 2
CALLERS = 4
PAUSE_S = 0.02
DEADLINE_S = 0.25
OPEN_S = 3 * DEADLINE_S
"""Two calls in a row, and the one that was under way: by then every worker's breaker is open."""
STATUS = {"deny": 503, "local": 200, "allow": 200}
PLENTY = "1000000/year"


@contextlib.contextmanager
def _behind(policy: str) -> Iterator[tuple[RedisServer, FaultProxy, Service]]:
    """A service whose way to Redis can be harmed."""
    environment = {"ONEQUOTA_ON_OUTAGE": policy, "ONEQUOTA_REDIS_TIMEOUT_MS": str(round(DEADLINE_S * 1000))}
    with RedisServer() as redis, FaultProxy(redis.socket) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        with service(url, workers=WORKERS, environment=environment) as server:
            yield redis, proxy, server


@dataclass(slots=True)
class Heard:
    """What callers heard in a time.

    Attributes:
        answers: (seconds since the beginning, seconds it took, status, degraded) of each.
        free: Seconds of each answer of a route without limits.
        bad: Of those that were none, or another status than 200 there.
    """

    answers: list[tuple[float, float, int, bool]] = field(default_factory=list)
    free: list[float] = field(default_factory=list)
    bad: int = 0

    def times(self, from_s: float = -1, to_s: float = math.inf) -> list[float]:
        """Seconds that answers took to what was asked in that time."""
        return [seconds for at_s, seconds, _, _ in self.answers if from_s < at_s <= to_s]

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status, _ in self.answers)


async def _listen(port: int, for_s: float, body: Callable[[int], dict[str, Any]]) -> Heard:
    """Ask for so long, from several connections, and a route without limits beside it."""
    heard, began = Heard(), time.perf_counter()

    async def ask(number: int) -> None:
        async with Caller(port) as caller:
            while (at_s := time.perf_counter() - began) < for_s:
                with contextlib.suppress(LostError):
                    answer = await caller.ask("/v1/check", body(number))
                    degraded = bool((answer.body or {}).get("degraded"))
                    heard.answers.append((at_s, answer.seconds, answer.status, degraded))
                    await asyncio.sleep(PAUSE_S)
                    continue
                heard.bad += 1

    async def look() -> None:
        async with Caller(port) as caller:
            while time.perf_counter() - began < for_s:
                answer = await caller.ask("/health")
                heard.free.append(answer.seconds)
                heard.bad += answer.status != 200
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(look(), *map(ask, range(CALLERS)))
    return heard


def _body(number: int) -> dict[str, Any]:
    return {"key": f"caller-{number}", "limits": PLENTY}


async def _settled(port: int) -> float:
    """Seconds until eight answers in a row came from the store; at most 30."""
    began, row = time.perf_counter(), 0
    while row < 8 and time.perf_counter() - began < 30:
        async with Caller(port) as caller:  # another connection, perhaps another worker
            answer = await caller.ask("/v1/check", _body(0))
        row = row + 1 if answer.status == 200 and not answer.body.get("degraded") else 0
        await asyncio.sleep(PAUSE_S)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """One outage: what was heard before and in it, and how long until the store decided again."""

    policy: str
    harm: str
    usual: Heard
    heard: Heard
    back_s: float


def _away(policy: str, for_s: float) -> list[Absence]:
    """One after the other: refused, stopped, a black hole."""
    found = []
    with _behind(policy) as (redis, proxy, server):
        harms: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "refused": (proxy.refuse, proxy.accept),
            "stopped": (redis.pause, redis.resume),
            "black hole": (lambda: _stall(proxy, True), lambda: _stall(proxy, False)),
        }
        for name, (harm, heal) in harms.items():
            asyncio.run(_settled(server.port))
            usual = asyncio.run(_listen(server.port, 1, _body))
            harm()
            heard = asyncio.run(_listen(server.port, for_s, _body))
            heal()
            back_s = asyncio.run(_settled(server.port))
            found.append(Absence(policy=policy, harm=name, usual=usual, heard=heard, back_s=back_s))
    return found


def away(size: Size) -> Finding:
    """`onequota serve` with two workers and a deadline of 250 ms behind a proxy; Redis refuses connections, is stopped
    with SIGSTOP, or is behind a black hole that takes bytes and answers nothing; 30 s each, for deny, local and allow
    at once. Four callers ask every 20 ms, one asks /health. "Then": from 0.75 s on. What answers take while Redis is
    there is what this machine adds, and is allowed for."""
    for_s = max(2.0, 30 * size.share)
    with ThreadPoolExecutor(len(STATUS)) as threads:
        seen = [one for found in threads.map(_away, STATUS, [for_s] * len(STATUS)) for one in found]
    checks: list[Check] = []
    for one in seen:
        after = [answer for answer in one.heard.answers if answer[0] > OPEN_S]
        wanted = STATUS[one.policy]
        wrong = Counter(answer[2] for answer in after if answer[2] != wanted or (wanted == 200 and not answer[3]))
        checks += [
            exactly(f"{one.policy}, {one.harm}: other answers than {wanted}", dict(wrong), {}),
            exactly(f"{one.policy}, {one.harm}: unlimited routes that failed", one.heard.bad, 0),
            exactly(f"{one.policy}, {one.harm}: 500", one.heard.statuses[500], 0),
        ]
    first = [max(one.heard.times(to_s=OPEN_S)) for one in seen]
    usual = [seconds for one in seen for seconds in one.usual.times()]
    then = [seconds for one in seen for seconds in one.heard.times(OPEN_S)]
    free = [seconds for one in seen for seconds in one.heard.free]
    back = [one.back_s for one in seen]
    machine = _p99(usual)
    checks += [
        at_most("the first answer", 1000 * max(first), 1000 * DEADLINE_S + 10 * size.patience + machine, " ms"),
        at_most("then, median", 1000 * statistics.median(then), 5 * size.patience, " ms"),
        at_most("then, p99", _p99(then), 5 * size.patience + machine, " ms"),
        at_most("unlimited routes, p99", _p99(free), 5 * size.patience + machine, " ms"),
        at_most("back", max(back), 3 * size.patience, " s"),
    ]
    median, healthy = 1000 * statistics.median(then), 1000 * statistics.median(usual)
    return Finding(
        figure=f"no 500 in {len(first)} outages of {for_s:.0f} s; the first answers within {1000 * max(first):.0f} ms; "
        f"then {median:.1f} ms, p99 {_p99(then):.1f} ms, slowest {1000 * max(then):.0f} ms (with Redis there "
        f"{healthy:.1f} and {machine:.1f} ms); unlimited routes p99 {_p99(free):.1f} ms; back within {max(back):.1f} s",
        checks=tuple(checks),
    )


def _p99(seconds: list[float]) -> float:
    """In milliseconds."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.99))]


def _stall(proxy: FaultProxy, stalled: bool) -> None:
    proxy.stalled = stalled


def flaps(size: Size) -> Finding:
    """Redis away for a second, there for a second, 60 times, policy local, two workers: four callers ask all the while
    for one key with 200 in a moving window of 20 s. The most that passed in any window, and the connections Redis saw
    in the busiest second."""
    times, limit, window_s = size.of(60), 200, 20
    admitted: list[float] = []
    connects: list[int] = []

    async def run(proxy: FaultProxy, server: Service) -> Heard:
        async def flap() -> None:
            for _ in range(times):
                await asyncio.to_thread(proxy.refuse)
                await asyncio.sleep(1)
                before = proxy.connections
                await asyncio.to_thread(proxy.accept)
                await asyncio.sleep(1)
                connects.append(proxy.connections - before)

        async def ask(heard: Heard) -> None:
            async with Caller(server.port) as caller:
                while not flapping.done():
                    body = {"key": "one", "limits": f"{limit}/{window_s} second", "algorithm": "moving-window"}
                    answer = await caller.ask("/v1/check", body)
                    heard.answers.append((0, answer.seconds, answer.status, False))
                    if answer.status == 200 and answer.body["allowed"]:
                        admitted.append(time.perf_counter())
                    await asyncio.sleep(PAUSE_S / 4)

        heard, flapping = Heard(), asyncio.ensure_future(flap())
        await asyncio.gather(flapping, *(ask(heard) for _ in range(CALLERS)))
        return heard

    with _behind("local") as (_, proxy, server):
        heard = asyncio.run(run(proxy, server))
    most = max(sum(at <= one < at + window_s for one in admitted) for at in admitted)
    return Finding(
        figure=f"at most {most} in a window of a limit of {limit}; at most {max(connects)} connections a second by "
        f"{WORKERS} workers; {len(heard.answers):,} answers, all 200",
        checks=(
            at_most("passed in a window", most, 2 * limit),
            at_least("passed in a window", most, limit // 2),
            at_most("connections a second", max(connects), WORKERS),
            exactly("other answers", {s: n for s, n in heard.statuses.items() if s != 200}, {}),
        ),
    )


def lost(size: Size) -> Finding:
    """A proxy drops every tenth reply of Redis after the command was carried out; policy deny, two workers, four
    callers for 30 s; their asks share calls. Units counted in Redis against units that were admitted, and asks that
    were answered 503."""

    async def run(proxy: FaultProxy, server: Service) -> tuple[Counter[str], int]:
        await _settled(server.port)
        proxy.lost = 0.1
        began, seen = time.perf_counter(), Counter[str]()

        async def ask() -> None:
            async with Caller(server.port) as caller:
                while time.perf_counter() - began < max(4.0, 30 * size.share):
                    answer = await caller.ask("/v1/check", {"key": "lost", "limits": PLENTY})
                    seen["admitted" if answer.status == 200 and answer.body["allowed"] else str(answer.status)] += 1
                    await asyncio.sleep(PAUSE_S / 2)

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
        proxy.lost = 0
        await _settled(server.port)
        async with Caller(server.port) as caller:
            answer = await caller.ask("/v1/check", {"key": "lost", "limits": PLENTY, "peek": True})
        return seen, 1_000_000 - int(answer.body["limits"][0]["remaining"])

    with _behind("deny") as (_, proxy, server):
        seen, charged = asyncio.run(run(proxy, server))
        swallowed = proxy.swallowed
    return Finding(
        figure=f"{swallowed} replies lost; {charged:,} units charged, {seen['admitted']:,} admitted, {seen['503']:,} "
        "answered 503",
        checks=(
            at_least("replies lost", swallowed, 2),
            at_least("units charged", charged, seen["admitted"]),
            at_most("units charged beyond admitted", charged - seen["admitted"], CALLERS * swallowed),
            exactly("other answers", sorted(set(seen) - {"admitted", "503"}), []),
        ),
    )


def full(size: Size) -> Finding:
    """Redis at its maxmemory, policy noeviction, for each outage policy; then with memory again."""
    told, checks = list[str](), list[Check]()
    with ThreadPoolExecutor(len(STATUS)) as threads:
        for (policy, status), (heard, back_s) in zip(STATUS.items(), threads.map(_full, STATUS), strict=True):
            told.append(f"{policy}: {', '.join(f'{n} with {s}' for s, n in sorted(heard.statuses.items()))}")
            checks += [
                exactly(f"{policy}: other answers than {status}", sorted(set(heard.statuses) - {status}), []),
                at_most(f"{policy}: back", back_s, 3 * size.patience, " s"),
            ]
    return Finding(figure=f"answers, {'; '.join(told)}", checks=tuple(checks))


def _full(policy: str) -> tuple[Heard, float]:
    with _behind(policy) as (redis, _, server):
        asyncio.run(_settled(server.port))
        with redis.client() as client:
            client.config_set("maxmemory", 1)
            heard = asyncio.run(_listen(server.port, 2, _body))
            client.config_set("maxmemory", 0)
        return heard, asyncio.run(_settled(server.port))

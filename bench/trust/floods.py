"""Clients who never stop: under a new name with every request, against a Redis they could fill; or refused already."""

import asyncio
import gc
import itertools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message

from bench.caller import Caller
from bench.processes import rss_bytes
from bench.promises import at_least, at_most, exactly
from bench.redises import RedisServer
from bench.service import service
from bench.trust.finding import Finding, Size
from service.limits import Limiter, Newcomers, identity

WORKERS = 2
ACCOUNTS = 50
ACCOUNT_LIMIT = 100
"""Units an hour and account; each is asked for twice as often."""
TOGETHER = 64
"""Requests under way in a worker."""
REDIS_BYTES = 64 * 2**20
MOST_GROWN = 16 * 2**20
"""Bytes by which a worker may grow in the second half of the flood: none of what it keeps may depend on its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one worker saw.

    Attributes:
        accounts: Admitted requests by account.
        strangers: Answers to made-up identities, by status.
        failed: Answers to accounts that were neither 200 nor 429.
        grown: Bytes by which it grew in the second half.
    """

    accounts: Counter[int]
    strangers: Counter[int]
    failed: int
    grown: int


def strangers(size: Size) -> Finding:
    """5 million different identities (API keys nobody knows, addresses out of IPv4 and of a /32 of IPv6), each with its
    one request through the middleware of two worker processes, against a redis-server of 64 MB with `noeviction`;
    two counters each, one of them kept for a day. The limiter has `newcomers=Newcomers(most=60_000)`. 50 accounts ask
    for twice their limit meanwhile. The tests run a two-hundredth."""
    share = size.share if size.share == 1 else size.share**2 / 2
    count = max(2_000, round(5_000_000 * share))
    newcomers = Newcomers(most=max(100, round(60_000 * share)), networks=max(10, round(4_096 * share)))
    told, keys, used, evicted = flood(count, newcomers, memory=round(REDIS_BYTES * share))
    admitted = sum((one.accounts for one in told), Counter[int]())
    statuses = sum((one.strangers for one in told), Counter[int]())
    bound = WORKERS * (newcomers.most + newcomers.networks + 1) * 2 + ACCOUNTS
    grown = max(one.grown for one in told)
    return Finding(
        figure=f"{sum(statuses.values()):,} identities left {keys:,} counters, {used / 2**20:.1f} MB; "
        f"{len(admitted)} accounts were admitted {ACCOUNT_LIMIT} times each; a worker grew by {grown / 2**20:.1f} MB",
        checks=(
            exactly("accounts that were not admitted exactly their limit", _inexact(admitted), []),
            exactly("answers to accounts but 200 and 429", sum(one.failed for one in told), 0),
            exactly("statuses of strangers", sorted(statuses), [200, 429]),
            at_least("strangers", sum(statuses.values()), count),
            at_most("counters", keys, bound),
            exactly("evicted", evicted, 0),
            at_most("bytes a worker grew in the second half", grown, MOST_GROWN),
        ),
    )


CALLERS = 32
"""Connections of the flood on one key."""
CALLS_A_SECOND = 100
"""To Redis, at most, by each worker."""


def refused(size: Size) -> Finding:
    """100,000 requests for one key that is used up (five an hour), from 32 connections, to `onequota serve` with two
    workers; the calls that Redis counted meanwhile, its own looks left out."""
    requests = size.of(100_000)
    with RedisServer() as redis, service(redis, workers=WORKERS) as server:
        before = _evaluated(redis)
        began_s = time.perf_counter()
        statuses = asyncio.run(_hammer(server.port, requests))
        took_s = time.perf_counter() - began_s
        calls = _evaluated(redis) - before
    rate = calls / took_s / WORKERS
    return Finding(
        figure=f"{sum(statuses.values()):,} requests in {took_s:.0f} s, {statuses[True]} admitted; {calls:,} calls to "
        f"Redis, {rate:.1f} a second and worker",
        checks=(
            exactly("admitted", statuses[True], 5),
            exactly("refused", statuses[False], requests - 5),
            at_most("calls a second and worker", rate, CALLS_A_SECOND),
        ),
    )


def _evaluated(redis: RedisServer) -> int:
    with redis.client() as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


async def _hammer(port: int, requests: int) -> Counter[bool]:
    """What so many were answered."""
    allowed = Counter[bool]()

    async def one(share: int) -> None:
        async with Caller(port) as caller:
            for _ in range(share):
                answer = await caller.ask("/v1/check", {"key": "alice", "limits": "5/hour"})
                allowed[answer.body["allowed"]] += 1

    await asyncio.gather(*(one(requests // CALLERS + (number < requests % CALLERS)) for number in range(CALLERS)))
    return allowed


def _inexact(admitted: Counter[int]) -> list[int]:
    return [number for number in range(ACCOUNTS) if admitted[number] != ACCOUNT_LIMIT][:5]


def flood(count: int, newcomers: Newcomers | None, *, memory: int) -> tuple[list[Told], int, int, int]:
    """What each worker saw, keys left, bytes used, keys evicted.

    Args:
        count: Made-up identities, of all workers together.
        newcomers: Those that may have counters, a worker; None = no bound.
        memory: Bytes of Redis beyond what it uses when it is empty.
    """
    with RedisServer() as redis, redis.client() as client:
        empty = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", empty + 2**20 + memory)  # 1 MB for connections and buffers
        client.config_set("maxmemory-policy", "noeviction")
        tasks = [(redis.url, number, count // WORKERS, newcomers) for number in range(WORKERS)]
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            told = pool.starmap(_worker, tasks)
        info = client.info()
        return told, client.dbsize(), int(info["used_memory"]) - empty, int(info["evicted_keys"])


def _worker(url: str, number: int, count: int, newcomers: Newcomers | None) -> Told:
    return asyncio.run(_Worker(url, number, newcomers).flood(count))


class _Worker:
    """One process: an app behind the limiter's middleware, called without a network."""

    def __init__(self, url: str, number: int, newcomers: Newcomers | None) -> None:
        account = identity.vouched(lambda request: request.headers.get("x-account"))
        unknown = identity.api_key("x-api-key", secret="a secret for a bench")
        self._limiter = Limiter(
            identity.first_of(account, unknown, identity.client_address),
            storage_uri=url,
            newcomers=newcomers,
            deadline_s=30,
            on_outage="deny",
        )
        limit = self._limiter.limit("5/minute;20/day", exempt_when=_has_account)
        own = self._limiter.limit(f"{ACCOUNT_LIMIT}/hour", exempt_when=_has_none)
        self._app = Starlette(routes=[Route("/", limit(own(_page)))])
        self._app.state.limiter = self._limiter
        self._app.add_middleware(self._limiter.middleware)
        self._number = number
        self._told = Told(accounts=Counter(), strangers=Counter(), failed=0, grown=0)

    async def flood(self, count: int) -> Told:
        """Strangers one after the other, with accounts spread evenly among them."""
        asks = ACCOUNTS * ACCOUNT_LIMIT * 2 // WORKERS
        every = max(1, count // asks)
        known = iter([n % ACCOUNTS for n in range(asks)])
        failed, half_bytes, made = 0, 0, self._made_up()
        for start in range(0, count, TOGETHER):
            numbers = range(start, min(start + TOGETHER, count))
            accounts = list(itertools.islice(known, sum(n % every == 0 for n in numbers)))
            calls = [self._get(*next(made)) for _ in numbers]
            calls += [self._get("192.0.2.1", (b"x-account", b"%d" % account)) for account in accounts]
            answers = await asyncio.gather(*calls)
            self._told.strangers.update(answers[: len(numbers)])
            for account, status in zip(accounts, answers[len(numbers) :], strict=True):
                self._told.accounts[account] += status == 200
                failed += status not in (200, 429)
            if not half_bytes and start >= count // 2:
                gc.collect()
                half_bytes = rss_bytes(os.getpid())
        for account in known:
            status = await self._get("192.0.2.1", (b"x-account", b"%d" % account))
            self._told.accounts[account] += status == 200
            failed += status not in (200, 429)
        gc.collect()
        grown = max(0, rss_bytes(os.getpid()) - half_bytes)
        await self._limiter.aclose()
        told = self._told
        return Told(accounts=told.accounts, strangers=told.strangers, failed=failed, grown=grown)

    def _made_up(self) -> Iterator[tuple[str, *tuple[tuple[bytes, bytes], ...]]]:
        """Addresses and headers, no two of them the same, in this worker or the other."""
        for n in itertools.count(self._number, WORKERS):
            match n // WORKERS % 3:
                case 0:
                    yield "192.0.2.2", (b"x-api-key", b"made-up-%d" % n)
                case 1:
                    yield (f"2001:db8:{n & 0xFFFF:x}:{n >> 16:x}::1",)
                case _:
                    mixed = n * 2_654_435_761 % 2**32  # a permutation of the addresses
                    yield (".".join(str(mixed >> shift & 255) for shift in (24, 16, 8, 0)),)

    async def _get(self, peer: str, *headers: tuple[bytes, bytes]) -> int:
        status = 0

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "root_path": ""}
        await self._app({**scope, "headers": list(headers), "client": (peer, 1)}, _nothing, send)
        return status


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def _has_account(request: Request) -> bool:
    return "x-account" in request.headers


def _has_none(request: Request) -> bool:
    return not _has_account(request)


async def _nothing() -> Message:
    await asyncio.Event().wait()
    raise AssertionError

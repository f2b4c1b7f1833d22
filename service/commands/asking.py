"""Whom a command asks: a running service, or the Redis that services count in.

| given | asked |
|---|---|
| `--url`, else ONEQUOTA_URL | the service there, with `--api-key`, else ONEQUOTA_API_KEY |
| `--redis`, else REDIS_URL | that Redis, as a service would; a domain's limits then come from `--limits-file` |

An option goes before the variables, ONEQUOTA_URL before REDIS_URL. A command starts nothing by itself.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx2 as httpx

from service.client import Answer, Client, Standing, wire
from service.client.question import Check, DomainCheck, Question
from service.errors import ConfigurationError, InvalidInput, InvalidLimit
from service.limits import Limit, keys, policy
from service.limits.catalog import Catalog
from service.limits.decision import CHARGE, LOOK, Ask, Charge, seconds
from service.limits.decision import Standing as Counted
from service.limits.engine import Engine
from service.limits.plan import outside
from service.limits.stores import opener
from service.redis_url import redacted
from service.settings import redis_url_from_env, service_url_from_env

T = TypeVar("T")

DEADLINE_S = 5.0

NOBODY = (
    "whom to ask? Pass --url http://HOST:PORT of a running service, or --redis redis://HOST:PORT that services count "
    "in; or set ONEQUOTA_URL or REDIS_URL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whom:
    """What a user said of whom to ask; all of it may be missing."""

    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    redis: str | None = None

    @property
    def known(self) -> bool:
        """Whether anybody can be asked."""
        return bool(self.url or self.redis or service_url_from_env() or redis_url_from_env())

    def asked(self, catalog: Catalog | None = None) -> "Asked":
        """Who is; a Redis knows no domains but those of a catalog.

        Raises:
            ConfigurationError: Nobody, or two at once.
        """
        if self.url and self.redis:
            raise ConfigurationError("--url asks a service, --redis a Redis: leave one out")
        redis = self.redis or (None if self.url or service_url_from_env() else redis_url_from_env())
        if redis:
            return Counters(redis, catalog)
        url = self.url or service_url_from_env()
        if url is None:
            raise ConfigurationError(NOBODY)
        return Service(url, self.api_key)


class Asked(Protocol):
    """Who answers questions."""

    def decide(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question. Raises OnequotaError where there is none."""

    def version(self) -> str | None:
        """Of the catalog it decides by; None = it has none, or does not say."""


class Service:
    """A running service."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = wire.address(url, None).url
        self._opened = functools.partial(Client, url, api_key=api_key, deadline_s=DEADLINE_S, when_away="raise")
        self._opened().close()  # what cannot be meant is said at once

    def client(self) -> Client:
        """A client of it, to be closed."""
        return self._opened()

    def decide(self, questions: Sequence[Question]) -> list[Answer]:
        with self.client() as client:
            return client.decide(questions)

    def version(self) -> str | None:
        try:
            said = httpx.get(f"{self._url}/health", timeout=DEADLINE_S, trust_env=False).json()
            return str(said["limits"]["version"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, KeyError):
            return None


class Counters:
    """The counters in a Redis, decided here as a service would."""

    def __init__(self, url: str, catalog: Catalog | None) -> None:
        if url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{redacted(url)} is no Redis: pass the URL of a service as --url")
        self._open = opener(url, None, DEADLINE_S)
        self._catalog = catalog

    def version(self) -> str | None:
        return None if self._catalog is None else self._catalog.version

    def decide(self, questions: Sequence[Question]) -> list[Answer]:
        async def all_of_them(engine: Engine) -> list[Answer]:
            return [await self._one(engine, question) for question in questions]

        return self.run(all_of_them)

    def run(self, work: Callable[[Engine], Awaitable[T]]) -> T:
        """What a coroutine function finds out with an engine over these counters."""

        async def inside() -> T:
            engine = Engine(self._open, DEADLINE_S)
            try:
                await engine.ping()  # a Redis that is away is an error here, and has no degraded answer
                return await work(engine)
            finally:
                await engine.aclose()

        return asyncio.run(inside())

    async def _one(self, engine: Engine, question: Question) -> Answer:
        if isinstance(question, Check):
            return await _inline(engine, question)
        if self._catalog is None or question.domain not in self._catalog.domains:
            raise InvalidInput("--domain", f'no "{question.domain}" in the limits file')
        wanted = [policy.Wanted(entries) for entries in question.descriptors]
        now_us = time.time_ns() // 1000
        planned = policy.plan(self._catalog, question.domain, wanted, now_us=now_us, cost=question.cost)
        verdict = await policy.decide(engine, planned, peek=question.peek)
        return Answer(
            allowed=verdict.allowed,
            retry_after=verdict.retry_after,
            limits=tuple(map(told, verdict.standings)),
            degraded=verdict.degraded,
        )


async def _inline(engine: Engine, question: Check) -> Answer:
    if not question.key:
        raise InvalidInput("key", "is empty; name who is charged")
    try:
        limits = Limit.parse(question.limits, algorithm=question.algorithm or "fixed-window", burst=question.burst)
    except InvalidLimit as error:
        raise InvalidInput("--limits", str(error)) from None
    scope = outside("")
    charges = [
        Charge(limit, keys.spell("", question.key, scope, limit.spelling), limit.admits(question.cost))
        for limit in limits
    ]
    decision = await engine.decide(Ask(charges, LOOK if question.peek else CHARGE))
    return Answer(
        allowed=decision.allowed, retry_after=decision.retry_after, limits=tuple(map(told, decision.standings))
    )


def told(standing: Counted) -> Standing:
    """A standing as the service tells it."""
    return Standing(
        name=standing.limit.name,
        limit=standing.limit.capacity,
        window_s=standing.limit.refill_s,
        remaining=standing.remaining,
        reset_after_s=seconds(standing.reset_us),
    )


def entries(words: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """Descriptors as a user writes them: `user=alice plan=free`, several with a `+` between. Raises InvalidInput."""
    found: list[list[tuple[str, str]]] = [[]]
    for word in words:
        if word == "+":
            found.append([])
            continue
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InvalidInput("entries", f'"{word}" is none: write KEY=VALUE, for example user=alice')
        found[-1].append((key, value))
    if not all(found):
        raise InvalidInput("entries", "none given: write KEY=VALUE, for example user=alice plan=free")
    return [tuple(one) for one in found]


def question(domain: str | None, words: Sequence[str], limits: str | None, **more: Any) -> Question:
    """What a user asks: `--domain chat user=alice`, or `alice --limits 10/minute`. Raises InvalidInput."""
    if domain is not None:
        if limits is not None:
            raise InvalidInput("--limits", "--domain has its own limits: leave one out")
        if more.get("algorithm") or more.get("burst") is not None:
            raise InvalidInput("--algorithm", "and --burst go with --limits: a domain says how it counts")
        return DomainCheck(domain, tuple(entries(words)), more["cost"], more["peek"])
    if limits is None:
        raise InvalidInput(
            "--limits", 'by which limits? Pass --limits "10/minute", or --domain NAME for the service\'s'
        )
    return Check(" ".join(words), limits, **more)

"""The route: from a gateway's request to the answer that it passes on."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.callers import Callers, forbidden
from service.errors import QUOTA_EXCEEDED, InvalidInput, StoreUnavailable
from service.limits import Limiter, identity
from service.limits.catalog import Catalog
from service.limits.headers import draft
from service.limits.passage import fault, problem_response
from service.limits.policy import MOST_DESCRIPTORS, Verdict, Wanted, decide, plan
from service.logs import events
from service.routes.authorize import asking, values
from service.routes.raw import Answered
from service.settings import IDENTITY_SECRET

log = events()

_REFUSALS = {"429": 429, "403": 403}
_TOLD_EVERY_S = 1.0


class Query(NamedTuple):
    """What the gateway asks.

    Attributes:
        domain: Which part of the catalog.
        descriptors: Those it names; () = by the domain's rules.
        refuse: The status of a refusal.
    """

    domain: str
    descriptors: tuple[tuple[str, ...], ...]
    refuse: int


class Authorize:
    """The hot route.

    Args:
        limiter: Whose engine decides, and who knows addresses behind proxies.
        catalog: Says which one is in force.
        callers: Who may ask.
        secret: What digests of API keys are made with; None = there is none, and no rule may ask for them.
        clock: Microseconds since the epoch.
    """

    def __init__(
        self,
        limiter: Limiter,
        catalog: Callable[[], Catalog],
        callers: Callers,
        secret: str | None = None,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._limiter = limiter
        self._catalog = catalog
        self._callers = callers
        self._secret = secret
        self._clock = clock
        self._told_s = -_TOLD_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope)
        except Answered as other:
            response = other.response
        except (InvalidInput, StoreUnavailable) as error:
            response = fault(error)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        caller = self._callers.of(scope["headers"])
        if caller is None:
            return await self._callers.unknown(scope)
        query = read(scope["query_string"])
        if not caller.may(query.domain):
            response = forbidden(caller, query.domain)
            if query.refuse == 403:  # that would say that the client is refused
                response.status_code = 400
            return response
        catalog = self._catalog()
        found = values.of(scope, self._limiter.addresses, self._digest if self._is_the_clients(scope) else None)
        asked = self._asked(catalog, query, found)
        if not asked:
            return _passed([])
        if self._secret is None and any(key == "api_key" for entries in asked for key, _ in entries):
            raise Answered.by(500, f"limits by api_key need {IDENTITY_SECRET}, the same for all workers")
        wanted = [Wanted(entries) for entries in asked]
        planned = plan(catalog, query.domain, wanted, now_us=self._clock(), strict=False)
        verdict = await decide(self._limiter.engine, planned)
        headers = draft(verdict.standings) if verdict.standings and not verdict.degraded else []
        return _passed(headers) if verdict.allowed else _refused(verdict, headers, query.refuse)

    def _asked(self, catalog: Catalog, query: Query, found: dict[str, str]) -> Sequence[tuple[tuple[str, str], ...]]:
        if query.descriptors:
            return asking.by_name(query.descriptors, found)
        domain = catalog.domains.get(query.domain)
        if domain is not None:
            return asking.by_rules(domain, found)
        now_s = time.monotonic()
        if now_s - self._told_s > _TOLD_EVERY_S:
            self._told_s = now_s
            log.warning("unknown_domain", domain=query.domain, hint="everything passes")
        return ()

    def _is_the_clients(self, scope: Scope) -> bool:
        """Whether X-API-Key may be the client's: the gateway needs no key, or bears its own as a Bearer token."""
        if self._callers.open:
            return True
        return any(name == b"authorization" and value[:7].lower() == b"bearer " for name, value in scope["headers"])

    def _digest(self, key: str) -> str:
        return identity.digest(key, self._secret) if self._secret is not None else "?"


def read(query_string: bytes) -> Query:
    """The gateway's question. Raises InvalidInput naming the parameter."""
    domain, refuse, descriptors = "", "429", []
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_DESCRIPTORS + 2)
    except ValueError:
        raise InvalidInput("descriptor", f"more than {MOST_DESCRIPTORS} of them") from None
    for name, value in pairs:
        if name == "domain":
            if domain:
                raise InvalidInput("domain", "is there twice")
            domain = value
        elif name == "refuse":
            refuse = value
        elif name == "descriptor":
            descriptors.append(_descriptor(value))
        else:
            raise InvalidInput(name[:60], "is not known; use domain, descriptor, refuse")
    if not domain:
        raise InvalidInput("domain", "say which one: /v1/authorize?domain=NAME")
    if refuse not in _REFUSALS:
        raise InvalidInput("refuse", f"{refuse[:60]!r}; use 403, or leave it out for 429")
    return Query(domain, tuple(descriptors), _REFUSALS[refuse])


def _descriptor(text: str) -> tuple[str, ...]:
    keys = tuple(text.split(","))
    for key in keys:
        if key not in values.NAMES:
            raise InvalidInput("descriptor", f"{key[:60]!r} is not known; use {', '.join(values.NAMES)}")
    return keys


def _passed(headers: list[tuple[bytes, bytes]]) -> Response:
    response = Response(None, 200, {"cache-control": "no-store"})
    response.raw_headers += headers
    return response


def _refused(verdict: Verdict, headers: list[tuple[bytes, bytes]], status: int) -> Response:
    wait = (b"retry-after", b"%d" % (verdict.retry_after or 1))
    if status == 403:  # nginx does not read a body, and would close the connection over it
        response = Response(None, status, {"cache-control": "no-store"})
        response.raw_headers += [*headers, wait]
        return response
    names = ", ".join(verdict.exceeded)
    response = problem_response(
        429,
        f"{names} is used up; try again in {verdict.retry_after} s",
        type_=QUOTA_EXCEEDED,
        extra={
            "violated-policies": list(verdict.exceeded),
            **({"degraded": True} if verdict.degraded else {}),
        },
    )
    response.raw_headers += [*headers, wait]
    return response

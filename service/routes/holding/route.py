"""The routes. Their ids are unguessable, and each caller's own: another API key's are unknown."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.callers import Caller, Callers, forbidden
from service.errors import InvalidInput, NotHeld, StoreUnavailable
from service.limits import Limiter, reservation
from service.limits import ticket as tickets
from service.limits.allowance import Allowance
from service.limits.catalog import Catalog, Live, Still
from service.limits.decision import GIVE_BACK, RENEW, Ask, LeaseAsk, Token, TokenAsk, seconds
from service.limits.passage import fault
from service.limits.ticket import Ticket
from service.limits.token import token
from service.routes.check.answer import answer
from service.routes.check.question import domain_of
from service.routes.check.route import too_often
from service.routes.holding import description
from service.routes.holding.question import Wanted, amounts, held, settlement
from service.routes.raw import Answered, ClientLeft, body_of, check_json, json_of
from service.settings import Settings

LARGEST_BODY_BYTES = 1 << 20

NOTHING = "nothing"
"""The id of what nothing limits: settled, renewed and released like any other, without a question to Redis."""

_UNLIMITED = '{"allowed":true,"retry_after":null,"limits":[]}'

Does = Callable[[Request, Caller], Awaitable[str]]


def router(limiter: Limiter, settings: Settings, callers: Callers, live: Live | Still) -> APIRouter:
    """All of them. `settings.check_limit` guards them per address, as it does /v1/check."""
    routes = APIRouter(tags=["holding"])
    desk = _Desk(limiter, settings, callers, live)

    def add(method: str, path: str, does: Does, said: dict[str, Any]) -> None:
        async def endpoint(request: Request) -> Response:
            return await desk.answer(request, does)

        routes.add_api_route(path, endpoint, methods=[method], response_class=Response, name=does.__name__, **said)

    add("POST", "/v1/refund", desk.refund, description.REFUND)
    add("POST", "/v1/reservations", desk.reserve, description.RESERVE)
    add("POST", "/v1/reservations/{id}/settle", desk.settle, description.SETTLE)
    add("DELETE", "/v1/reservations/{id}", desk.cancel, description.CANCEL)
    add("POST", "/v1/leases", desk.acquire, description.ACQUIRE)
    add("PUT", "/v1/leases/{id}", desk.renew, description.RENEW)
    add("DELETE", "/v1/leases/{id}", desk.release, description.RELEASE)
    return routes


class _Desk:
    """What the routes do; each method answers with a body."""

    def __init__(self, limiter: Limiter, settings: Settings, callers: Callers, live: Live | Still) -> None:
        self._limiter = limiter
        self._engine = limiter.engine
        self._callers = callers
        self._live = live
        self._guard = Allowance(limiter.engine, settings.check_limit, name="holding", scope="r.holding")

    async def answer(self, request: Request, does: Does) -> Response:
        """The answer to a request of somebody who may ask."""
        try:
            caller = self._callers.of(request.scope["headers"])
            if caller is None:
                return await self._callers.unknown(request.scope)
            address = self._limiter.addresses.of(request.scope)
            if not self._guard.take(address) and (refused := await self._guard.ask(address)) is not None:
                return too_often(self._limiter, refused)
            return Response(await does(request, caller), media_type="application/json")
        except Answered as other:
            return other.response
        except (InvalidInput, StoreUnavailable) as error:
            return fault(error)
        except ClientLeft:
            return Response(status_code=400)  # nobody reads it

    async def refund(self, request: Request, caller: Caller) -> str:
        body, wanted = await self._read(request, caller, amounts)
        once = _once(request, body, f"refund/{caller.name}")
        if not wanted.charges:
            return _UNLIMITED
        ask = Ask(wanted.charges, GIVE_BACK) if once is None else TokenAsk(wanted.charges, once, GIVE_BACK)
        return answer(await self._engine.decide(ask))

    async def reserve(self, request: Request, caller: Caller) -> str:
        body, wanted = await self._read(request, caller, amounts)
        once = _once(request, body, f"reserve/{caller.name}")
        if wanted.blocked_us:
            return _blocked(wanted)
        if not wanted.charges:
            return _with(_UNLIMITED, id=NOTHING)
        found = await reservation.reserve(
            self._engine, wanted.charges, wanted.cost, ttl_s=wanted.ttl_s, owner=caller.name, token=once
        )
        more = {"id": found.id, "expires_in": found.ttl_s} if found.allowed else {"id": None}
        return _with(answer(found.decision), **more)

    async def settle(self, request: Request, caller: Caller) -> str:
        cost = settlement(json_of(await _body(request)))
        return await self._settle(request.path_params["id"], caller, cost)

    async def cancel(self, request: Request, caller: Caller) -> str:
        return await self._settle(request.path_params["id"], caller, 0)

    async def _settle(self, id: str, caller: Caller, cost: int) -> str:
        if id == NOTHING:
            return _UNLIMITED
        return answer(await reservation.settle(self._engine, id, cost, owner=caller.name))

    async def acquire(self, request: Request, caller: Caller) -> str:
        body, wanted = await self._read(request, caller, held)
        leases = tuple(charge for charge in wanted.charges if charge.limit.leases)
        once = _once(request, body, f"lease/{caller.name}")
        if wanted.blocked_us:
            return _blocked(wanted)
        if not wanted.charges:
            return _with(_UNLIMITED, id=NOTHING)
        random = tickets.random() if once is None else tickets.derived(once)
        ttl_s = min([charge.limit.window_s for charge in leases], default=wanted.ttl_s)
        ticket = tickets.admissible(Ticket(random, leases, ttl_s)) if leases else None
        decision = await self._engine.decide(_taking(wanted, ticket, caller, once))
        if not decision.allowed:
            return _with(answer(decision), id=None)
        id = ticket._replace(here=decision.degraded).text if ticket is not None else NOTHING
        return _with(answer(decision), id=id, expires_in=ttl_s)

    async def renew(self, request: Request, caller: Caller) -> str:
        return await self._again(request.path_params["id"], caller, RENEW)

    async def release(self, request: Request, caller: Caller) -> str:
        return await self._again(request.path_params["id"], caller, GIVE_BACK)

    async def _again(self, id: str, caller: Caller, kind: int) -> str:
        if id == NOTHING:
            return _with(_UNLIMITED, id=NOTHING)
        ticket = tickets.read(id)
        if ticket.cost or not all(charge.limit.leases for charge in ticket.charges):
            raise NotHeld("id", "is that of a reservation")
        ask = LeaseAsk(ticket.charges, ticket.lease(caller.name), kind)
        decision = await self._engine.decide(ask, here=ticket.here)
        if not decision.allowed:
            raise NotHeld("id", "is of a lease that has ended, or of none")
        return _with(answer(decision), id=id, **({"expires_in": ticket.ttl_s} if kind == RENEW else {}))

    async def _read(
        self, request: Request, caller: Caller, read: Callable[[Any, str | None, Catalog, int], Wanted]
    ) -> tuple[bytes, Wanted]:
        """What a body asks for, by somebody who may. Raises InvalidInput, Answered."""
        check_json(next((value for name, value in request.scope["headers"] if name == b"content-type"), None))
        body = await _body(request)
        document = json_of(body)
        domain = domain_of(document)
        if domain is None and caller.inline is None:
            raise Answered(forbidden(caller, None))
        if domain and not caller.may(domain):
            raise Answered(forbidden(caller, domain))
        scope = caller.inline if domain is None else None
        return body, read(document, scope, self._live.catalog, time.time_ns() // 1000)


async def _body(request: Request) -> bytes:
    return await body_of(request.receive, LARGEST_BODY_BYTES)


def _once(request: Request, body: bytes, owner: str) -> Token | None:
    """The token of a request that may come again. Raises InvalidInput."""
    key = request.headers.get("idempotency-key")
    return None if key is None else token(key, body, owner=owner)


def _taking(wanted: Wanted, ticket: Ticket | None, caller: Caller, once: Token | None) -> Ask:
    lease = None if ticket is None else ticket.lease(caller.name)
    if once is not None:
        return TokenAsk(wanted.charges, once, lease=lease)
    return Ask(wanted.charges) if lease is None else LeaseAsk(wanted.charges, lease)


def _blocked(wanted: Wanted) -> str:
    return f'{{"allowed":false,"retry_after":{seconds(wanted.blocked_us)},"limits":[],"id":null}}'


def _with(body: str, **more: Any) -> str:
    """A JSON object with more members, which come last."""
    return f"{body[:-1]},{json.dumps(more, separators=(',', ':'))[1:]}"

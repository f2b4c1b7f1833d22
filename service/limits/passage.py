"""One request on its way through the limits: charged, then let through with headers, or refused.

The gate, the decorator's wrapper and the dependency share this; they differ only in where they stand.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from fastapi.exception_handlers import http_exception_handler
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.errors import (
    PROBLEM_JSON,
    QUOTA_EXCEEDED,
    REDUCED_CAPACITY,
    IdentityUnavailable,
    InvalidInput,
    OnequotaError,
    StoreUnavailable,
    Unauthenticated,
    problem,
)
from service.limits import headers, keys
from service.limits.access import Access, Weighed
from service.limits.calling import ask, is_coroutine
from service.limits.decision import GIVE_BACK, Ask, Charge, Decision
from service.limits.held import fresh, taken
from service.limits.identity import ADDRESSES, Vouched
from service.limits.limit import rate_limit_item
from service.limits.plan import Plan, Rule
from service.logs import events

if TYPE_CHECKING:
    from service.limits.limiter import Limiter

log = events()

ADMITTED = "onequota"
"""Where an ASGI scope keeps its admissions, one per limiter."""

ASIDE = "onequota.aside"
"""Where it keeps those that were made beside the first: pairs of limiter and admission."""


class Admission:
    """A request that one limiter has charged, or refused.

    It also is `request.state.view_rate_limit`, and behaves as slowapi's handlers expect it: (item, [key, scope]).

    Attributes:
        plan: What it was charged by.
        charges: What was asked for.
        rules: The rule of each charge.
        decision: The answer; None if every rule was exempt, or nothing was asked because of a list.
        lease: Under which it holds units of concurrency; None = it holds none.
        denied: Whoever asks is on the list of those who are never let in.
        by_gate: The middleware made it, and writes the headers.
        settled: What `deduct_when` decides has been decided.
        returned: The keys of what `deduct_when` gave back.
        settling: At what cost it is settled, and under which name; None = it is not.
        true_cost: It was settled: its charges and its decision say the true cost.
    """

    __slots__ = (
        "by_gate",
        "charges",
        "decision",
        "denied",
        "lease",
        "plan",
        "returned",
        "rules",
        "settled",
        "settling",
        "true_cost",
    )

    def __init__(self, plan: Plan, rules: Sequence[Rule], charges: Sequence[Charge], decision: Decision | None) -> None:
        self.plan = plan
        self.rules = rules
        self.charges = charges
        self.decision = decision
        self.denied = False
        self.lease: str | None = None
        self.by_gate = True
        self.settled = not plan.deducts
        self.settling: tuple[int, str] | None = None
        self.true_cost = False
        self.returned: Sequence[bytes] = ()

    @property
    def refused(self) -> bool:
        return self.denied or (self.decision is not None and not self.decision.allowed)

    def __getitem__(self, index: int) -> Any:
        charge = self.charges[self.shown]
        return (rate_limit_item(charge.limit), [charge.key.decode(), ""])[index]

    @property
    def shown(self) -> int:
        """Index of the charge that one-limit headers and the refusal speak of."""
        assert self.decision is not None
        standings = self.decision.standings
        return standings.index(headers.shown(standings)) if len(standings) > 1 else 0


async def admit(
    limiter: "Limiter",
    plan: Plan,
    scope: Scope,
    receive: Receive | None = None,
    connection: HTTPConnection | None = None,
) -> Admission:
    """Charge a request by its plan, and remember the outcome in its scope.

    The user's functions get `connection`, or a new one made of `scope` and `receive`.

    Raises:
        InvalidInput: A key or a cost is wrong; nothing was charged.
        IdentityUnavailable: Who asks cannot be told at the moment.
        StoreUnavailable: Nobody could decide.
    """
    access = limiter.access
    if access is not None:
        return await _admit_after_access(access, limiter, plan, scope, receive, connection)
    rules: Sequence[Rule] = plan.rules
    asked = None
    if plan.by_address:
        asked = plan.ask_ready(limiter.addresses.of(scope))
    else:
        scope[ADDRESSES] = limiter.addresses
        connection = connection or _connection(scope, receive)
        if plan.ready is None:
            rules, charges, _ = await plan.charge(connection)
            asked = Ask(charges) if charges else None
        else:
            key = plan.key_func(connection) if plan.key_takes else plan.key_func()
            asked = plan.ask_ready(await key if hasattr(key, "__await__") else key)
    if asked is None:
        admission = Admission(plan, rules, (), None)
    else:
        lease = fresh() if plan.holds else None
        deciding = limiter.engine.decide(asked) if lease is None else taken(limiter.engine, asked.charges, lease)
        admission = Admission(plan, rules, asked.charges, await deciding)
        admission.lease = lease
        scope.setdefault("state", {})["view_rate_limit"] = admission
    scope.setdefault(ADMITTED, {})[limiter] = admission
    return admission


async def _admit_after_access(
    access: Access,
    limiter: "Limiter",
    plan: Plan,
    scope: Scope,
    receive: Receive | None,
    connection: HTTPConnection | None,
) -> Admission:
    """`admit`, where lists, bans or newcomers come before counting."""
    weighed, lease = Weighed(listed=access.listed(scope)), None
    if weighed.listed is None:
        scope[ADDRESSES] = limiter.addresses
        rules, asked, vouched = await _asked(plan, connection or _connection(scope, receive))
        if asked is not None:
            weighed = await access.weigh(asked, rules, vouched, scope)
    decision = weighed.decision
    if weighed.asked is not None and decision is None:
        asked, engine = weighed.asked, limiter.engine
        lease = fresh() if plan.holds else None
        decision = await (engine.decide(asked) if lease is None else taken(engine, asked.charges, lease))
        access.decided(asked, decision)
    charges = () if weighed.asked is None else weighed.asked.charges
    admission = Admission(plan, weighed.rules, charges, decision)
    admission.lease = lease
    admission.denied = weighed.listed is False
    if decision is not None:
        scope.setdefault("state", {})["view_rate_limit"] = admission
    scope.setdefault(ADMITTED, {})[limiter] = admission
    return admission


async def _asked(plan: Plan, connection: HTTPConnection) -> tuple[Sequence[Rule], Ask | None, Collection[bytes]]:
    """What a plan asks, the rule of each charge, and the identities that are vouched for."""
    if plan.ready is None:
        rules, charges, vouched = await plan.charge(connection)
        return rules, Ask(charges) if charges else None, vouched
    key = plan.key_func(connection) if plan.key_takes else plan.key_func()
    if hasattr(key, "__await__"):
        key = await key
    asked = plan.ask_ready(key)
    return plan.rules, asked, {keys.bearer(asked.charges[0].key)} if type(key) is Vouched else ()


def admissions(scope: Scope) -> dict[Any, Admission]:
    """The admissions of a request, by limiter."""
    return scope.setdefault(ADMITTED, {})  # type: ignore[no-any-return]


def made(scope: Scope, limiter: object) -> list[Admission]:
    """All admissions of a request by one limiter: the gate's, and those of decorators and dependencies."""
    first = admissions(scope).get(limiter)
    aside = [admission for owner, admission in scope.get(ASIDE, ()) if owner is limiter]
    return aside if first is None else [first, *aside]


def _connection(scope: Scope, receive: Receive | None) -> HTTPConnection:
    if scope["type"] == "http" and receive is not None:
        return Request(scope, receive)
    return Request(scope) if scope["type"] == "http" else HTTPConnection(scope)


async def deduct(limiter: "Limiter", admission: Admission, response: Response) -> None:
    """Give back what `deduct_when` does not want charged for this response; the decision then says so."""
    if admission.settled:
        return
    admission.settled = True
    back, standings = [], list(admission.decision.standings if admission.decision else ())
    for index, (rule, charge) in enumerate(zip(admission.rules, admission.charges, strict=True)):
        if rule.deduct_when is None:
            continue
        keep = rule.deduct_when(response)
        if not (await keep if hasattr(keep, "__await__") else keep):
            back.append(charge)
            standing = standings[index]
            remaining = min(standing.limit.capacity, standing.remaining + charge.cost)
            whole = remaining == standing.limit.capacity
            standings[index] = standing._replace(
                remaining=remaining,
                next_us=0 if whole else standing.next_us,
                reset_us=0 if whole else standing.reset_us,
            )
    if back and admission.decision is not None:
        try:
            degraded, at_us = admission.decision.degraded, admission.decision.at_us
            await limiter.engine.decide(Ask(back, GIVE_BACK, at_us), here=degraded)
        except StoreUnavailable as error:
            log.warning("give_back_failed", error=error)
        else:
            admission.decision = admission.decision._replace(standings=tuple(standings))
            admission.returned = [charge.key for charge in back]


def with_headers(limiter: "Limiter", admission: Admission, send: Send) -> Send:
    """`send`, writing the standing into the response's first message."""

    def send_with_headers(message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.start" or kind == "websocket.accept":
            if not admission.settled and kind == "http.response.start":
                return _settle_and_send(limiter, admission, message, send)
            if admission.decision is not None:
                message["headers"] = limiter.write(message.get("headers", ()), admission.decision)
        return send(message)

    return send_with_headers


async def _settle_and_send(limiter: "Limiter", admission: Admission, message: Message, send: Send) -> None:
    response = Response(status_code=message["status"])
    response.raw_headers[:] = message.get("headers", ())
    await deduct(limiter, admission, response)
    await with_headers(limiter, admission, send)(message)


async def refusal(limiter: "Limiter", admission: Admission, scope: Scope) -> Response:
    """The answer to a refused request: the hook's, else the registered handler's, else problem+json."""
    if admission.denied:
        return await forbidden(scope)
    decision = admission.decision
    assert decision is not None
    rule, charge = admission.rules[admission.shown], admission.charges[admission.shown]
    request = _connection(scope, None)
    response = None
    if limiter.on_refusal is not None:
        response = await _called(limiter.on_refusal, request, decision)
    if response is None and (handler := limiter.refusal_handler(scope.get("app"))) is not None:
        error = await limiter.exceeded(rule, charge, request)
        response = await _called(handler, request, error)
    if response is None:
        message = rule.error_message
        detail = await ask(message, request) if callable(message) else message
        response = problem_response(
            429,
            detail or f"{charge.limit.name} is used up; try again in {decision.retry_after} s",
            type_=QUOTA_EXCEEDED,
            extra={
                "violated-policies": [standing.limit.name for standing in decision.exceeded],
                **({"degraded": True} if decision.degraded else {}),
            },
        )
    response.raw_headers[:] = limiter.write(response.raw_headers, decision)
    return response


async def forbidden(scope: Scope) -> Response:
    """The answer to whoever is never let in: 403, by the app's own handler if it has one."""
    handler = handler_of(scope.get("app"), 403, HTTPException)
    if handler is not None:
        response = await _called(handler, _connection(scope, None), HTTPException(403))
        if response is not None:
            return response
    return problem_response(403, "Requests from here are not accepted")


def handler_of(app: Any, status: int, kind: type[HTTPException]) -> Callable[..., Any] | None:
    """The app's own handler for an error, found as Starlette finds it; FastAPI's default is nobody's own."""
    handlers = getattr(app, "exception_handlers", {})
    for known in (status, *kind.__mro__[: kind.__mro__.index(HTTPException) + 1]):
        found = handlers.get(known)
        if found is not None and found is not http_exception_handler:
            return found  # type: ignore[no-any-return]
    return None


async def answer_of(error: HTTPException, scope: Scope) -> Response:
    """What the app would have answered to an HTTPException that a key or cost function raised in the gate."""
    handler = handler_of(scope.get("app"), error.status_code, type(error)) or http_exception_handler
    response = await _called(handler, _connection(scope, None), error)
    assert response is not None
    return response


async def _called(function: Any, *arguments: Any) -> Response | None:
    if is_coroutine(function):
        return await function(*arguments)  # type: ignore[no-any-return]
    return await run_in_threadpool(function, *arguments)


def problem_response(status: int, detail: str, **more: Any) -> Response:
    """An error answer of our own, not to be cached."""
    return Response(
        problem(status, detail, **more),
        status,
        {"cache-control": "no-store"},
        media_type=PROBLEM_JSON,
    )


def fault(error: OnequotaError) -> Response:
    """The answer when nobody could be charged: 503 without a store, else what the error says."""
    if isinstance(error, (IdentityUnavailable, StoreUnavailable)):  # logged where it is known why, not once a request
        return _away()
    if not isinstance(error, InvalidInput):
        raise error
    extra = {"errors": [{"field": error.field, "reason": error.reason}]}
    response = problem_response(error.status, str(error), extra=extra)
    if isinstance(error, Unauthenticated):
        response.headers["www-authenticate"] = error.challenge
    return response


def _away() -> Response:
    response = problem_response(
        503, "Rate limits cannot be checked at the moment; try again shortly", type_=REDUCED_CAPACITY
    )
    response.headers["retry-after"] = "1"
    return response


async def deny(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer instead of the application's; a WebSocket that cannot carry one is closed with 1008."""
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await send(
            {
                "type": "websocket.http.response.start",
                "status": response.status_code,
                "headers": response.raw_headers,
            }
        )
        await send({"type": "websocket.http.response.body", "body": response.body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": "rate limit"})

"""The gate: a pure ASGI middleware that charges a request before the application sees it.

It walks the way and decides nothing itself: match → plan → admit → application, with headers on the first message.
A refusal leaves here, before the body is read, before validation and dependencies.

Body: the user's functions (key, cost, limits, exempt_when) may await it; what they read is kept, up to
`Limiter(body_cap_bytes=)`, and handed to the application again. CORS: preflights are not charged, refusals
carry the headers of the app's CORSMiddleware, wherever it stands, and it exposes ours.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ConfigurationError, IdentityUnavailable, InvalidInput, OnequotaError, StoreUnavailable
from service.limits.held import Held
from service.limits.match import METHODS, Place, Table
from service.limits.passage import (
    ADMITTED,
    admit,
    answer_of,
    deduct,
    deny,
    fault,
    forbidden,
    problem_response,
    refusal,
    with_headers,
)
from service.limits.plan import Plan

if TYPE_CHECKING:
    from service.limits.limiter import Limiter


class Gate:
    """The middleware. `app.add_middleware(limiter.middleware)`, or by slowapi's names without the limiter.

    Args:
        app: The application behind it.
        limiter: Whose limits; None takes `app.state.limiter` when a request comes.
    """

    def __init__(self, app: ASGIApp, limiter: "Limiter | None" = None) -> None:
        self.app = app
        self._limiter = limiter
        self._table: Table | None = None
        self._size = -1
        self._plans: dict[tuple[Place | None, str], Plan | None] = {}
        self._straight: dict[tuple[str, str], Plan | None] = {}  # by method and path, where no parameter decides
        self._inner_cors: CORSMiddleware | None = None
        self._behind: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            if kind == "lifespan":
                await self._start(scope, receive, send)
            await self.app(scope, receive, send)
            return
        limiter = self._limiter or _limiter_of(scope.get("app", self.app))
        plan = None
        if limiter.checks and limiter not in scope.get(ADMITTED, ()) and not limiter.filtered():
            plan = self._plan(scope, limiter)
            if plan is None and limiter.access is not None and limiter.access.listed(scope) is False:
                await self._answer(await forbidden(scope), scope, receive, send)  # where there is a plan, `admit` looks
                return
        if plan is None:
            await self.app(scope, receive, send)
            return
        if plan.reads and kind == "http":
            receive = _Replay(receive, limiter.body_cap_bytes)
        try:
            admission = await admit(limiter, plan, scope, receive)
        except (StoreUnavailable, IdentityUnavailable, InvalidInput) as error:
            await self._answer(fault(error), scope, receive, send)
            return
        except ClientDisconnect:  # hung up while a function read the body
            return
        except HTTPException as error:
            await self._answer(await answer_of(error, scope), scope, receive, send)
            return
        except BodyTooLargeError as error:
            await self._answer(problem_response(413, str(error)), scope, receive, send)
            return
        if isinstance(receive, _Replay):
            receive.rewind()
        if admission.refused:
            await self._answer(await refusal(limiter, admission, scope), scope, receive, send)
            return
        send, held = with_headers(limiter, admission, send), None
        if admission.lease is not None:
            held = Held(limiter.engine, admission.charges, admission.lease)
            send = held.until_sent(send)
        try:
            await self.app(scope, receive, send)
        except Exception:
            # the server's 500 is answered outside of this middleware
            await deduct(limiter, admission, problem_response(500, "unhandled exception"))
            raise
        except asyncio.CancelledError:  # by a deadline, whose 504 is answered outside too
            if not admission.settled:
                giving_back = asyncio.ensure_future(deduct(limiter, admission, problem_response(504, "cancelled")))
                self._behind.add(giving_back)
                giving_back.add_done_callback(self._behind.discard)
            raise
        finally:
            if held is not None:
                held.release()

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See that all that is declared can hold, before the app starts. Raises ConfigurationError."""
        app = scope.get("app", self.app)
        try:
            limiter = self._limiter or _limiter_of(app)
            self._build(app, limiter)
        except ConfigurationError as error:  # said in the protocol's words, or the server starts without us
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await limiter.look_over()

    def _plan(self, scope: Scope, limiter: "Limiter") -> Plan | None:
        app = scope.get("app", self.app)
        if self._table is None or self._size != len(app.router.routes):
            self._build(app, limiter)
        method = scope.get("method", "")
        straight = (method, scope["path"])
        if straight in self._straight and not scope.get("root_path") and scope["type"] == "http":
            return self._straight[straight]
        assert self._table is not None
        place = self._table.find(scope)
        if method == "OPTIONS" and _is_preflight(scope) and not (place and place.answers_options):
            return None
        known = method if method in METHODS else ""
        if (place, known) not in self._plans:
            self._plans[place, known] = limiter.plan_at(place, known)
        plan = self._plans[place, known]
        if self._table.is_literal(scope) and method != "OPTIONS":
            self._straight[straight] = plan
        return plan

    def _build(self, app: Any, limiter: "Limiter") -> None:
        """Flatten the routes and see that every decorator among them is in force. Raises ConfigurationError."""
        limiter.check_deployment()
        size, table = len(app.router.routes), Table(app.router.routes)
        plans: dict[tuple[Place | None, str], Plan | None] = {}
        for place in table.places:
            limiter.check_place(place)
            for method in [""] if place.kind == "websocket" else place.methods or METHODS:
                plans[place, method] = limiter.plan_at(place, method)
        self._inner_cors = next((m for m in _chain(self.app) if isinstance(m, CORSMiddleware)), None)
        for middleware in _chain(app.middleware_stack):
            if isinstance(middleware, CORSMiddleware):
                _expose(middleware, limiter.exposed)
        self._size, self._table, self._plans, self._straight = (
            size,
            table,
            {},
            {},
        )  # last: what is refused is refused every time

    async def _answer(self, response: Any, scope: Scope, receive: Receive, send: Send) -> None:
        cors = self._inner_cors
        if cors is not None and scope["type"] == "http":
            request_headers = Headers(scope=scope)
            if "origin" in request_headers:
                outer = send

                async def send(message: Message) -> None:
                    await cors.send(message, outer, request_headers)

        await deny(response, scope, receive, send)


class BodyTooLargeError(OnequotaError):
    """A key or cost function wanted a body beyond the cap."""


class _Replay:
    """`receive`, keeping what is read until `rewind`; then it is handed out again, and nothing more is kept."""

    def __init__(self, receive: Receive, cap_bytes: int) -> None:
        self._receive = receive
        self._cap_bytes = cap_bytes
        self._kept: list[Message] = []
        self._size = 0
        self._again: Iterator[Message] | None = None

    async def __call__(self) -> Message:
        if self._again is not None:
            message = next(self._again, None)
            return message if message is not None else await self._receive()
        message = await self._receive()
        self._kept.append(message)
        self._size += len(message.get("body", b""))
        if self._size > self._cap_bytes:
            raise BodyTooLargeError(f"the body is needed to count this request; at most {self._cap_bytes} bytes")
        return message

    def rewind(self) -> None:
        self._again = iter(self._kept)


def _limiter_of(app: Any) -> "Limiter":
    limiter = getattr(getattr(app, "state", None), "limiter", None)
    if limiter is None:
        raise ConfigurationError("no limiter: set app.state.limiter = limiter, or add limiter.middleware")
    return limiter  # type: ignore[no-any-return]


def _is_preflight(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def _chain(app: Any) -> Iterator[Any]:
    while app is not None:
        yield app
        app = getattr(app, "app", None)


def _expose(cors: CORSMiddleware, names: tuple[str, ...]) -> None:
    """Let scripts read our headers, beside those the app exposes itself."""
    before = cors.simple_headers.get("Access-Control-Expose-Headers", "")
    present = [name.strip() for name in before.split(",") if name.strip()]
    missing = [name for name in names if name.lower() not in {p.lower() for p in present}]
    cors.simple_headers["Access-Control-Expose-Headers"] = ", ".join(present + missing)

"""`POST /v1/asks`: the counters of a limiter elsewhere, `Limiter(storage_uri="http://…")`.

What it asks for is decided as it stands, and by nobody but the store: while that is away the answer is 503, and the
limiter decides for itself. Its counters are in a space of their own: this caller's, or that of all who share an @inline
scope; nothing of the service's own is in it. `POST /v1/asks/forget` drops counters, `POST /v1/asks/board` is
how its processes tell each other of bans.
"""

import asyncio
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from service.callers import Caller, Callers, forbidden
from service.errors import InvalidInput, StoreUnavailable
from service.limits import Limiter, asks, keys
from service.limits.decision import Decision
from service.limits.passage import fault, problem_response
from service.routes.raw import Answered, ClientLeft, body_of, check_json, check_method, json_of, say

LARGEST_BODY_BYTES = 1 << 18


@with_config(ConfigDict(strict=True, extra="forbid"))
class Forget(TypedDict):
    """Which counters to drop."""

    prefix: Annotated[str, Field(max_length=256, description="Of their keys.")]
    identity: Annotated[str | None, Field(max_length=1024, description="Whose; null = everybody's.")]


FORGET: TypeAdapter[Any] = TypeAdapter(Forget)


class Asks:
    """All three routes.

    Args:
        limiter: Whose engine decides.
        callers: Who may ask.
    """

    def __init__(self, limiter: Limiter, callers: Callers) -> None:
        self._limiter = limiter
        self._callers = callers
        self._does = {"asks": self._decide, "forget": self._forget, "board": self._board}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_method(scope, "POST")
            caller = self._callers.of(scope["headers"])
            if caller is None:
                raise Answered(await self._callers.unknown(scope))
            if caller.inline is None:
                raise Answered(forbidden(caller, None))
            check_json(next((value for name, value in scope["headers"] if name == b"content-type"), None))
            body = await body_of(receive, LARGEST_BODY_BYTES)
            said = await self._does[scope["path"].rpartition("/")[2]](body, caller)
        except Answered as other:
            await other.response(scope, receive, send)
        except InvalidInput as error:
            await fault(error)(scope, receive, send)
        except StoreUnavailable as error:
            more = {"reason": error.reason, "maybe_done": error.maybe_done}
            await problem_response(503, str(error), extra=more)(scope, receive, send)
        except ClientLeft:
            pass
        else:
            await say(send, to_json(said))

    async def _decide(self, body: bytes, caller: Caller) -> dict[str, Any]:
        try:
            found = asks.read(body, _space(caller))
        except InvalidInput:
            json_of(body)  # malformed is 400
            raise
        waiting = [self._limiter.engine.decide(ask) for ask in found]
        await asyncio.wait(waiting)
        failed = [error for one in waiting if isinstance(error := one.exception(), StoreUnavailable)]
        if failed:
            error = failed[0]
            if len(failed) < len(waiting) or any(one.maybe_done for one in failed):  # the rest of the body was decided
                error = StoreUnavailable(str(error), reason=error.reason, maybe_done=True)
            raise error
        return asks.answers(found, [_decision(one) for one in waiting])

    async def _board(self, body: bytes, caller: Caller) -> dict[str, Any]:
        try:
            look = asks.read_look(body, _space(caller))
        except InvalidInput:
            json_of(body)  # malformed is 400
            raise
        return asks.seen(*await self._limiter.engine.board(*look))

    async def _forget(self, body: bytes, caller: Caller) -> dict[str, Any]:
        try:
            wanted = FORGET.validate_python(json_of(body))
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise InvalidInput(".".join(map(str, detail["loc"])) or "body", detail["msg"]) from None
        prefix = keys.prefix_within(_space(caller), wanted["prefix"])
        return {"forgotten": await self._limiter.engine.forget(prefix, wanted["identity"])}


def _space(caller: Caller) -> str:
    return f"asks/{caller.inline}"


def _decision(done: "asyncio.Future[Decision]") -> Decision | int:
    """What the store decided, or why nothing. Raises StoreUnavailable."""
    if isinstance(error := done.exception(), InvalidInput):
        return asks.outcome(error)
    if done.result().degraded:  # there was nothing to charge, so no limit said that nobody else may decide
        raise StoreUnavailable("Redis is away", maybe_done=False)
    return done.result()

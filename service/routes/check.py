"""`POST /v1/check`: may this caller do this now? One decision, or up to 1,000 that each stand alone.

Everything in the body is validated before anything is charged; an error names its field as the caller wrote it.
"""

import asyncio
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.callers import Callers, forbidden
from service.errors import InvalidInput, InvalidLimit, StoreUnavailable
from service.limits import Limit, Limiter, keys
from service.limits.decision import CHARGE, LOOK, Ask, Charge, Decision, seconds
from service.limits.passage import fault, problem_response
from service.limits.plan import outside
from service.settings import Settings

MOST_CHECKS = 1000
MOST_CHARGES = 3000
"""Limits of all checks of one body together: what holds a worker for a tenth of a second, and others' answers up."""
LARGEST_BODY_BYTES = 1 << 20

Strict = ConfigDict(strict=True, extra="forbid")


class Check(BaseModel):
    """One question."""

    model_config = Strict

    key: Annotated[str, Field(min_length=1, max_length=1024, description="Who is charged.")]
    limits: Annotated[
        str,
        Field(max_length=1024, description="Limits in notation, all or nothing: 10/minute;200/hour"),
    ]
    algorithm: Annotated[
        Literal["fixed-window", "moving-window", "sliding-window-counter", "gcra"],
        Field(description="How they are counted."),
    ] = "fixed-window"
    cost: Annotated[int, Field(description="Units, 0 (look only) to the smallest limit.")] = 1
    burst: Annotated[int | None, Field(description="gcra: units that may pass at once.")] = None
    peek: Annotated[bool, Field(description="Look without spending.")] = False


class Checks(BaseModel):
    """Many questions."""

    model_config = Strict

    checks: Annotated[list[Check], Field(min_length=1, max_length=MOST_CHECKS)]


def router(limiter: Limiter, settings: Settings, callers: Callers) -> APIRouter:
    """The route; `settings.check_limit` guards it per caller's address."""
    routes = APIRouter(tags=["check"])

    @routes.post("/v1/check", summary="One decision, or many", response_class=Response, openapi_extra=OPENAPI)
    @limiter.limit(settings.check_limit, name="check")
    async def check(request: Request) -> Response:
        caller = callers.of(request.scope["headers"])
        if caller is None:
            return await callers.unknown(request.scope)
        if caller.inline is None:
            return forbidden(caller, None)
        try:
            asks, many = await _read(request, caller.inline)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except _UnreadableError as error:
            return problem_response(error.status, str(error))
        except InvalidInput as error:
            return fault(error)
        try:
            decisions = await asyncio.gather(*map(limiter.engine.decide, asks))
        except StoreUnavailable as error:
            return fault(error)
        answers = [answer(decision) for decision in decisions]
        return Response(to_json({"results": answers} if many else answers[0]), media_type="application/json")

    return routes


def answer(decision: Decision) -> dict[str, Any]:
    """A decision as the API tells it; times in whole seconds, rounded up."""
    return {
        "allowed": decision.allowed,
        "retry_after": decision.retry_after,
        "limits": [
            {
                "name": standing.limit.name,
                "limit": standing.limit.capacity,
                "window": standing.limit.refill_s,
                "remaining": standing.remaining,
                "reset_after": seconds(standing.reset_us),
            }
            for standing in decision.standings
        ],
    }


class _UnreadableError(Exception):
    """The body is no JSON document that could be looked into."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


async def _read(request: Request, inline: str) -> tuple[list[Ask], bool]:
    """The asks of a request, and whether it asked for many. Raises InvalidInput, _UnreadableError."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise _UnreadableError(415, f"content-type {kind}: send application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY_BYTES:
            raise _UnreadableError(413, f"the body is larger than {LARGEST_BODY_BYTES} bytes; send fewer checks")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _UnreadableError(400, f"the body is not JSON: {error}") from None
    try:
        if isinstance(document, dict) and "checks" in document:
            checks = Checks.model_validate(document).checks
            asks = [_ask(check, inline, f"checks[{index}].") for index, check in enumerate(checks)]
            charges = sum(len(ask.charges) for ask in asks)
            if charges > MOST_CHARGES:
                raise InvalidInput("checks", f"{charges} limits in all; at most {MOST_CHARGES} at once")
            return asks, True
        return [_ask(Check.model_validate(document), inline, "")], False
    except ValidationError as error:
        raise _named(error.errors(include_url=False)[0]) from None


def _ask(check: Check, inline: str, at: str) -> Ask:
    try:
        limits = _limits(check.limits, check.algorithm, check.burst)
    except InvalidLimit as error:
        field = "burst" if check.burst is not None and "burst" in str(error) else "limits"
        raise InvalidInput(at + field, str(error)) from None
    scope = outside(inline)
    return Ask(
        [
            Charge(
                limit,
                keys.spell("", check.key, scope, limit.spelling),
                limit.admits(check.cost, where=at + "cost"),
            )
            for limit in limits
        ],
        LOOK if check.peek else CHARGE,
    )


@lru_cache(maxsize=4096)
def _limits(text: str, algorithm: str, burst: int | None) -> tuple[Limit, ...]:
    return Limit.parse(text, algorithm=algorithm, burst=burst)


def _named(detail: ErrorDetails) -> InvalidInput:
    """pydantic's first complaint, with the field spelled `checks[17].cost`."""
    field = ""
    for part in detail["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    if detail["type"] == "too_long" and field == "checks":
        return InvalidInput(field, f"at most {MOST_CHECKS} at once, not {detail['ctx']['actual_length']}")
    return InvalidInput(field or "body", detail["msg"].removeprefix("Value error, "))


def _content(schema: dict[str, Any], **examples: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema, "examples": {k: {"value": v} for k, v in examples.items()}}}


_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
_ONE = {
    "allowed": True,
    "retry_after": None,
    "limits": [{"name": "10/minute", "limit": 10, "window": 60, "remaining": 9, "reset_after": 60}],
}
_REFUSED = {
    "allowed": False,
    "retry_after": 42,
    "limits": [{"name": "10/minute", "limit": 10, "window": 60, "remaining": 0, "reset_after": 42}],
}


def _schemas() -> dict[str, Any]:
    one = Check.model_json_schema()
    many = {
        "type": "object",
        "title": "Checks",
        "required": ["checks"],
        "additionalProperties": False,
        "properties": {"checks": {"type": "array", "items": one, "minItems": 1, "maxItems": MOST_CHECKS}},
    }
    return {"oneOf": [one, many]}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_NUMBER = {"type": "integer", "minimum": 0}
_ANSWER = _object(
    allowed={"type": "boolean"},
    retry_after={"type": ["integer", "null"], "minimum": 1},
    limits={
        "type": "array",
        "items": _object(
            name={"type": "string"}, limit=_NUMBER, window=_NUMBER, remaining=_NUMBER, reset_after=_NUMBER
        ),
    },
)
_ANSWERS = {"oneOf": [_ANSWER, _object(results={"type": "array", "items": _ANSWER})]}

_QUESTION = {"key": "alice", "limits": "10/minute;200/hour"}
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": _content(
            _schemas(),
            one=_QUESTION,
            weighted={"key": "alice", "limits": "100000/minute", "algorithm": "gcra", "burst": 5000, "cost": 120},
            look={**_QUESTION, "peek": True},
            many={"checks": [_QUESTION, {"key": "bob", "limits": "5/second", "cost": 2}]},
        ),
    },
    "responses": {
        "200": {
            "description": "The answer, allowed or not; for many, one result each, in order",
            "content": _content(_ANSWERS, allowed=_ONE, refused=_REFUSED, many={"results": [_ONE, _REFUSED]}),
        },
        "400": {"description": "Not JSON", **_PROBLEM},
        "413": {"description": "Body too large", **_PROBLEM},
        "415": {"description": "Not JSON by its type", **_PROBLEM},
        "422": {"description": "A value is wrong; `errors` names the field; nothing was charged", **_PROBLEM},
        "429": {"description": "This caller asks too often", **_PROBLEM},
        "503": {"description": "Redis is away; of many, some may have been charged", **_PROBLEM},
    },
}

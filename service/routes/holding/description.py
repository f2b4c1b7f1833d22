"""The routes as OpenAPI tells of them: bodies are read by hand, so FastAPI does not know them."""

from typing import Any

from service.routes.check.description import ANSWER, NUMBER, PROBLEM, content, extended
from service.routes.check.question import INLINE
from service.routes.holding.question import LEASE, SETTLEMENT

_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A body sent again with it within 24 hours is answered as the first time, and charged once",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "As it was answered",
    "schema": {"type": "string"},
}
_HELD = extended(
    ANSWER,
    id={"type": ["string", "null"], "description": "Whoever has it may settle, renew or release; null = refused"},
)
_HELD["properties"]["expires_in"] = {**NUMBER, "description": "Seconds until it ends by itself"}
_ONE = {
    "allowed": True,
    "retry_after": None,
    "limits": [{"name": "100000/minute", "limit": 100000, "window": 60, "remaining": 98800, "reset_after": 60}],
}
_TICKET = "mJ4x…"
_AMOUNT = {"key": "alice", "limits": "100000/minute", "cost": 1200}
_BY_DOMAIN = {"domain": "chat", "descriptors": [[{"key": "user", "value": "alice"}]]}


def _amounts() -> dict[str, Any]:
    inline = INLINE.json_schema()
    inline["properties"].pop("peek")
    return inline


def _reserved() -> dict[str, Any]:
    inline = _amounts()
    inline["properties"]["ttl"] = LEASE.json_schema()["properties"]["ttl"]
    return inline


def _said(
    summary: str,
    *,
    answers: dict[str, Any],
    example: dict[str, Any],
    body: dict[str, Any] | None = None,
    examples: dict[str, Any] | None = None,
    unknown: bool = False,
    once: bool = False,
) -> dict[str, Any]:
    """What FastAPI is told of a route."""
    responses: dict[int | str, Any] = {
        200: {"description": "Where the limits stand then", "content": content(answers, example=example)},
        401: {"description": "No API key, or none that is known here", **PROBLEM},
        422: {"description": "A value is wrong; `errors` names the field; nothing was changed", **PROBLEM},
        429: {"description": "This address asks too often", **PROBLEM},
        503: {"description": "Redis is away; ask again", **PROBLEM},
    }
    if body is not None:
        responses |= {
            400: {"description": "Not JSON", **PROBLEM},
            413: {"description": "Body too large", **PROBLEM},
            415: {"description": "Not JSON by its type", **PROBLEM},
        }
    if unknown:
        responses[404] = {"description": "No such id of this caller's, or it is open no longer", **PROBLEM}
        responses[409] = {"description": "It was settled before, at another cost", **PROBLEM}
    else:
        responses[403] = {"description": "This API key may not ask that", **PROBLEM}
    extra: dict[str, Any] = {"security": [{"bearer": []}, {"apiKey": []}, {}]}
    extra["parameters"] = [*([_ONCE] if once else []), *([_ID] if unknown else [])]
    if body is not None:
        extra["requestBody"] = {"required": True, "content": content(body, **(examples or {}))}
    return {"summary": summary, "responses": responses, "openapi_extra": extra}


REFUND = _said(
    "Give back what a check charged",
    answers=ANSWER,
    example=_ONE,
    body=_amounts(),
    examples={"inline": _AMOUNT, "domain": _BY_DOMAIN},
    once=True,
)
RESERVE = _said(
    "Charge an estimate now, and the true cost when it is known",
    answers=_HELD,
    example={**_ONE, "id": _TICKET, "expires_in": 600},
    body=_reserved(),
    examples={"inline": {**_AMOUNT, "ttl": 600}, "domain": {**_BY_DOMAIN, "cost": 1200}},
    once=True,
)
SETTLE = _said(
    "Make a reservation cost what is true; once, never refused",
    answers=ANSWER,
    example=_ONE,
    body=SETTLEMENT.json_schema(),
    examples={"settle": {"cost": 870}},
    unknown=True,
)
CANCEL = _said("Give all of a reservation back", answers=ANSWER, example=_ONE, unknown=True)
ACQUIRE = _said(
    "Hold a unit of concurrency",
    answers=_HELD,
    example={
        "allowed": True,
        "retry_after": None,
        "limits": [{"name": "3 at once", "limit": 3, "window": 60, "remaining": 2, "reset_after": 60}],
        "id": _TICKET,
        "expires_in": 60,
    },
    body=LEASE.json_schema(),
    examples={
        "inline": {"key": "alice", "concurrency": 3, "ttl": 60},
        "both": {"key": "alice", "concurrency": 3, "limits": "20/minute"},
        "domain": _BY_DOMAIN,
    },
    once=True,
)
RENEW = _said("Hold it for as long again", answers=_HELD, example={**_ONE, "id": _TICKET}, unknown=True)
RELEASE = _said("Release it", answers=_HELD, example={**_ONE, "id": _TICKET}, unknown=True)

"""The route in OpenAPI, by hand: no framework sees it."""

from typing import Any

from service.routes.check.question import INLINE, MOST_CHECKS


def content(schema: dict[str, Any], **examples: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema, "examples": {k: {"value": v} for k, v in examples.items()}}}


PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
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
    one = INLINE.json_schema()
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


def extended(schema: dict[str, Any], **properties: dict[str, Any]) -> dict[str, Any]:
    """An object with more members, all of them required."""
    return _object(**{name: schema["properties"][name] for name in schema["required"]}, **properties)


NUMBER = {"type": "integer", "minimum": 0}
ANSWER = _object(
    allowed={"type": "boolean"},
    retry_after={"type": ["integer", "null"], "minimum": 1},
    limits={
        "type": "array",
        "items": _object(name={"type": "string"}, limit=NUMBER, window=NUMBER, remaining=NUMBER, reset_after=NUMBER),
    },
)
ANSWER["properties"]["degraded"] = {"type": "boolean", "description": "Decided without Redis, which was away"}
_ANSWERS = {"oneOf": [ANSWER, _object(results={"type": "array", "items": ANSWER})]}

_QUESTION = {"key": "alice", "limits": "10/minute;200/hour"}
SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
OPENAPI: dict[str, Any] = {
    "tags": ["check"],
    "summary": "One decision, or many",
    "operationId": "check",
    "security": [{"bearer": []}, {"apiKey": []}, {}],
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "A body sent again with it within 24 hours is answered as the first time, and charged once",
            "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
        }
    ],
    "requestBody": {
        "required": True,
        "content": content(
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
            "content": content(_ANSWERS, allowed=_ONE, refused=_REFUSED, many={"results": [_ONE, _REFUSED]}),
        },
        "400": {"description": "Not JSON", **PROBLEM},
        "401": {"description": "No API key, or none that is known here", **PROBLEM},
        "403": {"description": "This API key may not ask that", **PROBLEM},
        "413": {"description": "Body too large", **PROBLEM},
        "415": {"description": "Not JSON by its type", **PROBLEM},
        "422": {"description": "A value is wrong; `errors` names the field; nothing was charged", **PROBLEM},
        "429": {"description": "This caller asks too often", **PROBLEM},
        "503": {"description": "Redis is away, and limits deny then; of many, some may have been charged", **PROBLEM},
    },
}


def describe(description: dict[str, Any]) -> None:
    """Add the route to an OpenAPI description."""
    description["paths"]["/v1/check"] = {"post": OPENAPI}
    description.setdefault("components", {}).setdefault("securitySchemes", {}).update(SECURITY)

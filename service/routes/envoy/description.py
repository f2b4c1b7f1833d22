"""The route in OpenAPI, by hand: no framework sees it."""

from typing import Any

from service.limits.envoy import UNITS

_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
_NULL = {"type": "null"}


def _perhaps(*kinds: dict[str, Any]) -> dict[str, Any]:
    """Of these kinds, or null, which is as good as not there in the mapping of protobuf."""
    return {"anyOf": [*kinds, _NULL]}


def _whole(most: int) -> dict[str, Any]:
    """A number, also as text."""
    digits = {"type": "string", "pattern": "^[0-9]{1,20}$"}
    return _perhaps({"type": "integer", "minimum": 0, "maximum": most}, digits)


_TEXT = _perhaps({"type": "string"})
_ENTRY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"key": _TEXT, "value": _TEXT},
}
_UNIT = {"anyOf": [{"type": "string", "enum": [*UNITS[1:]]}, {"type": "integer", "minimum": 1, "maximum": 7}]}
_OVERRIDE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["unit"],
    "properties": {"requestsPerUnit": _whole(2**32 - 1), "unit": _UNIT},
}
_DESCRIPTOR = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "entries": _perhaps({"type": "array", "items": _ENTRY}),
        "limit": _perhaps(_OVERRIDE),
        "hitsAddend": _whole(10**9),
    },
}
_REQUEST = {
    "type": "object",
    "title": "RateLimitRequest",
    "additionalProperties": False,
    "required": ["domain", "descriptors"],
    "properties": {
        "domain": {"type": "string", "minLength": 1},
        "descriptors": {"type": "array", "items": _DESCRIPTOR, "minItems": 1, "maxItems": 100},
        "hitsAddend": {**_whole(10**9), "description": "0 is 1"},
    },
}
_WHOLE = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_CODE = {"type": "string", "enum": ["OK", "OVER_LIMIT"]}
_STATUS = {
    "type": "object",
    "required": ["code"],
    "properties": {
        "code": _CODE,
        "currentLimit": {
            "type": "object",
            "properties": {
                "requestsPerUnit": _WHOLE,
                "unit": {"type": "string", "enum": [*UNITS]},
                "name": {"type": "string"},
            },
        },
        "limitRemaining": _WHOLE,
        "durationUntilReset": {"type": "string", "pattern": "^[0-9]+s$"},
    },
}
_HEADER = {"type": "object", "properties": {"key": {"type": "string"}, "value": {"type": "string"}}}
_RESPONSE = {
    "type": "object",
    "title": "RateLimitResponse",
    "required": ["overallCode", "statuses"],
    "properties": {
        "overallCode": _CODE,
        "statuses": {"type": "array", "items": _STATUS},
        "responseHeadersToAdd": {"type": "array", "items": _HEADER},
    },
}
_ANSWER: dict[str, Any] = {"content": {"application/json": {"schema": _RESPONSE}}}

OPENAPI: dict[str, Any] = {
    "tags": ["envoy"],
    "summary": "Envoy's rate-limit service as JSON",
    "operationId": "envoy_json",
    "security": [{"bearer": []}, {"apiKey": []}, {}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _REQUEST,
                "example": {"domain": "chat", "descriptors": [{"entries": [{"key": "user", "value": "alice"}]}]},
            }
        },
    },
    "responses": {
        "200": {"description": "Within the limits", **_ANSWER},
        "400": {"description": "Not JSON, or a value is wrong; nothing was charged", **_PROBLEM},
        "401": {"description": "No API key, or none that is known here", **_PROBLEM},
        "403": {"description": "This API key may not ask this domain", **_PROBLEM},
        "413": {"description": "Body too large", **_PROBLEM},
        "429": {
            "description": "Over a limit; as problem+json: too many requests without a valid API key",
            "content": {**_ANSWER["content"], **_PROBLEM["content"]},
        },
        "503": {"description": "Redis is away", **_PROBLEM},
    },
}


def describe(description: dict[str, Any]) -> None:
    """Add the route to an OpenAPI description."""
    description["paths"]["/json"] = {"post": OPENAPI}

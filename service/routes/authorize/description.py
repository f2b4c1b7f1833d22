"""The route in OpenAPI, by hand: no framework sees it."""

from typing import Any

from service.routes.authorize.values import NAMES

_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
_NAMES = "|".join(NAMES)


def _parameter(name: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


OPENAPI: dict[str, Any] = {
    "tags": ["authorize"],
    "summary": "May a gateway's client pass? Any method",
    "operationId": "authorize",
    "security": [{"bearer": []}, {"apiKey": []}, {}],
    "parameters": [
        _parameter("domain", "Which part of the catalog", required=True, type="string", minLength=1),
        _parameter(
            "descriptor",
            f"Asked in place of what the domain has rules for; of {', '.join(NAMES)}, with commas between",
            type="array",
            items={"type": "string", "pattern": f"^({_NAMES})(,({_NAMES}))*$"},
            maxItems=100,
        ),
        _parameter("refuse", "Status of a refusal; 403 for nginx", type="string", enum=["403", "429"]),
    ],
    "responses": {
        "200": {"description": "It may; RateLimit and RateLimit-Policy tell what is left"},
        "400": {"description": "With `refuse=403`: the gateway's key may not ask this domain", **_PROBLEM},
        "401": {"description": "The gateway bears no API key that is known here", **_PROBLEM},
        "403": {"description": "With `refuse=403`: as 429; else the gateway's key may not ask this domain", **_PROBLEM},
        "422": {"description": "A parameter is wrong, or headers disagree", **_PROBLEM},
        "429": {"description": "It may not; Retry-After says when it may", **_PROBLEM},
        "500": {"description": "A limit by api_key, and no secret to make digests with", **_PROBLEM},
        "503": {"description": "Redis is away", **_PROBLEM},
    },
}


def describe(description: dict[str, Any]) -> None:
    """Add the route to an OpenAPI description."""
    description["paths"]["/v1/authorize"] = {"get": OPENAPI}

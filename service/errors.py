"""What can go wrong, as one tree, and how it is told to a caller (problem+json, RFC 9457).

    OnequotaError
    ├── ConfigurationError   the deployment or the code is wrong; raised at start-up, one sentence
    │   └── InvalidLimit     a limit string, algorithm or burst that cannot be meant
    ├── InvalidInput         a caller's value is wrong; names the field; nothing was charged
    │   └── NoIdentity       a key function found nobody to charge
    └── StoreUnavailable     no answer from Redis within the deadline

A refused request is not an error: it is a `Decision` whose `allowed` is false.
"""

import json
from collections.abc import Mapping
from typing import Any

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
PROBLEM_JSON = "application/problem+json"

_TITLES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class OnequotaError(Exception):
    """The root of everything this package raises on purpose."""


class ConfigurationError(OnequotaError, ValueError):
    """The deployment or the decorated code cannot work as written; the message says what to change."""


class InvalidLimit(ConfigurationError):
    """A limit that cannot be meant: unreadable notation, unknown algorithm, number out of range."""


class InvalidInput(OnequotaError, ValueError):
    """A caller's value is wrong. Nothing was charged.

    Attributes:
        field: Where it stands, as the caller wrote it: `cost`, `checks[17].key`.
        reason: What was wanted and what came.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NoIdentity(InvalidInput):
    """A key function returned nothing: there is nobody to charge, so the request is refused with 400."""


class StoreUnavailable(OnequotaError):
    """Redis did not answer within the deadline, or refused to. Callers are told 503, never 429 or 500."""


def problem(status: int, detail: str, *, type_: str = "about:blank", extra: Mapping[str, Any] | None = None) -> bytes:
    """The body of an error answer, RFC 9457, UTF-8 JSON. `extra` members come last."""
    body = {"type": type_, "title": _TITLES[status], "status": status, "detail": detail, **(extra or {})}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

"""What can go wrong, as one tree, and how it is told to a caller (problem+json, RFC 9457).

    OnequotaError
    ├── ConfigurationError   the deployment or the code is wrong; raised at start-up, one sentence
    │   ├── InvalidLimit     a limit string, algorithm or burst that cannot be meant
    │   └── InvalidCatalog   a catalog file: file, line and column of all that is wrong (limits/catalog)
    ├── InvalidInput         a caller's value is wrong; names the field; nothing was charged
    │   ├── NoIdentity       a key function found nobody to charge: 400
    │   │   └── Unauthenticated  nor a credential that would have told: 401
    │   ├── NotHeld          a reservation or lease that is unknown or has ended: 404
    │   └── AlreadySettled   a reservation that was settled at another cost: 409
    ├── StoreUnavailable     no answer from Redis within the deadline
    ├── ServiceUnavailable   no usable answer from the onequota service that was asked (client)
    ├── AccessDenied         that service wants another API key, or one that may ask this (client)
    ├── NotAdmitted          a block that was to hold a unit of concurrency gets none (limiter.lease)
    ├── OverLimit            whoever was to wait for a limit does not pass, or not soon enough (client)
    ├── IdentityUnavailable  who asks cannot be told now: the keys of tokens cannot be had
    └── DatabaseUnavailable  no answer from Supabase; also an HTTPException, which an app answers with 503
        └── DatabaseTimeout  it was too slow: 504

A refused request is not an error: it is a `Decision` whose `allowed` is false.
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from service.client.answer import Answer
    from service.limits.decision import Decision

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
PROBLEM_JSON = "application/problem+json"

_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
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
        status: What it is answered with over HTTP.
    """

    status: ClassVar[int] = 422

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NoIdentity(InvalidInput):
    """A key function returned nothing: there is nobody to charge, so the request is refused with 400."""

    status = 400


class Unauthenticated(NoIdentity):
    """There is no credential to charge, or none that holds: 401.

    Attributes:
        challenge: What the answer's `WWW-Authenticate` says.
    """

    status = 401

    def __init__(self, field: str, reason: str, challenge: str) -> None:
        super().__init__(field, reason)
        self.challenge = challenge


class NotHeld(InvalidInput):
    """There is no such reservation or lease, or none any more: unknown, refused, released, or expired."""

    status = 404


class AlreadySettled(InvalidInput):
    """A reservation was settled before, at another cost; that holds."""

    status = 409


class IdentityUnavailable(OnequotaError):
    """Who asks cannot be told at the moment, so nobody can be charged. Callers are told 503."""


class StoreUnavailable(OnequotaError):
    """Redis did not answer within the deadline, or refused to. Callers are told 503, never 429 or 500.

    Attributes:
        reason: Why, in a word, for logs; see `limits/stores/faults.py`.
        maybe_done: What was asked had been sent, and may have been carried out.
    """

    def __init__(self, message: str, *, reason: str = "timeout", maybe_done: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.maybe_done = maybe_done

    def once_more(self) -> "StoreUnavailable":
        """The same for one more waiter: an exception carries a traceback."""
        return StoreUnavailable(str(self), reason=self.reason, maybe_done=self.maybe_done)


class ServiceUnavailable(OnequotaError):
    """The service did not answer within the deadline, or not usably. Whether a charge was made may not be known.

    Attributes:
        retry_after_s: When it wants to be asked again, seconds; None = it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AccessDenied(OnequotaError):
    """The service refuses the API key, or what was asked with it. Nothing was charged."""


class NotAdmitted(OnequotaError):
    """There is no unit free to be held. Nothing was charged.

    Attributes:
        decision: `decision.retry_after` says when the first lease ends, at the latest.
    """

    def __init__(self, decision: "Decision") -> None:
        names = ", ".join(standing.limit.name for standing in decision.exceeded)
        super().__init__(f"{names}: all are held; try again in {decision.retry_after} s")
        self.decision = decision


class OverLimit(OnequotaError):
    """It does not pass, or not within the time that may be waited. Nothing was charged.

    Attributes:
        answer: The last answer: `answer.retry_after` says when to come again.
    """

    def __init__(self, message: str, answer: "Answer") -> None:
        super().__init__(message)
        self.answer = answer


class DatabaseUnavailable(OnequotaError, HTTPException):
    """Supabase cannot be reached, gives no usable answer, or is not configured.

    An HTTPException too, so that every FastAPI or Starlette app answers it without being told how, in the form of its
    other errors: 503, a sentence that names nothing internal and, where asking again cannot do a write twice,
    Retry-After. What happened in full is `str(error)`: for logs, not for callers.

    Attributes:
        maybe_done: A write was sent and its outcome is not known: it may or may not have happened.
    """

    _status: ClassVar[int] = 503

    def __init__(
        self,
        message: str,
        *,
        maybe_done: bool = False,
        detail: str = "The database does not answer at the moment; try again shortly",
        retry_after_s: float | None = 1,
    ) -> None:
        if maybe_done:
            detail = "The database did not answer: this may or may not have been carried out"
        again = self._status == 503 and not maybe_done and retry_after_s is not None
        headers = {"retry-after": str(math.ceil(retry_after_s or 0))} if again else None
        HTTPException.__init__(self, self._status, detail, headers)
        self.maybe_done = maybe_done

    __str__ = BaseException.__str__
    __repr__ = BaseException.__repr__


class DatabaseTimeout(DatabaseUnavailable):
    """Supabase was too slow: no connection, or no whole answer, within the time a call may take. Answered with 504."""

    _status = 504


def problem(status: int, detail: str, *, type_: str = "about:blank", extra: Mapping[str, Any] | None = None) -> bytes:
    """The body of an error answer, RFC 9457, UTF-8 JSON. `extra` members come last."""
    body = {"type": type_, "title": _TITLES[status], "status": status, "detail": detail, **(extra or {})}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

"""What travels between a client and the service: the one place that knows. Pure.

A call is made here, carried by `blocking.py` or `awaited.py`, and its answer read here.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from service.client.answer import Answer, Standing
from service.client.question import DomainCheck, Hold, Question
from service.errors import AccessDenied, ConfigurationError, InvalidInput, OnequotaError, ServiceUnavailable
from service.redis_url import redacted

T = TypeVar("T")

IDEMPOTENCY_KEY = "idempotency-key"

_TOO_OFTEN = 429
_AWAY = frozenset({_TOO_OFTEN, 500, 502, 503, 504})
_WRONG = frozenset({400, 404, 409, 413, 415, 422})


class Unanswered(ServiceUnavailable):
    """One attempt came to nothing.

    Attributes:
        sent: The service may have done what was asked.
        again: Another attempt may do better.
        reason: Why, in a word, for logs: timeout, connection, refused, or what the service says of its Redis.
    """

    def __init__(
        self,
        message: str,
        *,
        sent: bool,
        again: bool,
        retry_after_s: float | None = None,
        reason: str = "refused",
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.sent = sent
        self.again = again
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request to the service.

    Attributes:
        path: Where to, from the service's root.
        read: Makes the result of the answer's document.
        method: HTTP's.
        document: What is sent; None = nothing.
        headers: Beside those of every call.
        repeatable: May be sent again when it is not known whether it was done.
    """

    path: str
    read: Callable[[Any], T]
    method: str = "POST"
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False

    @property
    def body(self) -> bytes:
        return b"" if self.document is None else json.dumps(self.document, separators=(",", ":")).encode()

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.method} {self.path}"


def check(questions: Sequence[Question], idempotency_key: str | None) -> Call[list[Answer]]:
    """One decision, or many that each stand alone."""
    many = len(questions) != 1
    document = {"checks": [question.body for question in questions]} if many else questions[0].body
    return Call(
        path="/v1/check",
        read=_answers if many else lambda said: [_answer(said)],
        document=document,
        headers=_keyed(idempotency_key),
        repeatable=idempotency_key is not None or all(map(_looks, questions)),
    )


def refund(question: Question, idempotency_key: str) -> Call[Answer]:
    """Give units back."""
    return Call(
        path="/v1/refund",
        read=_answer,
        document=question.body,
        headers=_keyed(idempotency_key),
        repeatable=True,
    )


def reserve(question: Question, idempotency_key: str) -> Call[tuple[Answer, str]]:
    """Charge an estimate: the answer, and the id by which it is settled; "" where it was refused."""
    return Call(
        path="/v1/reservations",
        read=lambda said: (_answer(said), str(said.get("id") or "")),
        document=question.body,
        headers=_keyed(idempotency_key),
        repeatable=True,
    )


def settle(reservation: str, cost: int) -> Call[Answer]:
    """Make it cost what is true; once more at the same cost changes nothing."""
    path = f"/v1/reservations/{quote(reservation, safe='')}/settle"
    return Call(path=path, read=_answer, document={"cost": cost}, repeatable=True)


def release(reservation: str) -> Call[Answer]:
    """Give all of it back."""
    path = f"/v1/reservations/{quote(reservation, safe='')}"
    return Call(method="DELETE", path=path, read=_answer, repeatable=True)


def acquire(question: Hold | DomainCheck, idempotency_key: str) -> Call[tuple[Answer, str, int | None]]:
    """Hold a unit: the answer, the id of the lease, "" where it was refused, and its seconds, None = without end."""
    return Call(
        path="/v1/leases",
        read=lambda said: (_answer(said), str(said.get("id") or ""), _whole(said.get("expires_in"))),
        document=question.body,
        headers=_keyed(idempotency_key),
        repeatable=True,
    )


def renew(lease: str) -> Call[Answer]:
    """Hold it for as long again."""
    return Call(method="PUT", path=f"/v1/leases/{quote(lease, safe='')}", read=_answer, repeatable=True)


def release_lease(lease: str) -> Call[Answer]:
    """Hold it no longer. Sent again because its answer was lost, it may be told that there is no such lease."""
    return Call(method="DELETE", path=f"/v1/leases/{quote(lease, safe='')}", read=_answer, repeatable=True)


def result(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """What a call came to.

    Raises:
        InvalidInput: Something that was sent is wrong; names the field.
        AccessDenied: The API key, or what may be asked with it, is.
        Unanswered: No answer that could be used.
    """
    kind = headers.get("content-type", "").partition(";")[0]
    try:
        said = json.loads(body) if kind == "application/json" or kind.endswith("+json") else None
        if 200 <= status < 300 and (said is not None or not body):
            return call.read(said)
    except (ValueError, TypeError, KeyError, AttributeError):
        said = None
    raise _fault(call.name, status, said, headers)


def _fault(name: str, status: int, said: Any, headers: Mapping[str, str]) -> OnequotaError:
    problem = said if isinstance(said, dict) and isinstance(said.get("detail"), str) else None
    if status in _AWAY:
        detail = f"{name} was answered {status}" + (f": {problem['detail']}" if problem else "")
        after_s = _seconds(headers.get("retry-after", ""))
        more = problem or {}
        sent = status != _TOO_OFTEN and more.get("maybe_done") is not False
        reason = str(more.get("reason") or "refused")
        return Unanswered(detail, sent=sent, again=True, retry_after_s=after_s, reason=reason)
    if problem is not None and status in (401, 403):
        return AccessDenied(problem["detail"])
    if problem is not None and status in _WRONG:
        return _wrong(problem)
    words = f"what answered {name} with {status} is no onequota service, or one of another version"
    return Unanswered(words, sent=True, again=False)


def _wrong(problem: dict[str, Any]) -> InvalidInput:
    errors = problem.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    if isinstance(first, dict) and isinstance(first.get("field"), str) and isinstance(first.get("reason"), str):
        return InvalidInput(first["field"], first["reason"])
    return InvalidInput("request", problem["detail"])


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _whole(said: Any) -> int | None:
    return None if said is None else int(said)


def _keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {IDEMPOTENCY_KEY: key}


def _looks(question: Question) -> bool:
    return question.peek or question.cost == 0


def _answers(said: Any) -> list[Answer]:
    return [_answer(one) for one in said["results"]]


def _answer(said: Any) -> Answer:
    """Members that are not known are let be: a newer service may say more."""
    retry_after = said["retry_after"]
    return Answer(
        allowed=bool(said["allowed"]),
        retry_after=None if retry_after is None else math.ceil(retry_after),
        limits=tuple(map(_standing, said["limits"])),
        degraded=bool(said.get("degraded")),
    )


def _standing(said: Any) -> Standing:
    return Standing(
        name=str(said["name"]),
        limit=int(said["limit"]),
        window_s=int(said["window"]),
        remaining=int(said["remaining"]),
        reset_after_s=int(said["reset_after"]),
    )


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service is.

    Attributes:
        url: Its root, without a key in it and without a slash at the end.
        api_key: None = it wants none.
    """

    url: str
    api_key: str | None = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Of every call."""
        said = {"content-type": "application/json", "accept": "application/json, application/problem+json"}
        return said if self.api_key is None else said | {"authorization": f"Bearer {self.api_key}"}


def address(url: str, api_key: str | None = None) -> Address:
    """The address in a URL; `https://KEY@host` carries the API key.

    Raises:
        ConfigurationError: It cannot be meant; without the key.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"{redacted(url)}: wanted the service's URL, http://HOST:PORT or https://HOST")
    credentials, at, host = parts.netloc.rpartition("@")
    if at:
        api_key = api_key or unquote(credentials.partition(":")[2] or credentials.partition(":")[0])
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key and api_key):
        raise ConfigurationError("the API key holds a space or what no header may carry; take it as it was given out")
    return Address(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", api_key)

"""What a body asks: validated before anything is charged; an error names its field as the caller wrote it. Pure."""

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from service.errors import InvalidInput, InvalidLimit
from service.limits import Limit, keys
from service.limits.decision import Charge
from service.limits.plan import outside

MOST_CHECKS = 1000
MOST_CHARGES = 3000
"""Limits of all checks of one body together."""


@with_config(ConfigDict(strict=True, extra="forbid"))
class Inline(TypedDict):
    """One question with limits of its own."""

    key: Annotated[str, Field(min_length=1, max_length=1024, description="Who is charged.")]
    limits: Annotated[str, Field(max_length=1024, description="Limits in notation, all or nothing: 10/minute;200/hour")]
    algorithm: NotRequired[
        Annotated[
            Literal["fixed-window", "moving-window", "sliding-window-counter", "gcra"],
            Field(description="How they are counted."),
        ]
    ]
    cost: NotRequired[Annotated[int, Field(description="Units, 0 (look only) to the smallest limit.")]]
    burst: NotRequired[Annotated[int | None, Field(description="gcra: units that may pass at once.")]]
    peek: NotRequired[Annotated[bool, Field(description="Look without spending.")]]


INLINE = TypeAdapter(Inline)


class Question(NamedTuple):
    """One check of a body.

    Attributes:
        charges: What it wants.
        peek: It only looks.
    """

    charges: list[Charge]
    peek: bool


class _Part(NamedTuple):
    """A charge but for the key and the cost."""

    limit: Limit
    head: bytes
    tail: bytes


def members(document: Any) -> list[Any] | None:
    """The checks of a body that asks for many; None = it asks for one. Raises InvalidInput."""
    if not isinstance(document, dict) or "checks" not in document:
        return None
    checks = document["checks"]
    if not isinstance(checks, list):
        raise InvalidInput("checks", "Input should be a valid list")
    if not 1 <= len(checks) <= MOST_CHECKS:
        raise InvalidInput("checks", f"1 to {MOST_CHECKS} at once, not {len(checks)}")
    for name in document:
        if name != "checks":
            raise InvalidInput(name, "stands beside checks; write it into each of them")
    return checks


def inline(document: Any, scope: str, at: str = "") -> Question:
    """A question with limits of its own.

    Args:
        document: From the body.
        scope: In which such limits of this caller count.
        at: Where it stands in the body, `checks[17].`.

    Raises:
        InvalidInput: A value is wrong.
    """
    try:
        found = INLINE.validate_python(document)
    except ValidationError as error:
        raise _named(error.errors(include_url=False)[0], at) from None
    burst = found.get("burst")
    try:
        parts = _parts(found["limits"], found.get("algorithm", "fixed-window"), burst, scope)
    except InvalidLimit as error:
        field = "burst" if burst is not None and "burst" in str(error) else "limits"
        raise InvalidInput(at + field, str(error)) from None
    who, cost = keys.who(found["key"]), found.get("cost", 1)
    charges = []
    for limit, head, tail in parts:
        if not 0 <= cost <= limit.capacity:
            limit.admits(cost, where=at + "cost")
        charges.append(Charge(limit, head + who + tail, cost))
    return Question(charges, found.get("peek", False))


@lru_cache(maxsize=1024)
def _parts(text: str, algorithm: str, burst: int | None, scope: str) -> tuple[_Part, ...]:
    limits = Limit.parse(text, algorithm=algorithm, burst=burst)
    return tuple(_Part(limit, *keys.around("", outside(scope), limit.spelling)) for limit in limits)


def _named(detail: ErrorDetails, at: str) -> InvalidInput:
    """pydantic's first complaint, with the field spelled `checks[17].cost`."""
    field = ""
    for part in detail["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    return InvalidInput(at + field or "body", detail["msg"].removeprefix("Value error, "))

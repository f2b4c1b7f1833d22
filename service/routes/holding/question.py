"""What a body asks for: validated before anything is charged; an error names its field as the caller wrote it. Pure."""

from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from service.errors import InvalidInput, InvalidLimit
from service.limits import Limit, keys
from service.limits.catalog import Catalog
from service.limits.decision import Charge
from service.limits.limit import LARGEST_AMOUNT
from service.limits.plan import outside
from service.limits.policy import Planned
from service.limits.reservation import LONGEST_TTL_S, TTL_S, whole_ttl
from service.routes.check.question import INLINE, by_domain, inline

LEASE_TTL_S = 60

_STRICT = ConfigDict(strict=True, extra="forbid")
_Ttl = Annotated[int, Field(description="Seconds until it ends by itself, 1 to 86400.")]


@with_config(_STRICT)
class Lease(TypedDict):
    """A unit of concurrency, and what else is charged for it."""

    key: Annotated[str, Field(min_length=1, max_length=1024, description="Who holds.")]
    concurrency: Annotated[int, Field(ge=1, le=LARGEST_AMOUNT, description="At most so many at once.")]
    ttl: NotRequired[_Ttl]
    limits: NotRequired[
        Annotated[str, Field(max_length=1024, description="Limits in notation, charged with it, all or nothing.")]
    ]


@with_config(_STRICT)
class Settlement(TypedDict):
    """The true cost."""

    cost: Annotated[int, Field(ge=0, le=LARGEST_AMOUNT, description="Units that were really used.")]


LEASE: TypeAdapter[Any] = TypeAdapter(Lease)
SETTLEMENT: TypeAdapter[Any] = TypeAdapter(Settlement)


class Wanted(NamedTuple):
    """What is to be charged, given back or held.

    Attributes:
        charges: A counter once; none = nothing limits it.
        cost: Units of the request.
        ttl_s: Until it ends by itself, seconds.
        blocked_us: Above 0: a rule of the catalog lets nothing pass; so many microseconds its window lasts.
    """

    charges: tuple[Charge, ...]
    cost: int
    ttl_s: int
    blocked_us: int = 0


def amounts(document: Any, scope: str | None, catalog: Catalog, now_us: int) -> Wanted:
    """The body of a check, and how long it may be settled (`ttl`).

    Args:
        document: From the body.
        scope: In which limits that it brings along count; None = it asks about the catalog's.
        catalog: The one in force.
        now_us: Which period of the calendar it is, microseconds since the epoch.

    Raises:
        InvalidInput: A value is wrong.
    """
    document = dict(document) if isinstance(document, dict) else document
    ttl_s, blocked_us = document.pop("ttl", TTL_S) if isinstance(document, dict) else TTL_S, 0
    if isinstance(document, dict) and "peek" in document:
        raise InvalidInput("peek", "does not go with this: ask POST /v1/check")
    if scope is None:
        question = by_domain(document, catalog, now_us)
        assert question.planned is not None
        charges = _plain(question.planned)
        blocked_us = max(0 if part.shadow else part.hopeless_us for part in question.planned.parts)
    else:
        question = inline(document, scope)
        assert question.ask is not None
        charges = tuple(question.ask.charges)
    cost = document.get("cost", 1)
    if cost < 1:
        raise InvalidInput("cost", f"{cost} is out of range; use a whole number of at least 1")
    return Wanted(charges, cost, _ttl(ttl_s), blocked_us)


def _plain(planned: Planned) -> tuple[Charge, ...]:
    """The charges of rules that all have to pass. Raises InvalidInput where there are others."""
    for part in planned.parts:
        if part.quota:
            raise InvalidInput("descriptors", "a rule with quota_mode is one of several ways; ask POST /v1/check")
    for charge in planned.charges:
        charge.limit.admits(charge.cost)  # several descriptors of one counter may be more than ever passes
    return tuple(planned.charges)


def held(document: Any, scope: str | None, catalog: Catalog, now_us: int) -> Wanted:
    """A unit of concurrency: by `concurrency`, or by the catalog's rules with `algorithm: concurrency`.

    Args and Raises: As of `amounts`.
    """
    if scope is None:
        return amounts(document, None, catalog, now_us)
    found = _valid(LEASE, document)
    ttl_s = _ttl(found.get("ttl", LEASE_TTL_S))
    limits = [Limit(amount=found["concurrency"], window_s=ttl_s, algorithm="concurrency")]
    try:
        if "limits" in found:
            limits += Limit.parse(found["limits"])
    except InvalidLimit as error:
        raise InvalidInput("limits", str(error)) from None
    place = outside(scope)
    charges = tuple(Charge(limit, keys.spell("", found["key"], place, limit.spelling), 1) for limit in limits)
    return Wanted(charges, 1, ttl_s)


def settlement(document: Any) -> int:
    """The true cost in a body. Raises InvalidInput."""
    cost: int = _valid(SETTLEMENT, document)["cost"]
    return cost


def _ttl(ttl_s: object) -> int:
    try:
        return whole_ttl(ttl_s, LONGEST_TTL_S)
    except InvalidInput as error:
        raise InvalidInput("ttl", error.reason) from None


def _valid(shape: TypeAdapter[Any], document: Any) -> Any:
    try:
        return shape.validate_python(document)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise InvalidInput(".".join(map(str, detail["loc"])) or "body", detail["msg"]) from None


SHAPES = {"inline": INLINE, "lease": LEASE, "settlement": SETTLEMENT}
"""For the description of the routes."""

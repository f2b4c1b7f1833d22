"""What a body asks: validated before anything is charged; an error names its field as the caller wrote it. Pure."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from service.errors import InvalidInput, InvalidLimit
from service.limits import Limit, keys, policy
from service.limits.catalog import Catalog
from service.limits.decision import CHARGE, LOOK, Alike, Ask, Charge
from service.limits.plan import outside
from service.limits.policy import MOST_DESCRIPTORS, Planned, Wanted

MOST_CHECKS = 1000
LONGEST_KEY = 1024
MOST_CHARGES = 3000
"""Limits of all checks of one body together."""

_STRICT = ConfigDict(strict=True, extra="forbid")


@with_config(_STRICT)
class Inline(TypedDict):
    """One question with limits of its own."""

    key: Annotated[str, Field(min_length=1, max_length=LONGEST_KEY, description="Who is charged.")]
    limits: Annotated[
        str,
        Field(max_length=1024, description="Limits in notation, all or nothing: 10/minute;200/hour"),
    ]
    algorithm: NotRequired[
        Annotated[
            Literal["fixed-window", "moving-window", "sliding-window-counter", "gcra"],
            Field(description="How they are counted; fixed-window if left out."),
        ]
    ]
    cost: NotRequired[Annotated[int, Field(description="Units, 0 (look only) to the smallest limit.")]]
    burst: NotRequired[Annotated[int | None, Field(description="gcra: units that may pass at once.")]]
    peek: NotRequired[Annotated[bool, Field(description="Look without spending.")]]


@with_config(_STRICT)
class Pair(TypedDict):
    """One entry of a descriptor."""

    key: Annotated[str, Field(min_length=1, max_length=256)]
    value: Annotated[str, Field(max_length=1024)]


@with_config(_STRICT)
class ByDomain(TypedDict):
    """One question about limits of the catalog."""

    domain: Annotated[str, Field(min_length=1, max_length=256, description="Which part of the catalog.")]
    descriptors: Annotated[
        list[Annotated[list[Pair], Field(min_length=1, max_length=32)]],
        Field(
            min_length=1,
            max_length=MOST_DESCRIPTORS,
            description="What is asked about, all or nothing; of each, entries in the catalog's order.",
        ),
    ]
    cost: NotRequired[Annotated[int, Field(description="Units, 0 (look only) to the smallest limit.")]]
    peek: NotRequired[Annotated[bool, Field(description="Look without spending.")]]


INLINE = TypeAdapter(Inline)
BY_DOMAIN = TypeAdapter(ByDomain)
_read_inline, _read_by_domain = INLINE.validator.validate_python, BY_DOMAIN.validator.validate_python


class Question(NamedTuple):
    """One check of a body.

    Attributes:
        ask: All of it, as one question to the engine; None = `planned` takes more than one, or none.
        peek: It only looks.
        charges: How many limits it is about.
        planned: What the catalog says; None = it brought limits of its own.
        known: The catalog has its domain.
    """

    ask: Ask | None
    peek: bool
    charges: int
    planned: Planned | None = None
    known: bool = True


class Run:
    """Questions one after the other that are alike but for their key: limits of their own, one of them each.

    Attributes:
        names: The counter of each.
    """

    def __init__(self, document: dict[str, Any], question: Question, scope: str) -> None:
        """`document` and `question` are the first of them. Raises ValueError if it has no single limit."""
        assert question.ask is not None
        [self._charge] = question.ask.charges
        self._kind = question.ask.kind
        get = document.get
        [(_, self._head, self._tail)] = _parts(get("limits", ""), get("algorithm", "fixed-window"), get("burst"), scope)
        self._pattern = {name: value for name, value in document.items() if name != "key"}
        self._odd = [(name, type(value)) for name, value in self._pattern.items() if type(value) is not str]
        self.names = [self._charge.key]

    @property
    def charges(self) -> int:
        """As in `Question`."""
        return len(self.names)

    def takes(self, document: Any) -> bool:
        """Add a question, if it is another one of them; else it is for `inline` to judge."""
        if type(document) is not dict:
            return False
        key = document.get("key")
        if type(key) is not str or not 0 < len(key) <= LONGEST_KEY:
            return False
        del document["key"]
        # True and 1.0 equal 1, and are not the same here.
        if document != self._pattern or any(type(document[name]) is not kind for name, kind in self._odd):
            document["key"] = key
            return False
        self.names.append(self._head + keys.who(key) + self._tail)
        return True

    def pieces(self, most: int) -> Iterator[Alike]:
        """What is to be asked, so many requests in each."""
        limit, _, cost = self._charge
        for start in range(0, len(self.names), most):
            yield Alike(limit, self.names[start : start + most], cost, self._kind)


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


def domain_of(document: Any) -> str | None:
    """Which domain a question is about, "" if it does not say; None = it brings limits of its own."""
    if not isinstance(document, dict) or not ("domain" in document or "descriptors" in document):
        return None
    domain = document.get("domain")
    return domain if isinstance(domain, str) else ""


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
        found: Inline = _read_inline(document)
    except ValidationError as error:
        raise _named(error, at) from None
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
    peek = found.get("peek", False)
    return Question(Ask(charges, LOOK if peek else CHARGE), peek, len(charges))


@lru_cache(maxsize=1024)
def _parts(text: str, algorithm: str, burst: int | None, scope: str) -> tuple[_Part, ...]:
    limits = Limit.parse(text, algorithm=algorithm, burst=burst)
    return tuple(_Part(limit, *keys.around("", outside(scope), limit.spelling)) for limit in limits)


def by_domain(document: Any, catalog: Catalog, now_us: int, at: str = "") -> Question:
    """A question about limits of the catalog.

    Args:
        document: From the body.
        catalog: The one in force.
        now_us: Which period of the calendar it is, microseconds since the epoch.
        at: Where it stands in the body, `checks[17].`.

    Raises:
        InvalidInput: A value is wrong.
    """
    try:
        found: ByDomain = _read_by_domain(document)
    except ValidationError as error:
        raise _named(error, at) from None
    wanted = [Wanted(tuple([(pair["key"], pair["value"]) for pair in pairs])) for pairs in found["descriptors"]]
    domain, peek = found["domain"], found.get("peek", False)
    try:
        planned = policy.plan(catalog, domain, wanted, now_us=now_us, cost=found.get("cost", 1))
    except InvalidInput as error:
        raise InvalidInput(at + error.field, error.reason) from None
    ask = planned.ask
    if ask is not None and peek:
        ask = Ask(ask.charges, LOOK)
    charges = sum(len(part.charges) for part in planned.parts)
    return Question(ask, peek, charges, planned, domain in catalog.domains)


def _named(error: ValidationError, at: str) -> InvalidInput:
    """pydantic's first complaint, with the field spelled `checks[17].cost`."""
    detail: ErrorDetails = error.errors(include_url=False)[0]
    field = ""
    for part in detail["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    return InvalidInput(at + field if field else at.removesuffix(".") or "body", detail["msg"])

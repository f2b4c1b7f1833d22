"""Asks as they travel to a service that keeps the counters of another process, and its answers. Pure.

    {"asks": [{"kind": "charge", "charges": [["oq:{alice}:api.chat:10/60s/fixed", 1]]}, ...]}
    {"at_us": 1764005525000000, "answers": [[9, 60000000, 0, 60000000], ...]}

A key says all of a limit that counts (`Limit.spelling`). Beside `kind` and `charges` an ask may have `at_us`, a `token`
({"key", "fingerprint", "keep_s"}), with it `settles` ({"cost", "open_s"}), and a `lease`. An answer has the integers
that a store has for the ask.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from service.errors import InvalidInput, InvalidLimit, NotHeld, StoreUnavailable
from service.limits import keys
from service.limits.decision import (
    CHARGE,
    CLOSED,
    CONFLICT,
    DEBIT,
    DONE,
    GIVE_BACK,
    LOOK,
    RENEW,
    REPLAYED,
    Ask,
    Charge,
    Decision,
    LeaseAsk,
    SettleAsk,
    Token,
    TokenAsk,
)
from service.limits.lane import MOST_CHARGES
from service.limits.limit import LARGEST_AMOUNT, Limit

_KINDS = {"charge": CHARGE, "look": LOOK, "give_back": GIVE_BACK, "debit": DEBIT, "renew": RENEW}
_NAMES = {number: name for name, number in _KINDS.items()}
_STRICT = ConfigDict(strict=True, extra="forbid")
_LEASE = re.compile(r"(\d{1,15}) (\d{1,15}) (\d{1,15})")
_LEASE_BITS = 48
_LONGEST_KEPT_S = 30 * 86_400


@with_config(_STRICT)
class _Token(TypedDict):
    key: Annotated[str, Field(max_length=keys.LONGEST)]
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    keep_s: Annotated[int, Field(ge=1, le=_LONGEST_KEPT_S)]


@with_config(_STRICT)
class _Settles(TypedDict):
    cost: Annotated[int, Field(ge=0, le=LARGEST_AMOUNT)]
    open_s: Annotated[int, Field(ge=1, le=_LONGEST_KEPT_S)]


@with_config(_STRICT)
class _Ask(TypedDict):
    kind: Literal["charge", "look", "give_back", "debit", "renew"]
    charges: Annotated[
        list[Annotated[tuple[str, int], Field(description="A key, and units.")]], Field(max_length=MOST_CHARGES)
    ]
    at_us: NotRequired[Annotated[int, Field(ge=0, lt=1 << 53)]]
    token: NotRequired[_Token]
    settles: NotRequired[_Settles]
    lease: NotRequired[Annotated[str, Field(max_length=47)]]


@with_config(_STRICT)
class _Asks(TypedDict):
    asks: Annotated[list[_Ask], Field(min_length=1, max_length=MOST_CHARGES)]


ASKS: TypeAdapter[Any] = TypeAdapter(_Asks)


def document(asks: Sequence[Ask]) -> dict[str, Any]:
    """Asks as they travel."""
    return {"asks": [_sent(ask) for ask in asks]}


def _sent(ask: Ask) -> dict[str, Any]:
    if type(ask) not in (Ask, LeaseAsk, SettleAsk, TokenAsk):  # read as one of these it would do something else
        raise StoreUnavailable(f"{type(ask).__name__} does not travel to a service", reason="refused", maybe_done=False)
    said: dict[str, Any] = {
        "kind": _NAMES[ask.kind],
        "charges": [[charge.key.decode(), charge.cost] for charge in ask.charges],
    }
    if ask.at_us:
        said["at_us"] = ask.at_us
    if isinstance(ask, TokenAsk):
        key, fingerprint, keep_s = ask.token
        said["token"] = {"key": key.decode(), "fingerprint": fingerprint.hex(), "keep_s": keep_s}
    if isinstance(ask, SettleAsk):
        said["settles"] = {"cost": ask.settled, "open_s": ask.open_s}
    if ask.lease is not None:
        said["lease"] = ask.lease
    return said


def read(body: bytes | str, space: str) -> list[Ask]:
    """Asks that came as JSON, about counters in a space of their own; nobody but the store decides them.

    Raises:
        InvalidInput: A value is wrong: names the field, `asks[3].charges[0]`.
    """
    try:
        found = ASKS.validate_json(body)
    except ValidationError as error:
        raise _wrong(error) from None
    if sum(len(one["charges"]) for one in found["asks"]) > MOST_CHARGES:
        raise InvalidInput("asks", f"more than {MOST_CHARGES} charges at once")
    return [_read(one, space, f"asks[{index}]") for index, one in enumerate(found["asks"])]


def _read(said: Any, space: str, at: str) -> Ask:
    kind = _KINDS[said["kind"]]
    charges = [
        _charge(key, cost, kind, space, f"{at}.charges[{index}]") for index, (key, cost) in enumerate(said["charges"])
    ]
    if len({charge.key for charge in charges}) < len(charges):
        raise InvalidInput(f"{at}.charges", "a key twice")
    lease = said.get("lease")
    if lease is not None and not _is_lease(lease):
        raise InvalidInput(f"{at}.lease", "is none")
    at_us = said.get("at_us", 0)
    if "settles" in said:
        if kind not in (GIVE_BACK, DEBIT) or "token" not in said or lease is not None:
            raise InvalidInput(f"{at}.settles", "goes with give_back or debit and a token, without a lease")
        token = _token(said["token"], space, f"{at}.token")
        return SettleAsk(charges, token, kind, said["settles"]["cost"], said["settles"]["open_s"])
    if kind == RENEW and lease is None:
        raise InvalidInput(f"{at}.lease", "missing; who renews has one")
    if "token" in said:
        return TokenAsk(charges, _token(said["token"], space, f"{at}.token"), kind, at_us, lease)
    if not charges:
        raise InvalidInput(f"{at}.charges", "none; only with a token there may be none")
    return Ask(charges, kind, at_us) if lease is None else LeaseAsk(charges, lease, kind, at_us)


def _charge(key: str, cost: int, kind: int, space: str, at: str) -> Charge:
    try:
        whole, spelling = keys.within(space, key)
        limit = _limit(spelling)
    except (ValueError, InvalidLimit):
        raise InvalidInput(at, "no key of a counter") from None
    most = LARGEST_AMOUNT if kind == DEBIT else limit.capacity
    if not 0 <= cost <= most:
        raise InvalidInput(at, f"{cost} units; {most} is the most")
    return Charge(limit, whole, cost)


@with_config(_STRICT)
class _Look(TypedDict):
    board: Annotated[str, Field(max_length=keys.LONGEST)]
    after: Annotated[str, Field(pattern=r"^(-|\(\d{1,20}-\d{1,20})$")]
    message: Annotated[str, Field(max_length=8192, pattern="^([0-9a-f]{2})*$", description="Its bytes; empty = none.")]
    keep_ms: Annotated[int, Field(ge=1, le=400 * 86_400_000)]
    most: Annotated[int, Field(ge=1, le=10_000)]


LOOK_AT: TypeAdapter[Any] = TypeAdapter(_Look)

Look = tuple[bytes, bytes, bytes, int, int]
"""The arguments of `Keeper.board`."""


def look(key: bytes, after: bytes, message: bytes, keep_ms: int, most: int) -> dict[str, Any]:
    """A look at a board as it travels."""
    said = {"board": key.decode(), "after": after.decode(), "message": message.hex()}
    return {**said, "keep_ms": keep_ms, "most": most}


def read_look(body: bytes | str, space: str) -> Look:
    """A look that came as JSON, at a board in a space of its own. Raises InvalidInput."""
    try:
        said = LOOK_AT.validate_json(body)
        key = keys.board_within(space, said["board"])
    except ValidationError as error:
        raise _wrong(error) from None
    except ValueError:
        raise InvalidInput("board", "no key of a board") from None
    return key, said["after"].encode(), bytes.fromhex(said["message"]), said["keep_ms"], said["most"]


def seen(at_us: int, messages: Sequence[tuple[bytes, bytes]]) -> dict[str, Any]:
    """What stood on a board, as it travels back."""
    return {"at_us": at_us, "messages": [[id_.decode(), message.hex()] for id_, message in messages]}


def read_seen(said: Any) -> tuple[int, list[tuple[bytes, bytes]]]:
    """What came back of it. Raises ValueError, KeyError, TypeError where it is no answer."""
    return int(said["at_us"]), [(id_.encode(), bytes.fromhex(message)) for id_, message in said["messages"]]


def _wrong(error: ValidationError) -> InvalidInput:
    """pydantic's first complaint, with the field spelled `asks[3].charges[0]`."""
    detail = error.errors(include_url=False)[0]
    field = ""
    for part in detail["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    return InvalidInput(field or "body", detail["msg"])


@lru_cache(maxsize=4096)
def _limit(spelling: str) -> Limit:
    return Limit.spelt(spelling, on_outage="deny")


def _token(said: Any, space: str, at: str) -> Token:
    try:
        key, word = keys.within(space, said["key"])
        if word != "once":
            raise ValueError
    except ValueError:
        raise InvalidInput(f"{at}.key", "no key of a token") from None
    return Token(key, bytes.fromhex(said["fingerprint"]), said["keep_s"])


def _is_lease(text: str) -> bool:
    match = _LEASE.fullmatch(text)
    return match is not None and all(int(number) < 1 << _LEASE_BITS for number in match.groups())


def outcome(error: InvalidInput) -> int:
    """Why an ask was not decided, as its reply says it."""
    return CLOSED if isinstance(error, NotHeld) else CONFLICT


def answers(asks: Sequence[Ask], decisions: Sequence[Decision | int]) -> dict[str, Any]:
    """Decisions as they travel back, or what `outcome` says.

    They may have been made in several calls: `at_us` is the first one's, so that whoever gives back what was charged
    around the end of a window never gives back to the next one.
    """
    made = [found for found in decisions if not isinstance(found, int)]
    at_us = min((found.at_us for found in made if not found.replayed), default=0)
    return {"at_us": at_us, "answers": [_numbers(*pair) for pair in zip(asks, decisions, strict=True)]}


def _numbers(ask: Ask, decision: Decision | int) -> list[int]:
    if isinstance(decision, int):
        return [decision, 0, *[0] * (ask.width - 2)]
    numbers = [REPLAYED if decision.replayed else DONE, decision.at_us] if isinstance(ask, TokenAsk) else []
    for _, _, *standing in decision.standings:
        numbers += standing
    return numbers


def numbers(asks: Sequence[Ask], said: Any) -> list[int]:
    """What came back, as `Store.decide` answers it. Raises ValueError where it is no answer to these asks."""
    found = [int(said["at_us"])]
    for ask, answer in zip(asks, said["answers"], strict=True):
        if len(answer) != ask.width:
            raise ValueError("an answer of another length")
        found += map(int, answer)
    return found

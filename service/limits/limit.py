"""A limit: how many units in which window, counted how. Pure.

The notation is that of `limits` and slowapi: `10/minute`, `10 per 5 minutes`, several joined by `;`, `,` or `|`.
What cannot be meant is refused here, once, with a sentence; whatever is built can be decided exactly.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Self, get_args

import limits

from service.errors import InvalidInput, InvalidLimit
from service.limits.algorithms import KNOWN
from service.limits.algorithms.contract import Definition

PERIODS_S = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "month": 30 * 86_400,
    "year": 360 * 86_400,
}
"""Seconds a period, as the `limits` package counts them: a month is 30 days, a year twelve of those."""

OnOutage = Literal["allow", "deny", "local"]
"""What a limit answers while the store is away; see `outage.py`."""
ON_OUTAGE: tuple[OnOutage, ...] = get_args(OnOutage)

LARGEST_AMOUNT = 10**9
LONGEST_WINDOW_S = 10 * PERIODS_S["year"]
LATEST_SINCE_S = 2**33 - 1
"""In the year 2242: microseconds of 16 digits."""
MOST_LIMITS = 32
"""Limits one string may hold: they are decided in one script call, which must stay short."""

_PART = re.compile(r"(\d+)\s*(?:/|\bper\b)\s*(\d+)?\s*([A-Za-z]+)")
_SPELT = re.compile(r"(\d{1,10})/(\d{1,10})s(?:/b(\d{1,10}))?(?:(/a)|/@(\d{1,12}))?/([a-z]+)")
_SEPARATOR = re.compile(r"[;,|]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit, valid by construction.

    Attributes:
        amount: Units a window admits; 1 to 10^9.
        window_s: Length of the window, seconds; 1 to ten years. With "concurrency": how long a lease lasts unless it is
            renewed.
        algorithm: A name of `KNOWN`.
        burst: GCRA only: units that may pass at once, 1 to 10^9; None means `amount`.
        aligned: Windows begin at multiples of the window since the epoch instead of at the first hit.
        since_s: Fixed windows only: there is one window, from this second since the epoch on, a period of the calendar.
        name: What headers and answers call it; printable ASCII, by default the limit as written.
        on_outage: What is answered while the store is away; None = the engine's default. No part of the key.
        leases: It counts what is held at once ("concurrency"): an ask with a lease takes a unit.
        capacity: Units available when nothing was charged: the largest cost that can ever pass.
        refill_s: Seconds in which `capacity` comes back when all of it is gone, rounded up.
        definition: The numbers the twin decides by.
        words: The same as text, for the script.
    """

    amount: int
    window_s: int
    algorithm: str = "fixed-window"
    burst: int | None = None
    aligned: bool = False
    since_s: int | None = None
    name: str = ""
    on_outage: OnOutage | None = None
    leases: bool = field(init=False, compare=False)
    capacity: int = field(init=False, compare=False)
    refill_s: int = field(init=False, compare=False)
    definition: Definition = field(init=False, compare=False)
    words: str = field(init=False, compare=False)
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        algorithm = KNOWN.get(self.algorithm)
        leases = algorithm is not None and algorithm.leases
        for word in ("amount", "window_s", "burst", "since_s"):  # the script reads them, and nothing but whole numbers
            number = getattr(self, word)
            if type(number) is not int and not (number is None and word in ("burst", "since_s")):
                raise InvalidLimit(f"limit: {word} {number!r} is not a whole number")
        if type(self.aligned) is not bool or not isinstance(self.name, str):
            raise InvalidLimit(f"limit: aligned {self.aligned!r}, name {self.name!r}: use a bool and a string")
        text = self.name or (f"{self.amount} at once" if leases else _spell(self.amount, self.window_s))
        if not 1 <= self.amount <= LARGEST_AMOUNT:
            raise InvalidLimit(f'limit "{text}": {self.amount} units; use 1 to {LARGEST_AMOUNT}')
        if not 1 <= self.window_s <= LONGEST_WINDOW_S:
            raise InvalidLimit(f'limit "{text}": a window of {self.window_s} s; use 1 s to 10 years')
        if not (text.isascii() and text.isprintable()) or len(text) > 128:
            raise InvalidLimit(f"limit name {text!r}: use up to 128 printable ASCII characters")
        if algorithm is None:
            raise InvalidLimit(f'unknown algorithm "{self.algorithm}"; use {", ".join(KNOWN)}')
        if self.burst is not None and self.algorithm != "gcra":
            raise InvalidLimit(f'limit "{text}": burst goes with gcra, not with {self.algorithm}')
        if self.on_outage is not None:
            outage_policy(self.on_outage)
        capacity = self.amount if self.burst is None else self.burst
        if not 1 <= capacity <= LARGEST_AMOUNT:
            raise InvalidLimit(f'limit "{text}": a burst of {capacity}; use 1 to {LARGEST_AMOUNT}')
        if self.since_s is not None and (
            algorithm.since is None or self.aligned or not 0 <= self.since_s <= LATEST_SINCE_S
        ):
            raise InvalidLimit(
                f'limit "{text}": since_s goes with fixed-window, unaligned, and is 0 to {LATEST_SINCE_S}'
            )
        definition = algorithm.define(
            amount=self.amount,
            window_us=self.window_s * 1_000_000,
            burst=capacity,
            aligned=self.aligned,
            since_us=None if self.since_s is None else self.since_s * 1_000_000,
        )
        if definition is None:
            raise InvalidLimit(f'limit "{text}": {self.algorithm} cannot count it exactly: {algorithm.range}')
        object.__setattr__(self, "name", text)
        object.__setattr__(self, "leases", leases)
        object.__setattr__(self, "capacity", capacity)
        object.__setattr__(self, "refill_s", -(-self.window_s * capacity // self.amount))
        object.__setattr__(self, "definition", definition)
        object.__setattr__(self, "words", " ".join(map(str, definition)))
        compared = (self.amount, self.window_s, self.algorithm, self.burst, self.aligned, self.since_s, text)
        object.__setattr__(self, "_hash", hash(compared))

    def __hash__(self) -> int:  # limits are looked up on every request: hash once
        return self._hash

    def admits(self, cost: object, *, where: str = "cost") -> int:
        """`cost` as the integer it is: 0 (look only) to `capacity`. Raises InvalidInput naming `where`.

        Where units are held it is at most 1: a request is one, whatever it costs elsewhere.
        """
        if type(cost) is not int:
            raise InvalidInput(where, f"{cost!r} is not a whole number; use 0 to {self.capacity}")
        if self.leases:
            cost = min(cost, 1)
        if not 0 <= cost <= self.capacity:
            raise InvalidInput(where, f"{cost} is out of range; {self.name} takes 0 to {self.capacity}")
        return cost

    @property
    def spelling(self) -> str:
        """All that makes two limits count differently, as a key's last part: `10/60s`, `10/60s/b5/gcra`."""
        burst = "" if self.burst is None or self.burst == self.amount else f"/b{self.burst}"
        aligned = "/a" if self.aligned else "" if self.since_s is None else f"/@{self.since_s}"
        short = KNOWN[self.algorithm].short
        return f"{self.amount}/{self.window_s}s{burst}{aligned}/{short}"

    @classmethod
    def spelt(cls, text: str, *, on_outage: OnOutage | None = None) -> Self:
        """The limit whose `spelling` this is. Raises InvalidLimit."""
        match = _SPELT.fullmatch(text)
        algorithm = next((name for name, one in KNOWN.items() if match is not None and one.short == match[6]), None)
        if match is None or algorithm is None:
            raise InvalidLimit(f"{text[:60]!r} spells no limit")
        amount, window_s, burst, aligned, since_s, _ = match.groups()
        return cls(
            amount=int(amount),
            window_s=int(window_s),
            algorithm=algorithm,
            burst=None if burst is None else int(burst),
            aligned=aligned is not None,
            since_s=None if since_s is None else int(since_s),
            on_outage=on_outage,
        )

    @classmethod
    def parse(
        cls,
        text: object,
        *,
        algorithm: str = "fixed-window",
        burst: int | None = None,
        aligned: bool = False,
        name: str | None = None,
        on_outage: OnOutage | None = None,
    ) -> tuple[Self, ...]:
        """The limits of `text`, in order, without repetitions. Raises InvalidLimit; never returns nothing."""
        if not isinstance(text, str) or not text.strip():
            raise InvalidLimit(f'limit {text!r}: write "amount/period", for example "10/minute;200/hour"')
        parts = [part.strip() for part in _SEPARATOR.split(text)]
        if len(parts) > MOST_LIMITS:
            raise InvalidLimit(f"{len(parts)} limits in one string; use at most {MOST_LIMITS}")
        if name is not None and len(parts) > 1:
            raise InvalidLimit(f'name "{name}" names one limit, but "{text}" holds {len(parts)}')
        found: dict[tuple[int, int], Self] = {}
        for part in parts:
            amount, window_s = _read(part, text)
            if (amount, window_s) not in found:
                found[amount, window_s] = cls(
                    amount=amount,
                    window_s=window_s,
                    algorithm=algorithm,
                    burst=burst,
                    aligned=aligned,
                    name=name if name is not None else "" if algorithm == "concurrency" else part,
                    on_outage=on_outage,
                )
        return tuple(found.values())


def outage_policy(word: object) -> OnOutage:
    """The policy called so. Raises InvalidLimit."""
    for policy in ON_OUTAGE:
        if word == policy:
            return policy
    raise InvalidLimit(f"on_outage {word!r}: use {', '.join(ON_OUTAGE)}")


def quoted(name: str) -> str:
    """A structured-field string (RFC 9651)."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read(part: str, text: str) -> tuple[int, int]:
    """(amount, window in seconds) of one limit. Raises InvalidLimit quoting the part that cannot be read."""
    match = _PART.fullmatch(part) if part.isascii() else None
    if match is None:
        shown = part if part == text else f'{part}" in "{text}'
        raise InvalidLimit(f'limit "{shown}": write "amount/period", for example "10/minute"')
    amount, multiple, word = match.groups()
    period = word.lower().removesuffix("s")
    if period not in PERIODS_S:
        raise InvalidLimit(f'limit "{part}": unknown period "{word}"; use {", ".join(PERIODS_S)}')
    if len(amount) > 10 or len(multiple or "") > 10:
        raise InvalidLimit(f'limit "{part[:40]}": number too large; use up to {LARGEST_AMOUNT} units')
    return int(amount), int(multiple or 1) * PERIODS_S[period]


def _spell(amount: int, window_s: int) -> str:
    for period, seconds in reversed(PERIODS_S.items()):
        if window_s % seconds == 0 and window_s:
            multiple = window_s // seconds
            return f"{amount}/{period}" if multiple == 1 else f"{amount}/{multiple} {period}s"
    return f"{amount}/{window_s}s"


@lru_cache(maxsize=1024)
def rate_limit_item(limit: Limit) -> limits.RateLimitItem:
    """A limit as the `limits` package writes it, for slowapi's exception and handlers."""
    period = next(name for name, seconds in reversed(PERIODS_S.items()) if limit.window_s % seconds == 0)
    kind: type[limits.RateLimitItem] = getattr(limits, f"RateLimitItemPer{period.capitalize()}")
    return kind(limit.amount, limit.window_s // PERIODS_S[period])

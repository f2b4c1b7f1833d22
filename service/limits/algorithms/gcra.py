"""GCRA, a token bucket without a refill loop (ITU-T I.371, virtual scheduling).

`amount` tokens flow in evenly over a window; `burst` (by default `amount`) may be spent at once. One timestamp a key.
Intervals are exact fractions of a microsecond, so 100000000/minute is counted like 10/minute. Exact as long as
burst x (amount / gcd(amount, window in us)) < 2^53 (`999999937/minute` is beyond, and refused) and the whole burst
flows back within 100 years. A debit takes the bucket below empty, by as much as flows in during the window or the
refill of the burst, whichever is longer: then the debt is paid off before the next token is there.
"""

from fractions import Fraction
from math import ceil, floor, gcd

from service.limits.algorithms.contract import EXACT, Algorithm, Definition

LONGEST_REFILL_US = 100 * 365 * 86_400 * 1_000_000


class Gcra:
    """The twin, in exact fractions. State: the theoretical arrival time, microseconds."""

    def __init__(self, definition: Definition, state: Fraction | None, now_us: int) -> None:
        self.interval = definition.a + Fraction(definition.b, definition.window_us)
        self.tolerance = definition.capacity * self.interval
        self.owed_us, self.countable = definition.c, (EXACT - 1) // definition.window_us
        self.now_us, self.stale = now_us, False
        self.tat = max(Fraction(now_us), state or Fraction(0))
        if self.tat > now_us + self.tolerance + self.owed_us:
            self.tat, self.stale = now_us + self.tolerance, True

    def wait(self, cost: int) -> int:
        return max(0, ceil(self.tat + cost * self.interval - self.tolerance - self.now_us))

    def charge(self, cost: int) -> None:
        self.tat += cost * self.interval

    def debit(self, cost: int) -> None:
        taken = min(cost, self.countable) * self.interval
        self.tat = min(self.tat + taken, self.now_us + self.tolerance + self.owed_us)

    def give_back(self, cost: int, at_us: int) -> bool:
        amount_us = floor(cost * self.interval) - (self.now_us - at_us)
        if amount_us <= 0 or self.tat == self.now_us:
            return False
        self.tat = max(Fraction(self.now_us), self.tat - amount_us)
        return True

    def show(self) -> tuple[int, int]:
        debt = self.tat - self.now_us
        return max(0, floor((self.tolerance - debt) / self.interval)), ceil(debt)

    def state(self) -> Fraction:
        return self.tat

    def until_us(self) -> int:
        return ceil(self.tat)


def _numbers(amount: int, window_us: int, burst: int, _aligned: bool) -> tuple[int, int, int, int, int] | None:
    owed_us = max(window_us, -(-window_us * burst // amount))
    common = gcd(amount, window_us)
    amount, window_us = amount // common, window_us // common
    if burst * amount >= EXACT or burst * window_us > amount * LONGEST_REFILL_US:
        return None
    return burst, amount, window_us // amount, window_us % amount, owed_us


GCRA = Algorithm(
    name="gcra",
    short="gcra",
    lua="gcra.lua",
    range="burst x amount / gcd(amount, window in us) must stay below 2^53 and the burst refill within 100 years",
    numbers=_numbers,
    twin=Gcra,
)

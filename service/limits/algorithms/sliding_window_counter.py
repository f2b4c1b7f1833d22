"""Sliding window counter: this window's units plus the share of the last window's that is still in view.

The usual approximation of a moving window in constant space (as in `limits` and at Cloudflare): the window before
is taken as evenly spread. Here the share is a fraction of whole ticks. A tick is 1 us as long as limit x window
stays below 2^53 us (10^9 units in 2.5 hours; 10^6 in 104 days); beyond, ticks are as long as that bound asks,
and the share is rounded up, against the caller. Every limit up to 10^9 is thereby counted. What a debit owes is
counted up to the same bound (10/minute: 150 million units; 10^9/2.5 hours: none) and gone after two windows.
"""

from fractions import Fraction

from service.limits.algorithms.contract import EXACT, Algorithm, Definition


class SlidingWindowCounter:
    """The twin. State: (start_us of this window, its units, units of the one before)."""

    def __init__(self, definition: Definition, state: tuple[int, int, int] | None, now_us: int) -> None:
        self.capacity, self.window_us = definition.capacity, definition.window_us
        self.tick_us, self.ticks = definition.a, definition.b
        self.now_us, self.stale = now_us, False
        fresh = now_us - now_us % self.window_us if definition.c else now_us
        start_us, cur, prev = state or (fresh, 0, 0)
        if start_us > now_us:
            start_us, self.stale = fresh, True
        self.start_us, self.cur, self.prev = self._at(now_us, start_us, cur, prev)
        if self.cur == self.prev == 0:
            self.start_us = fresh

    def _at(self, now_us: int, start_us: int, cur: int, prev: int) -> tuple[int, int, int]:
        """The two windows as they are at `now_us` if nobody charges in between."""
        while start_us + self.window_us <= now_us and (cur or prev):
            start_us, cur, prev = start_us + self.window_us, 0, cur
        return start_us, cur, prev

    def _used(self, at_us: int) -> Fraction:
        start_us, cur, prev = self._at(at_us, self.start_us, self.cur, self.prev)
        if not prev:
            return Fraction(cur)
        return cur + Fraction(prev * (self.ticks - (at_us - start_us) // self.tick_us), self.ticks)

    def wait(self, cost: int) -> int:
        if self._used(self.now_us) + cost <= self.capacity:
            return 0
        low, high = self.now_us, self.start_us + 2 * self.window_us
        while high - low > 1:  # what is used only falls: find the first instant that has room
            middle = (low + high) // 2
            if self._used(middle) + cost <= self.capacity:
                high = middle
            else:
                low = middle
        return high - self.now_us

    def charge(self, cost: int) -> None:
        self.cur += cost

    def debit(self, cost: int) -> None:
        self.cur = min(self.cur + cost, (EXACT - 1) // self.ticks)

    def give_back(self, cost: int, at_us: int) -> bool:
        if at_us >= self.start_us and self.cur:
            self.cur = max(0, self.cur - cost)
        elif self.start_us - self.window_us <= at_us < self.start_us and self.prev:
            self.prev = max(0, self.prev - cost)
        else:
            return False
        return True

    def show(self) -> tuple[int, int]:
        windows = 2 if self.cur else 1 if self.prev else 0
        reset_us = self.start_us + windows * self.window_us - self.now_us if windows else 0
        return max(0, (self.capacity - self._used(self.now_us)).__floor__()), reset_us

    def state(self) -> tuple[int, int, int]:
        return self.start_us, self.cur, self.prev

    def until_us(self) -> int:
        return self.start_us + (2 if self.cur else 1) * self.window_us


def _numbers(amount: int, window_us: int, _burst: int, aligned: bool) -> tuple[int, int, int, int, int]:
    tick_us = 1
    while amount * -(-window_us // tick_us) >= EXACT:
        tick_us = max(tick_us + 1, -(-amount * window_us // (EXACT - 1)))
    return amount, window_us, tick_us, -(-window_us // tick_us), int(aligned)


SLIDING_WINDOW_COUNTER = Algorithm(
    name="sliding-window-counter",
    short="sliding",
    lua="sliding_window_counter.lua",
    range="any limit up to 10^9",
    numbers=_numbers,
    twin=SlidingWindowCounter,
)

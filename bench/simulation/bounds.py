"""What each algorithm promises, said without it: how much may have passed, from a plain log of what did.

Time is what the server's clock went forward. Each bound is told of every unit that passed, and says what is too much.
"""

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

from service.limits.limit import Limit


class Bound(Protocol):
    """Of one counter."""

    def passed(self, at_us: int, cost: int) -> str | None:
        """Units passed at this instant, not before the last; what of the promise is broken now, None = nothing."""


class Moving:
    """No interval shorter than a window holds more than `times` the limit."""

    def __init__(self, limit: Limit, times: int = 1) -> None:
        self.window_us, self.most = limit.window_s * 1_000_000, times * limit.capacity
        self._log: deque[tuple[int, int]] = deque()
        self._units = 0

    def passed(self, at_us: int, cost: int) -> str | None:
        while self._log and self._log[0][0] <= at_us - self.window_us:
            self._units -= self._log.popleft()[1]
        self._log.append((at_us, cost))
        self._units += cost
        if self._units > self.most:
            return f"{self._units} units in less than a window, at most {self.most} may pass"
        return None


class Fixed:
    """From a first hit on, no window holds more than the limit; and no interval as long more than twice as much."""

    def __init__(self, limit: Limit) -> None:
        self.window_us, self.most = limit.window_s * 1_000_000, limit.capacity
        self._any = Moving(limit, 2)
        self._start_us: int | None = None
        self._units = 0

    def passed(self, at_us: int, cost: int) -> str | None:
        if self._start_us is None or at_us >= self._start_us + self.window_us:
            self._start_us, self._units = at_us, 0
        self._units += cost
        if self._units > self.most:
            return f"{self._units} units in the window from {self._start_us} on, at most {self.most} may pass"
        return self._any.passed(at_us, cost)


class Bucket:
    """Tokens flow in evenly, up to the burst; none is spent that is not there."""

    def __init__(self, limit: Limit) -> None:
        self.per_us, self.most = Fraction(limit.amount, limit.window_s * 1_000_000), limit.capacity
        self._level = Fraction(limit.capacity)
        self._at_us = 0

    def passed(self, at_us: int, cost: int) -> str | None:
        self._level = min(Fraction(self.most), self._level + (at_us - self._at_us) * self.per_us) - cost
        self._at_us = at_us
        return f"{cost} units passed with {float(self._level + cost)} tokens there" if self._level < 0 else None


BOUNDS: dict[str, Callable[[Limit], Bound]] = {
    "fixed-window": Fixed,
    "moving-window": Moving,
    "sliding-window-counter": lambda limit: Moving(limit, 2),
    "gcra": Bucket,
}
"""Where a window can be known to begin with the first hit."""

ANY_WINDOW: dict[str, Callable[[Limit], Bound]] = {**BOUNDS, "fixed-window": lambda limit: Moving(limit, 2)}
"""Wherever windows begin: a clock that was set back moves that, and so does a restart with old data."""

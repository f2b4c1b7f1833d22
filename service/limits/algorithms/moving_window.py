"""Moving window: a unit leaves exactly one window after it was admitted; no boundary, no approximation.

Limits of up to 1,024 units are logged to the microsecond. Above that, stamps are rounded up to a grid of
window/1,024, against the caller: a unit may leave that much late, never early, and a counter never holds more than
1,025 entries (about 40 kB). Every limit up to 10^9 is thereby counted. Units that a debit takes beyond the limit leave
as all others do, on that grid for any limit: up to 1,025 entries more.
"""

from service.limits.algorithms.contract import Algorithm, Definition

ENTRIES = 1024


class MovingWindow:
    """The twin: a plain log. State: ((stamp_us, units), ...), oldest first."""

    def __init__(self, definition: Definition, state: tuple[tuple[int, int], ...] | None, now_us: int) -> None:
        self.capacity, self.window_us, self.grid_us = definition.capacity, definition.window_us, definition.a
        self.now_us, self.stale = now_us, False
        log = list(state or ())
        if log and log[-1][0] > self._stamp(now_us) + self.window_us:
            log, self.stale = [(self._stamp(now_us), units) for _, units in log], True
        self.log = [(stamp_us, units) for stamp_us, units in log if stamp_us + self.window_us > now_us]

    def _stamp(self, at_us: int) -> int:
        return _up(at_us, self.grid_us)

    def _used(self) -> int:
        return sum(units for _, units in self.log)

    def wait(self, cost: int) -> int:
        excess = self._used() + cost - self.capacity
        for stamp_us, units in self.log:
            if excess <= 0:
                break
            excess -= units
            if excess <= 0:
                return stamp_us + self.window_us - self.now_us
        return 0

    def charge(self, cost: int) -> None:
        newest_us = self.log[-1][0] if self.log else 0
        self.log.append((max(newest_us, self._stamp(self.now_us)), cost))

    def debit(self, cost: int) -> None:
        newest_us = self.log[-1][0] if self.log else 0
        beyond = self._used() + cost > self.capacity
        stamp_us = _up(self.now_us, -(-self.window_us // ENTRIES)) if beyond else self._stamp(self.now_us)
        self.log.append((max(newest_us, stamp_us), cost))

    def give_back(self, cost: int, at_us: int) -> bool:
        if not self.log or self._stamp(at_us) + self.window_us <= self.now_us:
            return False
        left = []
        for stamp_us, units in self.log:
            taken = min(cost, units)
            cost -= taken
            left.append((stamp_us, units - taken))
        self.log = [entry for entry in left if entry[1]]
        return True

    def show(self) -> tuple[int, int]:
        used = self._used()
        reset_us = self.log[-1][0] + self.window_us - self.now_us if used else 0
        return max(0, self.capacity - used), reset_us

    def state(self) -> tuple[tuple[int, int], ...]:
        merged: dict[int, int] = {}
        for stamp_us, units in self.log:
            merged[stamp_us] = merged.get(stamp_us, 0) + units
        return tuple(merged.items())

    def until_us(self) -> int:
        return self.log[-1][0] + self.window_us if self.log else 0


def _up(at_us: int, step_us: int) -> int:
    """The next multiple of the step."""
    return -(-at_us // step_us) * step_us


def _numbers(amount: int, window_us: int, _burst: int, _aligned: bool) -> tuple[int, int, int, int, int]:
    return amount, window_us, 1 if amount <= ENTRIES else -(-window_us // ENTRIES), 0, 0


MOVING_WINDOW = Algorithm(
    name="moving-window",
    short="moving",
    lua="moving_window.lua",
    range="any limit up to 10^9",
    numbers=_numbers,
    twin=MovingWindow,
)

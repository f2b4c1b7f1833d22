"""Fixed window: `capacity` units from the first hit (or the aligned start) until the window ends.

Exact for every limit of 1 to 10^9 units and every window. Only what was admitted counts. As with any fixed
window, twice the limit can pass around a boundary; the other algorithms exist for whom that matters.
What a debit owes is forgotten when the window ends.

A limit with `since_s` has one window, which begins there: a period of the calendar. Which period it is says the
worker's clock, so whoever asks for a period early, or up to a second late, counts in it.
"""

from service.limits.algorithms.contract import Algorithm, Definition

LATE_US = 1_000_000
"""How late a worker's clock may be when a period of the calendar ends."""


class FixedWindow:
    """The twin. State: (start_us, used)."""

    def __init__(self, definition: Definition, state: tuple[int, int] | None, now_us: int) -> None:
        self.capacity, self.window_us = definition.capacity, definition.window_us
        self.now_us, self.stale = now_us, False
        self.only, self.over = definition.c == 2, False
        if self.only:
            self.start_us = definition.a
            self.over = now_us >= self.until_us()
            self.used = state[1] if state and not self.over else 0
            return
        fresh = now_us - now_us % self.window_us if definition.c else now_us
        self.start_us, self.used = state or (fresh, 0)
        if self.start_us > now_us:
            self.start_us, self.stale = fresh, True
        if self.used == 0 or self.start_us + self.window_us <= now_us:
            self.start_us, self.used = fresh, 0

    def wait(self, cost: int) -> int:
        if self.used + cost <= self.capacity:
            return 0
        return max(1, self.start_us + self.window_us - self.now_us)

    def charge(self, cost: int) -> None:
        self.used = 0 if self.over else self.used + cost

    def debit(self, cost: int) -> None:
        self.used = 0 if self.over else self.used + cost

    def give_back(self, cost: int, at_us: int) -> bool:
        if self.used == 0 or (at_us < self.start_us and not self.only):
            return False
        self.used = max(0, self.used - cost)
        return True

    def show(self) -> tuple[int, int]:
        reset_us = max(1, self.start_us + self.window_us - self.now_us) if self.used else 0
        return max(0, self.capacity - self.used), reset_us

    def state(self) -> tuple[int, int]:
        return self.start_us, self.used

    def until_us(self) -> int:
        return self.start_us + self.window_us + (LATE_US if self.only else 0)


FIXED_WINDOW = Algorithm(
    name="fixed-window",
    short="fixed",
    lua="fixed_window.lua",
    range="any limit up to 10^9",
    numbers=lambda amount, window_us, burst, aligned: (amount, window_us, 0, 0, int(aligned)),
    since=lambda definition, since_us: definition._replace(a=since_us, c=2),
    twin=FixedWindow,
)

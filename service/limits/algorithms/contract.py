"""What an algorithm is: a Lua half that Redis runs and a Python twin that says what the Lua must answer.

A newcomer adds `x.lua` + `x.py` beside the others and one line to the registry; the parity tests find it there.
Both halves speak integers only, time is microseconds since the epoch and arrives from outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

EXACT = 2**53
"""Lua's numbers are doubles: every product the scripts form stays below this, or start-up refuses the limit."""


class Definition(NamedTuple):
    """A limit as the numbers both halves decide by; what `a`, `b` and `c` mean is the algorithm's own affair.

    Attributes:
        code: The algorithm's place in the registry, from 1, as Lua counts.
        capacity: Units available when nothing was charged.
        window_us: Window length, microseconds (GCRA: its denominator).
        a, b, c: Three more integers.
    """

    code: int
    capacity: int
    window_us: int
    a: int
    b: int
    c: int


class Twin(Protocol):
    """One counter at one instant, in plain Python: loaded, asked, perhaps charged, written back.

    `stale` is set when the clock had stepped back behind the stored state: then the mended state is written
    whatever the answer, so that nobody stays locked out until the clock catches up.
    """

    stale: bool

    def wait(self, cost: int) -> int:
        """Microseconds until `cost` could pass if nobody else charges; 0 = now. `cost` <= capacity."""

    def charge(self, cost: int) -> None:
        """Take `cost` units; the caller has seen `wait(cost) == 0`."""

    def debit(self, cost: int) -> None:
        """Take `cost` units although they may not be there: what lacks is owed, and delays who comes next.

        How much can be owed is the algorithm's own affair, and documented with it; at least nothing.
        """

    def give_back(self, cost: int, at_us: int) -> bool:
        """Undo a charge made at `at_us` as far as it still weighs; false if nothing changed.

        Never leaves more room than if the charge had not been made, unless a debit was cut because too much was owed.
        """

    def show(self) -> tuple[int, int]:
        """(units left, microseconds until the quota is whole again)."""

    def state(self) -> object:
        """What to keep, immutable; a later twin is made from it."""

    def until_us(self) -> int:
        """From this instant on the state weighs nothing and may be forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One way to count.

    Attributes:
        name: As users write it.
        short: As keys carry it.
        lua: File name of the Lua half, in this folder.
        range: The limits it counts exactly, in words, for the error when one is beyond.
        numbers: (capacity, window_us, a, b, c) of (amount, window_us, burst, aligned); None if it cannot be counted
            exactly.
        since: The definition with one window, which begins at an instant in microseconds; None if it has no such.
        twin: Makes a twin from (definition, kept state or None, now in microseconds).
        leases: It counts what is held at once, not what came in a time.
        code: Its place in the registry, which sets it.
    """

    name: str
    short: str
    lua: str
    range: str
    numbers: Callable[[int, int, int, bool], tuple[int, int, int, int, int] | None]
    twin: Callable[[Definition, Any, int], Twin]
    since: Callable[[Definition, int], Definition] | None = None
    leases: bool = False
    code: int = 0

    def define(
        self, *, amount: int, window_us: int, burst: int, aligned: bool, since_us: int | None = None
    ) -> Definition | None:
        """The definition of a limit, or None if this algorithm cannot count it exactly.

        `aligned`: windows begin at multiples of the window since the epoch; `since_us`: the only one begins there.
        """
        numbers = self.numbers(amount, window_us, burst, aligned)
        if numbers is None or (since_us is not None and self.since is None):
            return None
        definition = Definition(self.code, *numbers)
        return definition if since_us is None or self.since is None else self.since(definition, since_us)

"""What a row of the table promises, how it is measured, and what was found."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.promises import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it.

    Attributes:
        share: Of the full counts and times, above 0 to 1.
        patience: Promised times are multiplied by it: 1 on a machine of one's own, more on one that is shared.
    """

    share: float = 1.0
    patience: float = 1.0

    def of(self, full: int, *, least: int = 1) -> int:
        """So many at full size, and fewer in proportion, but not fewer than `least`."""
        return max(least, round(full * self.share))


FULL = Size()
TENTH = Size(share=0.1, patience=6)
"""What the tests run, on whatever machine: counts must hold all the same, times are stretched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one scenario found.

    Attributes:
        figure: What was counted or measured, with its numbers: "10,000 of 200,000 admitted".
        checks: The promises; at least one.
    """

    figure: str
    checks: tuple[Check, ...]

    @property
    def broken(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.held)

    def text(self) -> str:
        """A line for people, and one for each promise that did not hold."""
        return "\n".join([self.figure, *(f"BROKEN  {check.promise}, but {check.found}" for check in self.broken)])


Scenario = Callable[[Size], Finding]
"""Measures something; its docstring's first paragraph says how, and stands in docs/trust.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        key: What it is called on the command line.
        fault: What happens: a fault, bad input, an attack.
        promise: What must hold.
        scenarios: At least one.
    """

    key: str
    fault: str
    promise: str
    scenarios: tuple[Scenario, ...]


def how(scenario: Scenario) -> str:
    """What it says of itself, or the first paragraph of its docstring, on one line."""
    said = getattr(scenario, "how", None) or scenario.__doc__ or ""
    return " ".join(said.strip().partition("\n\n")[0].split())

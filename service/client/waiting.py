"""Waiting until a limit lets something through: how long, and when not to. Pure but for chance."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.client.answer import Answer
from service.client.question import Question
from service.errors import ConfigurationError, InvalidInput, OverLimit

MAX_WAIT_S = 60.0

LOOK_AGAIN_S = 1.0
"""How often a unit that others hold is asked for: it may be free at any moment, long before its lease would end."""

KeyOf = str | Callable[..., Any]
"""Who is charged: a name, or for a decorator a function of the decorated function's arguments."""


def pause_s(
    answer: Answer,
    waited_s: float,
    max_wait_s: float | None,
    *,
    wait: bool = True,
    most_s: float = float("inf"),
) -> float:
    """How long to wait after a refusal before asking again.

    A little longer than `retry_after`, at random, so that all who wait do not come at the same moment.

    Args:
        answer: A refusal.
        waited_s: Since the first question, seconds.
        max_wait_s: How long may be waited in all; None = for ever.
        wait: False = not at all.
        most_s: It may pass sooner than `retry_after` says: ask again after so long.

    Raises:
        OverLimit: It never passes, or not in time.
    """
    names = ", ".join(standing.name for standing in answer.limits if standing.remaining == 0) or "the limit"
    if answer.retry_after is None:
        raise OverLimit(f"{names} never lets this through", answer)
    left_s = float("inf") if max_wait_s is None else max_wait_s - waited_s
    after_s = min(answer.retry_after, most_s)
    if not wait or after_s > left_s:
        at_most = "" if not wait else f", and of {max_wait_s:g} s that may be waited {max(0, left_s):.1f} s are left"
        raise OverLimit(f"{names} is used up: passes in {answer.retry_after} s{at_most}", answer)
    return min(after_s + random.uniform(0, 0.25 + after_s / 10), left_s)


def waitable(max_wait_s: float | None) -> float | None:
    """How long may be waited. Raises ConfigurationError."""
    if max_wait_s is not None and not max_wait_s >= 0:
        raise ConfigurationError(f"max_wait_s {max_wait_s}: use seconds, 0 or more, or None for no end")
    return max_wait_s


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be waited for.

    Attributes:
        question: Makes the question, for a key.
        key: Whose; "" where the question needs none.
        max_wait_s: How long in all, seconds; None = for ever.
        wait: False = not at all.
    """

    question: Callable[[str], Question]
    key: KeyOf
    max_wait_s: float | None
    wait: bool

    def __post_init__(self) -> None:
        waitable(self.max_wait_s)

    def asked(self) -> Question:
        """The question, where it does not depend on arguments."""
        if callable(self.key):
            raise ConfigurationError("a key function goes with a decorator; in a with statement give the key itself")
        return self.question(self.key)

    def asked_by(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Question:
        """The question, for one call of a decorated function."""
        if not callable(self.key):
            return self.asked()
        key = self.key(*arguments, **named)
        if not isinstance(key, str) or not key:
            raise InvalidInput("key", f"for {function.__qualname__} the key function found {key!r}, not a name")
        return self.question(key)

"""Whether and when a call is sent again, and when none is sent at all. Pure but for chance; clocks are passed in."""

import random
import threading
from collections.abc import Callable
from typing import Any

import tenacity

from service.client.wire import Call, Unanswered

TROUBLES = 2
"""So many calls in a row without an answer, and the service is left alone."""
REST_S = 1.0
"""How long, before one call tries again."""


class Attempts:
    """The attempts of one call.

    Args:
        call: What is asked.
        due_s: When an answer is of no use any more, on `clock`.
        most: How often it is sent at most.
        clock: Seconds.
    """

    def __init__(self, call: Call[Any], due_s: float, most: int, clock: Callable[[], float]) -> None:
        self._call = call
        self._due_s = due_s
        self._clock = clock
        self._made = 0
        self._wait_s = 0.0
        self.rules: dict[str, Any] = {
            "retry": tenacity.retry_if_exception(self._again),
            "wait": lambda _: self._wait_s,
            "stop": tenacity.stop_after_attempt(most),
            "reraise": True,
        }

    @property
    def left_s(self) -> float:
        """Until the answer is due; never quite 0, which would mean "for ever" to a socket."""
        return max(0.001, self._due_s - self._clock())

    @property
    def over(self) -> bool:
        """Whether the deadline has come."""
        return self._clock() >= self._due_s

    def _again(self, error: BaseException) -> bool:
        self._made += 1
        if not isinstance(error, Unanswered) or not error.again or (error.sent and not self._call.repeatable):
            return False
        backoff_s = random.uniform(0, 0.025 * 2**self._made)
        self._wait_s = (error.retry_after_s or 0) + backoff_s
        return self._clock() + self._wait_s < self._due_s


class Rest:
    """Leaves a service alone that does not answer, so that nobody waits for it in vain. Safe across threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._troubles = 0
        self._until_s = 0.0
        self._lock = threading.Lock()

    def resting(self) -> bool:
        """Whether not to ask. When the rest is over one caller is told to, the others rest on until he is back."""
        if self._troubles < TROUBLES:
            return False
        with self._lock:
            if self._clock() < self._until_s:
                return True
            self._until_s = self._clock() + REST_S
            return False

    def answered(self) -> None:
        self._troubles = 0

    def failed(self) -> None:
        with self._lock:
            self._troubles += 1
            self._until_s = self._clock() + REST_S * random.uniform(0.75, 1.25)

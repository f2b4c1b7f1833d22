"""A unit that is held, as both clients know it: until when, and what it means when a renewal fails."""

import time

from service.client.answer import Answer
from service.client.away import Here
from service.errors import InvalidInput, OnequotaError
from service.limits.held import RENEWALS
from service.logs import events

log = events()


class Held:
    """What a lease is made of; `Lease` and `AsyncLease` renew and release it.

    Attributes:
        answer: To the question.
        id: For whoever renews or releases it elsewhere; "" where the service holds nothing.
        ttl_s: So long it lasts, from each renewal; None = nothing ends by itself, or nothing is held.
        here: What this process holds instead while the service is away.
        over: It was released, or lost: there is nothing to renew or to release any more.
    """

    def __init__(self, answer: Answer, began_s: float, *, id: str, ttl_s: int | None, here: Here | None) -> None:
        self.answer = answer
        self.id = id
        self.ttl_s = ttl_s
        self.here = here
        self.over = not answer.allowed
        self._until_s = 0.0
        self.prolonged(began_s)

    @property
    def allowed(self) -> bool:
        """Whether there was room; if not, nothing is held, and nothing was charged."""
        return self.answer.allowed

    @property
    def held(self) -> bool:
        """Whether it is held yet, as far as can be told here: not released, not lost, and renewed in time."""
        return not self.over and time.monotonic() < self._until_s

    @property
    def every_s(self) -> float | None:
        """How often it is renewed, seconds; None = it need not be."""
        return None if self.ttl_s is None else self.ttl_s / RENEWALS

    def prolonged(self, asked_s: float) -> None:
        """It lasts for as long again, from when that was asked for, on the monotonic clock."""
        self._until_s = float("inf") if self.ttl_s is None else asked_s + self.ttl_s

    def ended(self) -> None:
        """It is held no longer."""
        self.over = True

    def not_renewed(self, error: OnequotaError) -> None:
        """A renewal failed: another may do better as long as it lasts, unless it has ended."""
        if self.over:  # it was released meanwhile
            return
        self.over = isinstance(error, InvalidInput)
        log.warning("lease_lost" if self.over else "lease_not_renewed", error=error)


class Leased:
    """What a lease tells, blocking or awaited.

    Attributes:
        answer: To the question.
        id: For whoever renews or releases it elsewhere, `client.release_lease(id)`; "" if the service holds nothing.
    """

    def __init__(self, unit: Held) -> None:
        self._unit = unit
        self.answer = unit.answer
        self.id = unit.id

    @property
    def allowed(self) -> bool:
        """Whether a unit was free; if not, nothing is held, and nothing was charged."""
        return self._unit.allowed

    @property
    def held(self) -> bool:
        """Whether it is held yet, as far as can be told here: not released, not lost, and renewed in time."""
        return self._unit.held


def not_released(error: OnequotaError) -> None:
    """A block has ended, and its unit could not be given back: it comes back by itself."""
    log.warning("lease_not_released", error=error)

"""What the service answered. Pure, frozen values; a refusal is one of them, and no error."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one limit stands after the answer.

    Attributes:
        name: As the service calls it.
        limit: Units a full window admits.
        window_s: Length of the window, seconds.
        remaining: Units left.
        reset_after_s: Until the quota is whole again, seconds, rounded up.
    """

    name: str
    limit: int
    window_s: int
    remaining: int
    reset_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One decision.

    Attributes:
        allowed: It passes, and was charged unless it only looked; else nothing was charged.
        retry_after: Whole seconds after which a lone caller succeeds; None when allowed, and where it never passes.
        limits: One per limit, in order; empty where nothing is limited, or nobody could be asked.
        degraded: The service could not ask its Redis, or could not be asked itself: this is the answer meanwhile.
    """

    allowed: bool
    retry_after: int | None = None
    limits: tuple[Standing, ...] = ()
    degraded: bool = False

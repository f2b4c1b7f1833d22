"""What is answered while the service is away: "allow", "deny", or "local", counted here by the same limits."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from service.client.answer import Answer, Standing
from service.client.question import DomainCheck, Hold, Question
from service.errors import ConfigurationError, InvalidInput, InvalidLimit, NotHeld, ServiceUnavailable
from service.limits import keys
from service.limits.decision import CHARGE, GIVE_BACK, LOOK, RENEW, Ask, Charge, LeaseAsk, read, seconds
from service.limits.held import fresh
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore, wall_clock_us

WhenAway = Literal["local", "allow", "deny", "raise"]

MOST_LEARNT = 4096
"""Questions by domain whose limits are remembered."""


class Here(NamedTuple):
    """A unit that is held in this process."""

    question: Hold
    lease: str


class Away:
    """Answers in the service's stead. Safe across threads.

    Limits that are brought along are counted here, from nothing: for as long as the service is away each process
    admits as much again. A domain's limits are those that the service named last, for the same descriptors, counted in
    fixed windows; what was never asked before is allowed. With `processes` each process admits its share.

    Args:
        when_away: What is answered.
        processes: How many processes ask for the same keys.
        clock: Microseconds.
    """

    def __init__(self, when_away: str, processes: int = 1, clock: Callable[[], int] = wall_clock_us) -> None:
        if when_away not in get_args(WhenAway):
            raise ConfigurationError(f'when_away "{when_away}": use {", ".join(get_args(WhenAway))}')
        if processes < 1:
            raise ConfigurationError(f"processes {processes}: use the number of processes that ask, at least 1")
        self.when_away = when_away
        self._processes = processes
        self._store = MemoryStore(clock)
        self._lock = threading.Lock()
        self._learnt: OrderedDict[DomainCheck, tuple[Limit, ...] | None] = OrderedDict()

    def learn(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Remember which limits a domain has."""
        if self.when_away != "local":
            return
        for question, answer in zip(questions, answers, strict=True):
            if isinstance(question, DomainCheck) and not answer.degraded:
                with self._lock:
                    self._learnt[_nameless(question)] = _limits(answer.limits)
                    self._learnt.move_to_end(_nameless(question))
                    if len(self._learnt) > MOST_LEARNT:
                        self._learnt.popitem(last=False)

    def instead(self, questions: Sequence[Question], error: ServiceUnavailable) -> list[Answer]:
        """One answer each; or the error that the service gave none.

        Raises:
            ServiceUnavailable: `when_away` is "raise".
            InvalidInput: A value is wrong; the service would not have taken it either.
        """
        same = self._uncounted(error)
        if same is not None:
            return [same for _ in questions]
        return [self._counted(question, LOOK if question.peek else CHARGE) for question in questions]

    def hold(self, question: Hold | DomainCheck, error: ServiceUnavailable) -> tuple[Answer, Here | None]:
        """The answer to who wants to hold a unit, and what he holds here. Raises as `instead`.

        A domain's rules are counted as those of a check: nobody says which of them are of concurrency.
        """
        same = self._uncounted(error)
        if same is not None:
            return same, None
        if isinstance(question, DomainCheck):
            return self._counted(question, CHARGE), None
        here = Here(question, fresh())
        answer = self._counted(question, CHARGE, here.lease)
        return answer, here if answer.allowed else None

    def renew(self, here: Here) -> Answer:
        """Hold it for as long again. Raises NotHeld."""
        answer = self._counted(here.question.alone(), RENEW, here.lease)
        if not answer.allowed:
            raise NotHeld("id", "is of a lease that has ended")
        return answer

    def release(self, here: Here) -> Answer:
        """Hold it no longer."""
        return self._counted(here.question.alone(), GIVE_BACK, here.lease)

    def _uncounted(self, error: ServiceUnavailable) -> Answer | None:
        """What is answered whatever is asked; None = it is counted. Raises ServiceUnavailable."""
        if self.when_away == "raise":
            raise error
        if self.when_away == "local":
            return None
        allowed = self.when_away == "allow"
        return Answer(allowed=allowed, retry_after=None if allowed else 1, degraded=True)

    def _counted(self, question: Question | Hold, kind: int, lease: str | None = None) -> Answer:
        who, limits = self._limits_of(question)
        if limits is None:
            return Answer(allowed=False, degraded=True)
        cost = 1 if isinstance(question, Hold) else question.cost
        shares = [(limit, share) for limit in limits if (share := _share(limit, self._processes))]
        if len(shares) < len(limits):  # fewer units than processes: this one may not have any
            return Answer(allowed=False, retry_after=1, degraded=True)
        charges = [
            Charge(
                share,
                keys.spell("", who, f"away.{number}", share.spelling),
                min(limit.admits(cost), share.capacity),
            )
            for number, (limit, share) in enumerate(shares)
        ]
        if not charges:
            return Answer(allowed=True, degraded=True)
        ask = Ask(charges, kind) if lease is None else LeaseAsk(charges, lease, kind)
        with self._lock:
            numbers = self._store.decide_now([ask])
        decision = read(ask, numbers[0], numbers, 1)
        standings = (
            Standing(
                name=limit.name,
                limit=share.capacity,
                window_s=share.refill_s,
                remaining=standing.remaining,
                reset_after_s=seconds(standing.reset_us),
            )
            for (limit, share), standing in zip(shares, decision.standings, strict=True)
        )
        return Answer(
            allowed=decision.allowed, retry_after=decision.retry_after, limits=tuple(standings), degraded=True
        )

    def _limits_of(self, question: Question | Hold) -> tuple[str, tuple[Limit, ...] | None]:
        """Whose counter, and which limits; None = nothing passes."""
        if isinstance(question, DomainCheck):
            known = _nameless(question)
            return repr((known.domain, known.descriptors)), self._learnt.get(known, ())
        try:
            if isinstance(question, Hold):
                return question.key, _held(question)
            algorithm = question.algorithm or "fixed-window"
            return question.key, Limit.parse(question.limits, algorithm=algorithm, burst=question.burst)
        except InvalidLimit as error:
            raise InvalidInput("limits", str(error)) from None


def _nameless(question: DomainCheck) -> DomainCheck:
    """What two questions have in common that are limited alike."""
    return DomainCheck(question.domain, question.descriptors)


def _held(question: Hold) -> tuple[Limit, ...]:
    """What holding is limited by, concurrency first. Raises InvalidLimit, InvalidInput."""
    for name, number in (("concurrency", question.concurrency), ("ttl", question.ttl_s)):
        if type(number) is not int:
            raise InvalidInput(name, f"{number!r} is no whole number")
    units = Limit(amount=question.concurrency, window_s=question.ttl_s, algorithm="concurrency")
    return units, *(() if question.limits is None else Limit.parse(question.limits))


def _limits(standings: Sequence[Standing]) -> tuple[Limit, ...] | None:
    """Limits as they can be counted here; None = nothing passes."""
    if any(standing.limit == 0 for standing in standings):
        return None
    found = []
    for standing in standings:
        with contextlib.suppress(InvalidLimit):  # of a kind that is not known here
            found.append(Limit(amount=standing.limit, window_s=standing.window_s, name=standing.name))
    return tuple(found)


def _share(limit: Limit, processes: int) -> Limit | None:
    """What one of so many processes may admit; None = nothing."""
    if processes == 1:
        return limit
    amount = limit.amount // processes
    burst = None if limit.burst is None else limit.burst // processes
    if amount == 0 or burst == 0:
        return None
    return Limit(amount=amount, window_s=limit.window_s, algorithm=limit.algorithm, burst=burst, aligned=limit.aligned)

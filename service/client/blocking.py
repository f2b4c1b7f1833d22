"""The client for code that blocks; safe across threads."""

import contextlib
import functools
import inspect
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import httpx2 as httpx
import tenacity

from service.client import wire
from service.client.answer import Answer
from service.client.attempts import Attempts
from service.client.away import Away, WhenAway
from service.client.carrying import Carriage, request
from service.client.held import Held, Leased, not_released
from service.client.question import Check, DomainCheck, Hold, Pairs, Question
from service.client.waiting import LOOK_AGAIN_S, MAX_WAIT_S, KeyOf, Turn, pause_s, waitable
from service.client.wire import Call
from service.errors import ConfigurationError, OnequotaError, ServiceUnavailable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Client:
    """Asks a onequota service. Keeps its connections: close it, or use it in a `with` statement.

    Args:
        url, api_key, deadline_s, attempts, connections, verify: Of `Carriage`.
        when_away: What `check` and `limit` answer while the service is away, each marked `degraded`: "local" counts in
            this process, "allow", "deny"; "raise" = ServiceUnavailable.
        processes: For "local": how many processes ask for the same keys; each admits its share.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        deadline_s: float = 1.0,
        attempts: int = 3,
        when_away: WhenAway = "local",
        processes: int = 1,
        connections: int = 20,
        verify: Any = True,
    ) -> None:
        self._carriage = Carriage(url, api_key, deadline_s, attempts, connections, verify)
        self._away = Away(when_away, processes)
        self._http = httpx.Client(**self._carriage.options)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────

    def check(
        self,
        key: str,
        limits: str,
        *,
        cost: int = 1,
        algorithm: str | None = None,
        burst: int | None = None,
        peek: bool = False,
        idempotency_key: str | None = None,
    ) -> Answer:
        """One decision by limits that are brought along.

        Args:
            key, limits, cost, algorithm, burst, peek: Of `Check`.
            idempotency_key: Asked again with it within 24 hours, the first answer comes again and nothing is charged.
                Only a check that has one is sent again where it may have been charged before its answer was lost.

        Raises: as `decide`.
        """
        question = Check(key, limits, algorithm, cost, burst, peek)
        [answer] = self.decide([question], idempotency_key=idempotency_key)
        return answer

    def check_domain(
        self, domain: str, *descriptors: Pairs, cost: int = 1, peek: bool = False, idempotency_key: str | None = None
    ) -> Answer:
        """One decision by the service's catalog: `client.check_domain("chat", {"user": "alice"})`."""
        question = DomainCheck.of(domain, *descriptors, cost=cost, peek=peek)
        [answer] = self.decide([question], idempotency_key=idempotency_key)
        return answer

    def peek(self, key: str, limits: str, *, algorithm: str | None = None, burst: int | None = None) -> Answer:
        """Look without spending. Raises as `decide`."""
        return self.check(key, limits, algorithm=algorithm, burst=burst, peek=True)

    def decide(self, questions: Sequence[Question], *, idempotency_key: str | None = None) -> list[Answer]:
        """Up to 1,000 decisions that each stand alone, in one call; in the order of the questions.

        Raises:
            InvalidInput: A value is wrong: names the field, as `checks[17].cost`; nothing was charged.
            AccessDenied: The service wants another API key; nothing was charged.
            ServiceUnavailable: No answer, and `when_away` is "raise".
        """
        if not questions:
            return []
        try:
            answers = self._carry(wire.check(questions, idempotency_key))
        except ServiceUnavailable as error:
            return self._away.instead(questions, error)
        self._away.learn(questions, answers)
        return answers

    def refund(self, question: Question, *, idempotency_key: str | None = None) -> Answer:
        """Give back what a question like this one was charged.

        Raises:
            InvalidInput, AccessDenied: as `decide`.
            ServiceUnavailable: No answer, whatever `when_away` says.
        """
        return self._carry(wire.refund(question, idempotency_key or str(uuid.uuid4())))

    def reserve(self, question: Question) -> "Reservation":
        """Charge an estimate now, the true cost by `settle`: tokens of a language model, say.

        What is not settled in time stays charged. While the service is away the estimate is decided as `check` is.

        Raises:
            InvalidInput, AccessDenied, ServiceUnavailable: as `decide`.
        """
        try:
            answer, id_ = self._carry(wire.reserve(question, str(uuid.uuid4())))
        except ServiceUnavailable as error:
            [answer], id_ = self._away.instead([question], error), ""
        return Reservation(self, answer, id_)

    def settle(self, reservation: str, cost: int) -> Answer:
        """Make a reservation cost what is true, by its id; see `Reservation.settle`."""
        return self._carry(wire.settle(reservation, cost))

    def release(self, reservation: str) -> Answer:
        """Give all of a reservation back, by its id."""
        return self._carry(wire.release(reservation))

    def acquire(self, question: Hold | DomainCheck) -> "Lease":
        """Hold a unit of concurrency; `lease` does the same for a block, and renews and releases it.

        While the service is away: "local" holds it in this process, and there it stays; of a domain's rules it counts
        what it would for `check`. A unit whose answer was lost comes back when its time is over.

        Raises:
            InvalidInput, AccessDenied, ServiceUnavailable: as `decide`.
        """
        began_s, here = time.monotonic(), None
        try:
            answer, id_, ttl_s = self._carry(wire.acquire(question, str(uuid.uuid4())))
        except ServiceUnavailable as error:
            answer, here = self._away.hold(question, error)
            id_, ttl_s = "", None if here is None else here.question.ttl_s
        return Lease(self, Held(answer, began_s, id=id_, ttl_s=ttl_s, here=here))

    def renew_lease(self, lease: str) -> Answer:
        """Hold it for as long again, by its id; see `Lease.renew`."""
        return self._carry(wire.renew(lease))

    def release_lease(self, lease: str) -> Answer:
        """Hold it no longer, by its id; see `Lease.release`."""
        return self._carry(wire.release_lease(lease))

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────

    def limit(
        self,
        key: KeyOf,
        limits: str,
        *,
        cost: int = 1,
        algorithm: str | None = None,
        burst: int | None = None,
        max_wait_s: float | None = MAX_WAIT_S,
        wait: bool = True,
    ) -> "Turnstile":
        """Waits until it passes: `with client.limit("alice", "10/minute"): ...`, or as a decorator.

        Args:
            key: Who is charged; as a decorator also a function of the decorated function's arguments.
            limits, cost, algorithm, burst: Of `Check`.
            max_wait_s: How long may be waited, seconds; None = for ever.
            wait: False = not at all.

        Raises:
            OverLimit: On entering: it never passes, or not in time; nothing was charged.
        """
        turn = Turn(lambda who: Check(who, limits, algorithm, cost, burst), key, max_wait_s, wait)
        return Turnstile(self, turn)

    def limit_domain(
        self,
        domain: str,
        *descriptors: Pairs,
        cost: int = 1,
        max_wait_s: float | None = MAX_WAIT_S,
        wait: bool = True,
    ) -> "Turnstile":
        """As `limit`, by the service's catalog."""
        question = DomainCheck.of(domain, *descriptors, cost=cost)
        return Turnstile(self, Turn(lambda _: question, "", max_wait_s, wait))

    def wait_for(self, question: Question, *, max_wait_s: float | None = MAX_WAIT_S, wait: bool = True) -> Answer:
        """Ask until it passes. Raises OverLimit."""
        began_s = time.monotonic()
        while True:
            [answer] = self.decide([question])
            if answer.allowed:
                return answer
            time.sleep(pause_s(answer, time.monotonic() - began_s, max_wait_s, wait=wait))

    def lease(
        self,
        key: str,
        concurrency: int,
        *,
        ttl_s: int = 60,
        limits: str | None = None,
        max_wait_s: float | None = MAX_WAIT_S,
        wait: bool = True,
    ) -> "Leasing":
        """Holds a unit while a block runs: `with client.lease("alice", 3): ...`

        It is waited for as by `limit`; since it may be free at any moment, it is asked for every second or so. A thread
        renews it three times in `ttl_s`, and it is released with the block's end, whatever ends it. What cannot be
        renewed in time is lost, though the block runs on: then `held` is false, and the log says `lease_lost`.

        Args:
            key, concurrency, ttl_s, limits: Of `Hold`.
            max_wait_s: How long may be waited, seconds; None = for ever.
            wait: False = not at all.

        Raises:
            OverLimit: On entering: none is free, or not in time; nothing is held.
            InvalidInput, AccessDenied, ServiceUnavailable: On entering, as `acquire`.
        """
        return Leasing(self, Hold(key, concurrency, ttl_s, limits), waitable(max_wait_s), wait)

    def lease_domain(
        self, domain: str, *descriptors: Pairs, max_wait_s: float | None = MAX_WAIT_S, wait: bool = True
    ) -> "Leasing":
        """As `lease`, by the rules of the service's catalog; they say how long it lasts."""
        return Leasing(self, DomainCheck.of(domain, *descriptors), waitable(max_wait_s), wait)

    # ── carrying ─────────────────────────────────────────────────────────────────────────────────────────────

    def _carry(self, call: Call[T]) -> T:
        with self._carriage.attempts(call) as attempts:
            for attempt in tenacity.Retrying(**attempts.rules):
                with attempt:
                    return self._attempt(call, attempts)
        raise AssertionError("tenacity ends by returning or raising")

    def _attempt(self, call: Call[T], attempts: Attempts) -> T:
        try:
            response = self._http.send(self._http.build_request(**request(call, attempts.left_s)), stream=True)
            with contextlib.closing(response):
                body = b""
                for part in response.iter_bytes():
                    body += part
                    if attempts.over:  # httpx's timeout is for each read: an answer that trickles would have no end
                        raise httpx.ReadTimeout("")
        except httpx.RequestError as error:
            unanswered = self._carriage.told(error)
        else:
            return wire.result(call, response.status_code, response.headers, body)
        raise unanswered  # out here, so that it does not carry httpx's, which holds the API key

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Turnstile:
    """Lets through what a limit admits, one turn a time it is entered. May be used again, and by many threads."""

    def __init__(self, client: Client, turn: Turn) -> None:
        self._client = client
        self._turn = turn

    def _pass(self, question: Question) -> Answer:
        return self._client.wait_for(question, max_wait_s=self._turn.max_wait_s, wait=self._turn.wait)

    def __enter__(self) -> Answer:
        return self._pass(self._turn.asked())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was charged stays charged."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Every call of the function takes a turn first."""
        if inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"{function.__qualname__} is a coroutine function: use AsyncClient's limit")

        @functools.wraps(function)
        def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            self._pass(self._turn.asked_by(function, args, kwargs))
            return function(*args, **kwargs)

        return limited


class Reservation:
    """What was reserved, or that it was refused.

    Attributes:
        answer: To the estimate.
        id: For whoever settles it elsewhere, `client.settle(id, cost)`; "" if there is nothing to settle.
    """

    def __init__(self, client: Client, answer: Answer, id_: str) -> None:
        self._client = client
        self.answer = answer
        self.id = id_

    @property
    def allowed(self) -> bool:
        """Whether there was room; if not, nothing was charged."""
        return self.answer.allowed

    def settle(self, cost: int) -> Answer:
        """Make it cost `cost`: what was too much is given back, what lacks is owed.

        What was refused, or decided while the service was away, is settled as it is.

        Raises:
            InvalidInput: The cost is none, or it was settled at another, or too long ago.
            AccessDenied, ServiceUnavailable: as `decide`; it may be tried again.
        """
        return self._client.settle(self.id, cost) if self.id else self.answer

    def release(self) -> Answer:
        """Give all of it back. Raises as `settle`."""
        return self._client.release(self.id) if self.id else self.answer


class Lease(Leased):
    """A unit of concurrency, or that none was free."""

    def __init__(self, client: Client, unit: Held) -> None:
        super().__init__(unit)
        self._client = client

    def renew(self) -> Answer:
        """Hold it for as long again. What was refused or allowed unasked while the service was away is let be.

        Raises:
            InvalidInput: It has ended; others may hold it.
            AccessDenied, ServiceUnavailable: as `decide`; it may be tried again.
        """
        asked_s = time.monotonic()
        if self.id:
            answer = self._client.renew_lease(self.id)
        elif self._unit.here is not None:
            answer = self._client._away.renew(self._unit.here)
        else:
            return self.answer
        self._unit.prolonged(asked_s)
        return answer

    def release(self) -> Answer:
        """Hold it no longer. Raises as `renew`."""
        self._unit.ended()
        if self.id:
            return self._client.release_lease(self.id)
        return self.answer if self._unit.here is None else self._client._away.release(self._unit.here)


class Leasing:
    """Holds a unit while a block runs. Entering answers the lease."""

    def __init__(self, client: Client, question: Hold | DomainCheck, max_wait_s: float | None, wait: bool) -> None:
        self._client = client
        self._question = question
        self._max_wait_s = max_wait_s
        self._wait = wait
        self._held: list[_Renewing] = []

    def __enter__(self) -> Lease:
        began_s = time.monotonic()
        while not (lease := self._client.acquire(self._question)).allowed:
            waited_s = time.monotonic() - began_s
            time.sleep(pause_s(lease.answer, waited_s, self._max_wait_s, wait=self._wait, most_s=LOOK_AGAIN_S))
        self._held.append(_Renewing(lease))
        return lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.pop().end()


class _Renewing:
    """Renews a lease from a thread, until it is to end."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="onequota-lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        unit = self._lease._unit
        while unit.every_s is not None and not self._over.wait(unit.every_s) and not unit.over:
            try:
                self._lease.renew()
            except OnequotaError as error:
                unit.not_renewed(error)

    def end(self) -> None:
        """Stop, and release it; a renewal under way comes first, and has its deadline."""
        self._over.set()
        self._thread.join()
        if self._lease._unit.over:
            return
        try:
            self._lease.release()
        except OnequotaError as error:
            not_released(error)

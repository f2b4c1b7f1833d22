"""The client for coroutines. What `blocking.py` says holds here."""

import asyncio
import contextlib
import functools
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar
from weakref import WeakKeyDictionary

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


class AsyncClient:
    """As `Client`, awaited. Connections belong to an event loop, and are closed with it, or by `aclose`."""

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
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = WeakKeyDictionary()

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────

    async def check(
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
        """As `Client.check`."""
        question = Check(key, limits, algorithm, cost, burst, peek)
        [answer] = await self.decide([question], idempotency_key=idempotency_key)
        return answer

    async def check_domain(
        self, domain: str, *descriptors: Pairs, cost: int = 1, peek: bool = False, idempotency_key: str | None = None
    ) -> Answer:
        """As `Client.check_domain`."""
        question = DomainCheck.of(domain, *descriptors, cost=cost, peek=peek)
        [answer] = await self.decide([question], idempotency_key=idempotency_key)
        return answer

    async def peek(self, key: str, limits: str, *, algorithm: str | None = None, burst: int | None = None) -> Answer:
        """As `Client.peek`."""
        return await self.check(key, limits, algorithm=algorithm, burst=burst, peek=True)

    async def decide(self, questions: Sequence[Question], *, idempotency_key: str | None = None) -> list[Answer]:
        """As `Client.decide`."""
        if not questions:
            return []
        try:
            answers = await self._carry(wire.check(questions, idempotency_key))
        except ServiceUnavailable as error:
            return self._away.instead(questions, error)
        self._away.learn(questions, answers)
        return answers

    async def refund(self, question: Question, *, idempotency_key: str | None = None) -> Answer:
        """As `Client.refund`."""
        return await self._carry(wire.refund(question, idempotency_key or str(uuid.uuid4())))

    async def reserve(self, question: Question) -> "AsyncReservation":
        """As `Client.reserve`."""
        try:
            answer, id_ = await self._carry(wire.reserve(question, str(uuid.uuid4())))
        except ServiceUnavailable as error:
            [answer], id_ = self._away.instead([question], error), ""
        return AsyncReservation(self, answer, id_)

    async def settle(self, reservation: str, cost: int) -> Answer:
        """As `Client.settle`."""
        return await self._carry(wire.settle(reservation, cost))

    async def release(self, reservation: str) -> Answer:
        """As `Client.release`."""
        return await self._carry(wire.release(reservation))

    async def acquire(self, question: Hold | DomainCheck) -> "AsyncLease":
        """As `Client.acquire`."""
        began_s, here = time.monotonic(), None
        try:
            answer, id_, ttl_s = await self._carry(wire.acquire(question, str(uuid.uuid4())))
        except ServiceUnavailable as error:
            answer, here = self._away.hold(question, error)
            id_, ttl_s = "", None if here is None else here.question.ttl_s
        return AsyncLease(self, Held(answer, began_s, id=id_, ttl_s=ttl_s, here=here))

    async def renew_lease(self, lease: str) -> Answer:
        """As `Client.renew_lease`."""
        return await self._carry(wire.renew(lease))

    async def release_lease(self, lease: str) -> Answer:
        """As `Client.release_lease`."""
        return await self._carry(wire.release_lease(lease))

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
    ) -> "AsyncTurnstile":
        """As `Client.limit`: `async with client.limit("alice", "10/minute"): ...`, or as a decorator."""
        turn = Turn(lambda who: Check(who, limits, algorithm, cost, burst), key, max_wait_s, wait)
        return AsyncTurnstile(self, turn)

    def limit_domain(
        self,
        domain: str,
        *descriptors: Pairs,
        cost: int = 1,
        max_wait_s: float | None = MAX_WAIT_S,
        wait: bool = True,
    ) -> "AsyncTurnstile":
        """As `Client.limit_domain`."""
        question = DomainCheck.of(domain, *descriptors, cost=cost)
        return AsyncTurnstile(self, Turn(lambda _: question, "", max_wait_s, wait))

    async def wait_for(self, question: Question, *, max_wait_s: float | None = MAX_WAIT_S, wait: bool = True) -> Answer:
        """As `Client.wait_for`."""
        began_s = time.monotonic()
        while True:
            [answer] = await self.decide([question])
            if answer.allowed:
                return answer
            await asyncio.sleep(pause_s(answer, time.monotonic() - began_s, max_wait_s, wait=wait))

    def lease(
        self,
        key: str,
        concurrency: int,
        *,
        ttl_s: int = 60,
        limits: str | None = None,
        max_wait_s: float | None = MAX_WAIT_S,
        wait: bool = True,
    ) -> "AsyncLeasing":
        """As `Client.lease`, renewed by a task: `async with client.lease("alice", 3): ...`

        Whoever is cancelled, waiting for it or holding it, holds nothing afterwards.
        """
        return AsyncLeasing(self, Hold(key, concurrency, ttl_s, limits), waitable(max_wait_s), wait)

    def lease_domain(
        self, domain: str, *descriptors: Pairs, max_wait_s: float | None = MAX_WAIT_S, wait: bool = True
    ) -> "AsyncLeasing":
        """As `Client.lease_domain`."""
        return AsyncLeasing(self, DomainCheck.of(domain, *descriptors), waitable(max_wait_s), wait)

    # ── carrying ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _carry(self, call: Call[T]) -> T:
        with self._carriage.attempts(call) as attempts:
            try:
                async with asyncio.timeout(self._carriage.deadline_s):
                    async for attempt in tenacity.AsyncRetrying(**attempts.rules):
                        with attempt:
                            return await self._attempt(call, attempts)
            except TimeoutError:
                pass
            raise self._carriage.late()

    async def _attempt(self, call: Call[T], attempts: Attempts) -> T:
        try:
            response = await self._http().request(**request(call, attempts.left_s))
        except httpx.RequestError as error:
            unanswered = self._carriage.told(error)
        else:
            return wire.result(call, response.status_code, response.headers, response.content)
        raise unanswered  # out here, so that it does not carry httpx's, which holds the API key

    def _finishing(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that is carried to its end though nobody may be waiting for it any more; `aclose` does."""
        task = asyncio.get_running_loop().create_task(work)
        under_way = self._connections().under_way
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        return task

    def _http(self) -> httpx.AsyncClient:
        return self._connections().http

    def _connections(self) -> "_Connections":
        loop = asyncio.get_running_loop()
        open_ = self._open.get(loop)
        if open_ is None:
            open_ = self._open[loop] = _Connections(self._carriage.options, lambda: self._open.pop(loop, None))
        return open_

    async def aclose(self) -> None:
        """Close the running loop's connections, once what is being released is."""
        while (now := self._open.get(asyncio.get_running_loop())) is not None and now.under_way:
            await asyncio.wait(now.under_way)
        open_ = self._open.pop(asyncio.get_running_loop(), None)
        if open_ is not None:
            await open_.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Connections:
    """The connections of one event loop; closed when it shuts its asynchronous generators down (`asyncio.run` does)."""

    def __init__(self, options: dict[str, Any], forget: Callable[[], object]) -> None:
        self.http = httpx.AsyncClient(**options)
        self.under_way: set[asyncio.Task[Any]] = set()

        async def keep() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                forget()
                await self.http.aclose()

        self._closer = keep()
        with contextlib.suppress(StopIteration):
            self._closer.__anext__().send(None)  # registers with the loop: runs up to the yield, which never suspends


class AsyncTurnstile:
    """As `Turnstile`, awaited."""

    def __init__(self, client: AsyncClient, turn: Turn) -> None:
        self._client = client
        self._turn = turn

    async def _pass(self, question: Question) -> Answer:
        return await self._client.wait_for(question, max_wait_s=self._turn.max_wait_s, wait=self._turn.wait)

    async def __aenter__(self) -> Answer:
        return await self._pass(self._turn.asked())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was charged stays charged."""

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Every call of the coroutine function takes a turn first."""
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"{function!r} is no coroutine function: use Client's limit")

        @functools.wraps(function)
        async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            await self._pass(self._turn.asked_by(function, args, kwargs))
            return await function(*args, **kwargs)

        return limited


class AsyncReservation:
    """As `Reservation`, awaited."""

    def __init__(self, client: AsyncClient, answer: Answer, id_: str) -> None:
        self._client = client
        self.answer = answer
        self.id = id_

    @property
    def allowed(self) -> bool:
        """Whether there was room; if not, nothing was charged."""
        return self.answer.allowed

    async def settle(self, cost: int) -> Answer:
        """As `Reservation.settle`."""
        return await self._client.settle(self.id, cost) if self.id else self.answer

    async def release(self) -> Answer:
        """As `Reservation.release`."""
        return await self._client.release(self.id) if self.id else self.answer


class AsyncLease(Leased):
    """As `Lease`, awaited."""

    def __init__(self, client: AsyncClient, unit: Held) -> None:
        super().__init__(unit)
        self._client = client

    async def renew(self) -> Answer:
        """As `Lease.renew`."""
        asked_s = time.monotonic()
        if self.id:
            answer = await self._client.renew_lease(self.id)
        elif self._unit.here is not None:
            answer = self._client._away.renew(self._unit.here)
        else:
            return self.answer
        self._unit.prolonged(asked_s)
        return answer

    async def release(self) -> Answer:
        """As `Lease.release`."""
        self._unit.ended()
        if self.id:
            return await self._client.release_lease(self.id)
        return self.answer if self._unit.here is None else self._client._away.release(self._unit.here)


class AsyncLeasing:
    """As `Leasing`, awaited."""

    def __init__(self, client: AsyncClient, question: Hold | DomainCheck, max_wait_s: float | None, wait: bool) -> None:
        self._client = client
        self._question = question
        self._max_wait_s = max_wait_s
        self._wait = wait
        self._held: list[tuple[AsyncLease, asyncio.Task[None]]] = []

    async def __aenter__(self) -> AsyncLease:
        began_s = time.monotonic()
        while not (lease := await self._taken()).allowed:
            waited_s = time.monotonic() - began_s
            await asyncio.sleep(pause_s(lease.answer, waited_s, self._max_wait_s, wait=self._wait, most_s=LOOK_AGAIN_S))
        self._held.append((lease, asyncio.create_task(_renew(lease))))
        return lease

    async def _taken(self) -> AsyncLease:
        taking = self._client._finishing(self._client.acquire(self._question))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            self._client._finishing(_release(taking))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, renewing = self._held.pop()
        renewing.cancel()
        await asyncio.shield(self._client._finishing(_release(lease)))


async def _renew(lease: AsyncLease) -> None:
    """For as long as nobody cancels it."""
    unit = lease._unit
    while unit.every_s is not None and not unit.over:
        await asyncio.sleep(unit.every_s)
        try:
            await lease.renew()
        except OnequotaError as error:
            unit.not_renewed(error)


async def _release(held: AsyncLease | asyncio.Task[AsyncLease]) -> None:
    """Release it, also one that is only being taken; whoever could wait for that may be gone."""
    try:
        lease = held if isinstance(held, AsyncLease) else await held
        if not lease._unit.over:
            await lease.release()
    except OnequotaError as error:
        not_released(error)

"""The client for coroutines. What `blocking.py` says holds here."""

import asyncio
import contextlib
import functools
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
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
from service.client.question import Check, DomainCheck, Pairs, Question
from service.client.waiting import MAX_WAIT_S, KeyOf, Turn, pause_s
from service.client.wire import Call
from service.errors import ConfigurationError, ServiceUnavailable

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

    def _http(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        open_ = self._open.get(loop)
        if open_ is None:
            open_ = self._open[loop] = _Connections(self._carriage.options, lambda: self._open.pop(loop, None))
        return open_.http

    async def aclose(self) -> None:
        """Close the running loop's connections."""
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

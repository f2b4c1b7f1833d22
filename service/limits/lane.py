"""One queue and its one call under way: who asks while a call is under way shares the next.

At most 128 charges travel together and one ask is never split. Every ask has a deadline, counted from its arrival. Then
its waiter gets `StoreUnavailable`; an ask that was still queued is never sent. One that was under way may have been
charged although nobody was admitted: it is counted in `Counters.unsettled`.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from service.errors import InvalidInput, StoreUnavailable
from service.limits.decision import CHARGE, Ask, Decision, read
from service.limits.stores.contract import Store

MOST_CHARGES = 128
"""Charges a call: 128 hold Redis about 1 ms; 3,000 held it 18 ms (measured), and every other worker with it."""


@dataclass(slots=True)
class Counters:
    """What an engine did since it was made.

    Attributes:
        calls: Calls to the store.
        decisions: Asks answered.
        unsettled: Charging asks whose waiter was told "unavailable" after they had been sent: each may have
            been charged without being admitted. 0 while Redis is healthy.
        failures: Calls that the store did not answer.
    """

    calls: int = 0
    decisions: int = 0
    unsettled: int = 0
    failures: int = 0


Waiting = tuple[Ask, "asyncio.Future[Decision]", float]
"""An ask, its answer, and the loop time at which it is due."""


class Lane:
    """One event loop's queue and its one call under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: Store, deadline_s: float, counters: Counters) -> None:
        self.store = store
        self.loop = loop
        self._deadline_s = deadline_s
        self._counters = counters
        self._queue: deque[Waiting] = deque()
        self._sent: list[Waiting] = []
        self._sender: asyncio.Task[None] | None = None
        self._starting = False
        self._watch: asyncio.TimerHandle | None = None
        self._context = contextvars.Context()  # the sender must not live in the first request's context
        self._closer: AsyncGenerator[None, None] | None = None

    def submit(self, ask: Ask) -> "asyncio.Future[Decision]":
        loop = self.loop
        answer = loop.create_future()
        due = loop.time() + self._deadline_s
        self._queue.append((ask, answer, due))
        if not self._starting:
            self._starting = True
            loop.call_soon(self._start, context=self._context)
        if self._watch is None:
            self._watch = loop.call_at(due, self._expire, context=self._context)
        return answer

    def _start(self) -> None:
        self._sender = self.loop.create_task(self._send(), context=self._context)

    async def _send(self) -> None:
        """Call the store until the queue is empty; whatever happens, every waiter gets an answer."""
        try:
            while self._queue:
                self._sent = batch = self._take()
                if not batch:
                    break
                self._counters.calls += 1
                try:
                    async with asyncio.timeout(self._deadline_s):
                        await self._decide(batch)
                except TimeoutError:
                    self._fail(batch, StoreUnavailable("the store did not answer in time"))
                except StoreUnavailable as error:
                    self._fail(batch, error)
                self._sent = []
        except BaseException as error:
            waiting = [*self._sent, *self._queue]
            self._queue.clear()
            self._fail(waiting, StoreUnavailable(f"the engine stopped: {error!r}"))
            raise
        finally:
            self._sent = []
            self._starting = False
            self._sender = None

    async def _decide(self, batch: list[Waiting]) -> None:
        """One call, and its answers. Raises StoreUnavailable when nobody was answered."""
        self._settle(batch, await self.store.decide([ask for ask, _, _ in batch]))

    def _take(self) -> list[Waiting]:
        queue, batch, charges = self._queue, [], 0
        while queue:
            waiting = queue.popleft()
            if waiting[1].done():  # its caller has gone: nothing to charge
                continue
            charges += len(waiting[0].charges)
            if charges > MOST_CHARGES:
                queue.appendleft(waiting)
                break
            batch.append(waiting)
        return batch

    def _settle(self, batch: list[Waiting], numbers: Sequence[int]) -> None:
        at_us, start = numbers[0], 1
        self._counters.decisions += len(batch)
        for ask, answer, _ in batch:
            try:
                if not answer.done():
                    answer.set_result(read(ask, at_us, numbers, start))
                elif ask.kind == CHARGE and not answer.cancelled() and read(ask, at_us, numbers, start).allowed:
                    self._counters.unsettled += 1
            except InvalidInput as error:
                if not answer.done():
                    answer.set_exception(error)
            start += ask.width

    def _fail(self, batch: list[Waiting], error: StoreUnavailable) -> None:
        self._counters.failures += 1
        for ask, answer, _due in batch:
            if ask.kind == CHARGE and not answer.cancelled():
                self._counters.unsettled += 1
            if not answer.done():
                answer.set_exception(StoreUnavailable(str(error)))  # one each: an exception carries a traceback

    def _expire(self) -> None:
        """Tell those whose deadline has come; look again when the next one's comes."""
        now = self.loop.time()
        while self._queue and (self._queue[0][2] <= now or self._queue[0][1].done()):
            self._tell(self._queue.popleft()[1])
        for _, answer, due in self._sent:
            if due <= now:
                self._tell(answer)
        open_ = [due for _, answer, due in (*self._sent, *self._queue) if not answer.done()]
        self._watch = self.loop.call_at(min(open_), self._expire, context=self._context) if open_ else None

    def _tell(self, answer: "asyncio.Future[Decision]") -> None:
        if not answer.done():
            answer.set_exception(StoreUnavailable("the store did not answer in time"))

    def close_with_loop(self, forget: Callable[[], object]) -> None:
        """Close the store when the loop shuts its asynchronous generators down (`asyncio.run`, anyio, uvicorn do).

        Without it a loop that ends with the lane open (a test client makes one per request) would leave a socket.
        """

        async def keep() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                forget()
                await self.aclose()

        self._closer = keep()
        with contextlib.suppress(StopIteration):
            self._closer.__anext__().send(None)  # register with the loop: run up to the yield, which never suspends

    async def aclose(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._sender is not None and self._sender is not asyncio.current_task():
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        await self.store.aclose()

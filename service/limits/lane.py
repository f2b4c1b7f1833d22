"""One queue and its one call under way: who asks while a call is under way shares the next.

At most 128 charges travel together and one ask is never split. Every ask has a deadline, counted from its arrival.
Then, and while the store is away (`outage.py`), it is decided without the store (`fallback.py`). An ask that was still
queued is never sent. One that was under way may have been charged as well: it is counted in `Counters.unsettled`.
"""

import asyncio
import contextlib
import contextvars
from bisect import insort
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from service.errors import InvalidInput, StoreUnavailable
from service.limits.decision import CHARGE, LOOK, Ask, Decision, read
from service.limits.denials import Denials
from service.limits.fallback import Fallback
from service.limits.limit import ON_OUTAGE, OnOutage
from service.limits.outage import Outage
from service.limits.stores.contract import Store
from service.logs import events

MOST_CHARGES = 128
"""Charges a call: 128 hold Redis about 1 ms; 3,000 held it 18 ms (measured), and every other worker with it."""

log = events()


@dataclass(slots=True)
class Counters:
    """What an engine did since it was made.

    Attributes:
        calls: Calls to the store, probes left out.
        decisions: Asks the store answered.
        unsettled: Charging asks that were sent and decided without the store after all: each may have been charged
            there without being admitted, or twice. 0 while Redis is healthy.
        failures: Calls that the store did not answer.
        opened, closed: Times a breaker did so.
        degraded: Asks decided without the store, by the policy that did.
        repeated: Refusals that were repeated from memory.
    """

    calls: int = 0
    decisions: int = 0
    unsettled: int = 0
    failures: int = 0
    opened: int = 0
    closed: int = 0
    degraded: dict[OnOutage, int] = field(default_factory=lambda: dict.fromkeys(ON_OUTAGE, 0))
    repeated: int = 0


Waiting = tuple[Ask, "asyncio.Future[Decision]", float]
"""An ask, its answer, and the loop time at which it is due."""


class StandIn:
    """Decides without a store, when one that should have decided is away.

    Args:
        loop: The event loop it belongs to.
        counters: Of the engine.
        fallback: What decides.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, fallback: Fallback) -> None:
        self.loop = loop
        self.closer: object = None
        self._counters = counters
        self._fallback = fallback
        self._context = contextvars.Context()  # tasks must not live in the first request's context

    def stand_in(self, ask: Ask, *, here: bool = False) -> "asyncio.Future[Decision]":
        """The decision without the store, at once. `here`: as `Fallback.decide` has it."""
        answer = self.loop.create_future()
        self._answer(ask, answer, away(), here=here)
        return answer

    def _answer(
        self, ask: Ask, answer: "asyncio.Future[Decision]", error: StoreUnavailable, *, here: bool = False
    ) -> None:
        """Decide without the store, unless that has been decided before."""
        if answer.done():
            return
        policy: OnOutage = "deny"
        try:
            decision = self._fallback.decide(ask, error, here=here)
            policy = self._fallback.policy(ask)
        except (StoreUnavailable, InvalidInput) as told:
            answer.set_exception(told)
        except Exception as bug:  # whatever happens, every waiter gets an answer
            log.exception("fallback_failed", exc_info=bug)
            answer.set_exception(error.once_more())
        else:
            answer.set_result(decision)
        self._counters.degraded[policy] += 1


class Lane(StandIn):
    """One event loop's queue and its one call under way.

    Attributes:
        store: What is called.
        closer: See `close_with_loop`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        deadline_s: float,
        counters: Counters,
        fallback: Fallback,
    ) -> None:
        super().__init__(loop, counters, fallback)
        self.store = store
        self._deadline_s = deadline_s
        self._outage = Outage(loop, self._probe, self._changed)
        self._denials = Denials()
        self._repeats = store.far
        self._sent_s = self._recalled_s = 0.0
        self._queue: deque[Waiting] = deque()
        self._sent: list[Waiting] = []
        self._sender: asyncio.Task[None] | None = None
        self._starting = False
        self._watch: asyncio.TimerHandle | None = None

    def submit(self, ask: Ask) -> "asyncio.Future[Decision]":
        if self._outage.open:
            return self.stand_in(ask)
        loop = self.loop
        answer = loop.create_future()
        now_s = loop.time()
        if self._denials.kept and (denial := self._denials.find(ask, now_s)) is not None:
            self._counters.repeated += 1
            answer.set_result(denial)
            return answer
        due = now_s + self._deadline_s
        self._queue.append((ask, answer, due))
        if not self._starting:
            self._starting = True
            loop.call_soon(self._start, context=self._context)
        if self._watch is None:
            self._watch = loop.call_at(due, self._expire, context=self._context)
        return answer

    def put_back(self, waiting: Waiting) -> None:
        """Queue what came by another way, with the time it has left."""
        ask, answer, due = waiting
        if self._outage.open:
            self._answer(ask, answer, away())
            return
        insort(self._queue, waiting, key=itemgetter(2))
        if not self._starting:
            self._starting = True
            self.loop.call_soon(self._start, context=self._context)
        if self._watch is not None and self._watch.when() > due:
            self._watch.cancel()
            self._watch = None
        if self._watch is None:
            self._watch = self.loop.call_at(due, self._expire, context=self._context)

    @property
    def idle(self) -> bool:
        """Nobody waits, and nothing is under way."""
        return not self._queue and not self._sent

    # ── while the store is away ──────────────────────────────────────────────────────────────────────────────

    def _changed(self, is_open: bool) -> None:
        """The breaker did: whoever still waits for a store that is away need not."""
        if not is_open:
            self._counters.closed += 1
            return
        self._counters.opened += 1
        self._denials.clear()
        while self._queue:
            ask, answer, _ = self._queue.popleft()
            self._answer(ask, answer, away())

    async def _probe(self, ask: Ask) -> None:
        while self._sender is not None:  # one call at a time
            await asyncio.wait([self._sender])
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._look(ask)
        except TimeoutError:
            raise late() from None

    async def _look(self, probe: Ask) -> None:
        await self.store.decide([probe])

    async def forget(self, prefix: str, identity: str | None) -> int:
        """As a store does; what was refused here may pass at once."""
        try:
            return await self.store.forget(prefix, identity)
        finally:
            self.recall()

    def recall(self) -> None:
        """Repeat no refusal from before, nor one that is on its way: units may have come back."""
        self._denials.clear()
        self._recalled_s = self.loop.time()

    async def ping(self) -> str:
        """What answers, in words. Raises StoreUnavailable after the deadline, and at once while the store is away."""
        if self._outage.open:
            raise away()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self.store.ping()
        except TimeoutError:
            self._outage.failed(late(), b"")
            raise late() from None
        except StoreUnavailable as error:
            self._outage.failed(error, b"")
            raise

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """As `Keeper.board`. Raises StoreUnavailable after the deadline, or at once in an outage."""
        if self._outage.open:
            raise away()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self.store.board(key, after, message, keep_ms, most)
        except TimeoutError:
            raise late() from None

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────────────

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
                self._sent_s = self.loop.time()
                try:
                    async with asyncio.timeout(self._deadline_s):
                        await self._decide(batch)
                except TimeoutError:
                    self._fail(batch, late())
                except StoreUnavailable as error:
                    self._fail(batch, error)
                self._sent = []
        except BaseException as error:
            waiting = [*self._sent, *self._queue]
            self._queue.clear()
            if waiting:
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
        queue, counters = self._queue, 0
        batch: list[Waiting] = []
        while queue:
            waiting = queue.popleft()
            if waiting[1].done():  # its caller has gone: nothing to charge
                continue
            counters += len(waiting[0].names)  # a token's record is one, too
            if counters > MOST_CHARGES and batch:
                queue.appendleft(waiting)
                break
            batch.append(waiting)
        return batch

    def _settle(self, batch: list[Waiting], numbers: Sequence[int], start: int = 1) -> None:
        at_us = numbers[0]
        self._outage.answered()
        self._counters.decisions += len(batch)
        for ask, answer, _ in batch:
            try:
                if not answer.done():
                    decision = read(ask, at_us, numbers, start)
                    answer.set_result(decision)
                    if not decision.allowed:
                        if self._repeats and self._sent_s >= self._recalled_s:
                            self._denials.learn(ask, decision, self._sent_s, self.loop.time())
                    elif self._denials.kept and ask.kind != LOOK:
                        self._denials.changed(ask)
                elif ask.kind == CHARGE and not answer.cancelled() and read(ask, at_us, numbers, start).allowed:
                    self._counters.unsettled += 1
            except InvalidInput as error:
                if not answer.done():
                    answer.set_exception(error)
            start += ask.width

    def _fail(self, batch: list[Waiting], error: StoreUnavailable) -> None:
        self._counters.failures += 1
        for ask, answer, _due in batch:
            if ask.kind == CHARGE and error.maybe_done and not answer.cancelled():
                self._counters.unsettled += 1
            self._answer(ask, answer, error)
        self._outage.failed(error, batch[0][0].names[0])

    def _expire(self) -> None:
        """Answer those whose deadline has come; look again when the next one's comes."""
        now = self.loop.time()
        while self._queue and (self._queue[0][2] <= now or self._queue[0][1].done()):
            ask, answer, _ = self._queue.popleft()
            self._answer(ask, answer, late())
        for ask, answer, due in self._sent:
            if due <= now:
                self._answer(ask, answer, late())
        open_ = [due for _, answer, due in (*self._sent, *self._queue) if not answer.done()]
        self._watch = self.loop.call_at(min(open_), self._expire, context=self._context) if open_ else None

    async def aclose(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        probing = self._outage.close()
        if probing is not None and probing is not asyncio.current_task():
            await asyncio.gather(probing, return_exceptions=True)
        if self._sender is not None and self._sender is not asyncio.current_task():
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        await self.store.aclose()


def away() -> StoreUnavailable:
    """Of a store that is not even asked."""
    return StoreUnavailable("the store is away; it is looked for once a second", maybe_done=False)


def late() -> StoreUnavailable:
    """At a deadline."""
    return StoreUnavailable("the store did not answer in time")


def close_with_loop(close: Callable[[], Awaitable[None]]) -> object:
    """Close when the running loop shuts its asynchronous generators down (`asyncio.run`, anyio, uvicorn do).

    Without it a loop that ends with a lane open (a test client makes one per request) would leave a socket.

    Returns:
        To be held for as long as it is to be closed: whoever drops it closes.
    """

    async def keep() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    closer = keep()
    with contextlib.suppress(StopIteration):
        closer.__anext__().send(None)  # register with the loop: run up to the yield, which never suspends
    return closer

"""Counters on several servers: one lane per server, so that one that hangs holds up nobody but its own.

An ask whose limits are all in one slot goes to the lane of the server that has it, and is decided there in one step.
One that spans slots (limits by address and by user, say) cannot be: its parts are decided one after the other, the
smallest limit first, and what was charged is given back if a later part refuses or does not answer. Nobody is admitted
whom a limit refuses; but who asks in between may be refused for units that are about to come back.

A token's record is where its owner's slot is. There its content is bound to it first, and each part is then asked with
a record of its own beside its counters; asked again, what was done is not done again, and what was not is done. So
with a token nothing is given back because a server did not answer: who asks again goes on from there.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import NamedTuple

from service.errors import InvalidInput, NotHeld, StoreUnavailable
from service.limits import keys
from service.limits.decision import (
    CHARGE,
    GIVE_BACK,
    LOOK,
    Ask,
    Decision,
    Degraded,
    LeaseAsk,
    Replayed,
    SettleAsk,
    Standing,
    Token,
    TokenAsk,
    remade,
)
from service.limits.fallback import Fallback
from service.limits.lane import Counters, Lane, StandIn, Waiting, late
from service.limits.outage import Outage
from service.limits.stores.contract import Elsewhere, Shard, Sharded

AGAIN_S = 0.002
"""How long what was elsewhere waits until it is asked again: a server that is wrong about a slot is so for a while."""
HEAR_EVERY_S = 0.5
"""How often a worker hears where slots are while a server is away whose slots are asked for."""


class Moment(int):
    """An instant by the clocks of several servers; as an integer, the earliest.

    Attributes:
        by_slot: What was decided there, and when by the clock of who decided it.
    """

    by_slot: "dict[int, Decision]"

    @classmethod
    def of(cls, by_slot: "dict[int, Decision]") -> "Moment":
        self = cls(min(decision.at_us for decision in by_slot.values()))
        self.by_slot = by_slot
        return self


class Part(NamedTuple):
    """The limits of an ask that are in one slot.

    Attributes:
        indexes: Which of the ask's charges.
        here: What it undoes was decided without the store.
    """

    slot: int
    indexes: tuple[int, ...]
    ask: Ask
    here: bool


class ShardLane(Lane):
    """The lane of one server of several: what is elsewhere by now goes back to be spread again."""

    store: Shard

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Shard,
        deadline_s: float,
        counters: Counters,
        fallback: Fallback,
        spread: "Spread",
    ) -> None:
        super().__init__(loop, store, deadline_s, counters, fallback)
        self._spread = spread

    def submit(self, ask: Ask) -> "asyncio.Future[Decision]":
        if self._outage.open:
            self._spread.hear_now_and_then()
        return super().submit(ask)

    async def _decide(self, batch: list[Waiting]) -> None:
        answers = await self.store.answers([ask for ask, _, _ in batch])
        failed: dict[bool, tuple[list[Waiting], StoreUnavailable]] = {}  # maybe done or not: each by itself
        for waiting, answer in zip(batch, answers, strict=True):
            if isinstance(answer, StoreUnavailable):
                failed.setdefault(answer.maybe_done, ([], answer))[0].append(waiting)
            elif isinstance(answer, Elsewhere):
                self._outage.answered()
                self._spread.again(waiting)
            else:
                self._settle([waiting], *answer)
        if len(failed) > 1:  # one call is one failure
            undone, error = failed.pop(False)
            self._spread.rescue(undone, self.store, error)
        for asks, error in failed.values():
            self._fail(asks, error)

    def _fail(self, batch: list[Waiting], error: StoreUnavailable) -> None:
        if error.maybe_done:
            self._spread.hear()
            super()._fail(batch, error)
        else:
            self._counters.failures += 1
            self._spread.rescue(batch, self.store, error)
            self._outage.failed(error, batch[0][0].names[0])

    async def _look(self, probe: Ask) -> None:
        (answer,) = await self.store.answers([probe])
        if isinstance(answer, StoreUnavailable):
            raise answer

    async def retire(self) -> None:
        """Its server has no slots any more."""
        self._outage.answered()
        await self.aclose()


class Spread(StandIn):
    """What an engine asks in place of a lane when the store has several servers.

    Attributes:
        store: All of them.
        closer: See `close_with_loop`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Sharded,
        deadline_s: float,
        counters: Counters,
        fallback: Fallback,
    ) -> None:
        super().__init__(loop, counters, fallback)
        self.store = store
        self._deadline_s = deadline_s
        self._lanes: dict[Shard, ShardLane] = {}
        self._homeless: list[tuple[Waiting, Shard | None, StoreUnavailable | None]] = []
        self._outage = Outage(loop, self._look, self._changed)
        self._hearing = False
        self._heard_s = loop.time()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, ask: Ask) -> "asyncio.Future[Decision]":
        slot = self.store.slot(ask.names[0])
        if len(ask.names) > 1 and any(self.store.slot(name) != slot for name in ask.names):
            return self._several(ask)
        if ask.kind == GIVE_BACK and isinstance(ask.at_us, Moment):
            return self._several(ask)
        return self._one(ask, slot)

    def stand_in(self, ask: Ask, *, here: bool = False) -> "asyncio.Future[Decision]":
        if here and (
            isinstance(ask.at_us, Moment)
            or isinstance(ask, LeaseAsk)
            or (isinstance(ask, SettleAsk) and len({self.store.slot(name) for name in ask.names}) > 1)
        ):  # some of it may have been decided by the store
            return self._several(ask, here=True)
        return super().stand_in(ask, here=here)

    async def forget(self, prefix: str, identity: str | None) -> int:
        """As a store does; what was refused here may pass at once."""
        try:
            return await self.store.forget(prefix, identity)
        finally:
            for lane in self._lanes.values():
                lane.recall()

    async def ping(self) -> str:
        """What answers, in words. Raises StoreUnavailable after the deadline."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self.store.ping()
        except TimeoutError:
            raise late() from None

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """As `Keeper.board`. Raises StoreUnavailable after the deadline, or at once while nobody says where it is."""
        if self._outage.open:
            raise self._nowhere()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self.store.board(key, after, message, keep_ms, most)
        except TimeoutError:
            raise late() from None

    def _one(self, ask: Ask, slot: int) -> "asyncio.Future[Decision]":
        shard = self.store.shard(slot)
        if shard is not None and not self._closed:
            return self._lane(shard).submit(ask)
        if self._outage.open:
            return super().stand_in(ask)
        answer = self.loop.create_future()
        self._house_later((ask, answer, self.loop.time() + self._deadline_s), None, None)
        return answer

    def _lane(self, shard: Shard) -> ShardLane:
        lane = self._lanes.get(shard)
        if lane is None:
            lane = self._lanes[shard] = ShardLane(
                self.loop, shard, self._deadline_s, self._counters, self._fallback, self
            )
        return lane

    # ── where a slot is ──────────────────────────────────────────────────────────────────────────────────────

    def again(self, waiting: Waiting) -> None:
        """Ask again, wherever it is by then: nothing was done."""
        self.hear()
        self._at_due(*waiting)
        self.loop.call_later(AGAIN_S, self._place, waiting, None, None, context=self._context)

    def rescue(self, batch: list[Waiting], shard: Shard, error: StoreUnavailable) -> None:
        """Nothing was charged there: ask where the slot is by now; if that is the same place, it is away."""
        for waiting in batch:
            self._house_later(waiting, shard, error)

    def hear(self) -> None:
        """Hear where slots are, soon; then place who waits for it."""
        if self._hearing or self._closed:
            return
        heard = self.store.refresh()
        if heard is not None:
            self._hearing = True
            self._start(self._hear(heard))
        else:
            self._house()

    def hear_now_and_then(self) -> None:
        """Hear whether another server has the slots of one that is away."""
        if self.loop.time() - self._heard_s > HEAR_EVERY_S:
            self.hear()

    async def _hear(self, heard: Awaitable[None]) -> None:
        try:
            await heard
        finally:
            self._hearing = False
            self._heard_s = self.loop.time()
            if not self.store.shards():
                self._outage.failed(self._nowhere(), self._homeless[0][0][0].names[0] if self._homeless else b"")
            else:
                self._outage.answered()
            self._house()
        has = set(self.store.shards())
        for shard, lane in list(self._lanes.items()):
            if shard not in has and lane.idle:
                await self._lanes.pop(shard).retire()

    async def _look(self, _: Ask) -> None:
        """The probe while nobody says where slots are."""
        heard = self.store.refresh()
        if heard is not None:
            await heard
        if not self.store.shards():
            raise self._nowhere()

    def _changed(self, is_open: bool) -> None:
        if is_open:
            self._counters.opened += 1
        else:
            self._counters.closed += 1
        self._house()

    def _nowhere(self) -> StoreUnavailable:
        return StoreUnavailable(self.store.why, reason="connection", maybe_done=False)

    def _house_later(self, waiting: Waiting, failed_at: Shard | None, error: StoreUnavailable | None) -> None:
        self._homeless.append((waiting, failed_at, error))
        self._at_due(*waiting)
        if self._closed:
            self._house()
        else:
            self.hear()

    def _at_due(self, ask: Ask, answer: "asyncio.Future[Decision]", due: float) -> None:
        """Decide it at its deadline, whoever has not done so by then. Late is late: a call may be under way."""
        self.loop.call_at(due, self._answer, ask, answer, late(), context=self._context)

    def _house(self) -> None:
        homeless, self._homeless = self._homeless, []
        for waiting, failed_at, error in homeless:
            self._place(waiting, failed_at, error)

    def _place(self, waiting: Waiting, failed_at: Shard | None, error: StoreUnavailable | None) -> None:
        ask, answer, _ = waiting
        shard = self.store.shard(self.store.slot(ask.names[0]))
        if shard is None or shard is failed_at or self._closed:
            self._answer(ask, answer, error or self._nowhere())
        elif not answer.done():
            self._lane(shard).put_back(waiting)

    # ── several slots ────────────────────────────────────────────────────────────────────────────────────────

    def _several(self, ask: Ask, *, here: bool = False) -> "asyncio.Future[Decision]":
        answer: asyncio.Future[Decision] = self.loop.create_future()
        self._at_due(ask, answer, self.loop.time() + self._deadline_s)
        self._start(self._decide(ask, answer, here))
        return answer

    async def _decide(self, ask: Ask, answer: "asyncio.Future[Decision]", here: bool) -> None:
        try:
            if isinstance(ask, TokenAsk) and not here:
                await self._of(remade(ask, [], ask.kind, at_us=ask.at_us))
            parts = self._parts(ask)
            if here and not isinstance(ask.at_us, Moment):
                decision = await self._found(ask, parts)
            elif ask.kind == CHARGE:
                decision = await self._in_turn(ask, parts, answer)
            else:
                decisions = await asyncio.gather(*map(self._decided, parts))
                told = list(zip(parts, decisions, strict=True))
                decision = _join(ask, told, told)
        except (StoreUnavailable, InvalidInput) as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(decision)

    async def _in_turn(self, ask: Ask, parts: list[Part], answer: "asyncio.Future[Decision]") -> Decision:
        """Charge part after part; if one refuses, or nobody waits any more, what was charged is given back."""
        told: list[tuple[Part, Decision]] = []
        once = isinstance(ask, TokenAsk)
        try:
            for part in parts:
                told.append((part, await self._of(part.ask)))
                if not told[-1][1].allowed or (answer.done() and not once):
                    break
        except StoreUnavailable:
            if not once:
                await self._give_back(ask, told)
            raise
        if not told[-1][1].allowed:
            rest = [(part, Ask(part.ask.charges, LOOK)) for part in parts[len(told) :]]
            back, looks = await asyncio.gather(
                self._give_back(ask, told[:-1]), asyncio.gather(*(self._of(look) for _, look in rest))
            )
            shown = [(part, decision) for (part, _), decision in zip(rest, looks, strict=True)]
            return _join(ask, [*back, told[-1], *shown], told)
        if answer.done() and not once:
            await self._give_back(ask, told)
        return _join(ask, told, told)

    async def _give_back(self, ask: Ask, told: "list[tuple[Part, Decision]]") -> "list[tuple[Part, Decision]]":
        """Undo charges. Returns how the limits stand then, or stood if a server does not answer."""
        found = await asyncio.gather(*(self._undone(ask, *one) for one in told))
        return list(zip((part for part, _ in told), found, strict=True))

    async def _undone(self, ask: Ask, part: Part, decision: Decision) -> Decision:
        try:
            token = _beside(part.ask.charges[0].key, ask.token, "back") if isinstance(ask, TokenAsk) else None
            back = remade(ask, part.ask.charges, GIVE_BACK, token=token, at_us=decision.at_us)
            return await (super().stand_in(back, here=True) if decision.degraded else self._of(back))
        except StoreUnavailable:
            self._counters.unsettled += 1
            return decision

    def _decided(self, part: Part) -> "asyncio.Future[Decision]":
        """What undoes or settles a part that was decided without the store is decided without it, too."""
        return super().stand_in(part.ask, here=True) if part.here else self._of(part.ask)

    async def _found(self, ask: Ask, parts: list[Part]) -> Decision:
        """Settle, renew or release what was charged while some server was away: each part where it is known.

        In turn: of two that settle at different costs one is told so before it has done anything. What another worker
        knows is told as unknown once the rest is done.
        """
        if isinstance(ask, SettleAsk) and (decision := await self._known_here(ask)):  # all of it, at its deadline
            return decision
        told: list[tuple[Part, Decision]] = []
        unknown: NotHeld | None = None
        for part in parts:
            try:
                told.append((part, await self._known(part.ask)))
            except NotHeld as error:
                unknown = error
        if unknown is not None:
            raise unknown
        return _join(ask, told, told)

    async def _known(self, ask: Ask) -> Decision:
        """Of limits that are `allow` nobody knows here: then the store is asked first."""
        if decision := await self._known_here(ask):
            return decision
        allows = self._fallback.policy(ask) == "allow"
        try:
            decision = await self._of(ask)
        except (NotHeld, StoreUnavailable):
            if not allows:
                raise
        else:
            if decision.allowed or not allows:
                return decision
        return await super().stand_in(ask, here=True)

    async def _known_here(self, ask: Ask) -> Decision | None:
        """The decision without the store, where that has charged it here."""
        if self._fallback.policy(ask) != "local":
            return None
        try:
            decision = await super().stand_in(ask, here=True)
        except NotHeld:
            return None
        return decision if decision.allowed else None

    def _of(self, ask: Ask) -> "asyncio.Future[Decision]":
        return self._one(ask, self.store.slot(ask.names[0]))

    def _parts(self, ask: Ask) -> list[Part]:
        slots: dict[int, list[int]] = {}
        for index, charge in enumerate(ask.charges):
            slots.setdefault(self.store.slot(charge.key), []).append(index)
        return sorted((self._part(ask, slot, indexes) for slot, indexes in slots.items()), key=_order)

    def _part(self, ask: Ask, slot: int, indexes: Sequence[int]) -> Part:
        charges = [ask.charges[index] for index in indexes]
        at_us, here = ask.at_us, False
        if isinstance(at_us, Moment):
            before = at_us.by_slot.get(slot)
            at_us, here = (int(at_us), False) if before is None else (before.at_us, before.degraded)
        token = _beside(charges[0].key, ask.token, "once") if isinstance(ask, TokenAsk) else None
        own = remade(ask, charges, ask.kind, token=token, at_us=at_us)
        return Part(slot, tuple(indexes), own, here)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        self._closed = True
        probing = self._outage.close()
        if probing is not None and probing is not asyncio.current_task():
            await asyncio.gather(probing, return_exceptions=True)
        await asyncio.gather(*(lane.aclose() for lane in self._lanes.values()))
        self._house()
        for task in [task for task in self._tasks if task is not asyncio.current_task()]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.store.aclose()


def _order(part: Part) -> tuple[int, bytes]:
    """The same for everybody, so that no two asks hold what the other one wants; likely refusals first."""
    return min((charge.limit.capacity, charge.key) for charge in part.ask.charges)


def _beside(counter: bytes, token: Token, word: str) -> Token:
    return token._replace(key=keys.beside(counter, token.key, word))


def _join(ask: Ask, shown: "list[tuple[Part, Decision]]", told: "list[tuple[Part, Decision]]") -> Decision:
    """The decision on all limits of an ask, as they are shown; `told` are the decisions on parts that made it."""
    standings: list[Standing | None] = [None] * len(ask.charges)
    for part, decision in shown:
        for index, standing in zip(part.indexes, decision.standings, strict=True):
            standings[index] = standing
    kind = Replayed if all(decision.replayed for _, decision in told) else Decision
    if any(decision.degraded for _, decision in shown):
        kind = Degraded
    at_us = Moment.of({part.slot: decision for part, decision in shown})
    allowed = all(decision.allowed for _, decision in told)
    return kind(allowed, at_us, tuple(standing for standing in standings if standing))

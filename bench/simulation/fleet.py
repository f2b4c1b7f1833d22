"""Workers, each an engine of its own, and the callers behind them."""

import asyncio
from collections.abc import Callable
from random import Random

from bench.simulation.faults import Plan
from bench.simulation.ledger import Asked, Ledger
from bench.simulation.loop import VirtualLoop
from bench.simulation.network import EPOCH_US, Link, Server, SimulatedStore
from service.errors import StoreUnavailable
from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, DEBIT, GIVE_BACK, LOOK, Ask, Charge, Decision, LeaseAsk, TokenAsk
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.limit import Limit
from service.limits.share import Place, share
from service.limits.spent import Spent
from service.limits.token import token

DEADLINE_S = 0.25

SHORT = {
    name: [Limit(amount=amount, window_s=window_s, algorithm=name) for amount, window_s in ((3, 1), (10, 1), (7, 2))]
    for name in ALGORITHMS
}
"""Limits that fill and empty several times within a run."""
LONG = {name: Limit(amount=12, window_s=360 * 86_400, algorithm=name) for name in ALGORITHMS}
"""Limits of which no unit comes back within a run: gcra's first after a month."""

HELD = Limit(amount=3, window_s=1, algorithm="concurrency")
"""Units that are held, and fall back after a second unless they are renewed."""

MakeStore = Callable[[Link], SimulatedStore]


def charge(identity: str, limit: Limit, cost: int = 1) -> Charge:
    return Charge(limit, keys.spell("", identity, "sim", limit.spelling), cost)


class Worker:
    """One process.

    Attributes:
        dead: It is gone: what it still seems to do, nobody sees.
    """

    def __init__(self, name: str, link: Link, ledger: Ledger, make_store: MakeStore, fallback: Fallback) -> None:
        self.name = name
        self.link = link
        self.dead = False
        self._ledger = ledger
        self.engine = Engine(lambda: make_store(link), DEADLINE_S, fallback=fallback)

    async def decide(self, ask: Ask, of: Ask | None = None, *, here: bool = False) -> Decision | None:
        """Ask, and put down what came out. None: nobody could decide."""
        asked = self._ledger.asks(self.name, ask, of, at_once=here or self.link.given_up)
        try:
            decision = await self.engine.decide(ask, here=here)
        except StoreUnavailable as error:
            self._tell(asked, error)
            return None
        except asyncio.CancelledError:
            self._ledger.gone(asked)
            raise
        self._tell(asked, decision)
        return decision

    def _tell(self, asked: Asked, outcome: Decision | StoreUnavailable) -> None:
        if self.dead:
            self._ledger.gone(asked)
        else:
            self._ledger.told(asked, outcome)


class Fleet:
    """All workers and their clients.

    Attributes:
        workers: By slot; a slot's worker may be replaced.
        retired, killed: Those that were, in good order or not.
    """

    def __init__(
        self,
        plan: Plan,
        random: Random,
        loop: VirtualLoop,
        ledger: Ledger,
        server: Server,
        open_: Callable[[str, Fallback], Worker],
    ) -> None:
        self._plan = plan
        self._random = random
        self._loop = loop
        self._ledger = ledger
        self._server = server
        self._open = open_
        self._number = 0
        self._tokens = 0
        self._leases = 0
        self._spent = [Spent(clock=lambda: EPOCH_US + loop.now_us) for _ in range(plan.workers)]
        self.workers = [self._new(slot) for slot in range(plan.workers)]
        self.retired: list[Worker] = []
        self.killed: list[Worker] = []

    def _new(self, slot: int) -> Worker:
        """Whoever has a slot goes on with what its last one spent by itself."""
        self._number += 1
        fallback = Fallback(self._plan.on_outage, spent=self._spent[slot], place=lambda: self.place(slot))
        return self._open(f"worker {self._number}", fallback)

    def place(self, slot: int) -> Place:
        return Place(slot=slot, workers=self._plan.workers)

    def kill(self, slot: int) -> None:
        """SIGKILL: another process takes the slot."""
        old, self.workers[slot] = self.workers[slot], self._new(slot)
        old.dead = True
        old.link.die()
        self.killed.append(old)

    async def retire(self, slot: int) -> None:
        """The end in good order, with whatever is under way; nothing stays open."""
        old, self.workers[slot] = self.workers[slot], self._new(slot)
        self.retired.append(old)
        await old.engine.aclose()
        if any(connection.link is old.link for connection in self._server.open.values()):
            self._ledger.fault(f"{old.name} closed its engine, and left a connection")

    async def run(self) -> None:
        """All clients, until their time is up."""
        clients = [
            asyncio.ensure_future(kind(slot, number))
            for slot in range(self._plan.workers)
            for number in range(self._plan.clients)
            for kind in (self._crowd, self._lone, self._again, self._holder)
        ]
        await asyncio.gather(*clients)

    async def _pause(self, most_us: int) -> bool:
        """A while; whether there is time for more."""
        await asyncio.sleep(self._random.randint(0, most_us) / 1_000_000)
        return self._loop.now_us < self._plan.length_us

    # ── many callers at once, who share counters ─────────────────────────────────────────────────────────────

    async def _crowd(self, slot: int, _number: int) -> None:
        while await self._pause(400_000):
            callers = [asyncio.ensure_future(self._caller(slot)) for _ in range(self._random.randint(1, 8))]
            for caller in callers:
                if self._random.random() < self._plan.leaving:
                    self._loop.call_later(self._random.randint(0, 30_000) / 1_000_000, caller.cancel)
            await asyncio.gather(*callers, return_exceptions=True)

    async def _caller(self, slot: int) -> None:
        random, worker = self._random, self.workers[slot]
        if random.random() < 0.3:
            await worker.decide(Ask([charge("all", random.choice(list(LONG.values())))]))
            return
        charges = self._mixed()
        kind = random.choices((CHARGE, LOOK, DEBIT), (20, 2, 1))[0]
        if kind == DEBIT:
            charges = [one._replace(key=one.key.replace(b"{", b"{debit.")) for one in charges]
        ask = Ask(charges, kind)
        decision = await worker.decide(ask)
        if kind == CHARGE and decision is not None and decision.allowed and random.random() < 0.1:
            await asyncio.sleep(random.randint(0, 500_000) / 1_000_000)
            back = Ask(charges, GIVE_BACK, decision.at_us)
            await self.workers[slot].decide(back, ask, here=decision.degraded)

    def _mixed(self) -> list[Charge]:
        """One to three limits of one caller; some of several units."""
        random = self._random
        who = random.choice(("ann", "bob", "cid"))
        found: dict[bytes, Charge] = {}
        for _ in range(random.randint(1, 3)):
            limit = random.choice(random.choice(list(SHORT.values())))
            one = charge(who, limit, random.choice((1, 1, 1, 2, limit.capacity)))
            found[one.key] = one
        return list(found.values())

    # ── one caller with a counter of its own, who waits as long as it is told ────────────────────────────────

    async def _lone(self, slot: int, number: int) -> None:
        limit = self._random.choice(SHORT[self._random.choice(list(SHORT))])
        while await self._pause(150_000):
            one = charge(f"lone{slot}.{number}", limit, self._random.choice((1, 2)))
            before = self._seen(one.key)
            decision = await self.workers[slot].decide(Ask([one]))
            if decision is None or decision.allowed:
                continue
            await asyncio.sleep(decision.retry_us / 1_000_000)
            again = await self.workers[slot].decide(Ask([one]))
            if again is None or again.allowed or again.degraded != decision.degraded:
                continue
            if decision.degraded:
                part = share(limit, self.place(slot))
                undisturbed = part is not None and one.cost <= part.capacity
            else:
                undisturbed = self._seen(one.key) == before
            if undisturbed:
                wait = f"{decision.retry_us} us after it was told to wait so long"
                self._ledger.fault(f"{one.key.decode()} passed not, {wait}")

    def _seen(self, key: bytes) -> tuple[int, int, int]:
        return self._ledger.charges[key], self._ledger.losses, self._server.steps_back

    # ── one caller who asks until answered, with a token ─────────────────────────────────────────────────────

    async def _again(self, slot: int, number: int) -> None:
        limit = self._random.choice(SHORT[self._random.choice(list(SHORT))])
        while await self._pause(500_000):
            self._tokens += 1
            same = token(f"t{self._tokens}", b"content", owner="sim")
            for _ in range(4):
                one = charge(f"again{number}", limit)
                if await self.workers[slot].decide(TokenAsk([one], same)) is not None:
                    break
                await asyncio.sleep(self._random.randint(0, 100_000) / 1_000_000)

    # ── one caller who holds a unit, of three that all share ─────────────────────────────────────────────────

    async def _holder(self, slot: int, _number: int) -> None:
        """Sometimes longer than the lease lasts, with or without renewing it; sometimes it is never given back."""
        random, held = self._random, charge("all", HELD)
        while await self._pause(400_000):
            self._leases += 1
            lease = f"lease-{self._leases}"
            decision = await self.workers[slot].decide(LeaseAsk([held], lease))
            while decision is not None and decision.allowed:
                await asyncio.sleep(random.randint(0, 1_300_000) / 1_000_000)
                if random.random() < 0.5:
                    break
                decision = await self.workers[slot].decide(LeaseAsk([held], lease))
            if decision is not None and decision.allowed and random.random() < 0.7:
                back = LeaseAsk([held], lease, GIVE_BACK)
                await self.workers[slot].decide(back, here=decision.degraded)

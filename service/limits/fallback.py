"""What is answered in the store's stead, by each limit's `on_outage`.

    deny    nobody can decide: StoreUnavailable, told as 503 with Retry-After
    local   this worker's share of the limit (`share.py`), counted by the twins in this process (`spent.py`)
    allow   it passes, and is not counted

An ask whose limits have several: with one `deny` among them it is denied, and nothing is counted; else the local ones
decide, all or nothing, and the others let it pass.

How far that can be from exact. The workers of all hosts together admit at most the limit by their shares, so in the
window in which an outage begins or ends at most twice the limit passes: once by the store, once without. If the number
of workers is changed in an outage, those that were there may have spent larger shares: at most one share more for each
worker that was added or taken away. Under a server that is not our runner a worker knows how many there are but not
which it is, so the rest of a division is nobody's, and a worker that is replaced has its share again.

Units are given back where they were charged: `Decision.degraded` tells. Leases that are held here are known as such,
and renewed and released here. What the store has charged stays so while it is away; what was used beyond (a debit) is
counted here.
"""

from collections.abc import Callable, Iterator
from functools import cache

from service import status
from service.errors import StoreUnavailable
from service.limits.decision import (
    CHARGE,
    GIVE_BACK,
    LOOK,
    RENEW,
    Alike,
    Ask,
    Charge,
    Decision,
    Decisions,
    Degraded,
    LeaseAsk,
    SettleAsk,
    Standing,
    read,
    remade,
)
from service.limits.limit import OnOutage
from service.limits.share import Place, share
from service.limits.spent import Spent, of_slot
from service.settings import several_workers

AGAIN_US = 1_000_000
"""The wait told to whom this worker's share never admits: the store is looked for once a second."""


class Fallback:
    """Decides without a store.

    Args:
        on_outage: For limits that do not say.
        hosts: How many share the counters.
        spent: The counters; None = those of this worker's slot, without our runner ones of its own.
        place: Where this worker stands; None = as the runner says, else as the server's command line does.
    """

    def __init__(
        self,
        on_outage: OnOutage = "local",
        *,
        hosts: int = 1,
        spent: Spent | None = None,
        place: Callable[[], Place] | None = None,
    ) -> None:
        self.on_outage = on_outage
        self._hosts = hosts
        self._spent = spent
        self._place = place or self._found

    def policy(self, ask: Ask) -> OnOutage:
        """The strictest of its limits'."""
        found = {self._policy(charge) for charge in ask.charges}
        return "deny" if "deny" in found else "local" if "local" in found else "allow"

    def decide(self, ask: Ask, error: StoreUnavailable, *, here: bool = False) -> Decision:
        """The decision without the store; for `Alike`, `Decisions`.

        Args:
            ask: Of any kind.
            error: Why the store does not decide.
            here: What is to be undone or settled was charged here.

        Raises:
            StoreUnavailable: Nobody decides: `deny`, or the store has what is to be given back, renewed or settled.
            InvalidInput: Its token came with other content before.
        """
        if isinstance(ask, Alike):
            return Decisions.of(ask, [self.decide(one, error) for one in ask.each()])  # type: ignore[return-value]
        elsewhere = ask.kind in (GIVE_BACK, RENEW) or isinstance(ask, SettleAsk)
        if not here and (self.policy(ask) == "deny" or (elsewhere and not self._holds(ask))):
            raise error.once_more()
        counted = [charge for charge in ask.charges if self._policy(charge) == "local"]
        at_us, told = self._count(ask, counted) if counted else (self._counters().clock(), [])
        by_key = {charge.key: standing for charge, standing in zip(counted, told, strict=True)}
        standings = tuple(
            by_key.get(key) or Standing(limit, cost, limit.capacity, 0, 0, 0) for limit, key, cost in ask.charges
        )
        return Degraded(not any(standing.retry_us for standing in standings), at_us, standings)

    def _holds(self, ask: Ask) -> bool:
        """Whether a lease's units are held here; of all else it is the caller who knows."""
        if ask.lease is None:
            return False
        held = [charge for charge in ask.charges if charge.limit.leases and self._policy(charge) == "local"]
        if not held:
            return True  # nobody counts it
        _, standings = self._count(LeaseAsk(held, ask.lease, RENEW), held)
        return not any(standing.retry_us for standing in standings)

    def _policy(self, charge: Charge) -> OnOutage:
        return charge.limit.on_outage or self.on_outage

    def _count(self, ask: Ask, charges: list[Charge]) -> tuple[int, list[Standing]]:
        """When, and where these charges stand by this worker's shares; carried out if all of them pass."""
        spent, place = self._counters(), self._place()
        mine = spent.mine()
        shares = [share(charge.limit, place) if mine else None for charge in charges]
        asking = ask.kind in (CHARGE, LOOK)
        fit = [
            part is not None and (not asking or cost <= part.capacity)
            for part, (_, _, cost) in zip(shares, charges, strict=True)
        ]
        kind = ask.kind if all(fit) or not asking else LOOK  # beyond the share of one, the others only look
        parts = [
            Charge(part, charge.key, charge.cost if fits else 0)
            for part, charge, fits in zip(shares, charges, fit, strict=True)
            if part is not None
        ]
        at_us = spent.clock()
        found: Iterator[Standing] = iter(())
        if parts:
            of_mine = remade(ask, parts, kind, at_us=ask.at_us)
            numbers = spent.decide(of_mine)
            _, at_us, told = read(of_mine, numbers[0], numbers, 1)
            found = iter(told)
        standings = []
        for charge, part, fits in zip(charges, shares, fit, strict=True):
            wait_us = AGAIN_US if not fits and ask.kind in (CHARGE, LOOK, RENEW) else 0
            standing = Standing(charge.limit, charge.cost, 0, wait_us, wait_us, wait_us)
            if part is not None:
                standing = next(found)._replace(limit=charge.limit, cost=charge.cost)
                standing = standing if fits else standing._replace(retry_us=wait_us)
            standings.append(standing)
        return at_us, standings

    def _counters(self) -> Spent:
        if self._spent is None:
            slot = status.slot()
            self._spent = Spent() if slot is None else of_slot(slot)
        return self._spent

    def _found(self) -> Place:
        slot = status.slot()
        if slot is not None:
            return Place(slot=slot.number, workers=status.told().workers, hosts=self._hosts)
        workers = _siblings()
        return Place(slot=0 if workers == 1 else None, workers=workers, hosts=self._hosts)


@cache
def _siblings() -> int:
    return several_workers() or 1

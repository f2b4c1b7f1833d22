"""Charge an estimate now, and the true cost when it is known.

    reserve(100)  the estimate is charged, if there is room; who comes next sees it
    settle(40)    60 are given back as of the instant they were charged; settle(160) debits 60 more: never refused, but
                  whoever comes next waits for it
    release()     settle(0)

Once: settled again at the same cost it answers the same, at another it is an error. What is not settled in time stays
charged and ages out with its window: nobody is admitted who should not have been. What is given back after its window
has gone by gives nothing: the window has forgotten it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.errors import InvalidInput, NotHeld
from service.limits import ticket as tickets
from service.limits.decision import DEBIT, GIVE_BACK, Charge, Decision, SettleAsk, Token, TokenAsk
from service.limits.engine import Engine
from service.limits.limit import LARGEST_AMOUNT
from service.limits.ticket import Ticket

TTL_S = 600
"""How long a reservation is open, seconds, unless said otherwise."""

LONGEST_TTL_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What was reserved, or that it was refused.

    Attributes:
        decision: The answer to the estimate.
        ttl_s: How long it may be settled, seconds from `decision.at_us` on.
        id: For whoever settles it elsewhere (`limiter.settle(id, cost)`); unguessable; "" if it was refused.
    """

    decision: Decision
    ttl_s: int
    id: str = field(repr=False)
    _engine: Engine = field(repr=False)
    _owner: str = field(repr=False)

    @property
    def allowed(self) -> bool:
        """Whether there was room; if not, nothing was charged."""
        return self.decision.allowed

    async def settle(self, cost: int) -> Decision:
        """Make it cost `cost`, 0 to 10^9, and tell where the limits stand then.

        Raises:
            NotHeld: It was refused, or is open no longer.
            AlreadySettled: At another cost.
            InvalidInput: The cost is none.
            StoreUnavailable: Nobody could tell; try again.
        """
        if not self.allowed:
            raise NotHeld("id", "the reservation was refused; there is nothing to settle")
        return await settle(self._engine, self.id, cost, owner=self._owner)

    async def release(self) -> Decision:
        """Give all of it back."""
        return await self.settle(0)


async def reserve(
    engine: Engine,
    charges: Sequence[Charge],
    cost: int,
    *,
    ttl_s: int = TTL_S,
    owner: str = "",
    token: Token | None = None,
) -> Reservation:
    """Charge an estimate, all limits or none.

    Args:
        engine: Of the counters.
        charges: Each at `cost`, or a multiple of it where several descriptors share a counter.
        cost: The estimate, at least 1.
        ttl_s: How long it may be settled, seconds; 1 to 86,400.
        owner: Whose it is: with another owner its id is unknown.
        token: Asked again with it, the same reservation is answered.

    Raises:
        InvalidInput: A value is wrong, or the token came with other content before; nothing was charged.
        StoreUnavailable: Nobody could decide.
    """
    if type(cost) is not int or cost < 1:
        raise InvalidInput("cost", f"{cost!r}: an estimate is a whole number of at least 1")
    whole_ttl(ttl_s, LONGEST_TTL_S)
    random = tickets.random() if token is None else tickets.derived(token)
    keep_s = ttl_s if token is None else max(ttl_s, token.keep_s)
    ticket = tickets.admissible(Ticket(random, tuple(charges), ttl_s, cost, keep_s))
    if token is not None:  # bound to its first content, wherever that charged
        await engine.decide(TokenAsk([], token))
    decision = await engine.decide(TokenAsk(ticket.charges, ticket.token(owner)))
    ticket = ticket._replace(here=decision.degraded)
    return Reservation(
        decision=decision, ttl_s=ttl_s, id=ticket.text if decision.allowed else "", _engine=engine, _owner=owner
    )


async def settle(engine: Engine, id: str, cost: int, *, owner: str = "") -> Decision:
    """As `Reservation.settle`, of the one with this id and owner."""
    ticket, cost = tickets.read(id), units(cost)
    if ticket.cost < 1:
        raise NotHeld("id", "is that of a lease")
    charges = tuple(
        charge._replace(cost=0 if charge.limit.leases else min(LARGEST_AMOUNT, _differs(charge, ticket, cost)))
        for charge in ticket.charges
    )
    kind = GIVE_BACK if cost < ticket.cost else DEBIT
    ask = SettleAsk(charges, ticket.token(owner), kind, cost, ticket.ttl_s)
    return await asyncio.shield(engine.decide(ask, here=ticket.here))  # sent, whoever does not wait for the answer


def _differs(charge: Charge, ticket: Ticket, cost: int) -> int:
    return charge.cost // ticket.cost * abs(cost - ticket.cost)


def units(cost: object, where: str = "cost") -> int:
    """A true cost: 0 to 10^9, however much the limits admit. Raises InvalidInput naming `where`."""
    if type(cost) is not int or not 0 <= cost <= LARGEST_AMOUNT:
        raise InvalidInput(where, f"{cost!r} is out of range; use a whole number, 0 to {LARGEST_AMOUNT}")
    return cost


def whole_ttl(ttl_s: object, longest_s: int) -> int:
    """How long something is held, seconds. Raises InvalidInput."""
    if type(ttl_s) is not int or not 1 <= ttl_s <= longest_s:
        raise InvalidInput("ttl_s", f"{ttl_s!r} is out of range; use whole seconds, 1 to {longest_s}")
    return ttl_s

"""What a request was charged by an estimate, settled at its true cost: `await limiter.settle(request, tokens)`.

It concerns limits declared with a `cost=`; a limit of requests (cost 1) counts requests. Once a request: at the same
cost again it answers the same, at another it is an error. What is never settled stays charged, as estimated.
"""

import asyncio
from collections.abc import Sequence

from service.errors import AlreadySettled
from service.limits import keys
from service.limits import ticket as tickets
from service.limits.decision import DEBIT, GIVE_BACK, Decision, Token, TokenAsk
from service.limits.engine import Engine
from service.limits.passage import Admission
from service.limits.reservation import units

RETRIED_S = 60
"""How long a settlement is known to Redis, seconds: whoever got no answer may ask again."""


async def settle(engine: Engine, admissions: Sequence[Admission], cost: int) -> Decision | None:
    """As `Limiter.settle` of a request, whose admissions these are."""
    units(cost)
    told = [decision for one in admissions if (decision := await _settle(engine, one, cost)) is not None]
    if not told:
        return None
    return told[-1]._replace(standings=tuple(standing for one in told for standing in one.standings))


async def _settle(engine: Engine, admission: Admission, cost: int) -> Decision | None:
    decision = admission.decision
    if decision is None or not decision.allowed:
        return None
    mine = [
        index
        for index, (rule, charge) in enumerate(zip(admission.rules, admission.charges, strict=True))
        if rule.cost != 1 and not charge.limit.leases and charge.key not in admission.returned
    ]
    if not mine:
        return None
    if admission.settling is None:
        admission.settling = cost, tickets.random()
    if admission.settling[0] != cost:
        raise AlreadySettled("cost", f"the request was settled before, at {admission.settling[0]}")
    if not admission.true_cost:
        await _carry_out(engine, admission, decision, mine, cost)
    assert admission.decision is not None
    return admission.decision._replace(standings=tuple(admission.decision.standings[index] for index in mine))


async def _carry_out(engine: Engine, admission: Admission, decision: Decision, mine: Sequence[int], cost: int) -> None:
    """Give back where it was too much, debit where it was too little; headers still to come tell how that stands."""
    assert admission.settling is not None
    charges, standings = list(admission.charges), list(decision.standings)
    too_much = [index for index in mine if charges[index].cost > cost]
    rest = [index for index in mine if charges[index].cost <= cost]
    for kind, part in ((GIVE_BACK, too_much), (DEBIT, rest)):
        if not part:
            continue
        differing = [charges[index]._replace(cost=abs(charges[index].cost - cost)) for index in part]
        name = f"{admission.settling[1]}{kind}".encode()
        token = Token(keys.beside(differing[0].key, name, "once"), bytes(16), RETRIED_S)
        ask = TokenAsk(differing, token, kind, decision.at_us)
        found = await asyncio.shield(engine.decide(ask, here=decision.degraded))  # also for a client that has left
        for index, standing in zip(part, found.standings, strict=True):
            standings[index] = standing._replace(cost=cost)
    for index in mine:
        charges[index] = charges[index]._replace(cost=cost)
    admission.charges, admission.true_cost = charges, True
    admission.decision = decision._replace(standings=tuple(standings))

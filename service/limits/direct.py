"""What an app asks its limiter by itself, beside its routes: check, refund, reserve and settle, lease.

check    → one decision
refund   → what a check charged, given back
reserve  → an estimate charged; its true cost when it is known: settle
lease    → one of so many units, held while a block runs
"""

from collections.abc import Sequence

from starlette.requests import HTTPConnection

from service.errors import InvalidInput, InvalidLimit
from service.limits import keys, settling
from service.limits.decision import CHARGE, GIVE_BACK, LOOK, Ask, Charge, Decision, Token, TokenAsk
from service.limits.engine import Engine
from service.limits.held import Holding
from service.limits.limit import Limit, OnOutage
from service.limits.passage import made
from service.limits.plan import outside
from service.limits.reservation import TTL_S, Reservation, reserve, settle
from service.limits.token import token


class Direct:
    """These questions; a limiter has them.

    Attributes:
        engine: What decides.
        strategy: How is counted, unless a question says otherwise.
    """

    engine: Engine
    strategy: str
    _key_prefix: str

    def check_deployment(self) -> None:
        """Raises ConfigurationError if the counters are not where they must be."""
        raise NotImplementedError

    async def check(
        self,
        key: str,
        limits: str | Sequence[Limit],
        *,
        cost: int = 1,
        scope: str = "",
        strategy: str | None = None,
        burst: int | None = None,
        peek: bool = False,
        idempotency_key: str | None = None,
    ) -> Decision:
        """One decision outside a request.

        Args:
            key: Who is charged.
            limits: Limits in notation, all or nothing; or ready ones.
            cost: Units, 0 to the smallest limit; 0 looks without spending.
            scope: What is limited; checks with different scopes do not meet.
            strategy: Another way to count than the limiter's.
            burst: For "gcra".
            peek: Look without spending.
            idempotency_key: Asked again with it within 24 hours, the first decision comes again (`replayed`, its
                times as of then) and nothing is charged. 1 to 255 visible characters; each `scope` has its own.

        Raises:
            InvalidInput: A value is wrong, or the idempotency key came with other values before; nothing was charged.
            InvalidLimit: A limit cannot be meant.
            StoreUnavailable: No answer within the deadline, and `on_outage` is "deny".
        """
        wanted = self._charges(key, limits, cost, scope, strategy, burst)
        if idempotency_key is None or peek:
            return await self.engine.decide(Ask(wanted, LOOK if peek else CHARGE))
        return await self.engine.decide(TokenAsk(wanted, self._once(idempotency_key, cost, wanted, outside(scope))))

    async def refund(
        self,
        key: str,
        limits: str | Sequence[Limit],
        cost: int = 1,
        *,
        at_us: int | None = None,
        scope: str = "",
        strategy: str | None = None,
        burst: int | None = None,
        idempotency_key: str | None = None,
    ) -> Decision:
        """Give back what `check` with the same values charged; never more than is used.

        Args:
            cost: Units, 0 to the smallest limit.
            at_us: When it was charged, as `Decision.at_us` said: what has flowed back since is not given again, and
                what a window has forgotten not at all. None = just now.
            key, limits, scope, strategy, burst: As for `check`.
            idempotency_key: Asked again with it within 24 hours, nothing more is given back.

        Raises:
            InvalidInput, InvalidLimit: A value is wrong; nothing was given back.
            StoreUnavailable: Nobody could tell, or what was charged is where nobody answers; try again.
        """
        if at_us is not None and (not isinstance(at_us, int) or isinstance(at_us, bool) or at_us < 1):
            raise InvalidInput("at_us", f"{at_us!r} is no instant; use Decision.at_us, or None")
        wanted, at_us = self._charges(key, limits, cost, scope, strategy, burst), at_us or 0
        if idempotency_key is None:
            return await self.engine.decide(Ask(wanted, GIVE_BACK, at_us))
        once = self._once(idempotency_key, cost, wanted, f"back/{outside(scope)}")
        return await self.engine.decide(TokenAsk(wanted, once, GIVE_BACK, at_us))

    async def reserve(
        self,
        key: str,
        limits: str | Sequence[Limit],
        *,
        cost: int,
        ttl_s: int = TTL_S,
        scope: str = "",
        strategy: str | None = None,
        burst: int | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Charge an estimate now, and the true cost when it is known: `await reservation.settle(cost)`.

        Counts together with `check` of the same key, limits and scope.

        Args:
            cost: The estimate, 1 to the smallest limit.
            ttl_s: How long it may be settled, seconds; 1 to 86,400. Then the estimate stays charged, and ages out.
            key, limits, scope, strategy, burst: As for `check`.
            idempotency_key: Asked again with it within 24 hours, the same reservation comes again. Its id is then made
                of the key: use one that nobody guesses.

        Raises:
            InvalidInput, InvalidLimit: A value is wrong; nothing was charged.
            StoreUnavailable: No answer within the deadline, and `on_outage` is "deny".
        """
        wanted = self._charges(key, limits, cost, scope, strategy, burst)
        once = None
        if idempotency_key is not None:
            once = self._once(idempotency_key, (cost, ttl_s), wanted, f"hold/{outside(scope)}")
        return await reserve(self.engine, wanted, cost, ttl_s=ttl_s, token=once)

    async def settle(self, what: HTTPConnection | str, cost: int) -> Decision | None:
        """Make a request, or the reservation with this id, cost what is true.

        Of a request: what it was charged for limits that were declared with a `cost=`, once, as soon as it is known: in
        the endpoint, in its stream, or after it. Nothing of that is refused; what lacks delays who comes next.

        Args:
            what: The request as the endpoint has it, or a reservation's id.
            cost: The true cost, 0 to 10^9.

        Returns:
            Where these limits stand then; None if the request was charged nothing that could be settled.

        Raises:
            AlreadySettled: At another cost.
            NotHeld: There is no such reservation, or it is open no longer.
            InvalidInput: The cost is none.
            StoreUnavailable: Nobody could tell; try again at the same cost.
        """
        if isinstance(what, str):
            return await settle(self.engine, what, cost)
        return await settling.settle(self.engine, made(what.scope, self), cost)

    def lease(self, key: str, units: int, *, ttl_s: int = 60, scope: str = "") -> Holding:
        """Hold one of so many units while a block runs: `async with limiter.lease("alice", 3): ...`

        Args:
            key: Who holds.
            units: At most so many at once, over all processes; 1 to 10^9.
            ttl_s: How soon a unit comes back whose process died, seconds; it is renewed while the block runs.
            scope: What is held; leases with different scopes, units or `ttl_s` do not meet.

        Raises:
            InvalidInput: The key names nobody.
            InvalidLimit: The numbers cannot be meant.
            NotAdmitted: From the block's beginning: all are held.
            StoreUnavailable: From the block's beginning: nobody could decide.
        """
        if not isinstance(key, str) or not key:
            raise InvalidInput("key", f"{key!r} names nobody; use a non-empty string")
        self.check_deployment()
        held = at_once(units, ttl_s)
        name = keys.spell(self._key_prefix, key, outside(scope), held.spelling)
        return Holding(self.engine, [Charge(held, name, 1)])

    def _charges(
        self,
        key: str,
        limits: str | Sequence[Limit],
        cost: int,
        scope: str,
        strategy: str | None,
        burst: int | None,
    ) -> list[Charge]:
        """What is charged outside a request. Raises InvalidInput, InvalidLimit."""
        if not isinstance(key, str) or not key:
            raise InvalidInput("key", f"{key!r} names nobody; use a non-empty string")
        if isinstance(limits, str):
            limits = Limit.parse(limits, algorithm=strategy or self.strategy, burst=burst)
        if not limits:
            raise InvalidInput("limits", "none given; a check needs at least one")
        self.check_deployment()
        charges = {}
        for limit in limits:
            name = keys.spell(self._key_prefix, key, outside(scope), limit.spelling)
            charges[name] = Charge(limit, name, limit.admits(cost))
        return list(charges.values())

    def _once(self, text: str, said: object, charges: Sequence[Charge], owner: str) -> Token:
        content = b" ".join([str(said).encode(), *(charge.key for charge in charges)])
        return token(text, content, owner=owner, prefix=self._key_prefix)


def at_once(units: object, ttl_s: object, *, name: str = "", on_outage: OnOutage | None = None) -> Limit:
    """So many units at once. Raises InvalidLimit."""
    if type(units) is not int or type(ttl_s) is not int:
        raise InvalidLimit(f"concurrency {units!r}, ttl_s {ttl_s!r}: use whole numbers, for example 3 and 60")
    return Limit(amount=units, window_s=ttl_s, algorithm="concurrency", name=name, on_outage=on_outage)

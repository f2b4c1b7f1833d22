"""Lists, bans and newcomers together, as a request meets them."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from starlette.types import Scope

from service.limits import keys
from service.limits.access.bans import Bans
from service.limits.access.lists import Lists
from service.limits.access.newcomers import Crowd
from service.limits.decision import Ask, Charge, Decision
from service.limits.identity import Addresses, client_address
from service.limits.plan import Rule


class Weighed(NamedTuple):
    """What became of a request before it was counted.

    Attributes:
        rules: The rule of each charge.
        asked: What is left to ask; None if nothing is.
        listed: True: let in, uncounted; False: never let in; None: neither.
        decision: The refusal of whoever is banned.
    """

    rules: Sequence[Rule] = ()
    asked: Ask | None = None
    listed: bool | None = None
    decision: Decision | None = None


class Access:
    """The access of a limiter.

    Args:
        addresses: Who knows the client behind proxies.
        lists: None = none.
        bans: The same.
        crowd: The same.
        clock: Seconds, only going on; how long newcomers are remembered is told by it.
    """

    def __init__(
        self,
        addresses: Addresses,
        lists: Lists | None,
        bans: Bans | None,
        crowd: Crowd | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._lists = lists
        self.bans = bans
        self.crowd = crowd
        self._clock = clock
        self._banned = None
        if bans is not None:
            said = "banned for a while: too many requests were refused"
            self._banned = Rule(limits=(bans.ban.limit,), key_func=client_address, error_message=said, origin="ban")

    def listed(self, scope: Scope) -> bool | None:
        """Whether the client's address is always let in (True), never (False), or neither."""
        return None if self._lists is None else self._lists.address(self._addresses.address(scope))

    async def weigh(self, asked: Ask, rules: Sequence[Rule], vouched: Collection[bytes], scope: Scope) -> Weighed:
        """What is to be asked of the engine instead, or why nothing.

        Args:
            asked: What the plan asks.
            rules: The rule of each charge.
            vouched: The identities, as keys carry them, that clients cannot make up.
            scope: Of the request.

        Raises:
            StoreUnavailable: Nobody could decide.
        """
        everybody = {keys.bearer(charge.key) for charge in asked.charges}
        if self._lists is not None:
            listed = {self._lists.identity(who) for who in everybody}
            if True in listed or False in listed:
                return Weighed(listed=True in listed)
        if self.bans is not None:
            reading = self.bans.board.look()
            if reading is not None:
                await reading
            for who in everybody:
                refusal = self.bans.refusal(who)
                if refusal is not None:
                    return self._refused(asked, who, refusal)
        if self.crowd is not None and not everybody.issubset(vouched):
            now_us = int(self._clock() * 1_000_000)
            rules, asked = await self.crowd.placed(asked, rules, vouched, self._addresses.of(scope), now_us)
        return Weighed(rules, asked)

    def _refused(self, asked: Ask, who: bytes, refusal: Decision) -> Weighed:
        assert self._banned is not None
        charge = next(charge for charge in asked.charges if keys.bearer(charge.key) == who)
        limit = refusal.standings[0].limit
        return Weighed([self._banned], Ask([Charge(limit, charge.key, 1)]), None, refusal)

    def decided(self, asked: Ask, decision: Decision) -> None:
        """To be told of each decision: refusals are what bans are made of."""
        if decision.allowed or self.bans is None or decision.degraded:
            return
        refused = zip(asked.charges, decision.standings, strict=True)
        for who in {keys.bearer(charge.key) for charge, standing in refused if standing.retry_us}:
            if not who.startswith(keys.CROWD):
                self.bans.note(who)

"""How many identities that nobody vouches for may have counters of their own.

Whoever sends requests can write a new name into each of them or, with a /32 of IPv6, come from a new address each time:
5 million of them would fill the memory of a Redis, and then nobody can be counted. So a worker lets `most` of them have
counters; it remembers these as long as their counters live. Whoever comes beyond that shares one counter of the same
limit with all newcomers of its network: /16 of IPv4, /48 of IPv6, and beyond `networks` of those, with everybody's.

Who has a live counter already, because another worker let it in, keeps it: before a newcomer is sent to the crowd, the
store is asked, in one more call. Identities that are vouched for have their own counters, always.

So live counters of those nobody vouches for are at most (most + networks + 1) × workers × counters of a request (its
limits, and two for bans). Each of them gets at most what its network's counter has left, once, and then its own limit.
A worker needs some 100 bytes for each that it remembers.
"""

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from service.errors import ConfigurationError
from service.limits import keys
from service.limits.decision import LOOK, Ask, Charge
from service.limits.engine import Engine
from service.limits.limit import Limit
from service.limits.plan import Rule

EVERYBODY = keys.crowd("all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomers:
    """How many there may be.

    Attributes:
        most: Identities that nobody vouches for, with live counters of their own; a worker's.
        networks: Networks whose other newcomers share a counter; a worker's.
    """

    most: int = 100_000
    networks: int = 4_096

    def __post_init__(self) -> None:
        for name in ("most", "networks"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 10_000_000:
                raise ConfigurationError(f"newcomers: {name} {value!r}; use a whole number from 1 to 10000000")


class Crowd:
    """The newcomers of a limiter, as one worker has seen them.

    Args:
        newcomers: How many there may be.
        engine: Knows who has counters.
    """

    def __init__(self, newcomers: Newcomers, engine: Engine) -> None:
        self._engine = engine
        self._known = _Remembered(newcomers.most)
        self._networks = _Remembered(newcomers.networks)
        self._life_us = 0

    async def placed(
        self, asked: Ask, rules: Sequence[Rule], vouched: Collection[bytes], address: str, now_us: int
    ) -> tuple[Sequence[Rule], Ask]:
        """What is asked instead: the same, but that newcomers beyond `most` are charged to their network."""
        strange = []
        for charge in asked.charges:
            who = keys.bearer(charge.key)
            if who not in vouched and not self.knows(who, charge.limit, now_us):
                strange.append(charge)
        if not strange:
            return rules, asked
        looked = await self._engine.decide(Ask(strange, LOOK))
        outside = {
            charge.key
            for charge, standing in zip(strange, looked.standings, strict=True)
            if standing.remaining == charge.limit.capacity
        }
        own = {keys.bearer(charge.key) for charge in strange if charge.key not in outside}  # any live counter will do
        crowd = self.network(address, now_us)
        found: dict[bytes, tuple[Rule, Charge]] = {}
        for rule, charge in zip(rules, asked.charges, strict=True):
            key = charge.key
            if key in outside and keys.bearer(key) not in own:
                key = keys.moved(key, crowd)
            before = found[key][1].cost if key in found else 0  # two newcomers in one crowd: charged once
            found[key] = rule, Charge(charge.limit, key, max(before, charge.cost))
        return [rule for rule, _ in found.values()], Ask(
            [charge for _, charge in found.values()], asked.kind, asked.at_us
        )

    def name(self, address: str, limits: Sequence[Limit], now_us: int) -> bytes:
        """Whose counters of these limits an address is charged to: its own or its network's. The store is not asked."""
        who = keys.who(address)
        return who if all(self.knows(who, limit, now_us) for limit in limits) else self.network(address, now_us)

    def knows(self, who: bytes, limit: Limit, now_us: int) -> bool:
        """Whether somebody may have counters of its own; if there is room, it may from now on."""
        life_us = 1_000_000 * (1 + max(2 * limit.window_s, limit.refill_s))
        self._life_us = max(self._life_us, life_us)
        return self._known.has(who, now_us, self._life_us)

    def network(self, address: str, now_us: int) -> bytes:
        """Whose counter the newcomers of an address share."""
        who = _network_of(address)
        return who if self._networks.has(who, now_us, self._life_us) else EVERYBODY


class _Remembered:
    """A bounded set whose members are forgotten when they were not seen for one to two lifetimes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()
        self._turned_us = 0

    def has(self, who: bytes, now_us: int, life_us: int) -> bool:
        """Whether it is a member; if there is room, it becomes one."""
        if now_us - self._turned_us >= life_us:
            overslept = now_us - self._turned_us >= 2 * life_us
            self._before = set() if overslept else self._now
            self._now, self._turned_us = set(), now_us
        if who in self._now:
            return True
        if who in self._before:
            self._before.discard(who)
        elif len(self._now) + len(self._before) >= self._most:
            return False
        self._now.add(who)
        return True


@lru_cache(maxsize=8192)
def _network_of(identity: str) -> bytes:
    """The network of an address as `client_address` tells it."""
    try:
        address = ipaddress.ip_address(identity.partition("/")[0])
    except ValueError:
        return keys.crowd(identity)
    length = 16 if address.version == 4 else 48
    return keys.crowd(str(ipaddress.ip_network((address, length), strict=False)))

"""Concurrency: at most `capacity` units at once, each held under a lease.

A lease ends when it is released, or a window after it was taken or renewed: then a holder that died loses its unit.
Taking what is held already renews it. An ask without a lease takes nothing: it is told whether a unit is free.
Exact for every number of units up to 10^9: a decision costs O(log n), a lease about 150 bytes of Redis.
The wait of a refusal lasts until the first lease ends, at the latest: whoever releases earlier makes room earlier,
and a holder that renews makes it last longer.
"""

from service.limits.algorithms.contract import Algorithm, Definition


class Concurrency:
    """The twin. State: ((lease, the instant it ends in us), ...), whatever ends first comes first.

    Attributes:
        lease: Whose the ask is; None = nobody's.
    """

    def __init__(self, definition: Definition, state: tuple[tuple[str, int], ...] | None, now_us: int) -> None:
        self.capacity, self.now_us = definition.capacity, now_us
        self.top_us = now_us + definition.window_us
        self.lease: str | None = None
        self.stale = any(ends_us > self.top_us for _, ends_us in state or ())
        self.leases = {lease: min(ends_us, self.top_us) for lease, ends_us in state or () if ends_us > now_us}

    def holds(self) -> bool:
        """Whether the lease holds a unit."""
        return self.lease in self.leases

    def wait(self, cost: int) -> int:
        if len(self.leases) + cost <= self.capacity:
            return 0
        return min(self.leases.values()) - self.now_us

    def charge(self, cost: int) -> None:
        if self.lease is not None:
            self.leases[self.lease] = self.top_us

    def debit(self, cost: int) -> None:
        """Nothing: a unit is held or not, and nobody owes one."""

    def give_back(self, cost: int, at_us: int) -> bool:
        return self.leases.pop(self.lease or "", None) is not None

    def show(self) -> tuple[int, int]:
        return max(0, self.capacity - len(self.leases)), max(self.leases.values(), default=self.now_us) - self.now_us

    def state(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self.leases.items(), key=lambda item: item[1]))

    def until_us(self) -> int:
        return max(self.leases.values(), default=0)


CONCURRENCY = Algorithm(
    name="concurrency",
    short="lease",
    lua="concurrency.lua",
    range="any number of units up to 10^9",
    numbers=lambda amount, window_us, burst, aligned: (amount, window_us, 0, 0, 0),
    twin=Concurrency,
    leases=True,
)

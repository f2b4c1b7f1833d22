"""This worker's share of a limit, for the time without a store: what all workers of all hosts admit by their shares is
at most the limit. Pure.

    10/minute, 1 host of 4 workers    slot 0: 4, slots 1 to 3: 2 each
    10/minute, 3 hosts of 4 workers   3 a host: slot 0: 3, the others nothing
    10/minute, 4 workers, no slots    2 each, and the rest to nobody

Shares belong to slots, not to processes: whoever replaces a worker takes its slot, and what that has spent with it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from service.errors import InvalidLimit
from service.limits.limit import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker stands among those that share a limit.

    Attributes:
        slot: Which of its host's workers it is, from 0; None = there is nobody to tell it.
        workers: How many there are on this host; at least 1.
        hosts: How many hosts; at least 1.
    """

    slot: int | None = 0
    workers: int = 1
    hosts: int = 1


@lru_cache(maxsize=4096)
def share(limit: Limit, place: Place) -> Limit | None:
    """The part of `limit` that this worker may admit by itself; None = nothing.

    Where GCRA could not count the part exactly it is rounded down to fewer digits.
    """
    amount, step = _part(limit.amount, place), 1
    burst = None if limit.burst is None else _part(limit.burst, place)
    if burst == 0:
        return None
    while amount >= step:
        try:
            return replace(limit, amount=amount - amount % step, burst=burst)
        except InvalidLimit:
            step *= 10
    return None


def _part(units: int, place: Place) -> int:
    if place.slot is not None and place.slot >= place.workers:
        return 0  # it is about to go
    least, rest = divmod(units // place.hosts, place.workers)
    return least + (rest if place.slot == 0 else 0)

"""Who is let in before anything is counted: lists, bans, and how many newcomers may have counters of their own.

    lists.py      always, never: networks and identities
    bans.py       refused too often: refused everything for a while
    newcomers.py  beyond so many, those nobody vouches for share a counter with their network

A limiter has an `Access` only if it uses one of them.
"""

from service.limits.access.access import Access, Weighed
from service.limits.access.bans import Ban
from service.limits.access.newcomers import Newcomers

__all__ = ["Access", "Ban", "Newcomers", "Weighed"]

"""A decision as response headers. Pure.

slowapi's X-RateLimit-* (names can be changed) and draft-ietf-httpapi-ratelimit-headers-10: RateLimit-Policy and
RateLimit, structured fields (RFC 9651), one member per limit; `t` is the time until one more unit is there.
"""

from collections.abc import Iterable, Sequence
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache

from service.limits.decision import Decision, Standing, seconds
from service.limits.limit import Limit, quoted

Pairs = list[tuple[bytes, bytes]]

EXPOSED = ("RateLimit", "RateLimit-Policy", "Retry-After")
"""What a browser's script may read of them, for Access-Control-Expose-Headers; the X- names come on top."""


@lru_cache(maxsize=4096)
def _parts(limits: tuple[Limit, ...]) -> tuple[bytes, tuple[bytes, ...]]:
    """RateLimit-Policy of a set of limits, and the name of each; one that comes again is numbered."""
    names, members = [], []
    for index, limit in enumerate(limits):
        again = sum(other.name == limit.name for other in limits[:index])
        name = quoted(f"{limit.name}#{again + 1}" if again else limit.name).encode()
        names.append(name)
        members.append(b"%s;q=%d;w=%d" % (name, limit.capacity, limit.refill_s))
    return b", ".join(members), tuple(names)


def policy(limits: tuple[Limit, ...]) -> bytes:
    """RateLimit-Policy of a set of limits: `"chat";q=20;w=60`."""
    return _parts(limits)[0]


def draft(standings: Sequence[Standing]) -> Pairs:
    """RateLimit-Policy and RateLimit."""
    if len(standings) == 1:
        limit, _, remaining, _, _, next_us = standings[0]
        policies, names = _parts((limit,))
        return [
            (b"ratelimit-policy", policies),
            (b"ratelimit", b"%s;r=%d;t=%d" % (names[0], remaining, -(-next_us // 1_000_000))),
        ]
    policies, names = _parts(tuple([standing.limit for standing in standings]))
    members = [
        b"%s;r=%d;t=%d" % (name, standing.remaining, seconds(standing.next_us))
        for name, standing in zip(names, standings, strict=True)
    ]
    return [(b"ratelimit-policy", policies), (b"ratelimit", b", ".join(members))]


def shown(standings: Sequence[Standing]) -> Standing:
    """The one limit that X-RateLimit-* speaks of: the one that refuses longest, else the shortest window's."""
    first = standings[0]
    if len(standings) == 1:
        return first
    longest = max(standings, key=lambda standing: standing.retry_us)
    return longest if longest.retry_us else min(standings, key=lambda standing: standing.limit.window_s)


class SlowapiHeaders:
    """X-RateLimit-Limit, -Remaining, -Reset and Retry-After, as slowapi writes them on every answer.

    Args:
        names: The four header names, in that order.
        http_date: Retry-After as a date instead of seconds.
    """

    def __init__(self, names: Sequence[str], *, http_date: bool = False) -> None:
        self.names = tuple(names)
        self._limit, self._remaining, self._reset, self._retry = (n.lower().encode() for n in names)
        self._http_date = http_date

    def pairs(self, decision: Decision) -> Pairs:
        """The first three, for the limit that is `shown`."""
        return self.all(decision)[:3]

    def retry(self, decision: Decision, existing: bytes | None = None) -> tuple[bytes, bytes]:
        """Retry-After: when refused, the honest wait; when allowed, until the quota is whole (slowapi's custom).

        A later `existing` one, which the application had set itself, stays.
        """
        return self.all(decision, existing)[3]

    def all(self, decision: Decision, existing: bytes | None = None) -> Pairs:
        """All four."""
        allowed, at_us, standings = decision
        standing = standings[0] if len(standings) == 1 else shown(standings)
        wait_s = -(-(standing.reset_us if allowed else decision.retry_us) // 1_000_000)
        if existing is not None:
            wait_s = max(wait_s, read_retry(existing, at_us / 1_000_000))
        wait = b"%d" % wait_s
        if self._http_date:
            wait = formatdate(-(-at_us // 1_000_000) + wait_s, usegmt=True).encode()
        return [
            (self._limit, b"%d" % standing.limit.capacity),
            (self._remaining, b"%d" % standing.remaining),
            (self._reset, b"%d" % -(-(at_us + standing.reset_us) // 1_000_000)),
            (self._retry, wait),
        ]


def read_retry(value: bytes, now_s: float) -> int:
    """Seconds a Retry-After header asks for; 0 if it cannot be read."""
    text = value.decode("latin-1")
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    try:
        return max(0, -int(-(parsedate_to_datetime(text).timestamp() - now_s) // 1))
    except (ValueError, OverflowError):
        return 0


def replace(headers: Iterable[tuple[bytes, bytes]], new: Pairs) -> Pairs:
    """`headers` with the new ones instead of those of the same name."""
    written = {name for name, _ in new}
    return [pair for pair in headers if pair[0].lower() not in written] + new

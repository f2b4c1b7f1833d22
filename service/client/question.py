"""What can be asked: limits that are brought along, or a domain of the service's catalog. Pure, frozen values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]
"""One descriptor as it may be given: {"user": "alice", "plan": "free"}, or pairs; the order counts."""


@dataclass(frozen=True, slots=True)
class Check:
    """May `key` do this, by these limits?

    Attributes:
        key: Who is charged.
        limits: Limits in notation, all or nothing: "10/minute;200/hour".
        algorithm: How they are counted; None = fixed windows.
        cost: Units, 0 (look only) to the smallest limit.
        burst: For gcra, units that may pass at once.
        peek: Look without spending.
    """

    key: str
    limits: str
    algorithm: str | None = None
    cost: int = 1
    burst: int | None = None
    peek: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """As the service reads it; what was not said is left out."""
        said: dict[str, Any] = {"key": self.key, "limits": self.limits}
        if self.algorithm is not None:
            said["algorithm"] = self.algorithm
        if self.burst is not None:
            said["burst"] = self.burst
        return said | _spending(self)

    def looking(self) -> "Check":
        """The same, without spending."""
        return replace(self, peek=True)


@dataclass(frozen=True, slots=True)
class DomainCheck:
    """May these descriptors pass, by the limits the service has for them?

    Attributes:
        domain: Of the service's catalog.
        descriptors: At least one, each entries (key, value) in order.
        cost: Units, for each.
        peek: Look without spending.
    """

    domain: str
    descriptors: tuple[tuple[tuple[str, str], ...], ...]
    cost: int = 1
    peek: bool = False

    @classmethod
    def of(cls, domain: str, *descriptors: Pairs, cost: int = 1, peek: bool = False) -> "DomainCheck":
        """From mappings or pairs: `DomainCheck.of("chat", {"user": "alice"})`."""
        return cls(domain, tuple(map(_entries, descriptors)), cost, peek)

    @property
    def body(self) -> dict[str, Any]:
        """As the service reads it."""
        descriptors = [[{"key": key, "value": value} for key, value in entries] for entries in self.descriptors]
        return {"domain": self.domain, "descriptors": descriptors} | _spending(self)

    def looking(self) -> "DomainCheck":
        """The same, without spending."""
        return replace(self, peek=True)


@dataclass(frozen=True, slots=True)
class Hold:
    """May `key` have one more under way?

    Attributes:
        key: Who holds.
        concurrency: At most so many at once, over all processes that say the same number and `ttl_s`; 1 to 10^9.
        ttl_s: How soon a unit comes back that is neither renewed nor released, whole seconds, 1 to 86400.
        limits: Limits in notation, charged with it, all or nothing; None = none. They stay charged.
    """

    key: str
    concurrency: int
    ttl_s: int = 60
    limits: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """As the service reads it."""
        said = {"key": self.key, "concurrency": self.concurrency, "ttl": self.ttl_s}
        return said if self.limits is None else said | {"limits": self.limits}

    def alone(self) -> "Hold":
        """The same, without what is charged with it."""
        return replace(self, limits=None)


Question = Check | DomainCheck


def _entries(given: Pairs) -> tuple[tuple[str, str], ...]:
    return tuple(given.items() if isinstance(given, Mapping) else given)


def _spending(question: Question) -> dict[str, Any]:
    said: dict[str, Any] = {} if question.cost == 1 else {"cost": question.cost}
    return said | ({"peek": True} if question.peek else {})

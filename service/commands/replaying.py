"""onequota explain --replay: what a limits file would have refused of the requests in an access log.

The times are the log's: each request is decided by the pure twins, on a clock that its line moves. A request's
descriptors are made of what a log knows (FIELDS): every way down the domain that uses no other keys, or what is said.
"""

import asyncio
import gzip
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO, cast

from service.commands.access_log import Seen, UnreadableError, read
from service.commands.words import listed
from service.errors import ConfigurationError, InvalidInput
from service.limits import policy
from service.limits.catalog import Catalog, Descriptor, Domain, Place, Rule
from service.limits.decision import Ask, Decision
from service.limits.decision import read as read_decision
from service.limits.engine import Engine
from service.limits.policy import Verdict
from service.limits.stores import MemoryStore

FIELDS = ("remote_address", "method", "path", "host", "user", "user_agent")
MOST_EXAMPLES = 5


class Entry(NamedTuple):
    """One entry of the descriptors to make: the catalog's key, and the log's field that is its value."""

    key: str
    field: str


@dataclass(slots=True)
class Count:
    """What became of one rule."""

    rule: Rule
    met: int = 0
    refused: int = 0


class Refusal(NamedTuple):
    """One request that would have been refused."""

    line: int
    at_us: int
    request: str
    rule: str
    retry_after: int | None


@dataclass(slots=True)
class Tally:
    """All that was found out."""

    requests: int = 0
    limited: int = 0
    refused: int = 0
    other_lines: int = 0
    unreadable: int = 0
    first_unreadable: list[tuple[int, str]] = field(default_factory=list)
    first_us: int = 0
    last_us: int = 0
    rules: dict[Place, Count] = field(default_factory=dict)
    identities: Counter[str] = field(default_factory=Counter)
    examples: list[Refusal] = field(default_factory=list)


class _Twins:
    """As an engine, without a queue."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def decide(self, ask: Ask, *, here: bool = False) -> "asyncio.Future[Decision]":
        numbers = self._store.decide_now([ask])
        decided = asyncio.get_running_loop().create_future()
        decided.set_result(read_decision(ask, numbers[0], numbers, 1))
        return decided


class Replay:
    """Requests decided by a domain, on their own clock.

    Args:
        catalog: With the limits to try.
        domain: Which part of it.
        descriptors: What is made of each request; None = `ways` of the domain.

    Raises:
        InvalidInput: The domain is not in the catalog, or nothing in it can be decided by a log.
    """

    def __init__(self, catalog: Catalog, domain: str, descriptors: Sequence[tuple[Entry, ...]] | None = None) -> None:
        found = catalog.domains.get(domain)
        if found is None:
            raise InvalidInput("--domain", f'no "{domain}" in the limits file; there is: {listed(catalog.domains)}')
        self.descriptors = list(descriptors) if descriptors else list(ways(found))
        if not self.descriptors:
            raise InvalidInput(
                "--descriptor",
                f"no rule of {domain} is made of {', '.join(FIELDS)} alone: say what stands for what, as in "
                "--descriptor user=remote_address,path",
            )
        self.tally = Tally()
        self._catalog = catalog
        self._domain = domain
        self._now_us = 0
        self._engine = cast(Engine, _Twins(MemoryStore(lambda: self._now_us)))

    async def take(self, lines: Iterable[str]) -> Tally:
        """Decide them, one after the other."""
        tally = self.tally
        for number, line in enumerate(lines, 1):
            try:
                seen = read(line)
            except UnreadableError as error:
                tally.unreadable += 1
                if len(tally.first_unreadable) < MOST_EXAMPLES:
                    tally.first_unreadable.append((number, str(error)))
                continue
            if seen is None:
                tally.other_lines += 1
            else:
                await self._one(number, seen)
        return tally

    async def _one(self, number: int, seen: Seen) -> None:
        tally = self.tally
        tally.requests += 1
        tally.first_us = tally.first_us or seen.at_us
        self._now_us = tally.last_us = max(self._now_us, seen.at_us)  # lines are written when answers end: not in order
        wanted = [
            policy.Wanted(tuple((entry.key, seen.fields[entry.field]) for entry in entries))
            for entries in self.descriptors
            if all(entry.field in seen.fields for entry in entries)
        ]
        if not wanted:
            return
        planned = policy.plan(self._catalog, self._domain, wanted, now_us=self._now_us, strict=False)
        verdict = await policy.decide(self._engine, planned)
        tally.limited += any(status.match for status in verdict.statuses)
        for status in verdict.statuses:
            if status.match is not None:
                rule = status.match.rule
                count = tally.rules.get(rule.place)
                if count is None:
                    count = tally.rules[rule.place] = Count(rule)
                count.met += 1
                count.refused += status.over
        if not verdict.allowed:
            self._refused(number, seen, verdict)

    def _refused(self, number: int, seen: Seen, verdict: Verdict) -> None:
        tally = self.tally
        tally.refused += 1
        over = [s.match for s in verdict.statuses if s.match and s.over and not s.match.rule.shadow_mode]
        for match in over:
            tally.identities[match.counter] += 1
        if len(tally.examples) < MOST_EXAMPLES:
            request = f"{seen.fields.get('method', '')} {seen.fields.get('path', '')}".strip()
            request += f" from {seen.fields['remote_address']}" if "remote_address" in seen.fields else ""
            paths = ", ".join(match.rule.path for match in over)
            tally.examples.append(Refusal(number, seen.at_us, request, paths, verdict.retry_after))


def ways(domain: Domain) -> Iterator[tuple[Entry, ...]]:
    """All ways down a domain that use keys of FIELDS only, and end at a rule."""
    found: dict[tuple[Entry, ...], None] = {}

    def descend(children: Sequence[Descriptor], before: tuple[Entry, ...]) -> None:
        for child in children:
            if child.key in FIELDS and child.key not in {entry.key for entry in before}:
                here = (*before, Entry(child.key, child.key))
                if child.rule is not None:
                    found[here] = None
                descend(child.children, here)

    descend(domain.children, ())
    yield from found


def entries(text: str) -> tuple[Entry, ...]:
    """A descriptor as a user writes it: `user=remote_address,path`. Raises InvalidInput."""
    found = []
    for part in text.split(","):
        key, equals, name = part.strip().partition("=")
        name = name if equals else key
        if not key or name not in FIELDS:
            raise InvalidInput(
                "--descriptor", f'"{part.strip()}": write KEY or KEY=FIELD; fields are {", ".join(FIELDS)}'
            )
        found.append(Entry(key, name))
    return tuple(found)


@contextmanager
def opened(path: str) -> Iterator[TextIO]:
    """A log: a file, one that is gzipped, or `-` for standard input. Raises ConfigurationError."""
    try:
        if path == "-":
            yield sys.stdin
        elif path.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as log:
                yield log
        else:
            with open(path, encoding="utf-8", errors="replace") as log:  # noqa: PTH123
                yield log
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None

"""What Envoy's rate-limit service asks and is answered, apart from how it is written: JSON and gRPC share it. Pure.

    RateLimitRequest  → `question` → policy → verdict → `answer` → RateLimitResponse

    | asked                              | meant                                                                    |
    | hits_addend, 0 or none             | each descriptor costs 1                                                  |
    | a descriptor's hits_addend         | its own cost, in place of that; 0 looks without spending                 |
    | a descriptor's limit               | counted instead of the catalog's; 0 requests refuse everything           |

    | answered, of a descriptor          |                                                                          |
    | code                               | OVER_LIMIT if it had no room, OK with `shadow_mode`; where nothing       |
    |                                    | limits it, OK and nothing else                                           |
    | current_limit                      | of several limits the one that refuses longest, else the one that is     |
    |                                    | nearest to its end; a window without a name of Envoy's: unit UNKNOWN     |
    | limit_remaining                    | of that limit; 2^32-1 where all is unlimited                             |
    | duration_until_reset               | until its quota is whole again, whole seconds, rounded up                |

    | response_headers_to_add            | ratelimit-policy and ratelimit, of all limits that were counted;         |
    |                                    | retry-after, if refused                                                  |

While Redis is away and `on_outage` decides, what remains is not known: of a status code and current_limit are told, of
the headers retry-after.
"""

from collections.abc import Iterable
from typing import NamedTuple

from service.errors import InvalidInput
from service.limits.catalog import UNITS_S, Entry
from service.limits.decision import Standing, seconds
from service.limits.headers import Pairs, draft
from service.limits.limit import LARGEST_AMOUNT, Limit
from service.limits.policy import MOST_DESCRIPTORS, Status, Verdict, Wanted

UNLIMITED = 2**32 - 1
"""What remains where nothing is counted."""

UNKNOWN = "UNKNOWN"
UNITS = (UNKNOWN, "SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR", "WEEK")
"""Units by their numbers in the answers."""

_UNIT_OF_S = {seconds: name.upper() for name, seconds in UNITS_S.items()}


class Override(NamedTuple):
    """A limit that a descriptor brings along: so many requests, 0 to 2^32-1, in a second, minute, hour, day, …."""

    requests: int
    unit: str


class Descriptor(NamedTuple):
    """One descriptor of a request, as it came; `hits` None = the request's."""

    entries: tuple[Entry, ...]
    hits: int | None = None
    limit: Override | None = None


class Question(NamedTuple):
    """A request, ready for `policy.plan`.

    Attributes:
        domain: Not empty.
        wanted: Its descriptors, at least one.
        overrides: What each brought along.
        cost: Units of those that say none.
    """

    domain: str
    wanted: tuple[Wanted, ...]
    overrides: tuple[Override | None, ...]
    cost: int


class Told(NamedTuple):
    """The answer to one descriptor.

    Attributes:
        over: It had no room, and that counts.
        limit: What holds: requests, unit (one of UNITS), name; None = nothing does.
        remaining: Units left of it.
        reset_s: Until all of it is there again, seconds; None = nothing was counted.
    """

    over: bool
    limit: tuple[int, str, str] | None = None
    remaining: int = 0
    reset_s: int | None = None


class Answer(NamedTuple):
    """The answer to a request: `over` all, of each descriptor, and headers for the client whom it is about."""

    over: bool
    statuses: tuple[Told, ...]
    headers: Pairs


def question(domain: str, descriptors: Iterable[Descriptor], hits: int) -> Question:
    """A request's meaning. Raises InvalidInput naming the field, as Envoy calls it."""
    found = tuple(descriptors)
    if not domain:
        raise InvalidInput("domain", "must not be empty")
    if not 1 <= len(found) <= MOST_DESCRIPTORS:
        raise InvalidInput("descriptors", f"{len(found)} of them; use 1 to {MOST_DESCRIPTORS}")
    cost = _cost(hits, "hits_addend") or 1
    wanted = [_wanted(descriptor, f"descriptors[{index}].") for index, descriptor in enumerate(found)]
    return Question(domain, tuple(wanted), tuple(descriptor.limit for descriptor in found), cost)


def _wanted(descriptor: Descriptor, at: str) -> Wanted:
    entries, hits, override = descriptor
    own = None if hits is None else _cost(hits, f"{at}hits_addend")
    if override is None:
        return Wanted(entries, own)
    if override.unit not in _UNIT_OF_S.values():
        raise InvalidInput(f"{at}limit.unit", f"{override.unit}; use {', '.join(_UNIT_OF_S.values())}")
    amount = min(override.requests, LARGEST_AMOUNT)
    limit = Limit(amount=amount or 1, window_s=UNITS_S[override.unit.lower()], aligned=True)
    return Wanted(entries, own if amount else 2, limit)  # 2 of 1 never pass


def _cost(hits: int, where: str) -> int:
    if hits > LARGEST_AMOUNT:
        raise InvalidInput(where, f"{hits} is more than {LARGEST_AMOUNT}, the most that any limit admits")
    return hits


def answer(asked: Question, verdict: Verdict) -> Answer:
    """What a verdict says, in Envoy's words."""
    statuses = tuple(map(_told, verdict.statuses, asked.overrides))
    if verdict.degraded:
        statuses = tuple(told._replace(remaining=0, reset_s=None) for told in statuses)
    counted: dict[Standing, None] = {}
    for status, override in zip(verdict.statuses, asked.overrides, strict=True):
        if not _is_shadow(status) and (override is None or override.requests):
            counted.update(dict.fromkeys(status.standings))
    headers = draft(list(counted)) if counted and not verdict.degraded else []
    if verdict.retry_after is not None:
        headers.append((b"retry-after", b"%d" % verdict.retry_after))
    return Answer(not verdict.allowed, statuses, headers)


def _told(status: Status, override: Override | None) -> Told:
    rule = status.rule
    over = status.over and not _is_shadow(status)
    if override is not None and not override.requests:
        return Told(over, (0, override.unit, ""), 0, seconds(status.retry_us))
    if rule is not None and rule.blocked:
        return Told(over, (0, _name(rule.unit), rule.name), 0, seconds(status.retry_us))
    if rule is not None and rule.unlimited:
        return Told(over, None, UNLIMITED)
    if not status.standings:
        return Told(over)
    shown = _shown(status.standings)
    limit, reset_s = shown.limit, seconds(max(shown.reset_us, status.retry_us if over else 0))
    if override is not None:
        return Told(over, (override.requests, override.unit, ""), shown.remaining, reset_s)
    if rule is not None and rule.calendar is not None and limit.since_s is not None:
        return Told(over, (limit.amount, _name(rule.calendar.period), rule.name), shown.remaining, reset_s)
    unit = _name(rule.unit) if rule is not None and rule.unit else _UNIT_OF_S.get(limit.window_s, UNKNOWN)
    name = rule.name if rule is not None and rule.unit else limit.name
    return Told(over, (limit.amount, unit, name), shown.remaining, reset_s)


def _is_shadow(status: Status) -> bool:
    return status.rule is not None and status.rule.shadow_mode


def _name(unit: str | None) -> str:
    return UNKNOWN if unit is None else unit.upper()


def _shown(standings: Iterable[Standing]) -> Standing:
    return max(standings, key=lambda standing: (standing.retry_us, -standing.remaining))

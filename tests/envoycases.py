"""What Envoy's rate-limit service answers to what, as tables: each request in order, each field of its answer.

Asked over gRPC (tests/grpc/test_ratelimit.py) and as JSON (tests/routes/test_envoy.py). The clock stands at 15 s past a
minute, an hour and 08:00 UTC, so that windows aligned to the epoch end in 45 s, 59:45 and 15:59:45.
"""

from typing import Any

from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.stores import MemoryStore

NOW_S = 1_800_000_015
MINUTE, HOUR, DAY = 45, 3_585, 57_585  # what is left of each

FILE = """
domain: chat
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 5}
  - key: user
    value: root
    rate_limit: {unlimited: true}
  - key: user
    value: mallory
    rate_limit: {unit: hour, requests_per_unit: 0}
  - key: user
    value: svc-*
    rate_limit: {unit: second, requests_per_unit: 3}
  - key: ip
    rate_limit: {unit: hour, requests_per_unit: 2}
  - key: shadow
    rate_limit: {unit: minute, requests_per_unit: 1}
    shadow_mode: true
  - key: blockedshadow
    rate_limit: {unit: minute, requests_per_unit: 0}
    shadow_mode: true
  - key: way
    value: a
    rate_limit: {unit: minute, requests_per_unit: 1}
    quota_mode: true
  - key: way
    value: b
    rate_limit: {unit: minute, requests_per_unit: 2}
    quota_mode: true
  - key: kind
    value: write
    rate_limit: {name: write, unit: minute, requests_per_unit: 1}
  - key: path
    value: /upload
    rate_limit: {name: upload, unit: day, requests_per_unit: 9, replaces: [{name: write}]}
  - key: ours
    limits: "4/minute;10/90seconds"
  - key: week
    rate_limit: {unit: week, requests_per_unit: 7}
  - key: month
    rate_limit: {unit: month, requests_per_unit: 30}
  - key: year
    rate_limit: {unit: year, requests_per_unit: 365}
  - key: calendar
    requests: 31
    per: month
    align: calendar
  - key: to
    value: marketing
    descriptors:
      - key: number
        rate_limit: {unit: day, requests_per_unit: 1}
  - key: bare
---
domain: each
atomic: false
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 5}
  - key: ip
    rate_limit: {unit: hour, requests_per_unit: 2}
"""


def now_us() -> int:
    return NOW_S * 1_000_000


def engine(fallback: Fallback | None = None) -> Engine:
    """Counters of their own, at that time."""
    store = MemoryStore(now_us)
    return Engine(lambda: store, deadline_s=5, fallback=fallback)


def of(*entries: str, **more: Any) -> dict[str, Any]:
    """A descriptor: of("user=alice", "ip=::1")."""
    pairs = [entry.partition("=")[::2] for entry in entries]
    return {"entries": [{"key": key, "value": value} for key, value in pairs], **more}


def ask(*descriptors: dict[str, Any], domain: str = "chat", **more: Any) -> dict[str, Any]:
    return {"domain": domain, "descriptors": list(descriptors), **more}


def told(code: str, requests: int, unit: str, left: int, reset_s: int, name: str = "") -> dict[str, Any]:
    """A status of which a limit is told; proto3's JSON leaves out what is 0 or empty."""
    limit: dict[str, Any] = {"unit": unit} if unit != "UNKNOWN" else {}
    limit |= {"requestsPerUnit": requests} if requests else {}
    limit |= {"name": name} if name else {}
    found: dict[str, Any] = {"code": code, "currentLimit": limit, "durationUntilReset": f"{reset_s}s"}
    return found | ({"limitRemaining": left} if left else {})


def ok(requests: int, unit: str, left: int, reset_s: int, name: str = "") -> dict[str, Any]:
    return told("OK", requests, unit, left, reset_s, name)


def over(requests: int, unit: str, reset_s: int, name: str = "", left: int = 0) -> dict[str, Any]:
    return told("OVER_LIMIT", requests, unit, left, reset_s, name)


NOTHING = {"code": "OK"}  # limits it

ALICE, BOB, IP = of("user=alice"), of("user=bob"), of("ip=192.0.2.1")
A, B = of("way=a"), of("way=b")
MINUTE_RULE, IP_RULE = (5, "MINUTE"), (2, "HOUR")

# What each request is answered with, in order: whether it is over, and its statuses.
CASES: dict[str, list[tuple[dict[str, Any], bool, list[dict[str, Any]]]]] = {
    "one that passes": [(ask(ALICE), False, [ok(5, "MINUTE", 4, MINUTE)])],
    "each value has a counter": [
        (ask(ALICE), False, [ok(5, "MINUTE", 4, MINUTE)]),
        (ask(BOB), False, [ok(5, "MINUTE", 4, MINUTE)]),
        (ask(ALICE), False, [ok(5, "MINUTE", 3, MINUTE)]),
    ],
    "over": [
        (ask(IP), False, [ok(2, "HOUR", 1, HOUR)]),
        (ask(IP), False, [ok(2, "HOUR", 0, HOUR)]),
        (ask(IP), True, [over(2, "HOUR", HOUR)]),
    ],
    "an unknown domain": [(ask(ALICE, domain="nobody's"), False, [NOTHING])],
    "no rule": [(ask(of("colour=red")), False, [NOTHING])],
    "a rule without a limit": [(ask(of("bare=x")), False, [NOTHING])],
    "fewer entries than a rule has levels": [(ask(of("to=marketing")), False, [NOTHING])],
    "as many entries as a rule has levels": [
        (ask(of("to=marketing", "number=7")), False, [ok(1, "DAY", 0, DAY)]),
        (ask(of("to=marketing", "number=7")), True, [over(1, "DAY", DAY)]),
        (ask(of("to=marketing", "number=8")), False, [ok(1, "DAY", 0, DAY)]),
    ],
    "more entries than a rule has levels": [(ask(of("user=alice", "ip=::1")), False, [NOTHING])],
    "entries in another order": [(ask(of("number=7", "to=marketing")), False, [NOTHING])],
    "no entries": [(ask({"entries": []}), False, [NOTHING])],
    "a wildcard": [(ask(of("user=svc-mail")), False, [ok(3, "SECOND", 2, 1)])],
    "unlimited": [(ask(of("user=root")), False, [{"code": "OK", "limitRemaining": 2**32 - 1}])],
    "blocked": [(ask(of("user=mallory")), True, [over(0, "HOUR", 3600)])],
    "statuses stand where their descriptors stand": [
        (
            ask(of("colour=red"), IP, of("user=root"), ALICE),
            False,
            [NOTHING, ok(2, "HOUR", 1, HOUR), {"code": "OK", "limitRemaining": 2**32 - 1}, ok(5, "MINUTE", 4, MINUTE)],
        ),
    ],
    "hits_addend 0 is 1": [
        (ask(ALICE, hitsAddend=0), False, [ok(5, "MINUTE", 4, MINUTE)]),
        (ask(ALICE), False, [ok(5, "MINUTE", 3, MINUTE)]),
    ],
    "hits_addend": [
        (ask(ALICE, hitsAddend=3), False, [ok(5, "MINUTE", 2, MINUTE)]),
        (ask(ALICE, hitsAddend=3), True, [over(5, "MINUTE", MINUTE, left=2)]),
        (ask(ALICE, hitsAddend=2), False, [ok(5, "MINUTE", 0, MINUTE)]),
    ],
    "hits_addend beyond what a limit ever admits": [
        (ask(ALICE, hitsAddend=6), True, [over(5, "MINUTE", 60, left=5)]),
        (ask(ALICE), False, [ok(5, "MINUTE", 4, MINUTE)]),
    ],
    "a descriptor's hits_addend is in place of the request's": [
        (
            ask(of("user=alice", hitsAddend="2"), BOB, hitsAddend=3),
            False,
            [ok(5, "MINUTE", 3, MINUTE), ok(5, "MINUTE", 2, MINUTE)],
        ),
    ],
    "a descriptor's hits_addend 0 looks only": [
        (ask(of("user=alice", hitsAddend="0")), False, [ok(5, "MINUTE", 5, 0)]),
        (ask(ALICE, hitsAddend=5), False, [ok(5, "MINUTE", 0, MINUTE)]),
        (ask(of("user=alice", hitsAddend="0")), False, [ok(5, "MINUTE", 0, MINUTE)]),
    ],
    "a descriptor's limit is counted in place of the rule's": [
        (ask(of("user=alice", limit={"requestsPerUnit": 1, "unit": "DAY"})), False, [ok(1, "DAY", 0, DAY)]),
        (ask(of("user=alice", limit={"requestsPerUnit": 1, "unit": "DAY"})), True, [over(1, "DAY", DAY)]),
        (ask(ALICE), False, [ok(5, "MINUTE", 4, MINUTE)]),
    ],
    "a descriptor's limit where there is no rule": [
        (ask(of("new=1", limit={"requestsPerUnit": 2, "unit": "SECOND"})), False, [ok(2, "SECOND", 1, 1)]),
    ],
    "a descriptor's limit of nothing": [
        (ask(of("user=alice", limit={"requestsPerUnit": 0, "unit": "HOUR"}), BOB), True,
         [over(0, "HOUR", 3600), ok(5, "MINUTE", 5, 0)]),
        (ask(BOB), False, [ok(5, "MINUTE", 4, MINUTE)]),
    ],
    "a descriptor's limit for the unlimited and the blocked": [
        (ask(of("user=root", limit={"requestsPerUnit": 1, "unit": "MINUTE"})), False, [ok(1, "MINUTE", 0, MINUTE)]),
        (ask(of("user=mallory", limit={"requestsPerUnit": 1, "unit": "MINUTE"})), False, [ok(1, "MINUTE", 0, MINUTE)]),
    ],
    "a descriptor's limit larger than we count": [
        (
            ask(of("user=alice", limit={"requestsPerUnit": 2**32 - 1, "unit": "MINUTE"})),
            False,
            [ok(2**32 - 1, "MINUTE", 10**9 - 1, MINUTE)],
        ),
    ],
    "a descriptor's limit in a domain that is not known": [
        (ask(of("user=a", limit={"requestsPerUnit": 1, "unit": "DAY"}), domain="nobody's"), False, [NOTHING]),
    ],
    "shadow mode counts and does not refuse": [
        (ask(of("shadow=x")), False, [ok(1, "MINUTE", 0, MINUTE)]),
        (ask(of("shadow=x")), False, [ok(1, "MINUTE", 0, MINUTE)]),
        (ask(of("shadow=x"), ALICE), False, [ok(1, "MINUTE", 0, MINUTE), ok(5, "MINUTE", 4, MINUTE)]),
    ],
    "shadow mode of what is blocked": [(ask(of("blockedshadow=x")), False, [ok(0, "MINUTE", 0, 60)])],
    "quota mode: one way that is left is enough": [
        (ask(A, B), False, [ok(1, "MINUTE", 0, MINUTE), ok(2, "MINUTE", 1, MINUTE)]),
        (ask(A, B), False, [over(1, "MINUTE", MINUTE), ok(2, "MINUTE", 0, MINUTE)]),
        (ask(A, B), True, [over(1, "MINUTE", MINUTE), over(2, "MINUTE", MINUTE)]),
    ],
    "replaces": [
        (ask(of("kind=write")), False, [ok(1, "MINUTE", 0, MINUTE, "write")]),
        (ask(of("kind=write")), True, [over(1, "MINUTE", MINUTE, "write")]),
        (ask(of("kind=write"), of("path=/upload")), False, [NOTHING, ok(9, "DAY", 8, DAY, "upload")]),
    ],
    "all or nothing": [
        (ask(IP, hitsAddend=2), False, [ok(2, "HOUR", 0, HOUR)]),
        (ask(ALICE, IP), True, [ok(5, "MINUTE", 5, 0), over(2, "HOUR", HOUR)]),
        (ask(ALICE), False, [ok(5, "MINUTE", 4, MINUTE)]),
    ],
    "atomic: false, as upstream: each is charged for itself": [
        (ask(IP, domain="each", hitsAddend=2), False, [ok(2, "HOUR", 0, HOUR)]),
        (ask(ALICE, IP, domain="each"), True, [ok(5, "MINUTE", 4, MINUTE), over(2, "HOUR", HOUR)]),
        (ask(ALICE, domain="each"), False, [ok(5, "MINUTE", 3, MINUTE)]),
    ],
    "of several limits, the one that is nearest to its end": [
        (ask(of("ours=x"), hitsAddend=4), False, [ok(4, "MINUTE", 0, 60, "4/minute")]),
        (ask(of("ours=x")), True, [over(4, "MINUTE", 60, "4/minute")]),
    ],
    "weeks, months and years": [
        (
            ask(of("week=x"), of("month=x"), of("year=x")),
            False,
            [ok(7, "WEEK", 6, 489_585), ok(30, "MONTH", 29, 1_439_985), ok(365, "YEAR", 364, 29_087_985)],
        ),
    ],
    "a month of the calendar": [(ask(of("calendar=x")), False, [ok(31, "MONTH", 30, 16 * 86_400 + DAY)])],
}  # fmt: skip

# The headers for the client whom a request is about.
HEADERS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("none where nothing is limited", ask(of("colour=red")), []),
    ("one", ask(ALICE), [("ratelimit-policy", '"5/minute";q=5;w=60'), ("ratelimit", '"5/minute";r=4;t=45')]),
    (
        "two",
        ask(ALICE, IP),
        [
            ("ratelimit-policy", '"5/minute";q=5;w=60, "2/hour";q=2;w=3600'),
            ("ratelimit", '"5/minute";r=4;t=45, "2/hour";r=1;t=3585'),
        ],
    ),
    (
        "refused",
        ask(of("ip=::1", hitsAddend="3")),
        [("ratelimit-policy", '"2/hour";q=2;w=3600'), ("ratelimit", '"2/hour";r=2;t=0'), ("retry-after", "3600")],
    ),
    ("blocked", ask(of("user=mallory")), [("retry-after", "3600")]),
    (
        "a limit of nothing",
        ask(of("user=alice", limit={"requestsPerUnit": 0, "unit": "MINUTE"})),
        [("retry-after", "60")],
    ),
    ("what is only a shadow is not told", ask(of("shadow=x")), []),
]

# What cannot be meant, and the field that is named.
BAD: list[tuple[dict[str, Any], str]] = [
    (ask(ALICE, domain=""), "domain: must not be empty"),
    ({"descriptors": [ALICE]}, "domain: must not be empty"),
    (ask(), "descriptors: 0 of them; use 1 to 100"),
    ({"domain": "chat"}, "descriptors: 0 of them; use 1 to 100"),
    (ask(*[ALICE] * 101), "descriptors: 101 of them; use 1 to 100"),
    (ask(ALICE, hitsAddend=10**9 + 1), "hits_addend: 1000000001 is more than 1000000000"),
    (ask(ALICE, of("user=a", hitsAddend=str(10**9 + 1))), "descriptors[1].hits_addend: 1000000001 is more than"),
    (ask(of("user=a", limit={"requestsPerUnit": 5})), "descriptors[0].limit.unit: UNKNOWN; use SECOND, MINUTE, HOUR"),
    (
        ask(of("user=a", limit={"requestsPerUnit": 5, "unit": "UNKNOWN"})),
        "descriptors[0].limit.unit: UNKNOWN; use SECOND",
    ),
]

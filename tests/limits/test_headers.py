"""How a decision is written into response headers: every number here can be checked by hand."""

import pytest
from driving import START_US

from service.limits import headers
from service.limits.decision import Decision, Standing, seconds
from service.limits.limit import Limit

NAMES = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"]
START_S = START_US // 1_000_000
SECOND = 1_000_000


def limit(text, **options):
    return Limit.parse(text, **options)[0]


def standing(text, *, remaining=0, reset=0, retry=0, next_=0, **options):
    """A standing; times in microseconds."""
    return Standing(limit(text, **options), 1, remaining, reset, retry, next_)


def decision(*standings, at_us=START_US):
    return Decision(all(s.passes for s in standings), at_us, standings)


def values(pairs):
    return {name.decode(): value.decode() for name, value in pairs}


# ── the draft's fields ───────────────────────────────────────────────────────────────────────────────────────────────

POLICIES = [
    (["20/minute"], '"20/minute";q=20;w=60'),
    (["20/minute", "500/day"], '"20/minute";q=20;w=60, "500/day";q=500;w=86400'),
    (["10 per 5 minutes"], '"10 per 5 minutes";q=10;w=300'),
    (["1/second", "2/hour", "3/month"], '"1/second";q=1;w=1, "2/hour";q=2;w=3600, "3/month";q=3;w=2592000'),
]


@pytest.mark.parametrize(("texts", "written"), POLICIES)
def test_a_policy_names_every_limit_with_its_quota_and_its_window(texts, written):
    """RateLimit-Policy is a list of strings with `q` and `w`, in the order the limits were declared."""
    assert headers.policy(tuple(limit(text) for text in texts)).decode() == written


def test_a_gcra_limit_with_a_burst_announces_what_may_pass_at_once():
    """`q` is the burst, and `w` how long that takes to come back: 5 units at 60 a minute are 5 seconds."""
    bursting = limit("60/minute", algorithm="gcra", burst=5)
    assert headers.policy((bursting,)) == b'"60/minute";q=5;w=5'


def test_a_window_that_is_no_whole_second_is_rounded_up():
    """7 a minute with a burst of 3 refills in 25.7 s: 26 are announced, because 25 would be too early."""
    assert headers.policy((limit("7/minute", algorithm="gcra", burst=3),)) == b'"7/minute";q=3;w=26'


QUOTED = [
    ("chat-send", '"chat-send"'),
    ('say "hi"', '"say \\"hi\\""'),
    ("back\\slash", '"back\\\\slash"'),
    ('\\"', '"\\\\\\""'),
    ("a;b, c", '"a;b, c"'),
]


@pytest.mark.parametrize(("name", "written"), QUOTED)
def test_a_name_is_quoted_as_a_structured_field_string(name, written):
    """RFC 9651, 3.3.3: only the quote and the backslash are escaped."""
    assert headers.quoted(name) == written


UNTIL_NEXT = [(0, 0), (1, 1), (999_999, 1), (SECOND, 1), (SECOND + 1, 2), (11_000_001, 12)]


@pytest.mark.parametrize(("next_us", "t"), UNTIL_NEXT)
def test_the_time_until_one_more_unit_is_rounded_up(next_us, t):
    """`t` is `next_us`, in whole seconds: not the time until all of it is back (`reset_us`)."""
    pairs = headers.draft([standing("20/minute", remaining=3, reset=59 * SECOND, next_=next_us)])
    assert values(pairs)["ratelimit"] == f'"20/minute";r=3;t={t}'


def test_several_limits_are_several_members_in_the_same_order_in_both_fields():
    """A client pairs policy and state by name, so both tell of every limit."""
    pairs = headers.draft(
        [
            standing("20/minute", name="chat-send", remaining=3, next_=12 * SECOND),
            standing("500/day", name="chat-day", remaining=480, next_=80_000 * SECOND),
        ]
    )
    assert values(pairs) == {
        "ratelimit-policy": '"chat-send";q=20;w=60, "chat-day";q=500;w=86400',
        "ratelimit": '"chat-send";r=3;t=12, "chat-day";r=480;t=80000',
    }


# ── slowapi's fields ─────────────────────────────────────────────────────────────────────────────────────────────────

MINUTE = standing("2/minute", remaining=1, reset=30 * SECOND)
HOUR = standing("10/hour", remaining=4, reset=1800 * SECOND)
MINUTE_OUT = standing("2/minute", reset=30 * SECOND, retry=30 * SECOND)
HOUR_OUT = standing("10/hour", reset=1800 * SECOND, retry=1800 * SECOND)

SHOWN = [
    ([MINUTE], MINUTE),
    ([HOUR, MINUTE], MINUTE),
    ([MINUTE, HOUR], MINUTE),
    ([MINUTE_OUT, HOUR], MINUTE_OUT),
    ([MINUTE, HOUR_OUT], HOUR_OUT),
    ([MINUTE_OUT, HOUR_OUT], HOUR_OUT),
]


@pytest.mark.parametrize(("standings", "shown"), SHOWN)
def test_the_limit_that_refuses_longest_is_shown_else_the_shortest_window(standings, shown):
    """X-RateLimit-* has room for one limit: the one a client has to mind."""
    assert headers.shown(standings) is shown


def test_slowapis_fields_tell_limit_remaining_and_the_moment_of_reset():
    """X-RateLimit-Reset is a moment, in seconds since the epoch, rounded up."""
    pairs = headers.SlowapiHeaders(NAMES).pairs(decision(standing("2/minute", remaining=1, reset=30 * SECOND + 1)))
    assert values(pairs) == {
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-reset": str(START_S + 31),
    }


def test_the_names_can_be_changed():
    """slowapi's RATELIMIT_HEADER_* settings name all four."""
    own = headers.SlowapiHeaders(["L", "Left", "Again-At", "Wait"])
    assert [name for name, _ in [*own.pairs(decision(MINUTE)), own.retry(decision(MINUTE))]] == [
        b"l",
        b"left",
        b"again-at",
        b"wait",
    ]


WAITS = [
    ([standing("2/minute", retry=1)], "1"),
    ([standing("2/minute", retry=999_999)], "1"),
    ([standing("2/minute", retry=SECOND)], "1"),
    ([standing("2/minute", retry=SECOND + 1)], "2"),
    ([MINUTE_OUT, HOUR_OUT], "1800"),
    ([HOUR_OUT, MINUTE_OUT], "1800"),
    ([MINUTE_OUT, HOUR], "30"),
]


@pytest.mark.parametrize(("standings", "wait"), WAITS)
def test_a_refusal_asks_for_the_longest_wait_rounded_up_and_at_least_one_second(standings, wait):
    """Retry-After is the latest of all exhausted limits; limits that still have room do not matter."""
    assert values([headers.SlowapiHeaders(NAMES).retry(decision(*standings))]) == {"retry-after": wait}


def test_retry_after_is_never_before_the_time_until_one_more_unit():
    """A refused client reads `t` or Retry-After: both lead to success, so Retry-After may not be the smaller."""
    refused = standing("2/minute", reset=59 * SECOND, retry=12 * SECOND, next_=12 * SECOND - 1)
    assert int(headers.SlowapiHeaders(NAMES).retry(decision(refused))[1]) >= seconds(refused.next_us)


def test_an_admitted_request_is_told_when_the_quota_is_whole_as_in_slowapi():
    """slowapi writes Retry-After on 200 too: the time until the reset."""
    assert headers.SlowapiHeaders(NAMES).retry(decision(MINUTE)) == (b"retry-after", b"30")


EXISTING = [
    (b"5", "30"),
    (b"300", "300"),
    (b"Mon, 21 Sep 2026 14:18:20 GMT", "300"),
    (b"Mon, 21 Sep 2026 13:00:00 GMT", "30"),
    (b"soon", "30"),
    (b"", "30"),
    (b"-1", "30"),
    (b"Mon, 99 Sep 2026 14:18:20 GMT", "30"),
    ("²".encode("latin-1"), "30"),
]


@pytest.mark.parametrize(("existing", "wait"), EXISTING)
def test_a_later_retry_after_of_the_application_stays(existing, wait):
    """The clock stands at Mon, 21 Sep 2026 14:13:20 GMT; what cannot be read counts as no header."""
    assert headers.SlowapiHeaders(NAMES).retry(decision(MINUTE), existing) == (b"retry-after", wait.encode())


def test_retry_after_can_be_a_date():
    """`retry_after="http-date"`: the moment in GMT (RFC 9110), rounded up to the second."""
    own = headers.SlowapiHeaders(NAMES, http_date=True)
    at = decision(standing("2/minute", retry=30 * SECOND), at_us=START_US + 1)
    assert own.retry(decision(MINUTE_OUT))[1] == b"Mon, 21 Sep 2026 14:13:50 GMT"
    assert own.retry(at)[1] == b"Mon, 21 Sep 2026 14:13:51 GMT"


def test_new_headers_take_the_place_of_old_ones_of_the_same_name():
    """Whatever the case: a client never reads two values; other headers, and repeated ones, stay in their order."""
    before = [(b"Retry-After", b"5"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    assert headers.replace(before, [(b"retry-after", b"9")]) == [
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"retry-after", b"9"),
    ]

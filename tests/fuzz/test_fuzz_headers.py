"""What is written parses back: structured fields by a library that knows RFC 9651's grammar, numbers as numbers."""

import functools
from email.utils import parsedate_to_datetime

import http_sfv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.limits import headers
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import Decision, Standing
from service.limits.limit import Limit

much = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))

NAMES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128),
    st.sampled_from(['"', "\\", '\\"', '";q=9', "a, b", "chat#2", " ", "chat"]),
)
LONGEST_US = 100 * 365 * 86_400 * 1_000_000
US = st.one_of(st.integers(0, LONGEST_US), st.sampled_from([0, 1, 999_999, 1_000_000, 1_000_001]))
STANDINGS = st.builds(
    lambda name, amount, window_s, algorithm, left, reset_us, retry_us, next_us: Standing(
        Limit(amount=amount, window_s=window_s, algorithm=algorithm, name=name),
        1,
        left % (amount + 1),
        reset_us,
        retry_us,
        next_us,
    ),
    NAMES,
    st.sampled_from([1, 7, 1_000, 10**6]),
    st.sampled_from([1, 60, 86_400, 3600 * 86_400]),
    st.sampled_from(list(ALGORITHMS)),
    st.integers(0, 10**6),
    US,
    US,
    US,
)
DECISIONS = st.builds(
    lambda standings, at_us: Decision(not any(one.retry_us for one in standings), at_us, tuple(standings)),
    st.lists(STANDINGS, min_size=1, max_size=4),
    st.integers(10**15, 4 * 10**15),
)


@much(max_examples=300)
@given(DECISIONS)
def test_the_drafts_headers_are_lists_of_strings_with_whole_numbers(decision):
    standings = decision.standings
    written = dict(headers.draft(standings))
    policies, current = http_sfv.List(), http_sfv.List()
    policies.parse(written[b"ratelimit-policy"])
    current.parse(written[b"ratelimit"])
    assert len(policies) == len(current) == len(standings)
    names = [item.value for item in policies]
    assert [item.value for item in current] == names
    assert len(set(names)) == len(names) or len({one.limit.name for one in standings}) < len(names)
    for policy, item, standing in zip(policies, current, standings, strict=True):
        assert type(policy.value) is str and policy.value.startswith(standing.limit.name)
        assert dict(policy.params) == {"q": standing.limit.capacity, "w": standing.limit.refill_s}
        assert dict(item.params) == {"r": standing.remaining, "t": -(-standing.next_us // 1_000_000)}
        assert all(type(number) is int for number in [*policy.params.values(), *item.params.values()])


@much(max_examples=200)
@given(
    DECISIONS,
    st.booleans(),
    st.one_of(st.none(), st.binary(max_size=30), st.integers(0, 10**12).map(lambda n: b"%d" % n)),
)
def test_slowapis_headers_are_whole_numbers_and_retry_after_is_never_too_early(decision, http_date, existing):
    names = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After")
    written = dict(headers.SlowapiHeaders(names, http_date=http_date).all(decision, existing))
    assert all(int(written[name.lower().encode()]) >= 0 for name in names[:3])
    retry = written[b"retry-after"].decode()
    wait_s = decision.at_us / 1_000_000
    wait_s = parsedate_to_datetime(retry).timestamp() - wait_s if http_date else int(retry)
    wanted_us = decision.retry_us if not decision.allowed else max(one.reset_us for one in decision.standings[:1])
    if not decision.allowed or len(decision.standings) == 1:
        assert wait_s * 1_000_000 >= wanted_us - 1_000  # of a float's precision


@much(max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"Wed, 21 Oct 2026 07:28:00 GMT", b"Wed, 21 Oct 99999 07:28:00 GMT", b"0", b"-1", b"1" * 400]),
        st.text("Wed, 210ctGMT:+-", max_size=40).map(str.encode),
    ),
    st.sampled_from([0.0, 1.8e9, 1e12]),
)
def test_a_retry_after_of_somebody_elses_is_seconds_or_none_at_all(value, now_s):
    found = headers.read_retry(value, now_s)
    assert type(found) is int and found >= 0

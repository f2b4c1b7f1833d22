"""Calendar periods: where they begin and end, in whatever time zone."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidLimit
from service.limits.catalog import PERIODS, Calendar


def _us(text: str, zone: str) -> int:
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("period", "zone", "now", "start", "end", "hours"),
    [
        ("hour", "UTC", "2026-03-01T10:59:59", "2026-03-01T10:00", "2026-03-01T11:00", 1),
        ("hour", "Asia/Kolkata", "2026-03-01T10:15", "2026-03-01T10:00", "2026-03-01T11:00", 1),
        ("day", "UTC", "2026-03-01T00:00", "2026-03-01T00:00", "2026-03-02T00:00", 24),
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-29T00:00", "2026-03-30T00:00", 23),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25T00:00", "2026-10-26T00:00", 25),
        ("day", "America/New_York", "2026-07-04T23:59", "2026-07-04T00:00", "2026-07-05T00:00", 24),
        ("week", "UTC", "2026-03-01T10:00", "2026-02-23T00:00", "2026-03-02T00:00", 168),  # a Sunday
        ("week", "UTC", "2026-03-02T00:00", "2026-03-02T00:00", "2026-03-09T00:00", 168),  # a Monday
        ("month", "Europe/Berlin", "2026-02-28T23:59", "2026-02-01T00:00", "2026-03-01T00:00", 28 * 24),
        ("month", "Europe/Berlin", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00", 29 * 24),
        ("month", "Europe/Berlin", "2026-03-31T12:00", "2026-03-01T00:00", "2026-04-01T00:00", 31 * 24 - 1),
        ("month", "UTC", "2026-12-31T12:00", "2026-12-01T00:00", "2027-01-01T00:00", 31 * 24),
        ("year", "UTC", "2028-12-31T12:00", "2028-01-01T00:00", "2029-01-01T00:00", 366 * 24),
        # Set forward over midnight: the day begins at one o'clock.
        ("day", "Africa/Cairo", "2026-04-24T12:00", "2026-04-24T01:00", "2026-04-25T00:00", 23),
        # Set back over midnight: it begins at the first one.
        ("day", "America/Havana", "2026-11-01T12:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00", 25),
    ],
)
def test_a_period_begins_and_ends_with_the_local_calendar(period, zone, now, start, end, hours):
    window = Calendar(amount=1, period=period, timezone=zone).window(_us(now, zone))
    assert window == (_us(start, zone), _us(end, zone))
    assert window[1] - window[0] == hours * 3_600_000_000


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo", "America/Havana", "Pacific/Apia"]
ZONES += [
    "Asia/Kathmandu",
    "America/St_Johns",
    "Pacific/Chatham",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Africa/Casablanca",
]


@given(
    st.sampled_from(PERIODS),
    st.sampled_from(ZONES),
    st.integers(_us("2000-01-01T00:00", "UTC"), _us("2100-01-01T00:00", "UTC")),
)
def test_periods_follow_each_other_without_a_gap_and_without_overlapping(period, zone, now_us):
    calendar = Calendar(amount=1, period=period, timezone=zone)
    start, end = calendar.window(now_us)
    assert start <= now_us < end
    assert calendar.window(start) == calendar.window(end - 1) == (start, end)
    assert calendar.window(end)[0] == end


def test_microseconds_before_midnight_belong_to_the_day_that_ends():
    midnight = _us("2026-03-02T00:00", "UTC")
    calendar = Calendar(amount=1, period="day")
    assert calendar.window(midnight - 1)[1] == midnight
    assert calendar.window(midnight)[0] == midnight


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"amount": 0, "period": "day"}, "requests: 0; use 1 to 1000000000"),
        ({"amount": 10**9 + 1, "period": "day"}, "use 1 to 1000000000"),
        ({"amount": 1, "period": "minute"}, 'unknown period "minute"; use hour, day, week, month, year'),
        ({"amount": 1, "period": "day", "timezone": "Berlin"}, 'unknown timezone "Berlin"'),
        ({"amount": 1, "period": "day", "timezone": "Europe"}, 'unknown timezone "Europe"'),
        ({"amount": 1, "period": "day", "timezone": "/etc/passwd"}, "unknown timezone"),
        ({"amount": 1, "period": "day", "timezone": "a\0b"}, "unknown timezone"),
        ({"amount": 1, "period": "day", "timezone": "x" * 10_000}, "unknown timezone"),
    ],
)
def test_a_calendar_cannot_be_built_wrong(values, says):
    with pytest.raises(InvalidLimit, match=says):
        Calendar(**values)


def test_utc_needs_no_database_of_time_zones():
    assert Calendar(amount=1, period="day").zone is UTC

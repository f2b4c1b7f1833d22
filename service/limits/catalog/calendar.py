"""A quota that comes back with the calendar: so many units an hour, day, week, month or year of a time zone. Pure."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from service.errors import InvalidLimit
from service.limits.limit import LARGEST_AMOUNT, Limit

PERIODS = ("hour", "day", "week", "month", "year")

_HOUR_S = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """A limit whose window is a period of the calendar. Days begin at local midnight, weeks on Monday.

    Attributes:
        amount: Units a period admits; 1 to 10^9.
        period: One of PERIODS.
        timezone: A name of the IANA database, `Europe/Berlin`.
        zone: The same, loaded.
    """

    amount: int
    period: str
    timezone: str = "UTC"
    zone: tzinfo = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.amount <= LARGEST_AMOUNT:
            raise InvalidLimit(f"requests: {self.amount}; use 1 to {LARGEST_AMOUNT}")
        if self.period not in PERIODS:
            raise InvalidLimit(f'unknown period "{self.period}"; use {", ".join(PERIODS)}')
        try:
            zone: tzinfo = UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise InvalidLimit(
                f'unknown timezone "{self.timezone}"; use a name such as Europe/Berlin or UTC '
                "(where the system has no time zones, install the package tzdata)"
            ) from None
        object.__setattr__(self, "zone", zone)

    @property
    def name(self) -> str:
        """What headers and answers call it: `1000/calendar month`."""
        return f"{self.amount}/calendar {self.period}"

    def window(self, now_us: int) -> tuple[int, int]:
        """The period an instant is in: (start, end), microseconds since the epoch, `start <= now_us < end`.

        A counter whose key carries `start` and that lives until `end` counts this limit exactly. Where clocks are set
        forward over midnight the day begins when they have been; where they are set back over it, at the first one.
        """
        now_s = now_us // 1_000_000
        local = datetime.fromtimestamp(now_s, self.zone)
        if self.period == "hour":
            offset = local.utcoffset() or timedelta()
            start_s = now_s - (now_s + int(offset.total_seconds())) % _HOUR_S
            return start_s * 1_000_000, (start_s + _HOUR_S) * 1_000_000
        first, following = _days(local.date(), self.period)
        return self._midnight_us(first), self._midnight_us(following)

    def limit(self, now_us: int, name: str = "") -> Limit:
        """The limit that holds in the period an instant is in.

        Args:
            now_us: The instant, microseconds since the epoch.
            name: What headers and answers call it; by default `name`.
        """
        start_us, end_us = self.window(now_us)
        return Limit(
            amount=self.amount,
            window_s=(end_us - start_us) // 1_000_000,
            since_s=start_us // 1_000_000,
            name=name or self.name,
        )

    def _midnight_us(self, day: date) -> int:
        midnight = datetime(day.year, day.month, day.day, tzinfo=self.zone)
        return (midnight.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _days(day: date, period: str) -> tuple[date, date]:
    """The first day of a period, and of the one after it."""
    if period == "day":
        return day, day + timedelta(days=1)
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    if period == "month":
        first = day.replace(day=1)
        return first, (first + timedelta(days=31)).replace(day=1)
    return day.replace(month=1, day=1), day.replace(year=day.year + 1, month=1, day=1)

"""Lines of an access log: common and combined format (a virtual host may stand in front), and JSON. Pure."""

import calendar
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, NamedTuple

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    rf"(?:(?P<host>[\w.\[\]:-]+) )?(?P<address>[0-9A-Fa-f:.]+) \S+ (?P<user>\S+) \[(?P<time>[^\]]+)\] "
    rf"{_QUOTED.replace('(', '(?P<request>', 1)} (?P<status>\d{{3}}) \S+"
    rf"(?: {_QUOTED} {_QUOTED.replace('(', '(?P<agent>', 1)})?"
)
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_TIME = re.compile(r"(\d\d)/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")
_NAMES = {
    "time": ("time", "timestamp", "@timestamp", "ts", "time_iso8601", "time_local", "msec"),
    "address": ("client", "remote_address", "remote_addr", "client_ip", "remote_ip", "address"),
    "method": ("method", "request_method"),
    "path": ("path", "uri", "request_uri", "url", "target"),
    "host": ("host", "http_host", "server_name"),
    "user": ("user", "remote_user"),
    "user_agent": ("user_agent", "http_user_agent"),
}
"""What others call it in JSON."""


class Seen(NamedTuple):
    """One request as the log tells it.

    Attributes:
        at_us: When, microseconds since the epoch; as exact as the log is.
        fields: What is known of it: remote_address, method, path (without its query), host, user, user_agent.
    """

    at_us: int
    fields: Mapping[str, str]


class UnreadableError(ValueError):
    """A line that is no line of an access log."""


def read(line: str) -> Seen | None:
    """A line; None = it is not about a request (an empty line, another event of a JSON log). Raises UnreadableError."""
    line = line.strip()
    if not line:
        return None
    return _json(line) if line.startswith("{") else _combined(line)


def _combined(line: str) -> Seen:
    match = _LINE.match(line)
    if match is None:
        raise UnreadableError("neither the common or combined format nor JSON")
    found = match.groupdict()
    method, _, target = (found["request"] or "").partition(" ")
    fields = {"remote_address": found["address"]}
    if target:
        fields |= {"method": method, "path": _path(target.partition(" ")[0])}
    for name, value in (("user", found["user"]), ("user_agent", found["agent"]), ("host", found["host"])):
        if value and value != "-":
            fields[name] = value
    return Seen(_local_us(found["time"]), fields)


def _json(line: str) -> Seen | None:
    try:
        said = json.loads(line)
    except ValueError:
        raise UnreadableError("not JSON") from None
    found = {name: _first(said, names) for name, names in _NAMES.items()}
    if found["method"] is None or found["path"] is None:
        return None
    if found["time"] is None:
        raise UnreadableError("no time")
    address = str(found["address"] or "")
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and (host.count(":") == 0 or host.startswith("[")):
        address = host.strip("[]")
    fields = {"remote_address": address, "path": _path(str(found["path"]))}
    fields |= {name: str(found[name]) for name in ("method", "host", "user", "user_agent") if found[name]}
    return Seen(_any_us(found["time"]), {name: value for name, value in fields.items() if value and value != "-"})


def _first(said: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((said[name] for name in names if said.get(name) not in (None, "")), None)


def _path(target: str) -> str:
    return target.partition("?")[0].partition("#")[0]


_LATEST_S = 253_402_300_800
"""The year 10,000, in seconds since the epoch."""


@lru_cache(maxsize=4096)
def _local_us(text: str) -> int:
    """`25/Nov/2026:17:32:05 +0100`."""
    match = _TIME.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        raise UnreadableError(f'no time, "{text[:40]}"')
    day, month, year, hour, minute, second, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
    try:
        at = datetime(
            int(year), _MONTHS[month], int(day), int(hour), int(minute), min(59, int(second)), tzinfo=timezone(offset)
        )
    except ValueError:
        raise UnreadableError(f'no time, "{text[:40]}"') from None
    return int(at.timestamp()) * 1_000_000


def _any_us(value: object) -> int:
    """ISO 8601, seconds since the epoch, or as the common format has it."""
    text = str(value)
    try:
        if isinstance(value, (int, float)) or re.fullmatch(r"\d+(\.\d+)?", text):
            if not 0 <= (at_s := float(text)) < _LATEST_S:
                raise UnreadableError(f'no time, "{text[:40]}"')
            return int(at_s * 1_000_000)
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return _local_us(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000_000)

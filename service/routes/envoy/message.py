"""RateLimitRequest and RateLimitResponse as JSON (protobuf's mapping, proto3). Pure.

Read leniently, as the mapping wants it: names in camelCase or as they are declared, numbers also as text, null for
what is not there. A name that is not known is refused: it would be a limit that somebody believes in.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from service.errors import InvalidInput
from service.limits.envoy import UNITS, Answer, Descriptor, Override, Question, Told, question

_LARGEST_32, _LARGEST_64 = 2**32 - 1, 2**64 - 1


def read(document: Any) -> Question:
    """A RateLimitRequest. Raises InvalidInput naming the field."""
    fields = _fields(document, "body", ("domain", "descriptors", "hits_addend"))
    hits = _whole(fields.get("hits_addend"), "hits_addend", _LARGEST_32)
    descriptors = [
        _descriptor(item, f"descriptors[{index}]")
        for index, item in enumerate(_items(fields.get("descriptors"), "descriptors"))
    ]
    return question(_text(fields.get("domain"), "domain"), descriptors, hits or 0)


def _descriptor(document: Any, at: str) -> Descriptor:
    fields = _fields(document, at, ("entries", "limit", "hits_addend"))
    entries = []
    for index, item in enumerate(_items(fields.get("entries"), f"{at}.entries")):
        where = f"{at}.entries[{index}]"
        entry = _fields(item, where, ("key", "value"))
        entries.append((_text(entry.get("key"), f"{where}.key"), _text(entry.get("value"), f"{where}.value")))
    hits = _whole(fields.get("hits_addend"), f"{at}.hits_addend", _LARGEST_64)
    return Descriptor(tuple(entries), hits, _override(fields.get("limit"), f"{at}.limit"))


def _override(document: Any, at: str) -> Override | None:
    if document is None:
        return None
    fields = _fields(document, at, ("requests_per_unit", "unit"))
    requests = _whole(fields.get("requests_per_unit"), f"{at}.requests_per_unit", _LARGEST_32)
    unit = fields.get("unit")
    if unit is None:
        unit = 0
    if isinstance(unit, str):
        return Override(requests or 0, unit)
    number = _whole(unit, f"{at}.unit", _LARGEST_32) or 0
    return Override(requests or 0, UNITS[number] if number < len(UNITS) else str(number))


def _fields(document: Any, at: str, names: Sequence[str]) -> Mapping[str, Any]:
    """Members by the name they are declared by."""
    if not isinstance(document, dict):
        raise InvalidInput(at, f"wanted an object, not {_kind(document)}")
    known = {name: name for name in names} | {_camel(name): name for name in names}
    found: dict[str, Any] = {}
    for written, value in document.items():
        name = known.get(written)
        where = written if at == "body" else f"{at}.{written}"
        if name is None:
            raise InvalidInput(where[:200], f"is not known; use {', '.join(map(_camel, names))}")
        if name in found:
            raise InvalidInput(where, "is there twice, as it is declared and in camelCase")
        found[name] = value
    return found


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _items(value: Any, at: str) -> Iterable[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidInput(at, f"wanted a list, not {_kind(value)}")
    return value


def _text(value: Any, at: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(at, f"wanted text, not {_kind(value)}")
    return value


def _whole(value: Any, at: str, most: int) -> int | None:
    """A number, also as text; None = there is none."""
    if value is None:
        return None
    number = int(value) if _counts(value) else value
    if type(number) is int and 0 <= number <= most:
        return number
    shown = str(value)[:40] if type(value) in (int, float, str) else _kind(value)
    raise InvalidInput(at, f"wanted a whole number from 0 to {most}, not {shown}")


def _counts(value: Any) -> bool:
    """Whether it is a whole number in another form: `"5"`, `5.0`."""
    if isinstance(value, str):
        return value.isascii() and value.isdecimal() and len(value) < 30
    return isinstance(value, float) and value.is_integer()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def written(told: Answer) -> bytes:
    """A RateLimitResponse."""
    answer: dict[str, Any] = {"overallCode": _code(told.over), "statuses": [_status(each) for each in told.statuses]}
    if told.headers:
        answer["responseHeadersToAdd"] = [
            {"key": name.decode(), "value": value.decode()} for name, value in told.headers
        ]
    return to_json(answer)


def _status(told: Told) -> dict[str, Any]:
    status: dict[str, Any] = {"code": _code(told.over)}
    if told.limit is not None:
        requests, unit, name = told.limit
        status["currentLimit"] = {"requestsPerUnit": requests, "unit": unit} | ({"name": name} if name else {})
    if told.limit is not None or told.remaining:
        status["limitRemaining"] = told.remaining
    if told.reset_s is not None:
        status["durationUntilReset"] = f"{told.reset_s}s"
    return status


def _code(over: bool) -> str:
    return "OVER_LIMIT" if over else "OK"

"""What a descriptor counts, and how: `rate_limit`, `limits`, `requests`. Pure."""

from typing import Any

from service.errors import InvalidLimit
from service.limits.algorithms import KNOWN
from service.limits.catalog.calendar import PERIODS, Calendar
from service.limits.catalog.grammar import ANY, CALENDAR, COUNTED, HOW, NAMES, of_rate_limit, of_replaces
from service.limits.catalog.nodes import Field, Reader, choice
from service.limits.catalog.rules import UNITS_S
from service.limits.limit import LARGEST_AMOUNT, Limit

Known = dict[tuple[Any, ...], tuple[Limit, ...]]
"""Limits made before, by how they are written: a file says the same again and again."""

_NONE: frozenset[str] = frozenset()


class Limiting:
    """Reads what is limited.

    Args:
        reader: Of the file.
        known: Looked into, and added to.
    """

    def __init__(self, reader: Reader, known: Known) -> None:
        self._r = reader
        self._limits = known

    def read(self, fields: dict[str, Field]) -> dict[str, Any] | None:
        """As attributes of a Rule; None = nothing is limited.

        Args:
            fields: Of the descriptor.
        """
        if "rate_limit" in fields:
            self._refuse(fields, (*COUNTED, *CALENDAR, *NAMES), "contradicts rate_limit beside it; keep one of them")
            return self._rate_limit(fields["rate_limit"], fields)
        if not any(name in fields for name in COUNTED):
            self._refuse(fields, (*CALENDAR, *NAMES, *HOW, *ANY), "nothing is limited here; add limits or rate_limit")
            return None
        if "limits" not in fields:
            self._refuse(fields, HOW, "goes with limits; a calendar period has none")
        if "requests" not in fields:
            self._refuse(fields, CALENDAR, "goes with requests, a number of units a period")
        name, replaces = self._names(fields)
        limits, calendar = self._written(fields, name), self._calendar(fields)
        return {"limits": limits, "calendar": calendar, "name": name, "replaces": replaces}

    def _refuse(self, fields: dict[str, Field], names: tuple[str, ...], reason: str) -> None:
        for name in names:
            if name in fields:
                self._r.fault(fields[name].name, f"{name}: {reason}")

    def _rate_limit(self, outer: Field, beside: dict[str, Field]) -> dict[str, Any]:
        fields = self._r.fields(outer.value, "rate_limit with its unit", of_rate_limit)
        twice = tuple(name for name in HOW if name in fields)
        self._refuse(beside, twice, "contradicts the one in rate_limit; keep one of them")
        fields = {**{name: beside[name] for name in HOW if name in beside}, **fields}
        name, replaces = self._names(fields)
        found: dict[str, Any] = {"name": name, "replaces": replaces}
        unit = self._r.text(fields.get("unit")).lower()
        if self._r.truth(fields.get("unlimited")):
            self._refuse(fields, ("unit", *HOW), "contradicts unlimited beside it; keep one of them")
            return {**found, "unlimited": True}
        if unit not in UNITS_S:
            at = fields["unit"].value if "unit" in fields else outer.value
            self._r.fault(at, f"unit: {choice(unit, UNITS_S)}")
            return found
        if "requests_per_unit" not in fields:
            self._r.fault(outer.value, "requests_per_unit: a number is wanted; got none (0 refuses everything)")
        amount = self._r.whole(fields.get("requests_per_unit"), 0, LARGEST_AMOUNT)
        algorithm, burst = self._how(fields)
        if amount is None:
            return found
        if amount == 0:
            return {**found, "blocked": True, "unit": unit}
        limits = self._limits_of(fields["requests_per_unit"], (amount, unit, algorithm, burst, name))
        return {**found, "limits": limits, "unit": unit}

    def _limits_of(self, field: Field, said: tuple[int, str, str, int | None, str]) -> tuple[Limit, ...]:
        amount, unit, algorithm, burst, name = said
        if said not in self._limits:
            try:
                limit = Limit(
                    amount=amount,
                    window_s=UNITS_S[unit],
                    algorithm=algorithm,
                    burst=burst,
                    aligned=algorithm == "fixed-window",
                    name=name,
                )
            except InvalidLimit as error:
                self._r.fault(field.value, f"rate_limit: {error}")
                return ()
            self._limits[said] = (limit,)
        return self._limits[said]

    def _written(self, fields: dict[str, Field], name: str) -> tuple[Limit, ...]:
        """The limits of `limits:`; a name is theirs if there is but one."""
        field = fields.get("limits")
        if field is None:
            return ()
        text = self._r.text(field)
        algorithm, burst = self._how(fields)
        said = (text, algorithm, burst, name)
        if said not in self._limits:
            try:
                limits = Limit.parse(text, algorithm=algorithm, burst=burst)
                if name and len(limits) == 1:
                    limits = Limit.parse(text, algorithm=algorithm, burst=burst, name=name)
            except InvalidLimit as error:
                self._r.fault(field.value, f"limits: {error}")
                return ()
            self._limits[said] = limits
        return self._limits[said]

    def _how(self, fields: dict[str, Field]) -> tuple[str, int | None]:
        """Algorithm and burst."""
        algorithm = self._r.one_of(fields.get("algorithm"), tuple(KNOWN)) if "algorithm" in fields else "fixed-window"
        burst = self._r.whole(fields.get("burst"), 1, LARGEST_AMOUNT)
        if burst is None or algorithm == "gcra":
            return algorithm or "fixed-window", burst
        if algorithm is not None:
            self._r.fault(fields["burst"].name, f"burst: goes with algorithm: gcra, not with {algorithm}")
        return "fixed-window", None

    def _calendar(self, fields: dict[str, Field]) -> Calendar | None:
        if "requests" not in fields:
            return None
        amount = self._r.whole(fields["requests"], 1, LARGEST_AMOUNT)
        period = self._r.one_of(fields.get("per"), PERIODS)
        if "per" not in fields:
            self._r.fault(fields["requests"].name, f"requests: needs per beside it: {', '.join(PERIODS)}")
        if "align" not in fields:
            self._r.fault(
                fields["requests"].name,
                "requests: needs align: calendar beside it; for windows that begin with the first request "
                'write limits: "100/day"',
            )
        self._r.one_of(fields.get("align"), ("calendar",))
        if amount is None or period is None:
            return None
        try:
            return Calendar(amount=amount, period=period, timezone=self._r.text(fields.get("timezone")) or "UTC")
        except InvalidLimit as error:
            self._r.fault(fields["timezone"].value, str(error))
            return None

    def _names(self, fields: dict[str, Field]) -> tuple[str, frozenset[str]]:
        """A rule's name, and the names it replaces."""
        name = self._r.text(fields.get("name"))
        if "replaces" not in fields:
            return name, _NONE
        replaces = set()
        for node in self._r.items(fields.get("replaces")):
            field = self._r.fields(node, "a name in replaces", of_replaces).get("name")
            other = self._r.text(field)
            if not other:
                self._r.fault(node, "replaces: the name of another rule is wanted; got none")
            elif other == name:
                self._r.fault(node, f'replaces: "{name}" cannot replace itself')
            replaces.add(other)
        return name, frozenset(replaces)

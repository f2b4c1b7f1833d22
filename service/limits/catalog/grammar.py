"""Which keys stand where; docs/limits.md says what each means. Pure."""

from collections.abc import Callable

from service.limits.catalog.nodes import perhaps

DOMAIN = ("domain", "descriptors", "atomic")
VALUES = ("value", "value_cidr", "value_regex")
FLAGS = ("shadow_mode", "quota_mode", "detailed_metric", "value_to_metric", "share_threshold")
COUNTED = ("limits", "requests")
CALENDAR = ("per", "align", "timezone")
NAMES = ("name", "replaces")
HOW = ("algorithm", "burst")
ANY = ("on_outage", "cost_unit")
DESCRIPTOR = (
    *("key", *VALUES, "descriptors", "rate_limit", *FLAGS, "metadata"),
    *(*COUNTED, *CALENDAR, *NAMES, *HOW, *ANY),
)
RATE_LIMIT = ("unit", "requests_per_unit", "unlimited", *NAMES, *HOW)
_HOMES = {
    **dict.fromkeys(DESCRIPTOR, "a descriptor"),
    **dict.fromkeys(("unit", "requests_per_unit", "unlimited"), "rate_limit"),
    **dict.fromkeys(("domain", "atomic"), "the top of the file, beside its descriptors"),
}


def _teller(what: str, known: tuple[str, ...]) -> Callable[[str], str | None]:
    """What says of a key of `what` what is wrong with it; None = nothing."""
    known_are = f"; known are {', '.join(known)}"

    def say(name: str) -> str | None:
        if name in known:
            return None
        if name in _HOMES:
            return f'"{name}" does not belong to {what} but to {_HOMES[name]}'
        return f'unknown key "{name[:60]}" in {what}{perhaps(name, known) or known_are}'

    return say


of_domain = _teller("the top of the file", DOMAIN)
of_descriptor = _teller("a descriptor", DESCRIPTOR)
of_rate_limit = _teller("rate_limit", RATE_LIMIT)
of_replaces = _teller("replaces", ("name",))

"""What was promised, and whether it held: the smallest part of every report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A promise, and whether it held; `found` is what was there instead."""

    promise: str
    held: bool
    found: str


def exactly(promise: str, found: object, wanted: object) -> Check:
    """A promise of one value."""
    return Check(promise=f"{promise}: {wanted}", held=found == wanted, found=str(found))


def at_most(promise: str, found: float | None, most: float, unit: str = "") -> Check:
    """A promise of a bound; None: what was waited for did not come."""
    told = "never" if found is None else f"{found:.4g}{unit}"
    return Check(promise=f"{promise} ≤ {most:g}{unit}", held=found is not None and found <= most, found=told)


def at_least(promise: str, found: int, least: int) -> Check:
    """The same from below."""
    return Check(promise=f"{promise} ≥ {least}", held=found >= least, found=str(found))

"""Regular expressions that never take longer than the value is long: RE2's, in its syntax. Pure.

Python's `re` tries one way after the other: `(a+)+b` takes 2^n steps on n times "a", and values come from callers. RE2
reads a value once, and many patterns in the same pass. What cannot be done so (backreferences, looking around) is
refused. `.` is any character, the end of a line too; all of the value must match, so `^` and `$` may be left out.
"""

import re
from collections.abc import Sequence

import re2  # type: ignore[import-untyped]

LONGEST_PATTERN = 1_000
LARGEST_PATTERN = 10_000
"""Instructions of one pattern, its repetitions written out: `[a-z]{3}` has about three."""
MOST_TOGETHER = 100_000
"""Instructions of patterns that are matched in one pass; `LARGEST_PATTERN` fits."""

_SPARE_BYTES = 1 << 20
_BYTES_EACH = 192
"""Memory for an instruction: its program, and the states RE2 keeps, all forgotten when there are too many."""

_REASONS = {
    "no argument for repetition operator": 'nothing to repeat before "{}"; for the character itself write "\\{}"',
    "bad repetition operator": 'a repetition of a repetition, "{}"; put the first into a group',
    "invalid repetition size": 'repeated too often, "{}"; repetitions within each other may come to 1000 in all',
    "invalid escape sequence": '"{}" is not read',
    "invalid character class range": 'no class of characters, or a range that runs backwards, "{}"',
    "invalid named capture group": 'no name of a group, "{}"',
    "missing ]": 'a "[" without its "]", in "{}"',
    "missing )": 'a "(" without its ")"',
    "unexpected )": 'a ")" without its "("',
    "trailing \\": "a backslash with nothing behind it",
    "pattern too large - compile failed": f"too large with its repetitions written out; use up to {LARGEST_PATTERN}",
}
_NO_LOWER_BOUND = re.compile(r"(?<!\\)\{,\d+\}")


class InvalidPattern(ValueError):
    """A pattern that cannot be read; the message quotes the part, where there is one."""


class Patterns:
    """Several patterns, matched in one pass.

    Args:
        texts: None of which `size` refuses.
        instructions: What `size` answers for them, added up; at most MOST_TOGETHER.

    Raises:
        InvalidPattern: They are larger than that.
    """

    __slots__ = ("_set",)

    def __init__(self, texts: Sequence[str], instructions: int) -> None:
        self._set = re2.Set.FullMatchSet(_options(instructions))
        for text in texts:
            self._set.Add(text)
        try:
            self._set.Compile()  # also tries whether the memory suffices to match anything: later RE2 would not tell
        except re2.error:
            raise InvalidPattern("too large together") from None

    def find(self, value: str) -> int | None:
        """The number of the first pattern that matches all of `value`."""
        return min(self._set.Match(value.encode("utf-8", "surrogatepass")) or (), default=None)


def size(text: str) -> int:
    """How many instructions a pattern has. Raises InvalidPattern if it cannot be used."""
    if len(text) > LONGEST_PATTERN:
        raise InvalidPattern(f"{len(text)} characters; use up to {LONGEST_PATTERN}")
    if (unbounded := _NO_LOWER_BOUND.search(text)) is not None:  # to RE2 these are five letters
        raise InvalidPattern(f'a number is wanted after "{{"; write "{{0{unbounded[0][1:]}"')
    try:
        found: int = re2.compile(text, _options(LARGEST_PATTERN)).programsize
    except UnicodeEncodeError:
        raise InvalidPattern("half of a surrogate pair is no character") from None
    except re2.error as error:
        raise InvalidPattern(_sentence(error.args[0].decode("utf-8", "replace"))) from None
    if found > LARGEST_PATTERN:
        raise InvalidPattern(_REASONS["pattern too large - compile failed"])
    return found


def _sentence(said: str) -> str:
    """RE2's complaint in our words."""
    reason, _, part = said.partition(": ")
    if reason == "invalid perl operator":
        around = part.startswith(("(?=", "(?!", "(?<"))
        why = "looking around takes longer than a value is long" if around else "it is none that RE2 knows"
        return f'"{part}" is not read: {why}'
    if reason == "invalid escape sequence" and part[1:].isdecimal():
        return f'"{part}" is not read: a backreference takes longer than a value is long'
    known = _REASONS.get(reason)
    return said if known is None else known.replace("{}", part)


def _options(instructions: int) -> "re2.Options":
    options = re2.Options()
    options.max_mem = _SPARE_BYTES + _BYTES_EACH * instructions
    options.dot_nl = True
    options.never_capture = True
    options.log_errors = False
    return options

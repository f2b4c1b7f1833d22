"""Regular expressions as they are written, for `automaton.py` to match. Pure.

    literals  \\. \\n \\t \\r \\x2f    . any character    [a-z_] [^/]    \\d \\w \\s \\D \\W \\S (ASCII)
    (a|b)  (?:a|b)    * + ? {3} {2,} {2,5}, each also lazy, which changes nothing here

The whole value must match, so `^` and `$` may stand at the ends only. What no automaton can do (backreferences, looking
around) and what nobody needs here (flags, `\\b`) is refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

LONGEST_PATTERN = 1_000
LARGEST_PATTERN = 2_000
"""Positions of one pattern, its repetitions written out: `[a-z]{3}` has three."""
DEEPEST = 50

Ranges = tuple[tuple[int, int], ...]
"""Characters, as code points from..to."""

_LAST = 0x10FFFF
_CLASSES: dict[str, Ranges] = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 13), (32, 32)),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class InvalidPattern(ValueError):
    """A pattern that cannot be read; the message names the character, counted from 1."""


class Node(NamedTuple):
    """A part of a pattern.

    Attributes:
        kind: `set`, one character; `all`, one part after the other; `one`, one of the parts; `repeat`, the one part.
        size: Positions, repetitions written out.
        parts: What it is made of.
        ranges: Of a set.
        low, high: Of a repetition; None = without end.
    """

    kind: str
    size: int
    parts: tuple["Node", ...] = ()
    ranges: Ranges = ()
    low: int = 0
    high: int | None = 0


class Pattern(NamedTuple):
    """A pattern that has been read."""

    root: Node
    size: int


def parse(text: str) -> Pattern:
    """Read a pattern. Raises InvalidPattern."""
    if len(text) > LONGEST_PATTERN:
        raise InvalidPattern(f"{len(text)} characters; use up to {LONGEST_PATTERN}")
    root = _Parser(text).read()
    if root.size > LARGEST_PATTERN:
        raise InvalidPattern(
            f"{root.size} characters when its repetitions are written out; use up to {LARGEST_PATTERN}"
        )
    return Pattern(root, root.size)


class _Parser:
    """Recursive descent; `at` is the character that is next."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1 if text.startswith("^") else 0
        bare = text.removesuffix("$")
        escaped = (len(bare) - len(bare.rstrip("\\"))) % 2 == 1
        self.end = len(text) if escaped else max(self.at, len(bare))
        self.depth = 0

    def read(self) -> Node:
        root = self._alternatives()
        if self.at < self.end:
            raise self._fault('a ")" without its "("')
        return root

    def _fault(self, reason: str) -> InvalidPattern:
        return InvalidPattern(f"{reason} (character {self.at + 1})")

    def _sees(self, text: str) -> bool:
        """Whether `text` is next; then go past it."""
        if not self.text.startswith(text, self.at, self.end):
            return False
        self.at += len(text)
        return True

    def _next(self) -> str:
        return self.text[self.at] if self.at < self.end else ""

    def _alternatives(self) -> Node:
        parts = [self._sequence()]
        while self._sees("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Node("one", sum(part.size for part in parts), tuple(parts))

    def _sequence(self) -> Node:
        parts = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return Node("all", sum(part.size for part in parts), tuple(parts))

    def _atom(self) -> Node:
        if self._sees("("):
            return self._group()
        if self._sees("["):
            return _set(self._class())
        if self._sees("."):
            return _set(((0, _LAST),))
        if self._sees("\\"):
            return _set(self._escape())
        character = self._next()
        if character in "*+?{":
            raise self._fault(f'nothing to repeat before "{character}"; for the character itself write "\\{character}"')
        if character in "^$":
            raise self._fault(f'"{character}" belongs at an end of the pattern; the whole value must match in any case')
        self.at += 1
        return _single(character)

    def _group(self) -> Node:
        if self._sees("?") and not self._sees(":"):
            raise self._fault('only "(...)" and "(?:...)" are read: no flags, no names, no looking around')
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._fault(f"more than {DEEPEST} groups within each other")
        node = self._alternatives()
        if not self._sees(")"):
            raise self._fault('a "(" without its ")"')
        self.depth -= 1
        return node

    def _repeated(self, part: Node) -> Node:
        low, high = self._times()
        if low < 0:
            return part
        if self._next() in ("*", "+", "{"):
            raise self._fault("a repetition of a repetition; put the first into a group")
        self._sees("?")  # lazy: which way is found first makes no difference to whether there is one
        if part.size == 0:
            return part  # nothing, however often
        copies = max(low, 1) if high is None else high
        return Node("repeat", part.size * copies, (part,), (), low, high)

    def _times(self) -> tuple[int, int | None]:
        """What a quantifier says, (-1, 0) if none is next."""
        for mark, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._sees(mark):
                return times
        if not self._sees("{"):
            return -1, 0
        low = self._number()
        high: int | None = low
        if self._sees(","):
            high = None if self._next() == "}" else self._number()
        if not self._sees("}"):
            raise self._fault('a "{" without its "}"')
        if high is not None and high < low:
            raise self._fault(f"a repetition of {low} to {high} times")
        return low, high

    def _number(self) -> int:
        start = self.at
        while self._next() in tuple("0123456789"):
            self.at += 1
        if not 1 <= self.at - start <= 4:
            raise self._fault('a number is wanted after "{", as in "{2,5}"; for the character itself write "\\{"')
        return int(self.text[start : self.at])

    def _escape(self) -> Ranges:
        """What stands behind a backslash."""
        character = self._next()
        if character.lower() in _CLASSES:
            self.at += 1
            ranges = _CLASSES[character.lower()]
            return _complement(ranges) if character.isupper() else ranges
        if self._sees("x"):
            digits = self.text[self.at : min(self.at + 2, self.end)]
            if len(digits) < 2 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise self._fault('two hexadecimal digits are wanted after "\\x"')
            self.at += 2
            return ((int(digits, 16),) * 2,)
        if character == "" or (character.isalnum() and character not in _CONTROLS):
            raise self._fault(f'"\\{character}" is not read')
        self.at += 1
        return ((ord(_CONTROLS.get(character, character)),) * 2,)

    def _class(self) -> Ranges:
        """What stands between brackets; a "]" at the beginning stands for itself."""
        negated = self._sees("^")
        found: list[tuple[int, int]] = []
        first = True
        while first or self._next() != "]":
            first = False
            ranges = self._member()
            if self._next() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                ranges = self._range(ranges, self._member())
            found += ranges
        self.at += 1
        return _complement(found) if negated else tuple(found)

    def _range(self, begin: Ranges, end: Ranges) -> Ranges:
        (low, same_low), (high, same_high) = begin[0], end[0]
        if len(begin) > 1 or len(end) > 1 or low != same_low or high != same_high or high < low:
            raise self._fault("a range that runs backwards, or not from character to character")
        return ((low, high),)

    def _member(self) -> Ranges:
        character = self._next()
        if character == "":
            raise self._fault('a "[" without its "]"')
        self.at += 1
        if character == "\\":
            return self._escape()
        if character == "[":
            raise self._fault('"[" within brackets; for the character itself write "\\["')
        return ((ord(character),) * 2,)


def _set(ranges: Ranges) -> Node:
    return Node("set", 1, (), ranges)


def _single(character: str) -> Node:
    return _set(((ord(character),) * 2,))


def _complement(ranges: Sequence[tuple[int, int]]) -> Ranges:
    found, after = [], 0
    for low, high in sorted(ranges):
        if low > after:
            found.append((after, low - 1))
        after = max(after, high + 1)
    if after <= _LAST:
        found.append((after, _LAST))
    return tuple(found)

"""Regular expressions that never take longer than the value is long. Pure.

Python's `re` tries one way after the other: `(a+)+b` takes 2^n steps on n times "a", and values come from callers. Here
the characters of a pattern are the positions of an automaton (Glushkov 1961) that is in all possible positions at
once, so a value is read once. Its states are made when a value first needs them, kept, and forgotten when there are too
many (as RE2 does); one automaton stands for many patterns.
"""

from collections.abc import Iterator, Sequence

from service.limits.catalog.regular import Node, Pattern, Ranges

LARGEST_AUTOMATON = 4_000
"""Positions of one automaton; `LARGEST_PATTERN` fits."""

MOST_KEPT = 4_000
"""Steps from state to state an automaton remembers: under a megabyte."""


class _State:
    """Positions the automaton may be in.

    Attributes:
        accepts: The first pattern that is complete here; None = none is.
        follow: The positions that may come next, as bits; 0 = no value goes on from here.
        next: The states that are known to come next, by character.
    """

    __slots__ = ("accepts", "follow", "next")

    def __init__(self, accepts: int | None, follow: int) -> None:
        self.accepts = accepts
        self.follow = follow
        self.next: dict[str, _State] = {}


class Automaton:
    """Several patterns as one. Positions are bits of an integer."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._follow: list[int] = []
        self._sets: dict[Ranges, int] = {}
        self._lasts: list[int] = []
        self._nullable: int | None = None
        self._first = 0
        for number, pattern in enumerate(patterns):
            nullable, first, last = self._add(pattern.root)
            self._lasts.append(last)
            self._first |= first
            if nullable and self._nullable is None:
                self._nullable = number
        self._forget()

    def _forget(self) -> None:
        self._start = _State(self._nullable, self._first)
        self._states: dict[int, _State] = {}
        self._accepting: dict[str, int] = {}
        self._kept = 0

    def find(self, value: str) -> int | None:
        """The number of the first pattern that matches all of `value`."""
        state = self._start
        for character in value:
            following = state.next.get(character)
            state = self._step(state, character) if following is None else following
            if not state.follow and state.accepts is None:
                return None
        return state.accepts

    def _step(self, state: _State, character: str) -> _State:
        if self._kept >= MOST_KEPT:
            self._forget()
        self._kept += 1
        accepting = self._accepting.get(character)
        if accepting is None:
            code = ord(character)
            accepting = 0
            for ranges, positions in self._sets.items():
                if any(low <= code <= high for low, high in ranges):
                    accepting |= positions
            self._accepting[character] = accepting
        positions = state.follow & accepting
        found = self._states.get(positions)
        if found is None:
            found = self._states[positions] = self._state(positions)
        state.next[character] = found
        return found

    def _state(self, positions: int) -> _State:
        follow = 0
        for position in _bits(positions):
            follow |= self._follow[position]
        complete = (number for number, last in enumerate(self._lasts) if last & positions)
        return _State(next(complete, None), follow)

    def _add(self, node: Node) -> tuple[bool, int, int]:
        """Add a part: (matches nothing at all, positions it may begin with, positions it may end with)."""
        if node.kind == "set":
            position = 1 << len(self._follow)
            self._follow.append(0)
            self._sets[node.ranges] = self._sets.get(node.ranges, 0) | position
            return False, position, position
        if node.kind == "one":
            found = [self._add(part) for part in node.parts]
            nullable, first, last = False, 0, 0
            for part_nullable, part_first, part_last in found:
                nullable, first, last = nullable or part_nullable, first | part_first, last | part_last
            return nullable, first, last
        if node.kind == "repeat":
            return self._add_repeat(node)
        return self._add_sequence(self._add(part) for part in node.parts)

    def _add_sequence(self, parts: Iterator[tuple[bool, int, int]]) -> tuple[bool, int, int]:
        nullable, first, last = True, 0, 0
        for part_nullable, part_first, part_last in parts:
            self._connect(last, part_first)
            first |= part_first if nullable else 0
            last = part_last | (last if part_nullable else 0)
            nullable = nullable and part_nullable
        return nullable, first, last

    def _add_repeat(self, node: Node) -> tuple[bool, int, int]:
        part, low, high = node.parts[0], node.low, node.high
        copies = max(low, 1) if high is None else high

        def written_out() -> Iterator[tuple[bool, int, int]]:
            for copy in range(copies):
                nullable, first, last = self._add(part)
                if high is None and copy == copies - 1:
                    self._connect(last, first)
                yield nullable or copy >= low, first, last

        return self._add_sequence(written_out())

    def _connect(self, last: int, first: int) -> None:
        for position in _bits(last):
            self._follow[position] |= first


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low

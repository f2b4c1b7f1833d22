"""What is wrong with a catalog, and where. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from service.errors import ConfigurationError

MOST_FLAWS = 20
"""Flaws reported at once: more of them seldom help."""


class Place(NamedTuple):
    """Where something is written: `line` and `column` count from 1; both 0 = the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


NOWHERE = Place("")


class Flaw(NamedTuple):
    """One thing that is wrong.

    Attributes:
        place: Where.
        sentence: What was wanted, and what came.
    """

    place: Place
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


class InvalidCatalog(ConfigurationError):
    """A catalog that cannot be meant. As text: a line a flaw, `limits.yaml:3:5: unknown key ...`.

    Attributes:
        flaws: All that was found, by file and line; at least one, at most MOST_FLAWS.
        file, line, column: Of the first; line and column count from 1, 0 = the file as a whole.
    """

    def __init__(self, flaws: Iterable[Flaw]) -> None:
        self.flaws = tuple(flaws)
        self.file, self.line, self.column = self.flaws[0].place
        super().__init__("\n".join(map(str, self.flaws)))

    @classmethod
    def at(cls, place: Place, sentence: str) -> "InvalidCatalog":
        """The error of a single flaw."""
        return cls([Flaw(place, sentence)])


class Enough(Exception):
    """MOST_FLAWS have been found: stop reading."""


class Faults:
    """Collects flaws, one a place (what follows from a flaw is none of its own), until there are enough."""

    def __init__(self) -> None:
        self._found: dict[Place, str] = {}

    def add(self, place: Place, sentence: str) -> None:
        """Note a flaw. Raises Enough with the last one that is reported."""
        self._found.setdefault(place, sentence)
        if len(self._found) >= MOST_FLAWS:
            raise Enough

    def check(self, files: list[str]) -> None:
        """Raise InvalidCatalog if there is a flaw; sorted by the order of `files`, then by line."""
        if self._found:
            flaws = [Flaw(place, sentence) for place, sentence in self._found.items()]
            raise InvalidCatalog(sorted(flaws, key=lambda flaw: (files.index(flaw.place.file), flaw.place)))

"""YAML text → nodes that know where they stand; what could eat the memory or the stack is refused first. Pure.

Nodes instead of values, because a value has forgotten its line; and no value is ever made of a tag, so a file cannot
make this program build anything.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import yaml

from service.limits.catalog.faults import Faults, InvalidCatalog, Place

DEEPEST = 128
"""Lists and mappings within each other, as written."""

_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Documents(NamedTuple):
    """One file, read as YAML.

    Attributes:
        roots: Of its documents; those that hold nothing are left out.
        nodes: All nodes as written, each once.
    """

    roots: list[yaml.Node]
    nodes: int


def decoded(data: str | bytes, file: str) -> str:
    """The text of a file. Raises InvalidCatalog if it is not UTF-8."""
    try:
        if isinstance(data, bytes):
            return data.decode("utf-8-sig")
        data.encode()
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        before = data[:start] if isinstance(data, str) else data[:start].decode("utf-8", "replace")
        raise InvalidCatalog.at(_end(before, file), "not UTF-8; save the file in that encoding") from None
    return data.removeprefix("\ufeff")


def documents(text: str, file: str) -> Documents:
    """The documents of a file. Raises InvalidCatalog where it is no YAML, or too deep."""
    try:
        nodes = _counted(text, file)
        found = [node for node in yaml.compose_all(text, Loader=_LOADER) if node is not None]
    except InvalidCatalog:
        raise
    except yaml.MarkedYAMLError as error:
        place = _at(error.problem_mark or error.context_mark, file)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise InvalidCatalog.at(place, f"not YAML: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # a character YAML does not have
        bad = _UNREADABLE.search(text)
        place = _end(text[: bad.start()], file) if bad else Place(file)
        shown = f"the character U+{ord(bad[0]):04X} is not allowed" if bad else str(error).splitlines()[0]
        raise InvalidCatalog.at(place, f"not YAML: {shown}") from None
    return Documents([node for node in found if node.tag != f"{_TAG}null"], nodes)


def _counted(text: str, file: str) -> int:
    """How many nodes there are; refused before they are made, for the composer's recursion ends in a crash."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_LOADER):
        kind = type(event)
        if kind is yaml.ScalarEvent:
            nodes += 1
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            nodes += 1
            depth += 1
            if depth > DEEPEST:
                raise InvalidCatalog.at(
                    _at(event.start_mark, file), f"more than {DEEPEST} lists and mappings within each other"
                )
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            depth -= 1
    return nodes


def let_go(roots: list[yaml.Node]) -> None:
    """Free nodes one by one: at once, a large file's would keep all threads waiting meanwhile. Empties `roots`."""
    while roots:
        node = roots.pop()
        if isinstance(node, yaml.MappingNode):
            for pair in node.value:
                roots += pair
            node.value = []
        elif isinstance(node, yaml.SequenceNode):
            roots += node.value
            node.value = []


def _at(mark: Any, file: str) -> Place:
    return Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)


def _end(before: str, file: str) -> Place:
    """The place behind a text."""
    lines = _BREAK.split(before)
    return Place(file, len(lines), len(lines[-1]) + 1)


class Field(NamedTuple):
    """One key of a mapping."""

    name: yaml.Node
    value: yaml.Node


class Reader:
    """Takes nodes apart for whoever knows what they should say, and notes what they do not.

    Args:
        file: Its name in flaws.
        faults: Where they are noted.
        most: Mappings that may be looked into, aliases counted each time they are used.
    """

    def __init__(self, file: str, faults: Faults, most: int) -> None:
        self.file = file
        self.faults = faults
        self._left = most

    def place(self, node: yaml.Node) -> Place:
        return _at(node.start_mark, self.file)

    def fault(self, node: yaml.Node, sentence: str) -> None:
        """Note a flaw."""
        self.faults.add(self.place(node), sentence)

    def spend(self, node: yaml.Node) -> None:
        """Count a look into a node. Raises InvalidCatalog when aliases have multiplied the file beyond reason."""
        self._left -= 1
        if self._left < 0:
            raise InvalidCatalog.at(self.place(node), "the aliases of this file multiply it beyond what can be read")

    def fields(self, node: yaml.Node, what: str, unknown: Callable[[str], str | None]) -> dict[str, Field]:
        """The keys of a mapping, merged ones (`<<`) included, without those that are empty.

        Args:
            node: Should be a mapping.
            what: What it is, for flaws: `a descriptor`.
            unknown: Says what is wrong with a key; None = nothing.
        """
        found = self.pairs(node, what, unknown)
        return {name: pair for name, pair in found.items() if pair.value.tag != f"{_TAG}null"}

    def pairs(self, node: yaml.Node, what: str, unknown: Callable[[str], str | None]) -> dict[str, Field]:
        """As `fields`, with those that are empty."""
        found: dict[str, Field] = {}
        self._collect(node, what, unknown, found, 0)
        return found

    def _collect(
        self, node: yaml.Node, what: str, unknown: Callable[[str], str | None], found: dict[str, Field], depth: int
    ) -> None:
        self.spend(node)
        if not isinstance(node, yaml.MappingNode) or node.tag != f"{_TAG}map":
            return self.fault(node, f"{what} is wanted here, as keys and values; got {shown(node)}")
        if depth > DEEPEST:
            return self.fault(node, 'too many "<<" within each other')
        own: dict[str, Field] = {}
        merged: list[yaml.Node] = []
        for name, value in node.value:
            if name.tag == f"{_TAG}merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif not isinstance(name, yaml.ScalarNode):
                self.fault(name, f"a key of {what} is a word; got {shown(name)}")
            elif name.value in own:
                first = own[name.value].name.start_mark.line + 1
                self.fault(name, f'"{name.value}" is written twice, first in line {first}')
            elif (reason := unknown(name.value)) is not None:
                self.fault(name, reason)
            else:
                own[name.value] = Field(name, value)
        for key, pair in own.items():
            found.setdefault(key, pair)
        for other in merged:
            self._collect(other, what, unknown, found, depth + 1)
        return None

    def items(self, field: Field | None) -> list[yaml.Node]:
        """The items of a list; a missing field is an empty one."""
        if field is None:
            return []
        if not isinstance(field.value, yaml.SequenceNode) or field.value.tag != f"{_TAG}seq":
            self.fault(field.value, f"{label(field)}: a list is wanted; got {shown(field.value)}")
            return []
        return list(field.value.value)

    def text(self, field: Field | None) -> str:
        """A scalar as it is written: `404` is the text "404". Missing = ""."""
        if field is None:
            return ""
        if not isinstance(field.value, yaml.ScalarNode) or not field.value.tag.startswith(_TAG):
            self.fault(field.value, f"{label(field)}: a text is wanted; got {shown(field.value)}")
            return ""
        return str(field.value.value)

    def needed(self, node: yaml.Node, fields: dict[str, Field], name: str, reason: str) -> str:
        """The text of a field that must not be missing, or empty; "" = a flaw was noted, at `node` if not before."""
        if name not in fields or fields[name].value.value == "":
            self.fault(node, f"{name}: {reason}; got none")
        return self.text(fields.get(name))

    def truth(self, field: Field | None, default: bool = False) -> bool:
        if field is None:
            return default
        word = field.value.value.lower() if isinstance(field.value, yaml.ScalarNode) and not field.value.style else None
        if word in ("true", "yes", "on", "y"):
            return True
        if word not in ("false", "no", "off", "n"):
            self.fault(field.value, f"{label(field)}: true or false is wanted; got {shown(field.value)}")
        return False

    def one_of(self, field: Field | None, words: tuple[str, ...]) -> Any:
        """One of `words`; None = missing, or a flaw was noted."""
        if field is None:
            return None
        word = self.text(field)
        if word in words:
            return word
        self.fault(field.value, f"{label(field)}: {choice(word, words)}")
        return None

    def whole(self, field: Field | None, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`; None = missing, or a flaw was noted."""
        if field is None:
            return None
        digits = str(field.value.value).replace("_", "") if isinstance(field.value, yaml.ScalarNode) else ""
        plain = digits.isascii() and digits.isdecimal() and len(digits) < 20
        number = int(digits) if plain and (digits == "0" or digits[0] != "0") else None
        if number is None or not low <= number <= high:
            wanted = f"a whole number from {low} to {high} is wanted"
            self.fault(field.value, f"{label(field)}: {wanted}; got {shown(field.value)}")
            return None
        return number


def choice(word: str, words: Iterable[str]) -> str:
    """That one of `words` was wanted, and which was perhaps meant."""
    words = tuple(words)
    wanted = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return f'{wanted} is wanted; got "{word[:60]}"{perhaps(word, words)}'


def perhaps(word: str, words: Iterable[str]) -> str:
    """Which of `words` was perhaps meant; "" = none comes close."""
    near = difflib.get_close_matches(word[:60].lower(), words, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def label(field: Field) -> str:
    """The key of a field, for flaws."""
    return str(field.name.value)


def shown(node: yaml.Node) -> str:
    """What stands there, in a few words."""
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if node.tag == f"{_TAG}null":
        return "nothing"
    text = str(node.value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    tag = "" if node.tag.startswith(_TAG) else f"{node.tag} "
    return f'{tag}"{text}"' if text.isprintable() else f"{tag}{text!r}"

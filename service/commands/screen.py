"""What a command shows: text for people, one line of JSON for programs; once, or again and again in place."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

from service.settings import wants_no_colours

T = TypeVar("T")

PIPED_COLUMNS = 160
"""Where nobody's terminal says how wide lines may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a command found out.

    Attributes:
        text: For people.
        document: For programs: what JSON can say.
        code: The exit code: 0 allowed or good, 1 refused or not good.
    """

    text: RenderableType
    document: Any
    code: int = 0


def show(make: Callable[[], Shown], *, as_json: bool, every_s: float | None = None) -> int:
    """Show what `make` finds out, and answer its exit code; with `every_s` again and again, until Ctrl-C."""
    console = _console()
    if every_s is None:
        shown = make()
        _once(console, shown, as_json)
        return shown.code
    shown = make()
    try:
        if as_json or not console.is_terminal:
            while True:
                _once(console, shown, as_json)
                time.sleep(every_s)
                shown = make()
        with Live(shown.text, console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                time.sleep(every_s)
                shown = make()
                live.update(shown.text, refresh=True)
    except KeyboardInterrupt:  # how one stops watching
        return shown.code


def counted(things: Iterable[T], noun: str) -> Iterator[T]:
    """The same, while standard error, if it is a terminal, says how many there have been."""
    console = Console(stderr=True, no_color=wants_no_colours(), highlight=False)
    if not console.is_terminal:
        yield from things
        return
    with console.status("") as status:
        for number, thing in enumerate(things):
            if number % 10_000 == 0:
                status.update(f"{number:,} {noun}")
            yield thing


def _console() -> Console:
    plain = wants_no_colours()
    terminal = sys.stdout.isatty()
    return Console(
        no_color=plain,
        highlight=False,
        emoji=False,
        markup=False,
        width=None if terminal else PIPED_COLUMNS,
    )


def _once(console: Console, shown: Shown, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(shown.document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    elif console.is_terminal:
        console.print(shown.text)
    else:  # columns are padded, which is of no use to programs
        with console.capture() as captured:
            console.print(shown.text)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
        sys.stdout.flush()

"""What a command shows: text for people, one line of JSON for programs; once, or again and again in place."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from service.settings import wants_no_colours

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
    else:
        console.print(shown.text, soft_wrap=False)

"""An event loop whose time passes only when nothing is left to do: no sleeping, no sockets, the same order every time.

Time is kept in whole microseconds. When all callbacks that are due have run, it jumps to the next that is not.
"""

import asyncio
import contextlib
import selectors
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any


class StuckError(Exception):
    """Somebody waits for what will never happen: nothing is due, now or later."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on a clock of its own.

    Attributes:
        now_us: Virtual time, microseconds since the loop was made.
    """

    def __init__(self) -> None:
        self.now_us = 0
        super().__init__(_Jumps(self))

    def time(self) -> float:
        return self.now_us / 1_000_000


class _Jumps(selectors.BaseSelector):
    """Waits for no file: a wait moves the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._files: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError(f"at {self._loop.now_us} us nothing is due any more, and somebody waits")
        if timeout > 0:
            self._loop.now_us += max(1, ceil(timeout * 1_000_000 - 1e-3))  # a wait of whole microseconds is exact
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._files[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)  # the loop's pipe to itself
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._files.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._files


@contextlib.contextmanager
def virtual_loop() -> Iterator[VirtualLoop]:
    """A loop for one run, closed afterwards with all that was left on it."""
    loop = VirtualLoop()
    try:
        yield loop
    finally:
        left = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

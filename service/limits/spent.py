"""What this worker has admitted by itself while the store was away, counted by the twins.

In memory. A worker of our runner also writes it to a file of its slot: whoever replaces it, after a reload, a recycling
or a crash, goes on where it stopped, so no replacement refills a share. The file is locked by the one process that has
the slot's share; the kernel takes the lock from a process that ends, however it ends. While old and new of a slot
overlap, the old one has the share until it is retired, and then the new one: never both.

The file is SQLite's, in the runner's private directory, on memory where there is some (`/dev/shm`). If it cannot be
used, which is logged once, this worker counts on in memory.
"""

import functools
import json
import sqlite3
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from service import status
from service.limits.decision import Ask
from service.limits.stores.memory import MemoryStore, wall_clock_us
from service.logs import events

MOST_KEPT = 32_768
"""Counters, up to twice as many for a while; some 20 MB. Only a flood of made-up identities makes more than that live:
then the oldest are forgotten."""
TIDY_EVERY = 1_000
"""Counters written between two deletions of what is over, or too many."""

_TABLE = "CREATE TABLE IF NOT EXISTS spent (key BLOB PRIMARY KEY, state TEXT, until_us INTEGER) WITHOUT ROWID"
_INDEX = "CREATE INDEX IF NOT EXISTS spent_until ON spent (until_us)"
_WRITE = "REPLACE INTO spent VALUES (?, ?, ?)"
_TOO_MANY = """DELETE FROM spent WHERE until_us <= max(?, ifnull(
    (SELECT until_us FROM spent ORDER BY until_us DESC LIMIT 1 OFFSET ?), 0))"""
_log = events()


class Spent:
    """The counters of one worker. Safe across threads.

    Args:
        path: The file of its slot; None = none.
        clock: Now, microseconds since the epoch.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], int] = wall_clock_us) -> None:
        self._path = path
        self._store = MemoryStore(clock, MOST_KEPT)
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        self._until_tidy = TIDY_EVERY
        self._released = False

    @property
    def clock(self) -> Callable[[], int]:
        return self._store.clock

    def mine(self) -> bool:
        """Whether the slot's share is this process's to spend; if it has become free, it is from now on."""
        if self._path is None or self._file is not None:
            return True
        with self._lock:
            return not self._released and (self._file is not None or self._open(self._path))

    def decide(self, ask: Ask) -> list[int]:
        """As a store does; once `mine`."""
        with self._lock:
            numbers = self._store.decide_now([ask])
            if self._file is not None:
                self._write([charge.key for charge in ask.charges], numbers[0])
            return numbers

    def release(self) -> None:
        """Leave the share to the next process of this slot."""
        with self._lock:
            self._released = self._path is not None
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self, path: Path) -> bool:
        """Go on where the last process of this slot stopped; false while that still has the file."""
        file = None
        try:
            file = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            file.execute("PRAGMA locking_mode = EXCLUSIVE")
            file.execute("BEGIN EXCLUSIVE")  # and never let go of
            file.execute(_TABLE)
            file.execute(_INDEX)
            file.execute("COMMIT")
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = OFF")  # it outlives the process, and need not outlive the machine
            for key, state, until_us in file.execute("SELECT * FROM spent"):
                self._store.keep(key, _read(state), until_us)
        except sqlite3.Error as error:
            if file is not None:
                file.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                return False
            self._give_up(error)
            return True
        self._file = file
        return True

    def _write(self, keys: list[bytes], now_us: int) -> None:
        assert self._file is not None
        kept = [(key, self._store.kept(key)) for key in keys]
        rows = [(key, _text(found[0]), found[1]) for key, found in kept if found is not None]
        self._until_tidy -= len(rows)
        try:
            self._file.execute("BEGIN")
            self._file.executemany(_WRITE, rows)
            if self._until_tidy <= 0:
                self._until_tidy = TIDY_EVERY
                self._file.execute(_TOO_MANY, [now_us, MOST_KEPT])
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            self._file.close()
            self._file = None
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        _log.warning("share_not_kept", file=str(self._path), error=error)
        self._path = None


@functools.cache
def of_slot(slot: status.Slot) -> Spent:
    """The counters of this process's slot: one for all its limiters, for their keys are the same counters."""
    spent = Spent(Path(slot.directory) / f"slot-{slot.number}")
    status.at_retirement(spent.release)
    return spent


def _text(state: object) -> str:
    return json.dumps(state, default=_fraction)


def _fraction(value: object) -> dict[str, list[int]]:
    assert isinstance(value, Fraction)
    return {"fraction": [value.numerator, value.denominator]}


def _read(text: str) -> object:
    return _frozen(json.loads(text))


def _frozen(value: Any) -> object:
    """As a twin keeps it: immutable."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return Fraction(*value["fraction"]) if isinstance(value, dict) else value

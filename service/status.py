"""What the runner tells each worker: of the whole service, for whoever asks `/health`, which slot it has, and that it
is retired.

An endless stream should end by itself when its worker is retired, or the end of the drain will cut it:

    while not status.retired():
        yield await next_event()
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The service, seen from its parent process.

    Attributes:
        workers: How many are wanted.
        serving: How many serve now.
        recycles: Workers replaced since the start, whatever for: asked, recycled, stuck, dead.
        started_s: When the service started, seconds since 1970; a handover does not reset it.
    """

    workers: int = 1
    serving: int = 1
    recycles: int = 0
    started_s: float = field(default_factory=time.time)

    def data(self) -> dict[str, Any]:
        """As it crosses the control socket."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A worker's place among its siblings; whoever replaces it has the same.

    Attributes:
        number: From 0, below the number of workers that are wanted.
        directory: Of this service, private to it: what a slot's worker leaves there its next one finds.
    """

    number: int
    directory: str


_told: Status | None = None
_slot: Slot | None = None
_retired = False
_stopping = False
_besides = 0
_callbacks: list[Callable[[], None]] = []
_alone = Status()


def told() -> Status:
    """The latest; of a process without our runner, what it knows of itself."""
    return _told or _alone


def tell(status: Status) -> None:
    """Keep what the parent said."""
    global _told  # noqa: PLW0603
    _told = status


def count() -> None:
    """A request was served that did not come over the worker's own server."""
    global _besides  # noqa: PLW0603
    _besides += 1


def besides() -> int:
    """How many of those there were."""
    return _besides


def slot() -> Slot | None:
    """This worker's; None in a process without our runner."""
    return _slot


def take(slot: Slot) -> None:
    """Keep which slot this worker has."""
    global _slot  # noqa: PLW0603
    _slot = slot


def retired() -> bool:
    """Whether this worker takes no new connections and waits for its last answers to end."""
    return _retired


def stopping() -> bool:
    """Whether it is the whole service that ends: nobody takes this worker's place."""
    return _stopping


def retire(*, stopping: bool = False) -> None:
    """This process is a worker, and retired."""
    global _retired, _stopping
    _retired, _stopping = True, stopping
    for callback in _callbacks:
        callback()


@contextlib.contextmanager
def when_retired(callback: Callable[[], None]) -> Iterator[None]:
    """Within, be called as soon as this worker is retired, from its event loop."""
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.remove(callback)


def at_retirement(callback: Callable[[], None]) -> None:
    """Be called as soon as this worker is retired: its replacement waits for what it holds."""
    _callbacks.append(callback)

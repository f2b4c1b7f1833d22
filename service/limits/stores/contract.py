"""What the engine asks of a store, whichever it is."""

from collections.abc import Callable, Sequence
from typing import Protocol

from service.limits.decision import Ask


class Store(Protocol):
    """Counters somewhere. One store belongs to one event loop."""

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        """Decide a batch in order, in one step nobody can come between. One batch at a time.

        Returns:
            Now (microseconds), then per ask as many integers as it is wide: four per charge (remaining, reset_us,
            retry_us, next_us), and before them, if it carries a token, what became of it and when.

        Raises:
            StoreUnavailable: No answer; whether the batch was charged is unknown.
        """

    async def ping(self) -> str:
        """What answers, in words, e.g. "redis 7.0.15". Raises StoreUnavailable."""

    async def doubts(self) -> list[str]:
        """What in this store's configuration endangers counters, a sentence each. Raises StoreUnavailable."""

    async def forget(self, prefix: str, identity: str | None) -> int:
        """Drop the counters of one identity, or all under the prefix. Returns how many there were."""

    async def aclose(self) -> None:
        """Let go of connections."""


Opener = Callable[[], Store]

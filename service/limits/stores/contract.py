"""What the engine asks of a store, whichever it is."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, runtime_checkable

from service.errors import StoreUnavailable
from service.limits.decision import Ask


class Keeper(Protocol):
    """Counters somewhere, whoever decides them. One keeper belongs to one event loop."""

    async def ping(self) -> str:
        """What answers, in words, e.g. "redis 7.0.15". Raises StoreUnavailable."""

    async def doubts(self) -> list[str]:
        """What in this store's configuration endangers counters, a sentence each. Raises StoreUnavailable."""

    async def forget(self, prefix: str, identity: str | None) -> int:
        """Drop the counters of one identity, or all under the prefix. Returns how many there were."""

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Add a message to a board, if it is not empty, and read what came after; see `limits/board.py`.

        Args:
            key: Of the board.
            after: `-` for the beginning, or `(` and an id.
            message: To be added; empty = none.
            keep_ms: How long the board is kept from then on.
            most: Messages it keeps, about, and answers, at most.

        Returns:
            Now (microseconds), and each message with its id, in order. Raises StoreUnavailable.
        """

    async def aclose(self) -> None:
        """Let go of connections."""


class Store(Keeper, Protocol):
    """Counters in one place.

    Attributes:
        far: Asking costs a round trip, and time passes there as it does here: refusals are repeated from memory.
    """

    far: bool

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        """Decide a batch in order, in one step nobody can come between. One batch at a time.

        Returns:
            Now (microseconds), then per ask as many integers as it is wide: four per charge (remaining, reset_us,
            retry_us, next_us), and before them, if it carries a token, what became of it and when.

        Raises:
            StoreUnavailable: No answer. Whether the batch was charged is unknown, if it is `maybe_done`.
        """


class Elsewhere:
    """An answer: nothing was done, for the counters are not there, or not all of them; ask again."""


ELSEWHERE: Final = Elsewhere()

Answer = tuple[Sequence[int], int] | StoreUnavailable | Elsewhere
"""One ask's: numbers as `Store.decide` returns them and where its own begin in them; or why there are none."""


class Shard(Store, Protocol):
    """One server of several: what it holds is decided by slots, in calls that stand alone but travel together."""

    async def answers(self, asks: Sequence[Ask]) -> Sequence[Answer]:
        """What each ask is answered, in the order asked. One batch at a time."""


@runtime_checkable
class Sharded(Keeper, Protocol):
    """Counters on several servers. All keys with one hash tag are in one slot, and a slot is on one server."""

    def slot(self, key: bytes) -> int:
        """The slot of a key."""

    def shard(self, slot: int) -> Shard | None:
        """The server that has a slot, as last heard of; None = nothing was heard yet."""

    def refresh(self) -> Awaitable[None] | None:
        """Hear of it again, in a task of its own; None = that was done just now. Never raises; `why` says more."""

    @property
    def why(self) -> str:
        """Why nothing was heard, in words."""

    def shards(self) -> Sequence[Shard]:
        """All servers that have slots, as last heard of."""


Opener = Callable[[], Store | Sharded]

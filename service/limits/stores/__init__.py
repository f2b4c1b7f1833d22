"""How a store is opened, by the scheme of its URL.

| scheme | store |
|---|---|
| `redis://` `rediss://` `unix://` (also `valkey://` `valkeys://` `redis+unix://`) | a real server |
| `memory://` | this process only: the twins; refused when several workers share the app |
| `fakeredis://` | this process only: the script on fakeredis; the embedded Redis of last resort |
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.errors import ConfigurationError
from service.limits.decision import Ask


class Store(Protocol):
    """Counters somewhere. One store belongs to one event loop."""

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        """Decide a batch in order, in one step nobody can come between.

        Returns:
            Now (microseconds), then four integers per charge: remaining, reset_us, retry_us, next_us.

        Raises:
            StoreUnavailable: No answer; whether the batch was charged is unknown.
        """

    async def ping(self) -> str:
        """What answers, in words, e.g. "redis 7.0.15". Raises StoreUnavailable."""

    async def forget(self, prefix: str, identity: str | None) -> int:
        """Drop the counters of one identity, or all under the prefix. Returns how many there were."""

    async def aclose(self) -> None:
        """Let go of connections."""


Opener = Callable[[], Store]

REDIS_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
}


def opener(url: str, options: dict[str, Any] | None = None) -> Opener:
    """A function that opens the store at `url` for the running event loop. Raises ConfigurationError."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigurationError(f'storage "{url}": write a URL such as redis://localhost:6379')
    if scheme in ("memory", "async+memory"):
        from service.limits.stores.memory import MemoryStore

        memory = MemoryStore()
        return lambda: memory
    if scheme == "fakeredis":
        from service.limits.stores.fake import FakeServerOpener

        return FakeServerOpener()
    if scheme in REDIS_SCHEMES:
        from service.limits.stores.redis import RedisOpener

        return RedisOpener(f"{REDIS_SCHEMES[scheme]}://{rest}", options or {})
    raise ConfigurationError(
        f'storage scheme "{scheme}://" is unknown; use redis://, rediss://, unix:// or memory://'
    )

"""How a store is opened, by the scheme of its URL.

| scheme | store |
|---|---|
| `redis://` `rediss://` `unix://` (also `valkey://` `valkeys://` `redis+unix://`) | a real server |
| `memory://` | this process only: the twins; refused when several workers share the app |
| `fakeredis://` | this process only: the script on fakeredis; the embedded Redis of last resort |
"""

from typing import Any

from service.errors import ConfigurationError
from service.limits.stores.contract import Opener, Store
from service.limits.stores.fake import FakeServerOpener
from service.limits.stores.memory import MemoryStore
from service.limits.stores.redis import RedisOpener
from service.settings import parse_redis_url, redacted

__all__ = ["MemoryStore", "Opener", "Store", "opener"]


def opener(url: str, options: dict[str, Any] | None = None, timeout_s: float = 1) -> Opener:
    """A function that opens the store at `url` for the running event loop.

    Args:
        url: By the schemes above.
        options: More arguments for redis-py's client.
        timeout_s: Seconds one command may take, where no other deadline holds.

    Raises:
        ConfigurationError: The URL or an option cannot be meant.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("memory", "async+memory"):
        memory = MemoryStore()
        return lambda: memory
    try:
        url = parse_redis_url(url)
    except ValueError as error:
        raise ConfigurationError(f"storage {redacted(url)}: {error}, or memory://") from None
    return FakeServerOpener() if scheme == "fakeredis" else RedisOpener(url, options or {}, timeout_s)

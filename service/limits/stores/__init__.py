"""How a store is opened, by the scheme of its URL.

| scheme | store |
|---|---|
| `redis://` `rediss://` `unix://` (also `valkey://` `valkeys://` `redis+unix://`) | a real server |
| `redis+sentinel://` `rediss+sentinel://` (also with `valkey`) | the primary that Sentinels name |
| `redis+cluster://` `rediss+cluster://` (also with `valkey`) | all servers of a Cluster |
| `http://` `https://` | a onequota service, which keeps them |
| `memory://` | this process only: the twins; refused when several workers share the app |
| `fakeredis://` | this process only: the script on fakeredis; the embedded Redis of last resort |
"""

from typing import Any

from service.errors import ConfigurationError
from service.limits.stores.cluster import ClusterOpener
from service.limits.stores.contract import Opener, Store
from service.limits.stores.fake import FakeServerOpener
from service.limits.stores.memory import MemoryStore
from service.limits.stores.redis import RedisOpener
from service.limits.stores.sentinel import SentinelOpener
from service.redis_url import parse_redis_url, read, redacted

__all__ = ["MemoryStore", "Opener", "Store", "opener"]


def opener(url: str, options: dict[str, Any] | None = None, timeout_s: float = 1) -> Opener:
    """A function that opens the store at `url` for the running event loop.

    Args:
        url: By the schemes above.
        options: More arguments for redis-py's client; for a service `api_key` and `verify`.
        timeout_s: Seconds one command may take, where no other deadline holds.

    Raises:
        ConfigurationError: The URL or an option cannot be meant.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("memory", "async+memory"):
        memory = MemoryStore()
        return lambda: memory
    if scheme in ("http", "https"):
        from service.limits.stores.http import HttpOpener  # noqa: PLC0415  its client is of no use to others

        return HttpOpener(url, options or {}, timeout_s)
    try:
        url = parse_redis_url(url)
    except ValueError as error:
        raise ConfigurationError(f"storage {redacted(url)}: {error}, or memory://") from None
    several = read(url)
    if several is not None:
        kind = SentinelOpener if several.kind == "sentinel" else ClusterOpener
        return kind(several, options or {}, timeout_s)
    return FakeServerOpener() if scheme == "fakeredis" else RedisOpener(url, options or {}, timeout_s)

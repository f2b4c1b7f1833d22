"""The script on a Redis server, through redis-py's asyncio client. One client, one pool, per event loop.

redis-py retries failed commands by default; a retried charge is a double charge, so its retries are off here. The one
thing replayed is NOSCRIPT, which says that nothing was run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from service.errors import ConfigurationError, StoreUnavailable
from service.limits import keys
from service.limits.algorithms import script
from service.limits.decision import GIVE_BACK, Ask


class RedisStore:
    """Counters in a Redis server.

    Args:
        client: An asyncio client with retries off and no decoding of replies.
        clock: None for the server's own clock; tests pass a function that answers microseconds.
    """

    def __init__(self, client: "redis.asyncio.Redis", clock: Callable[[], int] | None = None) -> None:
        self.client = client
        self.clock = clock
        self._sha = ""

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        names: list[bytes] = []
        words: list[str] = []
        for charges, kind, at_us in asks:
            words.append(f"{kind} {len(charges)}" if kind != GIVE_BACK else f"{kind} {len(charges)} {at_us}")
            for limit, key, cost in charges:
                names.append(key)
                words.append(f"{limit.words} {cost}")
        now_us = self.clock() if self.clock else 0
        try:
            return await self._call(names, now_us, " ".join(words))
        except ResponseError as error:
            raise StoreUnavailable(f"Redis refused: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis is away: {error}") from error

    async def _call(self, names: Sequence[bytes], now_us: int, text: str) -> Sequence[int]:
        if not self._sha:
            self._sha = await self.client.script_load(script())
        try:
            return await self.client.evalsha(self._sha, len(names), *names, now_us, text)  # type: ignore[no-any-return]
        except NoScriptError:
            self._sha = await self.client.script_load(script())
            return await self.client.evalsha(self._sha, len(names), *names, now_us, text)  # type: ignore[no-any-return]

    async def ping(self) -> str:
        try:
            info = await self.client.info("server")
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis is away: {error}") from error
        return f"redis {info.get('redis_version', '(unknown version)')}"

    async def forget(self, prefix: str, identity: str | None) -> int:
        head, _ = keys.around(prefix, "", "")
        name = "*" if identity is None else keys.who(identity).decode() + "}*"
        found = 0
        try:
            async for key in self.client.scan_iter(match=head.decode() + name, count=1000):
                found += await self.client.unlink(key)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis is away: {error}") from error
        return found

    async def aclose(self) -> None:
        await self.client.aclose()


class RedisOpener:
    """Opens a client per event loop for one URL.

    Args:
        url: redis://, rediss:// or unix://.
        options: More arguments for redis-py's client, e.g. `{"ssl_ca_certs": "ca.pem"}`.

    Raises:
        ConfigurationError: The URL or an option makes no sense to redis-py.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = {"max_connections": 8, **options}
        try:
            redis.asyncio.ConnectionPool.from_url(url, **self._settled()).make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RedisError) as error:
            raise ConfigurationError(f"the Redis URL cannot be used: {error}") from error

    def _settled(self) -> dict[str, Any]:
        return {
            **self._options,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "socket_timeout": None,  # the engine's deadline bounds every call, connecting included
            "socket_connect_timeout": None,
        }

    def __call__(self) -> RedisStore:
        return RedisStore(redis.asyncio.Redis.from_url(self._url, **self._settled()))

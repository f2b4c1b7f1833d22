"""The real script on fakeredis: for unit tests, and where no Redis binary can be had. One process only."""

import functools
from collections.abc import Callable

from service.limits.stores.redis import RedisStore


class FakeStore(RedisStore):
    """A Redis store whose server is none."""

    far = False

    async def ping(self) -> str:
        return "fakeredis in this process, for development"

    async def doubts(self) -> list[str]:
        return []


class FakeServerOpener:
    """Opens stores that share one fake server.

    Args:
        clock: None for the fake's own clock, or a function that answers microseconds since the epoch.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        import fakeredis  # noqa: PLC0415  a process that never fakes need not load Lua

        self._client = functools.partial(fakeredis.FakeAsyncRedis, server=fakeredis.FakeServer())
        self._clock = clock

    def __call__(self) -> FakeStore:
        return FakeStore(self._client(), self._clock)

"""The real script on fakeredis: for unit tests, and where no Redis binary can be had. One process only."""

from collections.abc import Callable

import fakeredis

from service.limits.stores.redis import RedisStore


class FakeServerOpener:
    """Opens stores that share one fake server.

    Args:
        clock: None for the fake's own clock, or a function that answers microseconds since the epoch.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self.server = fakeredis.FakeServer()
        self._clock = clock

    def __call__(self) -> RedisStore:
        return RedisStore(fakeredis.FakeAsyncRedis(server=self.server), self._clock)

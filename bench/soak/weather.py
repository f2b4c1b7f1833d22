"""What happens to a service and its Redis meanwhile, one thing after the other."""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, field

from bench.redises import RedisServer
from bench.service import Service


@dataclass(slots=True)
class Weather:
    """What came to pass.

    Attributes:
        events: How often what.
        killed: Workers that were killed with -9: what was under way on them is lost.
    """

    service: Service
    redis: RedisServer
    events: Counter[str] = field(default_factory=Counter)
    killed: int = 0

    async def turn(self, number: int, *, workers: bool) -> None:
        """The next event; `workers`: also such that replace workers."""
        ours = (self._reload, self._hand_over, self._kill) if workers else ()
        kinds = (*ours, self._stall, self._flush, self._restart)
        kind = kinds[number % len(kinds)]
        self.events[kind.__name__.strip("_").replace("_", " ")] += 1
        await kind()

    async def _reload(self) -> None:
        os.kill(self.service.pid, signal.SIGHUP)

    async def _hand_over(self) -> None:
        os.kill(self.service.pid, signal.SIGUSR2)

    async def _kill(self) -> None:
        os.kill(min(self.service.workers()), signal.SIGKILL)
        self.killed += 1

    async def _stall(self) -> None:
        self.redis.pause()
        await asyncio.sleep(1)
        self.redis.resume()

    async def _flush(self) -> None:
        with self.redis.client() as client:
            client.script_flush()

    async def _restart(self) -> None:
        await asyncio.to_thread(self.redis.stop)
        await asyncio.sleep(1)
        await asyncio.to_thread(self.redis.start)

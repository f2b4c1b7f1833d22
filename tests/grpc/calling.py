"""gRPC clients of a running service, and what became of their calls.

As the library makes them: without a policy, nothing that was sent is sent again; a call that met a GOAWAY before any
of it was sent goes over the next connection.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@asynccontextmanager
async def channel(place: str) -> AsyncIterator[Any]:
    """A connection of its own."""
    async with grpc.aio.insecure_channel(place, options=[OWN_CONNECTION]) as opened:
        yield opened


class Load:
    """Clients that call all the time, each over its own connection, until the end of the `async with`.

    Attributes:
        answered: Calls that were.
        failed: Those that were not, by status and details.
    """

    def __init__(self, place: str, call: Callable[[Any], Awaitable[Any]], clients: int) -> None:
        self.answered = 0
        self.failed: Counter[str] = Counter()
        self._place, self._call, self._clients = place, call, clients
        self._done = False
        self._tasks: list[asyncio.Task[None]] = []

    async def _run(self) -> None:
        async with channel(self._place) as opened:
            while not self._done:
                try:
                    await self._call(opened)
                    self.answered += 1
                except grpc.aio.AioRpcError as error:
                    self.failed[f"{error.code().name}: {error.details()}"] += 1
                await asyncio.sleep(0.002)  # whoever starts wants a processor too

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done = True
        await asyncio.gather(*self._tasks)

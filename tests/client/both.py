"""Both clients by one interface, so that each promise is tested on both."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.client import AsyncClient, Client

KEY = "3e1f0a9c5b7d2468ace013579bdf8642"
PATIENT: dict[str, Any] = {"deadline_s": 20, "when_away": "raise"}


class Awaited:
    """An AsyncClient, called without `await`; all its calls are made on one event loop."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self.client = client
        self.runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                return await method(*args, **kwargs)

            return self.runner.run(run())

        return call

    @contextlib.contextmanager
    def limit(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        turnstile = self.client.limit(*args, **kwargs)
        yield self.runner.run(turnstile.__aenter__())
        self.runner.run(turnstile.__aexit__(None, None, None))

    @contextlib.contextmanager
    def lease(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._held(self.client.lease(*args, **kwargs)) as lease:
            yield lease

    @contextlib.contextmanager
    def lease_domain(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._held(self.client.lease_domain(*args, **kwargs)) as lease:
            yield lease

    @contextlib.contextmanager
    def _held(self, leasing: Any) -> Iterator[Any]:
        lease = self.runner.run(leasing.__aenter__())
        try:
            yield lease
        finally:
            self.runner.run(leasing.__aexit__(None, None, None))


@contextlib.contextmanager
def opened(kind: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """A client of a kind, closed afterwards."""
    if kind == "blocking":
        with Client(*args, **kwargs) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        awaited = AsyncClient(*args, **kwargs)
        yield Awaited(awaited, runner)
        runner.run(awaited.aclose())


def passing(client: Any, seconds: float) -> None:
    """So much time goes by for a client."""
    if isinstance(client, Awaited):
        client.runner.run(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def done(client: Any, method: Callable[[], Any]) -> Any:
    """What a method of something a client answered with comes to."""
    if not isinstance(client, Awaited):
        return method()

    async def run() -> Any:
        return await method()

    return client.runner.run(run())


both = pytest.mark.parametrize("kind", ["blocking", "awaited"])

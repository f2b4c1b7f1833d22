"""Both clients by one interface, so that each promise is tested on both."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.client import AsyncClient, Client


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


both = pytest.mark.parametrize("kind", ["blocking", "awaited"])

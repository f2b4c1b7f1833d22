"""The application both servers run: what backends do, and what they should not.

Every answer of the application itself carries `x-worker`, the id of the process that gave it, so that a client knows
whose connection it holds. A server's own answers (500 of a guard, 503, 504) do not.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.limits import Limiter, identity

END = "event: end\ndata: {}\n\n"
"""The last event of a stream that came whole."""


class Named:
    """Puts the worker's id on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.name = (b"x-worker", str(os.getpid()).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self.name]
            await send(message)

        await self.app(scope, receive, named)


class Patience:
    """A deadline as one writes it oneself: stock has none. A plain function's thread goes on without us."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive, send)
        except TimeoutError:
            await send({"type": "http.response.start", "status": 504, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})


class Boom(Exception):
    """What nobody handles."""


def make(limiter: Limiter | None = None) -> FastAPI:
    """The application; with a limiter, one upload an hour is admitted."""
    app = FastAPI()
    app.add_middleware(Named)

    @app.get("/item")
    async def item() -> dict[str, object]:
        return {"id": 1, "name": "anvil", "price": 9.99}

    @app.get("/work")
    async def work(ms: int = 5) -> dict[str, int]:
        await asyncio.sleep(ms / 1000)
        return {"ms": ms}

    async def upload(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    app.post("/upload")(limiter.limit("1/hour")(upload) if limiter else upload)

    @app.get("/stream")
    async def stream(chunks: int = 10, every_ms: int = 100) -> StreamingResponse:
        return StreamingResponse(_events(chunks, every_ms), media_type="text/event-stream")

    @app.get("/boom")
    async def boom() -> None:
        raise Boom

    @app.get("/block")
    async def block(s: float) -> dict[str, float]:
        time.sleep(s)  # noqa: ASYNC251 - this is what is measured
        return {"s": s}

    @app.get("/slow-sync")
    def slow_sync(s: float) -> dict[str, float]:
        time.sleep(s)
        return {"s": s}

    @app.get("/pid")
    async def pid() -> int:
        return os.getpid()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def _events(chunks: int, every_ms: int) -> AsyncIterator[str]:
    for number in range(chunks):
        yield f"data: {number}\n\n"
        await asyncio.sleep(every_ms / 1000)
    yield END


app = make()


def limited() -> FastAPI:
    """With a limiter; REDIS_URL says where it counts."""
    limiter = Limiter(key_func=identity.client_address)
    app = make(limiter)
    app.state.limiter = limiter
    app.add_middleware(limiter.middleware)
    return app


def patient() -> FastAPI:
    """With a deadline of its own, BENCH_PATIENCE_S seconds."""
    app = make()
    app.add_middleware(Patience, seconds=float(os.environ["BENCH_PATIENCE_S"]))
    return app

"""The applications `tax` compares: one JSON route, without a limiter, with stock slowapi, with ours.

Each is what its README shows. `/count` answers how often the route's function ran: that is how many requests were
admitted, including those whose answer a generator no longer waited for. No limit applies to it.
"""

from collections.abc import Callable

import slowapi
from fastapi import FastAPI, Request, Response
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from starlette.types import Receive, Scope, Send

from service.limits import Limiter, identity

LIMIT = "1000000000/hour"
ITEM = {"id": 1, "name": "anvil", "price": 9.99}


class Counter:
    """How often the route's function ran."""

    def __init__(self, app: FastAPI) -> None:
        self.served = 0
        app.get("/count")(self.count)

    async def count(self) -> int:
        return self.served


def none(_redis_socket: str) -> FastAPI:
    """No limiter."""
    app = FastAPI()
    counter = Counter(app)

    @app.get("/item")
    async def item() -> dict[str, object]:
        counter.served += 1
        return dict(ITEM)

    return app


def stock(redis_socket: str) -> FastAPI:
    """slowapi as installed. Its headers need `response`, its key `request`."""
    app = FastAPI()
    counter = Counter(app)
    limiter = slowapi.Limiter(
        key_func=get_remote_address, storage_uri=f"redis+unix://{redis_socket}", headers_enabled=True
    )
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, slowapi._rate_limit_exceeded_handler)  # type: ignore[arg-type]

    @app.get("/item")
    @limiter.limit(LIMIT)
    async def item(request: Request, response: Response) -> dict[str, object]:
        counter.served += 1
        return dict(ITEM)

    return app


def ours(redis_socket: str) -> FastAPI:
    """This package."""
    app = FastAPI()
    counter = Counter(app)
    limiter = Limiter(
        key_func=identity.client_address,
        storage_uri=f"unix://{redis_socket}",
        headers_enabled=True,
        deadline_s=10,  # who waits for a core on a busy machine is served without being charged otherwise
    )
    app.state.limiter = limiter
    app.add_middleware(limiter.middleware)

    @app.get("/item")
    @limiter.limit(LIMIT)
    async def item() -> dict[str, object]:
        counter.served += 1
        return dict(ITEM)

    return app


APPS: dict[str, Callable[[str], FastAPI]] = {"none": none, "stock": stock, "ours": ours}

_ANSWER = b'{"allowed":true,"retry_after":null,"limits":[{"name":"1000000000/hour","limit":1000000000,"window":3600,'
_ANSWER += b'"remaining":999999999,"reset_after":3600}]}'


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """No framework at all: reads the body, and answers as `POST /v1/check` would."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})

"""A small chat API, limited per user: what a backend looks like with onequota's decorators.

    onequota run examples.chat.app:app --workers 4

Without REDIS_URL the runner starts a Redis for development; under another server the counters then live in the
process, which is refused for more than one worker.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field

from service.limits import Limiter, identity


def user(request: Request) -> str:
    """Who writes: the user the request names, else the address it comes from."""
    return request.headers.get("x-user") or identity.client_address(request)


limiter = Limiter(key_func=user, default_limits=["100/minute"], headers_enabled=True)
app = FastAPI(title="chat")
app.state.limiter = limiter
app.add_middleware(limiter.middleware)

history: deque["Message"] = deque(maxlen=100)


class Message(BaseModel):
    """What somebody says."""

    text: str = Field(min_length=1, max_length=2000)


def words(request: Request) -> int:
    """Long messages cost more: a unit for every 500 bytes of body, at least one."""
    return max(1, -(-int(request.headers.get("content-length", 0)) // 500))


@app.post("/messages", status_code=201)
@limiter.limit("20/minute;500/day", cost=words, error_message="You write faster than anybody reads")
async def send(message: Message) -> dict[str, int]:
    history.append(message)
    return {"messages": len(history)}


@app.get("/messages/stream", response_class=EventSourceResponse)
@limiter.limit("10/minute")
async def stream() -> AsyncIterator[Message]:
    for message in list(history):
        yield message
        await asyncio.sleep(0)


@app.post("/login")
@limiter.limit("5/minute", deduct_when=lambda response: response.status_code == 401)
async def login(request: Request) -> dict[str, str]:
    """Only failed attempts count."""
    if request.headers.get("x-password") != "open sesame":
        raise HTTPException(401, "wrong password")
    return {"welcome": user(request)}


@app.get("/search", dependencies=[Depends(limiter.quota("30/minute", scope="search"))])
def search(text: str) -> list[Message]:
    return [message for message in history if text in message.text]


@app.get("/health")
@limiter.exempt
async def health() -> dict[str, str]:
    return {"status": "healthy"}

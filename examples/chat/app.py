"""A chat backend that does not hang up: limited per user over all workers, its messages in Supabase.

    create table messages (
      id uuid primary key,
      seq bigint generated always as identity,
      author text not null,
      text text not null
    );

    export SUPABASE_URL=https://PROJECT.supabase.co SUPABASE_SERVICE_KEY=sb_secret_...
    onequota run examples.chat.app:app --workers 4

Without REDIS_URL the runner starts a Redis for development. Without the two Supabase variables the app runs, and
answers whoever writes or reads with 503.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from supabase import AsyncClient

from service import database, status
from service.database import get_supabase, insert_once
from service.limits import Limiter, identity

Database = Annotated[AsyncClient, Depends(get_supabase)]
POLL_S = 0.5
LONGEST = 8_500
"""Bytes of a message's body, about."""


user = identity.first_of(identity.header("x-user", name="user"), identity.client_address)
"""Who writes: the user whom the proxy before us has signed in, else an address. A client that writes the header itself
is not believed. For users of Supabase Auth no proxy is needed: `identity.jwt_subject()`."""

limiter = Limiter(
    key_func=user,
    default_limits=["100/minute"],
    headers_enabled=True,
    trusted_proxies=["127.0.0.0/8", "::1/128", "unix:"],
)
app = FastAPI(title="chat", lifespan=database.lifespan)
app.state.limiter = limiter
app.add_middleware(limiter.middleware)


class Message(BaseModel):
    """What somebody says. Who gives it an id may send it again after a lost answer: it is stored once."""

    id: str | None = None
    text: str = Field(min_length=1, max_length=2000)


def words(request: Request) -> int:
    """Long messages cost more: a unit for every 500 bytes of body; who does not say how many pays for the longest."""
    return max(1, -(-int(request.headers.get("content-length", LONGEST)) // 500))


@app.post("/messages", status_code=201)
@limiter.limit("20/minute;500/day", cost=words, error_message="You write faster than anybody reads")
async def send(message: Message, request: Request, supabase: Database) -> dict[str, Any]:
    row = {"id": message.id, "author": str(user(request)), "text": message.text}
    stored = await insert_once(supabase, "messages", row)
    if stored["author"] != row["author"]:
        raise HTTPException(409, "this id is another message's")
    return stored


@app.get("/messages", dependencies=[Depends(limiter.quota("60/minute", scope="read"))])
async def read(supabase: Database, after: int = 0) -> list[dict[str, Any]]:
    return await since(supabase, after)


@app.get("/messages/stream", response_class=EventSourceResponse)
@limiter.limit("10/minute")
async def stream(supabase: Database, last_event_id: Annotated[int, Header()] = 0) -> AsyncIterator[ServerSentEvent]:
    """All messages, from any worker. It ends when its worker is replaced: browsers come back with Last-Event-ID."""
    while not status.retired():
        for message in await since(supabase, last_event_id):
            last_event_id = message["seq"]
            yield ServerSentEvent(data=message, id=str(last_event_id))
        await asyncio.sleep(POLL_S)


async def since(supabase: AsyncClient, seq: int) -> list[dict[str, Any]]:
    """At most 100 messages after the one numbered `seq`, in order."""
    rows: Any = (await supabase.table("messages").select("*").gt("seq", seq).order("seq").limit(100).execute()).data
    return list(rows)


@app.post("/login")
@limiter.limit("5/minute", key_func=identity.client_address, deduct_when=lambda response: response.status_code == 401)
async def login(request: Request) -> dict[str, str]:
    """Only failed attempts count, by address: nobody is anybody yet."""
    if request.headers.get("x-password") != "open sesame":
        raise HTTPException(401, "wrong password")
    return {"welcome": str(user(request))}


@app.get("/health")
@limiter.exempt
async def health() -> dict[str, Any]:
    return {"status": "healthy", "workers": status.told().workers, "recycles": status.told().recycles}

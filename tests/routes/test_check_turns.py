"""Large bodies take turns: whoever asks for one decision waits for a slice or two of them, not for all."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from service.app import create_app
from service.limits.decision import Ask
from service.limits.stores import MemoryStore
from service.routes.check.route import SLICE, SMALL, TURNS
from service.settings import Settings

PATIENCE_S = 60


class Noting(MemoryStore):
    """Counters in memory, a turn of the event loop away; notes how many charges each call had, and whose."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[bytes]] = []

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        self.calls.append([key for ask in asks for key in ask.names])
        await asyncio.sleep(0)
        return await super().decide(asks)


class Client:
    """Asks an app by its ASGI messages, all on one event loop."""

    def __init__(self) -> None:
        self.store = Noting()
        self.app: Any = create_app(Settings(redis_url="fakeredis://", redis_timeout_ms=60_000))
        self.app.state.limiter.engine.use(lambda: self.store)

    async def ask(self, body: object) -> Any:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/check", "headers": [], "client": ("192.0.2.1", 1)}
        await self.app(scope, receive, send)
        assert sent[0]["status"] == 200, sent
        return json.loads(sent[1]["body"])


def large(number: int, *, alike: bool) -> dict[str, Any]:
    """A thousand checks; of those that are not alike each costs something else than the one before."""
    checks = [{"key": f"{number}-{each}", "limits": "5/minute", "cost": 1 + each % 2} for each in range(1000)]
    return {"checks": [{**check, "cost": 1} for check in checks] if alike else checks}


async def waited(client: Client, bodies: Sequence[object], small: object) -> int:
    """Charges of large bodies that were decided while a small question waited, after they had all arrived."""
    busy = [asyncio.create_task(client.ask(body)) for body in bodies]
    while not client.store.calls:  # noqa: ASYNC110  (the first slice is under way)
        await asyncio.sleep(0)
    asked = len(client.store.calls)
    await client.ask(small)
    answered = len(client.store.calls)
    assert not any(task.done() for task in busy)
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    return sum(len(call) for call in client.store.calls[asked - 1 : answered])


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("many", [4, 40])
async def test_a_small_question_waits_for_a_few_slices_however_many_large_ones_came_before(
    many: int, alike: bool
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        small = {"key": "alice", "limits": "5/minute"}
        found = await waited(Client(), [large(number, alike=alike) for number in range(many)], small)
    assert found <= (TURNS + 2) * SLICE + 2, f"{found} of {many * 1000}"


async def test_a_few_checks_in_one_body_wait_no_longer_than_one() -> None:
    async with asyncio.timeout(PATIENCE_S):
        small = {"checks": [{"key": f"a{number}", "limits": "5/minute"} for number in range(SMALL)]}
        found = await waited(Client(), [large(number, alike=True) for number in range(20)], small)
    assert found <= (TURNS + 2) * SLICE + SMALL


async def test_large_bodies_are_answered_whole_and_in_order_while_others_come() -> None:
    client = Client()
    async with asyncio.timeout(PATIENCE_S):
        bodies = [large(number, alike=bool(number % 2)) for number in range(6)]
        answers = await asyncio.gather(*map(client.ask, bodies))
    for body, answer in zip(bodies, answers, strict=True):
        left = [result["limits"][0]["remaining"] for result in answer["results"]]
        assert left == [5 - check["cost"] for check in body["checks"]]


async def test_no_call_is_larger_than_a_slice() -> None:
    client = Client()
    async with asyncio.timeout(PATIENCE_S):
        await client.ask({"checks": [{"key": f"{n}", "limits": "5/minute;9/hour;20/day"} for n in range(1000)]})
    assert max(map(len, client.store.calls)) <= SLICE
    assert sum(map(len, client.store.calls)) == 3000 + 1  # and the guard of the route


async def test_a_client_who_leaves_gives_the_turn_to_the_next() -> None:
    client = Client()
    async with asyncio.timeout(PATIENCE_S):
        busy = [asyncio.create_task(client.ask(large(number, alike=True))) for number in range(5)]
        while not client.store.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        answer = await client.ask(large(9, alike=True))
    assert len(answer["results"]) == 1000

"""docs/llm-tokens.md: its two examples, as they stand there, with a model that answers in five tokens."""

import asyncio
import os

from fastapi.testclient import TestClient
from test_docs import blocks

USER = {"x-user": "alice"}


def test_the_examples_charge_estimates_and_settle_what_was_used(monkeypatch, redis_server):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("ONEQUOTA_REDIS_TIMEOUT_MS", "5000")
    chat, job = blocks("llm-tokens.md", "python")
    place = {}

    async def model(_prompt):
        for piece in (b"to ", b"be ", b"or ", b"not ", b"to be"):
            yield piece

    async def work():
        return 2500

    place.update(model=model, work=work)
    exec(compile(chat + job, "llm-tokens.md", "exec"), place)
    limiter, app = place["limiter"], place["app"]

    def left(response):
        return [int(part.split(";")[0]) for part in response.headers["ratelimit"].split("r=")[1:]]

    with TestClient(app, client=("10.1.2.3", 4711), headers=USER) as client:
        for asked in range(2):
            response = client.post("/chat", content=b"x" * 4000)
            assert (response.status_code, response.text) == (200, "to be or not to be")
            named = dict(zip(_names(response), left(response), strict=True))
            assert named == {
                "3 at once": 2,
                "requests": 19 - asked,
                "100000/minute": 100_000 - 1500 - 5 * asked,
                "2000000/day": 2_000_000 - 1500 - 5 * asked,
            }

    async def later():
        assert await place["job"]("bob")
        decision = await limiter.check("bob", "100000/minute", peek=True)
        await limiter.refund("bob", "100000/minute", 500)
        back = await limiter.check("bob", "100000/minute", peek=True)
        await limiter.aclose()
        return decision.standings[0].remaining, back.standings[0].remaining

    assert asyncio.run(later()) == (97_500, 98_000)
    assert os.environ["REDIS_URL"] == redis_server.url


def _names(response):
    return [part.split('"')[1] for part in response.headers["ratelimit"].split(", ")]

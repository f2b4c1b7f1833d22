"""Where the limits of an app stand for a key: looked up, never charged."""

import asyncio
from collections.abc import Sequence

from service.client.answer import Answer
from service.commands.asking import DEADLINE_S, told
from service.commands.routes import Applied, Row
from service.errors import ConfigurationError
from service.limits import Limiter, keys
from service.limits.decision import LOOK, Ask, Charge
from service.limits.engine import Engine
from service.limits.stores import opener

Stands = tuple[Applied, Answer]
"""One declared limit, and what a request would be answered by it alone."""


def standings(limiter: Limiter, rows: Sequence[Row], key: str, redis: str | None) -> list[list[Stands]]:
    """For each row, where those of its limits stand that are known without a request.

    Args:
        limiter: Whose counters.
        rows: Of this limiter.
        key: Who asks, as the key function would answer.
        redis: Another Redis than the limiter's.

    Raises:
        ConfigurationError: The counters are in no place that can be looked into.
        StoreUnavailable: They cannot be reached.
    """
    uri = redis or limiter.storage_uri
    if uri.startswith(("memory://", "async+memory://", "fakeredis://")):
        raise ConfigurationError(
            "this app counts in the memory of its own processes: set REDIS_URL as the app has it, or pass --redis URL"
        )

    async def look() -> list[list[Stands]]:
        engine = Engine(opener(uri, None, DEADLINE_S), DEADLINE_S)
        try:
            await engine.ping()
            return [
                [await _one(engine, row, applied, key) for applied in row.applied if _known(applied, key)]
                for row in rows
            ]
        finally:
            await engine.aclose()

    return asyncio.run(look())


def _known(applied: Applied, key: str) -> bool:
    return not applied.reason and applied.scope is not None and bool(applied.limits(key))


async def _one(engine: Engine, row: Row, applied: Applied, key: str) -> Stands:
    assert row.plan is not None and applied.scope is not None
    cost = applied.rule.cost if isinstance(applied.rule.cost, int) else 1
    charges = [
        Charge(limit, keys.spell(row.plan.prefix, key, applied.scope, limit.spelling), min(cost, limit.capacity))
        for limit in applied.limits(key)
    ]
    decision = await engine.decide(Ask(charges, LOOK))
    return applied, Answer(
        allowed=decision.allowed, retry_after=decision.retry_after, limits=tuple(map(told, decision.standings))
    )

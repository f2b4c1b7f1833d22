"""Decisions as JSON, by hand: an answer is the same few words around a few numbers."""

from functools import lru_cache

from pydantic_core import to_json

from service.limits import Limit
from service.limits.decision import Decision


def answer(decision: Decision) -> str:
    """One decision; times in whole seconds, rounded up."""
    limits = ",".join(
        [
            f'{_words(limit)}{remaining},"reset_after":{-(-reset_us // 1_000_000)}}}'
            for limit, _cost, remaining, reset_us, _retry_us, _next_us in decision.standings
        ]
    )
    more = ',"replayed":true' if decision.replayed else ""
    if decision.degraded:
        more += ',"degraded":true'
    if decision.allowed:
        return f'{{"allowed":true,"retry_after":null,"limits":[{limits}]{more}}}'
    return f'{{"allowed":false,"retry_after":{decision.retry_after},"limits":[{limits}]{more}}}'


@lru_cache(maxsize=4096)
def _words(limit: Limit) -> str:
    """What is always the same of a limit."""
    name = to_json(limit.name).decode()
    return f'{{"name":{name},"limit":{limit.capacity},"window":{limit.refill_s},"remaining":'

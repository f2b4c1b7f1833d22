"""Decisions as JSON, by hand: an answer is the same few words around a few numbers."""

from collections.abc import Sequence
from functools import lru_cache

from pydantic_core import to_json

from service.limits import Limit
from service.limits.decision import Decision, Decisions, Standing
from service.limits.policy import Status, Verdict


def answer(decision: Decision) -> str:
    """The answer to a question with limits of its own; times in whole seconds, rounded up."""
    more = "" if type(decision) is Decision else _more(decision)
    limits = _limits(decision.standings)
    if decision.allowed:
        return f'{{"allowed":true,"retry_after":null,"limits":{limits}{more}}}'
    return f'{{"allowed":false,"retry_after":{decision.retry_after},"limits":{limits}{more}}}'


def answers(decisions: Decisions) -> list[str]:
    """`answer` to each of many that were alike."""
    more = "}" if not decisions.degraded else ',"degraded":true}'
    words, numbers = _words(decisions.asked.limit), decisions.numbers
    allowed = f'{{"allowed":true,"retry_after":null,"limits":[{words}'
    return [
        f'{allowed}{remaining},"reset_after":{-(-reset_us // 1_000_000)}}}]{more}'
        if not retry_us
        else f'{{"allowed":false,"retry_after":{-(-retry_us // 1_000_000)},"limits":[{words}{remaining},'
        f'"reset_after":{-(-reset_us // 1_000_000)}}}]{more}'
        for remaining, reset_us, retry_us in zip(numbers[::4], numbers[1::4], numbers[2::4], strict=True)
    ]


def verdict_answer(verdict: Verdict, *, known: bool) -> str:
    """The answer to a question about limits of the catalog: also what became of each descriptor."""
    more = _more(verdict) + ("" if known else ',"unknown_domain":true')
    allowed, wait = ("true", "null") if verdict.allowed else ("false", verdict.retry_after)
    head = f'"allowed":{allowed},"retry_after":{wait}'
    statuses = ",".join([_status(status) for status in verdict.statuses])
    return f'{{{head},"limits":{_limits(verdict.standings)},"statuses":[{statuses}]{more}}}'


def _more(found: Decision | Verdict) -> str:
    replayed = ',"replayed":true' if found.replayed else ""
    return replayed + (',"degraded":true' if found.degraded else "")


def _status(status: Status) -> str:
    rule = status.rule
    path = "null" if rule is None else _quoted(rule.path)
    shadow = ',"shadow_mode":true' if rule is not None and rule.shadow_mode else ""
    over = "true" if status.over else "false"
    return f'{{"rule":{path},"over":{over},"limits":{_limits(status.standings)}{shadow}}}'


def _limits(standings: Sequence[Standing]) -> str:
    shown = [
        f'{_words(limit)}{remaining},"reset_after":{-(-reset_us // 1_000_000)}}}'
        for limit, _cost, remaining, reset_us, _retry_us, _next_us in standings
    ]
    return f"[{','.join(shown)}]"


@lru_cache(maxsize=4096)
def _words(limit: Limit) -> str:
    """What is always the same of a limit."""
    return f'{{"name":{_quoted(limit.name)},"limit":{limit.capacity},"window":{limit.refill_s},"remaining":'


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return to_json(text).decode()

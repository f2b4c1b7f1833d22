"""Values that cannot be meant, sent to the service as people send them."""

import asyncio
import itertools

from bench.caller import Caller
from bench.promises import exactly
from bench.redises import RedisServer
from bench.service import service
from bench.trust.finding import Finding, Size

COSTS = (
    *(
        "-1",
        "11",
        "-0.5",
        "1.5",
        "1e0",
        "1e400",
        "-1e400",
        "9007199254740992",
        "9223372036854775807",
        "9223372036854775808",
    ),
    *(
        "18446744073709551616",
        "9" * 400,
        "NaN",
        "Infinity",
        "-Infinity",
        '"1"',
        '"NaN"',
        "true",
        "null",
        "[]",
        "{}",
        "01",
    ),
)
"""As they stand in the JSON, against a limit of 10."""
ALGORITHMS = ("fixed-window", "moving-window", "sliding-window-counter", "gcra")


def costs(_size: Size) -> Finding:
    """Over HTTP against two workers, in a body of one check and in one of many, for every algorithm; what Redis
    holds is compared before and after each."""
    with RedisServer() as redis, service(redis, workers=2) as server:
        sent, statuses, unnamed, changed = asyncio.run(_send(server.port, redis))
    told = ", ".join(f"{number} with {status}" for status, number in sorted(statuses.items()))
    return Finding(
        figure=f"{sent} requests with {len(COSTS)} costs: {told}; counters changed by {changed}",
        checks=(
            exactly("answers", sorted(set(statuses) - {400, 422}), []),
            exactly("refusals that name no field", unnamed, 0),
            exactly("changed counters", changed, 0),
        ),
    )


async def _send(port: int, redis: RedisServer) -> tuple[int, dict[int, int], int, int]:
    statuses: dict[int, int] = {}
    sent = unnamed = changed = 0
    async with Caller(port) as caller:
        for algorithm in ALGORITHMS:
            one = f'{{"key": "k", "limits": "10/year", "algorithm": "{algorithm}"'
            await caller.ask("/v1/check", f'{one}, "cost": 3}}'.encode())
        before = _digest(redis)
        for algorithm, cost, many in itertools.product(ALGORITHMS, COSTS, (False, True)):
            one = f'{{"key": "k", "limits": "10/year", "algorithm": "{algorithm}", "cost": {cost}}}'
            body = f'{{"checks": [{one.replace(cost, "1")}, {one}]}}' if many else one
            answer = await caller.ask("/v1/check", body.encode())
            sent += 1
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status == 422:
                field = "checks[1].cost" if many else "cost"
                unnamed += answer.body["errors"][0]["field"] != field
            changed += (after := _digest(redis)) != before
            before = after
    return sent, statuses, unnamed, changed


def _digest(redis: RedisServer) -> int:
    """Of what callers are counted by; who asks how often is counted, too."""
    with redis.client() as client:
        return hash(tuple(sorted((key, client.dump(key)) for key in client.scan_iter() if b"{k}" in key)))

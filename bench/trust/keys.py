"""What is left in Redis: every key short, nobody else's, and gone in time."""

import asyncio
import random
import re
import string
from collections.abc import Iterator

from bench.promises import at_least, at_most, exactly
from bench.redises import RedisServer
from bench.trust.finding import Finding, Size
from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, DEBIT, Ask, Charge, TokenAsk
from service.limits.engine import Engine
from service.limits.limit import Limit
from service.limits.stores import opener
from service.limits.token import KEPT_S, token

_PIECES = (
    *("", "a", "b", "alice", "a/b", "a:b", "}", "{", "{a}", "}:", ":{", "~", "~x", "%", "*", "?", "[a]", " ", "\t"),
    *("\r\n", "\x00", "é", "e\u0301", "\ud800", "\U0001f600", "10/60s", "/fixed", "oq", "oq:{a}", "once", "d.", "c."),
)
_LETTERS = string.ascii_letters + string.digits + "./_-@:"


def hostile() -> Iterator[tuple[str, str, str]]:
    """Prefix, identity and scope, made of what means something in a key, without end, the same every time."""
    drawn = random.Random(2)

    def part() -> str:
        pieces = drawn.choices(_PIECES, k=drawn.randint(0, 4))
        pieces.append("".join(drawn.choices(_LETTERS, k=drawn.choice((0, 1, 3, 12, 24, 36, 37, 200)))))
        drawn.shuffle(pieces)
        return "".join(pieces)

    while True:
        yield drawn.choice(("oq", "app", part()[:20] or "oq")), part(), part()


def collisions(size: Size) -> Finding:
    """A million different tuples of prefix, identity, scope and limit, made from a fixed seed of what means something
    in a key: braces, colons, slashes, digests, control characters, half surrogates. Each is spelled."""
    wanted, longest = size.of(1_000_000), 0
    pairs = ((10, 60), (10**9, 3_600), (1, 360 * 86_400))
    spellings = [Limit(amount=a, window_s=w, algorithm=name).spelling for name in ALGORITHMS for a, w in pairs]
    tuples: set[tuple[str, str, str, str]] = set()
    spelled: set[bytes] = set()
    for number, parts in enumerate(hostile()):
        one = (*parts, spellings[number % len(spellings)])
        if one in tuples:
            continue
        tuples.add(one)
        key = keys.spell(*one)
        longest = max(longest, len(key))
        spelled.add(key)
        if len(tuples) == wanted:
            break
    return Finding(
        figure=f"{len(tuples):,} tuples, {len(spelled):,} keys, the longest of {longest} bytes",
        checks=(exactly("keys", len(spelled), len(tuples)), at_most("bytes of a key", longest, 128)),
    )


def expiry(size: Size) -> Finding:
    """Charges, debits beyond the limit and charges with tokens, of every algorithm, windows of 1 s to 360 days, on a
    real Redis; then the time to live of every key there is, a token's against its day."""
    with RedisServer() as redis:
        asyncio.run(_charge(redis.url, size.of(20_000, least=1_000)))
        found, endless, beyond = 0, 0, list[bytes]()
        with redis.client() as client:
            for key in client.scan_iter(count=1000):
                left_ms = client.pttl(key)
                found += left_ms != -2
                endless += left_ms == -1
                window = re.search(rb"/(\d+)s(?:/|$)", key)
                longest_s = 2 * int(window[1]) + 1 if window else KEPT_S + 1
                if left_ms > longest_s * 1000:
                    beyond.append(key)
    return Finding(
        figure=f"{found:,} keys, {endless} without expiry, {len(beyond)} with more than two windows and a second",
        checks=(
            at_least("keys", found, 100),
            exactly("keys without expiry", endless, 0),
            exactly("keys that stay too long", beyond[:1], []),
        ),
    )


async def _charge(url: str, asks: int) -> None:
    drawn = random.Random(3)
    engine = Engine(opener(url), 60)
    windows_s = (1, 7, 60, 3_600, 86_400, 360 * 86_400)
    made = []
    for number in range(asks):
        limit = Limit(
            amount=drawn.choice((1, 10, 5_000)),
            window_s=drawn.choice(windows_s),
            algorithm=drawn.choice(list(ALGORITHMS)),
        )
        key = keys.spell("", f"caller-{drawn.randrange(500)}", "ttl", limit.spelling)
        if number % 5 == 0:
            ask = Ask([Charge(limit, key, 3 * limit.capacity)], DEBIT)
        elif number % 5 == 1:
            ask = TokenAsk([Charge(limit, key, 1)], token(f"t{number}", b"", owner="ttl"), CHARGE)
        else:
            ask = Ask([Charge(limit, key, 1)])
        made.append(engine.decide(ask))
    await asyncio.gather(*made)
    await engine.aclose()

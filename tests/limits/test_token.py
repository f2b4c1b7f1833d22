"""Idempotency: an ask that comes again with its token is answered as the first time, and charged once."""

import asyncio

import pytest
from driving import Clock, limiter_of
from servers import RedisServer

from service.errors import InvalidInput, StoreUnavailable
from service.limits import Limiter
from service.limits.decision import GIVE_BACK, LOOK, Ask, Charge, TokenAsk
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.limit import Limit
from service.limits.stores import MemoryStore, opener
from service.limits.stores.fake import FakeServerOpener
from service.limits.token import token

THREE, TEN = Limit.parse("3/minute;10/hour")


def once(text="t", content=b"", **more):
    return token(text, content, **{"owner": "shop", **more})


def asking(cost=1, limit=THREE, key=b"{k}", with_token=None):
    return TokenAsk([Charge(limit, key, cost)], with_token or once())


@pytest.fixture(params=["memory", "fakeredis"])
def clock_and_engine(request):
    clock = Clock()
    store = MemoryStore(clock) if request.param == "memory" else None
    return clock, Engine((lambda: store) if store else FakeServerOpener(clock), 5)


async def left(engine, limit=THREE, key=b"{k}"):
    return (await engine.decide(Ask([Charge(limit, key, 1)], LOOK))).standings[0].remaining


@pytest.mark.parametrize("store", ["memory", "fakeredis", "redis"])
async def test_who_asks_again_is_answered_as_before_and_charged_once(store, request):
    """In one call, and in a later one."""
    url = request.getfixturevalue("redis_server").url if store == "redis" else f"{store}://"
    engine = Engine(opener(url), 5)
    first, again = await asyncio.gather(*(engine.decide(asking(2)) for _ in range(2)))
    later = await engine.decide(asking(2))
    assert first.allowed and first == again == later
    assert [decision.replayed for decision in (first, again, later)] == [False, True, True]
    assert await left(engine) == 1
    await engine.aclose()


async def test_a_refusal_stays_one_and_its_times_are_as_of_then(clock_and_engine):
    """Even when there is room again: the answer to this token was no. Its wait counts from `at_us`."""
    clock, engine = clock_and_engine
    await engine.decide(Ask([Charge(THREE, b"{k}", 3)]))
    clock.forward(10)
    refused = await engine.decide(asking())
    assert not refused.allowed and refused.retry_us == 50_000_000
    clock.forward(100)
    again = await engine.decide(asking())
    assert (again.allowed, again.retry_us, again.at_us) == (False, 50_000_000, clock.now_us - 100_000_000)
    assert again.replayed
    assert (await engine.decide(asking(with_token=once("new")))).allowed


async def test_a_token_with_other_content_is_told_so_and_nothing_is_charged(clock_and_engine):
    """The others of the same call are answered as if it had not been there."""
    _, engine = clock_and_engine
    asks = [asking(), asking(with_token=once(content=b"other")), Ask([Charge(THREE, b"{k}", 1)])]
    mine, conflict, other = await asyncio.gather(*map(engine.decide, asks), return_exceptions=True)
    assert mine.standings[0].remaining == 2
    assert isinstance(conflict, InvalidInput) and conflict.field == "Idempotency-Key"
    assert other.standings[0].remaining == 1


async def test_a_token_is_forgotten_after_its_time(clock_and_engine):
    clock, engine = clock_and_engine
    ask = asking(limit=TEN, with_token=once(keep_s=60))
    await engine.decide(ask)
    clock.forward(59.999_999)
    assert (await engine.decide(ask)).replayed
    clock.forward(0.000_001)
    assert not (await engine.decide(ask)).replayed
    assert await left(engine, TEN) == 8


async def test_all_or_nothing_holds_for_what_is_replayed(clock_and_engine):
    """A refused request charged none of its limits; asked again, it still charges none."""
    _, engine = clock_and_engine
    ask = TokenAsk([Charge(THREE, b"{k}m", 3), Charge(TEN, b"{k}h", 3)], once("other"))
    await engine.decide(Ask([Charge(THREE, b"{k}m", 1)]))
    refused, again = [await engine.decide(ask) for _ in range(2)]
    assert refused == again and [standing.passes for standing in again.standings] == [False, True]
    assert await left(engine, TEN, b"{k}h") == 10


async def test_what_is_given_back_with_a_token_is_given_back_once(clock_and_engine):
    clock, engine = clock_and_engine
    await engine.decide(Ask([Charge(THREE, b"{k}", 3)]))
    for _ in range(3):
        await engine.decide(TokenAsk([Charge(THREE, b"{k}", 1)], once("refund"), GIVE_BACK, clock.now_us))
    assert await left(engine) == 1


async def test_a_token_whose_limits_have_changed_since_is_told_the_verdict_on_the_new_ones(clock_and_engine):
    """A catalog may be reloaded between two tries: still charged once, and told what holds today."""
    clock, engine = clock_and_engine
    allowed = await engine.decide(asking(3, with_token=once("yes")))
    refused = await engine.decide(asking(3, with_token=once("no")))
    assert (allowed.allowed, refused.allowed) == (True, False)
    clock.forward(1)
    yes = await engine.decide(asking(3, TEN, b"{k}new", once("yes")))
    no = await engine.decide(asking(3, TEN, b"{k}new", once("no")))
    assert (yes.allowed, no.allowed, yes.replayed, no.replayed) == (True, False, True, True)
    assert yes.standings[0].limit is TEN and yes.standings[0].remaining == 10
    assert yes.at_us == clock.now_us


async def test_a_retry_after_a_lost_answer_is_charged_once():
    """What tokens are for: the store has charged, and its answer never came."""

    class Lossy(MemoryStore):
        lost = False

        async def decide(self, asks):
            numbers = await super().decide(asks)
            if not self.lost:
                self.lost = True
                raise StoreUnavailable("cut")
            return numbers

    engine = Engine(Lossy, 5, fallback=Fallback("deny"))
    with pytest.raises(StoreUnavailable):
        await engine.decide(asking(2))
    again = await engine.decide(asking(2))
    assert again.allowed and again.replayed
    assert await left(engine) == 1


async def test_many_workers_that_retry_each_ask_admit_exactly_the_limit(redis_server: RedisServer):
    """Three engines ask each of 100 tokens, all at once: 50 different tokens are admitted, on a limit of 50."""
    engines = [Engine(opener(redis_server.url), 5) for _ in range(3)]
    (limit,) = Limit.parse("50/hour")
    asks = [asking(limit=limit, with_token=once(f"t{number}")) for number in range(100)]
    decisions = await asyncio.gather(*(engine.decide(ask) for ask in asks for engine in engines))
    answers = [{decision.allowed for decision in decisions[at : at + 3]} for at in range(0, 300, 3)]
    assert all(len(answer) == 1 for answer in answers), "one token, two answers"
    assert answers.count({True}) == 50
    assert await left(engines[0], limit) == 0
    await asyncio.gather(*(engine.aclose() for engine in engines))


async def test_a_record_expires_with_its_time(redis_server: RedisServer):
    engine = Engine(opener(redis_server.url), 5)
    ask = asking(with_token=once(keep_s=3600))
    await engine.decide(ask)
    with redis_server.client() as client:
        assert set(client.keys()) == {b"{k}", b"oq:{shop}:t:once"}
        assert 3_590_000 < client.pttl(ask.token.key) <= 3_601_000
        assert 0 < client.pttl(b"{k}") <= 61_000
    await engine.aclose()


@pytest.mark.parametrize("text", ["", " ", "a b", "é", "a\n", "x" * 256, None, 7])
def test_what_is_no_token_is_refused(text):
    with pytest.raises(InvalidInput) as error:
        once(text)
    assert error.value.field == "Idempotency-Key"


@pytest.mark.parametrize("keep_s", [0, -1, 30 * 86_400 + 1])
def test_a_token_is_kept_a_second_to_thirty_days(keep_s):
    with pytest.raises(InvalidInput, match="use 1 s to 30 days"):
        once(keep_s=keep_s)


def test_tokens_of_different_owners_and_prefixes_do_not_meet():
    made = {once(text, owner=owner, prefix=prefix).key for text in "ab" for owner in "xy" for prefix in ("", "p")}
    assert len(made) == 8
    assert max(len(once("x" * 255, owner="y" * 200, prefix="p" * 12).key), *map(len, made)) <= 128


async def test_a_check_is_charged_once_by_its_idempotency_key():
    limiter = limiter_of()
    first = await limiter.check("alice", "3/minute", idempotency_key="8e03978e")
    again = await limiter.check("alice", "3/minute", idempotency_key="8e03978e")
    assert first == again and again.replayed
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        await limiter.check("alice", "3/minute", cost=2, idempotency_key="8e03978e")
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        await limiter.check("bob", "3/minute", idempotency_key="8e03978e")
    assert (await limiter.check("alice", "3/minute", scope="mail", idempotency_key="8e03978e")).allowed
    assert (await limiter.check("alice", "3/minute", peek=True)).standings[0].remaining == 2


async def test_a_look_has_no_use_for_a_token():
    limiter = limiter_of()
    look = await limiter.check("alice", "3/minute", peek=True, idempotency_key="t")
    assert look.standings[0].remaining == 3
    assert not (await limiter.check("alice", "3/minute", idempotency_key="t")).replayed


def test_resetting_forgets_tokens_of_the_prefix():
    """`reset()` starts from nothing: what was kept for a token goes with the counters it speaks of."""
    limiter = Limiter(lambda: "x", storage_uri="memory://")

    async def told():
        return (await limiter.check("alice", "3/minute", idempotency_key="t")).replayed

    assert [asyncio.run(told()) for _ in range(2)] == [False, True]
    asyncio.run(_reset(limiter))
    assert asyncio.run(told()) is False


async def _reset(limiter):
    await limiter.reset()

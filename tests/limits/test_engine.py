"""The engine: shares calls, keeps deadlines, and answers every waiter whatever happens to the others."""

import asyncio
import gc

import pytest
from servers import RedisServer
from topologies import PLACES

from bench.proxy import FaultProxy
from bench.redises import tell
from service.errors import InvalidInput, StoreUnavailable
from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import DEBIT, GIVE_BACK, LOOK, Ask, Charge, Token, TokenAsk
from service.limits.engine import MOST_CHARGES
from service.limits.engine import Engine as AnyEngine
from service.limits.fallback import Fallback
from service.limits.limit import Limit
from service.limits.stores import opener
from service.limits.stores.memory import MemoryStore
from service.limits.token import token

(TEN,) = Limit.parse("10/minute")


def Engine(open_store, deadline_s=0.25):  # noqa: N802
    """An engine that says so when the store does not decide; what else it can answer: test_fallback."""
    return AnyEngine(open_store, deadline_s, fallback=Fallback("deny"))


def ask(key=b"k", cost=1, limit=TEN):
    return Ask([Charge(limit, key, cost)])


def key(identity):
    return keys.spell("", identity, "test", "1/1s/fixed")


class Slow(MemoryStore):
    """A store that answers when told to."""

    def __init__(self):
        super().__init__()
        self.batches = []
        self.go = asyncio.Event()
        self.error = None
        self.closed = False

    async def decide(self, asks):
        self.batches.append(len(asks))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return await super().decide(asks)

    async def aclose(self):
        self.closed = True


async def test_arrivals_of_one_tick_share_a_call():
    store = Slow()
    store.go.set()
    engine = Engine(lambda: store)
    decisions = await asyncio.gather(*(engine.decide(ask()) for _ in range(20)))
    assert store.batches == [20]
    assert sum(decision.allowed for decision in decisions) == 10


async def test_arrivals_while_a_call_is_under_way_share_the_next():
    store = Slow()
    engine = Engine(lambda: store, 5)
    first = engine.decide(ask())
    await asyncio.sleep(0.01)
    rest = [engine.decide(ask()) for _ in range(7)]
    await asyncio.sleep(0.01)
    assert store.batches == [1]
    store.go.set()
    await asyncio.gather(first, *rest)
    assert store.batches == [1, 7]


async def test_at_most_128_charges_travel_together_and_no_request_is_split():
    store = Slow()
    store.go.set()
    engine = Engine(lambda: store)
    triple = [Charge(TEN, b"%d" % number, 1) for number in range(3)]
    await asyncio.gather(*(engine.decide(Ask(triple)) for _ in range(100)))
    assert store.batches == [42, 42, 16]
    with pytest.raises(InvalidInput, match="129 limits in one request"):
        engine.decide(Ask([Charge(TEN, b"%d" % number, 1) for number in range(MOST_CHARGES + 1)]))


async def test_what_a_token_keeps_is_counted_as_a_charge_is():
    """Else thousands of asks with nothing but a token would be one call, and Lua's stack is full at 8,000 keys."""
    store = Slow()
    store.go.set()
    engine = Engine(lambda: store)
    empty = [TokenAsk([], Token(b"t%d" % number, bytes(16), 60)) for number in range(300)]
    whole = TokenAsk([Charge(TEN, b"%d" % number, 1) for number in range(MOST_CHARGES)], Token(b"t", bytes(16), 60))
    await asyncio.gather(*map(engine.decide, [*empty, whole]))
    assert store.batches == [128, 128, 44, 1]


async def test_a_waiter_is_told_at_its_deadline_and_a_queued_one_is_never_sent():
    store = Slow()
    engine = Engine(lambda: store, 0.05)
    began = asyncio.get_running_loop().time()
    asks = [ask(b"%d" % number) for number in range(MOST_CHARGES + 1)]  # one more than a call takes
    answers = await asyncio.gather(*map(engine.decide, asks), return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert asyncio.get_running_loop().time() - began < 1
    store.go.set()
    assert (await engine.decide(asks[-1])).standings[0].remaining == 9
    assert store.batches == [MOST_CHARGES, 1]
    assert engine.counters.unsettled == MOST_CHARGES  # those that were sent might have been charged


async def test_a_late_answer_is_counted_as_unsettled():
    class Late(MemoryStore):
        """Charges at once and says so late, and does not notice being given up."""

        async def decide(self, asks):
            numbers = self.decide_now(asks)
            await asyncio.shield(asyncio.sleep(0.2))
            return numbers

    engine = Engine(Late, 0.05)
    with pytest.raises(StoreUnavailable):
        await engine.decide(ask())
    await asyncio.sleep(0.1)
    assert engine.counters.unsettled == 1


async def test_an_error_in_a_shared_call_reaches_every_waiter():
    store = Slow()
    store.go.set()
    store.error = StoreUnavailable("gone")
    engine = Engine(lambda: store)
    answers = await asyncio.gather(*(engine.decide(ask()) for _ in range(9)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["gone"] * 9
    store.error = None
    assert (await engine.decide(ask())).allowed  # and the next call is made as if nothing had been


async def test_a_bug_in_a_store_reaches_every_waiter_too():
    store = Slow()
    store.go.set()
    store.error = ZeroDivisionError("bug")
    engine = Engine(lambda: store)
    handler_saw = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: handler_saw.append(context))
    answers = await asyncio.gather(*(engine.decide(ask()) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    store.error = None
    assert (await engine.decide(ask())).allowed
    gc.collect()


async def test_a_cancelled_waiter_leaves_the_others_their_answers():
    store = Slow()
    engine = Engine(lambda: store, 5)
    waiting = [asyncio.ensure_future(_wait(engine, b"%d" % number)) for number in range(5)]
    await asyncio.sleep(0.01)
    waiting[2].cancel()
    store.go.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert all(answers[number].allowed for number in (0, 1, 3, 4))


async def _wait(engine, key):
    return await engine.decide(ask(key))


async def test_who_left_before_the_call_is_not_charged():
    store = Slow()
    engine = Engine(lambda: store, 5)
    first = engine.decide(ask(b"other"))
    await asyncio.sleep(0.01)
    left = engine.decide(ask())
    left.cancel()
    store.go.set()
    await first
    assert (await engine.decide(ask())).standings[0].remaining == 9


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_answers_never_reach_the_wrong_caller(place):
    """300 callers with limits of their own, a third of whom leave while the call is under way."""
    engine = Engine(opener(place.url, timeout_s=5), 5)
    limits = [Limit(amount=number + 1, window_s=60) for number in range(300)]

    async def one(number):
        decision = await engine.decide(ask(key(f"c{number}"), 1, limits[number]))
        assert decision.standings[0].limit is limits[number]
        assert decision.standings[0].remaining == number
        return True

    for _ in range(3):
        await engine.aclose()
        place.tell("FLUSHALL")
        tasks = [asyncio.ensure_future(one(number)) for number in range(300)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(answers[number] is True for number in range(300) if number % 3)
    await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_each_event_loop_has_its_own_connection_and_leaves_none(place):
    engine = Engine(opener(place.url, timeout_s=5), 5)
    before = [len(text.splitlines()) for text in place.tell("CLIENT", "LIST", "TYPE", "normal")]
    for number in range(5):
        decision = asyncio.run(_wait(engine, key("loops")))
        assert decision.standings[0].remaining == 9 - number
    gc.collect()
    assert [len(text.splitlines()) for text in place.tell("CLIENT", "LIST", "TYPE", "normal")] == before
    assert not engine._lanes


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_script_flush_under_load_is_not_noticed(place):
    """The one replay: NOSCRIPT. 3,000 decisions on limits of 1,000 in all while the scripts are flushed 50 times."""
    engine = Engine(opener(place.url, timeout_s=5), 5)
    (limit,) = Limit.parse("250/hour")
    names = [key(f"k{number}") for number in range(4)]
    admitted = 0
    for _ in range(50):
        place.tell("SCRIPT", "FLUSH")
        decisions = await asyncio.gather(*(engine.decide(ask(names[number % 4], 1, limit)) for number in range(60)))
        admitted += sum(decision.allowed for decision in decisions)
    assert admitted == 1000
    assert engine.counters.unsettled == 0
    await engine.aclose()


async def test_a_stalled_redis_is_told_within_the_deadline_and_a_woken_one_goes_on():
    import os
    import signal

    server = RedisServer()
    try:
        engine = Engine(opener(server.url), 0.2)
        assert (await engine.decide(ask())).allowed
        os.kill(server.pid, signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await asyncio.gather(*(engine.decide(ask()) for _ in range(5)), return_exceptions=True)
        took = loop.time() - began
        os.kill(server.pid, signal.SIGCONT)
        assert all(isinstance(answer, StoreUnavailable) for answer in answers)
        assert took < 0.2 + 1.0  # generous: the machine may be busy, but 5 s of redis-py's default it is not
        await asyncio.sleep(0.1)
        assert (await engine.decide(ask(b"new"))).allowed
        await engine.aclose()
    finally:
        server.close()


async def test_a_redis_that_is_not_there_is_a_plain_error():
    engine = Engine(opener("redis://127.0.0.1:1/0"))
    with pytest.raises(StoreUnavailable, match="Redis is away"):
        await engine.decide(ask())
    with pytest.raises(StoreUnavailable):
        await engine.ping()


async def test_a_lost_reply_is_never_sent_again(redis_server: RedisServer):
    """A proxy that passes the call on and cuts the reply: charged once, told once, counted."""
    with FaultProxy(redis_server.socket) as proxy:
        engine = Engine(opener(f"redis://127.0.0.1:{proxy.port}", timeout_s=5), 5)
        assert (await engine.decide(ask())).standings[0].remaining == 9
        proxy.lost = 1.0
        with pytest.raises(StoreUnavailable):
            await engine.decide(ask())
        proxy.lost = 0.0
        assert (await engine.decide(ask())).standings[0].remaining == 7  # the lost one was charged once, not twice
        assert engine.counters.unsettled == 1
        await engine.aclose()


# ── the contract of every store ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("url", ["memory://", "fakeredis://"])
async def test_a_store_of_this_process_admits_exactly_the_limit(url, algorithm):
    await admit_exactly_the_limit([Engine(opener(url), 5)], algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_every_redis_admits_exactly_the_limit(place, algorithm):
    """Asked by two engines at once."""
    await admit_exactly_the_limit([Engine(opener(place.url, timeout_s=5), 5) for _ in range(2)], algorithm)


async def admit_exactly_the_limit(engines, algorithm):
    """200 asks each for 8 counters, of which a Cluster has some on every server; 50 admitted each."""
    (limit,) = Limit.parse("50/year", algorithm=algorithm)
    names = [key(f"c{number}") for number in range(8)]

    async def admitted(name):
        answers = [engine.decide(ask(name, 1, limit)) for engine in engines for _ in range(200 // len(engines))]
        return sum(decision.allowed for decision in await asyncio.gather(*answers))

    assert await asyncio.gather(*map(admitted, names)) == [50] * 8
    for engine in engines:
        assert engine.counters.unsettled == engine.counters.failures == 0
        await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_all_limits_pass_or_none_is_charged_even_where_they_are_on_several_servers(place):
    """Six identities, one of which has nothing left: who asks for all of them is refused, and the others stay whole."""
    engine = Engine(opener(place.url, timeout_s=5), 5)
    charges = [Charge(TEN, key(f"user{number}"), 1) for number in range(6)]
    allowed = await engine.decide(Ask(charges))
    assert allowed.allowed and [standing.remaining for standing in allowed.standings] == [9] * 6
    assert (await engine.decide(ask(key("user4"), 9))).allowed
    refused = await engine.decide(Ask(charges))
    assert not refused.allowed
    assert [standing.limit.name for standing in refused.exceeded] == ["10/minute"]
    assert [standing.remaining for standing in refused.standings] == [9, 9, 9, 9, 0, 9]
    look = await engine.decide(Ask(charges, LOOK))
    assert [standing.remaining for standing in look.standings] == [9, 9, 9, 9, 0, 9]
    await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_what_was_charged_is_given_back_wherever_it_is(place):
    """All of a decision's limits, and one of them alone, at the instant of the charge."""
    engine = Engine(opener(place.url, timeout_s=5), 5)
    charges = [Charge(TEN, key(f"user{number}"), 4) for number in range(4)]
    decision = await engine.decide(Ask(charges))
    back = await engine.decide(Ask(charges, GIVE_BACK, decision.at_us))
    assert [standing.remaining for standing in back.standings] == [10] * 4
    decision = await engine.decide(Ask(charges))
    for charge in charges:
        back = await engine.decide(Ask([charge], GIVE_BACK, decision.at_us))
        assert back.standings[0].remaining == 10
    debit = await engine.decide(Ask([charge._replace(cost=12) for charge in charges], DEBIT))
    assert [standing.remaining for standing in debit.standings] == [0] * 4
    await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_many_that_span_servers_never_exceed_a_limit(place):
    """300 asks of one shared limit of 100 and one of 5 of each of 30 users: none is over, and all of it is used.

    The smallest limit is charged first, whatever their order, so no two asks hold what the other one wants.
    """
    engine = Engine(opener(place.url, timeout_s=5), 5)
    hundred, five = Limit.parse("100/year;5/year")
    everybody = Charge(hundred, key("everybody"), 1)
    users = [Charge(five, key(f"user{number}"), 1) for number in range(30)]
    orders = [Ask([everybody, user] if number % 2 else [user, everybody]) for number in range(10) for user in users]
    admitted = 0
    for _ in range(2):
        admitted += sum(decision.allowed for decision in await asyncio.gather(*map(engine.decide, orders)))
    look = await engine.decide(Ask([everybody, *users], LOOK))
    assert admitted == 100
    assert look.standings[0].remaining == 0
    assert sum(5 - standing.remaining for standing in look.standings[1:]) == 100
    assert engine.counters.unsettled == 0
    await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_a_token_is_charged_once_wherever_its_record_is(place):
    """Its owner's slot is not that of the counters, which are on several servers; 20 ask at once, then one again."""
    engine = Engine(opener(place.url, timeout_s=5), 5)
    charges = [Charge(TEN, key(f"user{number}"), 2) for number in range(3)]

    def once(text="t", content=b"", charges=charges):
        return TokenAsk(charges, token(text, content, owner="shop"))

    decisions = await asyncio.gather(*(engine.decide(once()) for _ in range(20)))
    assert {decision.allowed for decision in decisions} == {True}
    again = await engine.decide(once())
    assert again.replayed and [standing.remaining for standing in again.standings] == [8] * 3
    look = await engine.decide(Ask(charges, LOOK))
    assert [standing.remaining for standing in look.standings] == [8] * 3

    refused = once("no", charges=[charge._replace(cost=9) for charge in reversed(charges)])
    assert (await engine.decide(ask(key("user0"), 8))).allowed  # the last one has nothing left, the others have 8
    for _ in range(3):
        assert not (await engine.decide(refused)).allowed
    look = await engine.decide(Ask(charges, LOOK))
    assert [standing.remaining for standing in look.standings] == [0, 8, 8]

    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        await engine.decide(once(content=b"other"))
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        await engine.decide(once(content=b"other", charges=[Charge(TEN, key("somebody else"), 1)]))
    await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_every_store_says_what_it_is_and_forgets_an_identity_or_all(place):
    engine = Engine(opener(place.url, timeout_s=5), 5)
    for name in ("a", "b", "c", "d"):
        await engine.decide(ask(key(name)))
    assert await engine.ping()
    assert await engine.store().doubts() == []
    assert await engine.store().forget("", "a") == 1
    assert (await engine.decide(ask(key("a")))).standings[0].remaining == 9
    assert (await engine.decide(ask(key("b")))).standings[0].remaining == 8
    assert await engine.store().forget("", None) == 4
    assert place.tell("DBSIZE") == [0] * len(place.servers())
    await engine.aclose()


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_every_key_of_every_store_expires(place):
    engine = Engine(opener(place.url, timeout_s=5), 5)
    charges = [Charge(TEN, key(f"user{number}"), 2) for number in range(3)]
    await engine.decide(TokenAsk(charges, token("t", b"", owner="shop", keep_s=60)))
    await engine.decide(Ask(charges))
    found = 0
    for server in place.servers():
        database = int(place.name == "tls")
        for name in tell(server, "KEYS", "*", password=place.password, database=database):
            found += 1
            assert 0 < tell(server, "PTTL", name, password=place.password, database=database) <= 121_000, name
            assert len(name) <= 128
    assert found >= 4
    await engine.aclose()

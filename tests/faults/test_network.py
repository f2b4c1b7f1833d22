"""What a network does to calls: replies that get lost, callers that leave, scripts that are gone."""

import asyncio
import random

import pytest
from loading import Load, ask, counted, engine_of
from servers import RedisServer, needs
from topologies import PLACES

from bench.proxy import FaultProxy
from bench.redises import becomes, tell
from service.errors import StoreUnavailable
from service.limits import outage
from service.limits.limit import Limit

(LIMIT,) = Limit.parse("1000/year")


@pytest.fixture
def proxy(redis_server):
    with FaultProxy(redis_server.socket, seed=7) as proxy:
        yield proxy


def url(proxy):
    return f"redis://127.0.0.1:{proxy.port}"


@pytest.mark.parametrize("how", ["cut", "swallowed"])
async def test_when_replies_are_lost_each_decision_is_charged_at_most_once(
    proxy, redis_server, how, monkeypatch, record_property
):
    """3,000 decisions, each on a counter of its own, while replies of many never arrive."""
    monkeypatch.setattr(outage, "OPENED_BY", 1_000_000)  # the breaker would spare most of them the test
    engine = engine_of(url(proxy), 0.1 if how == "swallowed" else 1)
    names = [f"user{number}" for number in range(3000)]
    dice = random.Random(3)
    told = []
    proxy.lost = 0.15 if how == "cut" else 0
    for start in range(0, len(names), 50):
        proxy.deaf = how == "swallowed" and dice.random() < 0.33
        some = names[start : start + 50]
        told += await asyncio.gather(*(engine.decide(ask(name, LIMIT)) for name in some), return_exceptions=True)
    failed = [answer for answer in told if isinstance(answer, Exception)]
    charged = await counted(redis_server.url, names, LIMIT)
    record_property(
        "figure",
        f"{how}: {proxy.swallowed} replies lost; of 3,000 decisions {len(failed)} were not told, "
        f"{sum(charged)} charged, {sum(count > 1 for count in charged)} more than once",
    )
    assert {type(answer) for answer in failed} == {StoreUnavailable}
    assert proxy.swallowed >= 10
    assert max(charged) == 1, "a charge was sent twice"
    for name, answer, count in zip(names, told, charged, strict=True):
        assert isinstance(answer, Exception) or (answer.allowed and count == 1), name
    lost = sum(count for answer, count in zip(told, charged, strict=True) if isinstance(answer, Exception))
    assert lost <= engine.counters.unsettled, "charged, not admitted, and not counted as such"
    await engine.aclose()


async def test_when_callers_leave_in_the_middle_no_answer_reaches_another_and_no_connection_leaks(
    proxy, redis_server, record_property
):
    """3,000 callers with limits of their own, 30 % of whom leave while they wait, on a network of 4 ms a way."""
    proxy.delay_s = 0.004
    engine = engine_of(url(proxy), 5)
    dice = random.Random(5)
    wrong = []

    async def call(number):
        limit = Limit(amount=number + 1, window_s=3600)
        decision = await engine.decide(ask(f"user{number}", limit))
        if decision.standings[0].limit is not limit or decision.standings[0].remaining != number:
            wrong.append(number)

    async def one(number):
        await asyncio.sleep(dice.uniform(0, 1))
        task = asyncio.create_task(call(number))
        if dice.random() < 0.3:
            await asyncio.sleep(dice.uniform(0, 0.02))
            task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    answers = [answer for (answer,) in await asyncio.gather(*map(one, range(3000)))]
    left = sum(isinstance(answer, asyncio.CancelledError) for answer in answers)
    record_property("figure", f"{left} of 3,000 left; wrong answers {len(wrong)}; connections {proxy.connections}")
    assert left > 300
    assert [answer for answer in answers if answer is not None and not isinstance(answer, asyncio.CancelledError)] == []
    assert wrong == []
    assert proxy.connections == 1
    await engine.aclose()
    await asyncio.to_thread(becomes, lambda: not proxy.open, "all connections are closed", 5)


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_scripts_that_are_flushed_every_100_ms_are_noticed_by_nobody(place, record_property):
    """Two workers, 20 identities of 30 units each; the script is gone ten times a second."""
    (thirty,) = Limit.parse("30/year")
    names = [f"user{number}" for number in range(20)]
    flushes = 0
    async with Load([engine_of(place.url, 10) for _ in range(2)], lambda name: ask(name, thirty), names) as load:
        while flushes < 10 or sum(load.admitted.values()) < 600:
            await asyncio.to_thread(place.tell, "SCRIPT", "FLUSH")
            flushes += 1
            await asyncio.sleep(0.1)
            assert flushes < 300
        unsettled = [engine.counters.unsettled for engine in load.engines]
    record_property("figure", f"{place.name}: {flushes} flushes, {len(load.errors)} errors, 600 of 600 admitted")
    assert load.errors == []
    assert load.admitted == dict.fromkeys(names, 30)
    assert unsettled == [0, 0]


async def test_a_primary_that_has_become_a_replica_is_connected_to_anew(monkeypatch):
    """Behind one name there may be another server by now, as with a managed Redis."""
    monkeypatch.setattr(outage, "OPENED_BY", 1_000)
    needs("redis-server")
    with RedisServer() as server, FaultProxy(server.socket) as proxy:
        engine = engine_of(url(proxy))
        assert (await engine.decide(ask("a", LIMIT))).allowed
        tell(server, "REPLICAOF", "127.0.0.1", 1)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await engine.decide(ask("a", LIMIT))
        tell(server, "REPLICAOF", "NO", "ONE")
        assert (await engine.decide(ask("a", LIMIT))).allowed
        assert proxy.connections == 3
        await engine.aclose()


@pytest.mark.parametrize("harm", ["refuse", "cut"])
async def test_a_network_that_breaks_costs_no_more_than_what_was_under_way(proxy, redis_server, monkeypatch, harm):
    """Connections are refused for half a second, or reset five times: used again as soon as they can be."""
    monkeypatch.setattr(outage, "PROBE_S", (0.05, 0.1))
    async with Load([engine_of(url(proxy))], lambda name: ask(name, LIMIT), ["a", "b"], askers=8) as load:
        await load.until(lambda: sum(load.admitted.values()) > 20)
        for _ in range(5):
            getattr(proxy, harm)()
            await asyncio.sleep(0.1)
        proxy.accept()
        await load.until(lambda: load.errors)
        await load.quiet(0.5, within_s=10)
        unsettled = load.engines[0].counters.unsettled
    charged = sum(await counted(redis_server.url, ["a", "b"], LIMIT))
    assert 0 <= charged - sum(load.admitted.values()) <= unsettled
    assert {error.reason for _, _, error in load.errors} <= {"connection", "timeout"}

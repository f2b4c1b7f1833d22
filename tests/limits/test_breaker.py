"""The breaker: who asks a store that is away, and who does not. On real servers: test_outages."""

import asyncio
import time

import pytest

from service.errors import StoreUnavailable
from service.limits import keys, outage
from service.limits.decision import LOOK, Ask, Charge
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.limit import Limit
from service.limits.outage import Breaker
from service.limits.stores.memory import MemoryStore

(TEN,) = Limit.parse("10/minute")


def ask(key=b"k", kind=0):
    return Ask([Charge(TEN, key, 1)], kind)


class Away(MemoryStore):
    """A store that fails, or hangs, as it is told.

    Attributes:
        asked: The keys of each call.
        error: What it raises; None = it answers.
    """

    def __init__(self, error=None):
        super().__init__()
        self.asked = []
        self.error = error
        self.hangs = False
        self.go = asyncio.Event()
        self.go.set()
        self.under_way = 0

    async def decide(self, asks):
        self.asked.append([name for ask in asks for name in ask.names])
        self.under_way += 1
        assert self.under_way == 1, "one call at a time"
        try:
            await self.go.wait()
            if self.hangs:
                await asyncio.sleep(60)
            if self.error is not None:
                raise self.error
            return await super().decide(asks)
        finally:
            self.under_way -= 1

    async def ping(self):
        self.asked.append([b"ping"])
        if self.error is not None:
            raise self.error
        return "away"

    @property
    def probes(self):
        return sum(b"probe" in name for names in self.asked for name in names)


def away(reason="connection", maybe_done=False):
    return StoreUnavailable("gone", reason=reason, maybe_done=maybe_done)


@pytest.fixture
def quick(monkeypatch):
    """Probes every 20 to 30 ms."""
    monkeypatch.setattr(outage, "PROBE_S", (0.02, 0.03))


async def becomes(true, within_s=5.0):
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_two_failures_in_a_row_open_it_and_one_answer_closes_it():
    breaker = Breaker()
    assert not breaker.failed(1.0)
    assert not breaker.answered()  # it was closed
    assert not breaker.failed(2.0)
    assert breaker.failed(3.0)
    assert (breaker.open, breaker.since_s) == (True, 3.0)
    assert not breaker.failed(4.0)  # it is open already
    assert breaker.since_s == 3.0
    assert breaker.answered()
    assert not breaker.open


async def test_who_stops_asking_counts_its_outage_as_over():
    """Else `/health` would say for ever that a server which is no part of a Cluster any more is away."""
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for number in range(3):
        await engine.decide(ask(b"%d" % number))
    assert (engine.counters.opened, engine.counters.closed) == (1, 0)
    await engine.aclose()
    assert (engine.counters.opened, engine.counters.closed) == (1, 1)


def test_a_worker_probes_at_most_once_a_second_and_not_in_step_with_others():
    least_s, most_s = outage.PROBE_S
    assert 1 <= least_s < most_s <= 1.5


async def test_while_it_is_open_no_ask_reaches_the_store():
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(200):
        assert (await engine.decide(ask(b"%d" % _))).degraded
    assert store.asked == [[b"0"], [b"1"]]
    counters = engine.counters
    assert (counters.opened, counters.closed, counters.failures, counters.unsettled) == (1, 0, 2, 0)
    assert counters.degraded["local"] == 200
    await engine.aclose()


async def test_an_answer_while_it_is_open_takes_less_than_5_ms():
    """Median of many: the machine may be busy."""
    store = Away(away())
    engine = Engine(lambda: store, 5)
    took = []
    for number in range(201):
        began = time.perf_counter()
        await engine.decide(ask(b"%d" % number))
        took.append(time.perf_counter() - began)
    assert sorted(took)[100] < 0.005
    await engine.aclose()


async def test_those_who_queued_when_it_opened_are_answered_at_once():
    store = Away(away(maybe_done=True))
    store.go.clear()
    engine = Engine(lambda: store, 30)
    first = engine.decide(ask(b"first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [engine.decide(ask(b"%d" % number)) for number in range(300)]  # three calls' worth
    store.go.set()
    decisions = await asyncio.gather(first, *rest)
    assert all(decision.degraded for decision in decisions)
    assert [len(names) for names in store.asked] == [1, 128]
    assert engine.counters.unsettled == 1 + 128  # what was sent and might have been charged
    await engine.aclose()


async def test_a_user_is_never_the_probe_and_the_first_answered_probe_closes_it(quick):
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(2):
        await engine.decide(ask())
    await becomes(lambda: store.probes >= 3)
    assert (await engine.decide(ask())).degraded
    assert [names for names in store.asked if names == [b"k"]] == [[b"k"]] * 2
    store.error = None
    await becomes(lambda: engine.counters.closed == 1)
    calls, probes = len(store.asked), store.probes
    assert not (await engine.decide(ask())).degraded
    assert (len(store.asked), store.probes) == (calls + 1, probes)
    assert engine.counters.opened == 1
    await asyncio.sleep(0.1)
    assert store.probes == probes, "a closed breaker does not probe"
    await engine.aclose()


async def test_a_probe_writes_where_the_last_call_failed(quick):
    """In a Cluster on the same server; a look would not notice a server that is full, or a replica."""
    key = keys.spell("", "alice", "chat", TEN.spelling)
    assert keys.probe(key) == b"oq:{alice}:probe:1000000000/1s/fixed"
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(2):
        await engine.decide(ask(key))
    await becomes(lambda: store.probes)
    store.error = None
    await becomes(lambda: engine.counters.closed)
    assert store.kept(keys.probe(key)) is not None
    await engine.aclose()


async def test_a_single_failure_is_a_single_degraded_answer():
    store = Away(away())
    engine = Engine(lambda: store, 5)
    assert (await engine.decide(ask())).degraded
    store.error = None
    for _ in range(3):
        assert not (await engine.decide(ask())).degraded
        store.error = away()
        assert (await engine.decide(ask())).degraded
        store.error = None
    assert engine.counters.opened == 0
    await engine.aclose()


async def test_a_server_that_answers_something_else_is_no_outage():
    """A key of another kind, say: those who ask for it are degraded, and all others are not."""
    store = Away(away("refused", maybe_done=True))
    engine = Engine(lambda: store, 5)
    for _ in range(5):
        assert (await engine.decide(ask())).degraded
    assert len(store.asked) == 5
    assert engine.counters.opened == 0
    await engine.aclose()


@pytest.mark.parametrize(
    ("error", "unsettled"),
    [
        (away("connection", maybe_done=True), 2),
        (away("connection"), 0),
        (away("readonly"), 0),
        (away("timeout", True), 2),
    ],
)
async def test_only_what_may_have_been_charged_is_unsettled(error, unsettled):
    store = Away(error)
    engine = Engine(lambda: store, 5)
    for number in range(9):
        await engine.decide(ask(b"%d" % number))
    await engine.decide(ask(kind=LOOK))
    assert engine.counters.unsettled == unsettled
    await engine.aclose()


async def test_a_readiness_check_does_not_ask_a_store_that_is_known_to_be_away(quick):
    """However often it comes: connections are for one probe a second."""
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(50):
        with pytest.raises(StoreUnavailable):
            await engine.ping()
    assert store.asked.count([b"ping"]) == 2
    assert (await engine.decide(ask())).degraded
    store.error = None
    await becomes(lambda: engine.counters.closed)
    assert await engine.ping() == "away"
    await engine.aclose()


async def test_closing_the_engine_ends_its_probes(quick):
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(2):
        await engine.decide(ask())
    store.hangs = True
    await becomes(lambda: store.probes)
    await engine.aclose()
    probes = store.probes
    await asyncio.sleep(0.1)
    assert store.probes == probes
    assert len(asyncio.all_tasks()) == 1


async def test_each_change_is_one_line_in_the_log(quick, caplog):
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(50):
        await engine.decide(ask())
    await becomes(lambda: store.probes > 2)
    store.error = None
    await becomes(lambda: engine.counters.closed)
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said.count("outage_began") == said.count("outage_over") == 1
    assert len(said) <= 3  # and perhaps the first failure
    assert "reason=connection" in caplog.text
    await engine.aclose()


@pytest.mark.parametrize("reason", ["authentication", "permission"])
async def test_a_redis_that_does_not_let_us_in_is_said_loudly(quick, caplog, reason):
    """It does not pass by itself; also where it begins in the middle of another outage."""
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(2):
        await engine.decide(ask())
    store.error = away(reason)
    await becomes(lambda: any(record.levelname == "ERROR" for record in caplog.records))
    await becomes(lambda: store.probes > 5)
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"reason={reason}" in line.getMessage()
    assert "mend REDIS_URL or the ACL" in line.getMessage()
    await engine.aclose()


async def test_a_bug_in_a_store_does_not_end_the_probes(quick):
    store = Away(away())
    engine = Engine(lambda: store, 5)
    for _ in range(2):
        await engine.decide(ask())
    store.error = ZeroDivisionError("bug")
    await becomes(lambda: store.probes > 2)
    store.error = None
    await becomes(lambda: engine.counters.closed)
    await engine.aclose()


async def test_a_bug_in_what_stands_in_is_a_503_and_no_hang(monkeypatch):
    engine = Engine(lambda: Away(away()), 5, fallback=Fallback())
    monkeypatch.setattr(engine.fallback, "policy", lambda ask: 1 / 0)
    with pytest.raises(StoreUnavailable):
        await engine.decide(ask())
    await engine.aclose()

"""The deny cache: what may be repeated, what it says, and for how long. On a real Redis with two processes, too."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from driving import START_US, Clock
from hypothesis import assume, given
from hypothesis import strategies as st

from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, DEBIT, GIVE_BACK, LOOK, Ask, Charge, LeaseAsk, TokenAsk, read
from service.limits.denials import HELD_S, MOST_KEPT, Denials
from service.limits.engine import Engine
from service.limits.limit import Limit
from service.limits.stores import opener
from service.limits.stores.memory import MemoryStore
from service.limits.token import token

US = 1_000_000
SLACK_US = 2
"""Of a test's clock in float seconds."""


def limit(text="2/minute", **how):
    return Limit.parse(text, **how)[0]


def ask(*limits, cost=1, kind=CHARGE, key=b"k"):
    return Ask([Charge(one, key + b"%d" % number, cost) for number, one in enumerate(limits or [limit()])], kind)


class Server:
    """A store with a clock, asked at instants of a test."""

    def __init__(self):
        self.clock = Clock()
        self.store = MemoryStore(self.clock)

    @property
    def now_s(self):
        return (self.clock.now_us - START_US) / US

    def decide(self, question):
        numbers = self.store.decide_now([question])
        return read(question, numbers[0], numbers, 1)


def refused(server, question, spend=None):
    """Spend until the question is refused."""
    while (decision := server.decide(spend or question)).allowed:
        pass
    return server.decide(question) if spend else decision


def taught(server, question, spend=None):
    denials = Denials()
    denials.learn(question, refused(server, question, spend), server.now_s, server.now_s)
    return denials


# ── how long ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_is_repeated_for_the_staleness_bound_and_no_longer():
    server = Server()
    denials = taught(server, ask())
    assert denials.find(ask(), HELD_S - 0.001) is not None
    assert denials.find(ask(), HELD_S) is None


def test_the_bound_is_well_below_the_shortest_retry_after():
    """Whoever waits as told is answered by the store; and a flood on one key stays far below 100 calls a second."""
    assert 1 / 100 < HELD_S <= 0.2


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_nothing_is_refused_from_memory_once_it_could_pass(algorithm):
    """A wait shorter than the bound: 50 units a second are back, or begin to be, before it is over."""
    server = Server()
    question = ask(limit("50/second", algorithm=algorithm))
    denials = taught(server, question)
    wait_us = server.decide(question).retry_us
    until_s = min(wait_us / US, HELD_S)
    assert denials.find(question, until_s - 0.0001) is not None
    assert denials.find(question, until_s) is None


def test_the_bound_counts_from_when_the_call_was_sent():
    """The answer may have been long on its way."""
    server = Server()
    denials = Denials()
    denials.learn(ask(), refused(server, ask()), 10.0, 10.19)
    assert denials.find(ask(), 10.195) is not None
    assert denials.find(ask(), 10.2) is None


def test_what_it_says_counts_from_when_the_answer_came():
    """Never a wait that is too short, however long the answer was on its way."""
    server = Server()
    denials, first = Denials(), refused(server, ask())
    denials.learn(ask(), first, 10.0, 10.1)
    found = denials.find(ask(), 10.15)
    assert found.retry_us == first.retry_us - 50_000
    assert found.at_us == first.at_us + 50_000


# ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    amount=st.integers(1, 3000),
    window_s=st.sampled_from([1, 2, 60]),
    costs=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    gaps_us=st.lists(st.integers(0, 300_000), min_size=6, max_size=6),
    cost=st.integers(1, 3000),
    more=st.sampled_from([0, 0, 1, 7, 500]),
    later_us=st.tuples(st.integers(0, 100_000), st.integers(0, 99_000)),
    others=st.sampled_from([0, 0, 1, 3000]),
)
def test_an_answer_from_memory_is_as_the_store_would_give_it(
    algorithm, amount, window_s, costs, gaps_us, cost, more, later_us, others
):
    """Refused is what the store refuses, too, and no wait is too short, whatever other workers charge meanwhile."""
    server = Server()
    one = Limit(amount=amount, window_s=window_s, algorithm=algorithm)
    for spent, gap_us in zip(costs, gaps_us, strict=False):
        server.decide(ask(one, cost=min(spent, amount)))
        server.clock.now_us += gap_us
    question = ask(one, cost=min(cost, amount))
    decision = server.decide(question)
    assume(not decision.allowed)
    denials = Denials()
    denials.learn(question, decision, server.now_s, server.now_s)
    server.clock.now_us += later_us[0]
    left = server.decide(ask(one, kind=LOOK)).standings[0].remaining
    charged = min(left, others) > 0 and server.decide(ask(one, cost=min(left, others))).allowed
    server.clock.now_us += later_us[1]
    again = ask(one, cost=min(cost + more, amount))
    found = denials.find(again, server.now_s)
    truth = server.decide(again)
    known = algorithm in ("fixed-window", "gcra")
    if found is None:
        over = sum(later_us) >= (decision.retry_us if known else decision.standings[0].next_us) - SLACK_US
        assert over or (not known and (again.words != question.words or decision.standings[0].remaining))
        return
    assert not truth.allowed
    (said,), (real,) = found.standings, truth.standings
    assert (said.limit, said.cost) == (real.limit, real.cost)
    assert real.retry_us <= said.retry_us + SLACK_US
    assert said.remaining < again.charges[0].cost
    assert found.retry_after >= 1
    assert abs(found.at_us - truth.at_us) <= SLACK_US
    if charged:
        return
    assert real.reset_us <= said.reset_us + SLACK_US
    assert said.remaining <= real.remaining
    assert said.remaining < real.remaining or real.next_us <= said.next_us + SLACK_US
    if algorithm == "gcra":
        assert said.retry_us <= again.charges[0].cost * window_s * US // amount + SLACK_US
    elif algorithm == "fixed-window":
        assert said.retry_us <= real.retry_us + SLACK_US


def test_of_several_limits_those_that_pass_are_told_too():
    server = Server()
    question = ask(limit("2/minute"), limit("5/hour"))
    denials = taught(server, question)
    server.clock.forward(0.1)
    found, truth = denials.find(question, server.now_s), server.decide(question)
    assert found.standings == truth.standings
    assert [standing.limit.name for standing in found.exceeded] == ["2/minute"]


def test_a_quota_that_is_whole_again_meanwhile_is_told_so():
    server = Server()
    question = ask(limit("2/minute"), limit("50/second", algorithm="gcra"))
    denials = taught(server, question)
    server.clock.forward(0.15)
    whole = denials.find(question, server.now_s).standings[1]
    assert (whole.remaining, whole.reset_us, whole.next_us) == (50, 0, 0)


# ── what is the same question ────────────────────────────────────────────────────────────────────────────────────────

OTHERS = {
    "another identity": ask(key=b"other"),
    "a smaller cost": ask(limit("9/minute"), cost=1),
    "a look": ask(limit("9/minute"), cost=3, kind=LOOK),
    "a debit": ask(limit("9/minute"), cost=3, kind=DEBIT),
    "a give-back": ask(limit("9/minute"), cost=3, kind=GIVE_BACK),
    "another limit beside it": ask(limit("9/minute"), limit("99/hour"), cost=3),
    "a token": TokenAsk([Charge(limit("9/minute"), b"k0", 3)], token("t", b"", owner="o")),
    "a lease": LeaseAsk([Charge(limit("9/minute"), b"k0", 3)], "l"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_only_the_same_question_is_answered_from_memory(other):
    question = ask(limit("9/minute"), cost=3)
    denials = taught(Server(), question)
    assert denials.find(question, 0.01) is not None
    assert denials.find(other, 0.01) is None


NEVER = {
    "a look": ask(kind=LOOK),
    "a token": TokenAsk([Charge(limit(), b"k0", 1)], token("t", b"", owner="o")),
    "a lease": LeaseAsk([Charge(limit(algorithm="concurrency"), b"k0", 1)], "l"),
    "a limit of concurrency without a lease": ask(limit(algorithm="concurrency")),
    "concurrency among others": ask(limit(), limit(algorithm="concurrency")),
}


@pytest.mark.parametrize("question", NEVER.values(), ids=NEVER)
def test_what_may_not_be_repeated_is_not_kept(question):
    refusal = taught(Server(), ask()).kept.popitem()[1].decision
    denials = Denials()
    denials.learn(question, refusal, 0, 0)
    assert not denials.kept


@pytest.mark.parametrize(("algorithm", "told"), [("fixed-window", True), ("gcra", True), ("moving-window", False)])
def test_a_higher_cost_of_one_limit_is_refused_where_its_wait_is_known(algorithm, told):
    server = Server()
    one = limit("100/minute", algorithm=algorithm)
    denials = taught(server, ask(one, cost=30))
    found = denials.find(ask(one, cost=60), server.now_s)
    assert (found is not None) is told
    if told:  # by GCRA as if the 10 units that are there were gone: others may charge them
        assert found.retry_us == (60_000_000 if algorithm == "fixed-window" else 36_000_000)


def test_the_smallest_refused_cost_is_kept():
    server = Server()
    one = limit("10/minute")
    denials = taught(server, ask(one, cost=3), spend=ask(one, cost=1))
    denials.learn(ask(one, cost=7), server.decide(ask(one, cost=7)), 0.0, 0.0)
    assert denials.find(ask(one, cost=3), 0.01) is not None
    denials.learn(ask(one, cost=2), server.decide(ask(one, cost=2)), 0.0, 0.0)
    assert denials.find(ask(one, cost=2), 0.01) is not None


def test_memory_is_bounded():
    server = Server()
    refusal = refused(server, ask())
    denials = Denials()
    for number in range(3 * MOST_KEPT):
        denials.learn(ask(key=b"%d." % number), refusal, number / 1000, number / 1000)
        assert len(denials.kept) <= MOST_KEPT
    assert denials.find(ask(key=b"%d." % number), number / 1000) is not None, "the newest are there"


@pytest.mark.parametrize("several", [False, True])
def test_what_this_worker_charges_meanwhile_ends_what_it_knew(several):
    """A smaller cost passes, or one of the limits alone: then waits are others."""
    server = Server()
    limits = [limit("9/minute"), limit("20/hour")] if several else [limit("9/minute")]
    question, smaller = ask(*limits, cost=5), ask(limit("9/minute"), cost=1)
    other = ask(key=b"bob")
    denials = taught(server, question)
    denials.learn(other, refused(server, other), 0.0, 0.0)
    denials.changed(smaller)
    assert denials.find(question, 0.01) is None
    assert several or denials.find(other, 0.01) is not None


def test_what_comes_back_of_several_limits_ends_what_was_known_of_each():
    """Given back or settled together, refused one by one: the second no less than the first."""
    server, limits = Server(), [limit("9/minute"), limit("9/hour")]
    denials = Denials()
    alone = [Ask([Charge(one, b"k%d" % number, 5)]) for number, one in enumerate(limits)]
    for question in alone:
        denials.learn(question, refused(server, question), server.now_s, server.now_s)
    assert all(denials.find(question, 0.01) is not None for question in alone)
    denials.changed(ask(*limits, cost=5, kind=GIVE_BACK))
    assert all(denials.find(question, 0.01) is None for question in alone)


# ── in the engine ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def counting(redis_server):
    """(how many calls the server has carried out since, an engine)."""
    engine = Engine(opener(redis_server.url), 5)
    with redis_server.client() as client:

        def calls():
            return client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]

        yield calls, engine


async def test_a_flood_of_refused_requests_costs_redis_next_to_nothing(counting):
    """A tenth of what is promised: 10,000 refused requests on one key, 50 at a time."""
    calls, engine = counting
    question = ask(limit("10/hour"), key=b"flood")
    for _ in range(10):
        assert (await engine.decide(question)).allowed
    before, began = calls(), asyncio.get_running_loop().time()
    for _ in range(200):
        decisions = await asyncio.gather(*(engine.decide(ask(limit("10/hour"), key=b"flood")) for _ in range(50)))
        assert not any(decision.allowed for decision in decisions)
        assert all(decision.retry_after >= 3500 for decision in decisions)
        await asyncio.sleep(0)
    took_s = asyncio.get_running_loop().time() - began
    asked = calls() - before
    assert asked <= 5 * took_s + 2
    assert engine.counters.repeated + asked >= 10_000 - 50 * asked
    await engine.aclose()


async def test_what_comes_back_in_this_worker_passes_in_it_at_once(counting):
    """A refund, and a reset."""
    _, engine = counting
    question = ask(limit("1/hour"), key=b"oq:{alice}:")
    first = await engine.decide(question)
    for undo in (
        lambda: engine.decide(Ask(question.charges, GIVE_BACK, first.at_us)),
        lambda: engine.forget("", "alice"),
    ):
        assert not (await engine.decide(question)).allowed
        repeated = engine.counters.repeated
        assert not (await engine.decide(question)).allowed
        assert engine.counters.repeated == repeated + 1
        await undo()
        assert (await engine.decide(question)).allowed
    await engine.aclose()


def test_limits_in_memory_and_on_a_clock_of_a_test_are_always_asked():
    assert not MemoryStore().far
    assert not opener("fakeredis://")().far
    assert opener("redis://127.0.0.1:1")().far


FLOODING = """
import asyncio, sys, time
from service.limits.decision import Ask, Charge
from service.limits.engine import Engine
from service.limits.limit import Limit
from service.limits.stores import opener

async def main(url):
    engine = Engine(opener(url), 5)
    limit, key = Limit.parse("1/hour")[0], b"oq:{alice}:"
    refused = repeated = 0
    while True:
        decision = await engine.decide(Ask([Charge(limit, key, 1)]))
        if not decision.allowed and engine.counters.repeated > repeated:
            repeated = engine.counters.repeated
            refused += 1
            if refused == 50:
                print("refused from memory", flush=True)
        elif decision.allowed and refused >= 50:
            print(time.time(), flush=True)
            break
        await asyncio.sleep(0.001)
    await engine.aclose()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["reset", "refund", "by hand"])
async def test_another_process_hears_of_what_came_back_within_the_bound(redis_server, how):
    """By hand: somebody deletes the key in redis-cli, and announces nothing."""
    import time

    engine = Engine(opener(redis_server.url), 5)
    question = Ask([Charge(limit("1/hour"), b"oq:{alice}:", 1)])
    first = await engine.decide(question)
    flood = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOODING, redis_server.url, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    )
    assert flood.stdout is not None
    assert b"refused" in await asyncio.wait_for(flood.stdout.readline(), 30)
    began = time.time()
    if how == "reset":
        assert await engine.forget("", "alice") == 1
    elif how == "refund":
        await engine.decide(Ask(question.charges, GIVE_BACK, first.at_us))
    else:
        with redis_server.client() as client:
            client.delete(b"oq:{alice}:")
    admitted = float(await asyncio.wait_for(flood.stdout.readline(), 30))
    await flood.wait()
    assert admitted - began < 0.2 + 1.0, "with a second's grace for a busy machine"
    await engine.aclose()

"""Several servers: each has a lane and a breaker of its own; an ask that spans them is charged whole or not at all."""

import asyncio
import contextlib

import pytest
from driving import Wire, gated
from fastapi import FastAPI, Request

from service.errors import AlreadySettled, InvalidInput, NotHeld, StoreUnavailable
from service.limits import Limiter, keys, outage, reservation
from service.limits.decision import CHARGE, DEBIT, GIVE_BACK, LOOK, RENEW, Ask, Charge, LeaseAsk, TokenAsk
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.held import Held, fresh, taken
from service.limits.limit import Limit
from service.limits.share import Place
from service.limits.spread import Moment
from service.limits.stores.contract import ELSEWHERE
from service.limits.stores.memory import MemoryStore
from service.limits.token import token

FIVE, TEN = Limit.parse("5/hour;10/hour")
SERVERS = ("a", "b", "c")


class Server(MemoryStore):
    """One server of the fake Cluster; what it does is said by its attributes.

    Attributes:
        error: What it says instead of an answer; None = it answers.
        go: Cleared, it hangs.
        asked: The kinds of what it was asked, and by how many calls.
        moved: Keys it says it does not have, so many times each.
        errors: Keys it does not decide, and what it says of each.
    """

    def __init__(self, clock):
        super().__init__(clock)
        self.error = None
        self.go = asyncio.Event()
        self.go.set()
        self.asked = []
        self.moved = {}
        self.errors = {}
        self.late = False

    async def answers(self, asks):
        self.asked.append([ask.kind for ask in asks])
        if self.late:
            numbers = [self.decide_now([ask]) for ask in asks]
        await self.go.wait()
        if self.error is not None:
            raise self.error
        found = []
        for index, ask in enumerate(asks):
            if ask.names[0] in self.errors:
                found.append(self.errors[ask.names[0]])
            elif self.moved.get(ask.names[0], 0):
                self.moved[ask.names[0]] -= 1
                found.append(ELSEWHERE)
            else:
                found.append(((numbers[index] if self.late else self.decide_now([ask])), 1))
        return found


class FakeCluster:
    """Identities begin with the name of the server that has them: "b7". The clocks of the servers differ by an hour."""

    why = "Redis is away: nobody says where slots are"

    def __init__(self):
        self.servers = {name: Server(self._clock(number)) for number, name in enumerate(SERVERS)}
        self.slots = {number: self.servers[name] for number, name in enumerate(SERVERS)}
        self.next = None
        self.refreshed = 0
        self.closed = False

    @staticmethod
    def _clock(number):
        return lambda: 1_790_000_000_000_000 + number * 3_600_000_000 - 1_800_000_000

    def slot(self, key):
        return SERVERS.index(key[key.index(b"{") + 1 :][:1].decode())

    def shard(self, slot):
        return self.slots.get(slot)

    def shards(self):
        return list(self.slots.values())

    def refresh(self):
        self.refreshed += 1

        async def hear():
            await asyncio.sleep(0.001)
            if self.next is not None:
                self.slots = self.next

        return hear()

    async def ping(self):
        return "three"

    async def doubts(self):
        return []

    async def forget(self, prefix, identity):
        return sum(server.forget_now(prefix, identity) for server in self.servers.values())

    async def board(self, key, after, message, keep_ms, most):
        return await self.servers["a"].board(key, after, message, keep_ms, most)

    async def aclose(self):
        self.closed = True


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
async def engine(cluster):
    """It says so when no server decides."""
    engine = Engine(lambda: cluster, 0.5, fallback=Fallback("deny"))
    yield engine
    await engine.aclose()
    assert cluster.closed


def key(identity, limit=TEN):
    return keys.spell("", identity, "spread", limit.spelling)


def ask(*identities, cost=1, limit=TEN, kind=CHARGE, at_us=0):
    return Ask([Charge(limit, key(identity, limit), cost) for identity in identities], kind, at_us)


async def left(engine, *identities, limit=TEN):
    decision = await engine.decide(ask(*identities, limit=limit, kind=LOOK))
    return [standing.remaining for standing in decision.standings]


# ── one slot ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_hangs_holds_up_nobody_but_its_own(engine, cluster):
    cluster.servers["b"].go.clear()
    hung = engine.decide(ask("b1"))
    for _ in range(5):
        decisions = await asyncio.wait_for(asyncio.gather(engine.decide(ask("a1")), engine.decide(ask("c1"))), 0.4)
        assert all(decision.allowed for decision in decisions)
    with pytest.raises(StoreUnavailable, match="in time"):
        await hung


async def test_each_server_has_a_breaker_of_its_own(engine, cluster):
    cluster.servers["b"].error = StoreUnavailable("gone")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await engine.decide(ask("b1"))
    assert engine.counters.opened == 1
    assert len(cluster.servers["b"].asked) == 2
    assert (await engine.decide(ask("a1"))).allowed


async def test_what_is_elsewhere_is_asked_there_and_charged_once(engine, cluster):
    cluster.servers["a"].moved = {key("a1"): 3}
    assert (await engine.decide(ask("a1"))).standings[0].remaining == 9
    assert len(cluster.servers["a"].asked) == 4


async def test_a_server_that_says_elsewhere_is_there(engine, cluster, monkeypatch):
    """Failure, that, failure: no outage. And it ends one, though the slot that is probed has left meanwhile."""
    monkeypatch.setattr(outage, "PROBE_S", (0.02, 0.03))
    server = cluster.servers["b"]
    server.moved = {key("b1"): 1_000}
    for error in (StoreUnavailable("gone"), None, StoreUnavailable("gone")):
        server.error = error
        asking = engine.decide(ask("b1"))
        await asyncio.wait([asking], timeout=0.02)
        asking.cancel()
    assert engine.counters.opened == 0
    await asyncio.gather(engine.decide(ask("b1")), return_exceptions=True)
    assert engine.counters.opened == 1
    server.error, server.moved = None, {keys.probe(key("b1")): 1_000}
    async with asyncio.timeout(5):
        while not engine.counters.closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await engine.decide(ask("b2"))).allowed


async def test_what_is_elsewhere_for_good_is_told_at_the_deadline(engine, cluster):
    cluster.servers["a"].moved = {key("a1"): 10_000}
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable, match="in time"):
        await engine.decide(ask("a1"))
    assert asyncio.get_running_loop().time() - began < 1.5
    assert await left(engine, "c1") == [10]


async def test_what_certainly_was_not_charged_is_asked_once_more_if_its_slot_has_moved(engine, cluster):
    """A server that is found dead after its replica took over: nobody is told."""
    dead = cluster.servers["b"]
    dead.error = StoreUnavailable("refused", reason="connection", maybe_done=False)
    cluster.next = {**cluster.slots, 1: cluster.servers["c"]}
    assert (await engine.decide(ask("b1"))).allowed
    assert (len(dead.asked), len(cluster.servers["c"].asked)) == (1, 1)


async def test_what_may_have_been_charged_is_never_asked_again(engine, cluster):
    dead = cluster.servers["b"]
    dead.error = StoreUnavailable("cut")
    cluster.next = {**cluster.slots, 1: cluster.servers["c"]}
    with pytest.raises(StoreUnavailable, match="cut"):
        await engine.decide(ask("b1"))
    assert cluster.servers["c"].asked == []
    assert engine.counters.unsettled == 1


async def test_of_one_call_only_what_certainly_was_not_charged_is_asked_again(engine, cluster):
    """One ask was sent on to where its slot moves and got no answer, another was refused: the first may be charged."""
    server = cluster.servers["b"]
    server.errors = {
        key("b1"): StoreUnavailable("cut"),
        key("b2"): StoreUnavailable("CLUSTERDOWN", reason="connection", maybe_done=False),
    }
    cluster.next = {**cluster.slots, 1: cluster.servers["c"]}
    cut, rescued = await asyncio.gather(engine.decide(ask("b1")), engine.decide(ask("b2")), return_exceptions=True)
    assert len(server.asked) == 1
    assert isinstance(cut, StoreUnavailable) and str(cut) == "cut"
    assert rescued.allowed
    assert await left(engine, "b1", "b2") == [10, 9]
    assert engine.counters.unsettled == 1
    assert engine.counters.failures == 1  # the breaker opens by two calls


async def test_a_server_that_has_no_slots_any_more_is_let_go_with_its_breaker(engine, cluster, monkeypatch, caplog):
    monkeypatch.setattr(outage, "PROBE_S", (60, 60))
    cluster.servers["b"].error = StoreUnavailable("gone")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await engine.decide(ask("b1"))
    cluster.next = {**cluster.slots, 1: cluster.servers["c"]}
    cluster.servers["a"].moved = {key("a1"): 1}
    await engine.decide(ask("a1"))  # which hears where slots are
    assert (await engine.decide(ask("b1"))).allowed
    await asyncio.sleep(0.01)
    assert (engine.counters.opened, engine.counters.closed) == (1, 1)
    assert "outage_over" in caplog.text


async def test_while_nobody_says_where_slots_are_asks_are_answered_at_once_after_two_looks(engine, cluster):
    known, cluster.slots = cluster.slots, {}
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            await engine.decide(ask("a1"))
    assert engine.counters.opened == 1
    assert cluster.refreshed == 2
    cluster.slots = known
    assert (await engine.decide(ask("a1"))).allowed  # they are known: nobody waits for a probe


# ── several slots ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_part_that_refuses_costs_the_others_nothing_and_all_of_them_are_shown(engine):
    await engine.decide(ask("b1", cost=10))
    decision = await engine.decide(ask("a1", "b1", "c1"))
    assert not decision.allowed
    assert [standing.remaining for standing in decision.standings] == [10, 0, 10]
    assert [standing.passes for standing in decision.standings] == [True, False, True]
    assert decision.retry_after == 3600


async def test_a_part_that_does_not_answer_costs_the_others_nothing(engine, cluster):
    cluster.servers["c"].error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable, match="gone"):
        await engine.decide(ask("a1", "b1", "c1"))
    assert await left(engine, "a1") == [10]
    assert await left(engine, "b1") == [10]


async def test_who_leaves_in_the_middle_is_given_back_what_was_charged(engine, cluster):
    cluster.servers["b"].go.clear()
    answer = engine.decide(ask("a1", "b1"))
    while not cluster.servers["b"].asked:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert await left(engine, "a1") == [9]
    answer.cancel()
    cluster.servers["b"].go.set()
    await asyncio.sleep(0.02)
    assert (await left(engine, "a1"), await left(engine, "b1")) == ([10], [10])
    assert engine.counters.unsettled == 0


async def test_what_comes_after_the_deadline_is_given_back(engine, cluster):
    cluster.servers["b"].go.clear()
    cluster.servers["b"].late = True  # it charges at once and says so late
    loop = asyncio.get_running_loop()
    loop.call_later(0.52, cluster.servers["b"].go.set)
    with pytest.raises(StoreUnavailable, match="in time"):
        await engine.decide(ask("a1", "b1"))
    await asyncio.sleep(0.1)
    assert await left(engine, "a1") == [10]


async def test_the_smallest_limit_is_charged_first_whatever_the_order(engine, cluster):
    small = [Charge(FIVE, key("c1", FIVE), 5)]
    for charges in (small + ask("a1").charges, ask("a1").charges + small):
        await engine.decide(Ask(charges))
    assert cluster.servers["c"].asked == [[CHARGE], [CHARGE]]
    assert cluster.servers["a"].asked == [[CHARGE], [LOOK]]  # the second time c refused: nothing was charged here


async def test_given_back_is_by_the_clock_of_whoever_charged(engine):
    """Their clocks differ by an hour: by another's, a window would seem to have begun after the charge, or be over."""
    decision = await engine.decide(ask("a1", "b1", "c1", cost=4))
    assert isinstance(decision.at_us, Moment)
    assert decision.at_us == min(told.at_us for told in decision.at_us.by_slot.values())
    assert len({told.at_us for told in decision.at_us.by_slot.values()}) == 3
    back = await engine.decide(ask("a1", "b1", cost=4, kind=GIVE_BACK, at_us=decision.at_us))
    assert [standing.remaining for standing in back.standings] == [10, 10]
    assert await left(engine, "c1") == [6]
    await engine.decide(ask("c1", cost=4, kind=GIVE_BACK, at_us=decision.at_us))
    assert await left(engine, "c1") == [10]


async def test_a_debit_is_taken_everywhere(engine):
    decision = await engine.decide(ask("a1", "b1", cost=15, kind=DEBIT))
    assert decision.allowed
    assert await left(engine, "a1", "b1") == [0, 0]


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def once(*identities, text="t", content=b"", cost=1):
    """Its record is on server b, where its owner is."""
    return TokenAsk(ask(*identities, cost=cost).charges, token(text, content, owner="b-owner"))


async def test_a_token_is_bound_to_its_content_where_its_owner_is(engine, cluster):
    assert (await engine.decide(once("a1"))).allowed
    assert [len(cluster.servers[name].asked) for name in SERVERS] == [1, 1, 0]
    assert (await engine.decide(once("a1"))).replayed
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        await engine.decide(once("c1", content=b"other"))
    assert await left(engine, "a1") == [9]
    assert await left(engine, "c1") == [10]


async def test_who_asks_again_after_a_server_was_away_goes_on_from_there(engine, cluster):
    """The first part was charged and stays it; asked again, the second is, and all is charged once."""
    cluster.servers["c"].error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        await engine.decide(once("a1", "c1"))
    assert await left(engine, "a1") == [9]
    cluster.servers["c"].error = None
    again = await engine.decide(once("a1", "c1"))
    assert again.allowed and not again.replayed
    assert (await engine.decide(once("a1", "c1"))).replayed
    assert await left(engine, "a1", "c1") == [9, 9]


async def test_a_refusal_with_a_token_is_given_back_once_and_stays_a_refusal(engine):
    await engine.decide(ask("c1", cost=10))
    for number in range(3):
        decision = await engine.decide(once("a1", "c1"))
        assert (decision.allowed, decision.replayed) == (False, number > 0)
    await engine.decide(ask("c1", cost=10, kind=GIVE_BACK, at_us=0))
    assert not (await engine.decide(once("a1", "c1"))).allowed
    assert await left(engine, "a1") == [10]


# ── without a server ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def local(cluster):
    """This worker decides by its half of a limit while a server is away."""
    place = Place(slot=0, workers=2, hosts=1)
    engine = Engine(lambda: cluster, 0.5, fallback=Fallback("local", place=lambda: place))
    yield engine
    await engine.aclose()


async def test_a_part_whose_server_is_away_is_decided_by_its_on_outage_and_the_rest_by_theirs(local, cluster):
    cluster.servers["b"].error = StoreUnavailable("gone", maybe_done=False)
    decisions = [await local.decide(ask("a1", "b1")) for _ in range(6)]
    assert [decision.allowed for decision in decisions] == [True] * 5 + [False]
    assert all(decision.degraded for decision in decisions)
    assert await left(local, "a1") == [5]  # the sixth was given back to the server that is there


async def test_what_is_given_back_goes_to_whoever_had_charged_it(local, cluster):
    cluster.servers["b"].error = StoreUnavailable("gone", maybe_done=False)
    decision = await local.decide(ask("a1", "b1", cost=5))
    assert not (await local.decide(ask("b1"))).allowed
    back = ask("a1", "b1", cost=5, kind=GIVE_BACK, at_us=decision.at_us)
    assert (await local.decide(back, here=decision.degraded)).degraded
    assert await left(local, "a1") == [10]
    assert (await local.decide(ask("b1", cost=5))).allowed


GONE = StoreUnavailable("gone", maybe_done=False)


def reserving(engine, *identities):
    return reservation.reserve(engine, ask(*identities, cost=5).charges, 5)


@pytest.mark.parametrize("back", [True, False], ids=["back", "still away"])
@pytest.mark.parametrize("away", ["a", "b"])
async def test_an_estimate_is_settled_wherever_each_part_of_it_was_charged(local, cluster, away, back):
    """The limits of a reservation are on two servers, and one of them was away when it was made."""
    cluster.servers[away].error = GONE
    reserved = await reserving(local, "a1", "b1")
    assert reserved.allowed and reserved.decision.degraded
    if back:
        cluster.servers[away].error = None
        await local.aclose()  # whatever was known of servers is forgotten
    for _ in range(2):
        assert (await reserved.settle(2)).degraded
    with pytest.raises(AlreadySettled):
        await reserved.settle(3)
    there = {"a": "b1", "b": "a1"}[away]
    assert await left(local, there) == [8]
    cluster.servers[away].error = GONE
    fours = [await local.decide(ask(f"{away}1", cost=4)) for _ in range(2)]
    assert [decision.allowed for decision in fours] == [False, False]
    assert (await local.decide(ask(f"{away}1", cost=3))).allowed  # of its half, five, two are spent


async def test_what_its_limits_let_pass_uncounted_does_not_keep_the_rest_of_an_estimate_from_being_settled(cluster):
    engine = Engine(lambda: cluster, 0.5, fallback=Fallback("allow"))
    cluster.servers["b"].error = GONE
    reserved = await reserving(engine, "a1", "b1")
    assert (await reserved.settle(2)).allowed
    assert await left(engine, "a1") == [8]
    await engine.aclose()


async def test_what_was_decided_here_at_a_deadline_is_settled_here(local, cluster):
    cluster.servers["a"].go.clear()
    reserved = await reserving(local, "a1", "b1")
    assert reserved.decision.degraded
    assert (await reserved.settle(2)).degraded
    with pytest.raises(AlreadySettled):
        await reserved.settle(3)
    cluster.servers["a"].go.set()


@pytest.mark.parametrize("away", ["a", "b"])
async def test_another_worker_settles_what_the_servers_know_and_says_that_it_does_not_know_the_rest(
    local, cluster, away
):
    cluster.servers[away].error = GONE
    reserved = await reserving(local, "a1", "b1")
    cluster.servers[away].error = None
    place = Place(slot=1, workers=2, hosts=1)
    other = Engine(lambda: cluster, 0.5, fallback=Fallback("local", place=lambda: place))
    with pytest.raises(NotHeld):
        await reservation.settle(other, reserved.id, 2)
    assert await left(other, {"a": "b1", "b": "a1"}[away]) == [8]
    await other.aclose()


@pytest.mark.parametrize("kind", [DEBIT, GIVE_BACK])
@pytest.mark.parametrize("away", ["a", "b"])
async def test_what_a_request_was_charged_is_settled_wherever_each_part_was_charged(local, cluster, away, kind):
    cluster.servers[away].error = GONE
    decision = await local.decide(ask("a1", "b1", cost=4))
    asked = TokenAsk(ask("a1", "b1", cost=1).charges, token("t", b"", owner=f"{away}-owner"), kind, decision.at_us)
    assert (await local.decide(asked, here=True)).degraded
    assert await left(local, {"a": "b1", "b": "a1"}[away]) == [5 if kind == DEBIT else 7]


@pytest.mark.parametrize("true", [2, 7])
async def test_a_request_is_settled_on_the_server_that_charged_it_though_another_was_away(cluster, true):
    limiter, app = Limiter(lambda: "a1", on_outage="allow", deadline_s=5), FastAPI()
    limiter.engine.use(lambda: cluster)

    @app.get("/")
    @limiter.limit("10/hour", cost=5)
    @limiter.limit("10/hour", key_func=lambda: "b1", cost=5)
    async def index(request: Request):
        await limiter.settle(request, true)

    cluster.servers["b"].error = GONE
    wire = Wire(gated(app, limiter), "/")
    await wire.run()
    assert wire.status == 200
    (counter,) = (key for key in cluster.servers["a"]._kept if key.endswith(TEN.spelling.encode()))
    decision = await limiter.engine.decide(Ask([Charge(TEN, counter, 1)], LOOK))
    assert decision.standings[0].remaining == 10 - true
    await limiter.aclose()


# ── units of concurrency ─────────────────────────────────────────────────────────────────────────────────────────────

ONE = Limit(amount=1, window_s=60, algorithm="concurrency")


async def hold(engine, *identities):
    """One unit of each, all of which are free."""
    charges, lease = ask(*identities, limit=ONE).charges, fresh()
    assert (await taken(engine, charges, lease)).allowed
    return Held(engine, charges, lease)


async def is_free(engine, identity):
    return (await left(engine, identity, limit=ONE)) == [1]


@pytest.mark.parametrize("how", ["taken by somebody else", "away", "hanging"])
async def test_a_renewal_gives_nothing_back_whatever_becomes_of_another_unit(engine, cluster, how):
    """The request still runs: its unit that is left stays held, and is renewed."""
    held = await hold(engine, "a1", "b1")
    server = cluster.servers["b"]
    if how == "taken by somebody else":
        server.forget_now("", "b1")
        await hold(engine, "b1")
    elif how == "away":
        server.error = StoreUnavailable("gone", maybe_done=False)
    else:
        server.go.clear()
    cluster.servers["a"].clock = lambda: FakeCluster._clock(0)() + 40_000_000
    held._renew()
    await asyncio.sleep(0.6)
    assert not await is_free(engine, "a1")
    cluster.servers["a"].clock = lambda: FakeCluster._clock(0)() + 80_000_000
    assert not await is_free(engine, "a1")
    server.go.set()
    server.error = None
    await asyncio.wait([held.release()])
    assert await is_free(engine, "a1")


async def test_a_release_follows_a_renewal_that_is_under_way(engine, cluster):
    """Its slot moves: the renewal is asked again, and would hold for a lease's length what was released before."""
    held = await hold(engine, "a1")
    server = cluster.servers["a"]
    server.moved = {key("a1", ONE): 1}
    server.asked.clear()
    held._renew()
    while not server.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (await held.release()).allowed
    await asyncio.sleep(0.05)
    assert await is_free(engine, "a1")
    assert server.asked == [[CHARGE], [CHARGE], [GIVE_BACK], [LOOK]]


TWO = Limit(amount=2, window_s=60, algorithm="concurrency")


@pytest.mark.parametrize("back", [True, False], ids=["back", "still away"])
@pytest.mark.parametrize(("unit", "rate"), [("a1", "b1"), ("b1", "a1")])
async def test_a_unit_is_renewed_and_released_wherever_it_was_taken(local, cluster, unit, rate, back):
    """A rate is counted with it, on another server; one of both was away, so the lease says that it is held here."""
    cluster.servers["b"].error = GONE
    held, lease = ask(unit, limit=TWO).charges, fresh()
    assert (await local.decide(LeaseAsk([*held, *ask(rate).charges], lease))).degraded
    if back:
        cluster.servers["b"].error = None
        await local.aclose()
    assert (await local.decide(LeaseAsk(held, lease, RENEW), here=True)).allowed
    assert (await local.decide(LeaseAsk(held, lease, GIVE_BACK), here=True)).allowed
    for kind in (RENEW, GIVE_BACK):
        with contextlib.suppress(StoreUnavailable):
            assert not (await local.decide(LeaseAsk(held, lease, kind), here=True)).allowed
    assert await left(local, "a1", limit=TWO) == [2]


async def test_a_unit_that_was_not_counted_while_its_server_was_away_is_released_all_the_same(cluster):
    engine = Engine(lambda: cluster, 0.5, fallback=Fallback("allow"))
    cluster.servers["b"].error = GONE
    held, lease = ask("a1", "b1", limit=TWO).charges, fresh()
    assert (await engine.decide(LeaseAsk(held, lease))).degraded
    for kind in (RENEW, GIVE_BACK):
        assert (await engine.decide(LeaseAsk(held, lease, kind), here=True)).allowed
    assert await left(engine, "a1", limit=TWO) == [2]
    await engine.aclose()

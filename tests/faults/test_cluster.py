"""A Cluster whose primaries die, hang, and hand over slots, under load."""

import asyncio
import re
import time

import pytest
from loading import SLACK_S, Load, ask, engine_of, key
from redis.crc import key_slot

from bench.redises import RedisCluster, becomes, tell
from service.errors import StoreUnavailable
from service.limits.decision import Ask, Charge
from service.limits.limit import Limit
from service.limits.stores import cluster as stores

(PLENTY,) = Limit.parse("1000000/hour")
NAMES = [f"user{number}" for number in range(60)]


@pytest.fixture
def cluster(redis_cluster):
    redis_cluster.flush()
    yield redis_cluster
    redis_cluster.heal()


def slot(name):
    return key_slot(key(name, PLENTY))


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_a_primary_that_dies_or_hangs_is_replaced_and_only_its_slots_notice(cluster, how, record_property):
    """Killed, or stopped: back within the node timeout + 3 s; other slots see no error, and nobody sees its return."""
    victim = cluster.holder(slot(NAMES[0]))
    mine = {name for name in NAMES if cluster.holder(slot(name)) is victim}
    assert 0 < len(mine) < len(NAMES)
    async with Load([engine_of(cluster.url) for _ in range(2)], lambda name: ask(name, PLENTY), NAMES) as load:
        await asyncio.sleep(0.5)
        assert not load.unexplained()
        at_s = time.monotonic()
        victim.stop() if how == "dies" else victim.pause()
        await asyncio.sleep(cluster.node_timeout_s)
        await load.quiet(1.0, within_s=30)
        back_s = load.last_error_s(at_s)
        errors = len(load.errors)
        others = [error for _, name, error in load.unexplained() if name not in mine]
        victim.start() if how == "dies" else victim.resume()
        await asyncio.sleep(2.0)
        after = load.unexplained(errors)
    record_property("figure", f"{how}: back after {back_s:.1f} s at a node timeout of {cluster.node_timeout_s} s")
    assert errors, "nobody noticed: the test tests nothing"
    assert not others, "a server that is away held up slots it does not have"
    assert back_s <= cluster.node_timeout_s + 3 + SLACK_S
    assert not after, "and its return was noticed"
    assert not [words for words in load.words() if re.search("READONLY|MOVED|ASK|TRYAGAIN|CROSSSLOT", words)]


async def test_slots_that_move_under_load_are_exact_and_nobody_notices(cluster, record_property):
    """20 identities of two limits each, and one limit for all; their slots go round twice, key by key."""
    small, large, everybody = Limit.parse("40/year;60/year;700/year")
    names = NAMES[:20]
    asks = {
        name: Ask([*ask(name, large, small).charges, Charge(everybody, key("everybody", everybody), 1)])
        for name in names
    }
    primaries = sorted(cluster.primaries(), key=lambda node: node.port)
    moving = {slot(name): primaries.index(cluster.holder(slot(name))) for name in [*names, "everybody"]}
    engines = [engine_of(cluster.url, 10) for _ in range(2)]
    before = _redirections(cluster)

    def go_round():
        for step in range(2):
            for number, home in moving.items():
                source, target = (primaries[(home + step + on) % 3] for on in (0, 1))
                cluster.migrate(number, source, target, meanwhile=lambda: time.sleep(0.005))

    async with Load(engines, asks.__getitem__, names, askers=24, pause_s=0.001) as load:
        await asyncio.to_thread(go_round)
        await load.until(lambda: sum(load.admitted.values()) >= 700)
        await asyncio.sleep(0.2)
        unsettled = sum(engine.counters.unsettled for engine in engines)
    seen = _redirections(cluster)
    said = {word: seen[word] - before[word] for word in seen}
    record_property("figure", f"{len(moving)} slots moved twice; 700 of 700 admitted; servers said {said}")
    assert load.errors == []
    assert unsettled == 0
    assert sum(load.admitted.values()) == 700
    assert max(load.admitted.values()) <= 40
    assert said["MOVED"] and said["ASK"] and said["TRYAGAIN"], "no redirection: the test tests nothing"


async def test_where_a_slot_has_gone_is_believed_at_once(cluster, monkeypatch):
    """MOVED says where; nobody else is asked first."""
    engine = engine_of(cluster.url, 10)
    number = slot(NAMES[0])
    source = cluster.holder(number)
    target = next(node for node in cluster.primaries() if node is not source)
    assert (await engine.decide(ask(NAMES[0], PLENTY))).allowed
    monkeypatch.setattr(stores, "REFRESH_EVERY_S", 1_000)
    cluster.migrate(number, source, target)
    assert (await engine.decide(ask(NAMES[0], PLENTY))).standings[0].remaining == PLENTY.capacity - 2
    await engine.aclose()


async def test_while_a_slot_stays_half_moved_what_can_be_decided_is_and_the_rest_is_told_so(cluster):
    """Two limits of one identity, one counter here, the other nowhere yet: each alone is decided, together neither."""
    minute, hour = Limit.parse("10/minute;100/hour")
    engine = engine_of(cluster.url)
    number = key_slot(key("half", minute))
    source = cluster.holder(number)
    target = next(node for node in cluster.primaries() if node is not source)
    assert (await engine.decide(ask("half", minute))).allowed
    try:
        tell(target, "CLUSTER", "SETSLOT", number, "IMPORTING", cluster.id_of(source))
        tell(source, "CLUSTER", "SETSLOT", number, "MIGRATING", cluster.id_of(target))
        here, there = await asyncio.gather(engine.decide(ask("half", minute)), engine.decide(ask("half", hour)))
        assert (here.standings[0].remaining, there.standings[0].remaining) == (8, 99)
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await engine.decide(ask("half", minute, hour))
    finally:
        cluster.migrate(number, source, target)
    both = await engine.decide(ask("half", minute, hour))
    assert [standing.remaining for standing in both.standings] == [7, 98]
    await engine.aclose()


async def test_a_cluster_over_tls_is_encrypted_to_every_server(certificates):
    """The plain ports are closed; who shows no certificate is told nothing."""
    with RedisCluster(certificates=certificates, replicas=False) as cluster:
        engine = engine_of(cluster.url, 10)
        decisions = await asyncio.gather(*(engine.decide(ask(name, PLENTY)) for name in NAMES for _ in range(3)))
        assert all(decision.allowed for decision in decisions)
        for node in cluster.nodes:
            assert "cmdstat_evalsha" in tell(node, "INFO", "commandstats")
        number = slot(NAMES[0])
        source = cluster.holder(number)
        cluster.migrate(number, source, next(node for node in cluster.nodes if node is not source))
        assert (await engine.decide(ask(NAMES[0], PLENTY))).standings[0].remaining == PLENTY.capacity - 4
        await engine.aclose()
        one = f"127.0.0.1:{cluster.nodes[0].port}"
        stranger = engine_of(f"rediss+cluster://{one}?ssl_ca_certs={certificates.path('ca.pem')}")
        with pytest.raises(StoreUnavailable, match="Redis is away"):
            await stranger.decide(ask(NAMES[0], PLENTY))
        await stranger.aclose()


def _redirections(cluster):
    found = dict.fromkeys(("MOVED", "ASK", "TRYAGAIN"), 0)
    for node in cluster.nodes:
        for word, count in re.findall(r"errorstat_(\w+):count=(\d+)", tell(node, "INFO", "errorstats")):
            if word in found:
                found[word] += int(count)
    return found


async def test_an_idle_worker_notices_a_failover_at_its_next_ask_and_tells_nobody(cluster):
    """It was not there when a replica took over: what it finds dead has charged nothing, so it asks elsewhere."""
    engine = engine_of(cluster.url, 10)
    for name in NAMES:
        assert (await engine.decide(ask(name, PLENTY))).allowed
    victim = cluster.holder(slot(NAMES[0]))
    victim.stop()
    await asyncio.to_thread(becomes, lambda: cluster.holder(slot(NAMES[0])), "a replica takes over")
    await asyncio.sleep(1)  # until it has told the others
    for name in NAMES:
        decision = await engine.decide(ask(name, PLENTY))
        assert decision.allowed
    assert engine.counters.unsettled == 0
    await engine.aclose()


async def test_a_cluster_that_is_not_there_is_away_within_the_deadline_and_then_at_once():
    """Nobody says where slots are: two looks, then a breaker, and the fallback decides."""
    engine = engine_of("redis+cluster://127.0.0.1:1,127.0.0.1:2", 0.25)
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(20):
        began = loop.time()
        answers = await asyncio.gather(engine.decide(ask("a", PLENTY)), return_exceptions=True)
        took.append(loop.time() - began)
        assert "Redis is away" in str(answers[0]) or "the store is away" in str(answers[0])
        await asyncio.sleep(0.02)
    assert max(took) <= 0.25 + 1
    assert sorted(took)[10] < 0.01
    assert engine.counters.opened == 1
    assert engine.counters.unsettled == 0
    await engine.aclose()


async def test_a_member_that_hangs_does_not_keep_a_new_worker_from_finding_the_others(cluster):
    """One host of the URL takes connections and says nothing: another tells where slots are."""
    hanging = cluster.nodes[-3]
    name = next(name for name in NAMES if cluster.holder(slot(name)) is not hanging)
    engine = engine_of(cluster.url)
    hanging.pause()
    try:
        assert (await engine.decide(ask(name, PLENTY))).allowed
    finally:
        hanging.resume()
    await engine.aclose()

"""Many requests that are alike, asked as one: each is decided as if it had been asked by itself."""

import asyncio

import pytest

from service.errors import InvalidInput, StoreUnavailable
from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import CHARGE, LOOK, Alike, Ask, Charge
from service.limits.engine import MOST_CHARGES, Engine
from service.limits.fallback import Fallback
from service.limits.limit import Limit
from service.limits.stores import opener

PATIENT_S = 20
AWAY = "redis://127.0.0.1:1"


def names(prefix, identities):
    return [keys.spell("", identity, prefix, "x") for identity in identities]


async def up(engine):
    """A Cluster takes a moment after its start, in every slot."""
    [limit] = Limit.parse("9/second")
    async with asyncio.timeout(PATIENT_S):
        while (await engine.decide_alike(Alike(limit, names("up", map(str, range(100))), 1))).degraded:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def compared(engine, algorithm):
    """The same questions together and one by one; a caller who comes three times is refused the third time."""
    [limit] = Limit.parse("5/hour", algorithm=algorithm)
    callers = ["a", "b", "a", "c", "a", *map(str, range(60)), "b"]
    found = []
    for prefix, kind in (("x", CHARGE), ("y", LOOK)):
        asked = Alike(limit, names(prefix, callers), 2, kind)
        together = await engine.decide_alike(asked)
        each = [await engine.decide(ask) for ask in Alike(limit, names(prefix + "1", callers), 2, kind).each()]
        assert not together.degraded
        assert together.numbers[::4] == [decision.standings[0].remaining for decision in each]
        refused = [bool(retry_us) for retry_us in together.numbers[2::4]]
        assert refused == [not decision.allowed for decision in each]
        assert together.allowed == sum(decision.allowed for decision in each)
        found.append([callers[number] for number, no in enumerate(refused) if no])
    assert found == [["a"], []]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("url", ["memory://", "fakeredis://"])
async def test_in_this_process_each_is_decided_for_itself(url, algorithm):
    await compared(Engine(opener(url), PATIENT_S), algorithm)


@pytest.mark.parametrize("place", ["redis", "cluster"], indirect=True)
async def test_on_one_server_or_several_each_is_decided_for_itself(place):
    engine = Engine(opener(place.url, timeout_s=PATIENT_S), PATIENT_S)
    await up(engine)
    await compared(engine, "fixed-window")
    await engine.aclose()


async def test_one_server_is_asked_once(redis_server):
    engine = Engine(opener(redis_server.url, timeout_s=PATIENT_S), PATIENT_S)
    [limit] = Limit.parse("5/hour")
    await engine.decide_alike(Alike(limit, names("x", map(str, range(MOST_CHARGES))), 1))
    assert (engine.counters.calls, engine.counters.decisions) == (1, 1)
    await engine.aclose()


async def test_more_than_fit_into_a_call_are_refused():
    engine = Engine(opener("memory://"), PATIENT_S)
    [limit] = Limit.parse("5/hour")
    with pytest.raises(InvalidInput, match="129"):
        engine.decide_alike(Alike(limit, names("x", map(str, range(MOST_CHARGES + 1))), 1))


async def test_one_alone_is_no_special_case():
    engine = Engine(opener("memory://"), PATIENT_S)
    [limit] = Limit.parse("5/hour")
    found = await engine.decide_alike(Alike(limit, names("x", "a"), 2))
    assert (found.allowed, found.numbers[0]) == (1, 3)


async def test_while_the_store_is_away_each_is_answered_by_its_limits_policy():
    engine = Engine(opener(AWAY), PATIENT_S, fallback=Fallback("local"))
    local, allow = (Limit.parse("2/hour", on_outage=word)[0] for word in ("local", "allow"))
    found = await engine.decide_alike(Alike(local, names("x", "aaab"), 1))
    assert found.degraded
    assert [bool(retry_us) for retry_us in found.numbers[2::4]] == [False, False, True, False]
    assert (await engine.decide_alike(Alike(allow, names("y", "aaa"), 1))).allowed == 3
    [deny] = Limit.parse("2/hour", on_outage="deny")
    with pytest.raises(StoreUnavailable):
        await engine.decide_alike(Alike(deny, names("z", "ab"), 1))
    await engine.aclose()


def test_its_charges_are_a_sequence_like_any():
    [limit] = Limit.parse("5/hour")
    charges = Alike(limit, [b"a", b"b", b"c"], 2).charges
    assert list(charges) == [Charge(limit, key, 2) for key in (b"a", b"b", b"c")]
    assert charges[-1].key == b"c"
    assert [charge.key for charge in charges[:2]] == [b"a", b"b"]
    assert Ask(charges[:1]).words == Alike(limit, [b"a"], 2).words

"""Units that are held: a table a reader can check by hand. Three at once, a lease lasts 10 s. Times in seconds.

Rows: (when, lease, what) → passes, free units, until it could pass, until all are free, until one more is.
"""

import pytest
from servers import RedisServer

from service.errors import InvalidInput, InvalidLimit
from service.limits.algorithms import script
from service.limits.decision import CHARGE, DEBIT, GIVE_BACK, LOOK, RENEW, Ask, Charge, LeaseAsk, read
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore

START_US = 1_790_000_000_000_000
S = 1_000_000
THREE = Limit(amount=3, window_s=10, algorithm="concurrency")


class Units:
    """One key in a memory store whose clock is set by hand."""

    def __init__(self, limit=THREE):
        self.now_us, self.limit = START_US, limit
        self.store = MemoryStore(lambda: self.now_us)

    def at(self, when_s, lease, kind=CHARGE, cost=1):
        self.now_us = START_US + round(when_s * S)
        charges = [Charge(self.limit, b"k", cost)]
        ask = LeaseAsk(charges, f"{lease} 0 0", kind) if lease else Ask(charges, kind)
        numbers = self.store.decide_now([ask])
        return read(ask, numbers[0], numbers, 1)

    def row(self, *asked):
        decision = self.at(*asked)
        (standing,) = decision.standings
        waits = (standing.retry_us, standing.reset_us, standing.next_us)
        return (decision.allowed, standing.remaining, *(us / S for us in waits))


TABLE = [
    ((0, 1, CHARGE), (True, 2, 0, 10, 10)),
    ((1, 2, CHARGE), (True, 1, 0, 10, 9)),
    ((2, 3, CHARGE), (True, 0, 0, 10, 8)),
    ((3, 4, CHARGE), (False, 0, 7, 9, 7)),  # 1 ends at 10 s
    ((4, 1, RENEW), (True, 0, 0, 10, 7)),  # now it ends at 14 s, and 2 first, at 11 s
    ((5, 4, CHARGE), (False, 0, 6, 9, 6)),
    ((6, 2, GIVE_BACK), (True, 1, 0, 8, 6)),
    ((6, 2, GIVE_BACK), (False, 1, 1e-6, 8, 6)),  # 2 holds none any more, and is told
    ((6, 2, RENEW), (False, 1, 1e-6, 8, 6)),
    ((7, 4, CHARGE), (True, 0, 0, 10, 5)),
    ((8, 4, CHARGE), (True, 0, 0, 10, 4)),  # asked again: one unit all the same, and renewed
    ((12, 3, RENEW), (False, 1, 1e-6, 6, 2)),  # 3 has ended at 12 s
    ((12, None, CHARGE), (True, 1, 0, 6, 2)),  # nobody's: a unit is free, and none is taken
    ((12, 5, CHARGE), (True, 0, 0, 10, 2)),
    ((12, None, CHARGE), (False, 0, 2, 10, 2)),
    ((12, None, LOOK), (False, 0, 2, 10, 2)),
    ((12, None, DEBIT), (True, 0, 0, 10, 2)),  # nobody owes a unit
    ((22, 6, CHARGE), (True, 2, 0, 10, 10)),
]


def test_the_table():
    units = Units()
    for asked, expected in TABLE:
        assert units.row(*asked) == pytest.approx(expected, abs=1e-9), asked


def test_whoever_waits_for_the_first_lease_to_end_passes_and_not_earlier():
    units = Units()
    for lease in (1, 2, 3):
        units.at(lease, lease)
    refused = units.at(4, 4)
    assert refused.retry_us == 7 * S and refused.retry_after == 7
    assert not units.at(10.999_999, 4).allowed
    assert units.at(11, 4).allowed


def test_units_and_rates_are_taken_together_or_not_at_all():
    """Two at once and three a minute: whatever refuses, the other is not touched."""
    now_us = START_US
    store = MemoryStore(lambda: now_us)
    two, minute = Limit(amount=2, window_s=10, algorithm="concurrency"), Limit(amount=3, window_s=60)

    def ask(lease, kind=CHARGE):
        charges = [Charge(two, b"c", 1), Charge(minute, b"m", 1)]
        ask = LeaseAsk(charges if kind == CHARGE else charges[:1], f"{lease} 0 0", kind)
        numbers = store.decide_now([ask])
        return read(ask, numbers[0], numbers, 1)

    assert [ask(lease).allowed for lease in (1, 2, 3)] == [True, True, False]
    assert [standing.name for standing in (s.limit for s in ask(3).exceeded)] == ["2 at once"]
    ask(1, GIVE_BACK)
    third = ask(3)
    assert third.allowed and [standing.remaining for standing in third.standings] == [0, 0]
    ask(3, GIVE_BACK)
    fourth = ask(4)
    assert not fourth.allowed and fourth.standings[0].remaining == 1  # no unit is held by who was refused


def test_the_limit_says_what_it_is():
    assert (THREE.name, THREE.spelling, THREE.capacity, THREE.leases) == ("3 at once", "3/10s/lease", 3, True)
    (parsed,) = Limit.parse("3/minute", algorithm="concurrency")
    assert (parsed.name, parsed.window_s) == ("3 at once", 60)
    assert Limit(amount=3, window_s=10, algorithm="concurrency", name="slots").name == "slots"
    with pytest.raises(InvalidLimit, match="burst goes with gcra"):
        Limit(amount=3, window_s=10, algorithm="concurrency", burst=2)


def test_a_request_is_one_unit_whatever_it_costs_elsewhere():
    assert [THREE.admits(cost) for cost in (0, 1, 5000)] == [0, 1, 1]
    for wrong in (-1, 1.0, True, "1"):
        with pytest.raises(InvalidInput):
            THREE.admits(wrong)


def call(client, now_us, kind, lease, limit=THREE):
    at = "0 " if kind == GIVE_BACK else ""
    return client.eval(script(), 1, "k", now_us, f"1 {kind + 16} 1 {at}{lease} 0 0 {limit.words} 1")


def test_a_key_lives_as_long_as_its_last_lease_and_no_longer(redis_server: RedisServer):
    """Through taking, renewing and releasing; with the last release it is gone at once."""
    with redis_server.client() as client:
        for number, kind in [(1, CHARGE), (2, CHARGE), (1, RENEW), (2, GIVE_BACK)]:
            _, _, reset_us, retry_us, _ = call(client, START_US + number * S, kind, number)
            assert retry_us == 0
            assert reset_us / 1000 - 100 <= client.pttl("k") <= reset_us / 1000 + 1000 <= 11_000
        call(client, START_US + 3 * S, GIVE_BACK, 1)
        assert client.keys() == []


def test_leases_that_ended_are_forgotten_by_a_key_that_never_rests(redis_server: RedisServer):
    with redis_server.client() as client:
        for number in range(1000):
            call(client, START_US + number * S, CHARGE, number)
        assert client.zcard("k") == 3  # 10 s a lease, one a second, three at once


def test_a_lease_costs_what_it_says(redis_server: RedisServer):
    """100,000 of them: what a lease takes of Redis, and that a refusal walks through none of them."""
    many = Limit(amount=100_000, window_s=600, algorithm="concurrency")
    with redis_server.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(100_000):
            pipe.zadd("k", {f"{2**47 + number} {2**47 + 7 * number} {2**48 - number - 1}": START_US + number})
        pipe.execute()
        before = client.info("commandstats")
        out = call(client, START_US - 1, CHARGE, 1, many)
        assert out[1] == 0 and out[3] == 1  # full; the first ends in a microsecond
        after = client.info("commandstats")
        walked = after["cmdstat_zrangebyscore"]["calls"] - before.get("cmdstat_zrangebyscore", {"calls": 0})["calls"]
        assert walked == 2  # for the refusal, and for the next unit
        assert 100 < client.memory_usage("k", samples=0) / 100_000 < 200

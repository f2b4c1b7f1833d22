"""Every algorithm's script equals its twin, whatever the order of charges, looks, give-backs and clock steps.

The twins are plain Python in exact arithmetic (hand-checked in `tests/limits/algorithms`); the script runs on fakeredis
and on a real Redis. Expiry has a test of its own: a twin cannot see it.
"""

import asyncio
from pathlib import Path

import fakeredis
import pytest
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from servers import RedisServer, redis_binaries

from service.errors import InvalidInput, InvalidLimit
from service.limits.algorithms import KNOWN
from service.limits.decision import (
    CHARGE,
    DEBIT,
    GIVE_BACK,
    LOOK,
    RENEW,
    Ask,
    Charge,
    LeaseAsk,
    SettleAsk,
    Token,
    TokenAsk,
    read,
)
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore
from service.limits.stores.redis import RedisStore

START_US = 1_790_000_000_123_457
EXAMPLES = 120
STEPS = 25


def limits():
    """Limits of every algorithm, with the numbers that hurt: tiny, prime, beyond the grid, beyond 2^53."""
    return st.builds(
        _limit,
        algorithm=st.sampled_from([*KNOWN, "concurrency"]),
        amount=st.sampled_from([1, 2, 3, 5, 7, 10, 100, 1024, 1025, 999_983, 89_999_999, 10**9]),
        window_s=st.sampled_from([1, 7, 60, 3_600, 86_400, 360 * 86_400]),
        burst=st.sampled_from([None, None, 1, 5, 1000]),
        aligned=st.booleans(),
        since_s=st.sampled_from([None, None, None, START_US // 1_000_000 - 20, START_US // 1_000_000 + 5]),
    )


def _limit(algorithm, amount, window_s, burst, aligned, since_s):
    if since_s is not None and algorithm == "fixed-window" and window_s >= 60:
        return Limit(amount=amount, window_s=window_s, since_s=since_s)
    try:
        return Limit(
            amount=amount,
            window_s=window_s,
            algorithm=algorithm,
            burst=burst if algorithm == "gcra" else None,
            aligned=aligned,
        )
    except InvalidLimit:  # beyond what GCRA counts exactly: refused at start-up, so nothing to compare
        return Limit(amount=7, window_s=window_s, algorithm=algorithm, aligned=aligned)


def tokens():
    """Few tokens, contents and times to keep them, so that they meet; None, mostly."""
    made = st.builds(
        lambda number, content, keep_s: Token(b"{t}:once%d" % number, bytes([content]) * 16, keep_s),
        number=st.integers(0, 2),
        content=st.sampled_from([0, 0, 0, 255]),
        keep_s=st.sampled_from([1, 60, 86_400]),
    )
    return st.one_of(st.none(), st.none(), made)


def leases():
    """Few leases, so that they meet; None, often."""
    return st.one_of(st.none(), st.integers(1, 6).map(lambda number: f"{number} {2**48 - number} 0"))


def asked(charges, kind=CHARGE, at_us=0, token=None, lease=None):
    """An ask, under the lease and with the token if there are such."""
    if token is None or kind == LOOK:
        return Ask(charges, kind, at_us) if lease is None else LeaseAsk(charges, lease, kind)
    return TokenAsk(charges, token, kind, at_us, lease)


class Parity(RuleBasedStateMachine):
    """One batch at a time against both; they must agree on every number."""

    runner: asyncio.Runner
    client: redis.asyncio.Redis
    clock_goes_back = False
    compared = 0

    def __init__(self) -> None:
        super().__init__()
        self.now_us = START_US
        self.twin = MemoryStore(lambda: self.now_us)
        self.redis = RedisStore(self.client, lambda: self.now_us)
        self.waits: list[int] = []
        self.made: list[tuple[Charge, int]] = []
        self.reserved: list[TokenAsk] = []
        self.runner.run(self.client.flushall())

    def teardown(self):
        self.runner.run(self.redis.aclose())

    @initialize(found=st.lists(limits(), min_size=1, max_size=4))
    def some_limits(self, found):
        self.limits = found

    def decide(self, asks):
        want = list(self.runner.run(self.twin.decide(asks)))
        got = list(self.runner.run(self.redis.decide(asks)))
        assert got == want, (asks, self.now_us)
        type(self).compared += len(asks)
        decisions, start = [], 1
        for ask in asks:
            try:
                decisions.append(read(ask, want[0], want, start))
            except InvalidInput:  # the token came with other content before
                decisions.append(None)
            start += ask.width
        return decisions

    def charge(self, index, share):
        limit = self.limits[index % len(self.limits)]
        cost = [0, 1, 1, 1, 2, 3, limit.capacity, -(-limit.capacity // 2), limit.capacity // 3 + 1][share]
        return Charge(limit, b"{t}%d" % (index % len(self.limits)), limit.admits(min(cost, limit.capacity)))

    def debit(self, index, share):
        charge = self.charge(index, share)
        return charge._replace(cost=min(10**9, charge.cost * [1, 1, 2, 3, 1000][share % 5]))

    @rule(
        batch=st.lists(
            st.tuples(
                st.sampled_from([CHARGE, CHARGE, CHARGE, CHARGE, LOOK, DEBIT]),
                st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=4),
                tokens(),
                leases(),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def requests_of_one_tick(self, batch):
        asks = []
        for kind, picks, token, lease in batch:
            make = self.debit if kind == DEBIT else self.charge
            charges = {charge.key: charge for charge in (make(*pick) for pick in picks)}
            asks.append(asked(tuple(charges.values()), kind, token=token, lease=None if kind == DEBIT else lease))
        decisions = self.decide(asks)
        self.waits = [decision.retry_us for decision in decisions if decision and decision.retry_us]
        for ask, decision in zip(asks, decisions, strict=True):
            if decision is not None and isinstance(ask, TokenAsk) and ask.kind == CHARGE:
                self.reserved.append(ask)
            if decision is None or decision.replayed:
                continue
            assert decision.allowed or ask.kind != DEBIT
            if ask.kind == CHARGE and decision.allowed:
                self.made += [(charge, decision.at_us) for charge in ask.charges]
            for standing in decision.standings:
                assert 0 <= standing.remaining <= standing.limit.capacity
                assert (standing.next_us == 0) == (standing.remaining == standing.limit.capacity)

    @rule(index=st.integers(0, 8), share=st.integers(0, 8))
    def whoever_waits_retry_after_passes_and_not_earlier(self, index, share):
        charge = self.charge(index, share)
        if charge.cost == 0 or charge.limit.since_s is not None:  # its period over, who waited asks for the next one
            return
        (refused,) = self.decide([Ask((charge,), LOOK)])
        if refused.allowed:
            return
        before_us = self.now_us
        self.now_us = before_us + refused.retry_us - 1
        assert not self.decide([Ask((charge,), LOOK)])[0].allowed
        self.now_us = before_us + refused.retry_us
        assert self.decide([Ask((charge,))])[0].allowed

    @rule(
        pick=st.integers(0, 50),
        part=st.integers(1, 3),
        token=tokens(),
        when=st.sampled_from(["then", "then", "then", "now", "later"]),
    )
    def a_charge_is_given_back(self, pick, part, token, when):
        if not self.made:
            return
        charge, at_us = self.made.pop(pick % len(self.made))
        at_us = {"then": at_us, "now": 0, "later": self.now_us + 10**9}[when]
        self.decide([asked((charge._replace(cost=-(-charge.cost // part)),), GIVE_BACK, at_us, token)])

    @rule(
        picks=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=3),
        open_s=st.sampled_from([1, 60, 86_400]),
    )
    def what_was_charged_with_a_token_is_settled(self, picks, open_s):
        """At a quarter of what was charged, at all of it, at four times it; twice, perhaps."""
        asks = []
        for pick, share in picks if self.reserved else ():
            ask = self.reserved[pick % len(self.reserved)]
            settled = [lambda cost: cost // 4, lambda cost: cost, lambda cost: 4 * cost, lambda cost: 0][share]
            kind = DEBIT if share in (1, 2) else GIVE_BACK
            charges = [c._replace(cost=min(10**9, abs(settled(c.cost) - c.cost))) for c in ask.charges]
            asks.append(SettleAsk(charges, ask.token._replace(keep_s=open_s), kind, share, open_s))
        if asks:
            self.decide(asks)

    @rule(us=st.integers(0, 3000))
    def a_moment_passes(self, us):
        self.now_us += us

    @rule(index=st.integers(0, 3), thousandths=st.integers(1, 2100))
    def part_of_a_window_passes(self, index, thousandths):
        window_us = self.limits[index % len(self.limits)].window_s * 1_000_000
        self.now_us += window_us * thousandths // 1000

    @rule(early_us=st.integers(0, 1))
    def just_as_long_as_somebody_must_wait(self, early_us):
        if self.waits:
            self.now_us += max(0, self.waits[0] - early_us)

    @rule(index=st.integers(0, 3), thousandths=st.integers(1, 1500))
    def the_clock_steps_back(self, index, thousandths):
        if self.clock_goes_back:
            window_us = self.limits[index % len(self.limits)].window_s * 1_000_000
            self.now_us = max(10**15, self.now_us - window_us * thousandths // 1000)

    @invariant()
    def every_key_expires(self):
        for index, limit in enumerate(getattr(self, "limits", ())):
            left_ms = self.runner.run(self.client.pttl(b"{t}%d" % index))
            longest_s = max(limit.refill_s, limit.window_s)
            if limit.since_s is not None and self.clock_goes_back:  # by as much it lives longer: to the period's end
                continue
            assert left_ms == -2 or 0 <= left_ms <= 2 * longest_s * 1000 + 1000, limit
        for key in self.runner.run(self.client.keys(b"*once*")):
            assert 0 <= self.runner.run(self.client.pttl(key)) <= 86_401_000


class ParityWithSteps(Parity):
    clock_goes_back = True


class Holding(ParityWithSteps):
    """Units of concurrency, taken, renewed and released: several limits at once, in one call and over many."""

    @initialize(amounts=st.lists(st.sampled_from([1, 2, 3, 12, 20]), min_size=1, max_size=2))
    def some_limits(self, amounts):
        self.limits = [Limit(amount=amount, window_s=60, algorithm="concurrency") for amount in amounts]

    @rule(
        batch=st.lists(
            st.tuples(
                st.sampled_from([CHARGE, CHARGE, CHARGE, RENEW, GIVE_BACK]),
                st.integers(1, 2),
                st.integers(1, 24).map(lambda number: f"{number} {2**48 - number} 0"),
            ),
            min_size=1,
            max_size=24,
        )
    )
    def units_are_held(self, batch):
        self.decide(
            [
                LeaseAsk([self.charge(index, 1) for index in range(min(count, len(self.limits)))], lease, kind)
                for kind, count, lease in batch
            ]
        )

    @rule(batch=st.lists(st.tuples(st.sampled_from([CHARGE, RENEW, GIVE_BACK]), leases()), min_size=1, max_size=3))
    def one_limit_at_a_time(self, batch):
        self.decide([LeaseAsk([self.charge(len(self.limits) - 1, 1)], lease or "7 7 7", kind) for kind, lease in batch])


def hold(machine, client, runner, examples):
    machine.client, machine.runner, machine.compared = client, runner, 0
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_first_lease_that_ends_is_found_behind_many_that_have_moved(redis_server: RedisServer):
    """20 leases, a second apart; one call renews or releases the first 19 of them."""
    limit = Limit(amount=20, window_s=60, algorithm="concurrency")
    now_us = START_US
    clock = lambda: now_us  # noqa: E731
    with asyncio.Runner() as runner:
        stores = [MemoryStore(clock), RedisStore(redis.asyncio.Redis(unix_socket_path=redis_server.socket), clock)]
        names = [f"{number} 0 0" for number in range(1, 21)]
        for name in names:
            now_us += 1_000_000
            for store in stores:
                runner.run(store.decide([LeaseAsk([Charge(limit, b"{t}k", 1)], name)]))
        moves = [LeaseAsk([Charge(limit, b"{t}k", 1)], name, RENEW) for name in names[:18]]
        moves.append(LeaseAsk([Charge(limit, b"{t}k", 1)], names[18], GIVE_BACK))
        last = [LeaseAsk([Charge(limit, b"{t}k", 1)], f"{number} 1 1") for number in (1, 2)]
        now_us += 5_000_000
        for store in stores:
            numbers = list(runner.run(store.decide([*moves, *last])))
            assert numbers[-4:] == [0, 60_000_000, 55_000_000, 55_000_000]  # the one that stayed ends first
        runner.run(stores[1].aclose())


@pytest.mark.parametrize("machine", [Parity, ParityWithSteps, Holding])
@pytest.mark.parametrize("binary", redis_binaries())
def test_script_equals_twin_on_a_real_redis(machine, binary, record_property, pytestconfig):
    server = RedisServer(binary=binary)
    try:
        with asyncio.Runner() as runner:
            client = redis.asyncio.Redis(unix_socket_path=server.socket)
            hold(machine, client, runner, EXAMPLES * pytestconfig.getoption("--times"))
            record_property("figure", f"{machine.compared:,} operations on {Path(binary).name} without divergence")
            runner.run(client.aclose())
    finally:
        server.close()


@pytest.mark.parametrize("machine", [Parity, ParityWithSteps, Holding])
def test_script_equals_twin_on_fakeredis(machine):
    with asyncio.Runner() as runner:
        client = fakeredis.FakeAsyncRedis()
        hold(machine, client, runner, EXAMPLES // 4)
        runner.run(client.aclose())

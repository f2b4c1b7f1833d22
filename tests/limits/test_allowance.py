"""A limit by address that is charged in advance: never more pass than it admits, at a fraction of the calls."""

import asyncio
from collections.abc import Sequence

import pytest
from driving import Clock

from service.errors import StoreUnavailable
from service.limits import allowance
from service.limits.allowance import BLIND_S, MOST_HELD, Allowance
from service.limits.decision import Ask
from service.limits.engine import Engine
from service.limits.stores import MemoryStore


class Counting(MemoryStore):
    """Counters in memory; counts asks, and may be away."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asks = 0
        self.away = False
        self.quick = asyncio.Event()
        self.quick.set()

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        self.asks += len(asks)
        await self.quick.wait()
        if self.away:
            raise StoreUnavailable("away")
        return await super().decide(asks)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Counting:
    return Counting(clock)


def worker(store: Counting, clock: Clock, text: str) -> Allowance:
    engine = Engine(lambda: store, deadline_s=10)
    return Allowance(engine, text, name="check", scope="r.check", clock=lambda: clock.now_us / 1e6)


async def passes(allowance: Allowance, who: str = "192.0.2.1") -> bool:
    return allowance.take(who) or await allowance.ask(who) is None


async def admitted(allowances: Sequence[Allowance], tries: int) -> int:
    """How many of `tries` pass, taken in turn by the workers."""
    return sum([await passes(allowances[number % len(allowances)]) for number in range(tries)])


@pytest.mark.parametrize(
    ("text", "step"),
    [("1/minute", 1), ("10000/minute", 1), ("19999/minute", 1), ("20000/minute", 2), ("10000000/minute", 1000)],
)
def test_a_ten_thousandth_is_charged_at_a_time_and_at_least_one(
    store: Counting, clock: Clock, text: str, step: int
) -> None:
    assert worker(store, clock, text).step == step


async def test_a_small_limit_is_exact_over_several_workers(store: Counting, clock: Clock) -> None:
    assert await admitted([worker(store, clock, "100/minute") for _ in range(4)], 150) == 100


async def test_a_large_limit_is_exact_for_one_worker_and_charged_in_parts(store: Counting, clock: Clock) -> None:
    assert await admitted([worker(store, clock, "50000/minute")], 50_010) == 50_000
    assert store.asks == 50_000 // 5 + 1  # and a refusal, which is remembered


async def test_several_workers_never_admit_more_and_hold_a_ten_thousandth_each_at_most(
    store: Counting, clock: Clock
) -> None:
    workers = [worker(store, clock, "50000/minute") for _ in range(3)]
    found = await admitted([*workers, workers[0], workers[0]], 50_100)
    assert 50_000 - 2 * 5 < found <= 50_000


async def test_what_is_left_of_a_part_is_still_given_out(store: Counting, clock: Clock) -> None:
    """20,005 in parts of 2: the last unit is charged alone."""
    assert await admitted([worker(store, clock, "20005/minute")], 20_010) == 20_005


async def test_units_of_one_window_are_worth_nothing_in_the_next(store: Counting, clock: Clock) -> None:
    one, other = worker(store, clock, "20000/minute"), worker(store, clock, "20000/minute")
    assert await passes(one)  # holds another unit
    clock.forward(60)
    assert await admitted([other], 20_000) == 20_000
    assert not await passes(one)


async def test_a_refusal_is_repeated_without_asking_and_its_wait_gets_shorter(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "1/minute")
    assert await passes(guard)
    waits = []
    for _ in range(3):
        refused = await guard.ask("192.0.2.1")
        assert refused is not None
        waits.append(refused.retry_after)
        clock.forward(20)
    assert waits == [60, 40, 20]
    assert store.asks == 2
    assert await passes(guard)  # a minute has passed


async def test_addresses_do_not_meet(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "1/minute")
    assert [await passes(guard, who) for who in ("192.0.2.1", "192.0.2.2", "192.0.2.1")] == [True, True, False]


async def test_several_limits_hold_together(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "2/second;3/minute")
    found = []
    for _ in range(3):
        found += [await passes(guard), await passes(guard)]
        clock.forward(1)
    assert found == [True, True, True, False, False, False]


async def test_those_who_come_together_share_one_charge_of_a_part(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "10000000/minute")
    assert all(await asyncio.gather(*(passes(guard) for _ in range(500))))
    assert store.asks == 1


async def test_whoever_charges_and_gives_up_leaves_nobody_waiting(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "10000000/minute")
    first, second = (asyncio.ensure_future(passes(guard)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.wait_for(second, 5)


async def test_without_a_store_everybody_passes_and_it_is_asked_once_a_second(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "1/minute")
    store.away = True
    assert await admitted([guard], 100) == 100
    assert store.asks == 1
    clock.forward(BLIND_S)
    store.away = False
    assert await admitted([guard], 3) == 1


async def test_who_was_refused_elsewhere_meanwhile_is_refused_when_the_store_is_back(
    store: Counting, clock: Clock
) -> None:
    guard, other = worker(store, clock, "1/minute"), worker(store, clock, "1/minute")
    store.away = True
    assert await passes(guard)
    store.away = False
    assert await passes(other)
    clock.forward(BLIND_S)
    assert await admitted([guard], 5) == 0


@pytest.mark.parametrize(("text", "left"), [("1/minute", 0), ("20000/minute", 19_999)])
async def test_a_slow_store_holds_nobody_up_and_its_answer_holds_when_it_comes(
    store: Counting, clock: Clock, text: str, left: int
) -> None:
    """The first has the unit that he waited for in vain; the others passed for nothing, as without a store."""
    guard, other = worker(store, clock, text), worker(store, clock, text)
    store.quick.clear()
    assert await asyncio.wait_for(passes(guard), 5)
    assert await admitted([guard], 100) == 100
    assert store.asks == 1
    store.quick.set()
    await asyncio.sleep(0.1)
    assert await admitted([guard, other], 30_000) == left
    clock.forward(60)
    assert await admitted([guard], 1) == 1


async def test_a_refusal_of_a_part_that_comes_late_lets_the_rest_be_handed_out(store: Counting, clock: Clock) -> None:
    guard, other = worker(store, clock, "20001/minute"), worker(store, clock, "20001/minute")
    assert await admitted([other], 20_000) == 20_000  # a part is two: one unit is left
    store.quick.clear()
    assert await passes(guard)
    store.quick.set()
    await asyncio.sleep(0.1)
    assert await admitted([guard], 5) == 1


async def test_memory_is_bounded_however_many_addresses_come(store: Counting, clock: Clock) -> None:
    guard = worker(store, clock, "1/minute")
    for number in range(MOST_HELD + 10):
        await passes(guard, f"198.51.{number // 256}.{number % 256}")
    assert len(vars(guard)["_held"]) <= MOST_HELD
    assert not await passes(guard, "198.51.0.0")  # forgotten here, and not in the store
    assert allowance.PARTS == 10_000

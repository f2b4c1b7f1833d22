"""What a catalog's rules make of a request: tables to check by hand, over the real engine and a clock set by hand."""

import asyncio

import pytest
from driving import START_US, Clock

from service.errors import InvalidInput, StoreUnavailable
from service.limits import Limit, policy
from service.limits.catalog import parse
from service.limits.decision import CHARGE
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.policy import Wanted
from service.limits.share import Place
from service.limits.spent import Spent
from service.limits.stores import MemoryStore
from service.limits.token import token

FILE = """
domain: chat
descriptors:
  - key: user
    limits: "3/minute;5/hour"
  - key: user
    value: root
    rate_limit: {unlimited: true}
  - key: user
    value: mallory
    rate_limit: {unit: minute, requests_per_unit: 0}
  - key: ip
    rate_limit: {unit: minute, requests_per_unit: 2}
  - key: model
    rate_limit: {unit: minute, requests_per_unit: 1}
    shadow_mode: true
  - key: tenant
    requests: 4
    per: month
    align: calendar
    timezone: Europe/Berlin
  - key: way_a
    rate_limit: {unit: minute, requests_per_unit: 1}
    quota_mode: true
  - key: way_b
    rate_limit: {unit: minute, requests_per_unit: 2}
    quota_mode: true
---
domain: envoy
atomic: false
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 5}
  - key: ip
    rate_limit: {unit: minute, requests_per_unit: 1}
"""


class Desk:
    """A catalog and an engine over one memory store whose clock is set by hand."""

    def __init__(self, text=FILE):
        self.catalog = parse(text)
        self.clock = Clock()
        store = MemoryStore(self.clock)
        self.engine = Engine(lambda: store, deadline_s=5)

    async def ask(self, *descriptors, domain="chat", peek=False, once=None, **more):
        wanted = [one if isinstance(one, Wanted) else Wanted((one,)) for one in descriptors]
        planned = policy.plan(self.catalog, domain, wanted, now_us=self.clock.now_us, **more)
        return await policy.decide(self.engine, planned, peek=peek, once=once)

    async def left(self, *descriptors, **more):
        """Units left of every limit, a list a descriptor."""
        verdict = await self.ask(*descriptors, peek=True, **more)
        return [[standing.remaining for standing in status.standings] for status in verdict.statuses]


ALICE, ROOT, MALLORY, IP, MODEL = (
    ("user", "alice"),
    ("user", "root"),
    ("user", "mallory"),
    ("ip", "192.0.2.1"),
    ("model", "m"),
)


@pytest.mark.parametrize(
    ("asked", "allowed", "over", "left"),
    [
        ([ALICE], True, [False], [[2, 4]]),
        ([ALICE, IP], True, [False, False], [[2, 4], [1]]),
        ([ALICE, ROOT], True, [False, False], [[2, 4], []]),
        ([ROOT], True, [False], [[]]),
        ([("unknown", "x")], True, [False], [[]]),
        ([ALICE, ("unknown", "x")], True, [False, False], [[2, 4], []]),
        ([MALLORY], False, [True], [[]]),
        ([ALICE, MALLORY], False, [False, True], [[3, 5], []]),  # nothing was charged
        ([ALICE, MODEL], True, [False, False], [[2, 4], [0]]),
        ([ALICE, ALICE], True, [False, False], [[1, 3], [1, 3]]),  # twice the same counter: added up
        ([IP, IP, IP], False, [True, True, True], [[2], [2], [2]]),  # together more than it ever has
    ],
)
async def test_one_request(asked, allowed, over, left):
    desk = Desk()
    verdict = await desk.ask(*asked)
    assert verdict.allowed is allowed
    assert [status.over for status in verdict.statuses] == over
    assert await desk.left(*dict.fromkeys(asked)) == [left[asked.index(one)] for one in dict.fromkeys(asked)]


async def test_descriptors_pass_together_or_nothing_is_charged():
    desk = Desk()
    assert [(await desk.ask(ALICE, IP)).allowed for _ in range(3)] == [True, True, False]
    assert await desk.left(ALICE, IP) == [[1, 3], [0]]


async def test_without_atomic_each_descriptor_is_charged_by_itself():
    desk = Desk()
    verdicts = [await desk.ask(ALICE, IP, domain="envoy") for _ in range(3)]
    assert [verdict.allowed for verdict in verdicts] == [True, False, False]
    assert [[status.over for status in verdict.statuses] for verdict in verdicts] == [
        [False, False],
        [False, True],
        [False, True],
    ]
    assert await desk.left(ALICE, IP, domain="envoy") == [[2], [0]]


async def test_shadow_mode_counts_and_never_refuses():
    desk = Desk()
    verdicts = [await desk.ask(ALICE, MODEL) for _ in range(2)]
    assert [verdict.allowed for verdict in verdicts] == [True, True]
    assert [verdict.statuses[1].over for verdict in verdicts] == [False, True]
    assert [standing.limit.name for standing in verdicts[1].standings] == ["3/minute", "5/hour"]  # headers: no shadow


async def test_of_several_ways_one_that_passes_is_enough():
    desk = Desk()
    a, b = ("way_a", "x"), ("way_b", "x")
    verdicts = [await desk.ask(ALICE, a, b, cost=1) for _ in range(3)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, False]
    assert [[status.over for status in v.statuses] for v in verdicts][1] == [False, True, False]
    assert await desk.left(ALICE) == [[1, 3]]  # the third was refused by the ways: alice was not charged
    assert verdicts[2].retry_after == 40  # it is 20 s past the full minute


async def test_a_way_is_given_back_when_a_plain_rule_refuses():
    desk = Desk()
    for _ in range(3):
        await desk.ask(ALICE)
    assert not (await desk.ask(ALICE, ("way_b", "x"))).allowed
    assert await desk.left(("way_b", "x")) == [[2]]


class Stubborn(MemoryStore):
    """A store that does not answer: it hangs, or says why not.

    Attributes:
        hangs: The charging call, counted from 1, that it holds up until `go`; it is carried out.
        error: What it says instead of an answer; None = it answers.
    """

    def __init__(self, clock, hangs=0):
        super().__init__(clock)
        self.hangs, self.calls = hangs, 0
        self.go = asyncio.Event()
        self.hanging = asyncio.Event()
        self.error = None

    async def decide(self, asks):
        if self.error is not None:
            raise self.error
        self.calls += any(ask.kind == CHARGE for ask in asks)
        if self.calls == self.hangs:
            self.hanging.set()
            await self.go.wait()
            self.hangs = 0
        return await super().decide(asks)


STRICT = """
domain: chat
descriptors:
  - key: user
    on_outage: deny
    rate_limit: {unit: minute, requests_per_unit: 3}
  - key: ip
    on_outage: local
    rate_limit: {unit: minute, requests_per_unit: 1}
  - key: model
    on_outage: deny
    rate_limit: {unit: minute, requests_per_unit: 1}
    shadow_mode: true
  - key: way_a
    on_outage: local
    rate_limit: {unit: minute, requests_per_unit: 1}
    quota_mode: true
  - key: way_b
    on_outage: deny
    rate_limit: {unit: minute, requests_per_unit: 2}
    quota_mode: true
"""
WAY_A, WAY_B = ("way_a", "x"), ("way_b", "x")


async def settled():
    """What goes on behind an answer has ended."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("taken", "denied"), [(WAY_A, ALICE), (WAY_A, WAY_B), (IP, MODEL)], ids=["plain", "another way", "shadow"]
)
@pytest.mark.parametrize("first", [True, False])
async def test_with_one_deny_among_them_nothing_is_counted_in_an_outage(taken, denied, first):
    desk = Desk(STRICT)
    store = Stubborn(desk.clock)
    store.error = StoreUnavailable("away", maybe_done=False)
    place = Place(slot=0, workers=1, hosts=1)
    desk.engine = Engine(lambda: store, deadline_s=5, fallback=Fallback("local", spent=Spent(), place=lambda: place))
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await desk.ask(*((taken, denied) if first else (denied, taken)))
    await settled()
    assert await desk.left(taken) == [[1]]
    assert (await desk.ask(taken)).degraded
    assert await desk.left(taken) == [[0]]  # that counts
    await desk.engine.aclose()


async def test_what_a_way_took_is_given_back_if_a_plain_rule_is_not_answered():
    desk = Desk(STRICT)
    store = Stubborn(desk.clock, hangs=2)
    desk.engine = Engine(lambda: store, deadline_s=0.3)
    with pytest.raises(StoreUnavailable, match="in time"):
        await desk.ask(ALICE, WAY_A, WAY_B)
    store.go.set()
    async with asyncio.timeout(5):
        while await desk.left(WAY_A, WAY_B) != [[1], [2]]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await desk.engine.aclose()


@pytest.mark.parametrize("call", [1, 2])
async def test_whoever_is_cancelled_has_charged_nothing(call):
    """While the ways are asked, or the plain rules: what is under way then is given back when it is known."""
    desk = Desk(STRICT)
    store = Stubborn(desk.clock, hangs=call)
    desk.engine = Engine(lambda: store, deadline_s=5)
    asking = asyncio.ensure_future(desk.ask(ALICE, MODEL, WAY_A, WAY_B))
    await store.hanging.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    store.go.set()
    await settled()
    assert await desk.left(ALICE, WAY_A, WAY_B) == [[3], [1], [2]]
    await desk.engine.aclose()


async def test_with_tokens_what_was_taken_stays_so_and_who_asks_again_goes_on_from_there():
    desk = Desk(STRICT)
    store = Stubborn(desk.clock, hangs=2)
    desk.engine = Engine(lambda: store, deadline_s=0.3)

    def once(number):
        return token(f"t#{number}", b"same", owner="chat")

    with pytest.raises(StoreUnavailable):
        await desk.ask(ALICE, WAY_A, once=once)
    store.go.set()
    await settled()
    assert await desk.left(WAY_A) == [[0]]
    assert (await desk.ask(ALICE, WAY_A, once=once)).allowed
    assert await desk.left(ALICE, WAY_A) == [[2], [0]]
    await desk.engine.aclose()


async def test_a_calendar_period_begins_with_the_month_and_is_whole_again_with_the_next():
    desk = Desk()
    tenant = ("tenant", "t")
    verdicts = [await desk.ask(tenant) for _ in range(5)]
    assert [verdict.allowed for verdict in verdicts] == [True] * 4 + [False]
    assert verdicts[0].statuses[0].standings[0].limit.name == "4/calendar month"
    desk.clock.now_us += verdicts[4].retry_us
    assert (await desk.ask(tenant)).allowed


async def test_what_is_never_possible_says_its_window_and_spends_nothing():
    desk = Desk()
    with pytest.raises(InvalidInput, match=r"cost: 4 is out of range; 3/minute takes 0 to 3"):
        await desk.ask(ALICE, cost=4)
    verdict = await desk.ask(ALICE, cost=4, strict=False)
    assert not verdict.allowed
    assert verdict.retry_after == 3600 or verdict.retry_after == 60
    assert await desk.left(ALICE) == [[3, 5]]
    assert (await desk.ask(MALLORY)).retry_after == 60
    assert (await desk.ask(MALLORY)).exceeded == ("chat.user_mallory",)
    assert (await desk.ask(MODEL, cost=9)).allowed  # shadow mode: not even then


@pytest.mark.parametrize(
    ("wanted", "cost", "field"),
    [
        ([], 1, "descriptors"),
        ([ALICE] * 101, 1, "descriptors"),
        ([ALICE], -1, "cost"),
        ([ALICE], 2**53, "cost"),
        ([ALICE], True, "cost"),
        ([ALICE, Wanted((IP,), cost=-1)], 1, r"descriptors\[1\].cost"),
    ],
)
async def test_what_cannot_be_meant_is_named_and_nothing_is_charged(wanted, cost, field):
    desk = Desk()
    with pytest.raises(InvalidInput, match=field):
        await desk.ask(*wanted, cost=cost)
    assert await desk.left(ALICE) == [[3, 5]]


async def test_a_descriptor_may_bring_its_own_cost_and_its_own_limit():
    desk = Desk()
    own = Limit(amount=7, window_s=60, aligned=True)
    verdict = await desk.ask(
        Wanted((ALICE,), cost=2), Wanted((IP,), limit=own), Wanted((("new", "x"),), cost=0, limit=own)
    )
    assert [[s.remaining for s in status.standings] for status in verdict.statuses] == [[1, 3], [6], [7]]
    assert [status.rule is None for status in verdict.statuses] == [False, True, True]
    assert await desk.left(IP) == [[2]]  # its rule of the catalog has not been charged


async def test_a_domain_nobody_knows_limits_nothing_not_even_by_the_requests_own_limit():
    verdict = await Desk().ask(Wanted((ALICE,), limit=Limit(amount=1, window_s=60)), domain="nobody")
    assert verdict == policy.Verdict(True, (policy.Status(None),))


async def test_a_retried_request_is_charged_once_whatever_its_rules():
    desk = Desk()

    def once(number):
        return token(f"t#{number}", b"same", owner="chat")

    asked = (ALICE, MODEL, ("way_b", "x"))
    verdicts = [await desk.ask(*asked, once=once) for _ in range(3)]
    assert [(verdict.allowed, verdict.replayed) for verdict in verdicts] == [(True, False), (True, True), (True, True)]
    assert await desk.left(*asked) == [[2, 4], [0], [1]]


async def test_a_look_spends_nothing():
    desk = Desk()
    for _ in range(5):
        assert (await desk.ask(ALICE, IP, MODEL, peek=True)).allowed
    assert await desk.left(ALICE, IP, MODEL) == [[3, 5], [2], [1]]


def test_domains_do_not_share_counters():
    desk = Desk()
    keys = [
        {charge.key for charge in policy.plan(desk.catalog, name, [Wanted((ALICE,))], now_us=START_US).charges}
        for name in ("chat", "envoy")
    ]
    assert not keys[0] & keys[1]

"""Whom Sentinels name, when they do not agree, hang, or know nothing; on real ones: tests/faults."""

import asyncio

import pytest
import redis

from service.errors import StoreUnavailable
from service.limits.decision import Ask, Charge
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore
from service.limits.stores.sentinel import SentinelStore

ASK = Ask([Charge(Limit.parse("10/minute")[0], b"k", 1)])
OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


class Sentinel:
    """Names a server; or hangs, or fails.

    Attributes:
        says: An address, None (it knows no such service), an exception, or "hangs".
        asked: How often.
    """

    def __init__(self, says):
        self.says = says
        self.asked = 0
        self.closed = False

    async def execute_command(self, command, service):
        assert (command, service) == ("SENTINEL GET-MASTER-ADDR-BY-NAME", "counters")
        self.asked += 1
        if self.says == "hangs":
            await asyncio.sleep(60)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says and [self.says[0].encode(), str(self.says[1]).encode()]

    async def aclose(self):
        self.closed = True


class Primary(MemoryStore):
    def __init__(self):
        super().__init__()
        self.errors = []
        self.asked = 0
        self.closed = False

    async def decide(self, asks):
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return await super().decide(asks)

    async def aclose(self):
        self.closed = True


def store_of(*said, timeout_s=5.0):
    """The store, its Sentinels, and its servers by address."""
    sentinels = [Sentinel(one) for one in said]
    servers = {}

    def opened(at):
        servers[at] = servers.get(at) or Primary()
        return servers[at]

    return SentinelStore("counters", sentinels, opened, timeout_s), sentinels, servers


REFUSED = redis.ConnectionError("refused")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ((NEW, NEW, OLD), NEW),
        ((OLD, NEW, NEW), NEW),
        ((NEW, "hangs", NEW), NEW),
        (("hangs", NEW, NEW), NEW),
        ((REFUSED, REFUSED, NEW), NEW),
        ((None, NEW, NEW), NEW),
        ((NEW,), NEW),
    ],
    ids=str,
)
async def test_the_primary_is_whom_most_name_and_one_that_hangs_is_not_waited_for(said, named):
    store, _, servers = store_of(*said)
    async with asyncio.timeout(2):
        await store.decide([ASK])
    assert list(servers) == [named]
    await store.aclose()


async def test_with_most_of_them_hanging_whoever_speaks_is_believed_after_the_timeout():
    store, _, servers = store_of("hangs", "hangs", NEW, timeout_s=0.1)
    await store.decide([ASK])
    assert list(servers) == [NEW]
    await store.aclose()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ((REFUSED, REFUSED), "Redis is away: no Sentinel answers: refused"),
        ((None, None), "Redis is away: no Sentinel knows a service counters"),
        (("hangs",), "Redis is away: no Sentinel answers"),
    ],
)
async def test_without_a_name_it_is_said_why_and_nothing_was_charged(said, told):
    store, _, _ = store_of(*said, timeout_s=0.1)
    with pytest.raises(StoreUnavailable, match=told) as caught:
        await store.decide([ASK])
    assert not caught.value.maybe_done
    await store.aclose()


async def test_a_deadline_does_not_end_the_search_so_the_next_one_finds_what_this_one_began():
    store, sentinels, servers = store_of("hangs", "hangs", NEW, timeout_s=0.2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await store.decide([ASK])
    await asyncio.sleep(0.3)
    async with asyncio.timeout(0.05):
        await store.decide([ASK])
    assert [sentinel.asked for sentinel in sentinels] == [1, 1, 1]
    assert servers[NEW].asked == 1
    await store.aclose()


async def test_what_certainly_was_not_charged_is_asked_once_more_of_another_server():
    store, sentinels, servers = store_of(OLD, OLD, OLD)
    await store.decide([ASK])
    servers[OLD].errors = [StoreUnavailable("no primary", reason="readonly", maybe_done=False)]
    for sentinel in sentinels:
        sentinel.says = NEW
    assert (await store.decide([ASK]))[1] == 9
    assert (servers[OLD].asked, servers[NEW].asked, servers[OLD].closed) == (2, 1, True)
    await store.aclose()
    assert servers[NEW].closed and all(sentinel.closed for sentinel in sentinels)


async def test_what_may_have_been_charged_is_never_asked_again():
    store, sentinels, servers = store_of(OLD, OLD, OLD)
    await store.decide([ASK])
    servers[OLD].errors = [StoreUnavailable("cut")]
    for sentinel in sentinels:
        sentinel.says = NEW
    with pytest.raises(StoreUnavailable, match="cut"):
        await store.decide([ASK])
    assert NEW not in servers
    assert (await store.decide([ASK]))[1] == 9  # but the next one is asked where the primary is now
    await store.aclose()


async def test_a_refusal_of_the_same_server_is_told_and_not_asked_again():
    store, _, servers = store_of(OLD, OLD, OLD)
    await store.decide([ASK])
    servers[OLD].errors = [StoreUnavailable("full", reason="memory", maybe_done=False)]
    with pytest.raises(StoreUnavailable, match="full"):
        await store.decide([ASK])
    assert servers[OLD].asked == 2
    await store.aclose()


@pytest.mark.parametrize("says", [REFUSED, "hangs"])
async def test_without_sentinels_the_last_primary_stays(says):
    """They are needed to find it, not to use it: after a failure they are asked once."""
    store, sentinels, servers = store_of(OLD, OLD, OLD, timeout_s=0.1)
    await store.decide([ASK])
    for sentinel in sentinels:
        sentinel.says = says
    servers[OLD].errors = [StoreUnavailable("cut")]
    with pytest.raises(StoreUnavailable, match="cut"):
        await store.decide([ASK])
    assert [(await store.decide([ASK]))[1] for _ in range(5)] == [8, 7, 6, 5, 4]
    assert [sentinel.asked for sentinel in sentinels] == [2, 2, 2]
    await store.aclose()

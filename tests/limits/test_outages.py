"""Every way to be away, by every policy, on real servers: who is asked, how often, and what is admitted."""

import asyncio
import contextlib
import os
import signal
import socket

import pytest
from servers import RedisServer

from service.errors import StoreUnavailable
from service.limits import outage
from service.limits.decision import Ask, Charge
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.limit import Limit
from service.limits.share import Place
from service.limits.spent import Spent
from service.limits.stores import opener

DEADLINE_S = 0.25
SLACK_S = 1.0  # for a busy machine; redis-py's own patience is 5 s and more
(HUNDRED,) = Limit.parse("100/hour")


@pytest.fixture
def server():
    server = RedisServer()
    yield server
    if server.process is not None:
        os.kill(server.pid, signal.SIGCONT)
    server.close()


@contextlib.contextmanager
def silent():
    """A socket that accepts, in the kernel, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        yield f"redis://127.0.0.1:{hole.getsockname()[1]}"


def watched(url, policy, **place):
    """An engine, and the instants at which its store was called."""
    calls = []
    open_store = opener(url, timeout_s=DEADLINE_S)

    def open_watched():
        store = open_store()
        decide = store.decide

        async def told(asks):
            calls.append(asyncio.get_running_loop().time())
            return await decide(asks)

        store.decide = told
        return store

    fallback = Fallback(policy, spent=Spent(), place=lambda: Place(**place))
    return Engine(open_watched, DEADLINE_S, fallback=fallback), calls


async def answer(engine, key=b"k"):
    """(what came: True, False or "unavailable", seconds)."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        came = (await engine.decide(Ask([Charge(HUNDRED, key, 1)]))).allowed
    except StoreUnavailable:
        came = "unavailable"
    return came, loop.time() - began


@pytest.mark.parametrize(("policy", "admitted"), [("local", 50), ("allow", 120), ("deny", 0)])
@pytest.mark.parametrize("how", ["refused", "stopped", "silent"])
async def test_two_answers_within_the_deadline_then_none_reaches_the_store(how, policy, admitted, server):
    """120 requests for 100/hour to one of two workers."""
    with silent() as hole:
        url = {"refused": "redis://127.0.0.1:1", "stopped": server.url, "silent": hole}[how]
        engine, calls = watched(url, policy, slot=1, workers=2)
        if how == "stopped":
            os.kill(server.pid, signal.SIGSTOP)
        answers = [await answer(engine) for _ in range(2)]
        assert all(seconds < DEADLINE_S + SLACK_S for _, seconds in answers)
        began = asyncio.get_running_loop().time()
        answers += [await answer(engine) for _ in range(118)]
        if asyncio.get_running_loop().time() - began < outage.PROBE_S[0]:
            assert len(calls) == 2, "no user's request is a probe"
        assert [came for came, _ in answers].count(True) == admitted
        assert {came for came, _ in answers} <= ({"unavailable"} if policy == "deny" else {True, False})
        assert engine.counters.opened == 1
        assert engine.counters.degraded[policy] == 120
        await engine.aclose()


async def test_the_way_back_is_one_probe_and_everybody_is_counted_again(server):
    engine, calls = watched(server.url, "local")
    assert (await answer(engine))[0] is True
    os.kill(server.pid, signal.SIGSTOP)
    for _ in range(2):
        await answer(engine)
    os.kill(server.pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        while engine.counters.closed == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert len(calls) == 4
    assert calls[3] - calls[2] >= outage.PROBE_S[0] - DEADLINE_S
    decisions = await asyncio.gather(*(engine.decide(Ask([Charge(HUNDRED, b"k", 1)])) for _ in range(5)))
    assert not any(decision.degraded for decision in decisions)
    await engine.aclose()


async def test_a_redis_that_comes_and_goes_admits_at_most_twice_the_limit_and_is_not_stormed(server):
    """Three workers; 1 s up, 1 s down, three times. What Redis decided and what was decided here: each at most 100."""
    fleet = [watched(server.url, "local", slot=slot, workers=3) for slot in range(3)]
    loop = asyncio.get_running_loop()
    by_store = here = 0
    began, going = loop.time(), True

    async def ask_on(engine):
        nonlocal by_store, here
        while going:
            decision = await engine.decide(Ask([Charge(HUNDRED, b"k", 1)]))
            if decision.allowed and decision.degraded:
                here += 1
            elif decision.allowed:
                by_store += 1
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(ask_on(engine)) for engine, _ in fleet]
    for _ in range(3):
        await asyncio.sleep(1)
        os.kill(server.pid, signal.SIGSTOP)
        await asyncio.sleep(1)
        os.kill(server.pid, signal.SIGCONT)
    going = False
    await asyncio.gather(*tasks)
    took_s = loop.time() - began
    with server.client() as client:
        connects = client.info("stats")["total_connections_received"]
        charged = int(client.get("k")[16:])
    unsettled = sum(engine.counters.unsettled for engine, _ in fleet)
    assert here <= 100
    assert by_store <= charged <= by_store + unsettled, "each decision is charged at most once"
    assert charged <= 100
    assert connects - 3 <= 3 * took_s  # the test's own are three at most
    for engine, _ in fleet:
        await engine.aclose()

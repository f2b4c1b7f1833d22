"""What a real Redis says when it cannot, and what redis-py makes of it: why, in a word, and whether it may be done."""

import asyncio
import os
import signal
import threading

import pytest
import redis
from servers import RedisServer, redis_binaries

from service.errors import StoreUnavailable
from service.limits.decision import Ask, Charge
from service.limits.limit import Limit
from service.limits.stores import opener
from service.limits.stores.faults import unavailable

ASK = Ask([Charge(Limit.parse("10/minute")[0], b"k", 1)])


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.strip("/").replace("/", "-"))
def server(request):
    server = RedisServer(binary=request.param)
    yield server
    os.kill(server.pid, signal.SIGCONT)
    server.close()


REFUSALS = [
    ("memory", ["CONFIG", "SET", "maxmemory", "1"]),
    ("authentication", ["CONFIG", "SET", "requirepass", "secret"]),
    ("permission", ["ACL", "SETUSER", "default", "-evalsha"]),
    ("permission", ["ACL", "SETUSER", "default", "-set"]),
    ("readonly", ["REPLICAOF", "127.0.0.1", "1"]),
    ("replicas", ["CONFIG", "SET", "min-replicas-to-write", "1"]),
]


async def why(server):
    """What a decision fails with; None if it does not."""
    store = opener(server.url, timeout_s=1)()
    try:
        await store.decide([ASK])
    except StoreUnavailable as error:
        return error.reason, error.maybe_done
    finally:
        await store.aclose()
    return None


@pytest.mark.parametrize(("reason", "command"), REFUSALS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_redis_that_cannot_says_why_and_has_done_nothing(server, reason, command):
    with server.client() as client:
        client.execute_command(*command)
    assert await why(server) == (reason, False)
    if reason not in ("authentication", "permission"):
        with server.client() as client:
            assert not client.exists("k")


async def test_a_redis_that_is_busy_with_a_script(server):
    with server.client() as client:
        client.config_set("busy-reply-threshold" if "7" in client.info()["redis_version"][:1] else "lua-time-limit", 1)

    def hang():
        with server.client() as client, pytest.raises(redis.ResponseError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        for _ in range(100):
            reason = await why(server)
            if reason is not None:
                break
    finally:
        with server.client() as client:
            client.script_kill()
        thread.join()
    assert reason == ("busy", False)


async def test_a_redis_that_has_too_many_clients(server):
    holder = server.client()
    holder.config_set("maxclients", 1)
    try:
        reason, maybe_done = await why(server)
        assert reason in ("clients", "connection")  # it says so, and closes: the reset may come first
        assert not maybe_done
    finally:
        holder.close()


async def test_a_redis_that_reads_its_file(server):
    """As the server words it: loading takes a file larger than a test should write."""
    error = unavailable(redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"))
    assert (error.reason, error.maybe_done) == ("loading", False)


async def test_a_key_of_another_kind_is_no_outage_and_may_have_been_done(server):
    with server.client() as client:
        client.hset("k", "field", "value")
    moving = Ask([Charge(Limit.parse("10/minute", algorithm="moving-window")[0], b"k", 1)])
    store = opener(server.url)()
    with pytest.raises(StoreUnavailable) as caught:
        await store.decide([moving])
    assert (caught.value.reason, caught.value.maybe_done) == ("refused", True)
    await store.aclose()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nonexistent/redis.sock"])
async def test_a_refused_connection_has_charged_nobody(url):
    store = opener(url)()
    with pytest.raises(StoreUnavailable, match="Redis is away") as caught:
        await store.decide([ASK])
    assert (caught.value.reason, caught.value.maybe_done) == ("connection", False)
    await store.aclose()


async def test_a_connection_that_breaks_under_a_call_may_have_charged(server):
    store = opener(server.url)()
    await store.decide([ASK])
    os.kill(server.pid, signal.SIGSTOP)
    call = asyncio.create_task(store.decide([ASK]))
    await asyncio.sleep(0.05)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(StoreUnavailable) as caught:
        await call
    assert (caught.value.reason, caught.value.maybe_done) == ("connection", True)
    await store.aclose()
    server.stop()
    server.start()


WORDS = [
    ("OOM command not allowed when used memory > 'maxmemory'.", "memory"),
    ("Error running script (call to f_1): @user_script:9: -OOM command not allowed", "memory"),
    ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "persistence"),
    ("BUSY Redis is busy running a script.", "busy"),
    ("NOREPLICAS Not enough good replicas to write.", "replicas"),
    ("MASTERDOWN Link with MASTER is down", "cluster"),
    ("ERR user_script:1: the key is called OOMPH", "refused"),
    ("BUSYGROUP Consumer Group name already exists", "refused"),
]


@pytest.mark.parametrize(("said", "reason"), WORDS)
def test_words_of_the_server_are_known_wherever_they_stand(said, reason):
    assert unavailable(redis.ResponseError(said)).reason == reason

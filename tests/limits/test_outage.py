"""While Redis is away, and limits say "deny": 503 within the deadline, never 500, never unlimited; and other routes do
not notice. The other policies: test_fallback; who asks Redis, and when: test_breaker."""

import asyncio
import gc
import os
import signal
import time
import warnings

import pytest
from driving import Wire, by_user, client_of, gated, statuses
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from servers import RedisServer
from starlette.testclient import TestClient, WebSocketDenialResponse

from service.errors import StoreUnavailable
from service.limits import Limiter

pytestmark = pytest.mark.impatient

GONE = "unix:///nonexistent/redis.sock"
DEADLINE_S = 0.25
SLACK_S = 1.0  # for a busy machine; redis-py's own patience is 5 s and more


@pytest.fixture
def own_redis():
    """A server that the test may stop."""
    server = RedisServer()
    yield server
    if server.process is not None:
        os.kill(server.pid, signal.SIGCONT)
    server.close()


def limited_app(uri, place="gate", ran=None, **options):
    """GET /limited by the gate, a decorator alone, or a dependency alone; GET /free."""
    limiter = Limiter(by_user, storage_uri=uri, **{"on_outage": "deny", **options})
    app = FastAPI()
    app.state.limiter = limiter

    async def endpoint():
        if ran is not None:
            ran.append(1)
        return {}

    if place == "dependency":
        app.get("/limited", dependencies=[Depends(limiter.quota("100/hour"))])(endpoint)
    else:
        app.get("/limited")(limiter.limit("100/hour")(endpoint))

    @app.get("/free")
    async def free():
        return {}

    return gated(app, limiter) if place == "gate" else app


async def timed(app, path):
    """(status, seconds)."""
    begin = time.perf_counter()
    wire = await Wire(app, path).run()
    return wire.status, time.perf_counter() - begin


# ── unreachable ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["gate", "decorator", "dependency"])
@pytest.mark.parametrize("uri", [GONE, "redis://127.0.0.1:1/0"])
def test_without_redis_a_limited_route_is_503_problem_json(uri, place):
    """RFC 9457 with IANA's type for it, Retry-After, not to be cached; the endpoint does not run."""
    ran = []
    client = client_of(limited_app(uri, place, ran))
    for _ in range(3):
        begin = time.perf_counter()
        answer = client.get("/limited")
        assert time.perf_counter() - begin < DEADLINE_S + SLACK_S
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert int(answer.headers["retry-after"]) >= 1
        problem = answer.json()
        assert problem["type"] == "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
        assert (problem["status"], problem["title"]) == (503, "Service Unavailable")
        assert "redis" not in answer.text.lower()  # how a deployment is built is nobody's business
    assert not ran
    assert client.get("/free").status_code == 200


@pytest.mark.parametrize("options", [{"swallow_errors": True}, {"in_memory_fallback_enabled": True}], ids=str)
def test_slowapis_switches_open_no_hole(options):
    """Taken and documented to do nothing: no unlimited route, no 500, no memory in which each worker counts."""
    assert statuses(client_of(limited_app(GONE, **options)), "/limited", 3) == [503] * 3


def test_a_websocket_without_redis_is_denied():
    """Before it is accepted."""
    limiter = Limiter(by_user, storage_uri=GONE, default_limits=["1/hour"], on_outage="deny")
    client = client_of(gated(FastAPI(), limiter))
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/ws"):
        pass
    assert caught.value.status_code == 503


def test_scripts_can_read_the_503():
    """It carries the app's CORS headers as a refusal does."""
    app = limited_app(GONE)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    answer = client_of(app).get("/limited", headers={"origin": "https://app.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (503, "*")


async def test_a_check_outside_a_request_says_that_nobody_can_decide():
    """`check` raises: a caller that cannot be told is not told yes."""
    limiter = Limiter(by_user, storage_uri=GONE, on_outage="deny")
    with pytest.raises(StoreUnavailable):
        await limiter.check("alice", "1/hour")
    await limiter.aclose()


async def test_reset_without_redis_says_so_within_the_deadline(own_redis):
    """A hung Redis hangs no admin's request either."""
    limiter = Limiter(by_user, storage_uri=own_redis.url)
    await limiter.check("alice", "1/hour")
    os.kill(own_redis.pid, signal.SIGSTOP)
    with pytest.raises(StoreUnavailable):
        async with asyncio.timeout(3):
            await limiter.reset("alice")
    await limiter.aclose()


def test_the_app_starts_without_redis():
    """Start-up asks nothing of it: an outage is no reason for a deployment to fail."""
    with client_of(limited_app(GONE)) as client:
        assert client.get("/free").status_code == 200
        assert client.get("/limited").status_code == 503


def test_an_outage_is_a_line_in_the_log_not_one_a_request(caplog):
    """At most one warning a second, with what the client said."""
    client = client_of(limited_app(GONE))
    for _ in range(20):
        client.get("/limited")
    lines = [record for record in caplog.records if "store_unavailable" in record.getMessage()]
    assert len(lines) <= 2


# ── stopped, dead, refusing ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["gate", "decorator", "dependency"])
async def test_a_hung_redis_is_503_in_time_while_other_routes_answer_at_once(own_redis, place):
    """SIGSTOP: the kernel still takes bytes, nobody answers. slowapi freezes every route of the worker."""
    app = limited_app(own_redis.url, place)
    assert (await timed(app, "/limited"))[0] == 200
    os.kill(own_redis.pid, signal.SIGSTOP)
    limited = [asyncio.create_task(timed(app, "/limited")) for _ in range(20)]
    await asyncio.sleep(0.01)
    status, seconds = await timed(app, "/free")
    assert (status, seconds < DEADLINE_S * 0.8) == (200, True), seconds
    for status, seconds in await asyncio.gather(*limited):
        assert status == 503
        assert seconds < DEADLINE_S + SLACK_S
    os.kill(own_redis.pid, signal.SIGCONT)
    assert (await timed(app, "/limited"))[0] == 200
    await app.state.limiter.aclose()


async def test_a_first_request_to_a_hung_redis_is_503_in_time(own_redis):
    """Connecting and loading the script are inside the deadline."""
    os.kill(own_redis.pid, signal.SIGSTOP)
    app = limited_app(own_redis.url)
    status, seconds = await timed(app, "/limited")
    assert status == 503
    assert seconds < DEADLINE_S + SLACK_S
    await app.state.limiter.aclose()


async def test_a_short_pause_within_the_deadline_is_only_a_wait(own_redis):
    """CLIENT PAUSE for 100 ms: nobody is refused, nothing is charged twice."""
    app = limited_app(own_redis.url)
    assert (await timed(app, "/limited"))[0] == 200
    with own_redis.client() as client:
        client.client_pause(100)
    wire = await Wire(app, "/limited").run()
    assert wire.status == 200
    assert wire.headers["ratelimit"].startswith('"100/hour";r=98;')
    assert app.state.limiter.engine.counters.unsettled == 0
    await app.state.limiter.aclose()


async def test_the_deadline_can_be_chosen(own_redis):
    """`deadline_s=0.05`."""
    os.kill(own_redis.pid, signal.SIGSTOP)
    app = limited_app(own_redis.url, deadline_s=0.05)
    status, seconds = await timed(app, "/limited")
    assert status == 503
    assert seconds < 0.05 + SLACK_S / 2
    await app.state.limiter.aclose()


async def test_a_redis_that_comes_back_empty_is_used_again(own_redis):
    """Killed and started again: the script is loaded anew, no restart of the app is needed."""
    app = limited_app(own_redis.url)
    assert (await timed(app, "/limited"))[0] == 200
    own_redis.stop()
    assert (await timed(app, "/limited"))[0] == 503
    own_redis.start()
    wire = await Wire(app, "/limited").run()
    assert (wire.status, wire.headers["ratelimit"].partition(";t")[0]) == (200, '"100/hour";r=99')
    await app.state.limiter.aclose()


async def test_a_flushed_script_cache_is_noticed_by_nobody(own_redis):
    """NOSCRIPT means that nothing ran: the script is loaded and asked again, charged once."""
    app = limited_app(own_redis.url)
    assert (await timed(app, "/limited"))[0] == 200
    with own_redis.client() as client:
        client.script_flush()
    wire = await Wire(app, "/limited").run()
    assert (wire.status, wire.headers["ratelimit"].partition(";t")[0]) == (200, '"100/hour";r=98')
    await app.state.limiter.aclose()


REFUSING = {
    "out of memory": ("CONFIG", "SET", "maxmemory", "1"),
    "a password": ("CONFIG", "SET", "requirepass", "secret"),
    "a forbidden command": ("ACL", "SETUSER", "default", "-evalsha"),
}


@pytest.mark.parametrize("command", REFUSING.values(), ids=REFUSING)
def test_a_redis_that_refuses_is_503_too(command, own_redis):
    """An outage, not a bug of the app."""
    with own_redis.client() as client:
        client.execute_command(*command)
    assert statuses(client_of(limited_app(own_redis.url)), "/limited", 2) == [503, 503]


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_test_clients_without_a_context_leave_no_connection_behind(redis_server):
    """Each request makes an event loop: its connection is closed with it, no ResourceWarning, nothing in Redis."""
    app = limited_app(redis_server.url, deadline_s=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert statuses(TestClient(app), "/limited", 12) == [200] * 12
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []
    with redis_server.client() as client:
        for _ in range(100):
            if len(client.client_list()) == 1:
                break
            time.sleep(0.01)
        assert len(client.client_list()) == 1  # this one


def test_a_client_with_a_context_keeps_one_connection(redis_server):
    """One loop, one connection, however many requests."""
    app = limited_app(redis_server.url, deadline_s=5)
    with redis_server.client() as redis:
        with TestClient(app) as client:
            before = redis.info("stats")["total_connections_received"]
            assert statuses(client, "/limited", 12) == [200] * 12
        assert redis.info("stats")["total_connections_received"] - before == 1


async def test_a_hundred_requests_at_once_need_no_hundred_connections(redis_server):
    """slowapi-like pools raise when they are full; arrivals share calls instead."""
    app = limited_app(redis_server.url, deadline_s=5)
    got = await asyncio.gather(*(Wire(app, "/limited").run() for _ in range(150)))
    assert sorted(wire.status for wire in got) == [200] * 100 + [429] * 50
    with redis_server.client() as redis:
        assert len(redis.client_list()) <= 3
    assert app.state.limiter.engine.counters.calls <= 4
    await app.state.limiter.aclose()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_evicts_counters_is_warned_of_at_start_up(own_redis, caplog, policy):
    """Under an eviction policy a full Redis forgets live counters: the log says so, and what to set."""
    with own_redis.client() as admin:
        admin.config_set("maxmemory-policy", policy)
    with client_of(limited_app(own_redis.url)) as client:
        assert client.get("/limited").status_code == 200
    assert f"maxmemory-policy {policy}" in caplog.text
    assert "noeviction" in caplog.text


def test_a_redis_that_keeps_counters_is_not_warned_of(own_redis, caplog):
    """noeviction, which the embedded Redis has and a Redis of one's own should."""
    with own_redis.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
    with client_of(limited_app(own_redis.url)):
        pass
    assert "maxmemory" not in caplog.text

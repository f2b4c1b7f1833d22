"""Workers come and go under gRPC clients, and no call fails. Real processes, real signals."""

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from calling import Load, channel
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import Running, alive, becomes, onequota

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

SERVE = ("serve", "--port", "0", "--grpc-port", "0", "--workers", "2", "--limits", "limits.yaml")
MOST = 10**9
REQUEST = rls_pb2.RateLimitRequest(domain="chat")
REQUEST.descriptors.add().entries.add(key="user", value="alice")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "limits.yaml").write_text(f"domain: chat\ndescriptors:\n  - {{key: user, limits: {MOST}/year}}\n")
    return tmp_path


async def ask(opened: Any) -> int:
    """Units left."""
    answer = await rls_pb2_grpc.RateLimitServiceStub(opened).ShouldRateLimit(REQUEST, timeout=20)
    assert answer.overall_code == rls_pb2.RateLimitResponse.OK
    return int(answer.statuses[0].limit_remaining)


async def look(opened: Any) -> int:
    """Whether it serves."""
    answer = await health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=20)
    return int(answer.status)


async def wait(true: Any, within_s: float = 60) -> None:
    assert await asyncio.to_thread(becomes, true, within_s)


def count(running: Running, event: str) -> int:
    return running.said().count(event)


async def test_workers_and_the_whole_service_are_replaced_and_no_call_fails(folder: Path) -> None:
    """Twice all workers, once the parent as well: SIGHUP, SIGUSR2, SIGHUP; ten clients that call all the time. Each
    call was charged once."""
    with onequota(folder, *SERVE, variables={"ONEQUOTA_DRAIN_S": "6"}) as running:
        await wait(lambda: count(running, "worker_serving") == 2)
        async with Load(running.banner["grpc"], ask, clients=10) as load:
            for number, sent in enumerate((signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP), start=1):
                before = load.answered
                running.process.send_signal(sent)
                await wait(lambda: count(running, "worker_ended") == 2 * number)  # noqa: B023
                assert load.answered > before + 100
        assert not load.failed, (load.answered, load.failed)
        assert "grpc_" not in running.said(), running.said()
        async with channel(running.banner["grpc"]) as opened:
            assert await ask(opened) == MOST - load.answered - 1


async def test_workers_are_recycled_by_what_they_answer_over_grpc(folder: Path) -> None:
    """--max-requests counts calls, as it counts requests, and no health checks."""
    with onequota(folder, *SERVE, "--max-requests", "200", variables={"ONEQUOTA_DRAIN_S": "6"}) as running:
        await wait(lambda: count(running, "worker_serving") == 2)
        async with Load(running.banner["grpc"], look, clients=4) as load:
            await wait(lambda: load.answered > 1000)
        assert not load.failed
        assert count(running, "worker_retired") == 0
        async with Load(running.banner["grpc"], ask, clients=8) as load:
            await wait(lambda: count(running, "worker_ended") >= 2)
        assert not load.failed, (load.answered, load.failed)
        assert "reason=recycle" in running.said()


async def test_who_watches_hears_of_the_end_of_the_service_and_not_of_a_workers(folder: Path) -> None:
    """A recycled worker says nothing but SERVING, until its connections end: its clients have others to go to."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with onequota(folder, *SERVE, "--workers", "1", variables={"ONEQUOTA_DRAIN_S": "6"}) as running:
        async with channel(running.banner["grpc"]) as opened:
            watch = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert (await watch.read()).status == serving
            running.process.send_signal(signal.SIGHUP)
            with pytest.raises(grpc.aio.AioRpcError):
                raise AssertionError(await watch.read())
        async with channel(running.banner["grpc"]) as opened:
            watch = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert (await watch.read()).status == serving
            running.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == not_serving
        assert await asyncio.to_thread(running.process.wait, 20) == 0


async def test_what_a_killed_service_leaves_behind_does_not_hold_its_ports(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """kill -9 of the parent: workers drain and end, with gRPC as without, and with a client that stays."""
    temporary = tmp_path_factory.mktemp("temporary")
    with onequota(folder, *SERVE, variables={"ONEQUOTA_DRAIN_S": "1", "TMPDIR": str(temporary)}) as running:
        await wait(lambda: count(running, "worker_serving") == 2)
        async with channel(running.banner["grpc"]) as opened:
            assert await look(opened) == 1
            workers = [int(pid) for pid in re.findall(r"worker=(\d+)", running.said())]
            assert len(workers) == 2
            assert len(list(temporary.glob("onequota-grpc-*"))) == 2
            running.process.kill()
            await wait(lambda: not any(map(alive, workers)), 20)
    assert not list(temporary.glob("onequota-grpc-*")), "their sockets"

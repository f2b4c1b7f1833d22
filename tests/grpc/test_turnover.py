"""Workers come and go under gRPC clients, and no call fails. Real processes, real signals, no retries."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from calling import Load, channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import Running, alive, becomes, onequota

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

SERVE = ("serve", "--port", "0", "--grpc-port", "0", "--workers", "2")


async def check(opened: Any) -> int:
    answer = await health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=20)
    return int(answer.status)


async def wait(true: Any, within_s: float = 60) -> None:
    assert await asyncio.to_thread(becomes, true, within_s)


def count(running: Running, event: str) -> int:
    return running.said().count(event)


async def test_workers_and_the_whole_service_are_replaced_and_no_call_fails(tmp_path: Path) -> None:
    """Twice all workers, once the parent as well: SIGHUP, SIGUSR2, SIGHUP; ten clients that call all the time."""
    with onequota(tmp_path, *SERVE, variables={"ONEQUOTA_DRAIN_S": "6"}) as running:
        await wait(lambda: count(running, "worker_serving") == 2)
        async with Load(running.banner["grpc"], check, clients=10) as load:
            for number, sent in enumerate((signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP), start=1):
                before = load.answered
                running.process.send_signal(sent)
                await wait(lambda: count(running, "worker_ended") == 2 * number)  # noqa: B023
                assert load.answered > before + 100
        assert not load.failed, (load.answered, load.failed)
        assert "grpc_" not in running.said(), running.said()


async def test_a_service_that_stops_says_so_to_who_watches_and_ends_calls_first(tmp_path: Path) -> None:
    with onequota(tmp_path, *SERVE, variables={"ONEQUOTA_DRAIN_S": "6"}) as running:
        async with channel(running.banner["grpc"]) as opened:
            watch = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=40)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            running.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await asyncio.to_thread(running.process.wait, 20) == 0


async def test_a_recycled_worker_does_not_say_that_the_service_is_gone(tmp_path: Path) -> None:
    """Whoever watches hears of nothing but SERVING, until its connection ends: it has others to go to."""
    with onequota(tmp_path, *SERVE, "--workers", "1", variables={"ONEQUOTA_DRAIN_S": "6"}) as running:
        async with channel(running.banner["grpc"]) as opened:
            watch = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=40)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            running.process.send_signal(signal.SIGHUP)
            with pytest.raises(grpc.aio.AioRpcError):
                raise AssertionError(await watch.read())


async def test_what_a_killed_service_leaves_behind_does_not_hold_its_ports(tmp_path: Path) -> None:
    """kill -9 of the parent: workers drain and end, with gRPC as without."""
    with onequota(tmp_path, *SERVE, variables={"ONEQUOTA_DRAIN_S": "1"}) as running:
        async with channel(running.banner["grpc"]) as opened:
            assert await check(opened) == 1
            workers = [
                int(line.split("worker=")[1].split()[0]) for line in running.said().splitlines() if "worker=" in line
            ]
            running.process.kill()
            await wait(lambda: not any(map(alive, workers)), 20)

"""What `/health` and `/ready` tell, of one process and of the whole service."""

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from running import becomes, onequota

from service import status
from service.app import create_app
from service.settings import Settings
from service.status import Status


def asked(path: str, **settings: Any) -> dict[str, Any]:
    with TestClient(create_app(Settings(redis_url="fakeredis://", **settings))) as client:
        answer = client.get(path)
        assert answer.status_code == 200
        return dict(answer.json())


def test_health_tells_what_the_runner_told_this_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Status(workers=4, serving=3, recycles=7, started_s=time.time() - 60)
    monkeypatch.setattr(status, "_told", told)
    answer = asked("/health")
    assert answer["status"] == "healthy"
    assert (answer["workers"], answer["serving"], answer["recycles"]) == (4, 3, 7)
    assert 60 <= answer["uptime_s"] < 70


def test_health_tells_what_this_worker_decided_and_knows_without_asking() -> None:
    supabase = {"supabase_url": "http://127.0.0.1:1", "supabase_service_key": "hunter2" * 4}
    with TestClient(create_app(Settings(redis_url="fakeredis://", **supabase))) as client:
        for _ in range(3):
            client.post("/v1/check", json={"key": "alice", "limits": "2/minute"})
        health = client.get("/health").json()
        assert health["store"] == "answers"
        assert health["decisions"].items() >= {"by_store": 4, "repeated": 0, "unsettled": 0, "outages": 0}.items()
        assert health["supabase"] == "not asked yet"
        client.get("/ready")
        assert client.get("/health").json()["supabase"].startswith("supabase ping: ")


def test_a_process_without_the_runner_speaks_for_itself() -> None:
    answer = asked("/health")
    assert (answer["workers"], answer["serving"], answer["recycles"]) == (1, 1, 0)


async def test_whoever_asks_while_another_does_hears_the_same() -> None:
    """A worker that has just started, two probes at once, and no Redis."""
    app = create_app(Settings(redis_url="redis://127.0.0.1:1"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
        answers = await asyncio.gather(*(client.get("/ready") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [503] * 5


def test_ready_says_that_there_is_no_supabase() -> None:
    assert asked("/ready")["supabase"] == "not configured"


def test_a_supabase_that_is_away_is_told_and_does_not_make_the_service_unready() -> None:
    """It is not asked for any decision."""
    answer = asked("/ready", supabase_url="http://127.0.0.1:1", supabase_service_key="hunter2" * 4)
    assert answer["status"] == "ready"
    assert answer["supabase"].startswith("supabase ping: ")
    assert "hunter2" not in str(answer)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_every_worker_of_the_service_tells_of_all_after_a_restart(tmp_path: Path) -> None:
    with onequota(tmp_path, "serve", "--port", "0", "--workers", "2") as running:
        url = running.banner["url"]

        def health() -> dict[str, Any]:
            return dict(httpx.get(f"{url}/health", timeout=30).json())

        assert becomes(lambda: health()["serving"] == 2, 20)
        began_s = time.monotonic()
        running.process.send_signal(signal.SIGHUP)
        assert becomes(lambda: (health()["recycles"], health()["serving"]) == (2, 2), 20)
        answer = health()
        assert answer["workers"] == 2
        assert answer["uptime_s"] >= int(time.monotonic() - began_s)
        assert httpx.get(f"{url}/ready", timeout=30).json()["workers"] == 2

"""What `local` promises of a host: its workers together admit the limit, whichever processes come and go meanwhile."""

import contextlib
import http.client
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running import Running, becomes, onequota

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="POSIX signals, and /proc")

GONE = "redis://127.0.0.1:1/0"
LIMIT = 20
QUESTION = json.dumps({"key": "alice", "limits": f"{LIMIT}/hour"})


def ask(running: Running) -> dict[str, Any]:
    """One question over a connection of its own: any worker may get it. A worker that is killed may reset it."""
    place = running.banner["url"].removeprefix("http://")
    while True:
        connection = http.client.HTTPConnection(place, timeout=30)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("POST", "/v1/check", QUESTION, {"content-type": "application/json"})
            answer: dict[str, Any] = json.load(connection.getresponse())
            return answer


def admitted(running: Running, *, most: int = LIMIT) -> int:
    """Ask until `most` are admitted, or everybody has refused many times."""
    found = refused = 0
    while found < most and refused < 60:
        answer = ask(running)
        assert answer["degraded"]
        found += answer["allowed"]
        refused = 0 if answer["allowed"] else refused + 1
    return found


def health(running: Running) -> dict[str, Any]:
    return dict(httpx.get(f"{running.banner['url']}/health", timeout=30).json())


def settled(running: Running, workers: int, recycles: int) -> bool:
    """All are there, and those they replaced are gone."""
    told = health(running)
    gone = running.said().count('"worker_ended"') + running.said().count('"worker_died"')
    return (told["workers"], told["serving"]) == (workers, workers) and gone >= recycles


def serving(tmp_path: Path, workers: int = 3, **more: str) -> Any:
    variables = {"ONEQUOTA_LOG_FORMAT": "json", "ONEQUOTA_DRAIN_S": "2", **more}
    return onequota(tmp_path, "serve", "--port", "0", "--workers", str(workers), "--redis", GONE, variables=variables)


def test_replacing_every_worker_refills_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """Reloaded, killed, handed over: what a slot has spent is known to whoever has it next, and gone in the end."""
    with serving(tmp_path, 2) as running:
        assert becomes(lambda: settled(running, 2, 0), 20)
        found = admitted(running, most=5)
        running.process.send_signal(signal.SIGHUP)
        assert becomes(lambda: settled(running, 2, 2), 30)
        found += admitted(running, most=5)
        os.kill(health(running)["pid"], signal.SIGKILL)
        assert becomes(lambda: settled(running, 2, 3), 30)
        found += admitted(running, most=5)
        assert found == 15
        running.process.send_signal(signal.SIGUSR2)
        assert becomes(lambda: settled(running, 2, 5), 40)
        found += admitted(running, most=LIMIT + 1)
        assert found == LIMIT
        (directory,) = {path.parent for path in opened(health(running)["pid"]) if path.name.startswith("slot-")}
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in directory.iterdir()} >= {"slot-0", "slot-1"}
    assert not directory.exists()


def opened(pid: int) -> list[Path]:
    return [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists()]


def test_while_workers_are_replaced_old_and_new_never_both_have_a_share(tmp_path: Path) -> None:
    """Asked all the while."""
    with serving(tmp_path, 2) as running:
        assert becomes(lambda: settled(running, 2, 0), 20)
        found = 0
        for turn in (1, 2):
            running.process.send_signal(signal.SIGHUP)
            while not settled(running, 2, 2 * turn):
                found += ask(running)["allowed"]
        found += admitted(running, most=LIMIT + 1)
        assert found == LIMIT


def test_the_workers_of_a_host_admit_the_limit_exactly_and_at_most_a_share_more_when_they_change(
    tmp_path: Path,
) -> None:
    """Two workers, of 10 each; then three; then two again."""
    with serving(tmp_path, 2) as running:
        assert becomes(lambda: settled(running, 2, 0), 20)
        found = admitted(running, most=LIMIT + 1)
        assert found == LIMIT
        running.process.send_signal(signal.SIGTTIN)
        assert becomes(lambda: settled(running, 3, 0), 20)
        found += admitted(running)
        assert found <= LIMIT + LIMIT // 3
        running.process.send_signal(signal.SIGTTOU)
        assert becomes(lambda: settled(running, 2, 1), 20)
        found += admitted(running)
        assert found <= LIMIT + LIMIT // 3

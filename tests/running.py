"""The commands as a user types them: real processes, started, asked, ended."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

ROOT = Path(__file__).parents[1]


def environment(**changes: str) -> dict[str, str]:
    ours = {"REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY", "PYTHONWARNINGS"}
    kept = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("ONEQUOTA_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | changes


def command(*arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", "service.cli", *arguments]


@dataclass
class Running:
    """A started command; `banner` is what it said, `said` reads its standard error."""

    process: subprocess.Popen[str]
    banner: dict[str, Any]
    errors: Path

    def get(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(self.banner["url"], timeout=10).json()
        return answer

    def pids(self, count: int) -> set[int]:
        found: set[int] = set()

        def enough() -> bool:
            found.add(self.get()["pid"])
            return len(found) >= count

        assert becomes(enough, 15), found
        return found

    def said(self) -> str:
        return self.errors.read_text()


@contextlib.contextmanager
def onequota(cwd: Path, *arguments: str, **changes: Any) -> Iterator[Running]:
    """The command with `--json`, in a session of its own as in a terminal; ended afterwards, with workers."""
    variables = changes.pop("variables", {})
    python = changes.pop("python", sys.executable)
    errors = cwd.resolve() / "errors"
    with errors.open("w") as log:
        process = subprocess.Popen(
            command(*arguments, "--json", python=python), cwd=cwd, env=environment(**variables), text=True,
            stdout=subprocess.PIPE, stderr=log, start_new_session=True, **changes,
        )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                assert ready.select(20), errors.read_text()
            line = process.stdout.readline()
            assert line, errors.read_text()
            yield Running(process, json.loads(line), errors)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def becomes(true: Callable[[], object], within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True

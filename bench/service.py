"""The rate-limit service as people start it: `onequota serve`, several workers on one socket, a Redis of our own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import PATIENCE_S, ROOT, cpu_ns, ended
from bench.redises import RedisServer

DEADLINE_MS = "10000"
"""For a decision: more processes than cores share the machine, and one that waits for a core is no outage."""

STARTED = "worker_serving"


class NotStartedError(Exception):
    """The service said why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running one; `pid` is the parent's."""

    pid: int
    port: int

    def cpu_ns(self) -> dict[int, int]:
        """CPU time of each of its processes but the parent, nanoseconds."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid): cpu_ns(int(pid)) for pid in children}


@contextlib.contextmanager
def service(redis: RedisServer, *, workers: int) -> Iterator[Service]:
    """Start it; every worker serves when this returns. Raises NotStartedError."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--json"]
    command += ["--workers", str(workers), "--redis", redis.url]
    environment = {**os.environ, "ONEQUOTA_REDIS_TIMEOUT_MS": DEADLINE_MS, "ONEQUOTA_LOG_LEVEL": "info"}
    with tempfile.NamedTemporaryFile(prefix="oq-bench-", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment)
        with ended(process):
            assert process.stdout is not None
            line = process.stdout.readline()
            _await_workers(process, Path(log.name), workers)
            yield Service(pid=process.pid, port=int(json.loads(line)["url"].rpartition(":")[2]))


def _await_workers(process: "subprocess.Popen[str]", log: Path, workers: int) -> None:
    """Not before all are up: the first one would get every connection."""
    deadline = time.monotonic() + PATIENCE_S + 5 * workers
    while (text := log.read_text()).count(STARTED) < workers:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotStartedError(f"the service did not start: {text.strip()[-500:]}")
        time.sleep(0.05)

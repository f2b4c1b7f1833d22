"""The rate-limit service as people start it: `onequota serve`, several workers on one socket, a Redis of our own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import PATIENCE_S, ROOT, cpu_ns, ended
from bench.redises import RedisServer

PATIENT = {"ONEQUOTA_REDIS_TIMEOUT_MS": "10000"}
"""A decision's deadline: more processes than cores share the machine, and one that waits for a core is no outage."""

STARTED = "worker_serving"


class NotStartedError(Exception):
    """The service said why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running one.

    Attributes:
        pid: The parent's.
        log: What it says on standard error.
        grpc: Where gRPC is served; "" = nowhere.
    """

    pid: int
    port: int
    log: Path
    grpc: str = ""

    def workers(self) -> list[int]:
        """Its processes but the parent."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def cpu_ns(self) -> dict[int, int]:
        """CPU time of each of them, nanoseconds."""
        return {pid: cpu_ns(pid) for pid in self.workers()}


@contextlib.contextmanager
def service(
    redis: RedisServer | str,
    *,
    workers: int,
    environment: Mapping[str, str] = PATIENT,
    options: Sequence[str] = (),
) -> Iterator[Service]:
    """Start it; every worker serves when this returns.

    Args:
        redis: A server, or the URL of one.
        workers: How many.
        environment: More variables.
        options: More of the command line.

    Raises:
        NotStartedError: It said why.
    """
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--json"]
    url = redis if isinstance(redis, str) else redis.url
    command += ["--workers", str(workers), "--redis", url, *options]
    environment = {**os.environ, "ONEQUOTA_LOG_LEVEL": "info", **environment}
    with tempfile.NamedTemporaryFile(prefix="oq-bench-", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment)
        with ended(process):
            assert process.stdout is not None
            line = process.stdout.readline()
            _await_workers(process, Path(log.name), workers)
            banner = json.loads(line)
            port = int(banner["url"].rpartition(":")[2])
            yield Service(pid=process.pid, port=port, log=Path(log.name), grpc=banner["grpc"] or "")


def _await_workers(process: "subprocess.Popen[str]", log: Path, workers: int) -> None:
    """Not before all are up: the first one would get every connection."""
    deadline = time.monotonic() + PATIENCE_S + 5 * workers
    while (text := log.read_text()).count(STARTED) < workers:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotStartedError(f"the service did not start: {text.strip()[-500:]}")
        time.sleep(0.05)

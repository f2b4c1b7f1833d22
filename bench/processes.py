"""Processes that are started, measured, and ended by their own id."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

Text = TypeVar("Text", bytes, str)

PATIENCE_S = 30
"""How long a process may take to start or end."""


@contextlib.contextmanager
def ended(process: "subprocess.Popen[Text]") -> Iterator["subprocess.Popen[Text]"]:
    """See that a process is gone afterwards: SIGTERM, and SIGKILL if that does not help."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A server process of `bench.worker`."""

    name: str
    pid: int
    port: int


@contextlib.contextmanager
def worker(name: str, redis_socket: str) -> Iterator[Worker]:
    """Start one; it listens when this returns."""
    command = [sys.executable, "-m", "bench.worker", name, redis_socket]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)) as process:
        assert process.stdout is not None
        yield Worker(name=name, pid=process.pid, port=int(process.stdout.readline()))


ROOT = Path(__file__).parent.parent
"""The source tree: where `bench` and `service` are imported from."""


class Cpus(StrEnum):
    """Where the worker runs, and where Redis and the generator."""

    APART = "apart"
    TOGETHER = "together"
    ANY = "any"


@contextlib.contextmanager
def placed(cpus: Cpus, workers: Sequence[int], others: Sequence[int]) -> Iterator[None]:
    """Keep processes, by id, on CPUs: `workers` on one, `others` and what this process starts on another (Linux).

    The generator is never on the workers' CPU. ANY, or a machine with one CPU, leaves it all to the kernel.
    """
    allowed = os.sched_getaffinity(0)
    if cpus is Cpus.ANY or len(allowed) < 2:
        yield
        return
    first, second = sorted(allowed)[:2]
    for pid in workers:
        os.sched_setaffinity(pid, {first})
    for pid in others:
        os.sched_setaffinity(pid, {second if cpus is Cpus.APART else first})
    os.sched_setaffinity(0, {second})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def cpu_ns(pid: int) -> int:
    """CPU time a process has used so far, all threads, user and system, nanoseconds (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0

"""Load on one route, from a process of its own: wrk where it is installed, else `generator.py`."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.generator import Result, Task, percentile
from bench.processes import ROOT

_UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a generator saw.

    Attributes:
        ok: Answers with status 200.
        bad: Other answers, and requests without one.
        p50_us, p99_us: Latency, microseconds.
    """

    ok: int
    bad: int
    p50_us: int
    p99_us: int


def bundled(task: Task) -> Result:
    """Exactly `task.requests` requests, by our own generator."""
    command = [sys.executable, "-m", "bench.generator"]
    done = subprocess.run(
        command, input=json.dumps(asdict(task)), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return Result(**json.loads(done.stdout))


def seen(result: Result) -> Seen:
    """A bundled generator's result, in short."""
    ok = result.answers.get("200", 0)
    return Seen(
        ok=ok,
        bad=sum(result.answers.values()) - ok + result.errors,
        p50_us=percentile(result.latencies_us, 0.50),
        p99_us=percentile(result.latencies_us, 0.99),
    )


def has_wrk() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def wrk(port: int, path: str, *, seconds: int, connections: int) -> Seen:
    """wrk for a time. It does not wait for the last requests: the server answers up to `connections` more."""
    return _wrk(port, path, [], [], seconds=seconds, connections=connections)


def wrk_script(port: int, path: str, script: Path, arguments: Sequence[str], *, seconds: int, connections: int) -> Seen:
    """The same, with requests that a script of wrk's makes."""
    return _wrk(port, path, ["-s", str(script)], ["--", *arguments], seconds=seconds, connections=connections)


def _wrk(
    port: int, path: str, options: Sequence[str], arguments: Sequence[str], *, seconds: int, connections: int
) -> Seen:
    url = f"http://127.0.0.1:{port}{path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *options, url, *arguments]
    return read_wrk(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def read_wrk(text: str) -> Seen:
    """wrk's report. Raises ValueError if it is none."""
    total = re.search(r"(\d+) requests in ", text)
    if total is None:
        raise ValueError(f"no report of wrk: {text!r}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = int(bad.group(1)) if bad else 0
    return Seen(
        ok=int(total.group(1)) - refused,
        bad=refused + sum(map(int, errors.groups()) if errors else ()),
        p50_us=_latency_us(text, "50%"),
        p99_us=_latency_us(text, "99%"),
    )


def _latency_us(text: str, share: str) -> int:
    found = re.search(rf"^\s*{share}\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    return round(float(found.group(1)) * _UNITS_US[found.group(2)]) if found else 0

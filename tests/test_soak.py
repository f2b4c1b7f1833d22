"""A soak of seconds holds what one of hours promises; and what it would not overlook."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from servers import needs
from typer.testing import CliRunner

from bench import soak
from bench.__main__ import app as command
from bench.soak.report import Report
from bench.soak.traffic import UNITS, Account, Seen


def test_some_seconds_of_everything():
    """Redis stalls, forgets scripts, is killed and comes back; workers are replaced, handed over and killed."""
    needs("redis-server")
    report = soak.soak(minutes=0.3, workers=2, connections=16, every_s=1.5)
    assert not report.broken, report.text()
    assert set(report.events) == {"stall", "flush", "restart", "reload", "hand over", "kill"}
    assert report.seen.degraded > 0, "the store was away, and nobody noticed"


def account(admitted, unknown=0):
    return Account(key="k", algorithm="gcra", admitted=admitted, unknown=unknown, refused=50)


GOOD = Report(
    seconds=600,
    workers=2,
    seen=Seen(answers=Counter({"spend 200": 9}), latencies_s=[0.001], done=[account(UNITS), account(UNITS - 2, 2)]),
    events=Counter(kill=1),
    killed=1,
    connections=8,
    redis_clients=2,
    keys=9,
    memory=(70e6, 71e6),
    parent_bytes=60_000_000,
)


def test_a_good_report_is_good():
    assert GOOD.broken == []
    assert not replace(GOOD, seconds=60, memory=(40e6, 70e6)).broken, "they are still warming up"
    assert "2 used up, 2 exact; 1 admitted 400 of 400" in GOOD.text()
    assert GOOD.text().endswith("every promise holds")


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"done": [account(UNITS + 1)]}, "every account exact"),
        ({"done": [account(UNITS - 1)]}, "every account exact"),
        ({"done": [account(UNITS - 3, 2)]}, "every account exact"),
        ({"done": []}, "some accounts used up"),
        ({"wrong": ["spend: 500 None"]}, "wrong answers: []"),
        ({"lost": 9}, "questions without an answer ≤ 8"),
        ({"redis_clients": 5}, "connections to Redis ≤ 4"),
        ({"memory": (70e6, 90e6)}, "growth of a worker ≤ 0.15"),
        ({"memory": (0.0, 0.0)}, "growth of a worker ≤ 0.15"),
    ],
)
def test_what_is_not_as_promised_is_told(change, promise):
    of_seen = {name: value for name, value in change.items() if name in ("done", "wrong", "lost")}
    seen = replace(GOOD.seen, **of_seen)
    of_report = {name: value for name, value in change.items() if name not in of_seen}
    report = replace(GOOD, seen=seen, **of_report)
    assert [check.promise for check in report.broken] == [promise]
    assert f"BROKEN  {promise}" in report.text()


def test_the_command_ends_with_1_when_a_promise_is_broken(monkeypatch):
    monkeypatch.setattr(soak, "soak", lambda **_: replace(GOOD, redis_clients=99))
    done = CliRunner().invoke(command, ["soak", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["broken"]) == (1, ["connections to Redis ≤ 4"])

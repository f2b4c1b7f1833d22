"""What a slot has spent outlives the process that spent it, and two processes never both have its share."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from driving import Clock

from service.limits import spent as room
from service.limits.algorithms import ALGORITHMS
from service.limits.decision import Ask, Charge
from service.limits.limit import Limit
from service.limits.spent import Spent
from service.limits.stores import memory


def ask(key=b"k", text="10/hour", **how):
    return Ask([Charge(Limit.parse(text, **how)[0], key, 1)])


def remaining(found, question):
    return found.decide(question)[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_whoever_replaces_a_worker_goes_on_where_it_stopped(tmp_path, algorithm):
    question, clock = ask(text="7/hour", algorithm=algorithm), Clock()
    old = Spent(tmp_path / "slot-0", clock)
    assert old.mine()
    for _ in range(5):
        last = old.decide(question)
    clock.forward(1)
    old.release()
    new, other = Spent(tmp_path / "slot-0", clock), Spent(clock=clock)
    assert new.mine()
    assert remaining(new, question) == last[1] - 1
    for _ in range(5):
        other.decide(question)  # the same from the beginning, never written


def test_two_of_one_slot_never_both_have_the_share(tmp_path):
    old, new = Spent(tmp_path / "slot-0"), Spent(tmp_path / "slot-0")
    assert old.mine()
    assert not new.mine()
    old.decide(ask())
    assert not new.mine()
    old.release()
    assert not old.mine(), "a retired worker does not take it back"
    assert new.mine()
    assert remaining(new, ask()) == 8
    assert not old.mine()


def test_slots_do_not_meet(tmp_path):
    both = Spent(tmp_path / "slot-0"), Spent(tmp_path / "slot-1")
    assert all(found.mine() for found in both)
    assert [remaining(found, ask()) for found in both] == [9, 9]


HOLDER = """
import sys
from pathlib import Path
from service.limits.decision import Ask, Charge
from service.limits.limit import Limit
from service.limits.spent import Spent

found = Spent(Path(sys.argv[1]))
assert found.mine()
for _ in range(4):
    found.decide(Ask([Charge(Limit.parse("10/hour")[0], b"k", 1)]))
print("spent", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_leaves_its_spending_behind_and_no_lock(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "slot-0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "spent\n"
        heir = Spent(tmp_path / "slot-0")
        assert not heir.mine()
        os.kill(process.pid, number)
        process.wait()
    assert heir.mine()
    assert remaining(heir, ask()) == 5


@pytest.mark.parametrize("what", ["no directory", "no file of ours"])
def test_a_file_that_cannot_be_used_is_said_once_and_the_worker_counts_on(tmp_path, caplog, what):
    path = tmp_path / "nowhere" / "slot-0" if what == "no directory" else tmp_path / "slot-0"
    if what == "no file of ours":
        path.write_bytes(b"something else" * 500)
    found = Spent(path)
    for left in (9, 8, 7):
        assert found.mine()
        assert remaining(found, ask()) == left
    assert caplog.text.count("share_not_kept") == 1


def test_a_disk_that_fills_up_is_said_once_and_the_worker_counts_on(tmp_path, caplog):
    found = Spent(tmp_path / "slot-0")
    assert found.mine()
    found._file.execute("PRAGMA max_page_count = 8")
    left = [remaining(found, ask(b"k%d" % number)) for number in range(2000)]
    assert left == [9] * 2000
    assert remaining(found, ask(b"k7")) == 8
    assert caplog.text.count("share_not_kept") == 1
    assert found.mine()


def test_a_flood_of_made_up_identities_takes_bounded_memory_and_disk(tmp_path, monkeypatch):
    """The newest counters stay."""
    monkeypatch.setattr(room, "MOST_KEPT", 300)
    monkeypatch.setattr(room, "TIDY_EVERY", 50)
    monkeypatch.setattr(memory, "SWEEP_EVERY", 100)
    found = Spent(tmp_path / "slot-0")
    assert found.mine()
    for number in range(5000):
        found.decide(ask(b"k%d" % number))
    assert len(found._store._kept) <= 2 * 300
    found.release()
    with contextlib.closing(sqlite3.connect(tmp_path / "slot-0")) as file:
        assert file.execute("SELECT count(*) FROM spent").fetchone()[0] <= 300 + 50
    heir = Spent(tmp_path / "slot-0")
    assert heir.mine()
    assert remaining(heir, ask(b"k4999")) == 8


def test_what_is_over_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "TIDY_EVERY", 10)
    clock = Clock()
    found = Spent(tmp_path / "slot-0", clock)
    assert found.mine()
    for number in range(100):
        found.decide(ask(b"k%d" % number, "10/second"))
        clock.forward(1)
    found.release()
    with contextlib.closing(sqlite3.connect(tmp_path / "slot-0")) as file:
        assert file.execute("SELECT count(*) FROM spent").fetchone()[0] <= 11

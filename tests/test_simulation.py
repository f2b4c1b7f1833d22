"""Some hundred seeds of the simulation hold every promise; and each kind of bug, planted, is found by it."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from redis.exceptions import NoScriptError, RedisError
from typer.testing import CliRunner

from bench.__main__ import app as command
from bench.processes import ROOT
from bench.simulation import run, simulate
from bench.simulation.bounds import Bucket, Fixed, Moving
from bench.simulation.loop import StuckError, virtual_loop
from bench.simulation.network import SimulatedStore
from service.limits import fallback, outage
from service.limits.algorithms.concurrency import Concurrency
from service.limits.algorithms.fixed_window import FixedWindow
from service.limits.algorithms.gcra import Gcra
from service.limits.algorithms.moving_window import MovingWindow
from service.limits.decision import CHARGE
from service.limits.lane import Lane
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore

SEEDS = 120
FOUND_WITHIN = 60
"""Seeds in which a planted bug must show."""


def test_every_promise_holds_whatever_goes_wrong():
    report = simulate(range(SEEDS))
    assert not report.broken, [run(seed).text() for seed in report.broken]
    assert len(report.events) == 10, f"not every fault took place: {report.events}"
    for outcome in ("admitted", "refused", "degraded", "unavailable", "gone", "charged late"):
        assert report.counts[outcome] > SEEDS / 2, report.counts


def test_the_same_seed_is_the_same_run():
    """To the microsecond: in this process, and in one that hashes strings in another order."""
    traces = [run(seed).trace for seed in range(8)]
    assert traces == [run(seed).trace for seed in range(8)]
    assert len(set(traces)) == 8
    source = "from bench.simulation import run; print(*(run(seed).trace for seed in range(8)))"
    env = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == traces


# ── planted bugs ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Resends(SimulatedStore):
    """What redis-py does by default: whatever failed is sent again."""

    async def _call(self, call):
        try:
            return await super()._call(call)
        except RedisError:
            return await super()._call(call)


class Keeps(SimulatedStore):
    """A call that was given up leaves its connection, on which its answer will come."""

    async def _call(self, call):
        connection = await self._connected()
        connection._waits = False
        for words in (call, ("SCRIPT", "LOAD", ""), call):
            await connection.send_command(*words)
            with contextlib.suppress(NoScriptError):
                answer = await connection.read_response()
                if words is call:
                    break
        return answer


class Leaks(SimulatedStore):
    """The end closes nothing."""

    async def aclose(self):
        self._connection = None


def unsettled_is_not_counted(patch):
    settle = Lane._fail

    def fail(self, batch, error):
        before = self._counters.unsettled
        settle(self, batch, error)
        self._counters.unsettled = before

    patch.setattr(Lane, "_fail", fail)


def everything_is_unsettled(patch):
    settle = Lane._settle

    def count(self, batch, numbers):
        self._counters.unsettled += 1
        settle(self, batch, numbers)

    patch.setattr(Lane, "_settle", count)


def whoever_left_shifts_the_answers(patch):
    settle = Lane._settle

    def shifted(self, batch, numbers):
        settle(self, [waiting for waiting in batch if not waiting[1].cancelled()], numbers)

    patch.setattr(Lane, "_settle", shifted)


def nobody_watches_the_deadline(patch):
    patch.setattr(Lane, "_expire", lambda self: None)


def what_nobody_waits_for_is_sent(patch):
    def take(self):
        batch = list(self._queue)[:40]
        for _ in batch:
            self._queue.popleft()
        return batch

    patch.setattr(Lane, "_take", take)


def one_unit_too_many(patch):
    wait = FixedWindow.wait
    patch.setattr(FixedWindow, "wait", lambda self, cost: wait(self, cost - (self.used == self.capacity)))


def a_unit_leaves_early(patch):
    made = MovingWindow.__init__

    def early(self, definition, state, now_us):
        made(self, definition, state, now_us + 20_000)
        self.now_us = now_us

    patch.setattr(MovingWindow, "__init__", early)


def tokens_flow_in_faster(patch):
    made = Gcra.__init__

    def fast(self, definition, state, now_us):
        made(self, definition, state, now_us)
        self.tat = max(Fraction(now_us), self.tat - 1000)

    patch.setattr(Gcra, "__init__", fast)


def a_wait_is_told_too_short(patch):
    wait = Gcra.wait
    patch.setattr(Gcra, "wait", lambda self, cost: max(min(1, wait(self, cost)), wait(self, cost) - 500))


def a_refused_request_is_charged(patch):
    one = MemoryStore._one

    def charged(self, ask, kind, now_us):
        numbers = one(self, ask, kind, now_us)
        if kind == CHARGE and any(numbers[2::4]):
            for charge in ask.charges:
                twin = self._load(charge.key, charge.limit.definition, now_us)
                if twin.wait(charge.cost) == 0:
                    twin.charge(charge.cost)
                    self._kept[charge.key] = (twin.state(), twin.until_us())
        return numbers

    patch.setattr(MemoryStore, "_one", charged)


def leases_end_early(patch):
    made = Concurrency.__init__

    def early(self, definition, state, now_us):
        made(self, definition, state, now_us)
        self.leases = {lease: ends_us for lease, ends_us in self.leases.items() if ends_us > now_us + 50_000}

    patch.setattr(Concurrency, "__init__", early)


def tokens_are_forgotten(patch):
    once = MemoryStore._once

    def forgets(self, ask, now_us):
        self._kept.pop(ask.token.key, None)
        return once(self, ask, now_us)

    patch.setattr(MemoryStore, "_once", forgets)


def giving_back_gives_more(patch):
    give_back = MovingWindow.give_back
    patch.setattr(MovingWindow, "give_back", lambda self, cost, at_us: give_back(self, cost + 1, at_us))


def a_breaker_opens_late(patch):
    patch.setattr(outage, "OPENED_BY", 3)


def a_breaker_looks_too_often(patch):
    patch.setattr(outage, "PROBE_S", (0.9, 1.1))


def every_worker_admits_the_whole_limit(patch):
    patch.setattr(fallback, "share", lambda limit, place: limit)


def who_comes_in_an_outage_waits(patch):
    stand_in = Lane.stand_in

    def waits(self, ask, **more):
        answer = self.loop.create_future()
        found = stand_in(self, ask, **more)
        found.exception() if found.done() and not found.cancelled() else None
        self.loop.call_later(0.01, lambda: answer.done() or _copy(found, answer))
        return answer

    patch.setattr(Lane, "stand_in", waits)


def _copy(found, answer):
    if found.exception() is not None:
        answer.set_exception(found.exception())
    else:
        answer.set_result(found.result())


def found(make_store=SimulatedStore):
    for seed in range(FOUND_WITHIN):
        one = run(seed, make_store)
        if one.broken is not None:
            return one
    pytest.fail(f"not found in {FOUND_WITHIN} seeds")


@pytest.mark.parametrize(
    ("store", "says"),
    [(Resends, "decided twice"), (Keeps, "was told|not enough values"), (Leaks, "connection")],
)
def test_a_bug_planted_in_the_store_is_found_and_named(store, says):
    assert re.search(says, found(store).broken)


PLANTED = {
    unsettled_is_not_counted: "had charged",
    everything_is_unsettled: "had charged|in peace",
    whoever_left_shifts_the_answers: "was told",
    nobody_watches_the_deadline: "after its deadline",
    what_nobody_waits_for_is_sent: "was sent although",
    one_unit_too_many: "units in the window",
    a_unit_leaves_early: "in less than a window",
    tokens_flow_in_faster: "tokens there",
    a_wait_is_told_too_short: "passed not",
    a_refused_request_is_charged: "was refused, and changed",
    leases_end_early: "leases live at once",
    tokens_are_forgotten: "its token was charged before",
    giving_back_gives_more: "in less than a window",
    a_breaker_opens_late: "asks for a caller although 2 calls",
    a_breaker_looks_too_often: "probes \\d+ us after",
    every_worker_admits_the_whole_limit: "without the server",
    who_comes_in_an_outage_waits: "was answered 10000 us ",
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_bug_is_found_and_named(plant, monkeypatch):
    plant(monkeypatch)
    one = found()
    assert re.search(PLANTED[plant], one.broken), one.text()
    assert one.text().startswith(f"seed {one.seed}: ")


def test_a_seed_that_breaks_a_promise_is_printed_and_the_command_ends_with_1(monkeypatch):
    """With its last steps; the others are run all the same."""
    tokens_are_forgotten(monkeypatch)
    done = CliRunner().invoke(command, ["simulate", "--seeds", "6", "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["seeds"]) == (1, 6)
    assert report["broken"], report
    first = report["broken"][0]
    assert done.stderr.startswith(f"seed {first}: ")
    assert run(first).broken in done.stderr


def test_the_command_says_what_took_place():
    done = CliRunner().invoke(command, ["simulate", "--seeds", "3", "--seed", "5"])
    assert done.exit_code == 0
    assert done.stdout.startswith("3 seeds, 0.0 h of virtual time: every promise holds\n")


# ── its parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_virtual_time_passes_without_waiting_and_in_order():
    seen = []

    async def sleeper(us):
        await asyncio.sleep(us / 1_000_000)
        seen.append((us, asyncio.get_running_loop().now_us))

    async def main():
        await asyncio.gather(*map(sleeper, (3_600_000_000, 7, 1_000_001, 0)))

    with virtual_loop() as loop:
        loop.run_until_complete(main())
        assert seen == [(us, us) for us in (0, 7, 1_000_001, 3_600_000_000)]


def test_who_waits_for_what_never_comes_is_told_at_once():
    async def main():
        await asyncio.get_running_loop().create_future()

    with virtual_loop() as loop, pytest.raises(StuckError, match="nothing is due"):
        loop.run_until_complete(main())


TEN = Limit(amount=10, window_s=60)
S = 1_000_000


@pytest.mark.parametrize(
    ("bound", "log", "breaks_at"),
    [
        (Moving(TEN), [(0, 4), (59 * S, 6), (60 * S, 4)], None),
        (Moving(TEN), [(0, 4), (59 * S, 6), (60 * S - 1, 1)], 2),
        (Moving(TEN, 2), [(0, 10), (59 * S, 10), (60 * S, 10), (118 * S, 1)], 3),
        (Fixed(TEN), [(0, 1), (59 * S, 9), (60 * S, 10), (119 * S, 0)], None),
        (Fixed(TEN), [(0, 1), (59 * S, 9), (60 * S - 1, 1)], 2),
        (Fixed(TEN), [(7, 10), (60 * S + 7, 10), (61 * S, 1)], 2),
        (Bucket(TEN), [(0, 10), (6 * S, 1), (18 * S, 2)], None),
        (Bucket(TEN), [(0, 10), (6 * S - 1, 1)], 1),
        (Bucket(Limit(amount=10, window_s=60, algorithm="gcra", burst=2)), [(0, 2), (6 * S, 1), (60 * S, 3)], 2),
    ],
)
def test_bounds_know_what_is_too_much(bound, log, breaks_at):
    broken = [index for index, passed in enumerate(log) if bound.passed(*passed) is not None]
    assert broken[:1] == ([] if breaks_at is None else [breaks_at])

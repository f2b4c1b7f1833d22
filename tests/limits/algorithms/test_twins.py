"""Each twin does what its docstring says: a table a reader can check by hand. Times in seconds, limits 3/10 s or so.

Rows: (when, cost) → allowed, remaining, retry after, reset after, next unit after.
"""

import pytest

from service.limits.decision import CHARGE, DEBIT, GIVE_BACK, Ask, Charge, read
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore

START_US = 1_790_000_000_000_000  # a multiple of 10 s: windows aligned to the epoch begin here too
S = 1_000_000


class Counter:
    """One key in a memory store whose clock is set by hand."""

    def __init__(self, limit):
        self.now_us = START_US
        self.limit = limit
        self.store = MemoryStore(lambda: self.now_us)

    def at(self, when_s, cost=1, kind=CHARGE, charged_s=0.0):
        self.now_us = START_US + round(when_s * S)
        ask = Ask([Charge(self.limit, b"k", cost)], kind, START_US + round(charged_s * S))
        numbers = self.store.decide_now([ask])
        return read(ask, numbers[0], numbers, 1)

    def row(self, when_s, cost, kind=CHARGE):
        decision = self.at(when_s, cost, kind)
        (standing,) = decision.standings
        return (
            decision.allowed,
            standing.remaining,
            *(us / S for us in (standing.retry_us, standing.reset_us, standing.next_us)),
        )


TABLES = {
    "fixed-window": [
        # the window runs from 1 s to 11 s
        ((1, 1), (True, 2, 0, 10, 10)),
        ((4, 2), (True, 0, 0, 7, 7)),
        ((10, 1), (False, 0, 1, 1, 1)),
        ((10.5, 0), (True, 0, 0, 0.5, 0.5)),
        ((11, 3), (True, 0, 0, 10, 10)),
        ((21, 4 - 1), (True, 0, 0, 10, 10)),
    ],
    "moving-window": [
        # each unit leaves 10 s after it came
        ((1, 1), (True, 2, 0, 10, 10)),
        ((4, 2), (True, 0, 0, 10, 7)),
        ((10, 1), (False, 0, 1, 4, 1)),
        ((10, 2), (False, 0, 4, 4, 1)),
        ((11, 1), (True, 0, 0, 10, 3)),
        ((14, 2), (True, 0, 0, 10, 7)),
    ],
    "sliding-window-counter": [
        # the window from 1 s to 11 s ends with 3 units; half of it is in view at 16 s: 1.5 of 3 are used
        ((1, 3), (True, 0, 0, 20, 40 / 3)),
        ((10, 1), (False, 0, 1 + 10 / 3, 11, 1 + 10 / 3)),
        ((16, 1), (True, 0, 0, 15, 5 / 3)),
        ((16, 2), (False, 0, 5, 15, 5 / 3)),
    ],
    "gcra": [
        # a token every 10/3 s, three at once
        ((1, 3), (True, 0, 0, 10, 10 / 3)),
        ((1, 1), (False, 0, 10 / 3, 10, 10 / 3)),
        ((6, 1), (True, 0, 0, 25 / 3, 5 / 3)),
        ((16, 0), (True, 3, 0, 0, 0)),
    ],
}


@pytest.mark.parametrize("algorithm", TABLES)
def test_the_table_of(algorithm):
    counter = Counter(Limit(amount=3, window_s=10, algorithm=algorithm))
    for (when_s, cost), expected in TABLES[algorithm]:
        assert counter.row(when_s, cost) == pytest.approx(expected, abs=2e-6), (when_s, cost)


DEBITS = {
    "fixed-window": [
        # the window runs from 1 s to 11 s, and what is owed ends with it
        ((1, 2, CHARGE), (True, 1, 0, 10, 10)),
        ((4, 5, DEBIT), (True, 0, 0, 7, 7)),
        ((10, 1, CHARGE), (False, 0, 1, 1, 1)),
        ((11, 3, CHARGE), (True, 0, 0, 10, 10)),
    ],
    "moving-window": [
        # 2 units leave at 11 s, the 5 of the debit at 14 s: 1 of 3 is there when all but 2 have left
        ((1, 2, CHARGE), (True, 1, 0, 10, 10)),
        ((4, 5, DEBIT), (True, 0, 0, 10, 10)),
        ((11, 1, CHARGE), (False, 0, 3, 3, 3)),
        ((14.01, 3, CHARGE), (True, 0, 0, 10, 10)),
    ],
    "sliding-window-counter": [
        # 6 units in the window from 1 s to 11 s: half of them are in view at 16 s, 2 of them at 17.67 s
        ((1, 3, CHARGE), (True, 0, 0, 20, 40 / 3)),
        ((1, 3, DEBIT), (True, 0, 0, 20, 50 / 3)),
        ((16, 1, CHARGE), (False, 0, 5 / 3, 5, 5 / 3)),
        ((16 + 5 / 3, 1, CHARGE), (True, 0, 0, 40 / 3, 5 / 3)),
    ],
    "gcra": [
        # empty at 1 s and 3 tokens owed: a token every 10/3 s, so the first that may be spent is the fourth
        ((1, 3, CHARGE), (True, 0, 0, 10, 10 / 3)),
        ((1, 3, DEBIT), (True, 0, 0, 20, 40 / 3)),
        ((11, 1, CHARGE), (False, 0, 10 / 3, 10, 10 / 3)),
        ((11, 1000, DEBIT), (True, 0, 0, 20, 40 / 3)),  # no more than one window is ever owed
    ],
}


@pytest.mark.parametrize("algorithm", DEBITS)
def test_a_debit_takes_what_is_not_there_and_who_comes_next_waits_for_it(algorithm):
    """Never refused, remaining stays at 0, and the waits that are told are those that come."""
    counter = Counter(Limit(amount=3, window_s=10, algorithm=algorithm))
    for asked, expected in DEBITS[algorithm]:
        assert counter.row(*asked) == pytest.approx(expected, abs=0.01), asked


@pytest.mark.parametrize("algorithm", DEBITS)
def test_a_debit_that_fits_is_a_charge(algorithm):
    limit = Limit(amount=3, window_s=10, algorithm=algorithm)
    charged, debited = Counter(limit), Counter(limit)
    assert charged.at(1, 2, CHARGE) == debited.at(1, 2, DEBIT)
    assert charged.at(3, 1) == debited.at(3, 1)


@pytest.mark.parametrize("algorithm", DEBITS)
def test_a_debit_locks_out_for_two_windows_at_most(algorithm):
    """Even one that was a mistake: a billion units on a limit of 3."""
    counter = Counter(Limit(amount=3, window_s=10, algorithm=algorithm))
    counter.at(1, 10**9, DEBIT)
    assert counter.at(1, 3).retry_us <= 20 * S
    assert counter.at(21.01, 3).allowed


@pytest.mark.parametrize("algorithm", ["fixed-window", "moving-window", "sliding-window-counter", "gcra"])
def test_a_refusal_changes_nothing(algorithm):
    limit = Limit(amount=3, window_s=10, algorithm=algorithm)
    quiet, noisy = Counter(limit), Counter(limit)
    for counter in (quiet, noisy):
        counter.at(1, 2)
    for _ in range(50):
        assert not noisy.at(2, 2).allowed
    assert quiet.at(3, 1) == noisy.at(3, 1)


@pytest.mark.parametrize("algorithm", ["fixed-window", "moving-window", "sliding-window-counter", "gcra"])
def test_what_is_given_back_at_once_can_be_spent_again(algorithm):
    counter = Counter(Limit(amount=3, window_s=10, algorithm=algorithm))
    assert counter.at(1, 3).allowed
    counter.at(1, 3, GIVE_BACK, charged_s=1)
    assert counter.at(1, 3).allowed


@pytest.mark.parametrize("algorithm", ["fixed-window", "moving-window", "sliding-window-counter", "gcra"])
def test_what_is_given_back_too_late_gives_nothing(algorithm):
    counter = Counter(Limit(amount=3, window_s=10, algorithm=algorithm))
    counter.at(1, 3)
    assert counter.at(40, 3).allowed
    before = counter.at(40, 0)
    counter.at(40, 3, GIVE_BACK, charged_s=1)
    assert counter.at(40, 0) == before


def test_a_window_begins_at_the_first_hit_unless_it_is_aligned():
    first = Counter(Limit(amount=3, window_s=10))
    aligned = Counter(Limit(amount=3, window_s=10, aligned=True))
    assert first.at(4, 1).standings[0].reset_us == 10 * S
    assert aligned.at(4, 1).standings[0].reset_us == 6 * S


def test_a_period_of_the_calendar_is_one_window_for_whoever_is_early_or_a_second_late():
    counter = Counter(Limit(amount=3, window_s=60, since_s=START_US // S + 10))
    rows = [
        # the period runs from 10 s to 70 s, and is counted until 71 s
        ((9, 1), (True, 2, 0, 61, 61)),
        ((10, 1), (True, 1, 0, 60, 60)),
        ((69.5, 2), (False, 1, 0.5, 0.5, 0.5)),
        ((70.9, 2), (False, 1, 0.000001, 0.000001, 0.000001)),
        ((70.9, 1), (True, 0, 0, 0.000001, 0.000001)),
        ((71, 3), (True, 3, 0, 0, 0)),  # over: nothing counts any more
    ]
    for asked, expected in rows:
        assert counter.row(*asked) == pytest.approx(expected, abs=1e-9), asked


def test_all_pass_or_none_is_charged():
    now_us = START_US
    store = MemoryStore(lambda: now_us)
    minute, hour = Limit.parse("2/minute;10/hour")
    allowed = 0
    for _ in range(6):
        ask = Ask([Charge(minute, b"m", 1), Charge(hour, b"h", 1)])
        numbers = store.decide_now([ask])
        decision = read(ask, numbers[0], numbers, 1)
        allowed += decision.allowed
    assert allowed == 2
    assert decision.standings[1].remaining == 8  # six tries, two charged
    assert [standing.limit.name for standing in decision.exceeded] == ["2/minute"]


def test_a_forgotten_counter_is_swept(monkeypatch):
    monkeypatch.setattr("service.limits.stores.memory.SWEEP_EVERY", 100)
    counter = Counter(Limit(amount=3, window_s=10))
    counter.store._until_sweep = 100
    for number in range(99):
        counter.store.decide_now([Ask([Charge(counter.limit, b"%d" % number, 1)])])
    counter.now_us += 11 * S
    counter.at(20)
    assert len(counter.store._kept) == 1

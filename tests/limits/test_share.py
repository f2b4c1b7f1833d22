"""A worker's share: all shares together are the limit, or less where nobody can have the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.limits.algorithms import ALGORITHMS
from service.limits.limit import Limit
from service.limits.share import Place, share

TABLE = [
    # limit, workers, hosts, the shares of slots 0, 1, 2, …
    ("10/minute", 1, 1, [10]),
    ("10/minute", 4, 1, [4, 2, 2, 2]),
    ("10/minute", 4, 3, [3, None, None, None]),
    ("3/minute", 4, 1, [3, None, None, None]),
    ("100/minute", 2, 2, [25, 25]),
    ("1/minute", 2, 2, [None, None]),
]


@pytest.mark.parametrize(("text", "workers", "hosts", "shares"), TABLE)
def test_the_rest_of_a_division_is_slot_0s(text, workers, hosts, shares):
    (limit,) = Limit.parse(text)
    found = [share(limit, Place(slot=slot, workers=workers, hosts=hosts)) for slot in range(workers)]
    assert [part and part.amount for part in found] == shares


def test_without_slots_the_rest_is_nobodys():
    (limit,) = Limit.parse("10/minute")
    found = share(limit, Place(slot=None, workers=4))
    assert found is not None
    assert found.amount == 2


def test_a_slot_that_is_no_longer_wanted_has_nothing():
    (limit,) = Limit.parse("10/minute")
    assert share(limit, Place(slot=4, workers=4)) is None


def test_a_share_counts_as_its_limit_does():
    limit = Limit(amount=60, window_s=60, algorithm="gcra", burst=10, name="tokens")
    assert share(limit, Place(slot=1, workers=4)) == Limit(
        amount=15, window_s=60, algorithm="gcra", burst=2, name="tokens"
    )
    assert share(limit, Place(slot=0, workers=4)) == Limit(
        amount=15, window_s=60, algorithm="gcra", burst=4, name="tokens"
    )
    aligned = Limit(amount=7, window_s=60, aligned=True)
    assert share(aligned, Place(slot=0, workers=2)) == Limit(amount=4, window_s=60, aligned=True, name=aligned.name)


def test_what_gcra_could_not_count_exactly_is_rounded_down():
    """333333333/hour is beyond its range, and 333333000/hour is not."""
    limit = Limit(amount=10**9, window_s=3600, algorithm="gcra")
    found = share(limit, Place(slot=1, workers=3))
    assert found is not None
    assert 333_000_000 <= found.amount <= 333_333_333


@given(
    amount=st.integers(1, 10**9),
    burst=st.none() | st.integers(1, 10**9),
    window_s=st.sampled_from([1, 60, 3600, 86_400, 7 * 86_400 + 1]),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    workers=st.integers(1, 33),
    hosts=st.integers(1, 9),
)
def test_all_shares_together_are_at_most_the_limit(amount, burst, window_s, algorithm, workers, hosts):
    try:
        limit = Limit(
            amount=amount, window_s=window_s, algorithm=algorithm, burst=burst if algorithm == "gcra" else None
        )
    except ValueError:
        return
    parts = [share(limit, Place(slot=slot, workers=workers, hosts=hosts)) for slot in range(workers)]
    found = [part for part in parts if part is not None]
    assert hosts * sum(part.amount for part in found) <= limit.amount
    assert hosts * sum(part.capacity for part in found) <= limit.capacity
    if hosts == 1 and algorithm != "gcra":
        assert sum(part.amount for part in found) == limit.amount

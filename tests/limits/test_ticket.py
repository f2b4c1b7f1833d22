"""An id says itself what it is about: whoever makes one up gets nowhere, and nobody else notices."""

import json
from base64 import urlsafe_b64encode

import pytest

from service.errors import NotHeld
from service.limits import keys
from service.limits import ticket as tickets
from service.limits.limit import Limit

RANDOM = "A" * 24
OTHER_THAN_WHOLE = [10.0, 10.5, True, False, "10", None, [], [10], {}, -1, 10**400, 1e300, float("inf"), float("nan")]
GOOD = {"amount": 10, "window_s": 60}


def made_up(limit, key=None, *, ttl_s=600, cost=5, keep_s=600, units=5, times=1):
    """An id as somebody would write it who knows how: as JSON is written here, so that it reads as it is written."""
    key = key or keys.spell("", "alice", "c.", Limit(**GOOD).spelling).decode()
    said = json.dumps([ttl_s, cost, keep_s, [[key, units, limit]] * times], separators=(",", ":"))
    return f"{RANDOM}r{urlsafe_b64encode(said.encode()).decode().rstrip('=')}"


def test_one_that_is_right_is_read():
    assert tickets.read(made_up(GOOD)).charges[0].limit == Limit(**GOOD)


@pytest.mark.parametrize("number", OTHER_THAN_WHOLE, ids=repr)
@pytest.mark.parametrize("word", ["amount", "window_s", "burst", "since_s"])
def test_a_limit_of_other_than_whole_numbers_is_none(word, number):
    """The script reads numbers one after the other: one more, or one fewer, and all others asks are misread."""
    if number is None and word in ("burst", "since_s"):
        return
    limit = {**GOOD, word: number} | ({"algorithm": "gcra"} if word == "burst" else {})
    short = "/gcra" if word == "burst" else "/fixed"
    spelling = {
        "amount": f"{number}/60s",
        "window_s": f"10/{number}s",
        "burst": f"10/60s/b{number}",
        "since_s": f"10/60s/@{number}",
    }
    key = keys.spell("", "alice", "c.", spelling[word] + short).decode()
    with pytest.raises(NotHeld):
        tickets.read(made_up(limit, key))


@pytest.mark.parametrize("wrong", [{"aligned": 1}, {"aligned": "yes"}, {"name": 5}, {"name": ["a"]}, {"algorithm": []}])
def test_a_limit_of_other_than_its_parts_is_none(wrong):
    with pytest.raises(NotHeld):
        tickets.read(made_up({**GOOD, **wrong}))


@pytest.mark.parametrize("number", OTHER_THAN_WHOLE, ids=repr)
@pytest.mark.parametrize("word", ["ttl_s", "cost", "keep_s", "units"])
def test_other_than_whole_numbers_beside_it_are_none(word, number):
    with pytest.raises(NotHeld):
        tickets.read(made_up(GOOD, **{word: number}))


def test_a_counter_twice_is_none():
    with pytest.raises(NotHeld):
        tickets.read(made_up(GOOD, times=2))

"""No two different tuples share a key; every key is short; plain ones can be read."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.limits import keys
from service.limits.algorithms import ALGORITHMS
from service.limits.limit import LARGEST_AMOUNT, LONGEST_WINDOW_S, Limit

NASTY = ["a", "b", "a/b", "{a}", "a}", "}", ":", "a:b", "~a", "", " ", "é", "a" * 200, "\ud800", "%", "*", "oq", "a\n"]


def test_a_plain_key_can_be_read():
    assert keys.spell("", "alice", "api.chat", "10/60s/fixed") == b"oq:{alice}:api.chat:10/60s/fixed"


def test_all_limits_of_one_identity_are_in_one_cluster_slot():
    for identity in NASTY[:-3]:
        tags = {
            key[key.index(b"{") + 1 : key.index(b"}")]
            for key in (keys.spell(prefix, identity, scope, "1/1s/fixed") for prefix in NASTY for scope in NASTY)
        }
        assert tags == {keys.who(identity)}
        assert keys.who(identity)


def test_nasty_tuples_never_meet():
    tuples = list(itertools.product(NASTY, NASTY, NASTY))
    spelled = {keys.spell(prefix or "x", identity, scope, "1/1s/fixed") for prefix, identity, scope in tuples}
    assert len(spelled) == len({(prefix or "x", identity, scope) for prefix, identity, scope in tuples})


@given(st.tuples(*[st.text(max_size=60)] * 3), st.tuples(*[st.text(max_size=60)] * 3))
def test_different_tuples_have_different_keys(one, other):
    spelled = [keys.spell(prefix or "oq", identity, scope, "1/1s/fixed") for prefix, identity, scope in (one, other)]
    same = (one[0] or "oq", *one[1:]) == (other[0] or "oq", *other[1:])
    assert (spelled[0] == spelled[1]) == same


def test_slashes_do_not_move_between_parts():
    assert keys.spell("", "a", "b/c", "1/1s/fixed") != keys.spell("", "a/b", "c", "1/1s/fixed")


def test_the_longest_key_has_at_most_128_bytes():
    longest = max(
        (
            Limit(
                amount=LARGEST_AMOUNT,
                window_s=LONGEST_WINDOW_S,
                algorithm=name,
                aligned=True,
                burst=10**9 - 1 if name == "gcra" else None,
            ).spelling
            for name in ALGORITHMS
            if name != "gcra"
        ),
        key=len,
    )
    gcra = Limit(amount=10**9, window_s=1, algorithm="gcra", burst=999_999_999, aligned=True).spelling
    for identity in ("x" * 36, "x" * 37, "é" * 500):
        for scope in ("x" * 24, "x" * 25):
            for limit in (longest, gcra, f"1000000000/{LONGEST_WINDOW_S}s/b1000000000/a/sliding"):
                assert len(keys.spell("p" * 12, identity, scope, limit)) <= keys.LONGEST

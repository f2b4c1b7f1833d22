"""Asks as they travel to a service that keeps their counters: what arrives is what was sent, in a space of its own."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import AlreadySettled, InvalidInput, InvalidLimit, NotHeld, StoreUnavailable
from service.limits import asks, keys
from service.limits.algorithms import KNOWN
from service.limits.decision import (
    CHARGE,
    CLOSED,
    CONFLICT,
    DEBIT,
    GIVE_BACK,
    LOOK,
    RENEW,
    Ask,
    Charge,
    Decision,
    LeaseAsk,
    Replayed,
    SettleAsk,
    Standing,
    Token,
    TokenAsk,
    read,
)
from service.limits.limit import Limit
from service.limits.stores.memory import MemoryStore


@st.composite
def limits(draw):
    algorithm = draw(st.sampled_from(sorted(KNOWN)))
    fixed = algorithm == "fixed-window"
    try:
        return Limit(
            amount=draw(st.integers(1, 10**9)),
            window_s=draw(st.integers(1, 10**6)),
            algorithm=algorithm,
            burst=draw(st.none() | st.integers(1, 10**6)) if algorithm == "gcra" else None,
            aligned=fixed and draw(st.booleans()),
        )
    except InvalidLimit:
        return Limit(amount=7, window_s=60, since_s=draw(st.integers(0, 2 * 10**9)))


TEXTS = st.text(max_size=50)


@st.composite
def some_asks(draw):
    kind = draw(st.sampled_from([CHARGE, LOOK, GIVE_BACK, DEBIT, RENEW]))
    found = {}
    for limit in draw(st.lists(limits(), min_size=1, max_size=3)):
        key = keys.spell(draw(TEXTS), draw(TEXTS), draw(TEXTS), limit.spelling)
        most = 10**9 if kind == DEBIT else limit.capacity
        found[key] = Charge(limit, key, draw(st.sampled_from([0, 1, most])))
    charges = list(found.values())
    at_us = draw(st.integers(0, 2**52)) if kind == GIVE_BACK else 0
    leases = st.integers(0, 2**48 - 1).map(lambda number: f"{number} 7 0")
    lease = draw(leases if kind == RENEW else st.none() | leases)
    if draw(st.booleans()) and kind != LOOK:
        token = Token(keys.once(draw(TEXTS), draw(TEXTS), draw(TEXTS)), draw(st.binary(min_size=16, max_size=16)), 60)
        charges = draw(st.just(charges) | st.just([]))
        if kind in (GIVE_BACK, DEBIT) and draw(st.booleans()):
            return SettleAsk(charges, token, kind, draw(st.integers(0, 10**9)), 600)
        return TokenAsk(charges, token, kind, at_us, lease)
    return Ask(charges, kind, at_us) if lease is None or kind == GIVE_BACK else LeaseAsk(charges, lease, kind)


def arrived(sent, space="team"):
    return asks.read(json.dumps(asks.document(sent)), space)


@given(st.lists(some_asks(), min_size=1, max_size=5))
def test_what_arrives_is_what_was_sent_but_for_the_keys(sent):
    found = arrived(sent)
    for before, after in zip(sent, found, strict=True):
        assert type(after) is type(before)
        assert (after.kind, after.at_us, after.lease, after.width) == (
            before.kind, before.at_us, before.lease, before.width,
        )  # fmt: skip
        assert [(c.limit.words, c.limit.spelling, c.cost) for c in after.charges] == [
            (c.limit.words, c.limit.spelling, c.cost) for c in before.charges
        ]
        assert all(charge.limit.on_outage == "deny" for charge in after.charges)
        if isinstance(before, TokenAsk):
            assert after.token[1:] == before.token[1:]
        if isinstance(before, SettleAsk):
            assert (after.settled, after.open_s) == (before.settled, before.open_s)


@given(st.lists(some_asks(), min_size=1, max_size=5), st.sampled_from(["", "a", "a/b", "a\0b"]))
def test_keys_stay_in_their_space_their_slot_and_their_length(sent, space):
    own = {name for ask in sent for name in ask.names}
    for before, after in zip(sent, arrived(sent, space), strict=True):
        for name, moved in zip(before.names, after.names, strict=True):
            assert moved[moved.index(b":{") :] == name[name.index(b":{") :]
            assert moved not in own
            assert moved.startswith(keys.around(keys.prefix_within(space, "oq"), "", "")[0][:1])
            assert len(moved) <= keys.LONGEST
    elsewhere = {name for ask in arrived(sent, space + "x") for name in ask.names}
    assert not elsewhere & {name for ask in arrived(sent, space) for name in ask.names}


def test_a_crowd_of_newcomers_travels_as_an_identity_does():
    key = keys.moved(keys.spell("", "alice", "c.", "10/60s/fixed"), keys.crowd("192.0.2.0/24")).decode()
    moved, _ = keys.within("team", key)
    assert moved.endswith(key[key.index(":{") :].encode())


@pytest.mark.parametrize("prefix", ["", "oq", "shop", "a prefix that is long"])
def test_what_is_forgotten_is_what_was_kept(prefix):
    key = keys.spell(prefix, "alice", "c.", "10/60s/fixed").decode()
    moved, spelling = keys.within("team", key)
    head, _ = keys.around(keys.prefix_within("team", prefix), "", "")
    assert moved.startswith(head + b"alice}")
    assert spelling == "10/60s/fixed"


def test_answers_travel_back_as_the_store_gave_them():
    clock = [1_790_000_000_000_000]
    store = MemoryStore(lambda: clock[0])
    ten, three = Limit.parse("10/minute;3/hour")
    token = Token(keys.once("", "o", "t"), bytes(16), 60)

    def batch():
        one = Charge(ten, keys.spell("", "alice", "c.", ten.spelling), 1)
        two = Charge(three, keys.spell("", "alice", "c.", three.spelling), 2)
        bare = Token(keys.once("", "o", "u"), bytes(16), 60)
        return [Ask([one, two]), TokenAsk([one], token), TokenAsk([], bare), Ask([two])]

    for _ in range(3):
        sent = batch()
        there = arrived(sent)
        numbers = store.decide_now(there)
        decisions, start = [], 1
        for ask in there:
            decisions.append(read(ask, numbers[0], numbers, start))
            start += ask.width
        said = json.loads(json.dumps(asks.answers(there, decisions)))
        assert asks.numbers(sent, said) == numbers
        clock[0] += 1


def test_what_would_be_misread_does_not_travel():
    class Unheard(TokenAsk):
        pass

    with pytest.raises(StoreUnavailable, match="Unheard does not travel"):
        asks.document([Unheard([], Token(keys.once("", "o", "t"), bytes(16), 60))])


def test_a_token_that_came_with_other_content_is_told_so():
    ask = TokenAsk([Charge(Limit.parse("1/day")[0], b"k", 1)], Token(b"t", bytes(16), 60))
    numbers = asks.numbers([ask], asks.answers([ask], [CONFLICT]))
    with pytest.raises(InvalidInput, match="was used before for something else"):
        read(ask, numbers[0], numbers, 1)


@pytest.mark.parametrize(
    ("outcome", "error"), [(CONFLICT, AlreadySettled("cost", "twice")), (CLOSED, NotHeld("id", "unknown"))]
)
def test_what_cannot_be_settled_is_told_as_it_is(outcome, error):
    assert asks.outcome(error) == outcome
    ask = SettleAsk([Charge(Limit.parse("1/day")[0], b"k", 1)], Token(b"t", bytes(16), 60), GIVE_BACK, 1, 60)
    numbers = asks.numbers([ask], asks.answers([ask], [outcome]))
    with pytest.raises(type(error)):
        read(ask, numbers[0], numbers, 1)


@pytest.mark.parametrize("wrong", [{"kind": "charge"}, {"lease": "1 2 3"}, {"token": None}])
def test_to_settle_goes_with_a_token_and_without_a_lease(wrong):
    token = {"key": "oq:{o}:t:once", "fingerprint": "0" * 32, "keep_s": 60}
    said = {"kind": "debit", "charges": [], "token": token, "settles": {"cost": 1, "open_s": 60}, **wrong}
    said = {name: value for name, value in said.items() if value is not None}
    with pytest.raises(InvalidInput) as error:
        asks.read(json.dumps({"asks": [said]}), "team")
    assert error.value.field == "asks[0].settles"


def test_of_several_calls_the_first_instant_is_told():
    (limit,) = Limit.parse("1/day")
    standing = Standing(limit, 1, 0, 5, 0, 5)
    plain = Ask([Charge(limit, b"k", 1)])
    with_token = TokenAsk([Charge(limit, b"k", 1)], Token(b"t", bytes(16), 60))
    found = [Decision(True, 20, (standing,)), Decision(True, 30, (standing,)), Replayed(True, 10, (standing,))]
    said = asks.answers([plain, plain, with_token], found)
    assert said == {"at_us": 20, "answers": [[0, 5, 0, 5], [0, 5, 0, 5], [1, 10, 0, 5, 0, 5]]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"at_us": 1, "answers": []},
        {"at_us": 1, "answers": [[1, 2, 3]]},
        {"at_us": 1, "answers": [[1, 2, 3, 4], [1, 2, 3, 4]]},
        {"at_us": "now", "answers": [[1, 2, 3, 4]]},
        [],
    ],
)
def test_what_is_no_answer_is_an_error(said):
    with pytest.raises((ValueError, KeyError, TypeError)):
        asks.numbers([Ask([Charge(Limit.parse("1/day")[0], b"k", 1)])], said)


KEY = "oq:{alice}:c.:10/60s/fixed"
FAR = KEY.replace("/fixed", "/@9999999999/fixed")
GOOD = {"kind": "charge", "charges": [[KEY, 1]]}
TOKEN = {"key": "oq:{o}:t:once", "fingerprint": "0" * 32, "keep_s": 60}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ([], "body"),
        ({}, "asks"),
        ({"asks": []}, "asks"),
        ({"asks": [GOOD] * 129}, "asks"),
        ({"asks": [{"kind": "look", "charges": [[KEY.replace("alice", f"a{n}"), 1] for n in range(65)]}] * 2}, "asks"),
        ({"asks": [GOOD, {"kind": "steal", "charges": []}]}, "asks[1].kind"),
        ({"asks": [GOOD | {"more": 1}]}, "asks[0].more"),
        ({"asks": [{"kind": "charge", "charges": []}]}, "asks[0].charges"),
        ({"asks": [{"kind": "renew", "charges": [[KEY, 1]]}]}, "asks[0].lease"),
        ({"asks": [{"kind": "renew", "charges": [[KEY, 1]], "token": TOKEN}]}, "asks[0].lease"),
        ({"asks": [{"kind": "charge", "charges": [[FAR, 1]]}]}, "asks[0].charges[0]"),
        ({"asks": [{"kind": "charge", "charges": [[KEY, 1], [KEY, 1]]}]}, "asks[0].charges"),
        ({"asks": [{"kind": "charge", "charges": [[KEY, 11]]}]}, "asks[0].charges[0]"),
        ({"asks": [{"kind": "charge", "charges": [[KEY, -1]]}]}, "asks[0].charges[0]"),
        ({"asks": [{"kind": "debit", "charges": [[KEY, 10**9 + 1]]}]}, "asks[0].charges[0]"),
        ({"asks": [{"kind": "charge", "charges": [[KEY, "1"]]}]}, "asks[0].charges[0][1]"),
        ({"asks": [{"kind": "charge", "charges": [[KEY, 1.5]]}]}, "asks[0].charges[0][1]"),
        *(
            ({"asks": [{"kind": "charge", "charges": [[key, 1]]}]}, "asks[0].charges[0]")
            for key in (
                "", "*", "other", KEY + "\n", KEY.replace("oq", "o q"), KEY.replace("alice", "a}b"),
                KEY.replace("c.", "c:d"), KEY.replace("alice", "x" * 37), "oq:{alice}:c.:once",
                *(f"oq:{{alice}}:c.:{text}" for text in ("0/60s/fixed", "10/60s/fast", "10/0s/fixed",
                  "10/60s/b5/fixed", "10/60s/a/@5/fixed", "10/60s/@5/gcra", "999999999/999999999s/gcra")),
            )
        ),
        ({"asks": [GOOD | {"at_us": 2**53}]}, "asks[0].at_us"),
        ({"asks": [GOOD | {"lease": "1 2"}]}, "asks[0].lease"),
        ({"asks": [GOOD | {"lease": f"1 2 {2**48}"}]}, "asks[0].lease"),
        ({"asks": [GOOD | {"lease": "1 2 3 4"}]}, "asks[0].lease"),
        ({"asks": [GOOD | {"token": TOKEN | {"key": KEY}}]}, "asks[0].token.key"),
        ({"asks": [GOOD | {"token": TOKEN | {"keep_s": 0}}]}, "asks[0].token.keep_s"),
        ({"asks": [GOOD | {"token": TOKEN | {"keep_s": 31 * 86_400}}]}, "asks[0].token.keep_s"),
        ({"asks": [GOOD | {"token": TOKEN | {"fingerprint": "0" * 31}}]}, "asks[0].token.fingerprint"),
    ],
)  # fmt: skip
def test_what_no_limiter_sends_is_refused_and_named(said, field):
    with pytest.raises(InvalidInput) as caught:
        asks.read(json.dumps(said), "team")
    assert caught.value.field == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([KEY, "charge", TOKEN, GOOD]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["asks", "kind", "charges", "at_us", "token", "lease", "key"]), inner)
    ),
)


@given(JSON)
def test_whatever_comes_is_read_or_refused(said):
    with contextlib.suppress(InvalidInput):
        assert asks.read(json.dumps(said), "team")


LOOK_AT = {"board": "oq:board:bans", "after": "-", "message": "", "keep_ms": 1, "most": 1}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"board": "oq:{alice}:c.:10/60s/fixed"}, "board"),
        ({"board": "oq:board:a:b"}, "board"),
        ({"after": "+"}, "after"),
        ({"after": "(1-1) -"}, "after"),
        ({"message": "0"}, "message"),
        ({"message": "00" * 5000}, "message"),
        ({"keep_ms": 0}, "keep_ms"),
        ({"most": 10_001}, "most"),
        ({"more": 1}, "more"),
    ],
)
def test_a_look_at_a_board_is_read_or_refused(changes, field):
    key, *rest = asks.read_look(json.dumps(LOOK_AT), "team")
    assert rest == [b"-", b"", 1, 1]
    assert key.startswith(b"~") and key.endswith(b":board:bans")
    with pytest.raises(InvalidInput) as caught:
        asks.read_look(json.dumps(LOOK_AT | changes), "team")
    assert caught.value.field == field


@given(limits())
def test_a_limits_spelling_says_all_that_counts(limit):
    again = Limit.spelt(limit.spelling)
    assert (again.words, again.spelling, again.capacity, again.refill_s) == (
        limit.words, limit.spelling, limit.capacity, limit.refill_s,
    )  # fmt: skip

"""A limit is what was written, or a sentence saying why not."""

import pytest

from service.errors import InvalidInput, InvalidLimit
from service.limits.limit import Limit


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10/minute", [(10, 60)]),
        ("10 per minute", [(10, 60)]),
        ("1/2 seconds", [(1, 2)]),
        ("5 per 10 Minutes", [(5, 600)]),
        ("20/minute;500/day", [(20, 60), (500, 86_400)]),
        ("1/second, 2/hour | 3/month", [(1, 1), (2, 3_600), (3, 30 * 86_400)]),
        ("1/year", [(1, 360 * 86_400)]),
        ("7/minute;7/60 seconds", [(7, 60)]),
        ("1000000000/day", [(10**9, 86_400)]),
    ],
)
def test_the_notation_of_limits_is_read(text, found):
    assert [(limit.amount, limit.window_s) for limit in Limit.parse(text)] == found


def test_the_notation_means_what_the_limits_package_means():
    import limits

    for text in ("10/minute", "3 per 5 hours", "1/day", "2/3months", "4/year", "9/2 seconds;5/minute"):
        ours = [(limit.amount, limit.window_s) for limit in Limit.parse(text)]
        assert ours == [(item.amount, item.get_expiry()) for item in limits.parse_many(text)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10/fortnight", 'unknown period "fortnight"; use second, minute, hour, day, month, year'),
        ("ten/minute", 'write "amount/period"'),
        ("10", 'write "amount/period"'),
        ("", 'write "amount/period"'),
        ("   ", 'write "amount/period"'),
        ("10/minute;", 'write "amount/period"'),
        ("10/minute;;5/hour", 'write "amount/period"'),
        ("10minute", 'write "amount/period"'),
        ("10/minute and then some", 'write "amount/period"'),
        ("-1/minute", 'write "amount/period"'),
        ("1.5/minute", 'write "amount/period"'),
        ("٣/minute", 'write "amount/period"'),
        ("0/minute", "0 units; use 1 to 1000000000"),
        ("1000000001/minute", "use 1 to 1000000000"),
        ("99999999999999999999/minute", "number too large"),
        ("1/0 minutes", "a window of 0 s"),
        ("1/11years", "use 1 s to 10 years"),
        (None, 'write "amount/period"'),
        (10, 'write "amount/period"'),
        (";".join(["1/minute"] * 33), "33 limits in one string; use at most 32"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(text, says):
    with pytest.raises(InvalidLimit) as error:
        Limit.parse(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_algorithm_is_named_with_the_known_ones():
    with pytest.raises(InvalidLimit, match='unknown algorithm "leaky"; use fixed-window, moving-window'):
        Limit.parse("1/minute", algorithm="leaky")


def test_a_burst_belongs_to_gcra_and_has_a_range():
    (limit,) = Limit.parse("10/minute", algorithm="gcra", burst=30)
    assert (limit.capacity, limit.refill_s) == (30, 180)
    with pytest.raises(InvalidLimit, match="burst goes with gcra"):
        Limit.parse("10/minute", burst=5)
    for burst in (0, -1, 10**9 + 1):
        with pytest.raises(InvalidLimit, match="a burst of"):
            Limit.parse("10/minute", algorithm="gcra", burst=burst)


def test_gcra_refuses_what_doubles_cannot_count():
    with pytest.raises(InvalidLimit, match="gcra cannot count it exactly"):
        Limit.parse("999999937/minute", algorithm="gcra")
    Limit.parse("100000000/minute", algorithm="gcra")  # less than a microsecond a token, and exact
    with pytest.raises(InvalidLimit, match="100 years"):
        Limit.parse("1/day", algorithm="gcra", burst=10**6)


@pytest.mark.parametrize("cost", [-1, 11, 2**53, 2**63, 1.0, float("nan"), "1", True, None])
def test_a_cost_out_of_range_is_named_and_refused(cost):
    (limit,) = Limit.parse("10/minute")
    with pytest.raises(InvalidInput) as error:
        limit.admits(cost, where="checks[3].cost")
    assert error.value.field == "checks[3].cost"


def test_costs_from_zero_to_the_limit_are_taken():
    (limit,) = Limit.parse("10/minute")
    assert [limit.admits(cost) for cost in (0, 1, 10)] == [0, 1, 10]


def test_a_name_is_printable_and_names_one_limit():
    assert Limit.parse("10/minute", name="chat")[0].name == "chat"
    with pytest.raises(InvalidLimit, match="names one limit"):
        Limit.parse("1/minute;2/hour", name="chat")
    for name in ("a\r\nb", "é", "x" * 129):
        with pytest.raises(InvalidLimit, match="limit name"):
            Limit.parse("10/minute", name=name)


def test_two_limits_that_count_differently_are_spelled_differently():
    spelled = [
        Limit(amount=10, window_s=60).spelling,
        Limit(amount=10, window_s=60, aligned=True).spelling,
        Limit(amount=10, window_s=60, algorithm="gcra").spelling,
        Limit(amount=10, window_s=60, algorithm="gcra", burst=5).spelling,
        Limit(amount=10, window_s=60, algorithm="moving-window").spelling,
        Limit(amount=10, window_s=61).spelling,
        Limit(amount=11, window_s=60).spelling,
    ]
    assert len(set(spelled)) == len(spelled)
    assert Limit(amount=10, window_s=60, name="a").spelling == Limit(amount=10, window_s=60, name="b").spelling

"""How long a refused caller waits."""

import pytest

from service.client.answer import Answer, Standing
from service.client.question import Check
from service.client.waiting import Turn, pause_s
from service.errors import ConfigurationError, InvalidInput, OverLimit

MINUTE = Standing(name="10/minute", limit=10, window_s=60, remaining=0, reset_after_s=42)
HOUR = Standing(name="90/hour", limit=90, window_s=3600, remaining=3, reset_after_s=900)


def refused(retry_after):
    return Answer(allowed=False, retry_after=retry_after, limits=(MINUTE, HOUR))


@pytest.mark.parametrize(
    ("retry_after", "waited_s", "max_wait_s", "least_s", "most_s"),
    [
        (1, 0, 60, 1, 1.35),
        (42, 0, None, 42, 46.45),
        (10, 50, 60, 10, 10),  # never longer than may be waited
        (10, 49.5, 60, 10, 10.5),
    ],
)
def test_a_pause_is_retry_after_and_a_little_more(retry_after, waited_s, max_wait_s, least_s, most_s):
    pauses = [pause_s(refused(retry_after), waited_s, max_wait_s) for _ in range(300)]
    assert least_s <= min(pauses) <= max(pauses) <= most_s
    if least_s < most_s:
        assert max(pauses) - min(pauses) > (most_s - least_s) / 2  # not all at the same moment


@pytest.mark.parametrize(
    ("retry_after", "waited_s", "max_wait_s", "wait", "says"),
    [
        (42, 0, 41.9, True, "10/minute is used up: passes in 42 s, and of 41.9 s that may be waited 41.9 s are left"),
        (10, 51, 60, True, "10/minute is used up: passes in 10 s, and of 60 s that may be waited 9.0 s are left"),
        (1, 0, 60, False, "10/minute is used up: passes in 1 s"),
        (None, 0, None, True, "10/minute never lets this through"),
    ],
)
def test_whoever_cannot_pass_in_time_is_told_at_once_with_the_answer(retry_after, waited_s, max_wait_s, wait, says):
    with pytest.raises(OverLimit) as caught:
        pause_s(refused(retry_after), waited_s, max_wait_s, wait=wait)
    assert str(caught.value) == says
    assert caught.value.answer == refused(retry_after)


def test_what_may_pass_sooner_is_asked_for_sooner_and_as_long_as_there_is_time_for_it():
    pauses = [pause_s(refused(42), 30, 60, most_s=1) for _ in range(300)]
    assert 1 <= min(pauses) <= max(pauses) <= 1.35
    assert 1 <= pause_s(refused(1), 0, 60, most_s=5) <= 1.35
    assert pause_s(refused(42), 59, 60, most_s=1) == 1
    with pytest.raises(OverLimit, match=r"passes in 42 s, and of 60 s that may be waited 0\.9 s are left"):
        pause_s(refused(42), 59.1, 60, most_s=1)


def turn(key, **more):
    return Turn(lambda who: Check(who, "1/day"), key, **{"max_wait_s": 1.0, "wait": True, **more})


def test_a_key_may_be_a_function_of_the_arguments_of_what_is_decorated():
    def send(user, *, to):
        pass

    assert turn("alice").asked() == Check("alice", "1/day")
    assert turn(lambda user, to: f"{user}>{to}").asked_by(send, ("alice",), {"to": "bob"}) == Check(
        "alice>bob", "1/day"
    )
    with pytest.raises(InvalidInput, match="send the key function found None"):
        turn(lambda user, to: None).asked_by(send, ("alice",), {"to": "bob"})
    with pytest.raises(ConfigurationError, match="a key function goes with a decorator"):
        turn(lambda: "alice").asked()


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_wait_that_cannot_be_meant_is_refused(seconds):
    with pytest.raises(ConfigurationError, match="max_wait_s"):
        turn("alice", max_wait_s=seconds)

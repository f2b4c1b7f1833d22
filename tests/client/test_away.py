"""What is answered while the service is away."""

import pytest

from service.client.answer import Answer, Standing
from service.client.away import MOST_LEARNT, Away
from service.client.question import Check, DomainCheck
from service.errors import ConfigurationError, InvalidInput, ServiceUnavailable

GONE = ServiceUnavailable("gone")
TWO = Check("alice", "2/minute;3/hour")
START_US = 1_700_000_000_000_000


class Clock:
    us = START_US

    def __call__(self):
        return self.us


def allowed(away, *questions):
    return [answer.allowed for answer in away.instead(questions, GONE)]


@pytest.mark.parametrize(
    ("when_away", "answer"),
    [
        ("allow", Answer(allowed=True, degraded=True)),
        ("deny", Answer(allowed=False, retry_after=1, degraded=True)),
    ],
)
def test_allow_and_deny_answer_alike_whatever_is_asked(when_away, answer):
    assert Away(when_away).instead([TWO, DomainCheck.of("d", {"k": "v"})], GONE) == [answer, answer]


def test_raise_raises():
    with pytest.raises(ServiceUnavailable, match="gone"):
        Away("raise").instead([TWO], GONE)


def test_local_counts_the_limits_that_were_brought_along_all_or_nothing():
    clock = Clock()
    away = Away("local", clock=clock)
    assert allowed(away, TWO, TWO, TWO) == [True, True, False]
    [refused] = away.instead([TWO], GONE)
    assert refused == Answer(
        allowed=False,
        retry_after=60,
        limits=(
            Standing(name="2/minute", limit=2, window_s=60, remaining=0, reset_after_s=60),
            Standing(name="3/hour", limit=3, window_s=3600, remaining=1, reset_after_s=3600),
        ),
        degraded=True,
    )
    assert allowed(away, Check("bob", "2/minute;3/hour")) == [True]
    clock.us += 60_000_000
    assert allowed(away, TWO.looking(), TWO, TWO) == [True, True, False]  # the hour is used up now


def test_local_counts_as_the_question_says():
    away = Away("local", clock=Clock())
    burst = Check("alice", "60/minute", "gcra", cost=2, burst=4)
    assert allowed(away, burst, burst, burst) == [True, True, False]


def test_local_refuses_what_the_service_would_not_have_taken():
    away = Away("local")
    with pytest.raises(InvalidInput, match="cost: 3 is out of range"):
        away.instead([Check("a", "2/minute", cost=3)], GONE)
    with pytest.raises(InvalidInput, match='limits: limit "fast": write'):
        away.instead([Check("a", "fast")], GONE)


def standing(name, limit, window_s):
    return Standing(name=name, limit=limit, window_s=window_s, remaining=1, reset_after_s=1)


def test_a_domain_has_the_limits_that_the_service_named_last():
    away = Away("local", clock=Clock())
    alice, bob = (DomainCheck.of("chat", {"user": user}) for user in ("alice", "bob"))
    assert allowed(away, alice, alice) == [True, True]  # never asked before
    away.learn([alice], [Answer(allowed=True, limits=(standing("a", 9, 60), standing("b", 9, 60)))])
    away.learn([alice.looking()], [Answer(allowed=True, limits=(standing("chat", 2, 60), standing("all", 2, 60)))])
    assert allowed(away, alice, alice, alice, bob) == [True, True, False, True]
    away.learn([bob], [Answer(allowed=False, limits=(standing("blocked", 0, 60),))])
    assert allowed(away, bob) == [False]


def test_what_was_answered_locally_teaches_nothing():
    away = Away("local", clock=Clock())
    alice = DomainCheck.of("chat", {"user": "alice"})
    away.learn([alice], [Answer(allowed=True, limits=(standing("chat", 1, 60),))])
    away.learn([alice], [Answer(allowed=True, degraded=True)])
    assert allowed(away, alice, alice) == [True, False]


def test_no_more_is_remembered_than_fits():
    away = Away("local")
    for number in range(MOST_LEARNT + 10):
        away.learn([DomainCheck.of("d", {"k": str(number)})], [Answer(allowed=True)])
    assert len(away._learnt) == MOST_LEARNT


@pytest.mark.parametrize(
    ("limits", "processes", "admitted"),
    [("10/minute", 1, 10), ("10/minute", 3, 3), ("10/minute", 10, 1), ("10/minute", 11, 0), ("9/minute;4/hour", 2, 2)],
)
def test_each_process_admits_its_share(limits, processes, admitted):
    away = Away("local", processes, Clock())
    assert sum(allowed(away, *[Check("a", limits)] * 20)) == admitted


def test_arguments_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigurationError, match='when_away "maybe": use local, allow, deny, raise'):
        Away("maybe")
    with pytest.raises(ConfigurationError, match="processes 0"):
        Away("local", 0)

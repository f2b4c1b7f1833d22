"""Both clients against a real service: `onequota serve` with two workers on a real Redis."""

import asyncio
import threading
import time

import pytest
from both import KEY, PATIENT, both, opened

from service.client import (
    AccessDenied,
    AsyncClient,
    Check,
    Client,
    DomainCheck,
    InvalidInput,
    OverLimit,
)
from service.errors import ConfigurationError


@both
def test_one_decision_after_the_other(client, kind):
    answers = [client.check(f"alice {kind}", "2/minute;3/hour") for _ in range(3)]
    assert [answer.allowed for answer in answers] == [True, True, False]
    assert (answers[0].retry_after, answers[0].degraded) == (None, False)
    assert 59 <= answers[2].retry_after <= 60
    minute, hour = answers[2].limits
    assert (minute.name, minute.limit, minute.window_s, minute.remaining) == ("2/minute", 2, 60, 0)
    assert (hour.name, hour.remaining) == ("3/hour", 1)


@both
def test_many_stand_alone_and_peeking_spends_nothing(client, kind):
    key = f"many {kind}"
    asked = [Check(key, "3/minute", cost=2), Check(key, "3/minute", cost=2), Check(key, "3/minute", peek=True)] * 2
    answers = client.decide(asked)
    assert [answer.allowed for answer in answers] == [True, False, True, False, False, True]
    assert [client.peek(key, "3/minute").limits[0].remaining for _ in range(2)] == [1, 1]
    with pytest.raises(InvalidInput, match="is out of range") as caught:
        client.decide([*asked, Check(key, "3/minute", cost=-1)])
    assert caught.value.field == "checks[6].cost"
    assert client.peek(key, "3/minute").limits[0].remaining == 1


@both
def test_the_algorithm_and_the_burst_are_the_questions(client, kind):
    answers = [client.check(f"gcra {kind}", "60/minute", algorithm="gcra", burst=2) for _ in range(3)]
    assert [answer.allowed for answer in answers] == [True, True, False]
    assert answers[2].retry_after == 1


@both
def test_a_domain_is_asked_with_its_entries_in_order(client, kind):
    user = f"alice {kind}"
    answers = [client.check_domain("chat", {"user": user}) for _ in range(3)]
    assert [answer.allowed for answer in answers] == [True, True, False]
    assert answers[2].limits[0].name == "2/minute"
    entries = [("user", user), ("model", "m")]
    assert client.check_domain("chat", entries, cost=7).limits[0].remaining == 93
    assert client.check_domain("chat", entries[::-1]).limits == ()  # nothing limits that
    both_of_them = client.check_domain("chat", {"user": f"bob {kind}"}, entries, peek=True)
    assert [limit.name for limit in both_of_them.limits] == ["2/minute", "100/hour"]
    never = client.check_domain("chat", {"team": "x"})
    assert (never.allowed, never.limits) == (False, ())
    with pytest.raises(OverLimit):
        client.wait_for(DomainCheck.of("chat", {"user": user}), wait=False)
    with pytest.raises(InvalidInput) as caught:
        client.check_domain("chat", {"user": user}, cost=3)
    assert caught.value.field == "cost"


@both
@pytest.mark.parametrize("api_key", [None, "0" * 32])
def test_a_key_that_the_service_does_not_know_is_an_error_of_its_own(service, kind, api_key):
    with opened(kind, service, api_key=api_key, **PATIENT) as client, pytest.raises(AccessDenied):
        client.check("alice", "2/minute")


@both
def test_a_limit_is_waited_for_as_long_as_said(client, kind):
    key = f"waits {kind}"
    began_s = time.monotonic()
    for _ in range(3):
        with client.limit(key, "1/second", algorithm="gcra", max_wait_s=20) as answer:
            assert answer.allowed
    assert 2 <= time.monotonic() - began_s < 20
    with pytest.raises(OverLimit, match="1/minute is used up: passes in") as caught:
        for _ in range(2):
            with client.limit(key, "1/minute", max_wait_s=5):
                pass
    assert 59 <= caught.value.answer.retry_after <= 60
    with pytest.raises(OverLimit), client.limit(key, "1/minute", wait=False, max_wait_s=None):
        pytest.fail("it was let through")


def test_a_decorated_function_takes_a_turn_a_call(service):
    with Client(service, api_key=KEY, **PATIENT) as client:

        @client.limit(lambda user: f"mails of {user}", "2/minute", wait=False)
        def send(user: str) -> str:
            return f"sent to {user}"

        assert [send(user) for user in ("alice", "alice", "bob")] == ["sent to alice"] * 2 + ["sent to bob"]
        with pytest.raises(OverLimit):
            send("alice")

        with pytest.raises(ConfigurationError, match="use AsyncClient's limit"):

            @client.limit("alice", "2/minute")
            async def wrong() -> None: ...


async def test_a_decorated_coroutine_function_takes_a_turn_a_call(service):
    async with AsyncClient(service, api_key=KEY, **PATIENT) as client:

        @client.limit("the only one", "2/minute", wait=False)
        async def send(user: str) -> str:
            return f"sent to {user}"

        assert [await send("alice"), await send("bob")] == ["sent to alice", "sent to bob"]
        with pytest.raises(OverLimit):
            await send("carol")

        with pytest.raises(ConfigurationError, match="use Client's limit"):
            client.limit("alice", "2/minute")(len)


def test_threads_and_coroutines_share_one_exact_quota(service):
    passed = []

    def block(client):
        passed.extend(client.check("shared", "100/minute").allowed for _ in range(20))

    async def gather():
        async with AsyncClient(service, api_key=KEY, **PATIENT) as client:
            answers = await asyncio.gather(*(client.check("shared", "100/minute") for _ in range(100)))
            passed.extend(answer.allowed for answer in answers)

    with Client(service, api_key=KEY, connections=3, **PATIENT) as client:
        threads = [threading.Thread(target=block, args=(client,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        asyncio.run(gather())
        for thread in threads:
            thread.join()
    assert (len(passed), sum(passed)) == (200, 100)

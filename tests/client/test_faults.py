"""What becomes of calls when the service does not answer as it should; both clients."""

import threading
import time
import traceback

import pytest
from both import both, opened
from faulty import ALLOWED, HANG, LOSE, TRICKLE, Answered, closed_port, faulty, problem

from service.client import (
    AccessDenied,
    AsyncClient,
    Check,
    Client,
    DomainCheck,
    InvalidInput,
    ServiceUnavailable,
    attempts,
)
from service.errors import ConfigurationError

KEY = "k3y-of-the-tests"


@pytest.fixture
def service():
    with faulty() as served:
        yield served


def ask(client, **more):
    return client.check("alice", "10/minute", **more)


@both
def test_connections_are_kept_and_the_key_travels_in_its_header(kind, service):
    with opened(kind, service.url, api_key=KEY) as client:
        assert all(ask(client).allowed for _ in range(5))
    assert service.connections == 1
    assert {heard[2]["authorization"] for heard in service.heard} == {f"Bearer {KEY}"}


@both
@pytest.mark.parametrize("fault", [LOSE, problem(503, "0"), problem(502), Answered(504, b"<h1>504</h1>", "text/html")])
def test_a_check_that_may_have_been_charged_is_not_sent_again(kind, service, fault):
    service.faults.extend([fault])
    with opened(kind, service.url, when_away="raise") as client, pytest.raises(ServiceUnavailable):
        ask(client)
    assert len(service.heard) == 1


@both
@pytest.mark.parametrize("fault", [LOSE, problem(503, "0"), problem(502), Answered(504, b"<h1>504</h1>", "text/html")])
def test_what_has_a_key_or_only_looks_is_sent_again_with_the_same_key(kind, service, fault):
    with opened(kind, service.url, when_away="raise", deadline_s=10) as client:
        service.faults.extend([fault, fault])
        assert ask(client, idempotency_key="order-7").allowed
        assert [heard[2]["idempotency-key"] for heard in service.heard] == ["order-7"] * 3
        service.faults.extend([fault])
        assert ask(client, peek=True).allowed
        service.faults.extend([fault])
        assert client.refund(Check("alice", "10/minute")).allowed
    keys = [heard[2].get("idempotency-key") for heard in service.heard[3:]]
    assert keys[:2] == [None, None] and keys[2] == keys[3] and len(keys[2]) == 36


RESERVED = Answered(201, {**ALLOWED, "id": "r/1"})


@both
def test_a_reservation_is_made_settled_and_released_by_its_id(kind, service):
    service.faults.extend([LOSE, RESERVED, LOSE, Answered(), Answered()])
    with opened(kind, service.url, when_away="raise", deadline_s=10) as client:
        reserved = client.reserve(Check("alice", "10/minute", cost=5))
        assert (reserved.allowed, reserved.id, reserved.answer.limits[0].remaining) == (True, "r/1", 9)
        assert client.settle(reserved.id, 3).allowed
        assert client.release(reserved.id).allowed
    heard = [(method, path, body) for method, path, _, body in service.heard]
    estimate = {"key": "alice", "limits": "10/minute", "cost": 5}
    assert heard == [
        *[("POST", "/v1/reservations", estimate)] * 2,
        *[("POST", "/v1/reservations/r%2F1/settle", {"cost": 3})] * 2,
        ("DELETE", "/v1/reservations/r%2F1", None),
    ]
    keys = [headers.get("idempotency-key") for _, _, headers, _ in service.heard]
    assert keys[0] == keys[1] and keys[0] and keys[2:] == [None] * 3  # settled twice at one cost is settled once


def test_what_is_not_held_is_settled_as_it_is(service):
    refused = {"allowed": False, "retry_after": 9, "limits": [], "id": None}
    service.faults.append(Answered(200, refused))
    with Client(service.url) as client:
        reserved = client.reserve(Check("alice", "10/minute"))
        assert (reserved.allowed, reserved.settle(3).retry_after, reserved.release().allowed) == (False, 9, False)
    assert len(service.heard) == 1
    with Client(f"http://127.0.0.1:{closed_port()}") as client:
        reserved = client.reserve(Check("alice", "10/minute", cost=4))
        assert (reserved.allowed, reserved.answer.degraded, reserved.settle(3).limits[0].remaining) == (True, True, 6)
        with pytest.raises(ServiceUnavailable):
            client.settle("elsewhere", 3)


@both
def test_no_more_attempts_are_made_than_said(kind, service):
    service.faults.extend([LOSE] * 10)
    with (
        opened(kind, service.url, when_away="raise", attempts=2, deadline_s=10) as client,
        pytest.raises(ServiceUnavailable, match="broke"),
    ):
        ask(client, idempotency_key="order-7")
    assert len(service.heard) == 2


@both
def test_a_service_that_wants_to_be_asked_later_is_not_asked_within_the_deadline(kind, service):
    service.faults.extend([problem(503, "60")])
    with (
        opened(kind, service.url, when_away="raise", deadline_s=10) as client,
        pytest.raises(ServiceUnavailable, match="answered 503: so it is") as caught,
    ):
        ask(client, idempotency_key="order-7")
    assert (caught.value.retry_after_s, len(service.heard)) == (60, 1)


@both
@pytest.mark.parametrize("fault", [HANG, TRICKLE])
def test_a_decision_has_a_deadline_and_then_a_local_answer(kind, service, fault):
    service.faults.append(fault)
    with opened(kind, service.url, deadline_s=0.3) as client:
        began_s = time.monotonic()
        answer = ask(client, idempotency_key="order-7")
        assert 0.25 < time.monotonic() - began_s < 5
    assert (answer.allowed, answer.degraded, len(service.heard)) == (True, True, 1)  # who is slow is not asked twice


@both
def test_where_nobody_listens_the_answer_is_local_and_marked(kind):
    with opened(kind, f"http://127.0.0.1:{closed_port()}") as client:
        answers = [client.check("alice", "2/minute") for _ in range(3)]
        many = client.decide([Check("bob", "1/minute"), DomainCheck.of("chat", {"user": "bob"})])
        with pytest.raises(ServiceUnavailable):
            client.refund(Check("alice", "2/minute"))
    assert [answer.allowed for answer in answers] == [True, True, False]
    assert all(answer.degraded for answer in answers + many)


@both
def test_a_service_that_does_not_answer_is_left_alone_and_found_again(kind, service, monkeypatch):
    monkeypatch.setattr(attempts, "REST_S", 1.0)
    service.faults.extend([HANG, HANG, HANG])
    with opened(kind, service.url, deadline_s=0.2) as client:
        assert [ask(client).degraded for _ in range(2)] == [True, True]
        assert [ask(client).degraded for _ in range(50)] == [True] * 50
        assert len(service.heard) == 2
        time.sleep(1.3)
        assert ask(client).degraded  # one tries, in vain
        assert len(service.heard) == 3
        assert ask(client).degraded
        assert len(service.heard) == 3
        time.sleep(1.3)
        assert not ask(client).degraded
        assert not any(ask(client).degraded for _ in range(5))


@both
def test_an_error_is_an_answer_after_which_nobody_rests(kind, service):
    errors = [{"field": "cost", "reason": "-1 is out of range"}]
    service.faults.extend([problem(422, errors=errors), problem(401), problem(422, errors=errors)])
    with opened(kind, service.url) as client:
        for wanted in (InvalidInput, AccessDenied, InvalidInput):
            with pytest.raises(wanted):
                ask(client)
        assert not ask(client).degraded


@both
def test_no_error_carries_the_key(kind, service):
    service.faults.extend([LOSE, problem(401)])
    with opened(kind, service.url, api_key=KEY, when_away="raise") as client:
        for wanted in (ServiceUnavailable, AccessDenied):
            with pytest.raises(wanted) as caught:
                ask(client)
            told = "".join(traceback.format_exception(caught.value))
            assert KEY not in told + repr(caught.value) + repr(client)
            assert caught.value.__context__ is None  # httpx's error would hold the request
    assert len(service.heard) == 2


@both
def test_a_whole_batch_that_is_never_sent_is_no_call(kind, service):
    with opened(kind, service.url) as client:
        assert client.decide([]) == []
    assert service.heard == []


def test_many_threads_share_a_blocking_client(service):
    with Client(service.url, connections=4, deadline_s=20) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.extend(ask(client).degraded for _ in range(20))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [False] * 160
    assert service.connections <= 4


async def test_connections_of_an_event_loop_are_closed_with_it(service):
    import asyncio

    client = AsyncClient(service.url)
    for _ in range(2):  # a loop each, as a test client has one per request; warnings are errors

        def run():
            asyncio.run(client.check("alice", "10/minute"))

        await asyncio.to_thread(run)
    assert (len(service.heard), len(client._open)) == (2, 0)


def test_the_environment_says_where_the_service_is(service, monkeypatch):
    monkeypatch.setenv("ONEQUOTA_URL", service.url)
    monkeypatch.setenv("ONEQUOTA_API_KEY", KEY)
    with Client() as client:
        assert ask(client).allowed
    assert service.heard[0][2]["authorization"] == f"Bearer {KEY}"
    assert service.heard[0][3] == {"key": "alice", "limits": "10/minute"}
    assert ALLOWED["allowed"]


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "no service to ask: pass its URL"),
        ({"url": "ftp://h"}, "wanted the service's URL"),
        ({"url": "http://h", "deadline_s": 0}, "deadline_s 0: use more than 0"),
        ({"url": "http://h", "attempts": 0}, "attempts 0"),
        ({"url": "http://h", "when_away": "x"}, 'when_away "x"'),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(make, arguments, says, monkeypatch):
    monkeypatch.delenv("ONEQUOTA_URL", raising=False)
    with pytest.raises(ConfigurationError, match=says):
        make(**arguments)

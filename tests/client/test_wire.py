"""What travels between client and service, document by document."""

import json

import pytest

from service.client import wire
from service.client.answer import Answer, Standing
from service.client.question import Check, DomainCheck, Hold
from service.client.wire import Unanswered, address
from service.errors import AccessDenied, ConfigurationError, InvalidInput

STANDING = {"name": "10/minute", "limit": 10, "window": 60, "remaining": 0, "reset_after": 42}
REFUSED = {"allowed": False, "retry_after": 42, "limits": [STANDING]}
ONE = Check("a", "1/day")
JSON = {"content-type": "application/json"}
PROBLEM = {"content-type": "application/problem+json; charset=utf-8"}


@pytest.mark.parametrize(
    ("question", "document"),
    [
        (Check("alice", "10/minute"), {"key": "alice", "limits": "10/minute"}),
        (
            Check("alice", "10/minute", "gcra", 3, 5, peek=True),
            {"key": "alice", "limits": "10/minute", "algorithm": "gcra", "burst": 5, "cost": 3, "peek": True},
        ),
        (
            DomainCheck.of("chat", {"user": "alice", "plan": "free"}, [("ip", "192.0.2.1")], cost=0),
            {
                "domain": "chat",
                "descriptors": [
                    [{"key": "user", "value": "alice"}, {"key": "plan", "value": "free"}],
                    [{"key": "ip", "value": "192.0.2.1"}],
                ],
                "cost": 0,
            },
        ),
    ],
)
def test_a_question_is_sent_as_the_service_reads_it(question, document):
    call = wire.check([question], None)
    assert (call.method, call.path, json.loads(call.body)) == ("POST", "/v1/check", document)
    assert json.loads(wire.check([question] * 2, None).body) == {"checks": [document] * 2}


@pytest.mark.parametrize(
    ("questions", "key", "repeatable"),
    [
        ([Check("a", "1/day")], None, False),
        ([Check("a", "1/day")], "k1", True),
        ([Check("a", "1/day", peek=True), Check("a", "1/day", cost=0)], None, True),
        ([Check("a", "1/day", peek=True), Check("a", "1/day")], None, False),
    ],
)
def test_what_spends_may_be_sent_again_with_an_idempotency_key_only(questions, key, repeatable):
    call = wire.check(questions, key)
    assert call.repeatable is repeatable
    assert call.headers == ({} if key is None else {"idempotency-key": key})


def test_a_refund_always_has_a_key():
    call = wire.refund(Check("a", "1/day", cost=2), "k2")
    assert (call.method, call.path, call.repeatable, dict(call.headers)) == (
        "POST", "/v1/refund", True, {"idempotency-key": "k2"},
    )  # fmt: skip
    assert call.document == {"key": "a", "limits": "1/day", "cost": 2}


def test_a_lease_is_taken_with_a_key_and_what_came_of_it_is_read():
    call = wire.acquire(Hold("alice", 3, 30, "20/minute"), "k3")
    assert (call.method, call.path, call.repeatable, dict(call.headers)) == (
        "POST", "/v1/leases", True, {"idempotency-key": "k3"},
    )  # fmt: skip
    assert call.document == {"key": "alice", "concurrency": 3, "ttl": 30, "limits": "20/minute"}
    assert wire.acquire(Hold("alice", 3), "k3").document == {"key": "alice", "concurrency": 3, "ttl": 60}
    free = {"allowed": True, "retry_after": None, "limits": []}
    for more, found in (({"id": "l", "expires_in": 30}, ("l", 30)), ({"id": "nothing"}, ("nothing", None))):
        assert call.read(free | more) == (Answer(allowed=True), *found)
    assert call.read(REFUSED | {"id": None})[1:] == ("", None)


def come_to(status, said, headers=JSON, questions=(ONE,)):
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return wire.result(wire.check(questions, None), status, headers, body)


def test_answers_are_read_and_what_a_newer_service_adds_is_let_be():
    refused = Answer(
        allowed=False,
        retry_after=42,
        limits=(Standing(name="10/minute", limit=10, window_s=60, remaining=0, reset_after_s=42),),
    )
    assert come_to(200, REFUSED) == [refused]
    assert come_to(200, {**REFUSED, "new": [1], "limits": [{**STANDING, "unit": "tokens"}]}) == [refused]
    free = {"allowed": True, "retry_after": None, "limits": [], "degraded": True}
    many = come_to(200, {"results": [free, REFUSED]}, questions=(ONE, ONE))
    assert many == [Answer(allowed=True, degraded=True), refused]


@pytest.mark.parametrize(
    ("status", "said", "headers", "says"),
    [
        (200, b"<h1>Welcome</h1>", {"content-type": "text/html"}, "200 is no onequota service"),
        (200, {"hello": "world"}, JSON, "200 is no onequota service"),
        (200, [1], JSON, "200 is no onequota service"),
        (200, b"{", JSON, "200 is no onequota service"),
        (200, b"\xff", JSON, "200 is no onequota service"),
        (301, b"", {"location": "https://h"}, "301 is no onequota service"),
        (404, {"detail": "Not Found"}, {"content-type": "text/plain"}, "404 is no onequota service"),
        (403, b"<h1>Forbidden</h1>", {"content-type": "text/html"}, "403 is no onequota service"),
    ],
)
def test_what_is_no_answer_of_a_service_is_told_and_not_asked_again(status, said, headers, says):
    with pytest.raises(Unanswered, match=says) as caught:
        come_to(status, said, headers)
    assert (caught.value.sent, caught.value.again) == (True, False)


@pytest.mark.parametrize(
    ("status", "headers", "sent", "after_s"),
    [
        (503, {**PROBLEM, "retry-after": "2"}, True, 2),
        (503, PROBLEM, True, None),
        (503, {**PROBLEM, "retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, True, None),
        (502, {"content-type": "text/html"}, True, None),
        (504, {}, True, None),
        (500, PROBLEM, True, None),
        (429, {**PROBLEM, "retry-after": "7"}, False, 7),  # refused before anything was done
    ],
)
def test_a_service_that_cannot_answer_now_may_be_asked_again(status, headers, sent, after_s):
    with pytest.raises(Unanswered) as caught:
        come_to(status, {"detail": "Redis is away"}, headers)
    assert (caught.value.sent, caught.value.again, caught.value.retry_after_s) == (sent, True, after_s)
    assert str(caught.value).startswith(f"POST /v1/check was answered {status}")


def test_errors_have_types_and_name_the_field():
    errors = [{"field": "checks[1].cost", "reason": "-1 is out of range"}]
    with pytest.raises(InvalidInput, match="-1 is out of range") as caught:
        come_to(422, {"detail": "d", "errors": errors}, PROBLEM)
    assert caught.value.field == "checks[1].cost"
    with pytest.raises(InvalidInput, match="request: the body is larger"):
        come_to(413, {"detail": "the body is larger"}, PROBLEM)
    for status in (401, 403):
        with pytest.raises(AccessDenied, match="no such key"):
            come_to(status, {"detail": "no such key"}, PROBLEM)


@pytest.mark.parametrize(
    ("url", "api_key", "root", "authorization"),
    [
        ("http://127.0.0.1:8000", None, "http://127.0.0.1:8000", None),
        ("https://quota.example/", "s3cret", "https://quota.example", "Bearer s3cret"),
        ("https://quota.example/behind/here/", None, "https://quota.example/behind/here", None),
        ("https://s3cret@quota.example", None, "https://quota.example", "Bearer s3cret"),
        ("https://:s3%2Bcret@quota.example:1", None, "https://quota.example:1", "Bearer s3+cret"),
        ("https://name:s3cret@[::1]:8000", None, "https://[::1]:8000", "Bearer s3cret"),
        ("https://old@quota.example", "new", "https://quota.example", "Bearer new"),
    ],
)
def test_an_address_holds_the_key_beside_the_url(url, api_key, root, authorization):
    found = address(url, api_key)
    assert found.url == root
    assert found.headers.get("authorization") == authorization
    assert "cret" not in repr(found)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8000", "wanted the service's URL"),
        ("redis://:s3cret@h", "redis://:***@h: wanted the service's URL"),
        ("http://", "wanted the service's URL"),
        ("http://h:99999", "wanted the service's URL"),
        ("http://h?x=1", "wanted the service's URL"),
        ("http://s3%20cret@h", "the API key holds a space"),
        ("http://s3%0Acret@h", "the API key holds a space"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_without_its_key(url, says):
    with pytest.raises(ConfigurationError) as caught:
        address(url)
    assert says in str(caught.value)
    assert "cret" not in str(caught.value)

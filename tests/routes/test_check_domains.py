"""`POST /v1/check` by domain: limits from the catalog, what became of each descriptor, and who may ask."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings

CATALOG = """
domain: chat
descriptors:
  - key: user
    limits: "3/hour;10/day"
  - key: user
    value: alice
    rate_limit: {unit: minute, requests_per_unit: 100}
  - key: model
    descriptors:
      - key: user
        limits: 1000/minute
        cost_unit: tokens
  - key: path
    limits: 1/minute
    shadow_mode: true
  - key: staff
    rate_limit: {unlimited: true}
  - key: banned
    rate_limit: {unit: hour, requests_per_unit: 0}
---
domain: each
atomic: false
descriptors:
  - {key: a, limits: 1/hour}
  - {key: b, limits: 5/hour}
"""
SECRETS = {"chat": "0123456789abcdef" * 2, "all": "fedcba9876543210" * 2}
KEYS = f"chat:{SECRETS['chat']}:chat all:{SECRETS['all']}:*"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "limits.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture(params=["fakeredis", "redis"])
def client(request: pytest.FixtureRequest, file: Path) -> Any:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else "fakeredis://"
    with TestClient(create_app(Settings(redis_url=url, redis_timeout_ms=30_000, limits=str(file)))) as client:
        yield client


def entries(*pairs: str) -> list[dict[str, str]]:
    return [dict(zip(("key", "value"), pair.split("="), strict=True)) for pair in pairs]


def asking(*descriptors: str, domain: str = "chat", **more: Any) -> dict[str, Any]:
    """Of descriptors as `model=gpt user=bob`."""
    return {"domain": domain, "descriptors": [entries(*each.split()) for each in descriptors], **more}


def ask(client: TestClient, body: object, **headers: str) -> dict[str, Any]:
    response = client.post("/v1/check", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def remaining(client: TestClient, *descriptors: str, **more: Any) -> list[int]:
    return [limit["remaining"] for limit in ask(client, asking(*descriptors, peek=True, **more))["limits"]]


def test_one_question_looks_as_promised_and_tells_of_its_descriptor(client: TestClient) -> None:
    limits = [
        {"name": "3/hour", "limit": 3, "window": 3600, "remaining": 2, "reset_after": 3600},
        {"name": "10/day", "limit": 10, "window": 86400, "remaining": 9, "reset_after": 86400},
    ]
    assert ask(client, asking("user=bob")) == {
        "allowed": True,
        "retry_after": None,
        "limits": limits,
        "statuses": [{"rule": "chat.user", "over": False, "limits": limits}],
    }


def test_a_refusal_charges_no_limit_of_no_descriptor(client: TestClient) -> None:
    for _ in range(3):
        assert ask(client, asking("user=bob"))["allowed"]
    refused = ask(client, asking("model=gpt user=bob", "user=bob"))
    assert refused["allowed"] is False
    assert 3595 <= refused["retry_after"] <= 3600
    assert [status["over"] for status in refused["statuses"]] == [False, True]
    assert remaining(client, "model=gpt user=bob") == [1000]
    assert remaining(client, "user=bob") == [0, 7]


@pytest.mark.parametrize(
    ("descriptor", "rule", "amounts"),
    [
        ("user=bob", "chat.user", [3, 10]),
        ("user=alice", "chat.user_alice", [100]),
        ("model=gpt user=bob", "chat.model.user", [1000]),
        ("user=bob model=gpt", None, []),  # in another order
        ("model=gpt", None, []),  # nothing is limited at this depth
        ("staff=eve", "chat.staff", []),
        ("nobody=x", None, []),
    ],
)
def test_a_descriptor_meets_its_rule(client: TestClient, descriptor: str, rule: str | None, amounts: list[int]) -> None:
    answer = ask(client, asking(descriptor))
    assert answer["allowed"] is True
    assert answer["statuses"][0]["rule"] == rule
    assert [limit["limit"] for limit in answer["limits"]] == amounts


def test_what_is_blocked_is_refused_for_its_window(client: TestClient) -> None:
    answer = ask(client, asking("banned=mallory"))
    assert (answer["allowed"], answer["retry_after"], answer["limits"]) == (False, 3600, [])
    assert answer["statuses"] == [{"rule": "chat.banned", "over": True, "limits": []}]


def test_shadow_mode_refuses_nothing_and_tells_what_it_would_have_done(client: TestClient) -> None:
    found = [ask(client, asking("path=/x")) for _ in range(2)]
    assert [answer["allowed"] for answer in found] == [True, True]
    assert [answer["statuses"][0]["over"] for answer in found] == [False, True]
    assert found[1]["statuses"][0]["shadow_mode"] is True
    assert found[1]["limits"] == []


def test_a_domain_that_is_not_atomic_charges_each_descriptor_for_itself(client: TestClient) -> None:
    body = asking("a=x", "b=x", domain="each")
    assert [ask(client, body)["allowed"] for _ in range(3)] == [True, False, False]
    assert remaining(client, "b=x", domain="each") == [2]


def test_an_unknown_domain_limits_nothing_and_the_answer_says_so(client: TestClient) -> None:
    assert ask(client, asking("user=bob", domain="chta")) == {
        "allowed": True,
        "retry_after": None,
        "limits": [],
        "statuses": [{"rule": None, "over": False, "limits": []}],
        "unknown_domain": True,
    }


def test_without_a_catalog_no_domain_is_known() -> None:
    with TestClient(create_app(Settings(redis_url="fakeredis://", redis_timeout_ms=30_000))) as client:
        assert ask(client, asking("user=bob"))["unknown_domain"] is True


def test_a_cost_is_of_every_descriptor_and_peek_spends_nothing(client: TestClient) -> None:
    assert ask(client, asking("model=gpt user=bob", cost=400))["limits"][0]["remaining"] == 600
    for _ in range(3):
        assert ask(client, asking("model=gpt user=bob", cost=600, peek=True))["allowed"]
        assert ask(client, asking("model=gpt user=bob", cost=0))["allowed"]
    assert remaining(client, "model=gpt user=bob") == [600]
    assert ask(client, asking("model=gpt user=bob", cost=601))["allowed"] is False


def test_many_of_both_kinds_stand_alone_and_come_in_order(client: TestClient) -> None:
    inline = {"key": "alice", "limits": "1/minute"}
    checks = [asking("user=bob", cost=2), inline, asking("path=/x"), asking("user=bob", cost=2), inline]
    results = ask(client, {"checks": checks})["results"]
    assert [result["allowed"] for result in results] == [True, True, True, False, False]
    assert [len(result.get("statuses", [])) for result in results] == [1, 0, 1, 1, 0]


def test_a_thousand_are_decided_at_once(client: TestClient) -> None:
    checks = [asking(f"user=u{number}", cost=3) for number in range(1000)]
    for allowed in (True, False):
        results = ask(client, {"checks": checks})["results"]
        assert [result["allowed"] for result in results] == [allowed] * 1000


PAIR = {"key": "user", "value": "bob"}
BAD = [
    ({"domain": "chat"}, "descriptors"),
    ({"descriptors": [[PAIR]]}, "domain"),
    ({"domain": "", "descriptors": [[PAIR]]}, "domain"),
    ({"domain": 7, "descriptors": [[PAIR]]}, "domain"),
    ({"domain": "chat", "descriptors": []}, "descriptors"),
    ({"domain": "chat", "descriptors": {}}, "descriptors"),
    ({"domain": "chat", "descriptors": [[]]}, "descriptors[0]"),
    ({"domain": "chat", "descriptors": [[PAIR], PAIR]}, "descriptors[1]"),
    ({"domain": "chat", "descriptors": [[PAIR, {"key": "", "value": ""}]]}, "descriptors[0][1].key"),
    ({"domain": "chat", "descriptors": [[{"key": "user"}]]}, "descriptors[0][0].value"),
    ({"domain": "chat", "descriptors": [[{"key": "user", "value": 7}]]}, "descriptors[0][0].value"),
    ({"domain": "chat", "descriptors": [[{**PAIR, "limit": "1/minute"}]]}, "descriptors[0][0].limit"),
    ({"domain": "chat", "descriptors": [[PAIR]] * 101}, "descriptors"),
    ({"domain": "chat", "descriptors": [[PAIR] * 33]}, "descriptors[0]"),
    ({"domain": "chat", "descriptors": [[PAIR]], "key": "alice"}, "key"),
    ({"domain": "chat", "descriptors": [[PAIR]], "limits": "1/minute"}, "limits"),
    ({"domain": "chat", "descriptors": [[PAIR]], "algorithm": "gcra"}, "algorithm"),
    *(
        ({"domain": "chat", "descriptors": [[PAIR]], "cost": cost}, "cost")
        for cost in (-1, 4, 2**53, 2**70, 1.0, "1", True, None)
    ),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=[f"{index}-{field}" for index, (_, field) in enumerate(BAD)])
@pytest.mark.parametrize("at", ["", "checks[1]."])
def test_bad_input_is_a_422_that_names_the_field_and_charges_nothing(
    client: TestClient, body: dict[str, Any], field: str, at: str
) -> None:
    response = client.post("/v1/check", json={"checks": [asking("user=bob"), body]} if at else body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == at + field
    assert remaining(client, "user=bob") == [3, 10]


def test_hostile_values_are_counters_of_their_own(client: TestClient) -> None:
    values = ["", "*", "a/b", "a:b", "{x}", "\x00", "\r\nx", "é", "x" * 1024, "user:bob"]
    checks = [{"domain": "chat", "descriptors": [[{"key": "user", "value": value}]], "cost": 3} for value in values]
    assert [result["allowed"] for result in ask(client, {"checks": checks})["results"]] == [True] * len(values)


# Asked again

SIMPLE, COMPLEX = asking("user=bob"), asking("user=bob", "path=/x")


@pytest.mark.parametrize("body", [SIMPLE, COMPLEX, {"checks": [SIMPLE, COMPLEX]}], ids=["simple", "complex", "many"])
def test_what_comes_again_is_answered_as_the_first_time_and_charged_once(client: TestClient, body: Any) -> None:
    first = ask(client, body, **{"idempotency-key": "k"})
    again = ask(client, body, **{"idempotency-key": "k"})
    for was, answer in zip(first.get("results", [first]), again.get("results", [again]), strict=True):
        assert answer.pop("replayed") is True
        assert answer == was
    assert remaining(client, "user=bob") == ([1, 8] if "checks" in body else [2, 9])


OTHERS = [asking("user=zoe"), asking("path=/y", "user=zoe", "model=m user=zoe"), {"checks": [asking("user=zoe")] * 2}]


@pytest.mark.parametrize("body", OTHERS, ids=["simple", "complex", "many"])
@pytest.mark.parametrize("first", [SIMPLE, COMPLEX, {"checks": [COMPLEX, SIMPLE]}], ids=["simple", "complex", "many"])
def test_another_body_under_a_key_is_a_422_and_charges_nothing(client: TestClient, first: Any, body: Any) -> None:
    ask(client, first, **{"idempotency-key": "k"})
    response = client.post("/v1/check", json=body, headers={"idempotency-key": "k"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert remaining(client, "user=zoe") == [3, 10]
    assert ask(client, asking("path=/y", peek=True))["statuses"][0]["limits"][0]["remaining"] == 1


# Who may


@pytest.fixture
def closed(file: Path) -> Any:
    settings = Settings(redis_url="fakeredis://", redis_timeout_ms=30_000, limits=str(file), api_keys=KEYS)  # type: ignore[arg-type]
    with TestClient(create_app(settings)) as client:
        yield client


def test_a_key_asks_what_its_scopes_say_and_all_keys_count_a_domain_together(closed: TestClient) -> None:
    for name, left in (("chat", 2), ("all", 1)):
        answer = ask(closed, asking("user=bob"), **{"x-api-key": SECRETS[name]})
        assert answer["limits"][0]["remaining"] == left


@pytest.mark.parametrize("domain", ["each", "nowhere"])
def test_another_domain_is_a_403_that_names_it_known_or_not(closed: TestClient, domain: str) -> None:
    chat = {"x-api-key": SECRETS["chat"]}
    refused = closed.post("/v1/check", json=asking("a=x", domain=domain, cost=99), headers=chat)
    assert refused.status_code == 403
    assert refused.json()["errors"][0]["field"] == "domain"
    many = {"checks": [asking("user=bob"), asking("a=x", domain=domain)]}
    assert closed.post("/v1/check", json=many, headers=chat).json()["errors"][0]["field"] == "checks[1].domain"
    many = {"checks": [asking("user=bob"), {"key": "alice", "limits": "1/minute"}]}
    assert closed.post("/v1/check", json=many, headers=chat).json()["errors"][0]["field"] == "checks[1].limits"
    look = ask(closed, asking("user=bob", peek=True), **chat)
    assert look["limits"][0]["remaining"] == 3

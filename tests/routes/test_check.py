"""`POST /v1/check`: the answers interface.md promises, and for bad input an error that names the field."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings

LIMIT = {"key": "alice", "limits": "2/minute;3/hour"}


@pytest.fixture(params=["fakeredis", "redis"])
def client(request):
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else "fakeredis://"
    # A thousand decisions of fakeredis are a second's work on a busy machine, and no outage.
    with TestClient(create_app(Settings(redis_url=url, redis_timeout_ms=30_000))) as client:
        yield client


def ask(client, body, **headers):
    return client.post("/v1/check", json=body, headers=headers)


def remaining(client, body):
    return [limit["remaining"] for limit in ask(client, {**body, "peek": True}).json()["limits"]]


def test_one_decision_looks_as_promised(client):
    response = ask(client, {"key": "alice", "limits": "10/minute;200/hour", "algorithm": "fixed-window", "cost": 1})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "allowed": True,
        "retry_after": None,
        "limits": [
            {"name": "10/minute", "limit": 10, "window": 60, "remaining": 9, "reset_after": 60},
            {"name": "200/hour", "limit": 200, "window": 3600, "remaining": 199, "reset_after": 3600},
        ],
    }


def test_a_refusal_is_a_200_and_charges_no_limit(client):
    answers = [ask(client, LIMIT).json() for _ in range(5)]
    assert [answer["allowed"] for answer in answers] == [True, True, False, False, False]
    assert 59 <= answers[2]["retry_after"] <= 60
    assert remaining(client, LIMIT) == [0, 1]


def test_peek_and_cost_zero_look_without_spending(client):
    for _ in range(5):
        assert ask(client, {**LIMIT, "peek": True}).json()["allowed"]
        assert ask(client, {**LIMIT, "cost": 0}).json()["allowed"]
    assert remaining(client, LIMIT) == [2, 3]


def test_a_burst_goes_with_gcra(client):
    body = {"key": "bob", "limits": "60/minute", "algorithm": "gcra", "burst": 2}
    assert [ask(client, body).json()["allowed"] for _ in range(2)] == [True, True]
    answer = ask(client, body).json()
    assert (answer["allowed"], answer["retry_after"]) == (False, 1)
    assert answer["limits"][0]["limit"] == 2


def test_many_stand_alone_and_come_in_order(client):
    checks = [
        {"key": "a", "limits": "1/minute"},
        {"key": "a", "limits": "1/minute"},
        {"key": "b", "limits": "1/minute"},
    ]
    results = ask(client, {"checks": checks}).json()["results"]
    assert [result["allowed"] for result in results] == [True, False, True]


def test_those_that_are_alike_and_those_that_are_not_are_answered_in_order(client):
    """Alike but for the key, they are asked as one: also in slices, and with callers who come twice."""
    alike = [{"key": f"k{number % 150}", "limits": "2/minute"} for number in range(400)]
    other = {"key": "k0", "limits": "1/minute;5/hour"}
    gcra = {"key": "k0", "limits": "4/minute", "algorithm": "gcra", "burst": 1}
    results = ask(client, {"checks": [other, *alike[:200], other, gcra, *alike[200:], gcra]}).json()["results"]
    found = [result["limits"][0]["remaining"] if result["allowed"] else None for result in results]
    times: dict[str, int] = {}
    for number, check in enumerate(alike):
        times[check["key"]] = seen = times.get(check["key"], 0) + 1
        assert found[number + (1 if number < 200 else 3)] == (2 - seen if seen < 3 else None), number
    assert [found[index] for index in (0, 201, 202, 403)] == [0, None, 0, None]
    assert results[350]["retry_after"] in (59, 60)


@pytest.mark.parametrize(
    ("last", "field"),
    [
        ({"key": "a", "limits": "5/minute", "cost": True}, "cost"),
        ({"key": "a", "limits": "5/minute", "cost": 1.0}, "cost"),
        ({"key": "a", "limits": "5/minute", "cost": 1, "peek": 0}, "peek"),
        ({"key": "a" * 1025, "limits": "5/minute", "cost": 1}, "key"),
        ({"key": "", "limits": "5/minute", "cost": 1}, "key"),
        ({"key": 7, "limits": "5/minute", "cost": 1}, "key"),
        ({"limits": "5/minute", "cost": 1}, "key"),
        ({"key": "a", "limits": "5/minute", "cost": 1, "more": 1}, "more"),
    ],
)
def test_what_is_nearly_alike_is_judged_by_itself(client, last, field):
    good = {"key": "a", "limits": "5/minute", "cost": 1}
    response = ask(client, {"checks": [dict(good), dict(good), last]})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == f"checks[2].{field}"
    assert remaining(client, good) == [5]


def test_looks_that_are_alike_spend_nothing(client):
    looks = [{**LIMIT, "limits": "2/minute", "peek": True}] * 50
    assert [r["limits"][0]["remaining"] for r in ask(client, {"checks": looks}).json()["results"]] == [2] * 50


def test_a_thousand_checks_are_decided_at_once(client):
    checks = [{"key": f"k{number}", "limits": "1/minute"} for number in range(1000)]
    results = ask(client, {"checks": checks}).json()["results"]
    assert [result["allowed"] for result in results] == [True] * 1000
    assert not any(result["allowed"] for result in ask(client, {"checks": checks}).json()["results"])


BAD = [
    ({"limits": "1/minute"}, "key"),
    ({"key": "", "limits": "1/minute"}, "key"),
    ({"key": 7, "limits": "1/minute"}, "key"),
    ({"key": "x" * 1025, "limits": "1/minute"}, "key"),
    ({"key": "a"}, "limits"),
    ({"key": "a", "limits": ""}, "limits"),
    ({"key": "a", "limits": "10/fortnight"}, "limits"),
    ({"key": "a", "limits": "0/minute"}, "limits"),
    ({"key": "a", "limits": "1/minute", "algorithm": "leaky"}, "algorithm"),
    ({"key": "a", "limits": "999999937/minute", "algorithm": "gcra"}, "limits"),
    ({"key": "a", "limits": "1/minute", "burst": 5}, "burst"),
    ({"key": "a", "limits": "1/minute", "algorithm": "gcra", "burst": 0}, "burst"),
    ({"key": "a", "limits": "1/minute", "peek": "yes"}, "peek"),
    ({"key": "a", "limits": "1/minute", "limit": "2/minute"}, "limit"),
    ([], "body"),
    ("alice", "body"),
    ({"checks": []}, "checks"),
    ({"checks": [LIMIT] * 1001}, "checks"),
    ({"checks": {}}, "checks"),
    ({"checks": [LIMIT], "key": "a"}, "key"),
    *(
        ({"key": "a", "limits": "5/minute", "cost": cost}, "cost")
        for cost in (-1, 6, 2**53, 2**63, 2**70, 1.0, 1.5, "1", True, None)
    ),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=[f"{index}-{field}" for index, (_, field) in enumerate(BAD)])
def test_bad_input_is_a_422_that_names_the_field(client, body, field):
    response = ask(client, body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 422
    assert problem["errors"][0]["field"] == field
    assert field in problem["detail"]


def test_one_bad_item_among_many_is_named_and_nothing_is_charged(client):
    checks = [dict(LIMIT) for _ in range(20)]
    checks[17]["cost"] = 9
    response = ask(client, {"checks": checks})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "checks[17].cost"
    assert remaining(client, LIMIT) == [2, 3]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"key": "a", "limits": "1/minute", "cost": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"key=a", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b" " * (1 << 20) + b"{}", "application/json", 413),
    ],
)
def test_what_is_no_json_is_told_apart(client, content, kind, status):
    response = client.post("/v1/check", content=content, headers={"content-type": kind})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


def test_a_json_type_with_a_suffix_or_a_charset_is_json(client):
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json"):
        response = client.post("/v1/check", content=json.dumps(LIMIT), headers={"content-type": kind})
        assert response.status_code == 200


def test_the_route_itself_is_limited_per_address():
    with TestClient(create_app(Settings(redis_url="fakeredis://", check_limit="2/minute"))) as client:
        statuses = [ask(client, {"key": f"k{n}", "limits": "9/minute"}).status_code for n in range(3)]
        assert statuses == [200, 200, 429]
        refused = ask(client, LIMIT)
        assert refused.json()["violated-policies"] == ["check"]
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200


def test_while_redis_is_away_answers_say_so_and_health_stays_200():
    """The service starts all the same; this worker admits its share, here all."""
    with TestClient(create_app(Settings(redis_url="redis://127.0.0.1:1"))) as client:
        answers = [ask(client, LIMIT).json() for _ in range(3)]
        assert [(answer["allowed"], answer["degraded"]) for answer in answers] == [
            (True, True),
            (True, True),
            (False, True),
        ]
        assert 1 <= answers[2]["retry_after"] <= 60
        health = client.get("/health").json()
        assert (health["status"], health["store"], health["supabase"]) == ("healthy", "away", "not configured")
        assert health["decisions"]["outages"] == 1
        assert health["decisions"]["degraded"]["local"] == 3
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["redis"])
        assert (ready.json()["workers"], ready.json()["supabase"]) == (1, "not configured")


def test_a_redis_that_is_away_is_a_503_where_limits_deny_and_health_stays_200():
    with TestClient(create_app(Settings(redis_url="redis://127.0.0.1:1", on_outage="deny"))) as client:
        response = ask(client, LIMIT)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["type"].endswith("#temporary-reduced-capacity")
        assert client.get("/health").json()["status"] == "healthy"
        assert client.get("/ready").status_code == 503


def test_ready_says_what_answers(client):
    response = client.get("/ready")
    assert response.status_code == 200
    assert response.json()["store"].startswith(("redis ", "fakeredis"))


def test_another_method_is_told_which_one_it_is(client):
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
        response = client.request(method, "/v1/check")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_below_a_mount_it_is_the_same_route():
    with TestClient(create_app(Settings(redis_url="fakeredis://", redis_timeout_ms=30_000))) as client:
        outer = FastAPI()
        outer.mount("/limits", client.app)
        assert TestClient(outer).post("/limits/v1/check", json=LIMIT).json()["allowed"]
        assert TestClient(outer).get("/limits/v1/check").status_code == 405


def test_a_body_in_pieces_is_one_body(client):
    def pieces():
        yield b'{"key": "al'
        yield b'ice", "limits": "2/minute"}'

    response = client.post("/v1/check", content=pieces(), headers={"content-type": "application/json"})
    assert response.json()["limits"][0]["remaining"] == 1


def test_a_body_in_pieces_that_becomes_too_large_is_refused(client):
    response = client.post("/v1/check", content=(b" " * 65_536 for _ in range(17)))
    assert response.status_code == 413


def test_unknown_paths_and_methods_are_problem_json(client):
    for response, status in ((client.get("/nope"), 404), (client.get("/v1/check"), 405)):
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"


def test_the_examples_of_the_description_are_true(client):
    description = client.get("/openapi.json").json()
    body = description["paths"]["/v1/check"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["examples"]) == {"one", "weighted", "look", "many"}
    for example in body["examples"].values():
        response = ask(client, example["value"])
        assert response.status_code == 200
        shown = response.json()
        for answer in shown.get("results", [shown]):
            assert set(answer) == {"allowed", "retry_after", "limits"}
    answers = description["paths"]["/v1/check"]["post"]["responses"]["200"]["content"]["application/json"]
    for example in answers["examples"].values():
        for answer in example["value"].get("results", [example["value"]]):
            assert set(answer) == {"allowed", "retry_after", "limits"}


# Asked again


def test_a_check_that_comes_again_is_answered_as_the_first_time_and_charged_once(client):
    first = ask(client, LIMIT, **{"idempotency-key": "8e03978e-40d5"}).json()
    again = ask(client, LIMIT, **{"idempotency-key": "8e03978e-40d5"}).json()
    assert again.pop("replayed") is True
    assert again == first
    assert remaining(client, LIMIT) == [1, 2]
    assert ask(client, LIMIT, **{"idempotency-key": "another"}).json()["limits"][0]["remaining"] == 0


def test_a_refusal_that_comes_again_stays_one(client):
    for _ in range(2):
        ask(client, LIMIT)
    for _ in range(2):
        assert ask(client, LIMIT, **{"idempotency-key": "r"}).json()["allowed"] is False


def test_many_that_come_again_are_each_charged_once(client):
    body = {"checks": [{"key": "a", "limits": "5/minute"}] * 3 + [{"key": "b", "limits": "1/minute"}]}
    first = ask(client, body, **{"idempotency-key": "k"}).json()["results"]
    again = ask(client, body, **{"idempotency-key": "k"}).json()["results"]
    assert [result["limits"][0]["remaining"] for result in first] == [4, 3, 2, 0]
    assert [result.pop("replayed") for result in again] == [True] * 4
    assert again == first


OTHERS = [
    {**LIMIT, "cost": 2},
    {"checks": [{"key": "zoe", "limits": "5/minute"}] * 3},
    {"checks": [{"key": "zoe", "limits": "5/minute", "peek": True}] * 2 + [{"key": "zoe", "limits": "5/minute"}]},
]


@pytest.mark.parametrize("body", OTHERS)
@pytest.mark.parametrize("first", [LIMIT, {"checks": [{**LIMIT, "peek": True}, LIMIT]}, {"checks": [LIMIT] * 40}])
def test_another_body_under_a_key_is_a_422_and_charges_nothing(client, first, body):
    assert ask(client, first, **{"idempotency-key": "k"}).status_code == 200
    response = ask(client, body, **{"idempotency-key": "k"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert remaining(client, {"key": "zoe", "limits": "5/minute"}) == [5]


def test_a_look_takes_no_notice_of_a_key(client):
    for _ in range(2):
        answer = ask(client, {**LIMIT, "peek": True}, **{"idempotency-key": "k"}).json()
        assert "replayed" not in answer
    assert not ask(client, LIMIT, **{"idempotency-key": "k"}).json().get("replayed")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\u00e9"])
def test_a_key_that_cannot_be_used_is_a_422_and_charges_nothing(client, key):
    headers = {"idempotency-key": key.encode("latin-1")}
    response = client.post("/v1/check", json=LIMIT, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert remaining(client, LIMIT) == [2, 3]


def test_keys_of_two_callers_do_not_meet():
    secrets = ["0123456789abcdef" * 2, "fedcba9876543210" * 2]
    keys = " ".join(f"caller{number}:{secret}:*" for number, secret in enumerate(secrets))
    with TestClient(create_app(Settings(redis_url="fakeredis://", redis_timeout_ms=30_000, api_keys=keys))) as client:
        found = [
            ask(client, LIMIT, **{"idempotency-key": "k", "x-api-key": secret}).json()["limits"][0]["remaining"]
            for secret in secrets
        ]
        assert found == [1, 0]


def test_the_python_check_and_the_http_check_share_one_counter(redis_server):
    """One engine: `limiter.check("alice", …)` in an app spends what /v1/check spends."""
    import asyncio

    from service.limits import Limiter, identity

    with TestClient(create_app(Settings(redis_url=redis_server.url))) as client:
        ask(client, LIMIT)
        limiter = Limiter(identity.client_address, storage_uri=redis_server.url)
        decision = asyncio.run(limiter.check("alice", LIMIT["limits"]))
        assert [standing.remaining for standing in decision.standings] == [0, 1]


def test_a_body_may_ask_for_3000_limits_in_all_and_not_for_more(client):
    """More would hold a worker, and everybody's answers, for longer than a deadline."""
    limits = ";".join(f"{n}/minute" for n in range(1, 31))
    many = [{"key": f"k{n}", "limits": limits} for n in range(101)]
    refused = ask(client, {"checks": many})
    assert refused.status_code == 422
    assert "3030 limits in all; at most 3000" in refused.json()["detail"]
    assert ask(client, {"checks": many[:100]}).status_code == 200


def test_ready_is_never_refused_by_a_limit(client):
    assert {client.get("/ready").status_code for _ in range(700)} == {200}

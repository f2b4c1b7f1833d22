"""Refunds, reservations and leases over HTTP: what is given back, settled and held, and by whom."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings

FILE = """
domain: llm
descriptors:
  - key: user
    limits: "1000/minute"
  - key: job
    limits: "2/minute"
    algorithm: concurrency
  - key: root
    rate_limit: {unlimited: true}
  - key: never
    rate_limit: {unit: minute, requests_per_unit: 0}
  - key: way
    quota_mode: true
    rate_limit: {unit: minute, requests_per_unit: 5}
"""
ANNA, BERT = "a" * 4 + "0123456789abcdef" * 2, "b" * 4 + "0123456789abcdef" * 2
KEYS = f"anna:{ANNA}:* bert:{BERT}:llm"


@pytest.fixture(params=["fakeredis", "redis"])
def client(request, tmp_path):
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else "fakeredis://"
    limits = tmp_path / "limits.yaml"
    limits.write_text(FILE)
    settings = Settings(redis_url=url, redis_timeout_ms=30_000, limits=str(limits), api_keys=KEYS)
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {ANNA}"}) as client:
        yield client


AMOUNT = {"key": "alice", "limits": "100/minute"}
USER = {"domain": "llm", "descriptors": [[{"key": "user", "value": "alice"}]]}


def left(client, body=AMOUNT):
    answer = client.post("/v1/check", json={**body, "peek": True}).json()
    return [limit["remaining"] for limit in answer["limits"]]


def post(client, path, body, **headers):
    response = client.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(("body", "whole"), [(AMOUNT, 100), (USER, 1000)])
def test_a_reservation_is_settled_at_what_is_true(client, body, whole):
    reserved = post(client, "/v1/reservations", {**body, "cost": 60, "ttl": 30})
    assert (reserved["allowed"], reserved["limits"][0]["remaining"], reserved["expires_in"]) == (True, whole - 60, 30)
    settled = post(client, f"/v1/reservations/{reserved['id']}/settle", {"cost": 25})
    assert settled["limits"][0]["remaining"] == whole - 25
    assert left(client, body) == [whole - 25]


def test_more_than_was_reserved_is_debited_and_never_refused(client):
    id = post(client, "/v1/reservations", {**AMOUNT, "cost": 60})["id"]
    assert post(client, f"/v1/reservations/{id}/settle", {"cost": 130})["allowed"]
    assert left(client) == [0]


def test_a_reservation_is_settled_once_and_the_same_again_is_the_same_answer(client):
    id = post(client, "/v1/reservations", {**AMOUNT, "cost": 60})["id"]
    answers = [post(client, f"/v1/reservations/{id}/settle", {"cost": 10}) for _ in range(3)]
    assert {answer["limits"][0]["remaining"] for answer in answers} == {90}
    other = client.post(f"/v1/reservations/{id}/settle", json={"cost": 11})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (409, "cost")
    assert client.delete(f"/v1/reservations/{id}").status_code == 409
    assert left(client) == [90]


def test_a_reservation_is_given_back(client):
    id = post(client, "/v1/reservations", {**AMOUNT, "cost": 60})["id"]
    assert client.delete(f"/v1/reservations/{id}").json()["limits"][0]["remaining"] == 100


def test_what_has_no_room_is_refused_and_has_no_id(client):
    post(client, "/v1/check", {**AMOUNT, "cost": 50})
    refused = post(client, "/v1/reservations", {**AMOUNT, "cost": 60})
    assert (refused["allowed"], refused["id"], left(client)) == (False, None, [50])
    assert 1 <= refused["retry_after"] <= 60


def test_a_refund_gives_back_what_a_check_charged_and_no_more(client):
    post(client, "/v1/check", {**AMOUNT, "cost": 50})
    assert post(client, "/v1/refund", {**AMOUNT, "cost": 20})["limits"][0]["remaining"] == 70
    assert post(client, "/v1/refund", {**AMOUNT, "cost": 100})["limits"][0]["remaining"] == 100


def test_what_is_sent_again_with_its_idempotency_key_is_done_once(client):
    post(client, "/v1/check", {**AMOUNT, "cost": 50})
    once = {"idempotency-key": "7f1d0e7e"}
    for _ in range(3):
        post(client, "/v1/refund", {**AMOUNT, "cost": 10}, **once)
    assert left(client) == [60]
    ids = {post(client, "/v1/reservations", {**AMOUNT, "cost": 30}, **once)["id"] for _ in range(3)}
    assert (len(ids), left(client)) == (1, [30])
    leases = {post(client, "/v1/leases", {"key": "alice", "concurrency": 2}, **once)["id"] for _ in range(3)}
    assert len(leases) == 1
    other = client.post("/v1/reservations", json={**AMOUNT, "cost": 31}, headers=once)
    assert (other.status_code, left(client)) == (422, [30])


LEASE = {"key": "alice", "concurrency": 2, "ttl": 30}


def test_so_many_leases_are_held_at_once(client):
    taken = [post(client, "/v1/leases", LEASE) for _ in range(3)]
    assert [lease["allowed"] for lease in taken] == [True, True, False]
    assert (taken[0]["expires_in"], taken[0]["limits"][0]["name"], taken[2]["id"]) == (30, "2 at once", None)
    assert 1 <= taken[2]["retry_after"] <= 30
    assert client.put(f"/v1/leases/{taken[0]['id']}").json()["expires_in"] == 30
    assert client.delete(f"/v1/leases/{taken[0]['id']}").json()["limits"][0]["remaining"] == 1
    assert post(client, "/v1/leases", LEASE)["allowed"]
    for method in (client.put, client.delete):
        gone = method(f"/v1/leases/{taken[0]['id']}")
        assert (gone.status_code, gone.json()["errors"][0]["field"]) == (404, "id")


def test_a_lease_and_limits_beside_it_are_all_or_nothing(client):
    body = {"key": "alice", "concurrency": 1, "limits": "5/minute"}
    id = post(client, "/v1/leases", body)["id"]
    assert not any(post(client, "/v1/leases", body)["allowed"] for _ in range(7))
    client.delete(f"/v1/leases/{id}")
    assert post(client, "/v1/leases", body)["allowed"]
    assert left(client, {"key": "alice", "limits": "5/minute"}) == [3]


def test_a_rule_of_the_catalog_may_be_held(client):
    body = {"domain": "llm", "descriptors": [[{"key": "job", "value": "x"}], [{"key": "user", "value": "alice"}]]}
    taken = [post(client, "/v1/leases", body) for _ in range(3)]
    assert [lease["allowed"] for lease in taken] == [True, True, False]
    assert left(client, USER) == [998]
    assert client.delete(f"/v1/leases/{taken[1]['id']}").status_code == 200
    assert post(client, "/v1/leases", body)["allowed"]


def test_what_nothing_limits_is_held_and_settled_all_the_same(client):
    root = {"domain": "llm", "descriptors": [[{"key": "root", "value": "r"}]]}
    for body in (root, {**root, "domain": "nobody"}):
        reserved = post(client, "/v1/reservations", {**body, "cost": 5})
        assert (reserved["allowed"], reserved["limits"]) == (True, [])
        assert post(client, f"/v1/reservations/{reserved['id']}/settle", {"cost": 9})["allowed"]
        lease = post(client, "/v1/leases", body)["id"]
        assert client.put(f"/v1/leases/{lease}").json()["id"] == lease
        assert client.delete(f"/v1/leases/{lease}").status_code == 200
        assert post(client, "/v1/refund", body)["allowed"]


def test_what_a_rule_blocks_is_refused_and_charges_nothing_beside_it(client):
    never = [{"key": "never", "value": "x"}]
    for descriptors in ([never], [never, *USER["descriptors"]]):
        for path in ("/v1/reservations", "/v1/leases"):
            refused = post(client, path, {**USER, "descriptors": descriptors})
            assert (refused["allowed"], refused["retry_after"], refused["id"]) == (False, 60, None)
    assert left(client, USER) == [1000]


def test_an_id_is_nobody_elses(client):
    bert = {"authorization": f"Bearer {BERT}"}
    id = post(client, "/v1/reservations", {**USER, "cost": 60})["id"]
    assert client.post(f"/v1/reservations/{id}/settle", json={"cost": 0}, headers=bert).status_code == 404
    assert client.delete(f"/v1/reservations/{id}", headers=bert).status_code == 404
    lease = post(client, "/v1/leases", LEASE)["id"]
    assert client.put(f"/v1/leases/{lease}", headers=bert).status_code == 404
    assert client.delete(f"/v1/leases/{lease}", headers=bert).status_code == 404
    assert left(client, USER) == [940]
    assert client.put(f"/v1/leases/{lease}").status_code == 200


def test_an_id_of_one_kind_is_none_of_the_other(client):
    reservation = post(client, "/v1/reservations", {**AMOUNT, "cost": 60})["id"]
    lease = post(client, "/v1/leases", LEASE)["id"]
    assert client.delete(f"/v1/leases/{reservation}").status_code == 404
    assert client.delete(f"/v1/reservations/{lease}").status_code == 404
    assert left(client) == [40]


def test_an_id_somebody_made_up_reaches_no_counter(client):
    """Not even to mistake a counter for a set of leases, which Redis would answer with an error to all who wait."""
    post(client, "/v1/check", AMOUNT)
    lease = post(client, "/v1/leases", LEASE)["id"]
    said = json.loads(urlsafe_b64decode(lease[25:] + "=="))
    key = said[3][0][0].rpartition(":")[0]
    for forged in (f"{key}:100/60s/fixed", "oq:{alice}:c.:100/60s/fixed", "anything"):
        said[3][0][0] = forged
        text = urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
        for random in (lease[:24], "A" * 24):
            assert client.put(f"/v1/leases/{random}r{text}").status_code == 404
            assert client.delete(f"/v1/reservations/{random}r{text}").status_code == 404
    assert left(client) == [99]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/refund", {**AMOUNT, "cost": -1}, 422, "cost"),
        ("/v1/refund", {**AMOUNT, "cost": 0}, 422, "cost"),
        ("/v1/refund", {**AMOUNT, "peek": True}, 422, "peek"),
        ("/v1/refund", [], 422, "body"),
        ("/v1/reservations", {**AMOUNT, "cost": 101}, 422, "cost"),
        ("/v1/reservations", {**AMOUNT, "cost": "1"}, 422, "cost"),
        ("/v1/reservations", {**AMOUNT, "cost": 2**63}, 422, "cost"),
        ("/v1/reservations", {**AMOUNT, "ttl": 0}, 422, "ttl"),
        ("/v1/reservations", {**AMOUNT, "ttl": 86_401}, 422, "ttl"),
        ("/v1/reservations", {**AMOUNT, "ttl": True}, 422, "ttl"),
        ("/v1/reservations", {"key": "alice", "limits": "10/fortnight"}, 422, "limits"),
        ("/v1/reservations", {**USER, "cost": 1001}, 422, "cost"),
        ("/v1/reservations", {**USER, "descriptors": USER["descriptors"] * 2, "cost": 501}, 422, "cost"),
        ("/v1/reservations", {**USER, "descriptors": [[{"key": "way", "value": "x"}]]}, 422, "descriptors"),
        ("/v1/reservations/nonsense/settle", {"cost": 1}, 404, "id"),
        ("/v1/reservations/nonsense/settle", {"cost": -1}, 422, "cost"),
        ("/v1/reservations/nonsense/settle", {}, 422, "cost"),
        ("/v1/leases", {"key": "alice", "concurrency": 0}, 422, "concurrency"),
        ("/v1/leases", {"key": "", "concurrency": 1}, 422, "key"),
        ("/v1/leases", {"key": "alice"}, 422, "concurrency"),
        ("/v1/leases", {"key": "alice", "concurrency": 1, "limits": "x"}, 422, "limits"),
        ("/v1/leases", {"key": "alice", "concurrency": 1, "ttl": 10**10}, 422, "ttl"),
    ],
)
def test_what_cannot_be_meant_names_its_field_and_changes_nothing(client, path, body, status, field):
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (status, field)
    assert response.headers["content-type"] == "application/problem+json"
    assert (left(client), left(client, USER)) == ([100], [1000])


def test_keys_types_and_scopes_are_looked_at_as_for_checks(client):
    assert client.post("/v1/refund", json=AMOUNT, headers={"authorization": "Bearer x"}).status_code == 401
    bert = {"authorization": f"Bearer {BERT}"}
    for path, body in (("/v1/refund", AMOUNT), ("/v1/reservations", AMOUNT), ("/v1/leases", LEASE)):
        assert client.post(path, json=body, headers=bert).status_code == 403
        assert client.post(path, json=USER, headers=bert).status_code == 200
        assert client.post(path, json={**USER, "domain": "other"}, headers=bert).status_code == 403
        assert client.post(path, content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert client.post(path, content=b"a=1", headers={"content-type": "text/plain"}).status_code == 415
        assert client.post(path, content=b" " * 1_100_000).status_code == 413
    assert client.get("/v1/leases").status_code == 405


def test_an_idempotency_key_that_is_none_is_told_so_even_where_nothing_is_limited(client):
    body = {"domain": "nobody", "descriptors": [[{"key": "user", "value": "alice"}]]}
    for path in ("/v1/refund", "/v1/reservations", "/v1/leases"):
        response = client.post(path, json=body, headers={"idempotency-key": "a b"})
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "Idempotency-Key")


def test_every_key_expires(client, request):
    if "redis" not in client.app.state.settings.redis_url or "fake" in client.app.state.settings.redis_url:
        return
    server = request.getfixturevalue("redis_server")
    id = post(client, "/v1/reservations", {**AMOUNT, "cost": 60, "ttl": 30})["id"]
    post(client, f"/v1/reservations/{id}/settle", {"cost": 1})
    post(client, "/v1/leases", LEASE)
    with server.client() as redis:
        assert all(0 < redis.pttl(key) <= 121_000 for key in redis.scan_iter())


def forged(said):
    text = urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
    return f"{'A' * 24}r{text}"


@pytest.mark.parametrize("odd", [1.5, 1e300, None, "", "5", [], {}, True, -1, 2**53, 2**70])
def test_an_id_with_odd_numbers_is_unknown_and_reaches_nobody(client, odd):
    """One that made the script stumble would be an error of all who ask in the same moment."""
    key, limit = "oq:{alice}:c.:100/60s/fixed", {"amount": 100, "window_s": 60}
    lease = ["oq:{alice}:c.:2/30s/lease", 1, {"amount": 2, "window_s": 30, "algorithm": "concurrency"}]
    for said in (
        [odd, 5, 600, [[key, 5, limit]]],
        [600, odd, 600, [[key, 5, limit]]],
        [600, 5, odd, [[key, 5, limit]]],
        [600, 5, 600, [[key, odd, limit]]],
    ):
        assert client.post(f"/v1/reservations/{forged(said)}/settle", json={"cost": 3}).status_code == 404
    for said in ([30, 0, 0, [[lease[0], odd, lease[2]]]], [odd, 0, 0, [lease]]):
        assert client.put(f"/v1/leases/{forged(said)}").status_code == 404
        assert client.delete(f"/v1/leases/{forged(said)}").status_code == 404
    assert left(client) == [100]

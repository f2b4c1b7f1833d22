"""The examples do what they say."""

import pytest
from fastapi.testclient import TestClient

from examples.chat.app import app, history


@pytest.fixture
def client(onequota):
    history.clear()
    onequota.attach(app)
    with TestClient(app) as client:
        yield client


def say(client, text="hello", user="alice"):
    return client.post("/messages", json={"text": text}, headers={"x-user": user})


def test_a_user_may_write_twenty_messages_a_minute(client, onequota):
    assert [say(client).status_code for _ in range(21)] == [201] * 20 + [429]
    refused = say(client)
    assert refused.json()["detail"] == "You write faster than anybody reads"
    assert onequota.assert_limited(refused, "20/minute") == 60
    assert say(client, user="bob").status_code == 201


def test_long_messages_cost_more(client):
    assert say(client, "x" * 1800).headers["x-ratelimit-remaining"] == "16"


def test_only_failed_logins_count(client, onequota):
    for _ in range(9):
        assert client.post("/login", headers={"x-password": "open sesame"}).status_code == 200
    assert [client.post("/login").status_code for _ in range(6)] == [401] * 5 + [429]


def test_the_stream_passes_whole(client):
    for text in ("one", "two"):
        say(client, text)
    with client.stream("GET", "/messages/stream") as response:
        body = "".join(response.iter_text())
    assert body.index("one") < body.index("two")
    assert response.headers["ratelimit"].startswith('"10/minute";r=9')


def test_health_is_never_limited(client):
    assert {client.get("/health").status_code for _ in range(150)} == {200}


def test_searching_has_a_quota_beside_the_default(client):
    policies = client.get("/search", params={"text": "o"}).headers["ratelimit-policy"]
    assert policies == '"30/minute";q=30;w=60, "100/minute";q=100;w=60'

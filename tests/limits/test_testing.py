"""The pytest plugin keeps its promises: fakeredis behind the limiter, a clock, exhaust, assert_limited."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.limits import Limiter, identity

ROOT = Path(__file__).parents[2]


@pytest.fixture
def app():
    uri = "redis://127.0.0.1:1"  # nothing listens there
    limiter = Limiter(identity.client_address, storage_uri=uri, on_outage="deny")
    app = FastAPI()
    app.state.limiter = limiter
    app.add_middleware(limiter.middleware)

    @app.get("/chat")
    @limiter.limit("3/minute;5/hour")
    async def chat():
        return {}

    return app


def test_no_redis_is_needed_while_attached_and_the_own_store_comes_back(onequota, app):
    client = TestClient(app)
    onequota.attach(app)
    assert client.get("/chat").headers["ratelimit"] == '"3/minute";r=2;t=60, "5/hour";r=4;t=3600'
    onequota.detach()
    assert client.get("/chat").status_code == 503


def test_exhausted_is_refused_until_the_clock_has_moved(onequota, app):
    client = TestClient(app)
    onequota.attach(app)
    onequota.exhaust()
    assert onequota.assert_limited(client.get("/chat"), "5/hour") == 3600
    onequota.clock.advance(3599)
    onequota.assert_limited(client.get("/chat"), "5/hour")
    onequota.clock.advance(1)
    assert client.get("/chat").status_code == 200


def test_only_the_named_identity_is_exhausted(onequota):
    limiter = Limiter(lambda request: request.headers["x-user"])
    app = FastAPI()
    app.state.limiter = limiter
    app.add_middleware(limiter.middleware)

    @app.get("/")
    @limiter.limit("3/minute")
    async def root():
        return {}

    onequota.attach(limiter)
    onequota.exhaust("alice")
    client = TestClient(app)
    onequota.assert_limited(client.get("/", headers={"x-user": "alice"}))
    assert client.get("/", headers={"x-user": "bob"}).status_code == 200


def test_assert_limited_fails_for_what_is_not_limited(onequota, app):
    onequota.attach(app)
    with pytest.raises(AssertionError, match="expected 429, got 200"):
        onequota.assert_limited(TestClient(app).get("/chat"))
    onequota.exhaust()
    with pytest.raises(AssertionError, match="expected a refusal by 'other'"):
        onequota.assert_limited(TestClient(app).get("/chat"), "other")


def test_attach_wants_a_limiter(onequota):
    with pytest.raises(TypeError, match="attach takes"):
        onequota.attach(FastAPI())
    with pytest.raises(ValueError, match="only moves on"):
        onequota.clock.advance(-1)


def test_a_stranger_uses_it_as_the_docstring_says(pytester):
    pytester.makeconftest('pytest_plugins = ["service.limits.testing"]')
    pytester.makepyfile(
        """
        from examples.chat.app import app
        from fastapi.testclient import TestClient

        def test_chat(onequota):
            client = TestClient(app, client=("203.0.113.7", 50000))
            onequota.attach(app)
            onequota.exhaust("203.0.113.7")
            wait_s = onequota.assert_limited(client.post("/messages", json={"text": "hi"}))
            onequota.clock.advance(wait_s)
            assert client.post("/messages", json={"text": "hi"}).status_code != 429
        """
    )
    pytester.makefile(".ini", pytest=f"[pytest]\npythonpath = {ROOT}\nasyncio_default_fixture_loop_scope = function")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)

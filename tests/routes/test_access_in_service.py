"""Lists and newcomers where the service is asked: the denied get 403 from every route, strangers fill no Redis."""

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.limits import keys
from service.settings import Settings

KEY = "5f0e1d2c3b4a59687786958473625140"
QUESTION = {"key": "alice", "limits": "10/minute"}
ROUTES = [("POST", "/v1/check"), ("GET", "/v1/authorize"), ("POST", "/json"), ("GET", "/health"), ("GET", "/none")]


def service(**settings):
    return create_app(Settings(redis_timeout_ms=5000, **settings))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_denied_address_gets_403_from_every_route(method, path):
    """From itself, or told by a trusted proxy; others are answered as ever."""
    app = service(deny=("203.0.113.0/24",), trusted_proxies=("10.0.0.0/8",))
    forwarded = {"x-forwarded-for": "8.8.8.8, 203.0.113.7"}
    for peer, headers in (("203.0.113.7", {}), ("10.0.0.1", forwarded)):
        answer = TestClient(app, client=(peer, 1)).request(method, path, json=QUESTION, headers=headers)
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
    for peer, headers in (("203.0.114.7", {}), ("10.0.0.1", {"x-forwarded-for": "203.0.113.7, 8.8.8.8"})):
        answer = TestClient(app, client=(peer, 1)).request(method, path, json=QUESTION, headers=headers)
        assert answer.status_code != 403


def test_what_is_allowed_goes_before_what_is_denied():
    app = service(deny=("203.0.113.0/24",), allow=("203.0.113.7",))
    assert TestClient(app, client=("203.0.113.7", 1)).post("/v1/check", json=QUESTION).status_code == 200
    assert TestClient(app, client=("203.0.113.8", 1)).post("/v1/check", json=QUESTION).status_code == 403


def counters(app):
    return {keys.bearer(key) for key in app.state.limiter.engine.store()._kept if b":r." in key}


@pytest.mark.parametrize("api_keys", [f"gate:{KEY}:*", None], ids=["with keys", "open"])
def test_strangers_beyond_so_many_share_the_counter_of_their_network(api_keys):
    """Two of a thousand addresses have one of their own; who has a key is served all the same."""
    app = service(newcomers=2, api_keys=api_keys, miss_limit="5/minute", check_limit="1000/minute")
    with TestClient(app, client=("198.51.100.200", 1)) as client:
        found = [
            TestClient(app, client=(f"198.51.{n // 250}.{n % 250}", 1)).post("/v1/check", json=QUESTION).status_code
            for n in range(20)
        ]
        assert found == ([401] * 7 + [429] * 13 if api_keys else [200] * 20)
        bearer = {"authorization": f"Bearer {KEY}"}
        assert client.post("/v1/check", json={**QUESTION, "key": "bob"}, headers=bearer).status_code == 200
        assert client.portal.call(_counters, app) == {b"198.51.0.0", b"198.51.0.1", b"^198.51.0.0/16"}


async def _counters(app):
    return counters(app)


def test_any_number_may_have_counters_if_that_is_said():
    assert service(newcomers=0).state.limiter.access is None
    assert service().state.limiter.access.crowd._known._most == 100_000

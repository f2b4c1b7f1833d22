"""What the runner decides, where it listens and what it says; running it is in test_cli."""

import json
import os
from dataclasses import replace

import pytest
from topologies import PLACES, Place

from service import server
from service.errors import ConfigurationError
from service.server import Banner, Plan, plan
from service.settings import Settings
from service.target import SERVICE, Target

RUN = Target(app="main:app")
REDIS = "redis://h"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ONEQUOTA_") or name in {"REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY"}:
            monkeypatch.delenv(name)


def settled(production: bool = False, workers: int | None = None, redis_url: str | None = None) -> Settings:
    environment = "production" if production else "development"
    return Settings(environment=environment, workers=workers, redis_url=redis_url)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "settings", "planned"),
    [
        (SERVICE, settled(), (4, False, True)),
        (SERVICE, settled(workers=1), (1, False, True)),
        (SERVICE, settled(redis_url=REDIS), (4, False, False)),
        (SERVICE, settled(production=True, redis_url=REDIS), (4, False, False)),
        (RUN, settled(), (1, True, True)),
        (RUN, settled(workers=1), (1, True, True)),
        (RUN, settled(workers=3), (3, False, True)),
        (RUN, settled(redis_url=REDIS), (1, True, False)),
        (RUN, settled(production=True), (4, False, False)),
        (RUN, settled(production=True, workers=1), (1, False, False)),
        (Target(app="main:app", reload=False), settled(), (1, False, True)),
        (Target(app="main:app", reload=True), settled(production=True), (1, True, False)),
    ],
)
def test_workers_reloading_and_redis_are_decided_from_what_was_said(
    target: Target, settings: Settings, planned: tuple[int, bool, bool]
) -> None:
    workers, reload, embed = planned
    assert plan(settings, target, default=4) == Plan(workers=workers, reload=reload, embed=embed)


@pytest.mark.parametrize(
    ("target", "settings", "told"),
    [
        (Target(app="m:a", reload=True), settled(workers=2), "reload works with one worker, and 2 are"),
        (SERVICE, settled(production=True), "set REDIS_URL"),
        (SERVICE, settled(production=True, workers=1, redis_url="fakeredis://"), "set REDIS_URL"),
        (SERVICE, settled(redis_url="fakeredis://"), "cannot be shared by 4 workers"),
        (RUN, settled(workers=2, redis_url="fakeredis://"), "cannot be shared by 2 workers"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_together_is_refused_with_a_sentence(
    target: Target, settings: Settings, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        plan(settings, target, default=4)


SECRET = "0123456789abcdef" * 2


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "localhost"])
def test_on_this_machine_nobody_needs_a_key(host: str) -> None:
    plan(Settings(host=host), SERVICE, default=1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "limits.example", "::ffff:192.0.2.7"])
def test_where_others_can_ask_a_service_without_keys_is_refused_with_what_to_set(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan(Settings(host=host), SERVICE, default=1)
    assert f"on host {host} anybody may ask" in str(caught.value)
    assert "set ONEQUOTA_API_KEYS=NAME:SECRET:*" in str(caught.value)
    assert "ONEQUOTA_OPEN=true" in str(caught.value)
    plan(Settings(host=host, api_keys=f"a:{SECRET}:*"), SERVICE, default=1)  # type: ignore[arg-type]
    plan(Settings(host=host, open=True), SERVICE, default=1)
    plan(Settings(host=host), RUN, default=1)  # an app of yours has its own ways


def test_a_key_that_cannot_be_meant_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="ONEQUOTA_API_KEYS, entry 1: its secret has fewer than 128"):
        plan(Settings(api_keys="a:short:*"), SERVICE, default=1)  # type: ignore[arg-type]


def test_with_nothing_to_embed_one_worker_runs_on_fakeredis_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "find_binary", lambda: None)
    with server._redis(settled(), Plan(workers=4, reload=False, embed=True)) as redis:
        assert redis.url == "fakeredis://"
        assert redis.warning is not None
        assert "one worker on fakeredis" in redis.warning


def test_a_redis_that_was_given_is_described_without_its_password() -> None:
    settings = settled(redis_url="redis://u:hunter2@127.0.0.1:1/1")
    with server._redis(settings, Plan(workers=4, reload=False, embed=False)) as redis:
        assert (redis.url, redis.described) == ("redis://u:hunter2@127.0.0.1:1/1", "redis://u:***@127.0.0.1:1/1")


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_redis_that_answers_is_not_warned_of(place: Place) -> None:
    assert server._silence(place.url) is None


def test_a_redis_that_does_not_answer_is_warned_of_without_its_password() -> None:
    """The service starts all the same: Redis may come later."""
    for url in ("redis+sentinel://u:hunter2@127.0.0.1:1/orders", "redis+cluster://u:hunter2@127.0.0.1:1"):
        told = server._silence(url)
        assert told is not None and "does not answer (Redis is away: " in told and "127.0.0.1:1" in told
        assert "hunter2" not in told
    told = server._silence("redis://u:hunter2@127.0.0.1:1/1")
    assert told is not None
    assert "redis://u:***@127.0.0.1:1/1 does not answer" in told
    assert "hunter2" not in told


BODY = """-H 'content-type: application/json' -d '{"key":"alice","limits":"10/minute"}'"""


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000/v1/check"),
        ("http://0.0.0.0:81", "localhost:81/v1/check"),
        ("http://[::]:81", "localhost:81/v1/check"),
        ("http://[::1]:81", "'[::1]:81/v1/check'"),
        ("unix:/run/a b.sock", "--unix-socket '/run/a b.sock' localhost/v1/check"),
    ],
)
def test_the_curl_line_names_the_true_place(where: str, place: str) -> None:
    assert server._curl(where) == f"curl -s {place} {BODY}"


def test_the_curl_line_takes_the_key_from_a_variable_and_never_shows_it() -> None:
    bearer = '-H "authorization: Bearer $ONEQUOTA_API_KEY"'
    assert server._curl("http://h:1", with_key=True) == f"curl -s h:1/v1/check {bearer} {BODY}"


def test_the_banner_is_lines_for_people_and_one_line_for_programs() -> None:
    banner = Banner(
        url="http://127.0.0.1:8000",
        redis="embedded redis 7.0.15, for development",
        workers=2,
        reload=False,
        curl="curl -s 127.0.0.1:8000/v1/check",
        warning=None,
    )
    assert banner.text().splitlines() == [
        "listening  http://127.0.0.1:8000",
        "redis      embedded redis 7.0.15, for development",
        "workers    2, sharing one quota",
        "try        curl -s 127.0.0.1:8000/v1/check",
    ]
    assert "\n" not in banner.json()
    assert json.loads(banner.json())["workers"] == 2
    also = replace(banner, grpc="127.0.0.1:8081")
    assert "grpc       127.0.0.1:8081, Envoy's rate-limit service" in also.text().splitlines()
    assert json.loads(also.json())["grpc"] == "127.0.0.1:8081"

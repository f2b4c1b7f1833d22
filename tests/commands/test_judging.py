"""What facts about a deployment mean."""

import pytest
from fastapi import FastAPI

from service.commands import judging, routes
from service.commands.judging import RedisFacts
from service.commands.words import span
from service.limits import Limiter, identity
from service.settings import Settings

GB = 1 << 30


def redis(**changes):
    facts = {
        "called": "redis 7.0.15",
        "url": "redis://h:6379",
        "doubts": [],
        "took_s": [0.001] * 20,
        "ahead_s": 0.1,
        "info": {"role": "master", "maxmemory": GB, "used_memory": GB // 2},
    }
    found = judging.of_redis(RedisFacts(**facts | changes), 0.25)
    return {finding.about: (finding.state, finding.sentence) for finding in found}


def test_a_good_redis_is_told_in_a_few_lines():
    assert redis() == {
        "Redis": ("good", "redis 7.0.15 at redis://h:6379"),
        "Redis memory": ("good", "noeviction, 50 % of 1024 MB used"),
        "latency": ("good", "a decision takes 1.0 ms, the slowest of 20 1.0 ms; the deadline is 250 ms"),
    }


@pytest.mark.parametrize(
    ("changes", "about", "state", "says"),
    [
        ({"called": "redis 6.0.16"}, "Redis version", "bad", "redis 6.0.16 is older than 6.2: update it"),
        ({"info": {"role": "slave"}}, "Redis role", "bad", "a replica, which takes no writes"),
        ({"doubts": ["it evicts"]}, "Redis memory", "bad", "it evicts"),
        ({"info": {"maxmemory": 0}}, "Redis memory", "note", "maxmemory is not set"),
        ({"info": {"maxmemory": GB, "used_memory": GB - 1}}, "Redis memory", "bad", "99 % of maxmemory is used"),
        ({"took_s": [0.001] * 19 + [0.3]}, "latency", "bad", "the deadline is 250 ms: bring Redis nearer"),
        ({"took_s": [0.06] * 20}, "latency", "note", "a decision takes 60.0 ms"),
        ({"ahead_s": -3.0}, "clock", "note", "Redis is -3.0 s ahead of us"),
    ],
)
def test_what_is_wrong_with_a_redis_is_told_with_what_to_do(changes, about, state, says):
    found = redis(**changes)[about]
    assert found[0] == state
    assert says in found[1]


def test_a_redis_that_tells_nothing_of_itself_is_not_blamed():
    assert set(redis(info={}, called="valkey (unknown version)")) == {"Redis", "latency"}


def environment(open_files=100_000, workers=2, **settings):
    found = judging.of_settings(Settings(**settings), workers=workers, open_files=open_files)
    return {finding.about: (finding.state, finding.sentence) for finding in found}


@pytest.mark.parametrize(
    ("settings", "about", "state", "says"),
    [
        ({}, "REDIS_URL", "note", "start a Redis for development"),
        ({"environment": "production"}, "REDIS_URL", "bad", "serve refuses to start"),
        ({"redis_url": "fakeredis://"}, "REDIS_URL", "bad", "cannot be shared by 2 workers"),
        ({}, "proxies", "note", "none is believed"),
        ({"trusted_proxies": "10.0.0.0/8"}, "proxies", "good", "believed are 10.0.0.0/8"),
        ({"keep_alive_s": 60}, "keep-alive", "bad", "set ONEQUOTA_KEEP_ALIVE_S=75"),
        ({}, "keep-alive", "good", "75 s"),
        ({"open_files": 163}, "open files", "bad", "a process may have 163 and needs 164: raise ulimit -n"),
    ],
)
def test_what_the_environment_says_is_judged(settings, about, state, says, monkeypatch):
    for name in ("REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    found = environment(**settings)[about]
    assert found[0] == state
    assert says in found[1]


def test_enough_is_nothing_to_speak_of():
    assert not {"REDIS_URL", "open files"} & set(environment(open_files=164, redis_url="redis://h"))


def app(storage_uri, *, gated=True, limited=True, **more):
    limits = Limiter(identity.client_address, ["9/minute"] if limited else [], storage_uri=storage_uri, **more)
    made = FastAPI(openapi_url=None)
    made.state.limiter = limits
    if gated:
        made.add_middleware(limits.middleware)
    return next(routes.sections(made))


@pytest.mark.parametrize(
    ("section", "workers", "state", "says"),
    [
        (app("memory://"), 4, "bad", "memory://: each of 4 workers counts for itself; set REDIS_URL"),
        (app("memory://"), None, "note", "memory://: several workers would count each for itself"),
        (app("redis://:hunter2@h"), 4, "good", "counts in redis://:***@h"),
        (app("redis://h", gated=False), 4, "note", "no middleware"),
        (app("redis://h", limited=False), 4, "bad", "no route has a limit"),
        (app("redis://h"), 4, "note", "counts by address and believes no proxy"),
    ],
)
def test_an_apps_limiter_is_judged(section, workers, state, says):
    found = list(judging.of_app(section, workers))
    assert any(finding.state == state and says in finding.sentence for finding in found), found


def test_an_app_behind_a_proxy_it_believes_is_not_blamed():
    found = list(judging.of_app(app("redis://h", trusted_proxies=["10.0.0.0/8"]), 4))
    assert [finding.state for finding in found] == ["good"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (86_399, "23 h 59 min"),
     (86_400, "1 d"), (90_000, "1 d 1 h"), (86_460, "1 d"), (30 * 86_400, "30 d")],
)  # fmt: skip
def test_a_time_is_told_in_its_two_largest_parts(seconds, words):
    assert span(seconds) == words

"""The service as its own description tells it, fuzzed by schemathesis: no 5xx, and every answer as described.

One check is left out: a body that fits the schema may still be refused, for a schema cannot say that a cost must fit
its limit. What is refused then is looked at by a generator of our own, on a real Redis both.
"""

import json
import re

import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from starlette.testclient import TestClient

from service import settings as deployment
from service.app import create_app
from service.limits.algorithms import ALGORITHMS

SECRET = "0123456789abcdef0123456789abcdef"
JSON = {"content-type": "application/json"}


def app_on(redis_server, **options):
    return create_app(deployment.load(redis_url=redis_server.url, redis_timeout_ms=10_000, **options))


def left_out(case):
    """Envoy's and the gateways' forms take more than their schema says: null for a default, what comes too often."""
    more = [negative_data_rejection] if case.path in ("/json", "/v1/authorize") else []
    return [positive_data_acceptance, *more]


def fuzz(app, examples, look=lambda case, answer: None):
    """Every operation of the description, with data that fits it and with data that does not; how many requests."""
    sent = 0
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in GenerationMode:
            try:
                cases = operation.as_strategy(generation_mode=mode)

                @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
                @given(cases)
                def send(case):
                    nonlocal sent
                    sent += 1
                    answer = case.call_and_validate(excluded_checks=left_out(case))
                    look(case, answer)

                send()
            except Unsatisfiable:  # an operation without parameters: nothing about it can be wrong
                assert mode is GenerationMode.NEGATIVE and not operation.body, operation.label
    return sent


def test_every_operation_answers_as_described_and_never_5xx(redis_server):
    assert fuzz(app_on(redis_server), 100) >= 200


def test_strangers_are_never_answered_5xx_either(redis_server):
    def look(case, answer):
        assert answer.status_code in (401, 405, 429) or not case.path.startswith("/v1"), answer.text

    assert fuzz(app_on(redis_server, api_keys=f"gateway:{SECRET}:*"), 20, look) >= 40


# ── bodies that nearly fit ───────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = st.one_of(
    st.integers(0, 12),
    st.sampled_from([-1, 10**9, 10**9 + 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**30, 1.0, 1.5, -0.0]),
    st.sampled_from([True, None, "1", "NaN", [1], {}]),
)
LIMITS = st.one_of(
    st.builds(
        "{}/{}{}".format,
        st.integers(0, 12),
        st.sampled_from(["", "2 ", "0 ", "10000 "]),
        st.sampled_from(["second", "minute", "hours", "days", "month", "years", "s", "fortnight"]),
    ),
    st.lists(st.sampled_from(["10/minute", "5 per second", "1/year", "1000000000/month", "7/day"]), max_size=40).map(
        ";".join
    ),
    st.text(max_size=20),
    NUMBERS,
)
KEYS = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "{}", "a}b", "k" * 1024, "k" * 1025, "\ud800", "\x00\r\n"]), NUMBERS
)
CHECK = st.fixed_dictionaries(
    {"key": KEYS, "limits": LIMITS},
    optional={
        "algorithm": st.one_of(st.sampled_from([*ALGORITHMS, "x"]), NUMBERS),
        "cost": NUMBERS,
        "burst": NUMBERS,
        "peek": st.one_of(st.booleans(), NUMBERS),
        "extra": NUMBERS,
    },
)
BODY = st.one_of(
    CHECK,
    CHECK,
    st.fixed_dictionaries({"checks": st.one_of(st.lists(CHECK, max_size=3), NUMBERS)}),
    st.lists(CHECK, max_size=1),
)


def test_bodies_that_nearly_fit_are_answered_or_refused_with_their_field_named(redis_server):
    """200 with a whole answer, or 422 that says where; what was refused has made no counter."""
    statuses = set()
    with TestClient(app_on(redis_server)) as client, redis_server.client() as redis:

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
        @given(BODY)
        @example({"key": "a", "limits": "10/minute"})
        def post(body):
            before = redis.dbsize()
            answer = client.post("/v1/check", content=json.dumps(body), headers=JSON)
            statuses.add(answer.status_code)
            if answer.status_code == 200:
                told = answer.json()
                for one in told.get("results", [told]):
                    assert one["allowed"] == (one["retry_after"] is None)
            elif answer.status_code == 400:  # half a character is no JSON
                assert re.search("[\ud800-\udfff]", json.dumps(body, ensure_ascii=False)), answer.text
            else:
                assert answer.status_code == 422, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["errors"][0]["field"], answer.text
                assert redis.dbsize() <= before  # one of a second may have ended

        client.post("/v1/check", json={"key": "a", "limits": "1/day"})  # makes the counter of who asks
        post()
    assert statuses >= {200, 422}

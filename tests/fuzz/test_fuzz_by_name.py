"""What is asked by a file's rules, and ids that somebody made up, on a real Redis: no 5xx, and nobody else notices."""

import json
from base64 import urlsafe_b64encode

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service import settings as deployment
from service.app import create_app
from service.limits import keys

FILE = """\
domain: api
descriptors:
  - {key: user, limits: "3/minute;500/day"}
  - {key: user, value: alice, limits: 5/minute, algorithm: gcra, burst: 2}
  - {key: user, value: bot-*, limits: 4/minute, share_threshold: true}
  - {key: remote_address, limits: 7/minute, algorithm: moving-window, name: by-address}
  - {key: remote_address, value_cidr: 10.0.0.0/8, rate_limit: {unlimited: true}}
  - {key: path, value: /admin, rate_limit: {unit: hour, requests_per_unit: 0}}
  - key: path
    value_regex: "/v[0-9]+"
    descriptors: [{key: user, limits: 6/minute, algorithm: sliding-window-counter, shadow_mode: true}]
  - {key: partner, limits: 9/minute, replaces: [{name: by-address}]}
  - {key: tenant, requests: 100, per: month, align: calendar, timezone: Europe/Berlin}
  - {key: render, limits: 3/minute, algorithm: concurrency}
  - {key: provider, limits: 2/minute, quota_mode: true}
"""
WATCHED = {"key": "watched", "limits": "1000000/day"}
JSON = {"content-type": "application/json"}

ENTRY = st.tuples(
    st.sampled_from(["user", "remote_address", "path", "partner", "tenant", "render", "provider", "other", ""]),
    st.sampled_from(["alice", "bob", "bot-7", "10.1.2.3", "192.0.2.1", "/admin", "/v2", "", "é", "\x00\r\n"])
    | st.text(max_size=5),
)
NUMBERS = st.sampled_from([0, 1, 2, 5, 101, -1, 10**9, 10**9 + 1, 2**53, 2**63, 1.0, 1.5, True, None, "1"])
DESCRIPTORS = st.lists(st.lists(ENTRY.map(lambda entry: {entry[0]: entry[1]}), max_size=3), max_size=4)
ASKED = st.fixed_dictionaries(
    {"domain": st.sampled_from(["api", "api", "api", "none", ""]), "descriptors": DESCRIPTORS},
    optional={"cost": NUMBERS, "peek": st.booleans() | NUMBERS, "ttl": NUMBERS},
)
ENVOYS = st.fixed_dictionaries(
    {
        "domain": st.sampled_from(["api", "none"]),
        "descriptors": st.lists(
            st.fixed_dictionaries(
                {"entries": st.lists(ENTRY.map(lambda entry: {"key": entry[0], "value": entry[1]}), max_size=3)},
                optional={"hits_addend": NUMBERS, "limit": st.just({"requests_per_unit": 3, "unit": "HOUR"})},
            ),
            max_size=4,
        ),
    },
    optional={"hitsAddend": NUMBERS},
)
ROUTES = st.one_of(
    st.tuples(st.sampled_from(["/v1/check", "/v1/refund", "/v1/reservations", "/v1/leases"]), ASKED),
    st.tuples(st.just("/json"), ENVOYS),
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PARTS = ["amount", "window_s", "algorithm", "burst", "since_s", "aligned", "name", "on_outage", "more"]
SHORT = {"gcra": "gcra", "moving-window": "moving", "sliding-window-counter": "sliding", "concurrency": "lease"}


@st.composite
def charges(draw):
    """One as our ids have it, but for one part of its limit."""
    limit = {"amount": 10, "window_s": 60}
    if draw(st.booleans()):
        limit["algorithm"] = draw(st.sampled_from(sorted(SHORT)))
    limit[draw(st.sampled_from(PARTS))] = draw(
        st.sampled_from([2, 2.0, 1.5, True, False, 10**400, None, "2"]) | ANYTHING
    )
    algorithm = limit.get("algorithm")
    tail = SHORT.get(algorithm, "fixed") if isinstance(algorithm, str) else "fixed"
    more = "".join(f"/{mark}{limit[word]}" for word, mark in (("burst", "b"), ("since_s", "@")) if word in limit)
    spelling = f"{limit['amount']}/{limit['window_s']}s{more}/{tail}".encode("ascii", "replace").decode()
    key = keys.spell("", draw(st.sampled_from(["alice", "bob"])), "c.", spelling)
    return [key.decode("ascii", "replace"), draw(NEARLY), limit]


NEARLY = st.sampled_from([5] * 20 + [0, 1, -1, 2**53, 1.0, True, None])
RIGHT = st.tuples(NEARLY, NEARLY, NEARLY, st.lists(charges(), min_size=1, max_size=2))
SAID = st.integers(0, 9).flatmap(lambda one: RIGHT if one else ANYTHING)


def service_on(redis_server, folder):
    file = folder / "limits.yaml"
    file.write_text(FILE)
    return create_app(deployment.load(redis_url=redis_server.url, redis_timeout_ms=10_000, limits=str(file)))


def nobody_noticed(client, asked):
    """Who asks besides is counted, exactly, by Redis."""
    answer = client.post("/v1/check", json=WATCHED).json()
    assert "degraded" not in answer
    assert answer["limits"][0]["remaining"] == 1_000_000 - asked


def test_whatever_is_asked_by_name_is_answered_or_refused(redis_server, tmp_path):
    statuses, asked = set(), 0
    with TestClient(service_on(redis_server, tmp_path)) as client, redis_server.client() as redis:

        @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
        @given(ROUTES)
        def post(one):
            nonlocal asked
            path, body = one
            answer = client.post(path, content=json.dumps(body), headers=JSON)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (path, body, answer.text)
            asked += 1
            nobody_noticed(client, asked)

        post()
        assert all(redis.pttl(key) > 0 for key in redis.scan_iter())
    assert statuses >= {200, 422}


def test_an_id_that_somebody_made_up_is_unknown_and_nobody_else_notices(redis_server, tmp_path):
    asked = 0
    with TestClient(service_on(redis_server, tmp_path)) as client:

        @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
        @given(SAID, st.sampled_from("rw"), st.sampled_from(["settle", "release", "renew", "end"]), NUMBERS)
        def ask(content, kind, what, cost):
            nonlocal asked
            text = json.dumps(content, separators=(",", ":")).encode()
            made_up = f"{'A' * 24}{kind}{urlsafe_b64encode(text).decode().rstrip('=')}"
            if what == "settle":
                answer = client.post(f"/v1/reservations/{made_up}/settle", json={"cost": cost})
            elif what == "release":
                answer = client.delete(f"/v1/reservations/{made_up}")
            elif what == "renew":
                answer = client.put(f"/v1/leases/{made_up}")
            else:
                answer = client.delete(f"/v1/leases/{made_up}")
            assert answer.status_code in (404, 422), (answer.status_code, answer.text, content)
            asked += 1
            nobody_noticed(client, asked)

        ask()

"""`POST /json`: the tables of envoycases.py, read by protobuf's own reader of JSON, which did not write it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import envoycases
import pytest
from envoy.service.ratelimit.v3 import rls_pb2
from envoycases import ALICE, BAD, CASES, HEADERS, ask
from fastapi.testclient import TestClient
from google.protobuf import json_format

from service.callers import Callers, parse
from service.errors import StoreUnavailable
from service.limits import Limiter, catalog
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.routes.envoy import Envoy
from service.routes.envoy.route import LARGEST_BODY_BYTES
from service.routes.raw import HotApp

SECRET = "5f1d7a84e2c09b36a7d41ce80f93b265"
FILE = catalog.parse(envoycases.FILE)
Made = Callable[..., TestClient]


@pytest.fixture
def made() -> Iterator[Made]:
    """Clients of services of their own, with their counters."""
    limiter = Limiter(lambda: "x", storage_uri="memory://")
    opened: list[TestClient] = []

    def make(keys: str | None = None, engine: Engine | None = None) -> TestClient:
        callers = Callers(parse(keys) if keys else (), limiter, "2/minute")
        app = HotApp()
        app.hot = {"/json": Envoy(engine or envoycases.engine(), lambda: FILE, callers, clock=envoycases.now_us)}
        opened.append(TestClient(app).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("name", CASES)
def test_each_field_of_each_answer(made: Made, name: str) -> None:
    client = made()
    for request, is_over, statuses in CASES[name]:
        response = client.post("/json", json=request)
        assert response.status_code == (429 if is_over else 200)
        assert response.headers["content-type"] == "application/json"
        message = json_format.Parse(response.content, rls_pb2.RateLimitResponse())
        assert json_format.MessageToDict(message)["statuses"] == statuses
        assert response.json()["overallCode"] == ("OVER_LIMIT" if is_over else "OK")


@pytest.mark.parametrize(("name", "request_", "headers"), HEADERS, ids=[name for name, _, _ in HEADERS])
def test_headers_for_the_client(made: Made, name: str, request_: Any, headers: list[tuple[str, str]]) -> None:
    told = made().post("/json", json=request_).json().get("responseHeadersToAdd", [])
    assert [(header["key"], header["value"]) for header in told] == headers


def test_an_answer_in_full(made: Made) -> None:
    client = made()
    request = ask(envoycases.IP, envoycases.of("colour=red"), hitsAddend=2)
    assert client.post("/json", json=request).json() == {
        "overallCode": "OK",
        "statuses": [
            {
                "code": "OK",
                "currentLimit": {"requestsPerUnit": 2, "unit": "HOUR"},
                "limitRemaining": 0,
                "durationUntilReset": "3585s",
            },
            {"code": "OK"},
        ],
        "responseHeadersToAdd": [
            {"key": "ratelimit-policy", "value": '"2/hour";q=2;w=3600'},
            {"key": "ratelimit", "value": '"2/hour";r=0;t=3585'},
        ],
    }
    refused = client.post("/json", json=request)
    assert (refused.headers["retry-after"], refused.headers["cache-control"]) == ("3585", "no-store")


OURS = {"requests_per_unit": 5, "unit": "MINUTE"}
SPELLINGS = [
    {"domain": "chat", "descriptors": [ALICE], "hitsAddend": 2},
    {"domain": "chat", "descriptors": [ALICE], "hits_addend": 2},
    {"domain": "chat", "descriptors": [ALICE], "hitsAddend": "2"},
    {"domain": "chat", "descriptors": [ALICE], "hitsAddend": 2.0},
    {"domain": "chat", "descriptors": [{**ALICE, "hitsAddend": "2", "limit": None}]},
    {"domain": "chat", "descriptors": [{**ALICE, "hits_addend": 2}], "hitsAddend": None},
    {"domain": "chat", "descriptors": [{**ALICE, "limit": {"requestsPerUnit": "5", "unit": 2}}], "hitsAddend": 2},
    {"domain": "chat", "descriptors": [{**ALICE, "limit": OURS}], "hitsAddend": 2},
]  # fmt: skip


@pytest.mark.parametrize("body", SPELLINGS, ids=json.dumps)
def test_what_protobuf_reads_as_the_same_is_the_same(made: Made, body: dict[str, Any]) -> None:
    json_format.ParseDict(body, rls_pb2.RateLimitRequest())
    assert made().post("/json", json=body).json()["statuses"] == [
        {
            "code": "OK",
            "currentLimit": {"requestsPerUnit": 5, "unit": "MINUTE"},
            "limitRemaining": 3,
            "durationUntilReset": "45s",
        }
    ]


@pytest.mark.parametrize(("request_", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_meant_is_a_400_that_names_the_field(made: Made, request_: Any, said: str) -> None:
    response = made().post("/json", json=request_)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"].startswith(said)
    assert response.json()["errors"][0]["field"] == said.partition(":")[0]


UNREADABLE: list[tuple[Any, str]] = [
    ([], "body: wanted an object, not a list"),
    ("chat", "body: wanted an object, not text"),
    ({"domain": 7}, "domain: wanted text, not a number"),
    ({"domain": "chat", "descriptors": {}}, "descriptors: wanted a list, not an object"),
    ({"domain": "chat", "descriptors": [[]]}, "descriptors[0]: wanted an object, not a list"),
    ({"domain": "chat", "descriptors": [{"entries": [{"key": "a", "value": 1}]}]},
     "descriptors[0].entries[0].value: wanted text, not a number"),
    ({"domain": "chat", "descriptors": [{"entries": [{"name": "a"}]}]},
     "descriptors[0].entries[0].name: is not known; use key, value"),
    ({"domain": "chat", "descriptor": []}, "descriptor: is not known; use domain, descriptors, hitsAddend"),
    ({"hits_addend": 1, "hitsAddend": 1}, "hitsAddend: is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), UNREADABLE, ids=[said for _, said in UNREADABLE])
def test_what_is_no_such_message_is_a_400_that_names_the_place(made: Made, body: Any, said: str) -> None:
    response = made().post("/json", json=body)
    assert response.status_code == 400
    assert response.json()["detail"].startswith(said)


@pytest.mark.parametrize("hits", [-1, 2**32, 1.5, "1.5", "-1", "x", "", " 1", "0x1", True, [], {}, "9" * 40, "٣"])
def test_what_is_no_number_of_hits_is_a_400_that_says_so(made: Made, hits: Any) -> None:
    response = made().post("/json", json=ask(ALICE, hitsAddend=hits))
    assert response.status_code == 400
    assert response.json()["detail"].startswith("hits_addend: wanted a whole number from 0 to 4294967295, not ")


def test_a_wrong_descriptor_charges_no_other(made: Made) -> None:
    client = made()
    assert client.post("/json", json=ask(ALICE, {"entries": 1})).status_code == 400
    assert client.post("/json", json=ask(ALICE)).json()["statuses"][0]["limitRemaining"] == 4


def test_the_type_of_the_body_does_not_matter_and_the_method_does(made: Made) -> None:
    """curl's --data says that it is a form."""
    client = made()
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/json", content=json.dumps(ask(ALICE)), headers=form).status_code == 200
    refused = client.get("/json")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_no_json_is_a_400_and_too_much_of_it_a_413(made: Made) -> None:
    assert made().post("/json", content=b"{").status_code == 400
    assert made().post("/json", content=b" " * (LARGEST_BODY_BYTES + 1)).status_code == 413


def test_a_key_is_needed_where_there_are_keys_and_asks_its_own_domains(made: Made) -> None:
    client = made(f"gateway:{SECRET}:each")
    bearer = {"authorization": f"Bearer {SECRET}"}
    assert client.post("/json", json=ask(ALICE, domain="each"), headers=bearer).status_code == 200
    assert client.post("/json", json=ask(ALICE), headers=bearer).status_code == 403
    statuses = [client.post("/json", json=ask(ALICE, domain="each")).status_code for _ in range(3)]
    assert statuses == [401, 401, 429]


class Away:
    """A store that does not answer."""

    far = False

    async def decide(self, asks: object) -> None:
        raise StoreUnavailable("redis://:hunter2@somewhere")

    async def aclose(self) -> None: ...


def test_without_a_store_it_is_a_503(made: Made) -> None:
    response = made(engine=Engine(Away, fallback=Fallback("deny"))).post("/json", json=ask(ALICE))  # type: ignore[arg-type]
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "hunter2" not in response.text


def test_while_the_store_is_away_a_share_of_the_limit_passes_and_what_remains_is_not_told(made: Made) -> None:
    client = made(engine=Engine(Away, deadline_s=5))  # type: ignore[arg-type]
    answers = [client.post("/json", json=ask(envoycases.IP)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    limit = {"requestsPerUnit": 2, "unit": "HOUR"}
    assert answers[0].json() == {
        "overallCode": "OK", "statuses": [{"code": "OK", "currentLimit": limit, "limitRemaining": 0}]
    }  # fmt: skip
    assert [header["key"] for header in answers[2].json()["responseHeadersToAdd"]] == ["retry-after"]

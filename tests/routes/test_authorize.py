"""`/v1/authorize`: what is known of a gateway's client, what is asked about it, and how the gateway is told."""

from collections.abc import Callable, Iterator
from typing import Any

import envoycases
import pytest
from fastapi.testclient import TestClient

from service.callers import Callers, parse
from service.errors import InvalidInput, StoreUnavailable
from service.limits import Limiter, catalog, identity
from service.limits.engine import Engine
from service.limits.fallback import Fallback
from service.limits.identity import Addresses
from service.routes.authorize import Authorize, asking, values
from service.routes.raw import HotApp

GATEWAY = "10.0.0.1"
SECRET = "5f1d7a84e2c09b36a7d41ce80f93b265"
DIGESTS = "a secret of digests"

FILE = catalog.parse("""
domain: site
descriptors:
  - key: remote_address
    rate_limit: {unit: hour, requests_per_unit: 3}
  - key: path
    value: /login
    descriptors:
      - key: remote_address
        rate_limit: {unit: minute, requests_per_unit: 1}
---
domain: keys
descriptors:
  - key: api_key
    rate_limit: {unit: hour, requests_per_unit: 1}
---
domain: blocked
descriptors:
  - key: host
    value: old.example
    rate_limit: {unit: day, requests_per_unit: 0}
---
domain: shadow
descriptors:
  - key: method
    rate_limit: {unit: hour, requests_per_unit: 1}
    shadow_mode: true
---
domain: tree
descriptors:
  - key: method
    value: POST
    rate_limit: {unit: hour, requests_per_unit: 9}
    descriptors:
      - key: host
        descriptors:
          - key: path
            value: /api/*
            rate_limit: {unit: hour, requests_per_unit: 9}
          - key: method
            rate_limit: {unit: hour, requests_per_unit: 9}
          - key: tenant
            rate_limit: {unit: hour, requests_per_unit: 9}
  - key: path
    rate_limit: {unit: hour, requests_per_unit: 9}
  - key: remote_address
    value_cidr: 192.0.2.0/24
    rate_limit: {unit: hour, requests_per_unit: 9}
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 9}
""")


# -- values -------------------------------------------------------------------------------------------------------


def scope(*headers: tuple[str, str], peer: str = GATEWAY, method: str = "GET") -> dict[str, Any]:
    return {
        "client": (peer, 1234),
        "method": method,
        "path": "/v1/authorize",
        "raw_path": b"/v1/authorize",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }


def known(*headers: tuple[str, str], **more: Any) -> dict[str, str]:
    return values.of(scope(*headers, **more), Addresses(["10.0.0.0/8"]), lambda key: f"digest of {key}")


def test_a_trusted_gateway_says_who_asks_and_for_what() -> None:
    """As Caddy and Traefik say it, and as nginx does."""
    told = {"remote_address": "192.0.2.1", "method": "POST", "path": "/a", "host": "site.example"}
    forwarded = ("X-Forwarded-For", "192.0.2.1")
    assert told == known(
        forwarded, ("X-Forwarded-Method", "POST"), ("X-Forwarded-Uri", "/a?b=c"), ("X-Forwarded-Host", "site.example")
    )
    assert told == known(
        forwarded, ("X-Original-Method", "POST"), ("X-Original-URI", "/a?b=c"), ("X-Original-Host", "site.example")
    )
    assert told == known(
        forwarded, ("X-Original-Method", "POST"), ("X-Original-URL", "https://x/a?b=c"), ("Host", "site.example")
    )


def test_nobody_else_is_believed_and_is_asked_about_himself() -> None:
    lies = [(name.decode(), "POST") for name in (*values.METHOD, *values.PATH, *values.HOST)]
    assert known(*lies, ("X-Forwarded-For", "192.0.2.1"), ("Host", "us"), peer="203.0.113.9", method="PUT") == {
        "remote_address": "203.0.113.9",
        "method": "PUT",
        "path": "/v1/authorize",
        "host": "us",
    }


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Forwarded-Uri", "/free"), ("X-Original-URI", "/login")],
        [("X-Original-URI", "/login"), ("X-Original-URL", "http://site/free")],
        [("X-Forwarded-Uri", "/free"), ("X-Forwarded-Uri", "/login")],
        [("X-Forwarded-Method", "GET"), ("X-Original-Method", "POST")],
        [("X-Forwarded-Host", "a"), ("X-Original-Host", "b")],
        [("X-API-Key", "a"), ("X-API-Key", "b")],
    ],
)
def test_two_headers_that_disagree_are_an_error_whichever_the_gateway_set(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidInput, match=r"says? two things; let the gateway set one of them"):
        known(*headers)
    with pytest.raises(InvalidInput):
        known(*reversed(headers))


def test_two_headers_that_agree_are_none() -> None:
    assert (
        known(("X-Forwarded-Uri", "//a?x"), ("X-Original-URI", "/a"), ("X-Original-URL", "http://h/%61"))["path"]
        == "/a"
    )


PATHS = {
    "/": ["/", "", "/.", "//", "/?x", "/..", "/a/..", "http://site", "http://site/", "http://site?x"],
    "/login": [
        "/login", "/login/", "//login", "/login?next=/x", "/login#x", "/./login", "/x/../login", "/%6Cogin",
        "/%6cogin/", "/login//", "/%2flogin", "/%2e/login", "http://site/login?x", "login", "/login?http://site/other",
    ],
    "/LOGIN": ["/LOGIN"],
    "/login/x": ["/login/x", "/login%2Fx", "/login//x/."],
    "/a b": ["/a%20b", "/a b"],
    "/a%20b": ["/a%2520b"],  # decoded once
    "/ü": ["/%C3%BC", "/\xc3\xbc"],
    "/\N{REPLACEMENT CHARACTER}": ["/%ff", "/\xff"],
    "/%": ["/%"],
    "/%zz": ["/%zz"],
}  # fmt: skip


@pytest.mark.parametrize(("plain", "spelled"), [(plain, text) for plain, texts in PATHS.items() for text in texts])
def test_a_path_has_one_form(plain: str, spelled: str) -> None:
    assert values.path(spelled) == plain


def test_a_long_path_is_cut_and_stays_itself() -> None:
    one, other = (values.path("/files/" + "x" * 9000 + end) for end in "ab")
    assert len(one) == len(other) == values.LONGEST
    assert one != other
    assert one.startswith("/files/xxx")


@pytest.mark.parametrize(
    ("spelled", "plain"),
    [
        ("Site.Example", "site.example"),
        ("site.example.", "site.example"),
        ("site.example:8080", "site.example"),
        ("[2001:DB8::1]:443", "[2001:db8::1]"),
        ("evil.example, site.example", "site.example"),
    ],
)
def test_a_host_has_one_form(spelled: str, plain: str) -> None:
    assert values.host(spelled) == plain


@pytest.mark.parametrize(
    ("spelled", "plain"), [("GET", "GET"), ("HEAD", "GET"), ("post", "POST"), ("M-SEARCH", "M-SEARCH")]
)
def test_a_method_has_one_form(spelled: str, plain: str) -> None:
    assert values.method(spelled) == plain


def test_what_is_no_method_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="method: 'G T' is none"):
        values.method("G T")


# -- asking -------------------------------------------------------------------------------------------------------

M, H, P, A = ("method", "POST"), ("host", "h"), ("path", "/api/x"), ("remote_address", "192.0.2.1")


@pytest.mark.parametrize(
    ("changed", "asked"),
    [
        ({}, [(M,), (M, H, P), (P,), (A,)]),
        ({"method": "GET"}, [(P,), (A,)]),
        ({"path": "/"}, [(M,), (("path", "/"),), (A,)]),
        ({"remote_address": "198.51.100.1"}, [(M,), (M, H, P), (P,)]),
    ],
)
def test_every_rule_is_asked_whose_keys_are_known_and_in_file_order(
    changed: dict[str, str], asked: list[tuple[tuple[str, str], ...]]
) -> None:
    """No rule by `tenant` or `user`, and none that has `method` twice."""
    assert asking.by_rules(FILE.domains["tree"], dict([M, H, P, A]) | changed) == asked


def test_what_is_asked_is_what_the_catalog_matches() -> None:
    found = asking.by_rules(FILE.domains["tree"], dict([M, H, P, A]))
    matches = FILE.match_all("tree", found)
    assert [match.rule.path for match in matches if match] == [
        "tree.method_POST", "tree.method_POST.host.path_/api/*", "tree.path", "tree.remote_address_192.0.2.0/24"
    ]  # fmt: skip


def test_named_descriptors_are_asked_in_their_order_and_left_out_where_a_value_is_missing() -> None:
    named = [("path", "remote_address"), ("api_key",), ("remote_address",)]
    assert asking.by_name(named, dict([P, A])) == [(P, A), (A,)]


# -- the route ----------------------------------------------------------------------------------------------------


class Gateway:
    """A trusted gateway, and what it is told of a client."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def ask(self, query: str, address: str = "192.0.2.1", path: str = "/", **more: Any) -> Any:
        headers = {"x-forwarded-for": address, "x-forwarded-uri": path, "x-forwarded-method": "GET"}
        headers |= more.pop("headers", {})
        return self.client.request(more.pop("method", "GET"), f"/v1/authorize?{query}", headers=headers, **more)


Made = Callable[..., Gateway]


@pytest.fixture
def made() -> Iterator[Made]:
    opened: list[TestClient] = []

    def make(
        keys: str | None = None, engine: Engine | None = None, secret: str | None = DIGESTS, peer: str = GATEWAY
    ) -> Gateway:
        limiter = Limiter(lambda: "x", storage_uri="memory://", trusted_proxies=["10.0.0.0/8"])
        limiter.engine = engine or envoycases.engine()
        callers = Callers(parse(keys) if keys else (), limiter, "2/minute")
        app = HotApp()
        app.hot = {"/v1/authorize": Authorize(limiter, lambda: FILE, callers, secret, clock=envoycases.now_us)}
        opened.append(TestClient(app, client=(peer, 1234)).__enter__())
        return Gateway(opened[-1])

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def test_a_client_passes_with_headers_and_is_refused_with_more(made: Made) -> None:
    gateway = made()
    passed = gateway.ask("domain=site")
    assert (passed.status_code, passed.content) == (200, b"")
    assert passed.headers["ratelimit-policy"] == '"3/hour";q=3;w=3600'
    assert passed.headers["ratelimit"] == '"3/hour";r=2;t=3585'
    assert passed.headers["cache-control"] == "no-store"
    assert [gateway.ask("domain=site").status_code for _ in range(3)] == [200, 200, 429]
    refused = gateway.ask("domain=site")
    assert refused.headers["retry-after"] == "3585"
    assert refused.headers["ratelimit"] == '"3/hour";r=0;t=3585'
    assert refused.headers["cache-control"] == "no-store"
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "3/hour is used up; try again in 3585 s",
        "violated-policies": ["3/hour"],
    }
    assert gateway.ask("domain=site", "192.0.2.2").status_code == 200


def test_all_rules_hold_together_or_nothing_is_charged(made: Made) -> None:
    gateway = made()
    assert [gateway.ask("domain=site", path="/login").status_code for _ in range(2)] == [200, 429]
    assert gateway.ask("domain=site").headers["ratelimit"] == '"3/hour";r=1;t=3585'


@pytest.mark.parametrize("path", ["//login", "/login/", "/%6cogin", "/x/../login?a=b", "http://site/login"])
def test_another_spelling_of_a_path_is_no_other_quota(made: Made, path: str) -> None:
    gateway = made()
    assert gateway.ask("domain=site", path="/login").status_code == 200
    assert gateway.ask("domain=site", path=path).status_code == 429


def test_nginx_is_told_403_only_where_the_client_is_refused(made: Made) -> None:
    gateway = made(f"gateway:{SECRET}:site")
    bearer = {"authorization": f"Bearer {SECRET}"}
    statuses = [gateway.ask("domain=site&refuse=403", headers=bearer).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 403]
    refused = gateway.ask("domain=site&refuse=403", headers=bearer)
    assert (refused.headers["retry-after"], refused.headers["ratelimit"]) == ("3585", '"3/hour";r=0;t=3585')
    assert (refused.content, refused.headers["content-length"]) == (b"", "0")
    assert gateway.ask("domain=keys&refuse=403", headers=bearer).status_code == 400
    assert gateway.ask("domain=keys", headers=bearer).status_code == 403


def test_strangers_are_told_that_they_are_before_anything_else(made: Made) -> None:
    gateway = made(f"gateway:{SECRET}:site")
    assert [gateway.ask(query).status_code for query in ("domain=", "domain=site&refuse=403")] == [401, 401]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_any_method_will_do_and_no_body_is_read(made: Made, method: str) -> None:
    gateway = made()
    sent: list[Any] = []

    async def never() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    asked = scope(method=method) | {"type": "http", "query_string": b"domain=site"}
    gateway.client.portal.call(gateway.client.app.hot["/v1/authorize"], asked, never, send)  # type: ignore[attr-defined, union-attr]
    assert sent[0]["status"] == 200


def test_named_descriptors_are_asked_in_place_of_the_domains_rules(made: Made) -> None:
    gateway = made()
    query = "domain=site&descriptor=path,remote_address"
    assert [gateway.ask(query, path="/login").status_code for _ in range(2)] == [200, 429]
    assert gateway.ask("domain=site").headers["ratelimit"] == '"3/hour";r=2;t=3585'


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "domain: say which one"),
        ("domain=", "domain: say which one"),
        ("domain=a&domain=b", "domain: is there twice"),
        ("domain=site&refuse=401", "refuse: '401'; use 403, or leave it out for 429"),
        ("domain=site&descriptor=user", "descriptor: 'user' is not known; use remote_address, method, path, host"),
        ("domain=site&descriptor=", "descriptor: '' is not known"),
        ("domain=site&descriptor=path,", "descriptor: '' is not known"),
        ("domain=site&cost=2", "cost: is not known; use domain, descriptor, refuse"),
        ("domain=site" + "&descriptor=path" * 101, "descriptors: 101 of them; use 1 to 100"),
        ("domain=site" + "&descriptor=path" * 102, "descriptor: more than 100 of them"),
    ],
)
def test_a_question_that_cannot_be_meant_is_a_422_that_names_the_parameter(made: Made, query: str, said: str) -> None:
    response = made().ask(query)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(said)


def test_a_domain_that_is_not_known_limits_nothing_and_is_complained_of(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = made()
    responses = [gateway.ask("domain=nobodys") for _ in range(3)]
    assert [response.status_code for response in responses] == [200] * 3
    assert "ratelimit" not in responses[0].headers
    assert caplog.text.count("unknown_domain domain=nobodys") == 1


def test_an_api_key_counts_by_its_digest(made: Made) -> None:
    engine, names = envoycases.engine(), list[bytes]()
    decide = engine.decide

    def noting(ask: Any) -> Any:
        names.extend(ask.names)
        return decide(ask)

    engine.decide = noting  # type: ignore[method-assign]
    gateway = made(engine=engine)
    alice, bob = {"x-api-key": "alices-key"}, {"x-api-key": "bobs-key"}
    statuses = [gateway.ask("domain=keys", headers=key).status_code for key in (alice, alice, bob)]
    assert statuses == [200, 429, 200]
    assert gateway.ask("domain=keys").status_code == 200, "without a key there is nobody to limit by it"
    assert identity.digest("alices-key", DIGESTS).encode() in names[0]
    assert b"alices-key" not in b" ".join(names)


def test_the_gateways_own_key_is_not_its_clients(made: Made) -> None:
    """X-API-Key is the client's only beside the gateway's Bearer token."""
    gateway = made(f"gateway:{SECRET}:keys")
    for _ in range(3):
        assert gateway.ask("domain=keys", headers={"x-api-key": SECRET}).status_code == 200
    both = {"authorization": f"Bearer {SECRET}", "x-api-key": "alices-key"}
    assert [gateway.ask("domain=keys", headers=both).status_code for _ in range(2)] == [200, 429]


def test_limits_by_api_key_without_a_secret_are_an_error_and_not_no_limit(made: Made) -> None:
    gateway = made(secret=None)
    response = gateway.ask("domain=keys", headers={"x-api-key": "alices-key"})
    assert response.status_code == 500
    assert "ONEQUOTA_IDENTITY_SECRET" in response.json()["detail"]
    assert gateway.ask("domain=site", headers={"x-api-key": "alices-key"}).status_code == 200


def test_a_blocked_client_is_told_when_to_look_again_and_a_shadow_is_not_seen(made: Made) -> None:
    gateway = made()
    blocked = gateway.ask("domain=blocked", headers={"x-forwarded-host": "Old.Example."})
    assert (blocked.status_code, blocked.headers["retry-after"]) == (429, "86400")
    assert blocked.json()["violated-policies"] == ["blocked.host_old.example"]
    for _ in range(2):
        shadow = gateway.ask("domain=shadow")
        assert (shadow.status_code, "ratelimit" in shadow.headers) == (200, False)


def test_who_is_no_gateway_spends_his_own_quota_whatever_he_says(made: Made) -> None:
    stranger = made(peer="203.0.113.9")
    statuses = [stranger.ask("domain=site", f"192.0.2.{number}").status_code for number in range(5)]
    assert statuses == [200, 200, 200, 429, 429]


def test_a_client_cannot_choose_its_address_through_a_gateway(made: Made) -> None:
    gateway = made()
    statuses = [gateway.ask("domain=site", f"198.51.100.{number}, 192.0.2.1").status_code for number in range(5)]
    assert statuses == [200, 200, 200, 429, 429]


class Away:
    """A store that does not answer."""

    far = False

    async def decide(self, asks: object) -> None:
        raise StoreUnavailable("redis://:hunter2@somewhere")

    async def aclose(self) -> None: ...


def test_without_a_store_it_is_a_503(made: Made) -> None:
    response = made(engine=Engine(Away, fallback=Fallback("deny"))).ask("domain=site")  # type: ignore[arg-type]
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_while_the_store_is_away_a_share_of_the_limit_passes_and_what_remains_is_not_told(made: Made) -> None:
    gateway = made(engine=Engine(Away, deadline_s=5))  # type: ignore[arg-type]
    answers = [gateway.ask("domain=site") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert not any("ratelimit" in answer.headers for answer in answers)
    assert "retry-after" in answers[3].headers
    assert answers[3].json()["degraded"] is True

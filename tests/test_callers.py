"""Who may ask the service: keys as they are set, callers as they are known, and what strangers are told."""

import hashlib
import logging

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.callers import ANYBODY, Caller, Callers, bits, parse
from service.errors import ConfigurationError
from service.limits import Limiter, identity
from service.settings import Settings

HEX = "0123456789abcdef" * 2
BASE64 = "Zm9yLXRlc3RzLW9ubHktMTI"
OTHER = "fedcba9876543210" * 2
DIGEST = hashlib.sha256(HEX.encode()).hexdigest()
CHECK = {"key": "alice", "limits": "5/minute"}


def callers_of(text: str) -> Callers:
    return Callers(parse(text), Limiter(identity.client_address, storage_uri="fakeredis://"))


def known(callers: Callers, *headers: tuple[str, str]) -> str | None:
    caller = callers.of([(name.encode(), value.encode()) for name, value in headers])
    return None if caller is None else caller.name


@pytest.mark.parametrize(
    ("scopes", "domains", "inline"),
    [
        ("*", None, ""),
        ("chat", {"chat"}, None),
        ("chat,mail", {"chat", "mail"}, None),
        ("@inline", set(), "/app"),
        ("chat,@inline", {"chat"}, "/app"),
        ("@inline/red", set(), "red"),
        ("*,@inline", None, "/app"),
        ("@inline/red,*", None, "red"),
        ("a%2Cb,%40inline,100%25", {"a,b", "@inline", "100%"}, None),
    ],
)
def test_scopes_are_domains_everything_or_limits_of_ones_own(
    scopes: str, domains: set[str] | None, inline: str | None
) -> None:
    [key] = parse(f"app:{HEX}:{scopes}")
    assert key.caller == Caller(name="app", domains=None if domains is None else frozenset(domains), inline=inline)


def test_keys_stand_between_spaces_lines_and_semicolons() -> None:
    text = f"a:{HEX}:* ;b:{OTHER}:x\n\tc:{BASE64}:y;"
    assert [key.caller.name for key in parse(text)] == ["a", "b", "c"]


def test_one_name_may_have_two_secrets_while_one_replaces_the_other() -> None:
    callers = callers_of(f"app:{HEX}:chat app:{OTHER}:chat,mail")
    assert known(callers, ("x-api-key", HEX)) == known(callers, ("x-api-key", OTHER)) == "app"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty: leave it out"),
        (" ; ", "is empty: leave it out"),
        (HEX, "entry 1: wanted NAME:SECRET:SCOPES"),
        (f"a:{HEX}", "entry 1: wanted NAME:SECRET:SCOPES"),
        (f"a:{HEX}:", "entry 1: wanted NAME:SECRET:SCOPES"),
        (f"a b:{HEX}:*", "entry 1: wanted NAME:SECRET:SCOPES"),
        (f"ä:{HEX}:*", "entry 1: wanted NAME:SECRET:SCOPES"),
        (f"a:{HEX}:* b:{HEX}:*", "entry 2: its secret is that of entry 1"),
        (f"a:{HEX}:* b:sha256-{DIGEST}:*", "entry 2: its secret is that of entry 1"),
        (f"a:{HEX}:@inline a:{OTHER}:*", "entry 2: its @inline scope differs from that of entry 1"),
        (f"a:{HEX}:@admin", "entry 1: a scope with @ is @inline or @inline/TEAM"),
        (f"a:{HEX}:@inline/", "entry 1: a scope with @ is @inline or @inline/TEAM"),
        (f"a:{HEX}:@inline,@inline/red", "entry 1: two @inline scopes"),
        (f"a:{HEX}:chat,", "entry 1: an empty scope"),
        (f"a:{HEX[:31]}:*", "entry 1: its secret has fewer than 128 random bits"),
        ("a:sha256-abc:*", 'entry 1: "sha256-" is followed by the 64 hexadecimal digits'),
        (f"a:{HEX}ß:*", "entry 1: a secret is made of letters, digits and -._~+/"),
        (f"{HEX}:name:*", "entry 1: its secret has fewer than 128"),  # in the wrong order
    ],
)
def test_a_key_that_cannot_be_meant_is_told_by_its_number_and_never_by_what_may_be_secret(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    sentence = str(caught.value)
    assert sentence.startswith("ONEQUOTA_API_KEYS")
    assert told in sentence
    assert HEX[:16] not in sentence


@pytest.mark.parametrize(
    ("secret", "enough"),
    [
        ("0123456789" * 3 + "012345678", True),  # 39 digits: 129.6 bits
        ("0123456789" * 3 + "01234567", False),
        (HEX, True),  # 32 hexadecimal digits: 128
        (HEX[:-1], False),
        (HEX.upper(), True),
        ("abcdefghijklmnopqrstuvwxy", True),  # 25 of letters and digits: 129.2
        ("abcdefghijklmnopqrstuvwx", False),
        ("abcdefghijklmnopqrstuV", True),  # 22 of 64: 132
        ("abcdefghijklmnopqrstV", False),
        ("abcdefghijklmnopqrstV====", False),
        ("a" * 64, False),
        ("abcde" * 20, False),
    ],
)
def test_a_secret_has_128_bits_if_it_is_random(secret: str, enough: bool) -> None:
    assert (bits(secret) >= 128) is enough


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([], None),
        ([("authorization", f"Bearer {HEX}")], "a"),
        ([("authorization", f"bearer  {HEX} ")], "a"),
        ([("x-api-key", HEX)], "a"),
        ([("x-api-key", OTHER)], "b"),
        ([("authorization", HEX)], None),
        ([("authorization", f"Basic {HEX}")], None),
        ([("authorization", "Basic YTpi"), ("x-api-key", OTHER)], "b"),
        ([("authorization", f"Bearer {HEX}"), ("x-api-key", OTHER)], "a"),
        ([("authorization", "Bearer wrong"), ("x-api-key", OTHER)], None),
        ([("authorization", f"Bearer {HEX}"), ("authorization", f"Bearer {OTHER}")], None),
        ([("x-api-key", OTHER), ("x-api-key", OTHER)], None),
        ([("x-api-key", HEX.upper())], None),
        ([("x-api-key", HEX[:-1])], None),
        ([("x-api-key", "")], None),
        ([("x-api-key", DIGEST)], None),  # who reads the settings cannot ask
        ([("x-api-key", f"sha256-{DIGEST}")], None),
    ],
)
def test_a_caller_is_known_by_one_bearer_token_or_one_api_key(headers: list[tuple[str, str]], name: str | None) -> None:
    assert known(callers_of(f"a:sha256-{DIGEST}:* b:{OTHER}:*"), *headers) == name


def test_without_keys_everybody_may_everything() -> None:
    callers = Callers((), Limiter(identity.client_address, storage_uri="fakeredis://"))
    assert callers.open
    assert callers.of([(b"x-api-key", b"whatever")]) is callers.known(b"whatever") is ANYBODY
    assert ANYBODY.may("chat")


def test_secrets_are_in_no_repr() -> None:
    text = f"a:{HEX}:*"
    shown = f"{parse(text)} {vars(callers_of(text))} {Settings(api_keys=text)}"  # type: ignore[arg-type]
    assert HEX not in shown
    assert DIGEST not in shown


def test_two_processes_keep_different_digests_of_one_secret() -> None:
    one, other = (vars(callers_of(f"a:{HEX}:*"))["_known"] for _ in range(2))
    assert not set(one) & set(other)


# As they meet it


def client_of(keys: str, **settings: object) -> TestClient:
    return TestClient(
        create_app(Settings(redis_url="fakeredis://", redis_timeout_ms=5_000, api_keys=keys, **settings))  # type: ignore[arg-type]
    )


def test_a_stranger_is_told_401_and_how_to_ask_and_nothing_is_charged() -> None:
    with client_of(f"a:{HEX}:*") as client:
        nobody = client.post("/v1/check", json=CHECK)
        assert nobody.status_code == 401
        assert nobody.headers["www-authenticate"] == 'Bearer realm="onequota"'
        assert nobody.headers["content-type"] == "application/problem+json"
        assert "Authorization: Bearer" in nobody.json()["detail"]
        wrong = client.post("/v1/check", json=CHECK, headers={"authorization": f"Bearer {OTHER}"})
        assert wrong.status_code == 401
        assert wrong.headers["www-authenticate"] == 'Bearer realm="onequota", error="invalid_token"'
        assert OTHER not in wrong.text
        right = client.post("/v1/check", json=CHECK, headers={"authorization": f"Bearer {HEX}"})
        assert right.json()["limits"][0]["remaining"] == 4


def test_strangers_are_limited_by_address_and_callers_of_that_address_are_not() -> None:
    with client_of(f"a:{HEX}:*", miss_limit="3/minute") as client:
        statuses = [client.post("/v1/check", json=CHECK).status_code for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        refused = client.post("/v1/check", json=CHECK)
        assert refused.json()["violated-policies"] == ["unknown-key"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert client.post("/v1/check", json=CHECK, headers={"x-api-key": HEX}).status_code == 200


def test_a_stranger_is_told_401_also_while_redis_is_away() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1", api_keys=f"a:{HEX}:*")  # type: ignore[arg-type]
    with TestClient(create_app(settings)) as client:
        assert client.post("/v1/check", json=CHECK).status_code == 401


def test_misses_are_logged_with_the_address_and_without_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), client_of(f"a:{HEX}:*") as client:
        client.post("/v1/check", json=CHECK, headers={"x-api-key": OTHER})
        client.post("/v1/check", json=CHECK, headers={"authorization": f"Bearer {HEX}"})
    assert "unknown_key address=" in caplog.text
    assert OTHER not in caplog.text
    assert HEX not in caplog.text


def test_who_may_not_bring_limits_is_told_403() -> None:
    with client_of(f"a:{HEX}:chat") as client:
        refused = client.post("/v1/check", json=CHECK, headers={"x-api-key": HEX})
        assert refused.status_code == 403
        assert refused.json()["errors"][0]["field"] == "limits"
        assert 'key "a" may not ask with limits of its own' in refused.json()["detail"]


def test_what_callers_count_by_limits_of_their_own_meets_only_within_a_scope() -> None:
    secrets = {name: hashlib.sha256(name.encode()).hexdigest() for name in "uvwxyz"}
    scopes = {"u": "@inline", "v": "@inline", "w": "@inline/red", "x": "@inline/red", "y": "*", "z": "*"}
    with client_of(" ".join(f"{name}:{secret}:{scopes[name]}" for name, secret in secrets.items())) as client:

        def spend(name: str) -> int:
            answer = client.post("/v1/check", json=CHECK, headers={"x-api-key": secrets[name]})
            return int(answer.json()["limits"][0]["remaining"])

        assert [spend(name) for name in "uvwxyz"] == [4, 4, 4, 3, 4, 3]


def test_health_needs_no_key() -> None:
    with client_of(f"a:{HEX}:*") as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200

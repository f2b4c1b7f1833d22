"""Whatever is sent or set: it is understood, or refused by the one error its reader promises, and no secret is told.

Each reader gets any text at all, and texts that are nearly right: those find more.
"""

import base64
import functools
import ipaddress
import json
import string

import limits
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from service import callers
from service.errors import ConfigurationError, InvalidInput, InvalidLimit
from service.limits import identity, token
from service.limits.algorithms import ALGORITHMS
from service.limits.identity import Addresses
from service.limits.limit import LARGEST_AMOUNT, Limit
from service.limits.plan import whole
from service.redis_url import parse_redis_url, redacted
from service.settings import load

much = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=9),
    st.lists(st.none()),
)


def nearly(*pieces, size=8):
    """Texts of these pieces in any order, with something foreign here and there."""
    piece = st.sampled_from(pieces)
    return st.lists(st.one_of(piece, piece, piece, st.text(max_size=3)), max_size=size).map("".join)


# ── limits and costs ─────────────────────────────────────────────────────────────────────────────────────────────────

LIMIT_TEXT = nearly(
    *("1", "10", "0", "999999999", "1000000001", "/", " per ", " ", ";", ",", "|", "-", ".", "\n"),
    *("second", "minute", "hours", "day", "month", "year", "2 ", "\uff19", "\u0661", "/minute", "10/minute"),
)


@much(max_examples=500)
@given(
    st.one_of(ANYTHING, LIMIT_TEXT),
    st.sampled_from([*ALGORITHMS, "token-bucket", ""]),
    st.sampled_from([None, 0, 1, 10**9]),
)
def test_a_limit_string_is_limits_that_can_be_counted_or_invalid(text, algorithm, burst):
    try:
        found = Limit.parse(text, algorithm=algorithm, burst=burst)
    except InvalidLimit as error:
        assert str(error)
        return
    assert found
    for limit in found:
        assert 1 <= limit.amount <= LARGEST_AMOUNT
        assert 1 <= limit.capacity <= LARGEST_AMOUNT
        assert limit.name.isascii() and limit.name.isprintable()
        assert limit.refill_s >= 1
        assert Limit.parse(limit.name, algorithm=algorithm, burst=burst) == (limit,)  # its name says what it is


@much(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**9),
            st.sampled_from(["/", " / ", " per ", "/1", " per 3 "]),
            st.sampled_from(["second", "seconds", "minute", "hour", "hours", "day", "month", "months", "year", "YEAR"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([";", ",", "|", " ; "]),
)
def test_what_the_limits_package_reads_is_read_alike(parts, separator):
    """Amounts and windows are equal; ours drops repetitions."""
    text = separator.join(f"{amount}{per}{period}" for amount, per, period in parts)
    theirs = [(item.amount, item.get_expiry()) for item in limits.parse_many(text)]
    assume(all(window_s <= 10 * 360 * 86_400 for _, window_s in theirs))
    assert [(limit.amount, limit.window_s) for limit in Limit.parse(text)] == list(dict.fromkeys(theirs))


@much(max_examples=300)
@given(ANYTHING, st.sampled_from([1, 7, 10**9]))
def test_a_cost_is_a_number_a_limit_takes_or_refused_with_its_name(cost, amount):
    limit = Limit(amount=amount, window_s=60)
    try:
        assert limit.admits(cost, where="checks[3].cost") == cost
        assert type(cost) is int and 0 <= cost <= amount
    except InvalidInput as error:
        assert error.field == "checks[3].cost"
        assert type(cost) is not int or not 0 <= cost <= amount
    try:
        assert type(whole(cost)) is int
    except InvalidInput as error:
        assert error.field == "cost"


@much(max_examples=300)
@given(st.one_of(ANYTHING, st.text(string.printable, max_size=300), st.text("!~a", min_size=254, max_size=257)))
def test_a_token_is_visible_ascii_or_refused(text):
    good = isinstance(text, str) and 1 <= len(text) <= 255 and all("!" <= one <= "~" for one in text)
    try:
        made = token.token(text, b"content", owner="o")
    except InvalidInput as error:
        assert (good, error.field) == (False, "Idempotency-Key")
        return
    assert good
    assert len(made.key) <= 128


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────

PROXIES = Addresses(["10.0.0.0/8", "fd00::/8"])
HOPS = nearly(
    *("10.0.0.1", "192.0.2.7", "::1", "2001:db8::7", "::ffff:10.1.1.1", "fd00::1", "[2001:db8::7]:80", "192.0.2.9:80"),
    *(
        ",",
        ", ",
        ";",
        "for=",
        'for="',
        '"',
        "FOR=",
        "proto=http",
        "by=",
        "_hidden",
        "unknown",
        "\\",
        "%25eth0",
        "0x7f.1",
    ),
    *("010.1.1.1", "\x00", "\t", "[", "]", ":", "='"),
    size=10,
)
RAW = st.one_of(st.binary(max_size=60), HOPS.map(lambda text: text.encode("utf-8", "surrogatepass")))


def scope_of(peer, headers):
    return {"type": "http", "client": peer and (peer, 1), "headers": headers, "method": "GET", "path": "/"}


@much(max_examples=500)
@given(
    st.sampled_from(["10.9.9.9", "203.0.113.5", "fd00::5", "testclient", "", None]),
    st.lists(st.tuples(st.sampled_from([b"x-forwarded-for", b"forwarded"]), RAW), max_size=3),
)
def test_an_address_is_the_peers_or_one_that_stands_in_the_chain(peer, headers):
    scope = scope_of(peer, headers)
    found = PROXIES.of(scope)
    assert found == PROXIES.of(scope)  # remembered or not
    if found == identity.NOBODY:
        return
    address = ipaddress.ip_address(found.removesuffix("/64"))
    assert (address.version == 6) == found.endswith("/64")
    alone = PROXIES.of(scope_of(peer, []))
    if found != alone:
        assert peer in ("10.9.9.9", "fd00::5"), "a stranger's header was believed"
        assert headers


@much(max_examples=300)
@given(
    st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), max_size=5),
    st.text('abc .:,[]"', max_size=20),
)
def test_of_a_chain_the_rightmost_stranger_counts_whatever_a_client_wrote_before(hops, word):
    """The oracle: walk a list of addresses from the right."""
    chain = ", ".join([word, *map(str, hops)]) if hops else word
    found = PROXIES.of(scope_of("10.9.9.9", [(b"x-forwarded-for", chain.encode())]))
    trusted = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]
    hops = [getattr(one, "ipv4_mapped", None) or one for one in hops]
    stranger = next((one for one in reversed(hops) if not any(one in network for network in trusted)), None)
    if stranger is not None:
        if stranger.version == 6:
            stranger = f"{ipaddress.IPv6Address(int(stranger) >> 64 << 64)}/64"
        assert found == str(stranger)


# ── who asks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRET = "s" * 40
TOKEN = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.recursive(ANYTHING.filter(lambda x: not isinstance(x, bytes)), st.lists).map(
                lambda x: json.dumps(x).encode()
            ),
            st.dictionaries(
                st.sampled_from(["alg", "typ", "kid", "crit", "sub", "exp", "aud"]),
                st.sampled_from(["HS256", "none", "JWT", "RS256", 1, -1, 10**30, None, ["x"], {}, "authenticated"]),
            ).map(lambda x: json.dumps(x).encode()),
        ),
        max_size=4,
    ).map(lambda parts: ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)),
)


@much(max_examples=300)
@given(TOKEN, st.sampled_from(["Bearer ", "bearer ", "Basic ", "", "Bearer  "]))
def test_no_forged_token_is_anybody_and_none_raises(text, scheme):
    value = (scheme + text).encode("utf-8", "surrogatepass")
    request = Request(scope_of("192.0.2.1", [(b"authorization", value), (b"x-user", value)]))
    assert identity.jwt_subject(secret=SECRET)(request) is None


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PASSWORD = "hunter2hunter2"
URLS = nearly(
    *(
        "redis://",
        "rediss://",
        "unix://",
        "valkey://",
        "redis+unix://",
        "redis+cluster://",
        "redis+sentinel://",
        "http://",
    ),
    *(
        f":{PASSWORD}@",
        f"user:{PASSWORD}@",
        "localhost",
        "[::1]",
        ":6379",
        ":99999",
        "/0",
        "/x",
        "/run/redis.sock",
        "?",
        "#",
    ),
    *(f"?password={PASSWORD}", "&db=1", "%40", " ", "\n", "@", ":", "/", ","),
)


@much(max_examples=500)
@given(st.one_of(st.text(max_size=30), URLS))
@example("redis://[")
@example(f":{PASSWORD}@redis://localhost")
@example("redis://localhost:\uff11")
def test_a_redis_url_is_taken_or_refused_without_a_word_of_its_password(text):
    try:
        url = parse_redis_url(text)
    except ValueError as error:
        assert PASSWORD not in str(error)
    else:
        assert url.partition("://")[0] in ("redis", "rediss", "unix", "fakeredis", "redis+cluster", "redis+sentinel")
    shown = redacted(text)
    if text.count(PASSWORD) and (f":{PASSWORD}@" in text or f"password={PASSWORD}" in text):
        assert f":{PASSWORD}@" not in shown
        assert f"password={PASSWORD}" not in shown


HEX = "0123456789abcdef0123456789abcdef"
KEYS = nearly(
    *("gateway", "a", ":", ";", " ", "\n", ",", "*", "@inline", "@inline/team", "@", "%2C", "chat", "sha256-"),
    *(HEX, HEX * 2, HEX[::-1] * 2, f"gateway:{HEX}:*", f"b:sha256-{HEX * 2}:chat,@inline", "1" * 32, "x" * 40),
)


@much(max_examples=500)
@given(st.one_of(st.text(max_size=40), KEYS))
def test_api_keys_are_keys_or_refused_by_their_number_without_their_secret(text):
    try:
        found = callers.parse(text)
    except ConfigurationError as error:
        assert str(error).startswith("ONEQUOTA_API_KEYS")
        assert HEX not in str(error) and HEX[::-1] not in str(error)
        assert "\n" not in str(error)
        return
    assert found
    names = [part for key in found for part in (key.caller.name, key.caller.inline, *(key.caller.domains or ()))]
    assert HEX not in repr(found) or any(HEX in (name or "") for name in names)
    assert all(len(key.digest) == 32 for key in found)


NAMES = [
    *("WORKERS", "PORT", "HOST", "DRAIN_S", "REQUEST_TIMEOUT_S", "TRUSTED_PROXIES", "HEALTH_PATHS", "LOG_LEVEL"),
    *("LOG_FORMAT", "ACCESS_LOG", "MAX_BODY_BYTES", "REDIS_TIMEOUT_MS", "CHECK_LIMIT", "ENVIRONMENT"),
]
VALUES = st.one_of(
    st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), max_size=20),
    st.sampled_from(
        ["", "0", "1", "-1", "1e3", "1_0", " 4 ", "٤", "inf", "nan", "true", "10.0.0.0/8", "*", "::/0", "/x,/y", "x/"]
    ),
    st.sampled_from(["9" * 400, "10.0.0.1/8", "json", "production", "host\r\nset-cookie: a=b", "\x1b[2J", "0x10"]),
)


@much(max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_an_environment_is_settings_or_one_line_that_names_the_variable(variables):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REDIS_URL", raising=False)
        for name, value in variables.items():
            patch.setenv(f"ONEQUOTA_{name}", value)
        try:
            load()
        except ConfigurationError as error:
            assert any(f"ONEQUOTA_{name}=" in str(error) for name in variables)
            assert str(error).isprintable(), str(error)

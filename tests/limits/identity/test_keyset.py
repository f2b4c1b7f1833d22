"""Public keys: fetched once, shared, kept, fetched again when due; never in the way of the event loop."""

import asyncio
import json
import time

import pytest
from issuing import EC_KEY, KEYS, LARGE_EC, RSA_KEY, SECRET, SUBJECT, WEAK_RSA, asking, issued, published, told

from service.errors import ConfigurationError, IdentityUnavailable
from service.limits import identity
from service.limits.identity import keyset
from service.limits.identity.keyset import KeySet

USER = f"jwt/{SUBJECT}"


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


def resolver_of(publisher, clock=time.monotonic, timeout_s=5.0, **options):
    """A resolver whose keys come from there, and its key set."""
    resolver = identity.jwt_subject(jwks_url=publisher.url, **options)
    resolver._keys = KeySet(publisher.url, timeout_s, clock)
    return resolver


def carrying(key=RSA_KEY, algorithm="RS256", key_id="r1", **more):
    return asking(authorization=f"Bearer {issued(key, algorithm, key_id, **more)}")


async def landed(resolver):
    """Until the fetch in the background has ended."""
    await asyncio.gather(*resolver._keys._flights.values())


async def test_a_hundred_users_at_once_are_one_fetch(publisher):
    """Each has a token of his own, and they all wait for the same answer; whoever comes later waits for nothing."""
    publisher.delay_s = 0.1
    resolver = resolver_of(publisher)
    answers = await asyncio.gather(*(told(resolver, carrying(sub=f"u{n}")) for n in range(100)))
    assert answers == [f"jwt/u{n}" for n in range(100)]
    assert resolver(carrying(EC_KEY, "ES256", "e1")) == USER
    assert publisher.asked == 1


async def test_the_loop_goes_on_while_keys_are_fetched(publisher):
    """A publisher that takes 0.3 s: meanwhile others get their turn."""
    publisher.delay_s = 0.3
    fetching = asyncio.ensure_future(told(resolver_of(publisher), carrying()))
    turns = 0
    while not fetching.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert await fetching == USER
    assert turns > 10


async def test_invented_key_ids_make_us_ask_once_an_interval(publisher):
    """A flood of tokens with random ids costs one fetch in 30 s, and is nobody's."""
    clock = Clock()
    resolver = resolver_of(publisher, clock)
    assert await told(resolver, carrying()) == USER
    for n in range(200):
        assert await told(resolver, carrying(key_id=f"no-{n}")) is None
    assert publisher.asked == 1
    clock.now_s += keyset.REFETCH_S
    for n in range(200):
        assert await told(resolver, carrying(key_id=f"no-{n}")) is None
    assert publisher.asked == 2


async def test_a_key_that_was_added_is_found_and_one_that_was_withdrawn_is_not(publisher):
    """Keys are rotated: the new id is fetched on first sight, the old one is gone with that."""
    clock = Clock()
    publisher.document = {"keys": KEYS[:1]}
    resolver = resolver_of(publisher, clock)
    assert await told(resolver, carrying()) == USER
    publisher.document = {"keys": KEYS[1:]}
    clock.now_s += keyset.REFETCH_S
    assert await told(resolver, carrying(EC_KEY, "ES256", "e1")) == USER
    assert await told(resolver, carrying(sub="another")) is None


async def test_old_keys_are_refreshed_without_anybody_waiting(publisher):
    """After 10 minutes the known key still answers at once, and is asked for in the background."""
    clock = Clock()
    resolver = resolver_of(publisher, clock)
    await told(resolver, carrying())
    clock.now_s += keyset.REFRESH_S
    publisher.document = {"keys": KEYS[1:]}
    assert resolver(carrying(sub="second")) == "jwt/second"
    await landed(resolver)
    assert publisher.asked == 2
    assert await told(resolver, carrying(sub="third")) is None


def unanswered(publisher, how):
    match how:
        case "closed":
            publisher.close()
        case "500" | "404" | "302":
            publisher.status = int(how)
            publisher.headers = {"location": publisher.url}
        case "silent":
            publisher.delay_s = 1
        case "no JSON":
            publisher.document = b"<html>"
        case "no keys":
            publisher.document = {"jwks": []}
        case "a list":
            publisher.document = []
        case "deep":
            publisher.document = b"[" * 100_000
        case "large":
            publisher.document = {"keys": [], "padding": "x" * keyset.LARGEST_BYTES}
        case "many":
            publisher.document = {"keys": KEYS * 51}


HOW = ["closed", "500", "404", "302", "silent", "no JSON", "no keys", "a list", "deep", "large", "many"]


@pytest.mark.parametrize("how", HOW)
async def test_while_keys_cannot_be_had_nobody_is_told_and_only_the_first_waits(publisher, how):
    """The rest is answered at once, a fetch is tried again each second, and the first that succeeds ends it."""
    clock = Clock()
    document = publisher.document
    unanswered(publisher, how)
    resolver = resolver_of(publisher, clock, timeout_s=0.2 if how == "silent" else 5)
    with pytest.raises(IdentityUnavailable):
        await told(resolver, carrying())
    asked = publisher.asked
    for _ in range(50):
        with pytest.raises(IdentityUnavailable):
            resolver(carrying())
    assert publisher.asked == asked
    if how == "closed":
        return
    publisher.status, publisher.delay_s, publisher.document, publisher.headers = 200, 0, document, {}
    resolver._keys._timeout_s = 5
    clock.now_s += keyset.RETRY_S
    with pytest.raises(IdentityUnavailable):
        resolver(carrying())
    await landed(resolver)
    assert resolver(carrying()) == USER


async def test_known_keys_outlive_an_outage_of_their_publisher_for_a_day(publisher):
    """Users stay who they are; after 24 hours without a word nobody is believed any more."""
    clock = Clock()
    resolver = resolver_of(publisher, clock)
    await told(resolver, carrying())
    publisher.status = 500
    for hours in (1, 12, 23.9):
        clock.now_s = 1000 + hours * 3600
        assert resolver(carrying(sub=f"after {hours}")) == f"jwt/after {hours}"
        await landed(resolver)
    clock.now_s = 1000 + keyset.KEEP_S
    with pytest.raises(IdentityUnavailable):
        await told(resolver, carrying(sub="a day later"))


def test_each_event_loop_fetches_for_itself_and_all_share_what_came(publisher):
    """A test client makes a loop a request; none waits for another's."""
    resolver = resolver_of(publisher)
    for n in range(3):
        assert asyncio.run(told(resolver, carrying(sub=f"u{n}"))) == f"jwt/u{n}"
    assert publisher.asked == 1


async def test_one_who_hangs_up_does_not_take_the_fetch_along(publisher):
    """It is everybody's: whoever waits beside him gets the keys."""
    publisher.delay_s = 0.2
    resolver = resolver_of(publisher)
    first, second = (asyncio.ensure_future(told(resolver, carrying(sub=sub))) for sub in ("a", "b"))
    await asyncio.sleep(0.05)
    first.cancel()
    assert await second == "jwt/b"
    assert publisher.asked == 1


UNFIT = {
    "for encryption": {"use": "enc"},
    "for signing only": {"key_ops": ["sign"]},
    "key_ops is no list": {"key_ops": "verify"},
    "of another algorithm": {"alg": "RS512"},
    "symmetric": {"kty": "oct", "k": "c2VjcmV0"},
    "with its private half": {"d": "AQAB"},
    "of another kind than its algorithm": {"alg": "ES256"},
    "without a modulus": {"n": None},
    "with a modulus that is no text": {"n": 7},
    "with a modulus that is no number": {"n": "!!"},
}


@pytest.mark.parametrize("changed", UNFIT.values(), ids=UNFIT)
def test_a_key_that_cannot_verify_ours_is_left_out_and_the_others_stay(changed):
    """One strange member does not cost the rest."""
    document = {"keys": [published(RSA_KEY, "strange", **changed), 7, None, [], {}, *KEYS]}
    assert set(keyset.read(json.dumps(document).encode())) == {("r1", "RS256"), ("e1", "ES256")}


def test_weak_keys_and_other_curves_are_left_out():
    """RSA of 1,024 bits, P-384; without `alg`, `use` and `key_ops` a fit key is fit."""
    document = [published(WEAK_RSA, "weak"), published(LARGE_EC, "large", alg="ES256"), published(LARGE_EC, "none")]
    document += [published(EC_KEY, "bare", alg=None, use=None, key_ops=None)]
    assert set(keyset.read(json.dumps({"keys": document}).encode())) == {("bare", "ES256")}


def test_the_first_of_two_keys_with_one_id_counts():
    """Nobody replaces a key by adding one."""
    keys = keyset.read(json.dumps({"keys": [*KEYS, published(LARGE_EC, "e1"), published(RSA_KEY, "e1")]}).encode())
    assert set(keys) == {("r1", "RS256"), ("e1", "ES256"), ("e1", "RS256")}


async def test_a_token_without_a_key_id_is_nobodys_where_there_are_two_keys_of_its_kind(publisher):
    """Which of them it means cannot be known, and they are not tried in turn."""
    publisher.document = {"keys": [*KEYS, published(WEAK_RSA, "weak"), published(RSA_KEY, "r2")]}
    resolver = resolver_of(publisher)
    assert await told(resolver, carrying(key_id=None)) is None
    assert await told(resolver, carrying(EC_KEY, "ES256", None)) == USER


URLS = [
    "https://project.supabase.co/auth/v1/.well-known/jwks.json",
    "http://127.0.0.1:54321/auth/v1/.well-known/jwks.json",
    "http://localhost:54321/keys",
    "http://[::1]/keys",
    "http://kong:8000/auth/v1/.well-known/jwks.json",
]
REFUSED_URLS = [
    "http://project.supabase.co/keys",
    "http://203.0.113.7/",
    "http://[2001:db8::1]/",
    "ftp://kong/",
    "file:///etc/passwd",
    "https://[::1",
    "https://",
    "kong",
    "",
]


@pytest.mark.parametrize("url", URLS)
def test_keys_may_come_over_https_or_from_nearby(url):
    identity.jwt_subject(jwks_url=url)


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_keys_that_somebody_in_between_could_replace_are_refused_at_start_up(url):
    with pytest.raises(ConfigurationError, match="JWKS URL"):
        identity.jwt_subject(jwks_url=url)


async def test_a_password_in_the_url_is_not_logged(publisher, caplog):
    """Nor shown in the error that refuses it."""
    publisher.status = 500
    resolver = identity.jwt_subject(jwks_url=publisher.url.replace("//", "//user:hunter2@"))
    with pytest.raises(IdentityUnavailable):
        await told(resolver, carrying())
    assert "jwks_unavailable" in caplog.text
    assert "hunter2" not in caplog.text
    with pytest.raises(ConfigurationError) as caught:
        identity.jwt_subject(jwks_url="http://user:hunter2@project.example/")
    assert "hunter2" not in str(caught.value)


# ── how a resolver is made ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bare(monkeypatch):
    for name in ("SUPABASE_JWT_SECRET", "SUPABASE_URL", "ONEQUOTA_JWKS_URL", "ONEQUOTA_JWT_ISSUER"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_nothing_to_verify_with_is_an_error_that_says_what_to_set(bare):
    with pytest.raises(ConfigurationError, match="SUPABASE_JWT_SECRET, SUPABASE_URL or ONEQUOTA_JWKS_URL"):
        identity.jwt_subject()


@pytest.mark.parametrize("secret", ["", "short", "x" * 31, "-----BEGIN PUBLIC KEY-----\n" + "x" * 64])
def test_a_secret_that_is_none_is_refused_and_not_shown(bare, secret):
    """RFC 7518 asks for 32 bytes; a public key as HMAC secret is how signatures are forged."""
    with pytest.raises(ConfigurationError, match="at least 32 bytes") as caught:
        identity.jwt_subject(secret=secret)
    assert not secret or secret not in str(caught.value)


async def test_the_environment_names_the_project(bare, publisher):
    """SUPABASE_URL tells where its keys are and who issues tokens, SUPABASE_JWT_SECRET signs older ones."""
    project = publisher.url.partition("/auth")[0]
    bare.setenv("SUPABASE_URL", f"{project}/")
    bare.setenv("SUPABASE_JWT_SECRET", SECRET)
    resolver = identity.jwt_subject()
    ours = {"iss": f"{project}/auth/v1"}
    assert await told(resolver, carrying(**ours)) == USER
    assert await told(resolver, asking(authorization=f"Bearer {issued(**ours)}")) == USER
    assert await told(resolver, carrying(iss="https://another.example/auth/v1")) is None
    bare.setenv("ONEQUOTA_JWT_ISSUER", "https://another.example/auth/v1")
    assert await told(identity.jwt_subject(), carrying(iss="https://another.example/auth/v1")) == USER


async def test_a_jwks_url_of_its_own_says_nothing_of_the_issuer(bare, publisher):
    """Then any issuer whose key is there is believed, unless ONEQUOTA_JWT_ISSUER names one."""
    bare.setenv("SUPABASE_URL", "https://project.example")
    bare.setenv("ONEQUOTA_JWKS_URL", publisher.url)
    assert await told(identity.jwt_subject(), carrying(iss="anybody")) == USER
    bare.setenv("ONEQUOTA_JWT_ISSUER", "https://issuer.example")
    assert await told(identity.jwt_subject(), carrying(iss="anybody")) is None


async def test_an_anonymous_sign_in_is_a_user_that_nobody_vouches_for(bare):
    """Anybody can have as many as he likes."""
    resolver = identity.jwt_subject(secret=SECRET)
    known = await told(resolver, asking(authorization=f"Bearer {issued()}"))
    anonymous = await told(resolver, asking(authorization=f"Bearer {issued(sub='guest', is_anonymous=True)}"))
    assert isinstance(known, identity.Vouched)
    assert anonymous == "jwt/guest"
    assert not isinstance(anonymous, identity.Vouched)


async def test_a_verified_token_is_remembered_for_a_minute_and_no_longer_than_it_holds(bare, monkeypatch):
    """Verifying costs more than counting: what was verified is not verified again at once, even by another key."""
    resolver = identity.jwt_subject(secret=SECRET)
    now = time.time()
    soon, late = (asking(authorization=f"Bearer {issued(exp=int(now) + s)}") for s in (20, 3600))
    assert await told(resolver, soon) == await told(resolver, late) == USER
    resolver._secret = "another secret of more than thirty-two bytes"
    monkeypatch.setattr(time, "time", lambda: now + 25)
    assert [await told(resolver, token) for token in (soon, late)] == [USER, USER]
    monkeypatch.setattr(time, "time", lambda: now + 35)
    assert [await told(resolver, token) for token in (soon, late)] == [None, USER]
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert await told(resolver, late) is None


async def test_remembered_tokens_are_bounded(bare, monkeypatch):
    """And so is the memory of a worker."""
    from service.limits.identity import jwts

    monkeypatch.setattr(jwts, "MOST_KEPT", 10)
    resolver = identity.jwt_subject(secret=SECRET)
    for n in range(35):
        await told(resolver, asking(authorization=f"Bearer {issued(sub=f'u{n}')}"))
    assert len(resolver._verified) <= 10

"""Credentials that must tell nobody, one way to go wrong a row; and those beside them that must tell who.

A row that tells somebody is there so that its neighbours fail for the reason they name.
"""

import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from issuing import (
    EC_KEY,
    ISSUER,
    KEYS,
    LATER,
    NOW,
    OTHER_EC,
    OTHER_RSA,
    PROJECT,
    RSA_KEY,
    SECRET,
    SECRET_BYTES,
    SUBJECT,
    asking,
    assembled,
    b64,
    claims,
    issued,
    told,
)

from service.limits import identity
from service.limits.identity import Vouched, keyset

USER = f"jwt/{SUBJECT}"
NOBODY = None
GOOD = issued()
HEAD, BODY, SIGNATURE = GOOD.split(".")
HS = {"alg": "HS256", "typ": "JWT"}
PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = RSA_KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
JWK = json.dumps(KEYS[0]).encode()


def resigned(head, payload=None, key=SECRET_BYTES, made=hashlib.sha256):
    text = f"{b64(head)}.{b64(payload or claims())}"
    return f"{text}.{b64(hmac.new(key, text.encode(), made).digest())}"


def with_time(name, value):
    return assembled(HS, json.dumps({**claims(), name: 0}).replace(f'"{name}": 0', f'"{name}": {value}').encode())


TOKENS = {
    # the algorithm
    "HS256, as issued": (GOOD, USER),
    "HS256 with a key id": (issued(key_id="legacy"), USER),
    "RS256": (issued(RSA_KEY, "RS256", "r1"), USER),
    "ES256": (issued(EC_KEY, "ES256", "e1"), USER),
    "RS256 without a key id: there is one such key": (issued(RSA_KEY, "RS256"), USER),
    "ES256 without a key id: there is one such key": (issued(EC_KEY, "ES256"), USER),
    **{
        f"alg {alg!r}": (assembled({"alg": alg, "typ": "JWT"}), NOBODY)
        for alg in ("hs256", "Hs256", "HS256 ", "HS512", "RS512", "PS256", "ES384", "EdDSA", "dir", "", "none", None)
    },
    **{
        f"alg {alg!r}, unsigned": (assembled({"alg": alg, "typ": "JWT"}, key=None), NOBODY)
        for alg in ("none", "None", "NONE", "nOnE", "none ", "", None, 0, False, [], ["none"], {"none": 1}, "HS256")
    },
    "no alg": (assembled({"typ": "JWT"}), NOBODY),
    "no alg, unsigned": (assembled({"typ": "JWT"}, key=None), NOBODY),
    "alg twice, the last one none": (
        assembled(b'{"alg":"HS256","alg":"none"}', key=None),
        NOBODY,
    ),
    "HS256, signed with the public key as PEM": (resigned(HS, key=PEM), NOBODY),
    "HS256, signed with the public key as PEM, kid": (resigned({**HS, "kid": "r1"}, key=PEM), NOBODY),
    "HS256, signed with the public key as DER": (resigned({**HS, "kid": "r1"}, key=DER), NOBODY),
    "HS256, signed with the JWK": (resigned({**HS, "kid": "r1"}, key=JWK), NOBODY),
    "HS256, signed with the modulus": (resigned({**HS, "kid": "r1"}, key=KEYS[0]["n"].encode()), NOBODY),
    "HS256, signed with an empty key": (resigned(HS, key=b""), NOBODY),
    "HS256, signed with the key id": (resigned({**HS, "kid": "r1"}, key=b"r1"), NOBODY),
    "RS256 in the head, signed with the secret": (resigned({"alg": "RS256", "kid": "r1"}), NOBODY),
    "ES256 in the head, signed by the RSA key": (
        f"{b64({'alg': 'ES256', 'kid': 'e1'})}.{'.'.join(issued(RSA_KEY, 'RS256').split('.')[1:])}",
        NOBODY,
    ),
    "RS256, the kid of the other kind": (issued(RSA_KEY, "RS256", "e1"), NOBODY),
    "ES256, the kid of the other kind": (issued(EC_KEY, "ES256", "r1"), NOBODY),
    "RS384 with the right key": (issued(RSA_KEY, "RS384", "r1"), NOBODY),
    "PS256 with the right key": (issued(RSA_KEY, "PS256", "r1"), NOBODY),
    "HS512 with the right secret": (resigned({"alg": "HS512"}, made=hashlib.sha512), NOBODY),
    # the signature
    "another's secret": (issued(SECRET + "!"), NOBODY),
    "another's RSA key": (issued(OTHER_RSA, "RS256", "r1"), NOBODY),
    "another's EC key": (issued(OTHER_EC, "ES256", "e1"), NOBODY),
    "no signature": (f"{HEAD}.{BODY}.", NOBODY),
    "half a signature": (f"{HEAD}.{BODY}.{SIGNATURE[:20]}", NOBODY),
    "a signature of zeros": (f"{HEAD}.{BODY}.{b64(bytes(32))}", NOBODY),
    "ES256, r = s = 0": (".".join(issued(EC_KEY, "ES256", "e1").split(".")[:2]) + f".{b64(bytes(64))}", NOBODY),
    "ES256, an empty signature": (".".join(issued(EC_KEY, "ES256", "e1").split(".")[:2]) + ".", NOBODY),
    "another's body under this signature": (f"{HEAD}.{b64(claims(sub='somebody-else'))}.{SIGNATURE}", NOBODY),
    "a signature with a letter more": (f"{GOOD}A", NOBODY),
    "the signature of another token": (f"{HEAD}.{BODY}.{issued(sub='x').split('.')[2]}", NOBODY),
    # the key id
    "an unknown kid": (issued(RSA_KEY, "RS256", "r2"), NOBODY),
    **{
        f"kid {kid!r}": (assembled({"alg": "RS256", "kid": kid}), NOBODY)
        for kid in (
            "../../../../dev/null",
            "/dev/null",
            "r1' OR '1'='1",
            "r1\x00",
            "r1\r\nx: y",
            "R1",
            " r1",
            "",
            "x" * 4000,
            "https://evil.example/jwks.json",
            "__proto__",
            7,
            True,
            ["r1"],
            {"r1": 1},
        )
    },
    **{
        f"HS256, kid {kid!r}, which is no text": (assembled({**HS, "kid": kid}), NOBODY)
        for kid in (7, False, ["r1"], {"r1": 1})
    },
    "a key of its own, as jwk": (
        issued(OTHER_RSA, "RS256", "mine", head={"jwk": {"kty": "RSA", "kid": "mine"}}),
        NOBODY,
    ),
    "keys of its own, as jku": (issued(OTHER_RSA, "RS256", "r1", head={"jku": "https://evil.example/k"}), NOBODY),
    "keys of its own, as x5u": (issued(OTHER_RSA, "RS256", "r1", head={"x5u": "https://evil.example/k"}), NOBODY),
    "keys of its own, as x5c": (issued(OTHER_RSA, "RS256", "r1", head={"x5c": [b64(b"cert")]}), NOBODY),
    "jku beside the right key, never fetched": (
        issued(RSA_KEY, "RS256", "r1", head={"jku": "https://evil.example/k"}),
        USER,
    ),
    "a critical extension nobody knows": (assembled({**HS, "crit": ["exp"], "exp": 1}), NOBODY),
    "an empty list of critical extensions": (assembled({**HS, "crit": []}), NOBODY),
    "b64 false": (assembled({**HS, "b64": False, "crit": ["b64"]}), NOBODY),
    "b64 false, not critical": (assembled({**HS, "b64": False}), NOBODY),
    # time; 10 s of leeway
    "expired a minute ago": (issued(exp=NOW - 60), NOBODY),
    "never expires": (issued(exp=None), NOBODY),
    "not before an hour from now": (issued(nbf=NOW + 3600), NOBODY),
    "issued in an hour": (issued(iat=NOW + 3600), NOBODY),
    "issued at no time": (issued(iat=None), USER),
    **{
        f"exp {value}": (with_time("exp", value), NOBODY)
        for value in ('"soon"', "null", "[]", "{}", "NaN", "Infinity", "-Infinity", "1e400", "-1", "0", '""', "[1]")
    },
    "exp with a fraction": (with_time("exp", f"{LATER}.9"), USER),
    "exp of four hundred digits": (with_time("exp", "9" * 400), USER),
    "exp of five thousand digits": (with_time("exp", "9" * 5000), NOBODY),
    **{f"nbf {value}": (with_time("nbf", value), NOBODY) for value in ('"soon"', "NaN", "1e400", "[]")},
    **{f"iat {value}": (with_time("iat", value), NOBODY) for value in ('"soon"', "NaN", "1e400", "[]")},
    # whom it is for, and from
    "for another audience": (issued(aud="admin"), NOBODY),
    "for many, us among them": (issued(aud=["admin", "authenticated"]), USER),
    "for many, not us": (issued(aud=["admin", "authenticated2"]), NOBODY),
    "for nobody": (issued(aud=None), NOBODY),
    "for an empty list": (issued(aud=[]), NOBODY),
    "for a part of our name": (issued(aud="authenticate"), NOBODY),
    "for our name in other letters": (issued(aud="Authenticated"), NOBODY),
    "for a number": (assembled(HS, claims(aud=7)), NOBODY),
    "for an object": (assembled(HS, claims(aud={"authenticated": 1})), NOBODY),
    "for a list with a number": (assembled(HS, claims(aud=["authenticated", 7])), NOBODY),
    "from another issuer": (issued(iss="https://evil.example/auth/v1"), NOBODY),
    "from a longer issuer": (issued(iss=f"{ISSUER}.evil.example"), NOBODY),
    "from a shorter issuer": (issued(iss=PROJECT), NOBODY),
    "from an issuer with a slash": (issued(iss=f"{ISSUER}/"), NOBODY),
    "from nobody": (issued(iss=None), NOBODY),
    "from a list": (assembled(HS, claims(iss=[ISSUER])), NOBODY),
    # about whom
    "about nobody": (issued(sub=None), NOBODY),
    "about an empty text": (issued(sub=""), NOBODY),
    **{
        f"about {subject!r}": (assembled(HS, claims(sub=subject)), NOBODY)
        for subject in (7, 0, True, False, ["a"], {"a": 1}, 1.5)
    },
    "about a text of 256": (issued(sub="x" * 256), "jwt/" + "x" * 256),
    "about a text of 257": (issued(sub="x" * 257), NOBODY),
    "about an address": (issued(sub="203.0.113.7"), "jwt/203.0.113.7"),
    "about somebody with a slash": (issued(sub="a/b"), "jwt/a/b"),
    "about somebody with a line end": (issued(sub="a\r\nb"), "jwt/a\r\nb"),
    "about half a character": (
        assembled(HS, b'%s,"sub":"\\ud800"}' % json.dumps(claims()).encode()[:-1]),
        "jwt/\ud800",
    ),
    "about two, the last one counts, and is signed": (
        assembled(HS, b'%s,"sub":"second"}' % json.dumps(claims()).encode()[:-1]),
        "jwt/second",
    ),
    # keys of the project that are no users
    "the anon key": (jwt.encode({"iss": "supabase", "role": "anon", "exp": LATER}, SECRET), NOBODY),
    "the service key": (jwt.encode({"iss": "supabase", "role": "service_role", "exp": LATER}, SECRET), NOBODY),
    # the form
    "empty": ("", NOBODY),
    "one part": ("abc", NOBODY),
    "two parts": (f"{HEAD}.{BODY}", NOBODY),
    "four parts": (f"{GOOD}.{SIGNATURE}", NOBODY),
    "five parts, as if encrypted": (f"{GOOD}.{BODY}.{SIGNATURE}", NOBODY),
    "only dots": ("..", NOBODY),
    "a thousand dots": ("." * 1000, NOBODY),
    "a leading dot": (f".{GOOD}", NOBODY),
    "no base64": ("!!.!!.!!", NOBODY),
    "the head is a list": (assembled([1]), NOBODY),
    "the head is a number": (assembled(7), NOBODY),
    "the head is null": (assembled(b"null"), NOBODY),
    "the head is no JSON": (assembled(b"{"), NOBODY),
    "the head is no UTF-8": (assembled(b"\xff"), NOBODY),
    "the head is nested deeply": (assembled(b"[" * 3000), NOBODY),
    "the body is a list": (assembled(HS, [1]), NOBODY),
    "the body is null": (assembled(HS, b"null"), NOBODY),
    "the body is no JSON": (assembled(HS, b"{"), NOBODY),
    "the body is no UTF-8": (assembled(HS, b"\xff"), NOBODY),
    "the body is nested deeply": (assembled(HS, b"[" * 3000), NOBODY),
    "the body is nested deeply, in an object": (assembled(HS, b'{"a":' * 900), NOBODY),
    "longer than 8 kB": (issued(padding="x" * 8192), NOBODY),
    "a thousand claims": (issued(**{f"c{n}": n for n in range(300)}), USER),
}

TOKEN = GOOD
CARRIED = {
    # how the token is carried
    "Bearer": ({"authorization": f"Bearer {TOKEN}"}, USER),
    "bearer": ({"authorization": f"bearer {TOKEN}"}, USER),
    "BEARER, blanks": ({"authorization": f"BEARER   {TOKEN}  "}, USER),
    "a tab": ({"authorization": f"Bearer\t{TOKEN}"}, NOBODY),
    "nothing before": ({"authorization": TOKEN}, NOBODY),
    "another scheme": ({"authorization": f"Basic {TOKEN}"}, NOBODY),
    "a scheme that begins so": ({"authorization": f"BearerX {TOKEN}"}, NOBODY),
    "Bearer twice": ({"authorization": f"Bearer Bearer {TOKEN}"}, NOBODY),
    "two tokens": ({"authorization": f"Bearer {TOKEN} {TOKEN}"}, NOBODY),
    "two tokens, a comma": ({"authorization": f"Bearer {TOKEN},{TOKEN}"}, NOBODY),
    "in quotes": ({"authorization": f'Bearer "{TOKEN}"'}, NOBODY),
    "only Bearer": ({"authorization": "Bearer"}, NOBODY),
    "Bearer and a blank": ({"authorization": "Bearer "}, NOBODY),
    "empty": ({"authorization": ""}, NOBODY),
    "two headers": ({"authorization": [f"Bearer {TOKEN}", f"Bearer {TOKEN}"]}, NOBODY),
    "two headers, one of them wrong": ({"authorization": ["Basic eA==", f"Bearer {TOKEN}"]}, NOBODY),
    "folded": ({"authorization": f"Bearer\r\n {TOKEN}"}, NOBODY),
    "a NUL": ({"authorization": f"Bearer {TOKEN}\x00"}, NOBODY),
    "no ASCII": ({"authorization": f"Bearer {TOKEN}\xe9"}, NOBODY),
    "another header": ({"proxy_authorization": f"Bearer {TOKEN}"}, NOBODY),
    "a cookie": ({"cookie": f"authorization=Bearer {TOKEN}"}, NOBODY),
    "nothing": ({}, NOBODY),
}


@pytest.fixture(scope="module")
def resolver():
    """HS256 by secret, RS256 and ES256 by keys that have been fetched."""
    resolver = identity.jwt_subject(secret=SECRET, jwks_url="https://project.example/keys", issuer=ISSUER)
    keys = resolver._keys
    keys._keys = keyset.read(json.dumps({"keys": KEYS}).encode())
    keys._loaded_s = keys._asked_s = keys._clock()
    return resolver


@pytest.mark.parametrize(("token", "who"), TOKENS.values(), ids=map(ascii, TOKENS))
async def test_a_hostile_token_tells_whom_the_table_says(resolver, token, who):
    """A second time, too: what was verified once is remembered, what was not is not."""
    for _ in range(2):
        assert await told(resolver, asking(authorization=f"Bearer {token}")) == who


async def test_clocks_may_differ_by_the_leeway(resolver):
    """10 s, in both directions, and no more."""
    now = int(time.time())
    for more in ({"exp": now - 1}, {"nbf": now + 5}, {"iat": now + 5}):
        assert await told(resolver, asking(authorization=f"Bearer {issued(**more)}")) == USER
    for more in ({"exp": now - 11}, {"nbf": now + 300}, {"iat": now + 300}):
        assert await told(resolver, asking(authorization=f"Bearer {issued(**more)}")) is NOBODY


@pytest.mark.parametrize(("headers", "who"), CARRIED.values(), ids=map(ascii, CARRIED))
async def test_a_token_is_found_only_where_it_belongs(resolver, headers, who):
    """One Authorization header, one Bearer token."""
    assert await told(resolver, asking(**headers)) == who


async def test_with_a_secret_only_no_public_key_is_believed_and_the_other_way_round(resolver):
    """Whoever configures one of them accepts nothing of the other."""
    by_secret = identity.jwt_subject(secret=SECRET, issuer=ISSUER)
    assert await told(by_secret, asking(authorization=f"Bearer {GOOD}")) == USER
    for key, algorithm, key_id in ((RSA_KEY, "RS256", "r1"), (EC_KEY, "ES256", "e1")):
        assert await told(by_secret, asking(authorization=f"Bearer {issued(key, algorithm, key_id)}")) is None
    by_keys = identity.jwt_subject(jwks_url="https://project.example/keys", issuer=ISSUER)
    by_keys._keys = resolver._keys
    assert await told(by_keys, asking(authorization=f"Bearer {issued(RSA_KEY, 'RS256', 'r1')}")) == USER
    for key in (SECRET.encode(), PEM, DER, JWK, b""):
        assert await told(by_keys, asking(authorization=f"Bearer {resigned(HS, key=key)}")) is None


KEY = "sk_live_0123456789abcdef"
MARK = identity.digest(KEY, SECRET)
API_KEYS = {
    "as it was given out": ({"x_api_key": KEY}, f"key/{MARK}"),
    "blanks around": ({"x_api_key": f"  {KEY}\t"}, f"key/{MARK}"),
    "in other letters": ({"x_api_key": KEY.upper()}, NOBODY),
    "a letter more": ({"x_api_key": f"{KEY}0"}, NOBODY),
    "a letter less": ({"x_api_key": KEY[:-1]}, NOBODY),
    "its digest": ({"x_api_key": MARK}, NOBODY),
    "its identity": ({"x_api_key": f"key/{MARK}"}, NOBODY),
    "empty": ({"x_api_key": ""}, NOBODY),
    "twice": ({"x_api_key": [KEY, KEY]}, NOBODY),
    "and another": ({"x_api_key": [KEY, "x"]}, NOBODY),
    "a list": ({"x_api_key": f"{KEY},{KEY}"}, NOBODY),
    "with Bearer": ({"x_api_key": f"Bearer {KEY}"}, NOBODY),
    "a NUL": ({"x_api_key": f"{KEY}\x00"}, NOBODY),
    "a line end": ({"x_api_key": f"{KEY}\r\n"}, NOBODY),
    "no ASCII": ({"x_api_key": f"{KEY}\xe9"}, NOBODY),
    "in UTF-8": ({"x_api_key": "clé".encode()}, NOBODY),
    "overlong": ({"x_api_key": KEY * 100}, NOBODY),
    "in the other header": ({"authorization": f"Bearer {KEY}"}, NOBODY),
    "in a cookie": ({"cookie": f"x-api-key={KEY}"}, NOBODY),
    "with an underscore": ({"x_api_key_": KEY}, NOBODY),
    "nowhere": ({}, NOBODY),
}


@pytest.mark.parametrize(("headers", "who"), API_KEYS.values(), ids=map(ascii, API_KEYS))
async def test_an_api_key_is_itself_or_nobodys(headers, who):
    """Known is one digest; what is not exactly the key names nobody."""
    resolver = identity.api_key("X-API-Key", known={MARK}, secret=SECRET)
    answer = await told(resolver, asking(**headers))
    assert answer == who
    assert answer is None or isinstance(answer, Vouched)
    assert KEY not in str(answer)

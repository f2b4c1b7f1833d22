"""Users, by the token they carry: a JWT of Supabase Auth, or of anybody who publishes keys.

Nothing of a token is believed before its signature is verified: by the shared secret if it says HS256, by a published
key of that algorithm's kind if it says RS256 or ES256, by nobody if it says anything else. A token that is forged,
expired or for somebody else tells nobody, as if it were not there: who asks is then the next resolver's to tell.
"""

import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError
from service.limits.identity.resolver import Answer, Resolver, Vouched, bearer, named, single, waits
from service.settings import jwt_from_env

if TYPE_CHECKING:
    from service.limits.identity.keyset import KeySet

LONGEST_TOKEN = 8192
"""Bytes of a header with a token: more is nobody's, before anything is computed."""
LONGEST_SUBJECT = 256
SHORTEST_SECRET = 32
"""Bytes of an HS256 secret; RFC 7518, 3.2 asks for as many as the digest has."""
KEPT_S = 60.0
"""How long a verified token is believed without verifying it again, seconds: a withdrawn key works so much longer."""
MOST_KEPT = 8192

_FAR_S = 1 << 40

INSTALL = "tokens need PyJWT and httpx: pip install 'onequota[auth]'"


def jwt_subject(
    *,
    secret: str | None = None,
    jwks_url: str | None = None,
    audience: str | Sequence[str] | None = "authenticated",
    issuer: str | Sequence[str] | None = None,
    claim: str = "sub",
    leeway_s: float = 10,
    timeout_s: float = 2,
    header: str = "authorization",
    name: str = "jwt",
) -> "JwtSubject":
    """Key function: the subject of the JWT in `Authorization: Bearer …`: with Supabase Auth, the user's id.

    Without `secret` and `jwks_url` they come from the environment: SUPABASE_JWT_SECRET (HS256), ONEQUOTA_JWKS_URL or
    else the one of SUPABASE_URL (RS256, ES256); then also the issuer, unless given: ONEQUOTA_JWT_ISSUER or else
    SUPABASE_URL's. An anonymous sign-in is a user too, but one that is not vouched for: anybody can have many.

    Args:
        secret: Of HS256; at least 32 bytes.
        jwks_url: Where the public keys are. While they cannot be had, a token that needs them is answered 503, unless
            another resolver can tell who asks.
        audience: One of those must be in the token's `aud`; None = any.
        issuer: One of those must be the token's `iss`; None = any, if the environment does not say.
        claim: Whose text is the identity.
        leeway_s: How much the clocks may differ, seconds.
        timeout_s: How long fetching keys may take, seconds.
        header: Another header, that holds the bare token.
        name: What its identities begin with: `jwt/SUBJECT`.

    Raises:
        ConfigurationError: Nothing to verify tokens with; a secret that is too short; PyJWT is not installed.
    """
    if secret is None and jwks_url is None:
        secret, jwks_url, said = jwt_from_env()
        issuer = said if issuer is None else issuer
    if secret is None and jwks_url is None:
        raise ConfigurationError(
            "nothing to verify tokens with: set SUPABASE_JWT_SECRET, SUPABASE_URL or ONEQUOTA_JWKS_URL, "
            "or pass secret= or jwks_url="
        )
    if secret is not None and (len(secret.encode()) < SHORTEST_SECRET or "-----BEGIN" in secret):
        raise ConfigurationError(
            f"the secret of HS256 tokens must have at least {SHORTEST_SECRET} bytes and be no PEM key; "
            "for public keys use jwks_url="
        )
    keys = None if jwks_url is None else _key_set(jwks_url, timeout_s)
    checks = _Checks(audience=_tuple(audience), issuer=_tuple(issuer), claim=claim, leeway_s=leeway_s)
    return JwtSubject(header.lower(), secret, keys, checks, named(name))


class JwtSubject(Resolver):
    """See `jwt_subject`."""

    def __init__(self, header: str, secret: str | None, keys: "KeySet | None", checks: "_Checks", name: str) -> None:
        self.name = name
        self.challenge = "Bearer" if header == "authorization" else f'Token header="{header}"'
        self._header = header.encode("latin-1")
        self._secret = secret
        self._keys = keys
        self._checks = checks
        self._salt = os.urandom(16)
        self._verified: dict[bytes, tuple[str, float]] = {}
        proof = hashlib.blake2b((secret or "").encode(), key=b"onequota jwt").digest()
        self.means = (JwtSubject, proof, keys.url if keys else None, checks.means)

    def __call__(self, connection: HTTPConnection) -> Answer | Awaitable[Answer]:
        value = single(connection, self._header, LONGEST_TOKEN)
        if value is None:
            return None
        token = bearer(value) if self._header == b"authorization" else value.decode("latin-1")
        if token is None:
            return None
        mark = hashlib.blake2b(token.encode(), key=self._salt, digest_size=16).digest()
        known = self._verified.get(mark)
        if known is not None and time.time() < known[1]:
            return known[0]
        return self._read(token, mark)

    def _read(self, token: str, mark: bytes) -> Answer | Awaitable[Answer]:
        head = self._checks.head(token)
        if head is None:
            return None
        algorithm, key_id = head
        if algorithm == "HS256":
            return None if self._secret is None else self._keep(token, mark, self._secret, algorithm)
        if self._keys is None:
            return None
        key = self._keys.find(key_id, algorithm)
        return self._later(key, token, mark, algorithm) if waits(key) else self._keep(token, mark, key, algorithm)

    async def _later(self, fetched: Awaitable[Any], token: str, mark: bytes, algorithm: str) -> Answer:
        return self._keep(token, mark, await fetched, algorithm)

    def _keep(self, token: str, mark: bytes, key: Any, algorithm: str) -> Answer:
        found = None if key is None else self._checks.subject(token, key, algorithm)
        if found is None:
            return None
        subject, until_s, anonymous = found
        answer = f"{self.name}/{subject}" if anonymous else Vouched(f"{self.name}/{subject}")
        if len(self._verified) >= MOST_KEPT:
            self._verified.clear()
        self._verified[mark] = answer, min(until_s, time.time() + KEPT_S)
        return answer


class _Checks:
    """What a token must say, besides being signed."""

    def __init__(self, *, audience: tuple[str, ...], issuer: tuple[str, ...], claim: str, leeway_s: float) -> None:
        try:
            import jwt  # noqa: PLC0415  an extra: apps without tokens need not have it
        except ImportError:
            raise ConfigurationError(INSTALL) from None
        self._jwt = jwt
        self._leeway_s = leeway_s
        self._claim = claim
        self._audience = audience or None
        self._issuer = issuer or None
        self._options: Any = {
            "require": ["exp", claim],
            "verify_aud": bool(audience),
            "verify_iss": bool(issuer),
        }
        self.means = (audience, issuer, claim)

    def head(self, token: str) -> tuple[str, str | None] | None:
        """(alg, kid) of a token that may be one of ours; nothing of it is verified."""
        head = self._safely(self._jwt.get_unverified_header, token)
        if head is None or "crit" in head or "b64" in head:  # extensions that must be understood: none is
            return None
        algorithm, key_id = head.get("alg"), head.get("kid")
        if algorithm not in ("HS256", "RS256", "ES256") or not isinstance(key_id, str | None):
            return None
        return algorithm, key_id

    def subject(self, token: str, key: Any, algorithm: str) -> tuple[str, float, bool] | None:
        """(subject, until when in seconds since the epoch, anonymous) of a valid token."""
        claims = self._safely(
            self._jwt.decode,
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            issuer=self._issuer,
            leeway=self._leeway_s,
            options=self._options,
        )
        subject = None if claims is None else claims[self._claim]
        if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT:
            return None
        until_s = min(int(claims["exp"]), _FAR_S) + self._leeway_s
        return subject, until_s, claims.get("is_anonymous") is True

    def _safely(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """What the library answers; None for whatever a token makes it raise."""
        try:
            return function(*arguments, **more)
        except (self._jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            return None


def _key_set(url: str, timeout_s: float) -> "KeySet":
    try:
        from service.limits.identity.keyset import KeySet  # noqa: PLC0415  an extra, as above
    except ImportError:
        raise ConfigurationError(INSTALL) from None
    return KeySet(url, timeout_s)


def _tuple(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)

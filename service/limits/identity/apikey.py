"""API keys, kept as digests: without the secret that made them nobody can try keys on them."""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError
from service.limits.identity.resolver import LONGEST, Answer, Resolver, Vouched, bearer, named, single, waits
from service.settings import IDENTITY_SECRET, identity_secret_from_env

SHORTEST_SECRET = 16

Known = Callable[[str], Any] | Collection[str]
"""Which keys there are: a function of a key, also a coroutine function; or the digests of all."""


def api_key(
    header: str = "authorization", *, known: Known | None = None, secret: str | None = None, name: str = "key"
) -> "ApiKey":
    """Key function: the API key in a header, as a digest.

    Args:
        header: `authorization` (as `Bearer KEY`), or another that holds the bare key, such as `x-api-key`.
        known: Which keys there are: a function of the key that answers false for one that does not exist, true, or the
            name of the account, under which all its keys count together; or a collection of `digest`s. Without it
            every key that is sent is somebody else: say so only behind a gateway that has checked it.
        secret: What the digest is made with; at least 16 bytes, the same for all workers; by default
            ONEQUOTA_IDENTITY_SECRET.
        name: What its identities begin with: `key/DIGEST`, `key/@ACCOUNT`.

    Raises:
        ConfigurationError: There is no secret, or it is too short.
    """
    return ApiKey(header.lower(), known, _checked(secret), named(name))


def digest(key: str, secret: str | None = None) -> str:
    """What is kept of an API key: 128 bits of a keyed BLAKE2b, 22 characters. Raises ConfigurationError."""
    return _digest(key, _key(_checked(secret)))


class ApiKey(Resolver):
    """See `api_key`."""

    def __init__(self, header: str, known: Known | None, secret: str, name: str) -> None:
        self.name = name
        self._header = header.encode("latin-1")
        self._known = known
        self._key = _key(secret)
        self.means = (ApiKey, self._key, id(known))
        self.challenge = "Bearer" if header == "authorization" else f'ApiKey header="{header}"'

    def __call__(self, connection: HTTPConnection) -> Answer | Awaitable[Answer]:
        value = single(connection, self._header)
        if value is None:
            return None
        key = bearer(value) if self._header == b"authorization" else value.decode("latin-1")
        if not key or not (key.isascii() and key.isprintable()) or len(key) > LONGEST:
            return None
        mark = _digest(key, self._key)
        if self._known is None:
            return f"{self.name}/{mark}"
        if not callable(self._known):
            return Vouched(f"{self.name}/{mark}") if mark in self._known else None
        told = self._known(key)
        return self._later(told, mark) if waits(told) else self._told(told, mark)

    async def _later(self, told: Awaitable[Any], mark: str) -> Answer:
        return self._told(await told, mark)

    def _told(self, told: Any, mark: str) -> Answer:
        """The identity, after what `known` says: nobody, this key, or an account."""
        if told is None or told is False or told == "":
            return None
        return Vouched(f"{self.name}/{mark}" if told is True else f"{self.name}/@{told}")


def _checked(secret: str | None) -> str:
    if secret is None:
        secret = identity_secret_from_env()
    if secret is None:
        raise ConfigurationError(
            f"API keys are kept as digests made with a secret, and there is none: set {IDENTITY_SECRET}, the same for "
            "all workers, for example to the output of: openssl rand -base64 32"
        )
    if len(secret.encode()) < SHORTEST_SECRET:
        raise ConfigurationError(f"the secret of API keys is too short; use at least {SHORTEST_SECRET} bytes")
    return secret


def _key(secret: str) -> bytes:
    return hashlib.blake2b(secret.encode(), person=b"onequota secret").digest()


def _digest(text: str, key: bytes) -> str:
    made = hashlib.blake2b(text.encode(), key=key, digest_size=16, person=b"onequota api key")
    return urlsafe_b64encode(made.digest()).decode().rstrip("=")

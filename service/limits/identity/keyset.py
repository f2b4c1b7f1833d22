"""The public keys that verify tokens: fetched from a JWKS URL, kept, fetched again when old or when one is missing.

    a key is known and fresh      it is used
    known, older than REFRESH_S   it is used; new ones are fetched meanwhile
    not known                     whoever asks waits for one fetch, shared by all; at most one in REFETCH_S, so that
                                  tokens with invented key ids are not a way to make us ask
    the last fetch failed         nobody waits any more: who asks cannot be told, and a fetch is tried each RETRY_S

Keys are kept as long as nothing else was heard, for KEEP_S at most. The event loop is never blocked: names are resolved
and certificates loaded in threads.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from service.errors import ConfigurationError, IdentityUnavailable
from service.logs import events
from service.redis_url import redacted

log = events()

REFRESH_S = 600.0
REFETCH_S = 30.0
RETRY_S = 1.0
KEEP_S = 86_400.0
LARGEST_BYTES = 1 << 18
MOST_KEYS = 100
LEAST_RSA_BITS = 2048

KINDS = {"RS256": "RSA", "ES256": "EC"}
"""The algorithms, and what kind of key each takes: a key is never used for another's."""

Key = Any
"""A public key as `cryptography` has it."""


class KeySet:
    """The keys behind one URL. Shared by all event loops; one thread at a time.

    Args:
        url: https://, or http:// to this machine or to a name of a container network.
        timeout_s: Seconds a fetch may take.
        clock: Seconds, never going back; tests pass one they move.

    Raises:
        ConfigurationError: The URL cannot be meant.
    """

    def __init__(self, url: str, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = _checked(url)
        self._timeout_s = timeout_s
        self._clock = clock
        self._keys: dict[tuple[str, str], Key] = {}
        self._loaded_s: float | None = None
        self._asked_s = -REFETCH_S
        self._failed = False
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    def find(self, key_id: str | None, algorithm: str) -> Key | Awaitable[Key | None] | None:
        """The key for a token's `kid` and `alg`; None if there is none; an awaitable of that if it must be fetched.

        Raises:
            IdentityUnavailable: There may be one, and it cannot be had at the moment. The awaitable raises it, too.
        """
        now_s = self._clock()
        age_s = KEEP_S if self._loaded_s is None else now_s - self._loaded_s
        if age_s >= KEEP_S:
            self._keys = {}
        key = self._known(key_id, algorithm)
        due = now_s - self._asked_s >= (RETRY_S if self._failed else REFETCH_S)
        if key is not None:
            if due and age_s >= REFRESH_S:
                self._flight()
            return key
        if self._failed:
            if due:
                self._flight()
            raise IdentityUnavailable("the keys of tokens cannot be had")
        if due or self._loaded_s is None or self._under_way() is not None:  # None: another loop is about to
            return self._after(self._flight(), key_id, algorithm)
        return None

    def _known(self, key_id: str | None, algorithm: str) -> Key | None:
        if key_id is not None:
            return self._keys.get((key_id, algorithm))
        fitting = [key for (_, name), key in self._keys.items() if name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def _after(self, flight: "asyncio.Task[None]", key_id: str | None, algorithm: str) -> Key | None:
        await asyncio.shield(flight)
        key = self._known(key_id, algorithm)
        if key is None and self._failed:
            raise IdentityUnavailable("the keys of tokens cannot be had")
        return key

    def _under_way(self) -> "asyncio.Task[None] | None":
        flight = self._flights.get(asyncio.get_running_loop())
        return None if flight is None or flight.done() else flight

    def _flight(self) -> "asyncio.Task[None]":
        """The fetch that is under way on the running loop, or a new one."""
        flight = self._under_way()
        if flight is None:
            self._asked_s = self._clock()
            loop = asyncio.get_running_loop()
            flight = self._flights[loop] = loop.create_task(self._fetch())
            flight.add_done_callback(lambda _: self._flights.pop(loop, None))  # it holds the loop
        return flight

    async def _fetch(self) -> None:
        """Never raises: what went wrong is logged, and remembered as `_failed`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self._keys = read(await self._body())
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # TimeoutError is an OSError
            if not self._failed:
                log.warning("jwks_unavailable", url=redacted(self.url), error=_reason(error))
            self._failed = True
        else:
            if self._failed:
                log.info("jwks_available", url=redacted(self.url))
            self._failed = False
            self._loaded_s = self._clock()

    async def _body(self) -> bytes:
        verify: ssl.SSLContext | bool = False
        if self.url.startswith("https"):
            verify = await asyncio.to_thread(httpx.create_ssl_context)  # reads 200 kB of certificates
        body = b""
        async with (
            httpx.AsyncClient(verify=verify, timeout=self._timeout_s, follow_redirects=False) as client,
            client.stream("GET", self.url, headers={"accept-encoding": "identity"}) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"it answered {response.status_code}")
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > LARGEST_BYTES:
                    raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")
        return body


def read(body: bytes) -> dict[tuple[str, str], Key]:
    """The keys of a JWKS document by (kid, alg), but for those that cannot verify a signature of ours.

    Left out are symmetric keys, keys for encryption, RSA below 2,048 bits, curves other than P-256.

    Raises:
        ValueError: It is no JWKS document.
    """
    try:
        document = json.loads(body)
    except RecursionError:
        document = None
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list) or len(found) > MOST_KEYS:
        raise ValueError("it is no JWKS document")
    keys: dict[tuple[str, str], Key] = {}
    for number, member in enumerate(found):
        algorithm = _algorithm(member)
        if algorithm is None:
            continue
        try:
            key = jwt.PyJWK(member, algorithm).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if isinstance(key, RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
            continue
        key_id = member.get("kid")
        keys.setdefault((key_id if isinstance(key_id, str) else f"#{number}", algorithm), key)
    return keys


def _algorithm(member: object) -> str | None:
    """What a member of the document can verify: RS256, ES256 or nothing."""
    if not isinstance(member, dict) or member.get("use", "sig") != "sig" or "d" in member:
        return None
    operations = member.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    for algorithm, kind in KINDS.items():
        if member.get("kty") == kind and member.get("alg", algorithm) == algorithm:
            return algorithm if kind == "RSA" or member.get("crv") == "P-256" else None
    return None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    local = host in ("127.0.0.1", "::1") or not set(".:") & set(host)
    if not host or parts.scheme not in ("https", "http") or (parts.scheme == "http" and not local):
        raise ConfigurationError(
            f"JWKS URL {redacted(url)}: wanted https://HOST/auth/v1/.well-known/jwks.json; "
            "over http whoever stands in between could sign tokens"
        )
    return url


def _reason(error: Exception) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)

"""Who calls the service: API keys, and what each may ask for.

    ONEQUOTA_API_KEYS="gateway:SECRET:* chat:sha256-DIGEST:chat,@inline"

Keys are separated by spaces, lines or ";"; each is a name, a secret and scopes, joined by ":".

    | name         | what logs call the caller; it may come twice, while one secret is replaced by another             |
    | secret       | at least 128 bits if it is random: 32 hexadecimal digits or 22 characters of Base64; or "sha256-" |
    |              | and the 64 hexadecimal digits of its SHA-256, so that the secret itself is nowhere in the service |
    | scopes, by , |                                                                                                   |
    | chat         | the domain chat; in another's name, percent signs stand for what has a meaning here: a%2Cb, %40a  |
    | @inline      | limits that requests bring along; what they count is this caller's (all secrets of one name)      |
    | @inline/TEAM | the same, counted together with all who have this scope, and `limiter.check(…, scope="TEAM")`     |
    | *            | everything; inline limits are counted with those of all who have it, and with `limiter.check(…)`  |

A request bears the secret in `Authorization: Bearer SECRET` or, where that header belongs to somebody else, in
`X-API-Key: SECRET`. Without any key in the settings nobody needs one, and everybody may everything: `serve` then
listens on this machine only, unless ONEQUOTA_OPEN says that something else keeps strangers out.

A secret is found by a digest under a key that this process made up: how long that takes tells nothing about it.
"""

import hashlib
import math
import re
import secrets
import string
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import Scope

from service.errors import QUOTA_EXCEEDED, ConfigurationError
from service.limits import Limiter
from service.limits.allowance import Allowance
from service.limits.passage import problem_response
from service.logs import events

log = events()

Headers = Iterable[tuple[bytes, bytes]]

SETTING = "ONEQUOTA_API_KEYS"
INLINE = "@inline"
LEAST_BITS = 128

_ENTRY = re.compile(r"[^\s;]+")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"sha256-([0-9a-fA-F]{64})")
_SECRET = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token of RFC 6750
_ALPHABETS = [
    frozenset(characters)
    for characters in (
        string.digits,
        string.digits + "abcdef",
        string.digits + "ABCDEF",
        string.digits + string.ascii_lowercase,
        string.digits + string.ascii_uppercase,
    )
]
_FEWEST_CHARACTERS = 6
"""Different ones in a secret: 39 random digits have fewer once in a million, anything else never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who may ask.

    Attributes:
        name: Of the key; "" = anybody, where no keys are set.
        domains: What may be asked; None = all.
        inline: The scope in which limits that requests bring along are counted; None = none may be brought.
    """

    name: str
    domains: frozenset[str] | None
    inline: str | None

    def may(self, domain: str) -> bool:
        """Whether this caller may ask and charge what is limited in `domain`."""
        return self.domains is None or domain in self.domains


ANYBODY = Caller(name="", domains=None, inline="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One entry of the setting: a caller, and the SHA-256 of a secret."""

    caller: Caller
    digest: bytes = field(repr=False)


def parse(text: str) -> tuple[ApiKey, ...]:
    """The keys of the setting.

    Raises:
        ConfigurationError: Which entry is wrong, by its number, and how; whatever stands in it may be a secret.
    """
    found: dict[bytes, tuple[int, ApiKey]] = {}
    inline: dict[str, tuple[int, str | None]] = {}
    for number, entry in enumerate(_ENTRY.findall(text), 1):
        name, _, rest = entry.partition(":")
        secret, _, scopes = rest.partition(":")
        if not _NAME.fullmatch(name) or not secret or not scopes:
            raise _unmeant(number, "wanted NAME:SECRET:SCOPES, for example gateway:$(openssl rand -hex 32):*")
        caller, digest = _caller(number, name, scopes), _digest(number, secret)
        if digest in found:
            raise _unmeant(number, f"its secret is that of entry {found[digest][0]}")
        if inline.setdefault(name, (number, caller.inline))[1] != caller.inline:
            raise _unmeant(number, f"its {INLINE} scope differs from that of entry {inline[name][0]}, of the same name")
        found[digest] = number, ApiKey(caller=caller, digest=digest)
    if not found:
        raise ConfigurationError(f"{SETTING} is empty: leave it out, or write NAME:SECRET:SCOPES")
    return tuple(key for _, key in found.values())


def _unmeant(number: int, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{SETTING}, entry {number}: {reason}")


def _caller(number: int, name: str, text: str) -> Caller:
    domains: set[str] = set()
    inline: str | None = None
    everything = False
    for scope in text.split(","):
        if scope == "*":
            everything = True
        elif scope.startswith("@"):
            kind, slash, team = scope.partition("/")
            if kind != INLINE or (slash and not _NAME.fullmatch(team)):
                raise _unmeant(number, f"a scope with @ is {INLINE} or {INLINE}/TEAM; the @ of a domain is %40")
            if inline is not None:
                raise _unmeant(number, f"two {INLINE} scopes; use one")
            inline = team or f"/{name}"  # no team has a "/"
        elif not scope:
            raise _unmeant(number, f"an empty scope; use domains, {INLINE} or *, with commas between")
        else:
            domains.add(unquote(scope))
    if everything and inline is None:
        inline = ANYBODY.inline
    return Caller(name=name, domains=None if everything else frozenset(domains), inline=inline)


def _digest(number: int, secret: str) -> bytes:
    if secret.startswith("sha256-"):
        match = _DIGEST.fullmatch(secret)
        if match is None:
            raise _unmeant(number, '"sha256-" is followed by the 64 hexadecimal digits of the SHA-256 of a secret')
        return bytes.fromhex(match[1])
    if not _SECRET.fullmatch(secret):
        raise _unmeant(number, "a secret is made of letters, digits and -._~+/, for example by: openssl rand -hex 32")
    if bits(secret) < LEAST_BITS:
        raise _unmeant(
            number, f"its secret has fewer than {LEAST_BITS} random bits and can be guessed; use: openssl rand -hex 32"
        )
    return hashlib.sha256(secret.encode()).digest()


def bits(secret: str) -> float:
    """How many random bits a secret can have at most: by its length, and the smallest usual alphabet it is made of."""
    used = set(secret.rstrip("="))
    if len(used) < _FEWEST_CHARACTERS:
        return 0.0
    size = next((len(alphabet) for alphabet in _ALPHABETS if used <= alphabet), 64)
    return len(secret.rstrip("=")) * math.log2(size)


class Callers:
    """Knows callers by their secrets, and answers whoever is not known.

    Args:
        keys: From `parse`; empty = everybody is `ANYBODY`.
        limiter: Whose engine counts misses, and who knows addresses behind proxies.
        miss_limit: How many requests without a good key one address is told 401, before it is told 429.
    """

    def __init__(self, keys: Sequence[ApiKey], limiter: Limiter, miss_limit: str = "30/minute") -> None:
        self._limiter = limiter
        crowd = limiter.access.crowd if limiter.access is not None else None
        self._misses = Allowance(limiter.engine, miss_limit, name="unknown-key", scope="r.miss", crowd=crowd)
        self._hiding = hashlib.blake2b(key=secrets.token_bytes(32))
        self._known = {self._hidden(key.digest): key.caller for key in keys}
        self._told_s = -math.inf

    @property
    def open(self) -> bool:
        """Whether nobody needs a key."""
        return not self._known

    def of(self, headers: Headers) -> Caller | None:
        """Who sent a request with these headers (names in lower case, as ASGI has them); None = nobody we know.

        The Bearer token counts, else X-API-Key; a header that comes twice is nobody's.
        """
        if not self._known:
            return ANYBODY
        bearer = key = None
        for name, value in headers:
            if name == b"authorization":
                if value[:7].lower() == b"bearer ":
                    if bearer is not None:
                        return None
                    bearer = value[7:].strip()
            elif name == b"x-api-key":
                if key is not None:
                    return None
                key = value.strip()
        secret = key if bearer is None else bearer
        return None if secret is None else self.known(secret)

    def known(self, secret: bytes) -> Caller | None:
        """Whose secret it is; for protocols with headers of their own."""
        if not self._known:
            return ANYBODY
        return self._known.get(self._hidden(hashlib.sha256(secret).digest()))

    def _hidden(self, digest: bytes) -> bytes:
        hiding = self._hiding.copy()  # half the time of a new one
        hiding.update(digest)
        return hiding.digest()

    async def missed(self, address: str) -> int | None:
        """Count a request without a good key. None = tell it so; else it is one too many: seconds until the next."""
        now_s = time.monotonic()
        if now_s - self._told_s > 1:  # a flood is one line a second
            self._told_s = now_s
            log.warning("unknown_key", address=address)
        refused = None if self._misses.take(address) else await self._misses.ask(address)
        return None if refused is None else refused.retry_after

    async def unknown(self, scope: Scope) -> Response:
        """The answer to a request that `of` knows nobody for: 401, or 429 when its address has had too many."""
        retry_after = await self.missed(self._limiter.addresses.of(scope))
        if retry_after is not None:
            response = problem_response(
                429,
                f"too many requests without a valid API key; try again in {retry_after} s",
                type_=QUOTA_EXCEEDED,
                extra={"violated-policies": ["unknown-key"]},
            )
            response.headers["retry-after"] = str(retry_after)
            return response
        sent = any(name in {b"authorization", b"x-api-key"} for name, _ in scope["headers"])
        response = problem_response(
            401,
            "this API key is not known here" if sent else "an API key is needed: send Authorization: Bearer SECRET",
        )
        error = ', error="invalid_token"' if sent else ""
        response.headers["www-authenticate"] = f'Bearer realm="onequota"{error}'
        return response


def forbidden(caller: Caller, domain: str | None, at: str = "") -> Response:
    """The answer to a caller who may not ask that: 403. `domain` None = with limits that the request brings along."""
    name, wanted = ("limits", "with limits of its own") if domain is None else ("domain", f'domain "{domain}"')
    reason = f'key "{caller.name}" may not ask {wanted}; its scopes are in {SETTING}'
    return problem_response(403, f"{at}{name}: {reason}", extra={"errors": [{"field": at + name, "reason": reason}]})

"""What a resolver is: a key function that tells who asks, in words that no other resolver uses, or tells nobody.

An identity begins with the name of its resolver, `jwt/3f0c…`, `key/Zk3v…`, `x-user/alice`; an address stands for
itself, and none begins so: nobody can pass for an address.
"""

import re
from collections.abc import Awaitable
from typing import Any, TypeGuard

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError

Answer = str | None
"""Who asks; None if the request does not say so, or what it says is not to be believed."""

LONGEST = 1024
"""Bytes of a header that may name somebody; nobody is called longer."""

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+) *")


class Vouched(str):
    """An identity that was checked: by a signature, a list of keys, a trusted proxy, or the app.

    Others (addresses, keys that nobody knows) are what a client says; it can say a new one with each request.
    """

    __slots__ = ()


class Resolver:
    """A key function: (request) → who asks, or an awaitable of it.

    Attributes:
        name: What its identities begin with.
        means: Two resolvers of one name may stand side by side if this is equal: then they mean the same people.
        challenge: `WWW-Authenticate` of the 401 that is answered when it alone had to tell and could not; None where
            no credential would have helped: 400.
        needs_proxies: It believes trusted proxies only.
        reads_body: It may want the request's body.
    """

    name: str
    means: object = None
    challenge: str | None = None
    needs_proxies: bool = False
    reads_body: bool = False

    def __call__(self, connection: HTTPConnection) -> Answer | Awaitable[Answer]:
        raise NotImplementedError

    def __repr__(self) -> str:  # what errors and logs show: never a secret
        return f"identity.{type(self).__name__}({self.name!r})"


def waits(answer: object) -> TypeGuard[Awaitable[Any]]:
    """Whether an answer must be awaited first."""
    return hasattr(answer, "__await__")


def named(name: str) -> str:
    """`name` if identities can begin with it. Raises ConfigurationError."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f'identity name "{name}": use up to 32 of a-z, 0-9, ".", "_" and "-", from a letter on'
        )
    return name


def single(connection: HTTPConnection, header: bytes, longest: int = LONGEST) -> bytes | None:
    """The value of a header (lower case); None if it is missing, empty, too long or ambiguous: there more than once."""
    found = [value for name, value in connection.scope["headers"] if name == header]
    value = found[0].strip(b" \t") if len(found) == 1 else b""
    return value if 0 < len(value) <= longest else None


def bearer(value: bytes) -> str | None:
    """The credential in an `Authorization: Bearer …`."""
    found = _BEARER.fullmatch(value.decode("latin-1"))
    return found[1] if found else None

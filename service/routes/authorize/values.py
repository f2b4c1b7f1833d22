"""What is known of the request that a gateway asks about, each in one form however the client spells it.

    | value          | of a trusted gateway's request                                              | else            |
    |----------------|-----------------------------------------------------------------------------|-----------------|
    | remote_address | the rightmost address in X-Forwarded-For, else Forwarded, that is no proxy;  | the peer's      |
    |                | IPv6 by its /64                                                             |                 |
    | method         | X-Forwarded-Method or X-Original-Method; HEAD counts as GET                 | its own         |
    | path           | X-Forwarded-Uri, X-Original-URI or X-Original-URL: decoded once, without    | its own         |
    |                | query, doubled slashes, dot segments and the slash at its end               |                 |
    | host           | X-Forwarded-Host or X-Original-Host, else Host: lower case, no port, no dot | its own         |
    | api_key        | a digest of X-API-Key, unless that is the key the gateway itself bears       | the same        |

A gateway sets some of these headers and passes on what its client sent of the others. So where two of them disagree,
nobody knows whose word is whose: that is an error, and not the client's choice.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from service.errors import InvalidInput
from service.limits.identity import Addresses

NAMES = ("remote_address", "method", "path", "host", "api_key")

LONGEST = 512
"""Characters of a value; of a longer path a digest stands for the rest."""

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]{1,32}")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")

METHOD = (b"x-forwarded-method", b"x-original-method")
PATH = (b"x-forwarded-uri", b"x-original-uri", b"x-original-url")
HOST = (b"x-forwarded-host", b"x-original-host")

Digest = Callable[[str], str]


def of(scope: Scope, addresses: Addresses, digest: Digest | None) -> dict[str, str]:
    """The values.

    Args:
        scope: Of the gateway's request.
        addresses: Who is trusted.
        digest: What stands for an API key; None = X-API-Key is the gateway's own.

    Raises:
        InvalidInput: Two headers say different things, or one says nothing that makes sense.
    """
    trusted = addresses.peer(scope).trusted
    headers = scope["headers"]
    found = {
        "remote_address": addresses.of(scope),
        "method": _said(headers, METHOD, method) if trusted else None,
        "path": _said(headers, PATH, path) if trusted else None,
        "host": (_said(headers, HOST, host) if trusted else None) or _said(headers, (b"host",), host),
    }
    found["method"] = found["method"] or method(scope["method"])
    found["path"] = found["path"] or path(scope.get("raw_path", b"").decode("latin-1") or scope["path"])
    if digest is not None:
        found["api_key"] = _said(headers, (b"x-api-key",), digest)
    return {name: value for name, value in found.items() if value}


def _said(headers: Iterable[tuple[bytes, bytes]], names: tuple[bytes, ...], read: Callable[[str], str]) -> str | None:
    """What these headers say, if they agree; None = they are not there."""
    found = [(name, read(value.decode("latin-1").strip())) for name, value in headers if name in names and value]
    if not found:
        return None
    first, said = found[0]
    for name, other in found:
        if other != said:
            where = first.decode() if name == first else f"{first.decode()} and {name.decode()}"
            reason = "says two things" if name == first else "say two things"
            raise InvalidInput(where, f"{reason}; let the gateway set one of them, and remove the others")
    return said


def method(text: str) -> str:
    """A method. Raises InvalidInput."""
    upper = text.upper()
    if not _METHOD.fullmatch(upper):
        raise InvalidInput("method", f"{text[:40]!r} is none")
    return "GET" if upper == "HEAD" else upper


def path(text: str) -> str:
    """The path of a request target, `/a/b?c`, or of a URL: in the one form that a backend takes it for."""
    absolute = _ABSOLUTE.match(text)
    if absolute is not None:
        text = text[absolute.end() :]
    raw = re.split(r"[?#]", text, maxsplit=1)[0]
    if "%" in raw:
        raw = unquote_to_bytes(raw.encode("latin-1", "replace")).decode("utf-8", "replace")
    else:
        raw = raw.encode("latin-1", "replace").decode("utf-8", "replace")
    parts: list[str] = []
    for part in raw.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return short("/" + "/".join(parts))


def host(text: str) -> str:
    """A host without its port; of several the nearest proxy's."""
    name = text.rpartition(",")[2].strip().lower()
    return short(name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0].rstrip("."))


def short(text: str) -> str:
    """`text`, or what stands for it: two different ones stay different."""
    if len(text) <= LONGEST:
        return text
    rest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{text[: LONGEST - 33]}~{rest}"

"""SUPABASE_URL and SUPABASE_SERVICE_KEY: what they may say. Pure; what is wrong is told without quoting the key."""

import base64
import ipaddress
import json
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

from service.errors import ConfigurationError
from service.redis_url import redacted

URL = "SUPABASE_URL"
KEY = "SUPABASE_SERVICE_KEY"

_WANTED = "wanted https://PROJECT.supabase.co"


def checked(url: str | None, key: str | None) -> str | None:
    """The URL, canonical: scheme and host, no slash at the end; None when neither is given.

    Raises:
        ConfigurationError: One is given without the other, or cannot be meant.
    """
    if not url and not key:
        return None
    if not url:
        raise ConfigurationError(f"{URL} is not set, and {KEY} is: set both, or neither")
    if not key:
        raise ConfigurationError(f"{KEY} is not set, and {URL} is: set both, or neither")
    _check_key(key)
    try:
        parts = _parts(url)
    except ValueError as error:
        shown = "***" if key in url else redacted(url.partition("?")[0])
        raise ConfigurationError(f"{URL}={json.dumps(shown[:80])}: {error}") from None
    return f"{parts.scheme}://{parts.netloc.lower()}"


def doubts(url: str, key: str) -> Iterator[str]:
    """What may be meant and is worth a line in the log."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        yield f"{URL} is http: the service key travels unencrypted to {parts.hostname}"
    if key.startswith("sb_publishable_") or _role(key) == "anon":
        yield f"{KEY} is the public key: row-level security applies to every query of this service"


def _check_key(key: str) -> None:
    if key.startswith(("http://", "https://", "postgres")):
        raise ConfigurationError(f"{KEY} is a URL; wanted the project's secret key. Are the two exchanged?")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(f"{KEY} holds a space, a line break or a character that no key has")
    if key[0] in "\"'<" or len(key) < 20:
        raise ConfigurationError(f"{KEY} is no key: wanted sb_secret_... or a long one that begins with eyJ, unquoted")


def _role(key: str) -> object:
    """The role that a legacy key, a JWT, names; None when it is none."""
    try:
        payload = key.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["role"]
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def _parts(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"it holds a space, a line break or a character that no URL has; {_WANTED}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"its host is unreadable; {_WANTED}") from None
    if parts.scheme.startswith("postgres"):
        raise ValueError(f"that is the address of the database itself; {_WANTED}")
    if parts.scheme not in {"http", "https"} or "://" not in url:
        raise ValueError(_WANTED)
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError(f"it holds more than a host; {_WANTED}")
    if not parts.hostname or not _has_port(parts):
        raise ValueError(f"it names no host, or no port from 1 to 65535; {_WANTED}")
    if parts.path not in {"", "/"}:
        raise ValueError(f"it has a path, which the client adds itself; {_WANTED}")
    if parts.scheme == "http" and parts.hostname.endswith(".supabase.co"):
        raise ValueError("the service key would travel unencrypted; write https://")
    return parts


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0 and not parts.netloc.endswith(":")
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

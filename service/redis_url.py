"""A Redis URL: read, checked, shown without its password. Pure.

| scheme | where |
|---|---|
| `redis://HOST:PORT/DB`, `rediss://…`, `unix:///PATH` | one server, over TCP, TLS, a socket |
| `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB` | the server that these Sentinels call the primary of SERVICE |
| `redis+cluster://HOST:PORT,HOST:PORT` | the Cluster that these hosts belong to |
| `fakeredis://` | one process without Redis |

`rediss+sentinel` and `rediss+cluster` are TLS to all of them. `valkey` may stand for `redis`, `valkeys` for `rediss`,
`redis+unix` for `unix`. Before the `@` stand user and password of the servers that count, after the `?` redis-py's
options; for the Sentinels themselves there is `sentinel_username`, `sentinel_password`, any option with that prefix.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

_TLS = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_ALIASES = {"redis+unix": "unix", "unix": "unix", "fakeredis": "fakeredis", **_TLS}
_ALIASES |= {f"{name}+{kind}": f"{real}+{kind}" for name, real in _TLS.items() for kind in ("sentinel", "cluster")}
_PORTS = {"sentinel": 26379, "cluster": 6379}
_FOR_SENTINELS = "sentinel_"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]/?#@]+))(?::(?P<port>\d+))?")

WANTED = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH"
_WANTED = {
    "sentinel": "redis+sentinel://HOST:26379,HOST:26379/SERVICE/DB",
    "cluster": "redis+cluster://HOST:6379,HOST:6379",
}

Host = tuple[str, int]
"""Name or address, and port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """A deployment of several servers.

    Attributes:
        kind: What the hosts are.
        hosts: Sentinels, or members of the Cluster; at least one.
        service: What Sentinels call the servers they watch; "" for a Cluster.
        scheme: `redis` or `rediss`.
        credentials: `user:password@` as it was written, or "".
        db: Number of the database, or "".
        query: Options for redis-py, for all servers.
        sentinel_query: Options for the Sentinels alone.
    """

    kind: Literal["sentinel", "cluster"]
    hosts: tuple[Host, ...]
    service: str
    scheme: str
    credentials: str
    db: str
    query: dict[str, str]
    sentinel_query: dict[str, str]

    def at(self, host: Host) -> str:
        """The URL of the server that counts, there, in redis-py's words."""
        return self._url(self.credentials, host, self.db, self.query)

    def sentinel(self, host: Host) -> str:
        """The URL of the Sentinel there: encrypted as all are, with a user and password of its own."""
        shared = {name: text for name, text in self.query.items() if name not in {"username", "password", "db"}}
        return self._url("", host, "", shared | self.sentinel_query)

    def _url(self, credentials: str, host: Host, db: str, query: dict[str, str]) -> str:
        name, port = host
        place = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        return f"{self.scheme}://{credentials}{place}/{db}" + (f"?{urlencode(query)}" if query else "")


def redacted(url: str) -> str:
    """`url` as it may be shown: its password, and whatever might be one, is `***`. Never raises.

    Up to the *last* `@` all counts as credentials: a password with a raw `/` or `@` in it is hidden whole.
    """
    scheme, colons, rest = url.partition("://")
    if not colons or not _SCHEME.fullmatch(scheme):
        return "***"  # not a URL: it may be the password itself
    credentials, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        place = f"{user}:***@{place}" if colon else f"***@{place}"
    elif not all(map(_HOST.fullmatch, re.split("[/?]", place)[0].split(","))):
        place = re.sub(r":[^/?:\]]*[^/?:\]\d][^/?:\]]*(?=[/?]|$)", ":***", place, count=1)  # host:password
    place = re.sub(r"((?:password|token|secret)=)[^&]*", r"\1***", place, flags=re.IGNORECASE)
    return f"{scheme}://{place}"


def parse_redis_url(value: str) -> str:
    """A Redis URL in few words: `valkey://` becomes `redis://`.

    Raises:
        ValueError: It cannot be one; a sentence without the password.
    """
    scheme = value.partition("://")[0].lower()
    canonical = _ALIASES.get(scheme)
    if "://" not in value or canonical is None:
        raise ValueError(f"wanted {WANTED}" + ("" if value.strip() else ", and it is empty"))
    kind = canonical.partition("+")[2]
    if not value.isprintable() or " " in value:
        raise ValueError(f"it holds a space or a control character; wanted {_WANTED.get(kind, WANTED)}")
    url = canonical + value[len(scheme) :]
    if kind:
        read(url)
    elif canonical in {"redis", "rediss"}:
        _check_tcp(_split(url))
    elif canonical == "unix":
        _check_unix(_split(url))
    return url


def read(url: str) -> Several | None:
    """What a URL from `parse_redis_url` says of several servers; None = it speaks of one.

    Raises:
        ValueError: It cannot be meant; a sentence without the password.
    """
    scheme, _, rest = url.partition("://")
    scheme, _, named = scheme.partition("+")
    if named not in _PORTS:
        return None
    kind: Literal["sentinel", "cluster"] = "sentinel" if named == "sentinel" else "cluster"
    if "#" in rest:
        raise ValueError("it holds a '#': in a password, write %23")
    place, _, query = rest.partition("?")
    credentials, at, place = place.rpartition("@")
    listed, _, path = place.partition("/")
    if not listed.strip(","):
        raise ValueError(f"it names no host; wanted {_WANTED[kind]}")
    hosts = tuple(_host(item, kind) for item in listed.split(",") if item)
    service, db = _service(path) if kind == "sentinel" else ("", _only_database(path))
    said = parse_qsl(query, keep_blank_values=True)
    theirs = [name for name, _ in said if kind == "sentinel" and name.startswith(_FOR_SENTINELS)]
    several = Several(
        kind=kind,
        hosts=hosts,
        service=service,
        scheme=scheme,
        credentials=credentials + at,
        db=db,
        query={name: text for name, text in said if name not in theirs},
        sentinel_query={name.removeprefix(_FOR_SENTINELS): text for name, text in said if name in theirs},
    )
    _check_tcp(_split(several.at(hosts[0])))
    return several


def _host(item: str, kind: str) -> Host:
    found = _HOST.fullmatch(item)
    port = int(found["port"] or _PORTS[kind]) if found else 0
    if not found or not 0 < port < 65536:  # it may be a part of the password: it is not shown
        raise ValueError(f"its hosts are unreadable, or a port is not a number from 1 to 65535; wanted {_WANTED[kind]}")
    return found["v6"] or found["name"], port


def _service(path: str) -> tuple[str, str]:
    """A Sentinel URL's path: the service's name, and the database or ""."""
    service, _, db = path.strip("/").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", service) or (service.isdecimal() and not db):
        raise ValueError(f"it names no service, as Sentinels call it; wanted {_WANTED['sentinel']}")
    if db and not db.isdecimal():
        raise ValueError(f"its database is not a number; wanted {_WANTED['sentinel']}; in a password, '/' is %2F")
    return service, db


def _only_database(path: str) -> str:
    if path.strip("/") not in {"", "0"}:
        raise ValueError("a Cluster has database 0 only, and no other path; in a password, '/' is %2F")
    return ""


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its message may quote the password
        raise ValueError("its port is not a number from 0 to 65535, or its host is unreadable") from None
    return parts


def _check_tcp(parts: SplitResult) -> None:
    if not parts.hostname:
        raise ValueError(f"it names no host; wanted {WANTED}")
    if parts.fragment:
        raise ValueError("it holds a '#': in a password, write %23")
    if not re.fullmatch(r"/?\d*/?", parts.path):  # redis-py would silently take database 0
        raise ValueError("its database is not a number, as in redis://HOST:PORT/0; in a password, '/' is %2F")


def _check_unix(parts: SplitResult) -> None:
    if parts.hostname or len(parts.path) < 2:  # redis-py would silently drop the host
        raise ValueError("a socket has three slashes: unix:///run/redis.sock")

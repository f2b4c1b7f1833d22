"""The only speller of Redis keys. Pure.

    oq:{alice}:api.chat:10/60s/fixed
    │   │      │        └ the limit, its algorithm included (`Limit.spelling`)
    │   │      └ the scope: what is limited (route template and function, or a shared name)
    │   └ the identity: who asks; the braces put all limits of one identity into one Cluster slot
    └ the prefix, default "oq"

What another process keeps through the service has a digest for a prefix, of who keeps it and of the prefix it had
(`within`): whatever that process asks for, it meets no counter but its own.

A record of an idempotency token (oq:{orders}:8e03978e:once) has its owner between the braces, the token as scope, and a
word where a counter has its limit, which begins with a digit. In a Cluster the owner's slot and those of the counters
may differ: there each of these has a record of its part beside it (oq:{alice}:~…:once).
A board (oq:board:bans) has no braces.

Short plain parts stay readable, anything else becomes "~" and a 128-bit digest: "~" begins no plain part, no part
holds the mark that ends it, so no two different tuples share a key. The longest key has 128 bytes or fewer.
"""

import hashlib
import re
from base64 import urlsafe_b64encode
from functools import lru_cache

LONGEST = 128

CROWD = b"^"
"""How a `crowd` begins, and no identity."""

_PLAIN_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,12}")
_PLAIN_IDENTITY = re.compile(r"[A-Za-z0-9._@:/-]{1,36}")
_PLAIN_SCOPE = re.compile(r"[A-Za-z0-9._/-]{1,24}")
_SHORT = r"~[A-Za-z0-9_-]{22}"
_WHOLE = re.compile(
    rf"({_PLAIN_PREFIX.pattern}|{_SHORT}):\{{({re.escape(CROWD.decode())}?(?:{_PLAIN_IDENTITY.pattern}|{_SHORT}))\}}"
    rf":({_PLAIN_SCOPE.pattern}|{_SHORT}):([a-z0-9/@]{{1,40}})"
)

_BOARD = re.compile(rf"({_PLAIN_PREFIX.pattern}|{_SHORT}):board:({_PLAIN_SCOPE.pattern}|{_SHORT})")


@lru_cache(maxsize=8192)
def who(identity: str) -> bytes:
    """An identity as it stands between the braces."""
    return _part(identity, _PLAIN_IDENTITY).encode()


def around(prefix: str, scope: str, limit: str) -> tuple[bytes, bytes]:
    """What stands before and after the identity; `key = head + who(identity) + tail`.

    `limit` is a `Limit.spelling`: it holds no ":", so the parts come apart again from the right.
    """
    head = _part(prefix or "oq", _PLAIN_PREFIX) + ":{"
    tail = "}:" + _part(scope, _PLAIN_SCOPE) + ":" + limit
    return head.encode(), tail.encode()


def spell(prefix: str, identity: str, scope: str, limit: str) -> bytes:
    """One whole key."""
    head, tail = around(prefix, scope, limit)
    return head + who(identity) + tail


def once(prefix: str, owner: str, token: str) -> bytes:
    """The record of an idempotency token. Owners do not meet: the same token of another one is another."""
    return spell(prefix, owner, token, "once")


def within(space: str, key: str) -> tuple[bytes, str]:
    """A key that `spell` made elsewhere, in a space of its own, and the limit it ends with.

    Raises:
        ValueError: `spell` makes no such key.
    """
    match = _WHOLE.fullmatch(key)
    if match is None:
        raise ValueError(f"{key[:LONGEST]!r} is no key")
    prefix, who_, scope, limit = match.groups()
    return f"{_part(_within(space, prefix), _PLAIN_PREFIX)}:{{{who_}}}:{scope}:{limit}".encode(), limit


def board_within(space: str, key: str) -> bytes:
    """A board of another process, in a space of its own. Raises ValueError if `board` makes no such key."""
    match = _BOARD.fullmatch(key)
    if match is None:
        raise ValueError(f"{key[:LONGEST]!r} is no board")
    return f"{_part(_within(space, match[1]), _PLAIN_PREFIX)}:board:{match[2]}".encode()


def prefix_within(space: str, prefix: str) -> str:
    """The prefix of the keys that `within` makes of keys with this prefix."""
    return _within(space, _part(prefix or "oq", _PLAIN_PREFIX))


def _within(space: str, prefix: str) -> str:
    return f"{space}\0{prefix}"  # no plain prefix: it is always a digest


def probe(key: bytes) -> bytes:
    """A counter beside `key`, also in a Cluster on the same server: charged to see whether that answers."""
    head, _, _ = key.partition(b"}:")
    return head + b"}:probe:1000000000/1s/fixed"


def beside(counter: bytes, record: bytes, word: str) -> bytes:
    """A record of what `record` stands for, in the Cluster slot of a counter; `word` is of letters."""
    digest = hashlib.blake2b(record, digest_size=16).digest()
    return counter[: counter.index(b"}") + 2] + _short(digest).encode() + b":" + word.encode()


def board(prefix: str, topic: str) -> bytes:
    """What all workers must hear of a topic. It is nobody's: to forget counters does not take it away."""
    return f"{_part(prefix or 'oq', _PLAIN_PREFIX)}:board:{_part(topic, _PLAIN_SCOPE)}".encode()


def bearer(key: bytes) -> bytes:
    """What stands between a counter's braces: whose it is."""
    return key[key.index(b"{") + 1 : key.index(b"}")]


def moved(key: bytes, who: bytes) -> bytes:
    """The same counter of somebody else."""
    return key[: key.index(b"{") + 1] + who + key[key.index(b"}") :]


def crowd(prefix: str) -> bytes:
    """Whoever comes from a network while its newcomers share a counter; no identity is spelled so."""
    return CROWD + _part(prefix, _PLAIN_IDENTITY).encode()


def _part(text: str, plain: re.Pattern[str]) -> str:
    if plain.fullmatch(text):
        return text
    return _short(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def _short(digest: bytes) -> str:
    return "~" + urlsafe_b64encode(digest).decode().rstrip("=")

"""What redis-py raises, as the one error the engine knows, with why in a word.

    timeout         no answer in time
    connection      refused, broken or lost
    authentication  it does not let this client in     } the deployment is wrong,
    permission      it does not let it do this         } and it does not pass by itself
    loading         it reads its file
    readonly        it is a replica
    memory          it is full
    busy            it runs somebody's script
    cluster         slots without a server, or on their way to another
    replicas        too few of them
    clients         too many of them
    persistence     its disk fails
    refused         it said something else, for example of this key: no outage

After the first two and the last what was asked may have been done; all others say that nothing was.
"""

import re

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from service.errors import StoreUnavailable

REFUSED = "refused"
LOCKED_OUT = ("authentication", "permission")
"""Reasons that do not pass by themselves."""

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (BusyLoadingError, "loading"),
    (AuthenticationError, "authentication"),
    (AuthenticationWrongNumberOfArgsError, "authentication"),
    (AuthorizationError, "authentication"),
    (NoPermissionError, "permission"),
    (NoScriptError, "permission"),  # nor to load one
    (AskError, "cluster"),
    (ReadOnlyError, "readonly"),
    (OutOfMemoryError, "memory"),
    (ClusterDownError, "cluster"),
    (TryAgainError, "cluster"),
)
_WORDS = {  # the server's own; within a script's error Redis 6 has them in the middle
    "LOADING": "loading",
    "NOAUTH": "authentication",
    "WRONGPASS": "authentication",
    "NOPERM": "permission",
    "The user executing the script can't": "permission",
    "READONLY": "readonly",
    "OOM": "memory",
    "BUSY": "busy",
    "UNKILLABLE": "busy",
    "CLUSTERDOWN": "cluster",
    "MASTERDOWN": "cluster",
    "NOREPLICAS": "replicas",
    "MISCONF": "persistence",
    "max number of clients reached": "clients",
}
_SAID = re.compile(rf"(?<![\w@])(?:{'|'.join(map(re.escape, _WORDS))})\b")


def unavailable(error: Exception, *, sent: bool = True) -> StoreUnavailable:
    """What to raise from redis-py's `error`.

    Args:
        error: A RedisError or OSError.
        sent: What was asked may have reached the server.
    """
    reason = _reason(error)
    away = reason in ("timeout", "connection")
    maybe_done = sent and (away or reason == REFUSED)
    return StoreUnavailable(f"Redis {'is away' if away else 'refused'}: {error}", reason=reason, maybe_done=maybe_done)


def _reason(error: Exception) -> str:
    for kind, reason in _KINDS:
        if isinstance(error, kind):
            return reason
    if isinstance(error.__context__, AuthenticationError):  # a failed handshake wraps what was said
        return "authentication"
    said = _SAID.search(str(error))
    if said is not None:
        return _WORDS[said[0]]
    if isinstance(error, ResponseError):
        return REFUSED
    return "timeout" if isinstance(error, TimeoutError) else "connection"

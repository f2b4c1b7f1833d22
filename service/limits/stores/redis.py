"""The script on a Redis server, through redis-py's asyncio client. One client, one pool, per event loop.

redis-py retries failed commands by default; a retried charge is a double charge, so its retries are off here. The one
thing replayed is NOSCRIPT, which says that nothing was run.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import redis.asyncio
from hiredis import pack_command
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, NoScriptError, RedisError, ResponseError

from service.errors import ConfigurationError
from service.limits import keys
from service.limits.algorithms import script
from service.limits.decision import Ask
from service.limits.stores.faults import unavailable

IDLE_S = 0.5
"""A connection that rested this long is looked at before it is used: the server may have closed it meanwhile."""

RELOADS = 5
"""How often the script is loaded for one call: somebody may flush it in between."""

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

Call = tuple[Any, ...]
"""A command and its arguments."""


class RedisStore:
    """Counters in a Redis server, over one connection. Decides one batch at a time.

    Args:
        client: An asyncio client with retries off and no decoding of replies.
        clock: None for the server's own clock; tests pass a function that answers microseconds.
    """

    far = True

    def __init__(self, client: "redis.asyncio.Redis", clock: Callable[[], int] | None = None) -> None:
        self.client = client
        self.clock = clock
        self.far = self.far and clock is None
        self._sha = hashlib.sha1(script().encode(), usedforsecurity=False).hexdigest()
        self._connection: Any = None
        self._used_s = 0.0

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        try:
            return await self._call(self._spell(asks))
        except (RedisError, OSError) as error:
            told = unavailable(error)
            if told.reason == "readonly":  # a primary no more: to connect again is how the new one is found
                await self._drop(self._connection)
            raise told from error

    def _spell(self, asks: Sequence[Ask]) -> Call:
        """The call that decides these asks."""
        names: list[bytes] = []
        runs: list[str] = []
        words, times = "", 0
        for ask in asks:
            names += ask.names
            if ask.words == words:
                times += ask.times
                continue
            if times:
                runs.append(f"{times} {words}")
            words, times = ask.words, ask.times
        runs.append(f"{times} {words}")
        now_us = self.clock() if self.clock else 0
        return ("EVALSHA", self._sha, len(names), *names, now_us, " ".join(runs))

    async def _call(self, call: Call) -> Sequence[int]:
        connection = await self._connected()
        try:
            for _ in range(RELOADS):
                await send(connection, call)
                try:
                    return await connection.read_response(disable_decoding=True)  # type: ignore[no-any-return]
                except NoScriptError:  # nothing was run: the one thing that is sent again
                    await connection.send_command("SCRIPT", "LOAD", script())
                    await connection.read_response()
            await send(connection, call)
            return await connection.read_response(disable_decoding=True)  # type: ignore[no-any-return]
        except ResponseError:
            raise
        except BaseException:  # what comes next on this connection may answer what was given up
            await self._drop(connection)
            raise

    async def _connected(self) -> Any:
        """The connection of this store: redis-py's, without its client, whose every call costs twice as much.

        Raises:
            StoreUnavailable: There is none to be had.
        """
        now_s = asyncio.get_running_loop().time()
        connection = self._connection
        if connection is not None and now_s - self._used_s > IDLE_S:
            try:
                look = getattr(connection, "can_read", None) or connection.can_read_destructive  # redis-py 8, 6 and 7
                stale = await look()
            except (RedisError, OSError):
                stale = True
            if stale:
                await self._drop(connection)
        if self._connection is None:
            self._connection = await self._connect()
        self._used_s = now_s
        return self._connection

    async def _connect(self) -> Any:
        connection = self.client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()
            await self._greet(connection)
        except BaseException as error:
            await self._drop(connection)
            if isinstance(error, (RedisError, OSError)):
                raise unavailable(error, sent=False) from error
            raise
        return connection

    async def _drop(self, connection: Any) -> None:
        """Let go of a connection that cannot be used any more."""
        self._connection = None
        writer = getattr(connection, "_writer", None)
        if writer is not None:
            writer.transport.abort()  # with TLS, to close would wait up to 30 s for the other end
        await connection.disconnect(nowait=True)

    async def _greet(self, connection: Any) -> None:
        """What is said on a new connection before it is used. Raises StoreUnavailable, RedisError, OSError."""

    async def ping(self) -> str:
        try:
            info = await self.client.info("server")
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return f"redis {info.get('redis_version', '(unknown version)')}"

    async def doubts(self) -> list[str]:
        try:
            found = await self.client.config_get("maxmemory-policy")
        except ResponseError:  # a managed or restricted Redis does not tell
            return []
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        finally:
            await self.client.aclose()  # asked once: no connection stays for it
        policy = next(iter(found.values()), "noeviction")
        policy = policy.decode() if isinstance(policy, bytes) else policy
        if policy == "noeviction":
            return []
        return [
            f"Redis evicts keys when its memory is full (maxmemory-policy {policy}): live counters would be "
            "forgotten; give the limiter a Redis of its own with maxmemory-policy noeviction"
        ]

    async def forget(self, prefix: str, identity: str | None) -> int:
        head, _ = keys.around(prefix, "", "")
        name = "*" if identity is None else keys.who(identity).decode() + "}*"
        found = 0
        try:
            async for key in self.client.scan_iter(match=head.decode() + name, count=1000):
                found += await self.client.unlink(key)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return found

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        call = board_call(key, after, message, keep_ms, most)
        ask = self.client.execute_command
        try:
            try:
                return read_board(await ask(*call))  # type: ignore[no-untyped-call]
            except NoScriptError:
                await ask(*BOARD_LOAD)  # type: ignore[no-untyped-call]
                return read_board(await ask(*call))  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        with contextlib.suppress(RedisError, OSError):
            if connection is not None:
                await connection.disconnect()
            await self.client.aclose()


_BOARD = (resources.files(__package__) / "board.lua").read_text(encoding="utf-8")
_BOARD_SHA = hashlib.sha1(_BOARD.encode(), usedforsecurity=False).hexdigest()
BOARD_LOAD: Call = ("SCRIPT", "LOAD", _BOARD)


async def send(connection: Any, *calls: Call) -> None:
    """redis-py's `send_command` in half the time: that packs in Python, and waits in a task of its own."""
    if connection._writer is None:  # closed since
        raise ConnectionError("the connection was closed")
    connection._writer.writelines(list(map(pack_command, calls)))
    await connection._writer.drain()


def board_call(key: bytes, after: bytes, message: bytes, keep_ms: int, most: int) -> Call:
    """`Keeper.board` as a command."""
    return ("EVALSHA", _BOARD_SHA, 1, key, after, message, keep_ms, most)


def read_board(answer: Sequence[Any]) -> tuple[int, list[tuple[bytes, bytes]]]:
    """What it is answered."""
    return answer[0], list(zip(answer[1::2], answer[2::2], strict=True))


async def ended(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """End tasks, whatever became of them. Python 3.11 may swallow a cancellation that comes while redis-py sends."""
    while open_ := [task for task in tasks if not task.done()]:
        for task in open_:
            task.cancel()
        await asyncio.wait(open_, timeout=0.01)
    await asyncio.gather(*tasks, return_exceptions=True)


class RedisOpener:
    """Opens a client per event loop for one URL.

    Args:
        url: redis://, rediss:// or unix://.
        options: More arguments for redis-py's client, e.g. `{"ssl_ca_certs": "ca.pem"}`.
        timeout_s: Seconds one command may take.

    Raises:
        ConfigurationError: The URL or an option makes no sense to redis-py, or a certificate cannot be read.
    """

    def __init__(self, url: str, options: dict[str, Any], timeout_s: float) -> None:
        self._url = url
        self._options = {
            "max_connections": 8,
            **options,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "socket_timeout": timeout_s,  # decisions have the engine's deadline; this bounds all else
            "socket_connect_timeout": timeout_s,
        }
        try:
            pool = redis.asyncio.ConnectionPool.from_url(url, **self._options)
            pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RedisError) as error:
            raise ConfigurationError(f"the Redis URL cannot be used: {error}") from error
        for name in _FILES:
            path = pool.connection_kwargs.get(name)
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(f"{name}={path}: there is no such file")

    def __call__(self) -> RedisStore:
        return RedisStore(self.client())

    def client(self) -> "redis.asyncio.Redis":
        """A client for the running event loop, that connects when it is used and never tries twice."""
        return redis.asyncio.Redis.from_url(self._url, **self._options)

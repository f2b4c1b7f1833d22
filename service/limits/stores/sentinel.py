"""The script on the primary that Redis Sentinels name, wherever that is now.

    decide ─▶ primary ─▶ answered
                 └ did not answer, or is none any more ─▶ who is it? ask all Sentinels at once ─▶ primary

A charge is sent at most once. Only what for certain was not charged (no connection, a reply that says so) is asked once
more, and only if the Sentinels name another server by now.

Sentinels are asked in a task of its own, which no decision's deadline ends: one that hangs must not keep the others
from being heard, this time and the next. The primary is whom most of them name: one that was cut off may name the old.
"""

import asyncio
import contextlib
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from service.errors import StoreUnavailable
from service.limits.decision import Ask
from service.limits.stores.redis import RedisOpener, RedisStore, ended
from service.redis_url import Host, Several

R = TypeVar("R")


class Primary(RedisStore):
    """One server, as long as it says itself that it is a primary."""

    async def _greet(self, connection: Any) -> None:
        await connection.send_command("ROLE")
        role = await connection.read_response(disable_decoding=True)
        if role[0] not in {b"master", "master"}:
            sentence = "Redis is away: the Sentinels name a server that is no primary"
            raise StoreUnavailable(sentence, reason="readonly", maybe_done=False)


class SentinelStore:
    """Counters on the primary of one service.

    Args:
        service: What the Sentinels call it.
        sentinels: A client for each; at least one.
        open_primary: Opens the server at an address.
        timeout_s: How long Sentinels may take to name it, seconds.
    """

    far = True

    def __init__(
        self,
        service: str,
        sentinels: "Sequence[redis.asyncio.Redis]",
        open_primary: Callable[[Host], Primary],
        timeout_s: float,
    ) -> None:
        self._service = service
        self._sentinels = sentinels
        self._open = open_primary
        self._timeout_s = timeout_s
        self._at: Host | None = None
        self._primary: Primary | None = None
        self._why = ""
        self._doubtful = False
        self._finding: asyncio.Task[None] | None = None
        self._context = contextvars.Context()  # the task must not live in the first request's context

    async def decide(self, asks: Sequence[Ask]) -> Sequence[int]:
        return await self._on_primary(lambda primary: primary.decide(asks))

    async def ping(self) -> str:
        return f"{await self._on_primary(lambda primary: primary.ping())}, the primary of {self._service}"

    async def doubts(self) -> list[str]:
        return await self._on_primary(lambda primary: primary.doubts())

    async def forget(self, prefix: str, identity: str | None) -> int:
        return await self._on_primary(lambda primary: primary.forget(prefix, identity))

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        return await self._on_primary(lambda primary: primary.board(key, after, message, keep_ms, most))

    async def _on_primary(self, do: Callable[[Primary], Awaitable[R]]) -> R:
        """Do it on the primary; elsewhere once more if nothing was charged, and it is elsewhere."""
        primary = await self._found()
        try:
            return await do(primary)
        except StoreUnavailable as error:
            self._doubtful = True
            if error.maybe_done or await self._found() is primary:
                raise
        except BaseException:  # the end of a deadline
            self._doubtful = True
            raise
        return await do(await self._found())

    async def _found(self) -> Primary:
        """The primary as last heard of; after a failure as heard of now, so that no time is lost on an old one."""
        if self._primary is None or self._doubtful:
            self._find()
        if self._finding is not None:
            await asyncio.shield(self._finding)
        if self._primary is None:
            raise StoreUnavailable(self._why, reason="connection", maybe_done=False)
        return self._primary

    def _find(self) -> None:
        if self._finding is None:
            loop = asyncio.get_running_loop()
            self._finding = loop.create_task(self._look(), context=self._context)

    async def _look(self) -> None:
        """Ask; a new primary takes the place of the old one, and without an answer the old one stays."""
        try:
            at = await self._named()
            if at is not None and at != self._at:
                old, self._at, self._primary = self._primary, at, self._open(at)
                if old is not None:
                    await old.aclose()
        except (RedisError, OSError, StoreUnavailable) as error:
            self._why = f"Redis is away: {error}"
        finally:
            self._doubtful = False  # whatever came of it: without Sentinels the last one named stays
            self._finding = None

    async def _named(self) -> Host | None:
        """Where most Sentinels say the primary is; None if none says anything in time, `_why` says more."""
        asked = [asyncio.ensure_future(self._ask(sentinel)) for sentinel in self._sentinels]
        votes: Counter[Host] = Counter()
        why = "no Sentinel answers"
        try:
            async with asyncio.timeout(self._timeout_s):
                for answer in asyncio.as_completed(asked):
                    try:
                        at = await answer
                    except (RedisError, OSError) as error:
                        why = f"no Sentinel answers: {error}"
                        continue
                    if at is None:
                        why = f"no Sentinel knows a service {self._service}"
                        continue
                    votes[at] += 1
                    if votes[at] > len(asked) / 2:
                        return at
        except TimeoutError:
            pass
        finally:
            await ended(asked)
        if votes:
            return votes.most_common(1)[0][0]
        self._why = f"Redis is away: {why}"
        return None

    async def _ask(self, sentinel: "redis.asyncio.Redis") -> Host | None:
        found = await sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._service)  # type: ignore[no-untyped-call]
        if not found:
            return None
        name, port = found
        return (name.decode() if isinstance(name, bytes) else name), int(port)

    async def aclose(self) -> None:
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)
        primary, self._primary, self._at = self._primary, None, None
        if primary is not None:
            await primary.aclose()
        for sentinel in self._sentinels:
            with contextlib.suppress(RedisError, OSError):
                await sentinel.aclose()


class SentinelOpener:
    """Opens the store per event loop. Arguments and errors as of `RedisOpener`.

    `options` may hold `sentinel_kwargs`: more arguments for the Sentinels' clients alone.
    """

    def __init__(self, several: Several, options: dict[str, Any], timeout_s: float) -> None:
        self._several = several
        self._options = dict(options)
        theirs = self._options.pop("sentinel_kwargs", None) or {}
        shared = {name: value for name, value in self._options.items() if name not in {"username", "password", "db"}}
        self._timeout_s = timeout_s
        self._sentinels = [RedisOpener(several.sentinel(host), shared | theirs, timeout_s) for host in several.hosts]
        self._server(several.hosts[0])  # to hear now of what cannot be meant

    def __call__(self) -> SentinelStore:
        clients = [sentinel.client() for sentinel in self._sentinels]
        return SentinelStore(
            self._several.service, clients, lambda host: Primary(self._server(host).client()), self._timeout_s
        )

    def _server(self, host: Host) -> RedisOpener:
        return RedisOpener(self._several.at(host), self._options, self._timeout_s)

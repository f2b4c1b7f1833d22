"""The script on a Redis Cluster: who holds which slots, and one store per server.

All limits of one identity are in one slot, for `keys.py` puts it between braces. What arrives together for one server
is sent to it together, one EVALSHA a slot. What a server answers that has no such slot is no failure:

    MOVED      it was elsewhere all along         ask there
    ASK        its keys are being moved, and these are not here   ask there, once, saying ASKING
    TRYAGAIN   … and some of these are            each ask alone; one that still spans both waits and asks again

All three, as NOSCRIPT, say that nothing was run: that alone is sent again. Where slots are is heard in a task of its
own, which no decision's deadline ends, from several servers at once: one that hangs must not keep others unheard.
"""

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import redis.asyncio
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, ResponseError, TryAgainError

from service.errors import StoreUnavailable
from service.limits.algorithms import script
from service.limits.decision import Ask
from service.limits.stores.contract import ELSEWHERE, Answer
from service.limits.stores.faults import unavailable
from service.limits.stores.redis import (
    BOARD_LOAD,
    RELOADS,
    Call,
    RedisOpener,
    RedisStore,
    board_call,
    ended,
    read_board,
    send,
)
from service.redis_url import Host, Several

REFRESH_EVERY_S = 0.1
"""How often one worker asks at most where slots are."""
FORGOTTEN_S = 60.0
"""How long a server without slots must have rested to be forgotten: one that is being filled gets redirections."""
REDIRECTIONS = 3
"""How often a call that is no decision follows where its slot is said to be."""
ASKED_AT_ONCE = 3
"""Servers that are asked where slots are, of those in use and of those in the URL."""

Reply = Sequence[int] | RedisError | OSError
"""Numbers, or what Redis or the network says instead."""


class ClusterShard(RedisStore):
    """One server of a Cluster.

    Args:
        client: As of `RedisStore`.
        host: Where it is.
        cluster: What it belongs to.

    Attributes:
        asked_s: When it was last asked something beside its batches, by its loop's clock.
    """

    def __init__(self, client: "redis.asyncio.Redis", host: Host, cluster: "ClusterStore") -> None:
        super().__init__(client)
        self.host = host
        self.asked_s = 0.0
        self._cluster = cluster

    async def answers(self, asks: Sequence[Ask]) -> Sequence[Answer]:
        slots: dict[int, list[int]] = {}
        for index, ask in enumerate(asks):
            slots.setdefault(key_slot(ask.names[0]), []).append(index)
        found: list[Answer] = [ELSEWHERE] * len(asks)
        unsure = await self._answer(asks, list(slots.values()), found)
        if unsure:
            await self._answer(asks, [[index] for part in unsure for index in part], found)
        return found

    async def _answer(self, asks: Sequence[Ask], parts: list[list[int]], found: list[Answer]) -> list[list[int]]:
        """Ask each part in a call of its own. Returns the parts that must be asked in smaller ones."""
        calls = [self._spell([asks[index] for index in part]) for part in parts]
        unsure = []
        for part, call, first in zip(parts, calls, await self._together(calls), strict=True):
            reply = first
            if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                reply = await self._cluster.meant(reply, self).asking(call)
            if isinstance(reply, MovedError):
                self._cluster.moved(reply, self)
            elif isinstance(reply, TryAgainError):
                if len(part) > 1:
                    unsure.append(part)
            elif isinstance(reply, (RedisError, OSError)):
                for index in part:
                    found[index] = unavailable(reply)
            else:
                start = 1
                for index in part:
                    found[index] = reply, start
                    start += asks[index].width
        return unsure

    async def _together(self, calls: Sequence[Call]) -> Sequence[Reply]:
        """Send calls in one go; each once, but for NOSCRIPT. Raises StoreUnavailable without a connection."""
        connection = await self._connected()
        try:
            replies = await _pipelined(connection, calls)
            for _ in range(RELOADS):
                unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                if not unknown:
                    break
                _, *again = await _pipelined(connection, [_LOAD, *(calls[number] for number in unknown)])
                for number, reply in zip(unknown, again, strict=True):
                    replies[number] = reply
        except BaseException:
            await self._drop(connection)
            raise
        if any(isinstance(reply, (RedisError, OSError)) and not isinstance(reply, ResponseError) for reply in replies):
            await self._drop(connection)
        return replies

    async def asking(self, call: Call) -> Reply:
        """Ask for keys that are about to be this server's, on a connection beside the one batches use."""
        try:
            *_, reply = await self.aside([_ASKING, call])
            if isinstance(reply, NoScriptError):
                *_, reply = await self.aside([_LOAD, _ASKING, call])
        except (RedisError, OSError) as error:
            return error
        return cast(Reply, reply)

    async def aside(self, calls: Sequence[Call]) -> Sequence[Any]:
        """Replies to calls on a connection of the client's pool. Raises RedisError, OSError without one."""
        self.asked_s = asyncio.get_running_loop().time()
        pool = self.client.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            replies = await _pipelined(connection, calls)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)
        return replies


_LOAD: Call = ("SCRIPT", "LOAD", script())
_ASKING: Call = ("ASKING",)


async def _pipelined(connection: Any, calls: Sequence[Call]) -> list[Any]:
    """Send calls together; replies and errors in their order. After an error of the network it comes for all."""
    try:
        await send(connection, *calls)
    except (RedisError, OSError) as error:
        return [error] * len(calls)
    replies: list[Any] = []
    for _ in calls:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(error)
        except (RedisError, OSError) as error:
            return replies + [error] * (len(calls) - len(replies))
    return replies


class ClusterStore:
    """Counters on all servers of a Cluster.

    Args:
        hosts: Some of its members; at least one.
        open_client: Makes a client for the server at an address.
        timeout_s: How long it may take to hear where slots are, seconds.
    """

    def __init__(
        self, hosts: Sequence[Host], open_client: Callable[[Host], "redis.asyncio.Redis"], timeout_s: float
    ) -> None:
        self.why = "Redis is away: no server of the Cluster was asked yet"
        self._hosts = hosts
        self._open = open_client
        self._timeout_s = timeout_s
        self._known: dict[Host, ClusterShard] = {}
        self._slots: list[ClusterShard | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._hearing: asyncio.Task[None] | None = None
        self._heard_s = float("-inf")
        self._context = contextvars.Context()  # the task must not live in the first request's context

    # ── where counters are ───────────────────────────────────────────────────────────────────────────────────

    def slot(self, key: bytes) -> int:
        return key_slot(key)

    def shard(self, slot: int) -> ClusterShard | None:
        return self._slots[slot]

    def shards(self) -> Sequence[ClusterShard]:
        return list({id(shard): shard for shard in self._slots if shard is not None}.values())

    def moved(self, error: MovedError, said_by: ClusterShard) -> None:
        """A slot is elsewhere than was heard."""
        self._slots[error.slot_id] = self.meant(error, said_by)

    def meant(self, error: AskError, said_by: ClusterShard) -> ClusterShard:
        """The server that a redirection names."""
        return self._at((error.host or said_by.host[0], error.port))

    def refresh(self) -> Awaitable[None] | None:
        if self._hearing is None:
            if asyncio.get_running_loop().time() - self._heard_s < REFRESH_EVERY_S:
                return None
            self._hearing = asyncio.get_running_loop().create_task(self._hear(), context=self._context)
        return asyncio.shield(self._hearing)

    def _at(self, host: Host) -> ClusterShard:
        shard = self._known.get(host)
        if shard is None:
            shard = self._known[host] = ClusterShard(self._open(host), host, self)
        return shard

    async def _hear(self) -> None:
        try:
            heard = await self._slots_as_told()
            if heard:
                await self._take(heard)
        except (RedisError, OSError, StoreUnavailable) as error:
            self.why = f"Redis is away: {error}"
        finally:
            self._heard_s = asyncio.get_running_loop().time()
            self._hearing = None

    async def _take(self, heard: "list[tuple[int, int, Host]]") -> None:
        slots: list[ClusterShard | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for start, end, host in heard:
            slots[start : end + 1] = [self._at(host)] * (end + 1 - start)
        self._slots = slots
        kept = {host for _, _, host in heard}
        rested_s = asyncio.get_running_loop().time() - FORGOTTEN_S
        for gone in [host for host, shard in self._known.items() if host not in kept and shard.asked_s < rested_s]:
            await self._known.pop(gone).client.aclose()  # not its connection for batches: its lane sees to that

    async def _slots_as_told(self) -> "list[tuple[int, int, Host]]":
        """(first slot, last slot, where) as the first says who knows of all slots, else as he who knows most."""
        hosts = {shard.host for shard in _some(self.shards())} | set(_some(self._hosts))
        asked = [asyncio.ensure_future(self._ask(self._at(host))) for host in hosts]
        most: list[tuple[int, int, Host]] = []
        covered = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                for answer in asyncio.as_completed(asked):
                    try:
                        told = await answer
                    except (RedisError, OSError) as error:
                        self.why = f"Redis is away: {error}"
                        continue
                    known = sum(end + 1 - start for start, end, _ in told)
                    if known > covered:
                        most, covered = told, known
                    if covered == REDIS_CLUSTER_HASH_SLOTS:
                        break
        except TimeoutError:
            self.why = "Redis is away: no server of the Cluster answered in time"
        finally:
            await ended(asked)
        return most

    async def _ask(self, shard: ClusterShard) -> "list[tuple[int, int, Host]]":
        (reply,) = await shard.aside([("CLUSTER", "SLOTS")])
        if isinstance(reply, (RedisError, OSError)):
            raise reply
        return [(start, end, (_text(name) or shard.host[0], port)) for start, end, (name, port, *_), *_ in reply]

    # ── what is no decision ──────────────────────────────────────────────────────────────────────────────────

    async def ping(self) -> str:
        answers = await self._of_all(lambda shard: shard.ping())
        well = [answer for answer in answers if isinstance(answer, str)]
        away = len(answers) - len(well)
        return f"{well[0]}, a cluster of {len(answers)}" + (f", of which {away} do not answer" if away else "")

    async def doubts(self) -> list[str]:
        answers = await self._of_all(lambda shard: shard.doubts())
        found = [doubt for answer in answers if isinstance(answer, list) for doubt in answer]
        return list(dict.fromkeys(found))

    async def forget(self, prefix: str, identity: str | None) -> int:
        """On all servers, though one has them: they may be on their way to another, and then it is done again."""
        found = 0
        for last in (False, True):
            answers = await self._of_all(lambda shard: shard.forget(prefix, identity))
            found += sum(answer for answer in answers if isinstance(answer, int))
            errors = [answer for answer in answers if isinstance(answer, StoreUnavailable)]
            if not errors:
                break
            if last:
                raise errors[0]
        return found

    async def board(
        self, key: bytes, after: bytes, message: bytes, keep_ms: int, most: int
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """On the server that has its slot, wherever that is by now: what a redirection answers was not done."""
        call = board_call(key, after, message, keep_ms, most)
        for _ in range(REDIRECTIONS):
            shard = self.shard(self.slot(key))
            if shard is None:
                heard = self.refresh()
                if heard is not None:
                    await heard
                shard = self.shard(self.slot(key))
            if shard is None:
                break
            try:
                (reply,) = await shard.aside([call])
                if isinstance(reply, NoScriptError):
                    _, reply = await shard.aside([BOARD_LOAD, call])
            except (RedisError, OSError) as error:
                self.refresh()
                raise unavailable(error) from error
            if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                _, _, reply = await self.meant(reply, shard).aside([BOARD_LOAD, _ASKING, call])
            if isinstance(reply, MovedError):
                self.moved(reply, shard)
            elif isinstance(reply, (RedisError, OSError)):
                self.refresh()
                raise unavailable(reply) from reply
            else:
                return read_board(reply)
        raise StoreUnavailable(self.why, reason="connection", maybe_done=False)

    async def _of_all(self, do: Callable[[ClusterShard], Awaitable[Any]]) -> list[Any]:
        """What each server answers, or its StoreUnavailable, which is raised if none answers."""
        heard = self.refresh()
        if heard is not None:
            await heard
        shards = self.shards()
        if not shards:
            raise StoreUnavailable(self.why, reason="connection", maybe_done=False)
        answers = await asyncio.gather(*map(do, shards), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StoreUnavailable):
                raise answer
        errors = [answer for answer in answers if isinstance(answer, StoreUnavailable)]
        if len(errors) == len(answers):
            raise errors[0]
        return answers

    async def aclose(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)
        known, self._known = self._known, {}
        self._slots = [None] * REDIS_CLUSTER_HASH_SLOTS
        for shard in known.values():
            with contextlib.suppress(RedisError, OSError):
                await shard.aclose()


def _some(of: Sequence[Any]) -> list[Any]:
    return random.sample(of, min(ASKED_AT_ONCE, len(of)))


def _text(name: bytes | str | None) -> str:
    """A host as a server tells it; "" when it does not know by which name it is reached."""
    text = name.decode() if isinstance(name, bytes) else name or ""
    return "" if text == "?" else text


class ClusterOpener:
    """Opens the store per event loop. Arguments and errors as of `RedisOpener`."""

    def __init__(self, several: Several, options: dict[str, Any], timeout_s: float) -> None:
        self._several = several
        self._options = options
        self._timeout_s = timeout_s
        self._client(several.hosts[0])  # to hear now of what cannot be meant

    def __call__(self) -> ClusterStore:
        return ClusterStore(self._several.hosts, self._client, self._timeout_s)

    def _client(self, host: Host) -> "redis.asyncio.Redis":
        return RedisOpener(self._several.at(host), self._options, self._timeout_s).client()

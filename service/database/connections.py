"""The connections of a process to Supabase: HTTP/1.1, one call at a time each, kept while they are young."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from urllib.request import getproxies, proxy_bypass

import httpx

from service.database.patience import Patience


class Connections:
    """At most so many connections, the one used last first; those left over grow old and are closed.

    Each is an httpx transport of one. A single one with 40 connections looks at all of them, twice, for every call:
    two thirds of a busy event loop (measured).
    """

    def __init__(self, url: httpx.URL, most: int, patience: Patience) -> None:
        self._patience = patience
        self._proxy = _proxy(url)
        self._ssl = httpx.create_ssl_context()  # 20 ms: once, not for each
        self._free = asyncio.Semaphore(most)
        self._idle: deque[tuple[httpx.AsyncHTTPTransport, float]] = deque()  # the oldest first
        self._all: set[httpx.AsyncHTTPTransport] = set()

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """A connection to oneself. Raises httpx.PoolTimeout."""
        try:
            async with asyncio.timeout(self._patience.pool_s):
                await self._free.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("") from None
        try:
            await self._close_oldest()
            connection = self._idle.pop()[0] if self._idle else self._opened()
            try:
                yield connection
            finally:
                self._idle.append((connection, time.monotonic()))
        finally:
            self._free.release()

    def _opened(self) -> httpx.AsyncHTTPTransport:
        connection = httpx.AsyncHTTPTransport(
            verify=self._ssl,
            http1=True,
            http2=False,  # one GOAWAY fails all calls in flight: 195 of 3,000 at 40 callers (measured)
            limits=httpx.Limits(max_connections=1, keepalive_expiry=self._patience.keep_alive_s),
            proxy=self._proxy,
        )
        self._all.add(connection)
        return connection

    async def _close_oldest(self) -> None:
        if self._idle and time.monotonic() - self._idle[0][1] > self._patience.keep_alive_s:
            connection, _ = self._idle.popleft()
            self._all.discard(connection)
            await connection.aclose()

    async def aclose(self) -> None:
        self._idle.clear()
        while self._all:
            await self._all.pop().aclose()


def _proxy(url: httpx.URL) -> str | None:
    """The environment's proxy, for https only: there it carries a tunnel, over http it would read the key."""
    if url.scheme != "https" or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get("https") or proxies.get("all")

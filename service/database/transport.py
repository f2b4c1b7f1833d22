"""How calls travel to Supabase: within a deadline, repeated where that is safe, failures told in our words.

All parts of supabase-py (PostgREST, storage, functions, auth) speak through one httpx client; this is its transport, so
whoever uses the client writes plain supabase code. Repeated are calls that cannot do anything twice:

- one that was never sent (the connection was refused), whatever its method;
- GET, HEAD and OPTIONS, and what carries an `Idempotency-Key`, after a connection that broke or a 502, 503, 504 or 52x.

DELETE and PUT are not, though HTTP calls them idempotent: PostgREST's are conditions over rows, and between two of
them others write; a repeated DELETE would also answer "nothing deleted". Nor is a call repeated that ran out of time:
who is slow is not asked twice. A function's own 5xx is its answer, and is neither repeated nor translated.

The service key is filled in here, on the way out and for Supabase's own origin only. Nothing above ever holds it, no
object of supabase-py and no header it keeps: they carry a word in its place. The word is random, and who acts as the
service says it with a scheme of its own: a token that a caller sends, whatever it is, cannot become the key.
"""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import tenacity
from pydantic import SecretStr

from service.database.connections import Connections
from service.database.patience import Patience
from service.errors import ConfigurationError, DatabaseTimeout, DatabaseUnavailable
from service.logs import events

log = events()

IDEMPOTENCY_KEY = "Idempotency-Key"

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_AWAY = frozenset({502, 503, 504, 520, 521, 522, 523, 524, 530})
"""Of a gateway that got no answer from behind it; from 520 on of Cloudflare, which stands before supabase.co."""

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


class _Failure(Exception):
    """One attempt came to nothing.

    Attributes:
        sent: The request may have reached Supabase.
        slow: It was a matter of time.
        broken: The connection, or a gateway; another attempt may do better.
        retry_after_s: When Supabase wants to be asked again; None = it did not say.
    """

    def __init__(
        self, words: str, *, sent: bool = True, slow: bool = False, broken: bool = False, after_s: float | None = None
    ) -> None:
        super().__init__(words)
        self.sent = sent
        self.slow = slow
        self.broken = broken
        self.retry_after_s = after_s


class Transport(httpx.AsyncBaseTransport):
    """The transport of the one httpx client; made inside the event loop that uses it.

    Attributes:
        word: What stands for the key in `apikey`, and in `Authorization: Bearer` before a user has signed in.
        service: The value of `Authorization` by which a client acts as the service.

    Raises, of every call:
        DatabaseTimeout: No connection, or no whole answer, in time.
        DatabaseUnavailable: The connection broke, or a gateway answered in Supabase's stead.
    """

    def __init__(self, url: str, key: SecretStr, patience: Patience, connections: int) -> None:
        self._url = httpx.URL(url)
        self._key = key
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._warned_s = -1.0
        self.word = f"hidden-{secrets.token_urlsafe(16)}"
        self.service = f"Hidden {secrets.token_urlsafe(16)}"
        self._connections = Connections(self._url, connections, patience)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, read whole."""
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError("this Supabase client belongs to another event loop; open one in each")
        call = _Call(request, self._patience)
        try:
            async with asyncio.timeout_at(call.due):
                return await self._attempts(call, self._filled(request))
        except TimeoutError:
            words = f"no answer within {self._patience.deadline_s:g} s in all"
            call.failed(_Failure(words, sent=call.on_its_way, slow=True))
        except _Failure as failure:
            call.failed(failure)
        error = call.told()  # out here, so that it does not carry httpx's, whose frames hold the request as it was sent
        self._warn(error)
        raise error

    async def _attempts(self, call: "_Call", request: httpx.Request) -> httpx.Response:
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(call.repeats),
            wait=lambda _: call.wait_s,
            stop=tenacity.stop_after_attempt(self._patience.attempts),
            before_sleep=lambda _: log.info("database_again", call=call.name, wait_s=round(call.wait_s, 3)),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                return await self._attempt(call, request)
        raise AssertionError("tenacity ends by returning or raising")

    async def _attempt(self, call: "_Call", request: httpx.Request) -> httpx.Response:
        call.on_its_way = False
        try:
            async with self._connections.one() as connection:
                call.on_its_way = True
                response = await connection.handle_async_request(request)
                try:
                    body = await response.aread()
                finally:
                    await response.aclose()
        except httpx.RequestError as error:
            failure = _failure(error, self._patience)
        else:
            if response.status_code not in _AWAY or request.url.path.startswith("/functions/"):
                return _whole(response, body)
            failure = _answered(response)
        raise failure

    def _filled(self, request: httpx.Request) -> httpx.Request:
        """The request as it goes out: with the key, if it goes to Supabase."""
        headers, url = request.headers.copy(), request.url
        if (url.scheme, url.netloc) == (self._url.scheme, self._url.netloc):
            key = self._key.get_secret_value()
            if headers.get("apikey") == self.word:
                headers["apikey"] = key
            if headers.get("authorization") == self.service:
                headers["authorization"] = f"Bearer {key}"
            elif headers.get("authorization") == f"Bearer {self.word}":
                if not url.path.startswith("/auth/v1/"):
                    raise ConfigurationError("this client is for one user, and nobody has signed in with it")
                headers["authorization"] = f"Bearer {key}"
        return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)

    def _warn(self, error: DatabaseUnavailable) -> None:
        now = time.monotonic()
        if now - self._warned_s > 1:  # an outage is one line a second, not one a call
            self._warned_s = now
            log.warning("database_unavailable", error=str(error))

    async def aclose(self) -> None:
        await self._connections.aclose()


class _Call:
    """One call of the user's, over all its attempts."""

    def __init__(self, request: httpx.Request, patience: Patience) -> None:
        self.name = f"{request.method} {request.url.path}"
        self.due = asyncio.get_running_loop().time() + patience.deadline_s
        self._writes = request.method not in _READS
        rereadable = isinstance(request.stream, httpx.ByteStream)  # a file that was sent is at its end
        self._repeatable = rereadable and (not self._writes or IDEMPOTENCY_KEY in request.headers)
        self._failures: list[_Failure] = []
        self.wait_s = 0.0  # until the next attempt
        self.on_its_way = False  # whether the attempt that is being made may have reached Supabase

    def repeats(self, error: BaseException) -> bool:
        """Whether there is another attempt, in `wait_s`. A Retry-After past the deadline ends the call."""
        if not isinstance(error, _Failure):
            return False
        self._failures.append(error)
        if not error.broken or (error.sent and not self._repeatable):
            return False
        backoff_s = random.uniform(0, 0.05 * 2 ** len(self._failures))
        self.wait_s = max(backoff_s, (error.retry_after_s or 0) + backoff_s / 2)
        return asyncio.get_running_loop().time() + self.wait_s < self.due

    def failed(self, failure: _Failure) -> None:
        if failure not in self._failures:
            self._failures.append(failure)

    def told(self) -> DatabaseUnavailable:
        """What came of it, for the caller."""
        for failure in self._failures:
            failure.__traceback__ = None  # its frames hold the request as it was sent
        last = self._failures[-1]
        maybe_done = self._writes and any(failure.sent for failure in self._failures)
        words = f"supabase {self.name}: {last}"
        if len(self._failures) > 1:
            words += f", attempt {len(self._failures)}"
        if self._writes:
            words += "; it may or may not have been carried out" if maybe_done else "; it was never sent"
        kind = DatabaseTimeout if last.slow else DatabaseUnavailable
        after_s = 1 if last.retry_after_s is None else last.retry_after_s
        return kind(words, maybe_done=maybe_done, retry_after_s=after_s)


def _failure(error: httpx.RequestError, patience: Patience) -> _Failure:
    """httpx's exception in our words; its own may quote a header, so they are not repeated."""
    sent, slow = not isinstance(error, _NEVER_SENT), isinstance(error, httpx.TimeoutException)
    match error:
        case httpx.ConnectTimeout():
            words = f"no connection within {patience.connect_s:g} s"
        case httpx.PoolTimeout():
            words = f"all connections were busy for {patience.pool_s:g} s"
        case httpx.ReadTimeout():
            words = f"no answer within {patience.read_s:g} s"
        case httpx.WriteTimeout():
            words = f"it could not be sent within {patience.write_s:g} s"
        case httpx.ConnectError() | httpx.ProxyError():
            words = f"cannot connect: {_reason(error)}"
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            words = "the connection was closed without a whole answer"
        case httpx.DecodingError():
            words = "the answer cannot be decoded"
        case _:
            words = f"it cannot be sent: {type(error).__name__}"
    return _Failure(words, sent=sent, slow=slow, broken=isinstance(error, _BROKEN))


def _reason(error: BaseException) -> str:
    """Why connecting failed: the system's words, which httpx keeps several exceptions down."""
    found: BaseException | None = error
    reason = str(error)
    while found is not None:
        if isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if isinstance(found, ssl.SSLError | socket.gaierror):  # their numbers are not the system's
            reason = found.strerror or reason
        elif isinstance(found, OSError) and found.errno:
            reason = os.strerror(found.errno)
        found = found.__cause__ or found.__context__
    return reason


def _answered(response: httpx.Response) -> _Failure:
    words = f"it answered {response.status_code}"
    with contextlib.suppress(ValueError, TypeError, KeyError):
        words += f" ({response.json()['code']:.20})"  # PostgREST says why, e.g. PGRST002: no schema cache yet
    return _Failure(words, broken=True, after_s=_retry_after_s(response.headers.get("retry-after", "")))


def _retry_after_s(value: str) -> float | None:
    """Retry-After, seconds or a date; None when it says nothing usable."""
    if value.strip().isdecimal():
        return min(int(value), 86_400)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()), 86_400)
    except ValueError:
        return None


def _whole(response: httpx.Response, body: bytes) -> httpx.Response:
    """The same answer, its body read and decoded."""
    headers = response.headers.copy()
    if headers.pop("content-encoding", None):
        headers.pop("content-length", None)
    extensions: dict[str, Any] = dict(response.extensions)
    return httpx.Response(response.status_code, headers=headers, content=body, extensions=extensions)

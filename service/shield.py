"""The shield: the outermost ASGI middleware. Whatever an app does, its client gets an answer and keeps its connection.

    request → refuse   503 beyond `max_in_flight`, 413 beyond `max_body_bytes`: before the app runs
            → watch    one timer an event loop: 504 when no byte has come in time, a cut when a stream falls silent
            → guard    an exception is a 500; nothing is raised at the server once a response is whole
            → response with `x-request-id`; one that the app sends itself is left

Every answer of the shield's own is problem+json with the request id. What is raised at the server on purpose cuts the
connection, so that the client notices: a response that began and cannot be ended.

A stream is a response without Content-Length, unless it has no body anyway (HEAD, 204, 205, 304); it is known by its
first message. It leaves `in_flight` there and is one of `streams` until it ends.

What runs out of time is cancelled through an anyio scope: a native cancel would break into `to_thread.run_sync` and
leave its thread behind, uncounted (750 of them, measured; with a scope the pool's 40). The client has its 504 in time
even while such a thread is stuck; a stream is cut when its thread is back. Work is cancelled once, as by asyncio, so
that a `finally:` may still await, and once more each second while it lasts. Deadlines may be kept 1 % late, or 0.25 s.

For asyncio, with or without uvloop. Counts and limits are per event loop, and a worker has one.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import os
import re
import secrets
import sys
import time
from asyncio import AbstractEventLoop, CancelledError, get_running_loop
from collections.abc import Iterable, Mapping
from contextvars import Context
from typing import Any

import anyio
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PROBLEM_JSON, REDUCED_CAPACITY, ConfigurationError, OnequotaError, problem
from service.logs import REQUEST_ID, events

log = events()

REQUEST_ID_KEY = "onequota.request_id"
"""Where the scope keeps it for a shield further in: `scope["state"]` is the app's to write."""

CLIENT_LEFT = 499
"""What the access log says of a request whose client left before there was an answer (nginx's number)."""

_SANE_ID = re.compile(rb"[!#-&(-;=?-\[\]-_a-~]{1,128}")
"""Visible ASCII without quotes of any kind, backslashes and angle brackets: it travels into logs, JSON and pages."""

_NO_NAME = re.compile(rb'[\x00-\x20\x7f()<>@,;:\[\]={}\\"]').search
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_BODILESS = frozenset({204, 205, 304})
_STOCK_500 = b"Internal Server Error"
_LAST = frozenset({"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"})
_AGAIN_S = 1.0
_SHED_LINE_S = 1.0
_BREATH = 16
"""Chunks after which others have a turn. uvicorn's `send` does not wait for a client that reads fast, or has left: one
generator that awaits nothing else would hold the worker for ever."""

# How far a response is.
_WAITING, _STARTED, _COMPLETE = 0, 1, 2
_ANSWERED = 3  # by the shield, in the app's place
_CUT = 4  # the connection must go


class ResponseCut(OnequotaError):
    """Raised at the server so that it closes a connection whose response cannot be ended. The reason is logged."""


class Shield:
    """The middleware. The runner puts it around any app; elsewhere `app = Shield(app)` or `app.add_middleware(Shield)`.

    Args:
        app: The application behind it.
        request_timeout_s: Time to first byte, from the last byte of the request that came, else 504; 0 = for ever.
            For exempt paths too: a probe that hangs would leave one more task behind each time.
        stream_idle_s: Longest time that nothing moves in a response that has begun, else it is cut; 0 = for ever.
        max_in_flight: Requests served at once, before their first byte; more are answered 503; 0 = any.
        max_streams: Responses streamed at once; more are answered 503; 0 = any.
        max_body_bytes: Largest request body, else 413; 0 = any.
        exempt: Paths below the app's root that are neither counted nor shed.
        access_log: Log an event `request` for each.

    Attributes:
        shed: Requests answered 503 since it was made.
        timeouts: Requests answered 504.

    Raises:
        ConfigurationError: A value cannot be meant.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        request_timeout_s: float = 30.0,
        stream_idle_s: float = 60.0,
        max_in_flight: int = 100,
        max_streams: int = 0,
        max_body_bytes: int = 0,
        exempt: Iterable[str] = ("/health", "/ready"),
        access_log: bool = False,
    ) -> None:
        self.app = app
        self.request_timeout_s = _seconds("request_timeout_s", request_timeout_s)
        self.stream_idle_s = _seconds("stream_idle_s", stream_idle_s)
        self.max_in_flight = _whole("max_in_flight", max_in_flight)
        self.max_streams = _whole("max_streams", max_streams)
        self.max_body_bytes = _whole("max_body_bytes", max_body_bytes)
        self.exempt = _paths("exempt", exempt)
        if not isinstance(access_log, bool):
            raise _unmeant("access_log", access_log, "True or False")
        self.access_log = access_log
        self.shed = 0
        self.timeouts = 0
        self._watches: dict[AbstractEventLoop, _Watch] = {}
        self._latest: _Watch | None = None  # nearly always the one that is wanted
        logging.getLogger("uvicorn.error").addFilter(_without_cuts)

    @property
    def in_flight(self) -> int:
        """Requests under way, before their first byte if they stream."""
        return sum(watch.in_flight for watch in [*self._watches.values()])

    @property
    def streams(self) -> int:
        """Responses that stream."""
        return sum(watch.streams for watch in [*self._watches.values()])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            await (self._websocket if kind == "websocket" else self.app)(scope, receive, send)
            return
        watch = self._latest
        if watch is None or watch.loop is not get_running_loop():
            watch = self._watch()
        headers = dict(scope["headers"])
        request_id = _identify(scope, headers)
        token = REQUEST_ID.set(request_id)
        exchange = _Exchange(watch, scope, receive, send, request_id, headers)
        try:
            if self.max_body_bytes and _announced(headers) > self.max_body_bytes:
                # Not by Starlette's RequestBodyLimitMiddleware (1.10): it answers text/plain, and looks at
                # Content-Length only when the app reads or answers, so that an upload in vain runs through the app.
                await exchange.answer_too_large()
            elif watch.admits(exchange):
                await self._serve(exchange)
            else:
                await exchange.answer_shed("too many requests are under way; try again in a second")
        finally:
            if exchange.state != _COMPLETE:
                exchange.end()
        # Not when it raises: the server's own line about that should bear the id.
        REQUEST_ID.reset(token)

    async def _serve(self, exchange: "_Exchange") -> None:
        try:
            with exchange.cancel:
                try:
                    await self.app(exchange.scope, exchange.receive, exchange.send)
                except Exception as error:
                    if await exchange.failed(error):
                        raise
                except CancelledError as error:
                    if _is_cancelled() or await exchange.failed(error):  # else something it awaited had been cancelled
                        raise
                else:
                    if exchange.state != _COMPLETE:
                        await exchange.returned()
        except CancelledError:
            if exchange.state <= _COMPLETE or _is_cancelled():
                raise
        except Exception as error:
            if exchange.state not in (_COMPLETE, _ANSWERED):
                raise
            exchange.log_error(error)  # the app left a scope of anyio open
        if exchange.state > _COMPLETE:
            await exchange.settled()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _identify(scope, dict(scope["headers"]))

        async def send_with_id(message: Message) -> None:
            if message["type"] in {"websocket.accept", "websocket.http.response.start"}:
                headers = list(message.get("headers") or ())
                if not any(name.lower() == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id.encode()))
                message = {**message, "headers": headers}
            await send(message)

        token = REQUEST_ID.set(request_id)
        await self.app(scope, receive, send_with_id)
        REQUEST_ID.reset(token)

    def _watch(self) -> "_Watch":
        """The running loop's; those of loops that have ended are forgotten (a test client makes one a request)."""
        loop = get_running_loop()
        for other in [*self._watches]:
            if other.is_closed():
                self._watches.pop(other, None)
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = _Watch(self, loop)
        self._latest = watch
        return watch


class _Watch:
    """What is open on one event loop, and the one timer over it.

    Everything that is open is looked at when the first may be due, which is seldom: under steady traffic of short
    requests once in 30 s. Ten thousand open streams take 1 ms then (measured). Without traffic there is no timer.
    """

    def __init__(self, shield: Shield, loop: AbstractEventLoop) -> None:
        self.shield = shield
        self.loop = loop
        self.scope_class = type(anyio.CancelScope())  # asyncio's: asking anyio which is 1 µs a request
        self.in_flight = 0
        self.streams = 0
        self._open: set[_Exchange] = set()
        self._stopped: set[_Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf
        self._context = Context()  # a timer must not live in the first request's context
        self._shed = 0
        self._shed_timer: asyncio.TimerHandle | None = None
        deadlines = [seconds for seconds in (shield.request_timeout_s, shield.stream_idle_s) if seconds]
        self._shortest_s = min(deadlines, default=math.inf)
        self._grain_s = min(max(self._shortest_s / 100, 0.005), 0.25)

    def admits(self, exchange: "_Exchange") -> bool:
        """Whether there is room for one more; then it is counted and watched."""
        shield, path = self.shield, exchange.scope["path"]
        root = exchange.scope.get("root_path") or ""
        if path not in shield.exempt and (not root or path.removeprefix(root) not in shield.exempt):
            if 0 < shield.max_in_flight <= self.in_flight:
                return False
            exchange.counted = True
            self.in_flight += 1
        self._open.add(exchange)
        if self._timer is None:
            self._wake_at(exchange.since_s + self._shortest_s)
        return True

    def remove(self, exchange: "_Exchange") -> None:
        self._open.discard(exchange)

    def stop(self, exchange: "_Exchange") -> None:
        """Cancel its work; again each second until it has ended."""
        _cancel(exchange.cancel)
        exchange.since_s = self.loop.time()
        self._stopped.add(exchange)
        again_s = exchange.since_s + _AGAIN_S
        if again_s < self._due_s:
            self._wake_at(again_s)

    def end(self, exchange: "_Exchange") -> None:
        self._stopped.discard(exchange)

    def _wake_at(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(due_s, self._look, context=self._context) if due_s < math.inf else None
        self._due_s = due_s

    def _look(self) -> None:
        """End what is due, cancel again what would not end, and come back when the next may be due."""
        now_s = self.loop.time()
        waiting_s, idle_s = self.shield.request_timeout_s or math.inf, self.shield.stream_idle_s or math.inf
        next_s = now_s + self._shortest_s  # of a stream that begins until then
        try:
            for exchange in [*self._open]:
                due_s = exchange.since_s + (waiting_s if exchange.state == _WAITING else idle_s)
                if due_s <= now_s:
                    self._open.discard(exchange)
                    exchange.expire()
                else:
                    next_s = min(next_s, due_s)
            for exchange in self._stopped:
                if exchange.since_s + _AGAIN_S <= now_s:
                    exchange.since_s = now_s
                    _cancel_again(exchange.cancel)
                next_s = min(next_s, exchange.since_s + _AGAIN_S)
        finally:
            self._wake_at(max(next_s, now_s + self._grain_s) if self._open or self._stopped else math.inf)

    def log_shed(self) -> None:
        """Count a refusal: the first is logged at once, the others with their number, a line a second at most."""
        self._shed += 1
        if self._shed_timer is None:
            self._context.copy().run(self._log_shed)

    def _log_shed(self) -> None:
        self._shed_timer = None
        if self._shed:
            log.warning("shed", count=self._shed, in_flight=self.in_flight, streams=self.streams)
            self._shed = 0
            self._shed_timer = self.loop.call_later(_SHED_LINE_S, self._log_shed, context=self._context)


class _Exchange:
    """One request and its response, as the app's `receive` and `send` see it.

    Attributes:
        counted: It is one of those in flight; what is exempt is not.
        since_s: When something last moved: it came, a part of its body came, a chunk went. Loop time.
        cancel: The scope in which the app runs.
        over: The app has ended.
    """

    def __init__(
        self,
        watch: _Watch,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self._watch = watch
        self._shield = shield = watch.shield
        self.scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._inside = scope.get("app")  # set: we are one of that app's middlewares; else we are around it
        self._expects = (
            b"expect" in headers
            and headers[b"expect"].lower() == b"100-continue"
            and scope.get("http_version", "1.1").startswith("1.")  # later ones know no such header as we would send
        )
        self.since_s = watch.loop.time()
        self.counted = self.over = False
        self.state = _WAITING
        self.cancel = watch.scope_class()
        self._begun_s = time.perf_counter() if shield.access_log else 0.0
        self._status = CLIENT_LEFT
        self._size = self._chunks = 0
        self._asked = self._gone = self._streams = self._trailers = False
        self._held: list[Message] | None = None
        self._farewell: OSError | None = None
        self._sender: asyncio.Task[None] | None = None

    # What the app calls

    async def receive(self) -> Message:
        if self.state <= _COMPLETE:
            self._asked = True
            message = await self._receive()
            if self.state <= _COMPLETE:
                if message["type"] != "http.request":
                    self._gone = True
                    return message
                self.since_s = self._watch.loop.time()
                most = self._shield.max_body_bytes
                self._size += len(message.get("body", b"")) if most else 0
                if self._size <= most:
                    return message
                await self._overflow()
        await asyncio.sleep(0)  # an app that asks in a loop gives way to others, and can be cancelled
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        state, kind = self.state, message["type"]
        try:
            if state == _STARTED and kind == "http.response.body":
                if message.get("more_body", False):
                    if moves := message.get("body"):
                        self.since_s = self._watch.loop.time()
                    await self._send(message)
                    if moves:
                        self.since_s = self._watch.loop.time()
                    self._chunks += 1
                    if not self._chunks % _BREATH:
                        await asyncio.sleep(0)
                else:
                    await self._send(message)
                    if not self._trailers:
                        self._complete()
            elif state == _WAITING and kind == "http.response.start" and self._held is None:
                start, streams = self._head(message)
                if _is_stock_500(start):
                    self._held = [start]  # ours to answer, if the exception is raised at us too
                elif self._begins(start, streams):
                    await self._send(start)
                else:
                    await self._refuse_stream()
            elif state == _WAITING and kind == "http.response.body":
                await self._body_at_first(message)
            elif state <= _COMPLETE:
                if kind in _LAST:
                    self._watch.remove(self)  # the server sends the file; we cannot see it move
                await self._send(message)
                if kind in _LAST and not message.get("more_body", message.get("more_trailers", False)):
                    self._complete()
            else:
                await asyncio.sleep(0)  # a generator that never awaits anything else would hold the loop for ever
        except OSError as error:  # the server's, if it speaks ASGI 2.4: nobody is there any more
            self._gone, self._farewell = True, error
            raise

    def _head(self, message: Message) -> tuple[Message, bool]:
        """The first message with our headers, and whether it begins a stream.

        Raises:
            RuntimeError: The server could not send it. uvicorn would notice when it is too late for any answer.
        """
        status, headers = message["status"], list(message.get("headers") or ())
        if not 200 <= status <= 599:
            raise RuntimeError(f"the app answered with status {status}; wanted 200 to 599")
        sized = named = False
        for name, value in headers:
            if _NO_VALUE(value) or _NO_NAME(name):
                raise RuntimeError(f"the app answered with header {name!r}, whose name or value cannot be sent")
            length = len(name)
            if length == 14 and name.lower() == b"content-length":
                if not value.isdigit():
                    raise RuntimeError(f"the app answered with content-length {value!r}")
                sized = True
            elif length == 12 and name.lower() == b"x-request-id":
                named = True
        if not named:
            headers.append((b"x-request-id", self._request_id.encode()))
        if self._expects and not self._asked:  # the body may come or not: what follows could be taken for it
            headers.append((b"connection", b"close"))
        return {**message, "headers": headers}, not sized and is_stream(status, self.scope["method"])

    def _begins(self, start: Message, streams: bool) -> bool:
        """Whether the response may begin; then it has, as far as the counts and deadlines go."""
        watch = self._watch
        if streams and self.counted:
            if 0 < self._shield.max_streams <= watch.streams:
                return False
            self.counted = False
            watch.in_flight -= 1
            self._streams = True
            watch.streams += 1
        self.state = _STARTED
        self._status = start["status"]
        if "trailers" in start:
            self._trailers = start["trailers"]
        self.since_s = watch.loop.time()
        return True

    async def _refuse_stream(self) -> None:
        await self.answer_shed("too many responses are being streamed; try again in a second")
        self.stop()
        await asyncio.sleep(0)

    async def _body_at_first(self, message: Message) -> None:
        """A body although nothing has been sent: it belongs to what is held back, or it is a mistake."""
        held = self._held
        if held is None:
            raise RuntimeError("the app sent http.response.body before http.response.start")
        stock = message.get("body", b"") == _STOCK_500 and not message.get("more_body", False)
        if stock and len(held) == 1:
            held.append(message)
        else:
            await self._release()
            await self.send(message)

    async def _release(self) -> None:
        """Send what was held back."""
        held, self._held = self._held or [], None
        start, *body = held
        self._begins(start, False)
        await self._send(start)
        for message in body:
            await self.send(message)

    async def _overflow(self) -> None:
        """More body than is allowed has come."""
        if self.state == _WAITING:
            await self.answer_too_large()
        elif self.state == _STARTED:
            self.state = _CUT
        self.stop()

    def _complete(self) -> None:
        if self.state == _STARTED:
            self.state = _COMPLETE
            self.leave()

    def end(self) -> None:
        """Nothing of the app runs any more."""
        self.leave()
        self.over = True
        self._watch.end(self)

    def stop(self) -> None:
        """The app has nothing left to say."""
        if not self.over:
            self._watch.stop(self)

    def leave(self) -> None:
        """Out of the counts, and out of the deadlines' reach. What runs on from here is background."""
        watch = self._watch
        watch.remove(self)
        if self.counted:
            self.counted = False
            watch.in_flight -= 1
        if self._streams:
            self._streams = False
            watch.streams -= 1
        if self._begun_s:
            self._log_access()

    # How the app ended

    async def failed(self, error: BaseException) -> bool:
        """Make the best of an exception. Whether it must be raised at the server: it shall cut the connection."""
        state = self.state
        if self._gone and (error is self._farewell or _is_departure(error)):
            return False
        if state == _STARTED:
            return True  # the server logs it
        self.log_error(error)
        if state == _WAITING:
            self._held = None
            if self._inside is None or not await self._answered_by_app(error):
                await self._answer(500, "the server failed on this request; its log tells why, under the request id")
        return False

    async def returned(self) -> None:
        """The app is done, and its response is not."""
        if self._held is not None and self.state == _WAITING:
            await self._release()
        if self._gone:
            return
        if self.state == _WAITING:
            log.error("no_response", **self._named())
            await self._answer(500, "the server gave no answer to this request")
        elif self.state == _STARTED:
            log.error("response_not_ended", **self._named())
            self.state = _CUT

    async def settled(self) -> None:
        """The shield has had the last word. Raises ResponseCut if the connection must go."""
        if self._sender is not None:
            await asyncio.wait([self._sender])
            self._sender.result()
        if self.state == _CUT:
            raise ResponseCut("the response could not be ended; its connection is closed")

    async def _answered_by_app(self, error: BaseException) -> bool:
        """As one of an app's middlewares we stand before its own 500 handler: let that answer, as it would have."""
        handlers = getattr(self._inside, "exception_handlers", {})
        handler = handlers.get(500) or handlers.get(Exception)
        debug = getattr(self._inside, "debug", False)
        if handler is None and not debug:
            return False

        async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise error

        try:
            await ServerErrorMiddleware(failing, handler, debug)(self.scope, self.receive, self.send)
        except Exception as raised:
            if raised is not error:
                self.log_error(raised)
        if self._held is not None:
            await self._release()
        return self.state != _WAITING

    # What the shield says

    def expire(self) -> None:
        """The deadline has passed."""
        token = REQUEST_ID.set(self._request_id)
        if self.state == _WAITING:
            self.state = _ANSWERED  # now: what the app sends from here on is too late
            self._shield.timeouts += 1
            self._sender = self._watch.loop.create_task(self._answer_late())
            log.warning("request_timeout", **self._named(), timeout_s=self._shield.request_timeout_s)
        else:
            self.state = _CUT
            self.stop()
            log.warning("stream_idle", **self._named(), idle_s=self._shield.stream_idle_s)
        REQUEST_ID.reset(token)

    async def _answer_late(self) -> None:
        try:
            await self._answer(504, f"no answer within {self._shield.request_timeout_s:g} s")
        finally:
            self.stop()

    async def answer_shed(self, detail: str) -> None:
        self._shield.shed += 1
        self._watch.log_shed()
        await self._answer(503, detail, type_=REDUCED_CAPACITY, headers=[(b"retry-after", b"1")])

    async def answer_too_large(self) -> None:
        await self._answer(413, f"the body of this request is too large; at most {self._shield.max_body_bytes} bytes")

    async def _answer(
        self, status: int, detail: str, *, type_: str = "about:blank", headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer in the app's place. A client that does not even take this is cut off."""
        body = problem(status, detail, type_=type_, extra={"request_id": self._request_id})
        head = [
            (b"content-type", PROBLEM_JSON.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            *headers,
        ]
        start, _ = self._head({"type": "http.response.start", "status": status, "headers": head})
        self.state, self._status, self._held = _CUT, status, None
        self._watch.remove(self)
        with contextlib.suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(self._shield.stream_idle_s or None):
                await self._send(start)
                await self._send({"type": "http.response.body", "body": body, "more_body": False})
                self.state = _ANSWERED
        self.leave()

    def log_error(self, error: BaseException) -> None:
        log.error("unhandled_exception", **self._named(), exc_info=error)

    def _log_access(self) -> None:
        duration_ms = round((time.perf_counter() - self._begun_s) * 1000, 1)
        self._begun_s = 0.0  # once
        client = self.scope.get("client")
        log.info(
            "request",
            **self._named(),
            status=self._status,
            duration_ms=duration_ms,
            client=client[0] if client else None,
        )

    def _named(self) -> dict[str, Any]:
        return {"method": self.scope["method"], "path": self.scope["path"]}


def is_stream(status: int, method: str) -> bool:
    """Whether a response without Content-Length has a body of unknown length."""
    return method != "HEAD" and status not in _BODILESS


def sane_request_id(value: bytes | None) -> str | None:
    """The client's `x-request-id`, if it is 1 to 128 visible ASCII characters that need no escape anywhere."""
    return value.decode() if value and _SANE_ID.fullmatch(value) else None


def _identify(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    """The request's id: an outer shield's, else the client's, else a new one. The app finds it in its state."""
    request_id: str | None = scope.get(REQUEST_ID_KEY)
    if request_id is None:
        request_id = sane_request_id(headers.get(b"x-request-id")) or f"{_prefix}-{next(_numbers):x}"
        scope[REQUEST_ID_KEY] = request_id
    state = scope.get("state")
    if state is None:
        state = scope["state"] = {}
    state["request_id"] = request_id
    return request_id


_numbers = itertools.count(1)
_prefix = secrets.token_hex(6)


def _renew() -> None:
    """A forked worker's ids are its own."""
    global _prefix  # noqa: PLW0603
    _prefix = secrets.token_hex(6)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _is_cancelled() -> bool:
    """Whether somebody cancelled this very task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _cancel(scope: anyio.CancelScope) -> None:
    """Cancel once what runs in `scope`; what waits for a thread, when that is back.

    anyio goes on cancelling at every turn of the loop. Then no `finally:` could await, and work that swallows
    the cancellation would keep a core busy for as long as it lasts. Should anyio's insides move, it does that again.
    """
    scope.cancel()
    _calm(scope)
    get_running_loop().call_soon(_calm, scope)  # for work that was not waiting just now


def _cancel_again(scope: anyio.CancelScope) -> None:
    deliver = getattr(scope, "_deliver_cancellation", None)
    if deliver is not None:
        _calm(scope)
        deliver(scope)
        _calm(scope)


def _calm(scope: anyio.CancelScope) -> None:
    """No further cancelling, if the task has heard of it."""
    host, handle = getattr(scope, "_host_task", None), getattr(scope, "_cancel_handle", None)
    if handle is not None and (host is None or host.cancelling()):
        handle.cancel()


def _is_stock_500(start: Message) -> bool:
    """Whether it may be ServerErrorMiddleware's: plain text while an exception is handled, which it then raises."""
    return (
        start["status"] == 500
        and sys.exception() is not None
        and any(name.lower() == b"content-type" and value.startswith(b"text/plain") for name, value in start["headers"])
    )


def _is_departure(error: BaseException) -> bool:
    """Whether it only says that the client has left."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_departure(member) for member in error.exceptions)
    return isinstance(error, ClientDisconnect)


def _without_cuts(record: logging.LogRecord) -> bool:
    """A filter for uvicorn's log: why we cut a connection has been told."""
    return not (record.exc_info and isinstance(record.exc_info[1], ResponseCut))


def _announced(headers: Mapping[bytes, bytes]) -> int:
    """Content-Length; 0 if there is none, or none that could be meant."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else 0


def _unmeant(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"Shield({name}={value!r}): wanted {wanted}")


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _unmeant(name, value, "a number of seconds, 0 or more; 0 = for ever")
    return float(value)


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _unmeant(name, value, "a whole number, 0 or more; 0 = any")
    return value


def _paths(name: str, value: Iterable[str]) -> frozenset[str]:
    wanted = 'paths, each with a leading "/", such as ("/health",)'
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise _unmeant(name, value, wanted)
    paths = [*value]
    if not all(isinstance(path, str) and path.startswith("/") for path in paths):
        raise _unmeant(name, value, wanted)
    return frozenset(paths)

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
import logging
import math
from asyncio import AbstractEventLoop, CancelledError, get_running_loop
from collections.abc import Iterable, Mapping
from contextvars import Context
from threading import get_ident

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.cancelling import cancel, cancel_again, is_cancelled
from service.errors import ConfigurationError
from service.exchange import ANSWERED, COMPLETE, WAITING, Exchange, ResponseCut, is_stream
from service.logs import REQUEST_ID, events
from service.request_id import identify, sane_request_id

__all__ = ["ResponseCut", "Shield", "is_stream", "sane_request_id"]

log = events()

_AGAIN_S = 1.0
_SHED_LINE_S = 1.0


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
        self.hot = frozenset(getattr(app, "hot", ()))  # paths whose work waits for no threads, see routes/raw.py
        self.shed = 0
        self.timeouts = 0
        self._watches: dict[AbstractEventLoop, Watch] = {}
        self._latest: Watch | None = None  # nearly always the one that is wanted
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
        if watch is None or watch.thread != get_ident() or not watch.loop.is_running():
            watch = self._watch()
        headers = dict(scope["headers"])
        request_id = identify(scope, headers)
        token = REQUEST_ID.set(request_id)
        exchange = Exchange(watch, scope, receive, send, request_id, headers)
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
            if exchange.state != COMPLETE:
                exchange.end()
        # Not when it raises: the server's own line about that should bear the id.
        REQUEST_ID.reset(token)

    async def _serve(self, exchange: "Exchange") -> None:
        try:
            with exchange.cancel:
                try:
                    await self.app(exchange.scope, exchange.receive, exchange.send)
                except CancelledError as error:
                    if is_cancelled() or await exchange.failed(error):  # else something it awaited had been cancelled
                        raise
                except GeneratorExit:  # the loop is being taken down
                    raise
                except BaseException as error:  # sys.exit() in an endpoint shall end no worker, and no connection
                    if await exchange.failed(error):
                        raise
                else:
                    if exchange.state != COMPLETE:
                        await exchange.returned()
        except CancelledError:
            if exchange.state <= COMPLETE or is_cancelled():
                raise
        except Exception as error:
            if exchange.state not in (COMPLETE, ANSWERED):
                raise
            exchange.log_error(error)  # the app left a scope of anyio open
        if exchange.state > COMPLETE:
            await exchange.settled()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = identify(scope, dict(scope["headers"]))

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

    def _watch(self) -> "Watch":
        """The running loop's; those of loops that have ended are forgotten (a test client makes one a request)."""
        loop = get_running_loop()
        for other in [*self._watches]:
            if other.is_closed():
                self._watches.pop(other, None)
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = Watch(self, loop)
        self._latest = watch
        return watch


class Watch:
    """What is open on one event loop, and the one timer over it.

    Everything that is open is looked at when the first may be due, which is seldom: under steady traffic of short
    requests once in 30 s. Ten thousand open streams take 1 ms then (measured). Without traffic there is no timer.
    """

    def __init__(self, shield: Shield, loop: AbstractEventLoop) -> None:
        self.shield = shield
        self.loop = loop
        self.thread = (
            get_ident()
        )  # with `is_running` it tells whether the loop is the running one, without a system call
        self.scope_class = type(anyio.CancelScope())  # asyncio's: asking anyio which is 1 µs a request
        self.in_flight = 0
        self.streams = 0
        self._open: set[Exchange] = set()
        self._stopped: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf
        self._context = Context()  # a timer must not live in the first request's context
        self._shed = 0
        self._shed_timer: asyncio.TimerHandle | None = None
        deadlines = [seconds for seconds in (shield.request_timeout_s, shield.stream_idle_s) if seconds]
        self._shortest_s = min(deadlines, default=math.inf)
        self._grain_s = min(max(self._shortest_s / 100, 0.005), 0.25)

    def admits(self, exchange: "Exchange") -> bool:
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

    def remove(self, exchange: "Exchange") -> None:
        self._open.discard(exchange)

    def stop(self, exchange: "Exchange") -> None:
        """Cancel its work; again each second until it has ended."""
        cancel(exchange.cancel)
        exchange.since_s = self.loop.time()
        self._stopped.add(exchange)
        again_s = exchange.since_s + _AGAIN_S
        if again_s < self._due_s:
            self._wake_at(again_s)

    def end(self, exchange: "Exchange") -> None:
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
                due_s = exchange.since_s + (waiting_s if exchange.state == WAITING else idle_s)
                if due_s <= now_s:
                    self._open.discard(exchange)
                    exchange.expire()
                else:
                    next_s = min(next_s, due_s)
            for exchange in self._stopped:
                if exchange.since_s + _AGAIN_S <= now_s:
                    exchange.since_s = now_s
                    cancel_again(exchange.cancel)
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

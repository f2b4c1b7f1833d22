"""One request and its response, between the server and the app: what the app says, what the shield says instead."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.cancelling import Scope as CancelScope
from service.cancelling import TaskScope
from service.errors import PROBLEM_JSON, REDUCED_CAPACITY, OnequotaError, problem
from service.logs import REQUEST_ID, events

if TYPE_CHECKING:
    from service.shield import Watch

log = events()

CLIENT_LEFT = 499
"""What the access log says of a request whose client left before there was an answer (nginx's number)."""

_NO_NAME = re.compile(rb'[\x00-\x20\x7f()<>@,;:\[\]={}\\"]').search
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_BODILESS = frozenset({204, 205, 304})
_STOCK_500 = b"Internal Server Error"
_LAST = frozenset({"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"})
_BREATH = 16
"""Chunks after which others have a turn. uvicorn's `send` does not wait for a client that reads fast, or has left: one
generator that awaits nothing else would hold the worker for ever."""

# How far a response is.
WAITING, STARTED, COMPLETE = 0, 1, 2
ANSWERED = 3  # by the shield, in the app's place
CUT = 4  # the connection must go


class ResponseCut(OnequotaError):
    """Raised at the server so that it closes a connection whose response cannot be ended. The reason is logged."""


class Exchange:
    """One request and its response, as the app's `receive` and `send` see it.

    Attributes:
        counted: It is one of those in flight; what is exempt is not.
        since_s: When something last moved: it came, a part of its body came, a chunk went. Loop time.
        cancel: The scope in which the app runs.
        over: The app has ended.
    """

    def __init__(
        self,
        watch: "Watch",
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
        self.state = WAITING
        self.cancel: CancelScope = TaskScope(watch.loop) if scope["path"] in shield.hot else watch.scope_class()
        self._begun_s = time.perf_counter() if shield.access_log else 0.0
        self._status = CLIENT_LEFT
        self._size = self._chunks = 0
        self._asked = self._gone = self._streams = self._trailers = False
        self._held: list[Message] | None = None
        self._farewell: OSError | None = None
        self._sender: asyncio.Task[None] | None = None

    # What the app calls

    async def receive(self) -> Message:
        if self.state <= COMPLETE:
            self._asked = True
            message = await self._receive()
            if self.state <= COMPLETE:
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
            if state == STARTED and kind == "http.response.body":
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
            elif state == WAITING and kind == "http.response.start" and self._held is None:
                start, streams = self._head(message)
                if _is_stock_500(start):
                    self._held = [start]  # ours to answer, if the exception is raised at us too
                elif self._begins(start, streams):
                    await self._send(start)
                else:
                    await self._refuse_stream()
            elif state == WAITING and kind == "http.response.body":
                await self._body_at_first(message)
            elif state <= COMPLETE:
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
        self.state = STARTED
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
        if self.state == WAITING:
            await self.answer_too_large()
        elif self.state == STARTED:
            self.state = CUT
        self.stop()

    def _complete(self) -> None:
        if self.state == STARTED:
            self.state = COMPLETE
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
        if state == STARTED:
            return True  # the server logs it
        self.log_error(error)
        if state == WAITING:
            self._held = None
            if self._inside is None or not await self._answered_by_app(error):
                await self._answer(500, "the server failed on this request; its log tells why, under the request id")
        return False

    async def returned(self) -> None:
        """The app is done, and its response is not."""
        if self._held is not None and self.state == WAITING:
            await self._release()
        if self._gone:
            return
        if self.state == WAITING:
            log.error("no_response", **self._named())
            await self._answer(500, "the server gave no answer to this request")
        elif self.state == STARTED:
            log.error("response_not_ended", **self._named())
            self.state = CUT

    async def settled(self) -> None:
        """The shield has had the last word. Raises ResponseCut if the connection must go."""
        if self._sender is not None:
            await asyncio.wait([self._sender])
            self._sender.result()
        if self.state == CUT:
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
        return self.state != WAITING

    # What the shield says

    def expire(self) -> None:
        """The deadline has passed."""
        token = REQUEST_ID.set(self._request_id)
        if self.state == WAITING:
            self.state = ANSWERED  # now: what the app sends from here on is too late
            self._shield.timeouts += 1
            self._sender = self._watch.loop.create_task(self._answer_late())
            log.warning("request_timeout", **self._named(), timeout_s=self._shield.request_timeout_s)
        else:
            self.state = CUT
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
        self.state, self._status, self._held = CUT, status, None
        self._watch.remove(self)
        with contextlib.suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(self._shield.stream_idle_s or None):
                await self._send(start)
                await self._send({"type": "http.response.body", "body": body, "more_body": False})
                self.state = ANSWERED
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

"""One process that serves: uvicorn, with a heartbeat and a gentle end. The only file on uvicorn, whose insides it
touches: the version is pinned, and test_worker fails loudly when they move.

    serving   the event loop itself sends a beat to the parent every half second: a loop that is stuck does not
    retired   a lame duck, from the moment its replacement serves or the service stops:
                1. the listener is closed here; it stays open in the parent and in the other workers
                2. every response from now on says `Connection: close`; WebSockets are closed with 1012
                3. an idle connection may still send one request, for as long as the order says; then it is closed,
                   if nothing has come in that nobody has read
                4. what still runs at the end of the drain is cancelled, the app's lifespan ends, and the process

The parent says what to do in lines of JSON on a socket, and reads what this process says of itself; see
supervisor.py. End of file means that the parent is gone: then drain and end.
"""

import asyncio
import contextlib
import gc
import json
import logging
import math
import os
import random
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.importer import ImportFromStringError, import_from_string
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import logs, status
from service.errors import OnequotaError
from service.listener import leave_for_grpc
from service.settings import Settings, load
from service.shield import Shield
from service.status import Status
from service.supervisor import STUCK_S
from service.target import Target, unloadable

BEAT_S = 0.5
_HINTED_S = 35
_MOST_HEAD_BYTES = 128 * 1024  # of one request, over several reads; the parser itself takes any
_MOST_JOINED = 64 * 1024  # bytes of a body that are copied behind their head
_LINGER_S = 30.0  # for the rest of a body that nobody wants
_WEBSOCKET_LINGER_S = 1.0
_ACCEPTED_S = 0.05  # for clients that the kernel has accepted: to be handed over, and to become connections
_LONGEST = 500  # characters of an app's last words
_STDLIB = str(Path(os.__file__).parent)
_log = logs.events()


def main(control_fd: int, listener_fd: int, grpc_fd: int | None = None) -> None:
    """The life of a worker process. Its settings are in the environment; the rest is the parent's first line."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # A terminal sends them to the whole group. A handler, for what is ignored stays ignored in children.
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGHUP])
    for descriptor in (control_fd, listener_fd, grpc_fd):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    parent = Parent(socket.socket(fileno=control_fd))
    errand = parent.first()
    sys.path[:] = errand["path"]
    with contextlib.suppress(OSError):  # by the name it was started under: behind a link there is the latest release
        os.chdir(errand["directory"])
    target = Target(**errand["target"])
    if "slot" in errand:  # a parent that has not been handed over may be older than this
        status.tell(Status(**errand["status"]))
        status.take(status.Slot(**errand["slot"]))
    leave_for_grpc(socket.socket(fileno=grpc_fd) if grpc_fd is not None else None)
    try:
        settings = load()
        logs.configure(settings)
        if settings.log_level == "info":  # its start and end are told by ours
            logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        server = Server(_Config(settings, target), parent, settings)
        server.run([socket.socket(fileno=listener_fd)])
    except (Exception, SystemExit) as error:
        # Whole where somebody is writing code.
        (_log.exception if target.reload else _log.debug)("worker_failed", exc_info=error)
        parent.say(failed=_reason(target.app, error))
        sys.exit(STARTUP_FAILURE)
    # A thread that hangs in somebody's endpoint keeps the process until the parent ends it, with the drain.


def run_here(settings: Settings, target: Target, listener: socket.socket) -> None:
    """Serve in this very process, without a parent: where there are no POSIX signals."""
    uvicorn.Server(_Config(settings, target)).run([listener])


class Parent:
    """The worker's end of the control socket. Saying never blocks: a parent that is stopped misses beats."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self._received = b""

    def first(self) -> dict[str, Any]:
        """The errand, waited for."""
        while b"\n" not in self._received:
            received = self.control.recv(65536)
            if not received:
                sys.exit(0)
            self._received += received
        self.control.setblocking(False)
        return self._lines().__next__()

    def heard(self) -> list[dict[str, Any]] | None:
        """What came since; None when the parent is gone."""
        try:
            received = self.control.recv(65536)
        except BlockingIOError:
            received = b"\n"
        except OSError:
            received = b""
        self._received += received
        return list(self._lines()) if received else None

    def _lines(self) -> Iterator[dict[str, Any]]:
        while b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            if line:
                yield json.loads(line)

    def say(self, **facts: Any) -> None:
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(facts).encode() + b"\n")


class Server(uvicorn.Server):
    """uvicorn's, which reports to a parent, and retires."""

    def __init__(self, config: "_Config", parent: Parent, settings: Settings) -> None:
        super().__init__(config)
        self._parent = parent
        self._settings = settings
        self._drain_s = float(settings.drain_s)
        self._end_s = 2.0
        self._header_s = settings.header_timeout_s
        self._linger_s = 0.0
        self._recycle_at = settings.max_requests + random.randint(0, settings.max_requests // 10)
        self._asked = False
        self._stopping = False
        self._beaten_s = 0.0
        self._over = False
        self._unheard: dict[object, tuple[object, float]] = {}

    # Serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _settle_memory()
        logs.restore(self._settings)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._parent.control.fileno(), self._listen)
        self._beat(loop)
        threading.Thread(target=self._watch, args=[threading.get_ident(), os.getppid()], daemon=True).start()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beaten_s = time.monotonic()
        requests = self.server_state.total_requests + status.besides()
        self._parent.say(
            state="retired" if self.should_exit else "serving",
            requests=requests,
            due="asked" if self._asked else "recycle" if 0 < self._recycle_at <= requests else None,
        )
        if self._header_s:
            self._close_unheard(self._beaten_s)
        loop.call_later(BEAT_S, self._beat, loop)

    def _listen(self) -> None:
        orders = self._parent.heard()
        if orders is None:
            asyncio.get_running_loop().remove_reader(self._parent.control.fileno())
            last = {"linger_s": 0.0, "drain_s": self._drain_s, "end_s": self._end_s, "stopping": True}
            orders = [{"retire": last}]
        for order in orders:
            if "status" in order:
                status.tell(Status(**order["status"]))
            if "retire" in order:
                self._linger_s, self._drain_s, self._end_s = (
                    order["retire"][name] for name in ("linger_s", "drain_s", "end_s")
                )
                self._stopping = order["retire"].get("stopping", False)  # one of an older version does not say it
                self.should_exit = True

    def _watch(self, loop_thread: int, parent: int) -> None:
        """From a thread: say where the loop hangs, once each time; and outlive a parent by one drain at most."""
        told_s, orphaned_s = 0.0, math.inf
        while True:
            time.sleep(BEAT_S)
            now_s, since_s = time.monotonic(), self._beaten_s
            if since_s != told_s and now_s - since_s > STUCK_S and not self._over:
                told_s = since_s
                stack = traceback.format_stack(sys._current_frames()[loop_thread])
                _log.error("loop_stuck", for_s=round(now_s - since_s, 1), stack="".join(stack[-6:]))
            if os.getppid() != parent:
                orphaned_s = min(orphaned_s, now_s)
            if now_s - orphaned_s > self._drain_s + self._end_s:  # it holds the port, and nobody will end it
                os._exit(1)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM asks the parent for a replacement; whoever stops the service tells the parent."""

        def ask(*_: Any) -> None:
            self._asked = True
            self.should_exit = self.should_exit or not self.started

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ask)
        yield

    def _close_unheard(self, now_s: float) -> None:
        """Close connections whose client does not get a request's header across in time."""
        before, self._unheard = self._unheard, {}
        for connection in list(self.server_state.connections):
            if not _hears_header(connection):
                continue
            scope = getattr(connection, "scope", None)
            known, since_s = before.get(connection, (scope, now_s))
            since_s = since_s if known is scope else now_s
            self._unheard[connection] = scope, since_s
            if now_s - since_s <= self._header_s:
                continue
            if not isinstance(connection, _Http):
                connection.transport.close()
            elif not connection.unread():
                connection.give_up(b"408 Request Timeout")

    # Retiring

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        began_s = time.monotonic()
        status.retire(stopping=self._stopping)
        self._say_close()
        await asyncio.sleep(_ACCEPTED_S)
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        await asyncio.sleep(_ACCEPTED_S)
        while self.server_state.connections or self.server_state.tasks:
            took_s = time.monotonic() - began_s
            if took_s > self._drain_s:
                break
            self._say_close()
            self._close_websockets()
            if took_s > self._linger_s:
                self._close_idle()
            await asyncio.sleep(0.05)
        await self._cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began_s + self._drain_s - time.monotonic()) + self._end_s):
                await self.lifespan.shutdown()
        self._over = True

    def _say_close(self) -> None:
        """Every response whose head is not sent yet ends its connection; also repairs the date."""
        headers = [(b"date", formatdate(time.time(), usegmt=True).encode()), (b"connection", b"close")]
        self.server_state.default_headers[:] = headers
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False  # it may hold an older list of headers

    def _close_idle(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Http) and connection.idle and not connection.unread():
                connection.transport.close()

    def _close_websockets(self) -> None:
        for connection in list(self.server_state.connections):
            if not isinstance(connection, _Http) and not connection.transport.is_closing():
                connection.shutdown()  # 1012, service restart

    async def _cut(self) -> None:
        """End what would not end."""
        tasks = list(self.server_state.tasks)
        if tasks:
            _log.warning("drain_exceeded", cancelled=len(tasks))
        for task in tasks:
            task.cancel("the drain is over")
        if tasks:
            await asyncio.wait(tasks, timeout=0.2)
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await asyncio.sleep(0)


def _settle_memory() -> None:
    """Keep what is there after start-up, an app and its libraries, out of the garbage collector's rounds.

    It would be walked for nothing again and again: 80 ms each time, 13 µs a decision (measured).
    """
    gc.collect()
    gc.freeze()


class _Http(HttpToolsProtocol):
    """uvicorn's, which does not close under a client that still sends: that would be a reset, not an answer."""

    transport: Any
    upgraded = False
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(asyncio.Transport, _Patient(transport, self)))

    @property
    def hears_header(self) -> bool:
        """Whether it waits for a request's header: its first, or one that has begun."""
        return self.scope is None or "path" not in self.scope  # set last; never of an upgrade that is not carried out

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: closing now costs nobody anything."""
        if self.scope is None:
            return True
        cycle = self.cycle
        return "path" in self.scope and cycle is not None and cycle.response_complete and not cycle.more_body

    def unread(self) -> bool:
        """Whether the client has sent what nobody has read yet: it would be lost."""
        number = self.transport.get_extra_info("socket").fileno()
        return number >= 0 and _unread_bytes(number) > 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.upgraded or not self.hears_header:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self.give_up(b"431 Request Header Fields Too Large")

    def give_up(self, status: bytes) -> None:
        """Close on a client that does not get a header across; if it began one, it is told."""
        if self.scope is not None:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        self.upgraded = True
        super().handle_websocket_upgrade()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        cycle = self.cycle
        if cycle is None or not cycle.response_complete:
            return
        # The response was there before the end of the body, as of a refusal: uvicorn is done with this request.
        cycle.more_body = False
        if self.transport.lingers:
            self.transport.finish()
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def _hears_header(connection: object) -> bool:
    """Whether it waits for a request, or for a WebSocket's handshake that makes sense."""
    if isinstance(connection, _Http):
        return connection.hears_header
    return not getattr(connection, "handshake_initiated", True)


class _Patient:
    """A transport whose `close` waits: for the end of the request's body, which is thrown away (RFC 9112, 9.6), or
    for the client's half of a WebSocket's closing handshake. Data that nobody reads would be answered with a reset,
    and that overtakes what we have sent.

    And whose `write` keeps the head of a response back for its body, which nearly always follows at once: one system
    call less, a tenth of the cost of a decision (measured). Never longer than until the event loop's next turn, and
    nothing of a response without Content-Length."""

    def __init__(self, transport: asyncio.Transport, http: _Http) -> None:
        self._transport = transport
        self._http = http
        self._held = b""
        self._release: asyncio.Handle | None = None
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held and len(data) <= _MOST_JOINED:
            data = self._take_held() + data
        elif self._held:
            self.flush()
        else:
            cycle = self._http.cycle
            if cycle is not None and cycle.response_started and cycle.expected_content_length > 0:
                self._held = data
                self._release = self._http.loop.call_soon(self.flush)
                return
        self._transport.write(data)

    def flush(self) -> None:
        """Send what is held back."""
        if self._held:
            self._transport.write(self._take_held())

    def _take_held(self) -> bytes:
        held, self._held = self._held, b""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        return held

    def abort(self) -> None:
        self._take_held()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        cycle = self._http.cycle
        body_s = _LINGER_S if cycle is not None and cycle.response_complete and cycle.more_body else 0
        patience_s = _WEBSOCKET_LINGER_S if self._http.upgraded else body_s
        if self.is_closing() or not patience_s:
            self.finish()
            return
        self.lingers = True
        self._http.flow.resume_reading()
        self._http.loop.call_later(patience_s, self.finish)

    def finish(self) -> None:
        """Close, once the client has taken what we have written; it is cut off when it takes nothing for long."""
        self.flush()
        self._transport.close()
        if left_bytes := self._transport.get_write_buffer_size():
            self._http.loop.call_later(_LINGER_S, self._see_off, left_bytes)

    def _see_off(self, before_bytes: int) -> None:
        left_bytes = self._transport.get_write_buffer_size()
        if left_bytes >= before_bytes:
            self._transport.abort()
        elif left_bytes:
            self._http.loop.call_later(_LINGER_S, self._see_off, left_bytes)


def _unread_bytes(number: int) -> int:
    import fcntl  # noqa: PLC0415  (there is none on Windows)
    import termios  # noqa: PLC0415

    with contextlib.suppress(OSError):
        return cast(int, struct.unpack("i", fcntl.ioctl(number, termios.FIONREAD, b"\0\0\0\0"))[0])
    return 0


class _Config(uvicorn.Config):
    """uvicorn's: ours in front of the app, and errors that are raised, not printed."""

    def __init__(self, settings: Settings, target: Target) -> None:
        # A short hint would have Node give up on long answers.
        hint = [("keep-alive", f"timeout={settings.keep_alive_s - 5}")] if settings.keep_alive_s >= _HINTED_S else []
        super().__init__(
            target.app,
            factory=target.factory,
            http=_Http,
            interface="auto",
            log_config=None,
            access_log=False,  # the shield's has the request id, and what it took
            proxy_headers=False,  # it takes a client's own word for its address
            server_header=False,
            headers=hint if settings.keep_alive_s else [("connection", "close")],
            backlog=settings.backlog,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_s,
            ssl_keyfile=target.ssl_keyfile,
            ssl_certfile=target.ssl_certfile,
            ssl_keyfile_password=target.ssl_keyfile_password,
            ssl_ca_certs=target.ssl_ca_certs,
            ssl_cert_reqs=ssl.CERT_REQUIRED if target.ssl_ca_certs else ssl.CERT_NONE,
        )
        self._settings = settings
        self._target = target

    def load_app(self) -> Any:
        app = import_from_string(self.app)
        if not callable(app) or (self.factory and not callable(app := app())):
            raise unloadable(str(self.app), f"it is {type(app).__name__}, and no ASGI app")
        return (lambda: app) if self.factory else app  # called here, so that its TypeError is told as what it is

    def load(self) -> None:
        super().load()
        self.lifespan_class = _Lifespan
        settings = self._settings
        logs.restore(settings)  # an app's own dictConfig switches off every logger that it does not name
        wanted = settings.access_log
        self.loaded_app = Shield(
            self.loaded_app,
            request_timeout_s=settings.request_timeout_s,
            stream_idle_s=settings.stream_idle_s,
            max_in_flight=settings.max_in_flight,
            max_streams=settings.max_streams,
            max_body_bytes=settings.max_body_bytes,
            exempt=settings.health_paths,
            access_log=not self._target.service if wanted is None else wanted,
        )


class AppFailedError(Exception):
    """The app said that it cannot start."""


class _Lifespan(LifespanOn):
    """uvicorn's, which says why the app's start-up failed."""

    _why: str | None = None

    async def startup(self) -> None:
        await super().startup()
        if self.should_exit:
            error = AppFailedError(_last_words(self._why or "") or "it gave no reason")
            error.add_note(self._why or "")
            raise error

    async def send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed":
            self._why = message.get("message")
            message = {"type": message["type"]}
            self.logger = logging.Logger("unheard", logging.CRITICAL)  # the parent says it, in one line
        await super().send(message)


def _last_words(text: str) -> str:
    """What an app said when it failed to start: of a traceback, also of a group's, the exception alone."""
    lines = [re.sub(r"^\s*\| ?", "", line) for line in text.splitlines() if not re.match(r"\s*\+[-+]*\s*[\d-]*", line)]
    code = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if code:
        after = (number for number in range(code[-1] + 1, len(lines)) if not lines[number].startswith(" "))
        lines = lines[next(after, 0) :]
    elif lines and lines[0].startswith("Traceback"):
        lines = lines[1:]
    said = " ".join(" ".join(lines).split())
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _reason(app: str, error: BaseException) -> str:
    """Why an app cannot be served, on one line; a stranger's exception with the line of code it came from."""
    said = " ".join(str(error).split())
    if isinstance(error, OnequotaError):
        return said
    if isinstance(error, AppFailedError):
        return f"the app failed to start: {said}"
    said = said.rstrip(".")
    if isinstance(error, ImportFromStringError):
        return str(unloadable(app, said))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _foreign(frame.filename)]
    at = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return str(unloadable(app, f"{type(error).__name__}: {said}{at}"))


def _foreign(filename: str) -> bool:
    return filename.startswith((__file__, "<", _STDLIB)) or "site-packages" in filename

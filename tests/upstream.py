"""A fake Supabase, for tests: enough of its gateway and of PostgREST to be called, and to fail as real ones do.

It is no PostgREST: no SQL, no policies, no types, and of all filters only `column=eq.value` and `column=gt.number`.
Rows are numbered in `seq`. What it keeps to is what the client's promises hang on: who may come in (the key), what an
insert does when its row exists (`Prefer: resolution`) and how connections end. It speaks HTTP/1.1 and HTTP/2, with TLS
(ALPN) or without (HTTP/2 by prior knowledge).

At every `close_every`th request all connections that are open are retired, as when a proxy is reloaded. HTTP/1.1: by
turns the next answer announces it (`Connection: close`), the connection is closed silently right after its next answer,
or it is closed on the request after that one, unread: the race a keep-alive client can always lose. HTTP/2: GOAWAY, as
nginx sends it: what came before it is still answered, what comes later is not.
"""

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import json
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import h2.config
import h2.connection
import h2.events
import h11
from hyperframe.frame import GoAwayFrame

KEY = "sb_secret_dGhlIHNlcnZpY2Uga2V5IG9mIHRoZSB0ZXN0cw"
USER_TOKEN = "header.of-a-user-who-signed-in.signature"


class Retiring(Enum):
    """How an HTTP/1.1 connection ends; every third connection the same way."""

    ANNOUNCED = "the last answer says Connection: close"
    SILENT = "closed right after the last answer"
    RACE = "closed on the next request, which is not carried out"


class Fault(Enum):
    """What happens to one request instead of a plain answer."""

    HANG = "it is read and never answered"
    DROP = "the connection is closed without an answer, and nothing was carried out"
    LOSE = "it is carried out, then the connection is closed without an answer"
    RESET = "it is carried out, and the connection is reset in the middle of the answer"
    DRIBBLE = "it is carried out, and the answer comes a byte at a time, without end"
    UNAVAILABLE = "503, Retry-After: 0, and nothing was carried out"
    LATER = "503, Retry-After: 3600, and nothing was carried out"
    TIMED_OUT = "504 from a gateway, as HTML: it was carried out"
    GARBLED = "the answer says gzip and is not"


@dataclass(frozen=True)
class Call:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    version: str

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(status: int, value: object, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/json", **headers})


_SPOILT = {
    Fault.UNAVAILABLE: _json(
        503, {"code": "PGRST002", "message": "schema cache", "details": None}, **{"retry-after": "0"}
    ),
    Fault.LATER: _json(503, {"message": "name resolution failed"}, **{"retry-after": "3600"}),
    Fault.TIMED_OUT: Answer(504, b"<h1>504 Gateway Time-out</h1>", {"content-type": "text/html"}),
    Fault.GARBLED: Answer(200, b"this is not gzip", {"content-encoding": "gzip"}),
}
_CARRIED_OUT = {Fault.LOSE, Fault.RESET, Fault.DRIBBLE, Fault.TIMED_OUT}


class FakeSupabase:
    """Serves on 127.0.0.1 while its context lasts; requests take their faults from `faults`, in order.

    Attributes:
        calls: Every request that arrived whole.
        inserted: Rows that were really inserted, over all tables.
        retired: How often all connections were retired.
        accepted: Connections that were opened so far.
        open: Those that are open now.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, close_every: int = 500, latency_s: float = 0) -> None:
        self._tls = tls
        self._close_every = self._until_retired = close_every
        self._latency_s = latency_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0
        self.faults: deque[Fault] = deque()
        self.calls: list[Call] = []
        self.tables: dict[str, dict[str, dict[str, Any]]] = {}
        self.inserted = 0
        self.retired = 0
        self.accepted = 0
        self.open = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def heard(self, calls: int) -> None:
        """Wait, at most 20 s, until so many requests have arrived."""
        async with asyncio.timeout(20):
            while len(self.calls) < calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def left(self, still: int = 0) -> None:
        """Wait, at most 20 s, until clients have closed all but `still` of their connections."""
        async with asyncio.timeout(20):
            while self.open > still:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def refuse(self) -> None:
        """Stop listening and end every connection: from now on connecting is refused."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    # Connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        self.open += 1
        ending = list(Retiring)[self.accepted % 3]
        try:
            first = await reader.read(65536)
            if first.startswith(b"PRI * HTTP/2"):
                await self._http2(reader, writer, first)
            else:
                await self._http1(reader, writer, first, ending)
        except (ConnectionError, asyncio.CancelledError, h11.RemoteProtocolError, ssl.SSLError):
            pass  # the client has gone, or the test is over
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()

    async def _http1(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, ending: Retiring
    ) -> None:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(first)
        retired, racing = self.retired, False
        while (call := await self._read(connection, reader)) is not None and not racing:
            answer, fault = await self._respond(call)
            if fault in {Fault.DROP, Fault.LOSE}:
                return
            last = self.retired > retired and ending is not Retiring.RACE
            racing = self.retired > retired and ending is Retiring.RACE
            headers = {**answer.headers, **({"connection": "close"} if last and ending is Retiring.ANNOUNCED else {})}
            if call.method != "HEAD":
                headers["content-length"] = str(1 << 30 if fault is Fault.DRIBBLE else len(answer.body))
            head = connection.send(h11.Response(status_code=answer.status, headers=list(headers.items()))) or b""
            while fault is Fault.DRIBBLE:
                writer.write(head + b" ")
                head = b""
                await writer.drain()
                await asyncio.sleep(0.01)
            body = b"" if call.method == "HEAD" else connection.send(h11.Data(data=answer.body)) or b""
            body += connection.send(h11.EndOfMessage()) or b""
            if fault is Fault.RESET:
                writer.write(head + body[: len(body) // 2])
                await writer.drain()
                writer.transport.abort()
                return
            writer.write(head + body)
            await writer.drain()
            if last:
                return
            connection.start_next_cycle()

    async def _read(self, connection: h11.Connection, reader: asyncio.StreamReader) -> Call | None:
        """The next request, whole; None when the client has closed the connection."""
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                headers = {name.decode(): value.decode() for name, value in request.headers}
                return Call(request.method.decode(), request.target.decode(), headers, body, "HTTP/1.1")
            else:
                return None

    async def _http2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        streams: dict[int, tuple[dict[str, str], bytearray]] = {}
        answering: set[asyncio.Task[None]] = set()
        retired, going = self.retired, False
        try:
            while data:
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        streams[event.stream_id] = dict(event.headers), bytearray()
                    elif isinstance(event, h2.events.DataReceived):
                        streams[event.stream_id][1].extend(event.data)
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded) and not going:
                        headers, body = streams.pop(event.stream_id)
                        call = Call(headers[":method"], headers[":path"], headers, bytes(body), "HTTP/2")
                        answering.add(asyncio.create_task(self._stream(connection, writer, event.stream_id, call)))
                        await asyncio.sleep(0)  # let it be counted
                        if self.retired > retired:
                            going = True
                            # By hand: h2 would not let the streams that are open be answered after a GOAWAY of its own.
                            writer.write(connection.data_to_send())
                            writer.write(GoAwayFrame(0, last_stream_id=event.stream_id).serialize())
                writer.write(connection.data_to_send())
                if going:
                    await asyncio.gather(*answering)
                    return
                data = await reader.read(65536)
        finally:
            for task in answering:
                task.cancel()

    async def _stream(
        self, connection: h2.connection.H2Connection, writer: asyncio.StreamWriter, stream: int, call: Call
    ) -> None:
        answer, _ = await self._respond(call)
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the client has given this stream up
            connection.send_headers(stream, [(":status", str(answer.status)), *answer.headers.items()])
            connection.send_data(stream, answer.body, end_stream=True)  # small enough for the first window
        writer.write(connection.data_to_send())

    # Requests

    async def _respond(self, call: Call) -> tuple[Answer, Fault | None]:
        self.calls.append(call)
        self._until_retired -= 1
        if self._until_retired == 0:
            self._until_retired = self._close_every
            self.retired += 1
        await asyncio.sleep(self._latency_s)
        fault = self.faults.popleft() if self.faults else None
        if fault is Fault.HANG:
            await asyncio.Event().wait()
        answer = self._answer(call) if fault is None or fault in _CARRIED_OUT else Answer(500)
        return _SPOILT.get(fault, answer), fault

    def _answer(self, call: Call) -> Answer:
        if call.headers.get("apikey") != KEY:
            return _json(401, {"message": "Invalid API key"})
        service, _, rest = call.path.removeprefix("/").partition("/v1/")
        answer: Callable[[Call, str], Answer] | None = getattr(self, f"_{service}", None)
        return answer(call, rest) if answer is not None else _json(404, {"message": "no Route matched"})

    def _rest(self, call: Call, table: str) -> Answer:
        if not table or table.startswith("rpc/"):
            return _json(200, {})
        if call.method in {"GET", "HEAD"}:
            rows = _json(200, self._select(call, table))
            if table == "zipped":
                return Answer(200, gzip.compress(rows.body), {**rows.headers, "content-encoding": "gzip"})
            return rows
        if call.method == "POST":
            return self._insert(call, table)
        if call.method == "DELETE":
            gone = self._select(call, table)
            for row in gone:
                del self.tables[table][str(row["id"])]
            return _json(200, gone)
        return _json(405, {"message": "the fake does not do this"})

    def _select(self, call: Call, table: str) -> list[dict[str, Any]]:
        rows = [*self.tables.get(table, {}).values()]
        for name, value in call.query.items():
            kind, _, operand = value.partition(".")
            if kind == "eq":
                rows = [row for row in rows if str(row.get(name)) == operand]
            elif kind == "gt":
                rows = [row for row in rows if row[name] > int(operand)]
        return rows[: int(call.query.get("limit", len(rows)))]

    def _insert(self, call: Call, table: str) -> Answer:
        body = json.loads(call.body)
        rows, stored = body if isinstance(body, list) else [body], self.tables.setdefault(table, {})
        prefer = call.headers.get("prefer", "")
        new = [row for row in rows if str(row["id"]) not in stored]
        if len(new) < len(rows) and "resolution=ignore-duplicates" not in prefer:
            return _json(409, {"code": "23505", "message": "duplicate key value violates unique constraint"})
        for row in new:
            self.inserted += 1
            stored[str(row["id"])] = row
            row["seq"] = self.inserted
        return _json(201, new) if "return=representation" in prefer else Answer(201)

    def _auth(self, call: Call, what: str) -> Answer:
        user = {"id": "7", "aud": "authenticated", "created_at": "2026-01-01T00:00:00Z", "app_metadata": {}}
        user |= {"user_metadata": {}, "email": "ann@example.com"}
        if what == "token":
            tokens = {"access_token": USER_TOKEN, "refresh_token": "r", "expires_in": 3600, "token_type": "bearer"}
            return _json(200, {**tokens, "user": user})
        return _json(200, {**user, "asked_with": call.headers["authorization"]})

    def _storage(self, call: Call, what: str) -> Answer:
        return Answer(200, b"the file")

    def _functions(self, call: Call, name: str) -> Answer:
        """`redirect` sends the caller elsewhere, and `cookie` sets one, as functions may."""
        if name == "redirect":
            return Answer(307, b"", {"location": call.headers["x-elsewhere"]})
        return _json(200, {}, **({"set-cookie": "who=ann; Path=/"} if name == "cookie" else {}))


def tls_context(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1 that offers HTTP/2 and HTTP/1.1, and the file that makes a client trust it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake supabase")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "fake.key").write_bytes(secret)
    (folder / "fake.crt").write_bytes(certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "fake.crt", folder / "fake.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context, folder / "fake.crt"

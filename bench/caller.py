"""A client that keeps its connection and asks one thing at a time: HTTP/1.1, Content-Length, no retries."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any, Self


class LostError(Exception):
    """No whole answer came: what was asked may have been done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole one.

    Attributes:
        seconds: From the first byte sent to the last received.
        body: Of JSON the value, else None.
    """

    status: int
    headers: dict[str, str]
    body: Any
    seconds: float


class Caller:
    """One connection to a loopback port, opened when it is needed.

    Args:
        port: On 127.0.0.1.
        timeout_s: Of one question.
    """

    def __init__(self, port: int, timeout_s: float = 60) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, path: str, body: object = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """GET, or POST of a body as JSON. Raises LostError."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", "host: localhost"]
        if body is not None:
            head += ["content-type: application/json", f"content-length: {len(data)}"]
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        message = "\r\n".join([*head, "", ""]).encode("latin-1") + data
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await self._connected()
                writer.write(message)
                status, found, text = await self._read(reader)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            await self.close()
            raise LostError(f"{type(error).__name__}: {error}") from None
        except BaseException:
            await self.close()
            raise
        if found.get("connection", "").lower() == "close":
            await self.close()
        seconds = time.perf_counter() - started
        read = json.loads(text) if "json" in found.get("content-type", "") and text else None
        return Answer(status=status, headers=found, body=read, seconds=seconds)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():  # it was closed while it rested
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))

    async def close(self) -> None:
        """Hang up."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

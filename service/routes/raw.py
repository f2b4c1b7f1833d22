"""Hot routes: answered before the framework's middlewares and router, which cost three times a decision.

A hot route is an ASGI app for one path. It sees to methods, keys, addresses and bodies itself, with what is here; what
it raises is the shield's to answer. It may not wait for threads: the shield cancels it in a cheaper way (`TaskScope`).
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic_core import from_json
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.limits.access import Access
from service.limits.passage import forbidden, problem_response

_JSON = b"application/json"
_CONTENT_TYPE = (b"content-type", _JSON)


class HotApp(FastAPI):
    """FastAPI, but for some paths.

    Attributes:
        hot: The hot routes, by path below the root.
        access: Who is never let in; the gate sees to that on other routes.
    """

    hot: Mapping[str, ASGIApp] = {}
    access: Access | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root = scope.get("root_path")
            route = self.hot.get(scope["path"].removeprefix(root) if root else scope["path"])
            if route is not None:
                if self.access is not None and self.access.listed(scope) is False:
                    await (await forbidden(scope))(scope, receive, send)
                    return
                await route(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class Answered(Exception):
    """This request has another answer than the one it wanted: `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response

    @classmethod
    def by(cls, status: int, detail: str) -> "Answered":
        """A problem+json answer."""
        return cls(problem_response(status, detail))


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def body_of(receive: Receive, most_bytes: int) -> bytes:
    """The body of a request. Raises Answered beyond `most_bytes` (413), ClientLeft."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):  # nearly always
        body: bytes = message.get("body", b"")
        if len(body) <= most_bytes:
            return body
    chunks, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > most_bytes:
            raise Answered.by(413, f"the body is larger than {most_bytes} bytes; send less at once")
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()


def check_json(content_type: bytes | None) -> None:
    """Raises Answered if it is another type than JSON (415). None is taken for JSON."""
    if content_type is None or content_type == _JSON:
        return
    kind = content_type.decode("latin-1").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Answered.by(415, f"content-type {kind}: send application/json")


def json_of(body: bytes) -> Any:
    """The document in it. Raises Answered (400)."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Answered.by(400, f"the body is not JSON: {error}") from None


def check_method(scope: Scope, allowed: str) -> None:
    """Raises Answered if the method is another one (405)."""
    if scope["method"] != allowed:
        answered = Answered.by(405, f"nothing answers {scope['method']} {scope['path']}; see /docs")
        answered.response.headers["allow"] = allowed
        raise answered


async def say(send: Send, body: bytes) -> None:
    """200 with JSON."""
    headers = [_CONTENT_TYPE, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

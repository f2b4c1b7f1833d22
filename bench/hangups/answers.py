"""Connections outlive what is answered on them: exceptions, thoughts, refused uploads, deadlines."""

import contextlib
import http.client
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

from bench.hangups.client import Crew, InconclusiveError, Tally, client
from bench.hangups.report import Fact, Row, no_errors, row
from bench.hangups.servers import Kind, Options, Server, serving, threads
from bench.hangups.stage import Held, Size, stage
from bench.hangups.watch import asked
from bench.promises import Check, at_most, exactly
from bench.redises import RedisServer

UPLOADS = 20
UPLOAD_BYTES = 10 * 1024 * 1024
POOL = 40
"""Threads that anyio runs plain functions in."""


def exceptions(kind: Kind, size: Size) -> Row:
    """A hundred of them, unhandled, among normal requests."""
    each = max(5, size.requests // 100)
    crew = Crew(name="load", clients=32, requests=each * 100, every=((each, "GET /boom"), (7, "GET /work")))
    with stage(kind, Options(workers=size.workers or 2), crew) as on:
        load = on.client.result(within_s=size.cap_s)["load"]
    booms = load.statuses.get("/boom 500", 0)
    checks = [
        no_errors(load),
        exactly("exceptions answered 500", booms, 100),
        exactly("all other answers 200", load.answers(200), load.requests - 100),
        at_most("connections opened", load.opened, crew.clients),
    ]
    return row("exceptions", on.server, [load], checks=checks, facts={"exceptions": booms, "connections": load.opened})


def think(kind: Kind, size: Size) -> Row:
    """Users who come back after about the five seconds after which uvicorn closes a connection by default."""
    users = min(2_000, max(200, size.requests // 10))
    crew = Crew(
        name="load",
        clients=users,
        requests=size.requests,
        think_ms=(4_990, 5_010),
        spread_ms=users * 5 // 2,
        own_connections=True,
    )
    with stage(kind, Options(workers=size.workers or 2, keep_alive_s=None), crew) as on:
        load = on.client.result(within_s=size.cap_s)["load"]
    checks = [
        no_errors(load),
        exactly("answers 200", load.answers(200), size.requests),
        exactly("connections opened", load.opened, users),
    ]
    return row("think", on.server, [load], checks=checks, facts={"users": users, "connections": load.opened})


def upload_429(kind: Kind, size: Size) -> Row:
    """Uploads beyond a limit, refused before they are read; between them, a request on the same connection."""
    with RedisServer() as store:
        options = Options(workers=size.workers or 2, app="limited", factory=True, redis_url=store.url)
        with serving(kind, options) as server:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/upload", data=b"the one", timeout=30).close()
            with client(server.port, _uploaders("GET /item")) as node:
                tallies = node.result(within_s=size.cap_s)
    checks = _of_refused(tallies, 429, between="/item")
    return row("upload-429", server, tallies.values(), checks=checks, facts=_of_uploads(tallies, 429))


def upload_503(kind: Kind, size: Size) -> Row:
    """Uploads while as much is under way as may be; between them, the health check on the same connection."""
    # Stock counts connections, the one that asks among them, and refuses from the limit on.
    options = Options(workers=1, most_at_once=1 if kind is Kind.OURS else 2, drain_s=1)
    with serving(kind, options) as server, _held(server, "/work?ms=25000") as held:
        with client(server.port, _uploaders("GET /health")) as node:
            tallies = node.result(within_s=size.cap_s)
        if held.fate is not None:
            raise InconclusiveError(f"the request that holds the only place ended before the uploads: {held.fate}")
    checks = _of_refused(tallies, 503, between="/health")
    return row("upload-503", server, tallies.values(), checks=checks, facts=_of_uploads(tallies, 503))


def _uploaders(between: str) -> list[Crew]:
    """One who keeps the connection, and asks for something else after each upload, and one who does not."""
    kept = Crew(
        name="kept",
        clients=1,
        requests=2 * UPLOADS,
        wish="POST /upload",
        every=((2, between),),
        body_bytes=UPLOAD_BYTES,
    )
    return [kept, replace(kept, name="closed", requests=UPLOADS, every=(), keep_alive=False)]


def _of_refused(tallies: dict[str, Tally], status: int, *, between: str) -> list[Check]:
    kept, closed = tallies["kept"], tallies["closed"]
    return [
        no_errors(kept, closed),
        exactly(f"uploads answered {status}, connection kept", kept.statuses.get(f"/upload {status}", 0), UPLOADS),
        exactly(f"uploads answered {status}, connection closed", closed.statuses.get(f"/upload {status}", 0), UPLOADS),
        exactly("requests between them answered 200", kept.statuses.get(f"{between} 200", 0), UPLOADS),
        exactly("errors after the answer", sum((*kept.late.values(), *closed.late.values())), 0),
        exactly("answers with Retry-After", kept.retry_after + closed.retry_after, 2 * UPLOADS),
    ]


def _of_uploads(tallies: dict[str, Tally], status: int) -> dict[str, Fact]:
    return {
        f"{status}_read,_connection_{name}:": f"{tally.statuses.get(f'/upload {status}', 0)} of {UPLOADS}"
        for name, tally in tallies.items()
    }


@contextlib.contextmanager
def _held(server: Server, path: str) -> Iterator[Held]:
    """One request under way; it takes the server's only place."""
    _await(server, free=True)  # the connection that found the port open may still be counted
    with Held(server.port, path) as held:
        _await(server, free=False)
        yield held


def _await(server: Server, *, free: bool) -> None:
    deadline = time.monotonic() + 30
    while _answers(server) != free:
        if time.monotonic() > deadline:
            raise InconclusiveError(f"the server's only place never became {'free' if free else 'taken'}")
        time.sleep(0.05)


def _answers(server: Server) -> bool:
    try:
        asked(server.port)
    except (OSError, http.client.HTTPException, ValueError):  # a refusal is no process id
        return False
    return True


def threads_bounded(kind: Kind, size: Size) -> Row:
    """Deadlines of plain functions, whose threads nobody can stop."""
    timeouts = size.share(1_000, least=200)
    crew = Crew(name="load", clients=64, requests=timeouts, wish="GET /slow-sync?s=2")
    name = "patient" if kind is Kind.STOCK else "app"
    options = Options(workers=1, app=name, factory=kind is Kind.STOCK, request_timeout_s=0.25)
    with serving(kind, options) as server:
        worker = asked(server.port)
        with client(server.port, [crew]) as node:
            most = 0
            while not node.over:
                most = max(most, threads(worker))
                time.sleep(0.01)
            load = node.result(within_s=1)["load"]
        most = max(most, threads(worker))
    checks = [
        no_errors(load),
        exactly("answers 504", load.answers(504), timeouts),
        at_most("threads of the worker", most, POOL + 10),
    ]
    return row("threads", server, [load], checks=checks, facts={"most_threads": most})

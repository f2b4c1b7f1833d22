"""The Supabase client keeps its promises while connections break, upstreams hang and users sign in.

Fake: the upstream. `upstream.FakeSupabase` is real sockets, TLS, HTTP/1.1 and HTTP/2, and an imitation behind them: no
PostgREST, no Postgres, no gateway of Supabase's has ever run these tests. Real: supabase-py, httpx and all of ours.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from pydantic import SecretStr
from starlette.testclient import TestClient, WebSocketDenialResponse
from supabase import AsyncClient, AsyncClientOptions, create_async_client
from supabase import PostgrestAPIError as APIError
from supabase_functions.errors import FunctionsHttpError
from upstream import KEY, USER_TOKEN, FakeSupabase, Fault, tls_context

from service import database as rooms
from service.database import Patience, Supabase, get_supabase, idempotent, insert_once
from service.database import transport as underneath
from service.database.connections import _proxy
from service.errors import ConfigurationError, DatabaseTimeout, DatabaseUnavailable

# Waits that a test sits through are short; what must not end by itself on a slow machine is long.
SHORT_S = 0.4
PATIENT = Patience(deadline_s=30, connect_s=20, read_s=20, write_s=20, pool_s=20)
ONCE = Patience(deadline_s=30, connect_s=20, read_s=20, write_s=20, pool_s=20, attempts=1)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeSupabase]:
    async with FakeSupabase() as fake:
        yield fake


@pytest.fixture
async def database(upstream: FakeSupabase) -> AsyncIterator[Supabase]:
    async with Supabase(upstream.url, KEY, patience=PATIENT) as opened:
        yield opened


def read(supabase: AsyncClient) -> Awaitable[Any]:
    return supabase.table("messages").select("*").execute()


def insert(supabase: AsyncClient) -> Awaitable[Any]:
    return supabase.table("messages").insert({"id": 1, "text": "hi"}).execute()


async def failures_of(supabase: AsyncClient, reads: int, callers: int = 40) -> list[Exception]:
    """What `reads` reads by so many concurrent callers failed with."""
    failures, left = [], itertools.repeat(None, reads)

    async def caller() -> None:
        for _ in left:
            try:
                await read(supabase)
            except Exception as error:
                failures.append(error)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return failures


# Connections that upstreams close


async def test_none_of_3000_reads_at_40_callers_fails_while_the_upstream_closes_connections_every_500_requests(
    upstream: FakeSupabase, database: Supabase
) -> None:
    assert await failures_of(database.client, 3000) == []
    assert upstream.retired >= 6
    assert {call.version for call in upstream.calls} == {"HTTP/1.1"}
    assert upstream.accepted <= 40 * (upstream.retired + 1)  # kept, not opened for each call


async def test_the_same_without_repeating_loses_some_so_the_upstream_bites(upstream: FakeSupabase) -> None:
    async with Supabase(upstream.url, KEY, patience=ONCE) as once:
        assert await failures_of(once.client, 600) != []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # stock supabase warns of what it does itself
async def test_stock_supabase_loses_calls_to_the_same_upstream_and_saves_its_reads_only_by_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its HTTP/2 fails every call that is in flight at a GOAWAY. Its own retries, which are on by default and which a
    header tells of, save reads, each a second or more late; they do not save inserts."""
    tls, trusted = tls_context(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    for retry in (False, True):
        async with FakeSupabase(tls=tls, close_every=100) as upstream:
            stock = await create_async_client(upstream.url, KEY, AsyncClientOptions(postgrest_client_retry=retry))
            failures = await failures_of(stock, 120)
            assert {call.version for call in upstream.calls} == {"HTTP/2"}
            assert bool(failures) is not retry
            assert any("x-retry-count" in call.headers for call in upstream.calls) is retry
            await stock.postgrest.aclose()
            await stock.auth.close()
    async with (
        FakeSupabase(tls=tls, close_every=100) as upstream,
        Supabase(upstream.url, KEY, patience=PATIENT) as ours,
    ):
        assert await failures_of(ours.client, 120) == []
        assert upstream.retired > 0


async def test_the_fake_speaks_http2_without_tls_as_well(upstream: FakeSupabase) -> None:
    async with httpx.AsyncClient(http1=False, http2=True) as client:
        answer = await client.get(f"{upstream.url}/rest/v1/messages", headers={"apikey": KEY})
    assert (answer.http_version, answer.json(), upstream.calls[0].version) == ("HTTP/2", [], "HTTP/2")


async def test_many_callers_share_few_connections_and_wait_for_one(upstream: FakeSupabase) -> None:
    async with Supabase(upstream.url, KEY, patience=PATIENT, connections=3) as database:
        assert await failures_of(database.client, 120) == []
    assert upstream.accepted == 3


async def test_a_caller_who_finds_all_connections_busy_is_told_so(upstream: FakeSupabase) -> None:
    upstream.faults.append(Fault.HANG)
    async with Supabase(upstream.url, KEY, patience=Patience(pool_s=SHORT_S), connections=1) as database:
        hanging = asyncio.create_task(read(database.client))
        await upstream.heard(1)
        with pytest.raises(DatabaseTimeout, match=r"POST .*: all connections were busy for 0\.4 s; it was never sent"):
            await insert(database.client)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_callers_who_give_up_leave_no_connection_occupied(upstream: FakeSupabase) -> None:
    upstream.faults.extend([Fault.HANG] * 6)
    async with Supabase(upstream.url, KEY, patience=PATIENT, connections=3) as database:
        waiting = [asyncio.create_task(read(database.client)) for _ in range(6)]
        await upstream.heard(3)
        upstream.faults.clear()
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*waiting, return_exceptions=True)
        )
        assert await failures_of(database.client, 30, callers=6) == []


async def test_a_connection_that_was_idle_for_long_is_not_used_again(upstream: FakeSupabase) -> None:
    async with Supabase(upstream.url, KEY, patience=Patience(keep_alive_s=0.05)) as database:
        await asyncio.gather(read(database.client), read(database.client))
        await asyncio.sleep(0.1)
        await read(database.client)
        await upstream.left(1)  # the one that was left over is closed as well
        await asyncio.sleep(0.1)
        await read(database.client)
    assert upstream.accepted == 4


# Upstreams that hang


@contextlib.asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """The gaps between the turns that the event loop gave to a task that wants one every 10 ms."""
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - before)

    task = asyncio.create_task(beat())
    yield gaps
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("fault", "patience", "told"),
    [
        (Fault.HANG, Patience(read_s=SHORT_S), "no answer within 0.4 s"),
        (Fault.HANG, Patience(deadline_s=SHORT_S), "no answer within 0.4 s in all"),
        (Fault.DRIBBLE, Patience(deadline_s=SHORT_S), "no answer within 0.4 s in all"),
    ],
)
async def test_a_call_to_a_hung_upstream_ends_within_its_time_and_never_blocks_the_loop(
    upstream: FakeSupabase, fault: Fault, patience: Patience, told: str
) -> None:
    """No later than a second and a half: of a loop that blocked for as long, not one beat would be heard meanwhile."""
    async with Supabase(upstream.url, KEY, patience=patience) as database:
        upstream.faults.extend([fault] * 3)
        began = time.monotonic()
        async with heartbeat() as gaps:
            ends = await asyncio.gather(*(read(database.client) for _ in range(3)), return_exceptions=True)
        assert [type(end) for end in ends] == [DatabaseTimeout] * 3
        assert all(str(end) == f"supabase GET /rest/v1/messages: {told}" for end in ends)
        assert SHORT_S * 0.9 <= time.monotonic() - began < SHORT_S + 1.5
        assert max(gaps) < SHORT_S
        assert len(gaps) > 5
        assert len(upstream.calls) == 3  # who is slow is not asked twice
        await read(database.client)  # and the client lives


@pytest.mark.skipif(sys.platform != "linux", reason="what a full backlog does")
async def test_a_host_that_does_not_answer_its_phone_ends_within_the_connect_timeout() -> None:
    with socket.socket() as full:  # connections beyond its backlog get no answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        try:
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            async with Supabase(url, KEY, patience=Patience(connect_s=SHORT_S)) as database:
                with pytest.raises(DatabaseTimeout, match=r"no connection within 0\.4 s; it was never sent"):
                    await insert(database.client)
        finally:
            for filler in fillers:
                filler.close()


# What is repeated

CALLS: dict[str, Callable[[AsyncClient], Awaitable[Any]]] = {
    "select": read,
    "head": lambda client: client.table("messages").select("*", head=True).execute(),
    "rpc get": lambda client: client.rpc("now", get=True).execute(),
    "get_user": lambda client: client.auth.get_user(USER_TOKEN),
    "download": lambda client: client.storage.from_("files").download("a"),
    "insert": insert,
    "upsert": lambda client: client.table("messages").upsert({"id": 1}).execute(),
    "update": lambda client: client.table("messages").update({"text": "x"}).eq("id", 1).execute(),
    "delete": lambda client: client.table("messages").delete().eq("id", 1).execute(),
    "rpc": lambda client: client.rpc("now").execute(),
    "invoke": lambda client: client.functions.invoke("f"),
    "admin": lambda client: client.auth.admin.create_user({"email": "ann@example.com"}),
}
READS = ["select", "head", "rpc get", "get_user", "download"]
BREAKS = [Fault.DROP, Fault.LOSE, Fault.RESET, Fault.UNAVAILABLE, Fault.TIMED_OUT]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts."""
    monkeypatch.setattr(underneath.random, "uniform", lambda low, high: low)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", BREAKS)
async def test_a_read_is_repeated_until_it_comes_through(
    upstream: FakeSupabase, database: Supabase, fault: Fault
) -> None:
    for name in READS:
        upstream.faults.extend([fault, fault])
        await CALLS[name](database.client)
        expected = 1 if name == "head" and fault is Fault.RESET else 3  # an answer to HEAD has no middle
        assert (name, len(upstream.calls)) == (name, expected)
        upstream.calls.clear()
        upstream.faults.clear()


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_write_is_never_repeated_and_says_that_it_may_or_may_not_have_happened(
    upstream: FakeSupabase, database: Supabase, fault: Fault
) -> None:
    for name in CALLS.keys() - READS:
        if name == "invoke" and fault in {Fault.UNAVAILABLE, Fault.TIMED_OUT}:
            continue  # what a function answers is its own; see below
        upstream.faults.extend([fault] * 9)
        with pytest.raises(DatabaseUnavailable, match=r"; it may or may not have been carried out$") as caught:
            await CALLS[name](database.client)
        assert caught.value.maybe_done
        assert caught.value.headers is None  # a caller is not asked to try again
        assert "may or may not" in caught.value.detail
        assert (name, len(upstream.calls)) == (name, 1)
        upstream.calls.clear()
        upstream.faults.clear()


async def test_a_write_that_timed_out_may_have_happened_as_well(upstream: FakeSupabase) -> None:
    upstream.faults.append(Fault.DRIBBLE)
    async with Supabase(upstream.url, KEY, patience=Patience(deadline_s=SHORT_S)) as database:
        with pytest.raises(DatabaseTimeout, match="may or may not") as caught:
            await insert(database.client)
    assert caught.value.maybe_done
    assert upstream.inserted == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", [*BREAKS, None])
async def test_insert_once_inserts_once_and_returns_the_row_however_its_answer_is_lost(
    upstream: FakeSupabase, database: Supabase, fault: Fault | None
) -> None:
    upstream.faults.extend([fault, fault] if fault else [])
    row = await insert_once(database.client, "messages", {"text": "hi"})
    assert row == {"id": row["id"], "text": "hi", "seq": 1}
    assert upstream.tables["messages"] == {row["id"]: row}
    assert upstream.inserted == 1
    sent = [call for call in upstream.calls if call.method == "POST"]
    assert len(sent) == (3 if fault else 1)
    assert len({call.headers["idempotency-key"] for call in sent}) == 1


async def test_two_calls_of_insert_once_with_one_id_store_one_row_the_first(
    upstream: FakeSupabase, database: Supabase
) -> None:
    first = await insert_once(database.client, "messages", {"id": "of-a-browser", "text": "first"})
    again = await insert_once(database.client, "messages", {"id": "of-a-browser", "text": "again"})
    assert first == again == {"id": "of-a-browser", "text": "first", "seq": 1}
    assert upstream.inserted == 1


@pytest.mark.usefixtures("at_once")
async def test_insert_once_that_never_comes_through_says_that_it_may_have(
    upstream: FakeSupabase, database: Supabase
) -> None:
    upstream.faults.extend([Fault.LOSE] * 9)
    with pytest.raises(DatabaseUnavailable, match=r"closed without a whole answer, attempt 4; it may or may not"):
        await insert_once(database.client, "messages", {"text": "hi"})
    assert len(upstream.calls) == 4
    assert upstream.inserted == 1


async def test_insert_once_makes_ids_for_a_column_of_another_name(upstream: FakeSupabase, database: Supabase) -> None:
    row = await insert_once(database.client, "messages", {"id": 7, "client_id": None}, unique="client_id")
    assert len(row["client_id"]) == 36
    assert upstream.calls[0].query["on_conflict"] == "client_id"


async def test_a_write_of_ones_own_is_repeated_when_it_is_marked_as_idempotent(
    upstream: FakeSupabase, database: Supabase
) -> None:
    upstream.faults.append(Fault.DROP)
    await idempotent(database.client.rpc("close_ticket", {"id": 7})).execute()
    assert len(upstream.calls) == 2


async def test_a_file_that_was_sent_is_not_sent_again_from_its_end(
    upstream: FakeSupabase, database: Supabase, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"xyz")
    upstream.faults.append(Fault.DROP)
    with pytest.raises(DatabaseUnavailable, match="may or may not"):
        await database.client.storage.from_("files").upload("a", tmp_path / "a", {"headers": {"Idempotency-Key": "1"}})
    assert len(upstream.calls) == 1
    assert b"xyz" in upstream.calls[0].body


async def test_a_write_that_was_refused_was_never_sent_says_so_and_is_repeated(upstream: FakeSupabase) -> None:
    await upstream.refuse()
    async with Supabase(upstream.url, KEY, patience=ONCE) as database:
        with pytest.raises(
            DatabaseUnavailable, match=r"cannot connect: Connection refused; it was never sent"
        ) as caught:
            await insert(database.client)
    assert not caught.value.maybe_done
    assert caught.value.headers == {"retry-after": "1"}
    async with Supabase(upstream.url, KEY, patience=Patience(attempts=99, deadline_s=30)) as database:
        inserting = asyncio.create_task(insert(database.client))
        await asyncio.sleep(0.05)
        await upstream.listen()
        await inserting
    assert upstream.inserted == 1


async def test_attempts_end_by_their_number_and_by_the_deadline(upstream: FakeSupabase) -> None:
    upstream.faults.extend([Fault.DROP] * 99)
    async with Supabase(upstream.url, KEY, patience=PATIENT) as database:
        with pytest.raises(DatabaseUnavailable, match=r"closed without a whole answer, attempt 4$"):
            await read(database.client)
    assert len(upstream.calls) == 4
    await upstream.refuse()
    async with Supabase(upstream.url, KEY, patience=Patience(attempts=9999, deadline_s=SHORT_S)) as database:
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"Connection refused, attempt \d+$"):
            await read(database.client)
        assert time.monotonic() - began < SHORT_S + 1.5


async def test_retry_after_is_waited_for_unless_it_is_past_the_deadline(
    upstream: FakeSupabase, database: Supabase
) -> None:
    upstream.faults.append(Fault.LATER)  # an hour
    with pytest.raises(DatabaseUnavailable, match=r"it answered 503$") as caught:
        await read(database.client)
    assert len(upstream.calls) == 1
    assert caught.value.headers == {"retry-after": "3600"}
    call = underneath._Call(httpx.Request("GET", "http://h/", content=b""), Patience(deadline_s=10))
    for after_s, low, high in ((None, 0, 0.1), (0, 0, 0.2), (2, 2, 2.2), (7, 7, 7.4)):
        assert call.repeats(underneath._Failure("", broken=True, after_s=after_s))
        assert low <= call.wait_s <= high
    assert not call.repeats(underneath._Failure("", broken=True, after_s=10))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("0", 0), ("120", 120), (" 7 ", 7), ("99999999999", 86_400),
        ("", None), ("soon", None), ("-1", None), ("1.5", None), ("²", None),
        (format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0),
        (format_datetime(datetime.now(UTC) + timedelta(days=9), usegmt=True), 86_400),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_anything_else_is_nothing(value: str, wanted: float | None) -> None:
    assert underneath._retry_after_s(value) == wanted


# Errors


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.DROP, "supabase GET /rest/v1/messages: the connection was closed without a whole answer"),
        (Fault.RESET, "supabase GET /rest/v1/messages: the connection was closed without a whole answer"),
        (Fault.UNAVAILABLE, "supabase GET /rest/v1/messages: it answered 503 (PGRST002)"),
        (Fault.TIMED_OUT, "supabase GET /rest/v1/messages: it answered 504"),
        (Fault.GARBLED, "supabase GET /rest/v1/messages: the answer cannot be decoded"),
    ],
)
async def test_what_goes_wrong_on_the_way_is_told_in_our_words_and_carries_nothing_of_httpx(
    upstream: FakeSupabase, fault: Fault, told: str
) -> None:
    upstream.faults.append(fault)
    async with Supabase(upstream.url, KEY, patience=ONCE) as database:
        with pytest.raises(DatabaseUnavailable) as caught:
            await read(database.client)
    assert str(caught.value) == told
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_every_part_of_supabase_py_lets_our_errors_through(upstream: FakeSupabase) -> None:
    """Its auth client makes an AuthRetryableError of httpx's."""
    await upstream.refuse()
    async with Supabase(upstream.url, KEY, patience=ONCE) as database:
        for call in CALLS.values():
            with pytest.raises(DatabaseUnavailable, match="Connection refused"):
                await call(database.client)


async def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    tls, _ = tls_context(tmp_path)
    async with FakeSupabase(tls=tls) as upstream, Supabase(upstream.url, KEY, patience=ONCE) as database:
        with pytest.raises(
            DatabaseUnavailable, match=r"cannot connect: .*certificate verify failed.*; it was never sent"
        ):
            await insert(database.client)


async def test_what_postgrest_answers_stays_its_own_error(upstream: FakeSupabase, database: Supabase) -> None:
    await insert(database.client)
    with pytest.raises(APIError) as caught:
        await insert(database.client)
    assert caught.value.code == "23505"
    assert len(upstream.calls) == 2


async def test_an_answer_that_comes_compressed_is_read(upstream: FakeSupabase, database: Supabase) -> None:
    await database.client.table("zipped").insert({"id": 1}).execute()
    assert (await database.client.table("zipped").select("*").execute()).data == [{"id": 1, "seq": 1}]


async def test_what_a_function_answers_stays_its_own_error(upstream: FakeSupabase, database: Supabase) -> None:
    for fault in (Fault.UNAVAILABLE, Fault.TIMED_OUT):
        upstream.faults.append(fault)
        with pytest.raises(FunctionsHttpError):
            await database.client.functions.invoke("f", {"method": "GET"})
    assert len(upstream.calls) == 2


async def test_an_outage_is_a_line_a_second_and_not_one_a_call(
    upstream: FakeSupabase, caplog: pytest.LogCaptureFixture
) -> None:
    await upstream.refuse()
    async with Supabase(upstream.url, KEY, patience=ONCE) as database:
        began = time.monotonic()
        await failures_of(database.client, 100)
        seconds = time.monotonic() - began
    lines = [record for record in caplog.records if record.name == "onequota"]
    assert 1 <= len(lines) <= 1 + seconds
    assert 'database_unavailable error="supabase GET /rest/v1/messages: cannot connect' in lines[0].getMessage()


# Opening and closing


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_closing_leaves_nothing_open_whatever_was_used(upstream: FakeSupabase) -> None:
    """Files, tasks and warnings; one httpx client serves all parts of supabase-py."""
    async with Supabase(upstream.url, KEY, patience=PATIENT):
        pass  # what is imported and loaded once stays
    files, tasks = open_files(), asyncio.all_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with Supabase(upstream.url, KEY, patience=PATIENT) as database:
            made = {id(o) for o in gc.get_objects() if isinstance(o, httpx.AsyncClient) and not o.is_closed}
            await asyncio.gather(*(CALLS[name](database.client) for name in READS))
            user = await database.for_one_user()
            await user.auth.sign_in_with_password({"email": "ann@example.com", "password": "x"})
            await read(user)
            assert upstream.open > 0
            now = {id(o) for o in gc.get_objects() if isinstance(o, httpx.AsyncClient) and not o.is_closed}
            assert now == made
        await database.aclose()  # closing twice is nothing
        del user
        await upstream.left()
        assert open_files() == files
        assert asyncio.all_tasks() == tasks


async def test_closing_ends_calls_that_are_under_way(upstream: FakeSupabase) -> None:
    upstream.faults.append(Fault.HANG)
    async with Supabase(upstream.url, KEY, patience=ONCE) as database:
        hanging = asyncio.create_task(read(database.client))
        await upstream.heard(1)
    with pytest.raises(DatabaseUnavailable):
        await hanging


async def test_a_client_that_is_not_open_says_so(upstream: FakeSupabase) -> None:
    database = Supabase(upstream.url, KEY)
    with pytest.raises(DatabaseUnavailable, match="this is not open"):
        _ = database.client
    async with database:
        await read(database.client)
    for use in (database.ping, database.for_one_user):
        with pytest.raises(DatabaseUnavailable, match="this is not open"):
            await use()
    async with database:  # again
        await read(database.client)


async def test_a_client_is_of_one_event_loop(database: Supabase) -> None:
    def elsewhere() -> None:
        with pytest.raises(ConfigurationError, match="belongs to another event loop"):
            asyncio.run(read(database.client))  # type: ignore[arg-type]

    await asyncio.to_thread(elsewhere)


async def test_queries_name_us_and_the_schema(upstream: FakeSupabase) -> None:
    async with Supabase(upstream.url, KEY, schema="chat", patience=PATIENT) as database:
        await read(database.client)
        await read(await signed_in(database))
    for call in (upstream.calls[0], upstream.calls[-1]):
        assert call.headers["accept-profile"] == "chat"
        assert call.headers["x-client-info"].startswith("onequota/")


async def test_supabase_py_itself_keeps_no_session_refreshes_no_token_and_repeats_nothing(database: Supabase) -> None:
    for client in (database.client, await database.for_one_user()):
        options = client.options
        assert (options.persist_session, options.auto_refresh_token, options.postgrest_client_retry) == (False,) * 3


async def test_ping_asks_once_for_all_who_ask_within_a_second(upstream: FakeSupabase, database: Supabase) -> None:
    await asyncio.gather(*(database.ping() for _ in range(10)))
    assert [(call.method, call.path) for call in upstream.calls] == [("HEAD", "/rest/v1/")]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.HANG, r"no answer within 0\.4 s$"),
        (Fault.DROP, r"closed without a whole answer, attempt 4$"),
        (Fault.UNAVAILABLE, r"it answered 503, attempt 4$"),
    ],
)
async def test_ping_fails_in_our_words_and_in_time(
    monkeypatch: pytest.MonkeyPatch, upstream: FakeSupabase, database: Supabase, fault: Fault, told: str
) -> None:
    monkeypatch.setattr(rooms, "PING_S", SHORT_S if fault is Fault.HANG else 30)
    upstream.faults.extend([fault] * 4)
    ends = await asyncio.gather(*(database.ping() for _ in range(4)), return_exceptions=True)
    assert len({id(end) for end in ends}) == 4
    for end in ends:
        with pytest.raises(DatabaseUnavailable, match=f"^supabase ping: .*{told}"):
            raise end  # type: ignore[misc]


async def test_ping_tells_that_the_key_is_refused(upstream: FakeSupabase) -> None:
    async with Supabase(upstream.url, "sb_secret_of_another_project", patience=PATIENT) as database:
        with pytest.raises(DatabaseUnavailable, match=r"it refuses SUPABASE_SERVICE_KEY \(401\)"):
            await database.ping()


# Whose client it is


async def signed_in(database: Supabase) -> AsyncClient:
    user = await database.for_one_user()
    await user.auth.sign_in_with_password({"email": "ann@example.com", "password": "x"})
    return user


def test_what_leaves_an_auth_client_as_it_is_was_looked_at_in_this_version() -> None:
    """All else is refused. A method that a later supabase brings is refused as well: look at it, then allow it here."""
    from service.database.client import _STATELESS

    assert {"close", "get_claims", "get_session", "get_user", "resend"} == _STATELESS


@pytest.mark.parametrize(
    "name",
    [
        "sign_in_with_password", "sign_in_anonymously", "sign_in_with_id_token", "sign_in_with_otp", "sign_in_with_sso",
        "sign_in_with_oauth", "sign_up", "sign_out", "verify_otp", "set_session", "refresh_session", "update_user",
        "exchange_code_for_session", "initialize", "initialize_from_url", "reauthenticate", "link_identity",
        "reset_password_for_email",
    ],
)  # fmt: skip
async def test_nobody_signs_in_on_the_client_of_the_service(
    upstream: FakeSupabase, database: Supabase, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"supabase {name}\(\): .*database\.for_one_user\(\)"):
        getattr(database.client.auth, name)({"email": "ann@example.com", "password": "x"})
    assert upstream.calls == []


async def test_no_token_is_put_on_the_client_of_the_service(upstream: FakeSupabase, database: Supabase) -> None:
    for put in (database.client.postgrest.auth, database.client.functions.set_auth):
        with pytest.raises(ConfigurationError, match="who would all become that user"):
            put(USER_TOKEN)
    assert upstream.calls == []


async def test_stateless_parts_of_auth_work_and_leave_the_client_the_services(
    upstream: FakeSupabase, database: Supabase
) -> None:
    supabase = database.client
    answer = await supabase.auth.get_user(USER_TOKEN)
    assert answer is not None
    assert upstream.calls[-1].headers["authorization"] == f"Bearer {USER_TOKEN}"
    await supabase.auth.get_session()
    await supabase.auth.admin.get_user_by_id("9d3a6c1e-7a55-4c3e-8f3a-6f1f6f6f6f6f")
    await read(supabase)
    assert [call.headers["authorization"] for call in upstream.calls[1:]] == [f"Bearer {KEY}"] * 2


async def test_users_sign_in_on_clients_of_their_own_and_the_service_stays_itself(
    upstream: FakeSupabase, database: Supabase
) -> None:
    user = await signed_in(database)
    await read(user)
    await read(database.client)
    await database.client.schema("public").auth("t.of.another").from_("messages").select("*").execute()
    await read(database.client)
    said = [call.headers["authorization"] for call in upstream.calls[1:]]
    assert said == [f"Bearer {token}" for token in (USER_TOKEN, KEY, "t.of.another", KEY)]
    assert {call.headers["apikey"] for call in upstream.calls} == {KEY}


async def test_a_users_client_can_do_nothing_before_the_user_has_signed_in_nor_after_signing_out(
    upstream: FakeSupabase, database: Supabase
) -> None:
    """supabase-py's acts as the service then."""
    user = await database.for_one_user()
    for call in (read, insert, CALLS["download"], CALLS["invoke"]):
        with pytest.raises(ConfigurationError, match="nobody has signed in"):
            await call(user)
    await user.auth.sign_in_with_password({"email": "ann@example.com", "password": "x"})
    await read(user)
    await user.auth.sign_out()
    with pytest.raises(ConfigurationError, match="nobody has signed in"):
        await read(user)


async def test_a_token_that_a_caller_sends_cannot_become_the_key_even_if_it_is_what_stands_for_it(
    upstream: FakeSupabase, database: Supabase
) -> None:
    word, service = database.client.supabase_key, database.client.options.headers["Authorization"]
    with pytest.raises(ConfigurationError):
        await database.client.schema("public").auth(word).from_("messages").select("*").execute()
    for token in (service, service.split()[-1]):
        await database.client.schema("public").auth(token).from_("messages").select("*").execute()
        assert upstream.calls[-1].headers["authorization"] == f"Bearer {token}"


async def test_one_callers_cookies_are_not_sent_for_the_next(upstream: FakeSupabase, database: Supabase) -> None:
    await database.client.functions.invoke("cookie")
    await database.client.functions.invoke("cookie")
    assert not any("cookie" in call.headers for call in upstream.calls)


# The key


def reachable(root: object) -> Iterator[tuple[object, object]]:
    """(holder, held) for all that hangs on `root`, without modules, classes, functions and the event loop's own."""
    seen, queue = {id(root)}, [root]
    while queue:
        holder = queue.pop()
        for held in gc.get_referents(holder):
            kind = type(held)
            if kind.__module__.partition(".")[0] in {"asyncio", "_asyncio", "uvloop", "_ssl", "ssl", "logging"}:
                continue
            if isinstance(held, type) or kind.__name__ in {"module", "function", "builtin_function_or_method"}:
                continue
            yield holder, held
            if id(held) not in seen:
                seen.add(id(held))
                queue.append(held)


async def told_by(call: Awaitable[Any], errors: list[Exception]) -> list[str]:
    """What a failure tells, also to tools that show the locals of every frame. It is kept in `errors`."""
    try:
        await call
    except Exception as error:
        errors.append(error)
        with_locals = traceback.TracebackException.from_exception(error, capture_locals=True)
        return [str(error), repr(error), *with_locals.format()]
    return []


@pytest.mark.usefixtures("at_once")
async def test_the_key_is_in_no_log_no_error_no_repr_and_no_object_but_one(
    upstream: FakeSupabase, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever fails, at the most talkative log level, with the locals of every frame of a traceback."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    errors: list[Exception] = []
    slow = {Fault.HANG, Fault.DRIBBLE}
    async with Supabase(upstream.url, KEY, patience=Patience(deadline_s=SHORT_S)) as database:
        for fault in (*Fault, None):
            for name in ("insert",) if fault in slow else ("insert", "get_user") if fault else CALLS:
                upstream.faults.extend([fault] * 4 if fault else [])
                told += await told_by(CALLS[name](database.client), errors)
                upstream.faults.clear()
        await upstream.refuse()
        told += await told_by(read(database.client), errors)
        gc.collect()
        assert len(errors) > 10
        assert not [o for o in gc.get_objects() if isinstance(o, httpx.Headers) and KEY in o.values()]
        found = list(reachable(database))
        assert any(holder is database.client for holder, _ in found)  # it looks into what it should
        for holder, held in found:
            told += [repr(held)] if not isinstance(held, (str, bytes)) else []
            if KEY in (held if isinstance(held, str) else held.decode("latin-1") if isinstance(held, bytes) else ""):
                assert isinstance(holder, SecretStr), holder
    told += [repr(database), *(record.getMessage() for record in caplog.records), *capfd.readouterr()]
    assert {"httpx", "httpcore.http11", "httpcore.connection", "onequota"} <= {record.name for record in caplog.records}
    assert len(told) > 300
    assert not [text for text in told if KEY in text]


async def test_the_key_goes_out_in_two_headers_and_to_no_other_origin(
    upstream: FakeSupabase, database: Supabase
) -> None:
    async with FakeSupabase() as elsewhere:
        elsewhere_url = f"{elsewhere.url}/functions/v1/anything"
        with pytest.raises(FunctionsHttpError):  # it wants a key as well, and gets none
            await database.client.functions.invoke("redirect", {"headers": {"x-elsewhere": elsewhere_url}})
        assert KEY not in repr(elsewhere.calls)
        assert len(elsewhere.calls) == 1
    for make in CALLS.values():
        with contextlib.suppress(APIError):  # some of them collide
            await make(database.client)
    assert len(upstream.calls) == 1 + len(CALLS)
    for call in upstream.calls:
        holding = {name for name, value in call.headers.items() if KEY in value}
        assert holding <= {"apikey", "authorization"}
        assert KEY not in call.target
        assert KEY.encode() not in call.body


async def test_realtime_which_would_put_the_key_into_a_url_is_refused(database: Supabase) -> None:
    for use in (database.client.channel, database.client.realtime.connect):
        with pytest.raises(ConfigurationError, match="Realtime sends the key in a URL"):
            use()  # type: ignore[call-arg]


def test_a_proxy_of_the_environment_is_used_for_https_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it carries a tunnel; over http it would be handed the key."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "http://other:3128")
    assert _proxy(httpx.URL("https://p.supabase.co")) == "http://proxy:3128"
    assert _proxy(httpx.URL("http://127.0.0.1:54321")) is None
    monkeypatch.delenv("HTTPS_PROXY")
    assert _proxy(httpx.URL("https://p.supabase.co")) == "http://other:3128"
    monkeypatch.setenv("NO_PROXY", ".supabase.co")
    assert _proxy(httpx.URL("https://p.supabase.co")) is None


# Settings

GOOD = "https://abcdefgh.supabase.co"


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        (GOOD, GOOD),
        (f"{GOOD}/", GOOD),
        ("HTTPS://ABCDEFGH.Supabase.co", GOOD),
        ("https://db.example.com:8443", "https://db.example.com:8443"),
        ("http://127.0.0.1:54321", "http://127.0.0.1:54321"),
        ("http://localhost:54321/", "http://localhost:54321"),
        ("http://[::1]:54321", "http://[::1]:54321"),
        ("http://kong.supabase.svc:8000", "http://kong.supabase.svc:8000"),
    ],
)
def test_a_url_that_can_be_meant_is_taken(url: str, canonical: str) -> None:
    assert Supabase(url, KEY).url == canonical


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("abcdefgh.supabase.co", "wanted https://PROJECT.supabase.co"),
        ("abcdefgh", "wanted https://"),
        ("//abcdefgh.supabase.co", "wanted https://"),
        ("https:abcdefgh.supabase.co", "wanted https://"),
        ("ftp://abcdefgh.supabase.co", "wanted https://"),
        ("wss://abcdefgh.supabase.co", "wanted https://"),
        ("postgresql://postgres:hunter2@db.abcdefgh.supabase.co:5432/postgres", "the address of the database itself"),
        ("https://", "it names no host"),
        ("https://:8000", "it names no host"),
        ("https://h:port", "no port from 1 to 65535"),
        ("https://h:0", "no port from 1 to 65535"),
        ("https://h:99999", "no port from 1 to 65535"),
        ("https://h:", "no port from 1 to 65535"),
        ("https://[::1", "its host is unreadable"),
        (f"{GOOD}/rest/v1", "it has a path"),
        (f"{GOOD}//", "it has a path"),
        ("https://supabase.com/dashboard/project/abcdefgh", "it has a path"),
        (f"{GOOD}?apikey=hunter2", "more than a host"),
        (f"{GOOD}#x", "more than a host"),
        (f"{GOOD}?", "more than a host"),
        ("https://user:hunter2@abcdefgh.supabase.co", "more than a host"),
        (f" {GOOD}", "a space, a line break"),
        (f"{GOOD}\n", "a space, a line break"),
        ("https://abc defgh.supabase.co", "a space, a line break"),
        ("https://abcdefgh.supabase.co\u200b", "a character that no URL has"),
        ("https://münchen.example.com", "a character that no URL has"),
        ("http://abcdefgh.supabase.co", "would travel unencrypted; write https://"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_by_name_and_without_secrets(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Supabase(url, KEY)
    assert str(caught.value).startswith("SUPABASE_URL=")
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_that_holds_the_key_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r'^SUPABASE_URL="\*\*\*": it has a path'):
        Supabase(f"{GOOD}/{KEY}", KEY)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (f"{KEY}\n", "a space, a line break"),
        (f" {KEY}", "a space, a line break"),
        (f"{KEY[:20]} {KEY[20:]}", "a space, a line break"),
        (f"{KEY}é", "a character that no key has"),
        (f"{KEY}\x00", "a character that no key has"),
        ("anon", "is no key"),
        ("your-service-key", "is no key"),
        (f'"{KEY}"', "unquoted"),
        ("<the service key of the project>".replace(" ", "-"), "is no key"),
        (GOOD, "Are the two exchanged?"),
        ("postgresql://postgres:hunter2@db.abcdefgh.supabase.co", "Are the two exchanged?"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused_by_name_and_never_shown(key: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Supabase(GOOD, key)
    assert str(caught.value).startswith("SUPABASE_SERVICE_KEY ")
    assert told in str(caught.value)
    assert key.strip() not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (KEY, ""),
        ("eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl", ""),
        ("eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2lnbmF0dXJl", "row-level security applies"),
        ("eyJhbGciOiJIUzI1NiJ9.not-a-payload.c2lnbmF0dXJl", ""),
        ("sb_publishable_0123456789", "row-level security applies"),
        ("a.key.of.some.gateway.of.ones.own", ""),
    ],
)
async def test_a_public_key_is_taken_and_warned_of(caplog: pytest.LogCaptureFixture, key: str, told: str) -> None:
    async with Supabase(GOOD, key):
        pass
    assert told in caplog.text
    assert bool(told) is bool(caplog.text)
    assert key not in caplog.text


async def test_http_to_another_host_is_taken_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", GOOD):
        async with Supabase(url, KEY):
            assert caplog.text == ""
    async with Supabase("http://kong:8000", KEY):
        assert "SUPABASE_URL is http: the service key travels unencrypted to kong" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [{"deadline_s": 0}, {"read_s": -1}, {"connect_s": float("nan")}, {"pool_s": float("inf")}, {"attempts": 1.5}],
)
def test_a_patience_that_cannot_be_meant_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"patience: {next(iter(wrong))}="):
        Patience(**wrong)


def test_no_connection_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="connections=0: wanted at least 1"):
        Supabase(GOOD, KEY, connections=0)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("SUPABASE_URL", raising=False)
    monkeypatch.delenv("SUPABASE_SERVICE_KEY", raising=False)
    return monkeypatch


def test_half_of_the_settings_is_refused_by_the_name_of_the_missing_half(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SUPABASE_URL", KEY)  # exchanged, and alone: never shown
    with pytest.raises(ConfigurationError, match=r"^SUPABASE_SERVICE_KEY is not set, and SUPABASE_URL is: set both"):
        Supabase.from_env()
    environment.setenv("SUPABASE_SERVICE_KEY", KEY)
    with pytest.raises(ConfigurationError, match=r'^SUPABASE_URL="\*\*\*": '):
        Supabase.from_env()
    environment.setenv("SUPABASE_URL", "")
    with pytest.raises(ConfigurationError, match=r"^SUPABASE_URL is not set, and SUPABASE_SERVICE_KEY is: set both"):
        Supabase.from_env()


async def test_without_settings_it_opens_and_closes_and_says_that_there_is_none(
    environment: pytest.MonkeyPatch,
) -> None:
    async with Supabase.from_env() as database:
        assert not database.configured
        for use in (database.ping, database.for_one_user):
            with pytest.raises(DatabaseUnavailable, match="SUPABASE_URL and SUPABASE_SERVICE_KEY are not set"):
                await use()


async def test_with_settings_it_is_the_supabase_they_name(
    environment: pytest.MonkeyPatch, upstream: FakeSupabase
) -> None:
    environment.setenv("SUPABASE_URL", upstream.url)
    environment.setenv("SUPABASE_SERVICE_KEY", KEY)
    async with Supabase.from_env(schema="chat", patience=PATIENT) as database:
        await read(database.client)
    assert upstream.calls[0].headers["accept-profile"] == "chat"


def test_without_the_library_the_settings_name_what_to_install(
    monkeypatch: pytest.MonkeyPatch, environment: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    assert not Supabase.from_env().configured
    with pytest.raises(ConfigurationError, match=r"pip install 'onequota\[supabase\]'"):
        Supabase(GOOD, KEY)


def test_the_library_is_loaded_when_a_client_is_opened_and_not_before() -> None:
    code = (
        "import sys; from service.database import Supabase, get_supabase, lifespan\n"
        f"Supabase('{GOOD}', '{KEY}')\n"
        "print(sorted({'supabase', 'httpx', 'tenacity'} & sys.modules.keys()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "[]"


# In an app


def app_of(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/messages")
    async def messages(supabase: Annotated[AsyncClient, Depends(get_supabase)]) -> Any:
        return (await read(supabase)).data

    @app.post("/messages")
    async def post(supabase: Annotated[AsyncClient, Depends(get_supabase)]) -> Any:
        return (await insert(supabase)).data

    @app.websocket("/ws")
    async def ws(socket: WebSocket, supabase: Annotated[AsyncClient, Depends(get_supabase)]) -> None:
        await socket.accept()
        await socket.send_text(type(supabase).__name__)

    return app


def test_an_app_without_supabase_runs_and_answers_503_where_it_is_needed(environment: pytest.MonkeyPatch) -> None:
    with TestClient(app_of(lifespan=rooms.lifespan)) as client:
        answer = client.get("/messages")
        assert (answer.status_code, answer.json()) == (503, {"detail": "No database is configured"})
        assert "retry-after" not in answer.headers
        with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/ws"):
            pass
        assert caught.value.status_code == 503


def test_an_app_whose_lifespan_was_forgotten_tells_callers_the_same_and_the_log_what_to_do() -> None:
    app = app_of()
    with TestClient(app) as client:
        assert client.get("/messages").status_code == 503
    with pytest.raises(DatabaseUnavailable, match=r"FastAPI\(lifespan=database\.lifespan\) does"):
        get_supabase(WebSocket({"type": "websocket", "app": app}, None, None))  # type: ignore[arg-type]


def test_an_app_answers_503_when_supabase_is_away_and_tells_nothing_internal(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SUPABASE_URL", "http://127.0.0.1:1")
    environment.setenv("SUPABASE_SERVICE_KEY", KEY)
    with TestClient(app_of(lifespan=rooms.lifespan)) as client:
        for answer in (client.get("/messages"), client.post("/messages")):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "The database does not answer at the moment; try again shortly"}
            assert answer.headers["retry-after"] == "1"
        with client.websocket_connect("/ws") as socket:
            assert socket.receive_text() == "AsyncClient"


def test_an_app_answers_504_when_supabase_is_too_slow_and_does_not_ask_to_repeat_a_write() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with Supabase(url, KEY, patience=Patience(read_s=SHORT_S)) as app.state.supabase:
                yield

        with TestClient(app_of(lifespan=lifespan)) as client:
            read_, written = client.get("/messages"), client.post("/messages")
    assert (read_.status_code, written.status_code) == (504, 504)
    assert read_.json()["detail"] == "The database does not answer at the moment; try again shortly"
    assert written.json()["detail"] == "The database did not answer: this may or may not have been carried out"
    assert "retry-after" not in written.headers


def test_an_app_that_is_mounted_in_another_finds_the_others_supabase(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SUPABASE_URL", "http://127.0.0.1:1")
    environment.setenv("SUPABASE_SERVICE_KEY", KEY)
    outer = FastAPI(lifespan=rooms.lifespan)
    outer.mount("/inner", app_of())
    with TestClient(outer) as client, client.websocket_connect("/inner/ws") as socket:
        assert socket.receive_text() == "AsyncClient"

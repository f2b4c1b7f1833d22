"""The examples do what they say: alone, and as people run them, with a Node client and workers that come and go."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running import ROOT, Running, becomes, onequota
from servers import needs
from upstream import KEY, FakeSupabase

from examples.chat import app as chat


@pytest.fixture
async def supabase(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSupabase]:
    async with FakeSupabase() as fake:
        monkeypatch.setenv("SUPABASE_URL", fake.url)
        monkeypatch.setenv("SUPABASE_SERVICE_KEY", KEY)
        yield fake


@pytest.fixture
async def client(onequota: Any, supabase: FakeSupabase) -> AsyncIterator[httpx.AsyncClient]:
    onequota.attach(chat.app)
    async with (
        chat.app.router.lifespan_context(chat.app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=chat.app), base_url="http://chat") as client,
    ):
        yield client


async def say(client: httpx.AsyncClient, text: str = "hello", user: str = "alice", **more: str) -> httpx.Response:
    return await client.post("/messages", json={"text": text, **more}, headers={"x-user": user})


async def test_a_user_may_write_twenty_messages_a_minute(client: httpx.AsyncClient, onequota: Any) -> None:
    assert [(await say(client)).status_code for _ in range(21)] == [201] * 20 + [429]
    refused = await say(client)
    assert refused.json()["detail"] == "You write faster than anybody reads"
    assert onequota.assert_limited(refused, "20/minute") == 60
    assert (await say(client, user="bob")).status_code == 201


async def test_a_message_is_stored_once_however_often_it_is_sent(
    client: httpx.AsyncClient, supabase: FakeSupabase
) -> None:
    sent = [await say(client, "once", id="00000000-0000-4000-8000-000000000001") for _ in range(3)]
    assert {answer.status_code for answer in sent} == {201}
    assert {answer.json()["text"] for answer in sent} == {"once"}
    assert supabase.inserted == 1
    stolen = await say(client, "mine", user="mallory", id="00000000-0000-4000-8000-000000000001")
    assert (stolen.status_code, "once" in stolen.text) == (409, False)


async def test_long_messages_cost_more(client: httpx.AsyncClient) -> None:
    assert (await say(client, "x" * 1800)).headers["x-ratelimit-remaining"] == "16"


async def test_messages_are_read_in_order_after_the_last_seen(client: httpx.AsyncClient) -> None:
    for text in ("one", "two", "three"):
        await say(client, text)
    assert [message["text"] for message in (await client.get("/messages")).json()] == ["one", "two", "three"]
    after = (await client.get("/messages", params={"after": 2})).json()
    assert [message["text"] for message in after] == ["three"]


async def test_only_failed_logins_count(client: httpx.AsyncClient) -> None:
    for _ in range(9):
        assert (await client.post("/login", headers={"x-password": "open sesame"})).status_code == 200
    assert [(await client.post("/login")).status_code for _ in range(6)] == [401] * 5 + [429]


async def test_who_writes_other_names_into_the_header_gains_nothing(supabase: FakeSupabase, onequota: Any) -> None:
    """The proxy is on this machine; from elsewhere nobody's word is believed."""
    onequota.attach(chat.app)
    stranger = httpx.ASGITransport(app=chat.app, client=("203.0.113.7", 40000))
    async with (
        chat.app.router.lifespan_context(chat.app),
        httpx.AsyncClient(transport=stranger, base_url="http://chat") as client,
    ):
        sent = [await say(client, user=f"user{number}") for number in range(21)]
        assert [answer.status_code for answer in sent] == [201] * 20 + [429]
        assert {answer.json()["author"] for answer in sent[:20]} == {"203.0.113.7"}
        tried = [await client.post("/login", headers={"x-user": f"user{number}"}) for number in range(6)]
        assert [answer.status_code for answer in tried] == [401] * 5 + [429]


async def test_who_does_not_say_how_long_a_message_is_pays_for_a_long_one(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"text": "x"}'

    headers = {"content-type": "application/json", "x-user": "alice"}
    answer = await client.post("/messages", content=pieces(), headers=headers)
    assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (201, "3")


async def test_health_is_never_limited(client: httpx.AsyncClient) -> None:
    assert {(await client.get("/health")).status_code for _ in range(150)} == {200}


async def test_without_supabase_the_app_runs_and_says_what_is_missing(
    onequota: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUPABASE_URL", raising=False)
    monkeypatch.delenv("SUPABASE_SERVICE_KEY", raising=False)
    onequota.attach(chat.app)
    async with (
        chat.app.router.lifespan_context(chat.app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=chat.app), base_url="http://chat") as client,
    ):
        assert (await client.get("/health")).status_code == 200
        refused = await say(client)
        assert (refused.status_code, refused.json()["detail"]) == (503, "No database is configured")


def has_retired(running: Running, workers: int) -> bool:
    return running.said().count('"worker_retired"') >= workers


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_three_users_write_at_once_while_workers_are_replaced_and_nobody_hangs_up(
    supabase: FakeSupabase, tmp_path: Path
) -> None:
    """The complaint this project began with, from Node, with a reader on the stream."""
    variables = {"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_KEY": KEY, "ONEQUOTA_LOG_FORMAT": "json"}
    variables["ONEQUOTA_REDIS_TIMEOUT_MS"] = "10000"  # a process that waits for a core is no outage
    arguments = ["run", "examples.chat.app:app", "--app-dir", str(ROOT), "--port", "0", "--workers", "2"]
    service = onequota(tmp_path, *arguments, "--no-access-log", variables=variables)
    running = await asyncio.to_thread(service.__enter__)
    try:
        script = str(ROOT / "examples/chat/three_users.mjs")
        node = await asyncio.create_subprocess_exec(
            needs("node"), script, running.banner["url"], "8", stdout=asyncio.subprocess.PIPE
        )
        for turn in (1, 2):
            await asyncio.sleep(1)
            running.process.send_signal(signal.SIGHUP)
            assert await asyncio.to_thread(becomes, partial(has_retired, running, 2 * turn), 30)
        report = json.loads((await node.communicate())[0])
    finally:
        await asyncio.to_thread(service.__exit__, None, None, None)
    assert report["errors"] == {}
    assert report["statuses"]["201"] == 60, "twenty each"
    assert set(report["statuses"]) == {"201", "429"}
    assert report["statuses"]["429"] > 100
    assert report["streamed"] == 60, "over several streams, and none twice"
    assert report["streams"] > 1

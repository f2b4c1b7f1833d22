"""Secrets are in no log, no answer, no Redis key, no traceback; and whatever comes in, a line of the log stays one.

Real commands over a real Redis with a password: an app on `onequota run`, and the service. Both log all they
can, in both forms, while they are asked well, badly and so that they fail.
"""

import json
import socket
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx
import jwt
import pytest
import redis
from running import becomes, onequota
from servers import RedisServer

from bench.redises import free_port

PROJECT = "http://127.0.0.1:9"  # nothing listens there
REDIS_PASSWORD = "redis-p@ssw0rd/hunter2"
JWT_SECRET = "jwt-secret-hunter2-with-more-than-32-bytes"
IDENTITY_SECRET = "identity-secret-hunter2"
SERVICE_KEY = "service-role-hunter2"
API_KEY = "sk_live_hunter2_0123456789"
CALLER = "5f0e1d2c3b4a59687786958473625140"
TOKEN = jwt.encode(
    {"sub": "alice\r\nevent=forged", "aud": "authenticated", "iss": f"{PROJECT}/auth/v1", "exp": 4_000_000_000},
    JWT_SECRET,
    "HS256",
)
FORGED = jwt.encode(
    {"sub": "mallory", "aud": "authenticated", "iss": f"{PROJECT}/auth/v1", "exp": 4_000_000_000}, "x" * 40, "HS256"
)

SECRETS = [
    REDIS_PASSWORD,
    quote(REDIS_PASSWORD, safe=""),
    JWT_SECRET,
    IDENTITY_SECRET,
    SERVICE_KEY,
    API_KEY,
    CALLER,
    TOKEN,
    TOKEN.rpartition(".")[2],
    FORGED,
    FORGED.rpartition(".")[2],
]
INJECTED = '\r\n{"event":"forged"}\r\n2026-01-01T00:00:00.000Z critical forged event=forged\x1b[2J\u2028'

APP = """
import logging
from fastapi import FastAPI, Request
from service.limits import Ban, Limiter, identity

who = identity.first_of(
    identity.jwt_subject(), identity.api_key("x-api-key"), identity.client_address
)
limiter = Limiter(who, default_limits=["3/minute"], ban=Ban(after=2, for_s=60))
app = FastAPI()
app.state.limiter = limiter
app.add_middleware(limiter.middleware)

@app.get("/item")
async def item():
    return {}

@app.get("/broken")
async def broken(request: Request):
    logging.getLogger("app").warning("about to break for %s", request.headers.get("x-name", ""))
    raise RuntimeError("broken by " + request.headers.get("x-name", ""))

@app.get("/cost")
@limiter.limit("5/minute", cost=lambda request: int(request.query_params["cost"]))
async def cost():
    return {}
"""


@pytest.fixture
def guarded_redis():
    """A Redis that wants a password."""
    with RedisServer("--requirepass", REDIS_PASSWORD, port=free_port()) as server:
        yield server


def variables(server, form):
    return {
        "REDIS_URL": f"redis://:{quote(REDIS_PASSWORD, safe='')}@127.0.0.1:{server.port}/0",
        "SUPABASE_URL": PROJECT,
        "SUPABASE_JWT_SECRET": JWT_SECRET,
        "SUPABASE_SERVICE_KEY": SERVICE_KEY,
        "ONEQUOTA_IDENTITY_SECRET": IDENTITY_SECRET,
        "ONEQUOTA_LOG_FORMAT": form,
        "ONEQUOTA_LOG_LEVEL": "trace",
        "ONEQUOTA_ACCESS_LOG": "true",
        "ONEQUOTA_REDIS_TIMEOUT_MS": "5000",
    }


def keys_of(server):
    with redis.Redis(port=server.port, password=REDIS_PASSWORD) as client:
        return [key.decode("latin-1") for key in client.keys("*")]


def raw(port, *lines):
    """Sends bytes as they are; what comes back, as far as anything does."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("utf-8"))
        connection.settimeout(2)
        try:
            return connection.recv(65536).decode("latin-1")
        except TimeoutError:
            return ""


def assert_told_nobody(where, text):
    found = [secret for secret in SECRETS if secret in text]
    assert not found, f"{where} tells {found}: ...{text[max(0, text.index(found[0]) - 300) :][:400]}"


def assert_lines_are_whole(form, log):
    """Each line is an event; none begins with what somebody sent, and nothing commands a terminal."""
    assert log.strip()
    for line in log.splitlines():
        if form == "json":
            assert json.loads(line)["event"] != "forged"
        else:
            assert line.startswith(("20", "    ")), line
            assert not line.startswith("2026-01-01T00:00:00.000Z")
    assert "\x1b" not in log and "\r" not in log and "\u2028" not in log


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_app_tells_no_secret_and_no_line_of_its_log_can_be_forged(tmp_path, guarded_redis, form):
    """Tokens good and bad, keys, costs that cannot be meant, exceptions, refusals, bans; then Redis is gone."""
    (tmp_path / "shop.py").write_text(APP)
    settings = variables(guarded_redis, form)
    answers = []
    with onequota(tmp_path, "run", "shop:app", "--port", "0", "--workers", "1", variables=settings) as running:
        url = running.banner["url"]
        port = int(url.rpartition(":")[2].rstrip("/"))
        with httpx.Client(base_url=url, timeout=20) as client:
            for bearer in (TOKEN, FORGED, "x.y.z", SERVICE_KEY, CALLER):
                for _ in range(5):
                    answers.append(client.get("/item", headers={"authorization": f"Bearer {bearer}"}))
            for _ in range(5):
                answers.append(client.get("/item", headers={"x-api-key": API_KEY}))
            for bad in ("-1", "6", str(2**53), str(2**63), "nan", "1e3", "\r\nx", "hunter3"):
                answers.append(
                    client.get("/cost", params={"cost": bad}, headers={"x-api-key": API_KEY + bad[:1].strip()})
                )
            answers.append(
                client.get("/broken", headers={"x-name": "a\tb; event=forged", "authorization": f"Bearer {TOKEN}"})
            )
            answers.append(client.get("/" + quote(INJECTED), headers={"user-agent": "a", "x-request-id": "a b"}))
        answers_raw = [
            raw(
                port,
                f"GET /{quote(INJECTED)} HTTP/1.1",
                "Host: a",
                f"X-Request-ID: {quote(INJECTED)}",
                f"X-Api-Key: {API_KEY}",
            ),
            raw(port, "GET /item HTTP/1.1", f"Host: {INJECTED}", f"Authorization: Bearer {TOKEN}"),
            raw(port, "GET /item HTTP/1.1", "Host: a", f"X-Forwarded-For: {INJECTED}"),
            raw(port, f"GET /item?key={API_KEY} HTTP/9.9", "Host: a"),
        ]
        keys = keys_of(guarded_redis)
        guarded_redis.stop()
        with httpx.Client(base_url=url, timeout=20) as client:
            answers += [client.get("/item", headers={"x-api-key": f"{API_KEY}9"}) for _ in range(4)]
        assert becomes(lambda: "outage_began" in running.said(), 10)
        log = running.said()
    assert {200, 429, 500} <= {answer.status_code for answer in answers}
    assert keys
    for secret in (API_KEY, TOKEN):  # they were asked for, and by what is kept of them nobody can tell
        assert not any(secret in key for key in keys)
    assert_told_nobody("Redis", "\n".join(keys))
    assert_told_nobody("an answer", "\n".join(answer.text + str(answer.headers) for answer in answers))
    assert_told_nobody("an answer", "\n".join(answers_raw))
    # the access log holds the path as it was asked for: a key in a query is told by whoever put it there
    assert_told_nobody("the log", log.replace(f"key={API_KEY}", ""))
    assert_lines_are_whole(form, log)


def test_the_service_tells_no_secret_either(tmp_path, guarded_redis):
    """Good keys, bad ones, bodies that cannot be meant; its banner, its health, its log, its Redis."""
    settings = variables(guarded_redis, "json") | {"ONEQUOTA_API_KEYS": f"gate:{CALLER}:*"}
    answers = []
    with onequota(tmp_path, "serve", "--port", "0", "--workers", "1", variables=settings) as running:
        with httpx.Client(base_url=running.banner["url"], timeout=20) as client:
            for headers in ({"authorization": f"Bearer {CALLER}"}, {"x-api-key": CALLER}, {"x-api-key": API_KEY}, {}):
                for body in (
                    {"key": "alice\r\nforged", "limits": "1/minute"},
                    {"key": "", "limits": INJECTED},
                    [CALLER],
                ):
                    answers.append(client.post("/v1/check", json=body, headers=headers))
            answers += [client.get(path) for path in ("/health", "/ready", "/openapi.json", f"/{quote(INJECTED)}")]
        keys, log = keys_of(guarded_redis), running.said()
        told = json.dumps(running.banner)
    assert {200, 401, 422} <= {answer.status_code for answer in answers}
    sent = json.dumps([CALLER])
    assert_told_nobody("Redis", "\n".join(keys))
    assert_told_nobody("an answer", "\n".join(answer.text.replace(sent, "") for answer in answers))
    assert_told_nobody("the banner", told)
    assert_told_nobody("the log", log)
    assert_lines_are_whole("json", log)


def test_what_the_security_policy_points_at_is_there():
    """Every test file SECURITY.md names exists."""
    import re

    root = Path(__file__).parents[1]
    named = re.findall(r"`((?:tests|docs|bench|deploy)/[A-Za-z0-9_./]+)`", (root / "SECURITY.md").read_text())
    assert len(named) > 15
    assert [name for name in named if not (root / name).exists()] == []

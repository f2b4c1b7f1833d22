"""What must never be told, told to everybody who might tell it."""

import asyncio
import contextlib
import json

from bench.caller import Caller, LostError
from bench.promises import at_least, exactly
from bench.redises import RedisServer, free_port
from bench.service import service
from bench.trust.finding import Finding, Size

PASSWORD = "hunter2-of-redis-0123456789"
KEY = "7f3a9c51d2e84b06a1c7f9e3508d642bc1a0e5d7"
SUPABASE = "sb-service-key-0123456789abcdef"
GUESS = "e58d1c7b90a2f4633bd7e0915c8fa264d7b3e912"
SECRETS = (PASSWORD, KEY, SUPABASE, GUESS)
"""Ours, and one that a stranger tried: it may be good elsewhere."""
BREAKS = ("\r\n", "\n", "\r", "\x85", "\u2028", "\x0b", "\x1b[2J", "\x00")
FORGED = '{"event": "forged"}'


def told(_size: Size) -> Finding:
    """A service with a Redis password, an API key and a Supabase key: asked with good, guessed and broken keys, with
    CR, LF and other breaks in paths, headers, bodies and keys, while Redis is there, locks it out and is away. Then its
    log, all answers and all keys in Redis are searched."""
    environment = {
        "ONEQUOTA_API_KEYS": f"gateway:{KEY}:*",
        "SUPABASE_URL": "http://127.0.0.1:9",
        "SUPABASE_SERVICE_KEY": SUPABASE,
        "ONEQUOTA_LOG_LEVEL": "debug",
        "ONEQUOTA_LOG_FORMAT": "json",
    }
    with RedisServer("--requirepass", PASSWORD, port=free_port()) as redis:
        url = f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/0"
        with service(url, workers=2, environment=environment, options=["--access-log"]) as server:
            answers = asyncio.run(_ask(server.port))
            with redis.client(password=PASSWORD) as client:
                keys = b"\n".join(client.scan_iter()).decode("latin-1")
                client.config_set("requirepass", "another-one-entirely")
                client.client_kill_filter(_type="normal", skipme=True)
            answers += asyncio.run(_ask(server.port))
            redis.stop()
            answers += asyncio.run(_ask(server.port))
            log = server.log.read_text(errors="replace")
    lines = [line for line in log.splitlines() if line.strip()]
    broken = [line for line in log.split("\n") if line.strip() and not _is_event(line)]
    places = {"log": log, "answers": "\n".join(answers), "keys": keys}
    found = {f"{name}: {secret[:6]}…" for name, text in places.items() for secret in SECRETS if secret in text}
    return Finding(
        figure=f"{len(answers):,} answers, {len(lines):,} lines of log, {len(keys.splitlines())} keys: {len(found)} "
        f"secrets in them, {len(broken)} lines that are no event",
        checks=(
            exactly("secrets", sorted(found), []),
            exactly("lines that are no event", broken[:2], []),
            at_least("answers", len(answers), 100),
            at_least("lines of log", len(lines), 100),
            at_least("keys", len(keys.splitlines()), 3),
        ),
    )


def _is_event(line: str) -> bool:
    with contextlib.suppress(ValueError):
        read = json.loads(line)
        return isinstance(read, dict) and read.get("event") != "forged"
    return False


async def _ask(port: int) -> list[str]:
    """Everything, of everybody; what was answered."""
    answers: list[str] = []
    for bearer in (KEY, GUESS, "", PASSWORD):
        for broken in BREAKS:
            await _one(port, bearer, broken, answers)
    return answers


async def _one(port: int, bearer: str, broken: str, answers: list[str]) -> None:
    forged = f"a{broken}{FORGED}{broken}"
    headers = {"authorization": f"Bearer {bearer}", "x-request-id": forged.replace("\r", "").replace("\n", "")}
    bodies = [
        {"key": forged, "limits": "10/minute"},
        {"key": "k", "limits": forged},
        {"key": bearer or "k", "limits": "10/minute", forged: 1},
        {"domain": forged, "descriptors": [[{"key": forged, "value": forged}]]},
    ]
    async with Caller(port, timeout_s=20) as caller:
        for body in bodies:
            with contextlib.suppress(LostError):
                answer = await caller.ask("/v1/check", body, headers=_sendable(headers))
                answers.append(f"{answer.status} {answer.headers} {answer.body}")
        for path in (f"/{_quoted(forged)}", f"/v1/check?x={_quoted(forged)}", "/ready", "/health"):
            with contextlib.suppress(LostError):
                answer = await caller.ask(path, headers=_sendable(headers))
                answers.append(f"{answer.status} {answer.headers} {answer.body}")


def _sendable(headers: dict[str, str]) -> dict[str, str]:
    """What HTTP/1.1 can carry of them."""
    return {name: "".join(one for one in value if " " <= one <= "ÿ") for name, value in headers.items()}


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())

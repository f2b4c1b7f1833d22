"""What a service shows to whoever reaches it, without being told to."""

import asyncio
import re

from bench.caller import Caller
from bench.promises import Check, at_least, exactly
from bench.redises import RedisServer
from bench.service import NotStartedError, service
from bench.trust.finding import Finding, Size

KEY = "7f3a9c51d2e84b06a1c7f9e3508d642bc1a0e5d7"
PATHS = (
    *("/v1/admin", "/v1/admin/", "/v1/admin/reset", "/v1/admin/limits", "/v1/admin/keys", "/v1/admin/bans", "/admin"),
    *("/metrics", "/metrics/", "/dashboard", "/dashboard/", "/debug", "/debug/pprof", "/config", "/stats", "/rlconfig"),
    *("/V1/ADMIN", "//metrics", "/%6detrics", "/metrics%2f", "/health/../metrics", "/v1/check/../admin", "/.env"),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
OPEN = re.compile(r"/(health|ready|docs|openapi\.json|redoc|docs/oauth2-redirect)")


def closed(_size: Size) -> Finding:
    """`onequota serve` as it is started by default, and with an API key that is not sent: admin routes, metrics and the
    dashboard by every method and several spellings, and every operation of its own OpenAPI description. And
    `serve --host 0.0.0.0` without a key must not start."""
    checks: list[Check] = []
    asked = 0
    with RedisServer() as redis:
        for environment in ({}, {"ONEQUOTA_API_KEYS": f"gateway:{KEY}:*"}):
            with service(redis, workers=1, environment=environment) as server:
                found, described, number = asyncio.run(_knock(server.port))
            asked += number
            name = "with a key" if environment else "by default"
            checks.append(exactly(f"{name}: doors that are open", found, []))
            if environment:
                checks.append(exactly(f"{name}: operations that answer without it", described, []))
        try:
            with service(redis, workers=1, options=["--host", "0.0.0.0"]):
                refusal = ""
        except NotStartedError as error:
            refusal = str(error)
    checks.append(exactly("refused to start for everybody without a key", "ONEQUOTA_API_KEYS" in refusal, True))
    checks.append(at_least("requests", asked, 200))
    return Finding(figure=f"{asked} requests, none let in; 0.0.0.0 without a key: refused", checks=tuple(checks))


async def _knock(port: int) -> tuple[list[str], list[str], int]:
    """Doors that are open, operations that answered without a key, and how often it was tried."""
    found, described, asked = list[str](), list[str](), 0
    async with Caller(port) as caller:
        for path in PATHS:
            for method in METHODS:
                answer = await caller.ask(path, method=method)
                asked += 1
                if answer.status < 400:
                    found.append(f"{method} {path}: {answer.status}")
        description = (await caller.ask("/openapi.json")).body
        for path, operations in description["paths"].items():
            for method in operations:
                if OPEN.fullmatch(path):
                    continue
                answer = await caller.ask(path, {"key": "k", "limits": "1/day"}, method=method.upper())
                asked += 1
                if answer.status not in (401, 403, 404, 405, 429):
                    described.append(f"{method} {path}: {answer.status}")
    return found, described, asked

"""Is it alive, and can it decide?"""

import asyncio
import os
import time
from importlib import metadata
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from service import status
from service.database import Supabase
from service.errors import REDUCED_CAPACITY, DatabaseUnavailable, StoreUnavailable
from service.limits import Limiter
from service.limits.catalog import Live, Still
from service.limits.engine import Counters
from service.limits.passage import problem_response

try:
    VERSION = metadata.version("onequota")
except metadata.PackageNotFoundError:
    VERSION = "0+source"

ASK_EVERY_S = 0.2
"""How often one worker asks the store at most: `/ready` is not limited, for who asks it must get its answer."""


def router(limiter: Limiter, supabase: Supabase, live: Live | Still) -> APIRouter:
    """`/health`, never limited and never waiting, and `/ready`, which asks the store and Supabase.

    Both tell which catalog is in force in this worker, and why a newer one is not. `/health` tells of store and
    Supabase what this worker knows anyway.
    """
    routes = APIRouter(tags=["health"])
    known = "not asked yet" if supabase.configured else "not configured"
    asked_s: float = -ASK_EVERY_S
    asking = asyncio.Lock()
    said: tuple[dict[str, Any] | None, str | None] = None, None

    @routes.get("/health", summary="200 while the process lives")
    @limiter.exempt
    async def health() -> dict[str, Any]:
        me = {"status": "healthy", "version": VERSION, "pid": os.getpid(), **_decisions(limiter.engine.counters)}
        return {**me, "supabase": known, "limits": _limits(live), **_service()}

    @routes.get(
        "/ready",
        summary="200 when decisions can be made, else 503 with what is missing",
        responses={503: {"description": "Redis does not answer", "content": {"application/problem+json": {}}}},
    )
    @limiter.exempt
    async def ready() -> Response:
        nonlocal asked_s, said, known
        async with asking:  # one asks, and the others hear of it
            if time.monotonic() - asked_s > ASK_EVERY_S:
                try:
                    said = {"status": "ready", "store": await limiter.engine.ping()}, None
                except StoreUnavailable as error:
                    said = None, str(error)
                asked_s = time.monotonic()
        answer, missing = said
        known = await _supabase(supabase)
        told = {"supabase": known, "limits": _limits(live), **_service()}
        if missing is None:
            return JSONResponse({**(answer or {}), **told})
        response = problem_response(503, missing, type_=REDUCED_CAPACITY, extra={"missing": ["redis"], **told})
        response.headers["retry-after"] = "1"
        return response

    return routes


def _limits(live: Live | Still) -> dict[str, Any]:
    error = None if live.error is None else "; ".join(str(live.error).splitlines())
    counts = {"reloads": live.reloads, "refusals": live.refusals}
    return {"version": live.catalog.version, "domains": len(live.catalog.domains), "error": error, **counts}


def _decisions(counters: Counters) -> dict[str, Any]:
    """What this worker decided since it started, and whether it asks the store at the moment."""
    return {
        "store": "away" if counters.opened > counters.closed else "answers",
        "decisions": {
            "by_store": counters.decisions,
            "repeated": counters.repeated,
            "degraded": counters.degraded,
            "unsettled": counters.unsettled,
            "outages": counters.opened,
        },
    }


def _service() -> dict[str, Any]:
    """What the runner told this worker of all of them; `uptime_s` is the service's."""
    told = status.told()
    uptime_s = round(time.time() - told.started_s)
    return {"workers": told.workers, "serving": told.serving, "recycles": told.recycles, "uptime_s": uptime_s}


async def _supabase(supabase: Supabase) -> str:
    """In one word or sentence. Decisions do not need it: without it the service is ready all the same."""
    if not supabase.configured:
        return "not configured"
    try:
        await supabase.ping()
    except DatabaseUnavailable as error:
        return str(error)
    return "reachable"

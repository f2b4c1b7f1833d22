"""Is it alive, and can it decide?"""

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
from service.limits.passage import problem_response

try:
    VERSION = metadata.version("onequota")
except metadata.PackageNotFoundError:
    VERSION = "0+source"

ASK_EVERY_S = 0.2
"""How often one worker asks the store at most: `/ready` is not limited, for who asks it must get its answer."""


def router(limiter: Limiter, supabase: Supabase, live: Live | Still) -> APIRouter:
    """`/health`, never limited and never waiting, and `/ready`, which asks the store and Supabase.

    Both tell which catalog is in force in this worker, and why a newer one is not.
    """
    routes = APIRouter(tags=["health"])
    asked_s: float = -ASK_EVERY_S
    said: tuple[dict[str, Any] | None, str | None] = None, None

    @routes.get("/health", summary="200 while the process lives")
    @limiter.exempt
    async def health() -> dict[str, Any]:
        return {"status": "healthy", "version": VERSION, "pid": os.getpid(), "limits": _limits(live), **_service()}

    @routes.get(
        "/ready",
        summary="200 when decisions can be made, else 503 with what is missing",
        responses={503: {"description": "Redis does not answer", "content": {"application/problem+json": {}}}},
    )
    @limiter.exempt
    async def ready() -> Response:
        nonlocal asked_s, said
        if time.monotonic() - asked_s > ASK_EVERY_S:  # however often we are asked
            asked_s = time.monotonic()
            try:
                said = {"status": "ready", "store": await limiter.engine.ping()}, None
            except StoreUnavailable as error:
                said = None, str(error)
        answer, missing = said
        if missing is None:
            told = {"limits": _limits(live), "supabase": await _supabase(supabase), **_service()}
            return JSONResponse({**(answer or {}), **told})
        response = problem_response(503, missing, type_=REDUCED_CAPACITY, extra={"missing": ["redis"]})
        response.headers["retry-after"] = "1"
        return response

    return routes


def _limits(live: Live | Still) -> dict[str, Any]:
    error = None if live.error is None else "; ".join(str(live.error).splitlines())
    counts = {"reloads": live.reloads, "refusals": live.refusals}
    return {"version": live.catalog.version, "domains": len(live.catalog.domains), "error": error, **counts}


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

"""Is it alive, and can it decide?"""

import time
from importlib import metadata
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from service.errors import REDUCED_CAPACITY, StoreUnavailable
from service.limits import Limiter
from service.limits.passage import problem_response
from service.settings import Settings

try:
    VERSION = metadata.version("onequota")
except metadata.PackageNotFoundError:
    VERSION = "0+source"

ASK_EVERY_S = 0.2
"""How often one worker asks the store at most: `/ready` is not limited, for who asks it must get its answer."""


def router(limiter: Limiter, settings: Settings) -> APIRouter:
    """`/health`, never limited and never waiting, and `/ready`, which asks the store."""
    routes = APIRouter(tags=["health"])
    asked_s: float = -ASK_EVERY_S
    said: tuple[dict[str, str] | None, str | None] = None, None

    @routes.get("/health", summary="200 while the process lives")
    @limiter.exempt
    async def health() -> dict[str, Any]:
        return {"status": "healthy", "version": VERSION, "workers": settings.workers or 1}

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
            return JSONResponse(answer)
        response = problem_response(503, missing, type_=REDUCED_CAPACITY, extra={"missing": ["redis"]})
        response.headers["retry-after"] = "1"
        return response

    return routes

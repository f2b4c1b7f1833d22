"""Is it alive, and can it decide?"""

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


def router(limiter: Limiter, settings: Settings) -> APIRouter:
    """`/health`, never limited and never waiting, and `/ready`, which asks the store."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health", summary="200 while the process lives")
    @limiter.exempt
    async def health() -> dict[str, Any]:
        return {"status": "healthy", "version": VERSION, "workers": settings.workers or 1}

    @routes.get(
        "/ready",
        summary="200 when decisions can be made, else 503 with what is missing",
        responses={503: {"description": "Redis does not answer", "content": {"application/problem+json": {}}}},
    )
    @limiter.limit("600/minute", name="ready")
    async def ready() -> Response:
        try:
            store = await limiter.engine.ping()
        except StoreUnavailable as error:
            response = problem_response(503, str(error), type_=REDUCED_CAPACITY, extra={"missing": ["redis"]})
            response.headers["retry-after"] = "1"
            return response
        return JSONResponse({"status": "ready", "store": store})

    return routes

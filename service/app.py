"""The rate-limit service, wired: settings in, an ASGI app out. The only place where the parts meet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service import callers as known
from service import grpc
from service import settings as deployment
from service.database import Supabase
from service.limits import Limiter, Newcomers, identity
from service.limits.catalog import Catalog, Kept, Live, Still
from service.limits.passage import problem_response
from service.listener import for_grpc
from service.routes import asks, authorize, check, envoy, health, holding
from service.routes.raw import HotApp
from service.settings import Settings

DESCRIPTION = "May this caller do this now? One exact quota for every worker of every host."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI app.

    Args:
        settings: The deployment; None reads the environment.

    Raises:
        ConfigurationError: The settings cannot be meant.
    """
    settings = settings or deployment.load()
    limiter = Limiter(
        key_func=identity.client_address,
        storage_uri=settings.redis_url or "memory://",
        trusted_proxies=settings.trusted_proxies,
        deny=settings.deny,
        allow=settings.allow,
        newcomers=Newcomers(most=settings.newcomers) if settings.newcomers else None,
        deadline_s=settings.redis_timeout_ms / 1000,
        on_outage=settings.on_outage,
        hosts=settings.hosts,
    )
    live = _catalog(settings)

    def catalog() -> Catalog:
        return live.catalog

    keys = settings.api_keys
    callers = known.Callers(known.parse(keys.get_secret_value()) if keys else (), limiter, settings.miss_limit)

    key = settings.supabase_service_key
    supabase = Supabase(settings.supabase_url, key.get_secret_value() if key else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        calls = grpc.serving(for_grpc(), limiter, catalog, callers, settings)
        async with supabase as app.state.supabase, _watched(live), calls:
            yield
        await limiter.aclose()

    app = HotApp(
        title="onequota",
        description=DESCRIPTION,
        version=health.VERSION,
        lifespan=lifespan,
        exception_handlers={404: _problem, 405: _problem},
    )
    app.access = limiter.access
    app.state.limiter = limiter
    app.state.settings = settings
    app.state.callers = callers
    app.state.live = live
    app.add_middleware(limiter.middleware)
    app.include_router(health.router(limiter, supabase, live))
    app.include_router(holding.router(limiter, settings, callers, live))
    secret = settings.identity_secret.get_secret_value() if settings.identity_secret else None
    keeping = asks.Asks(limiter, callers)
    app.hot = {
        "/v1/check": check.Check(limiter, settings, callers, live),
        "/v1/authorize": authorize.Authorize(limiter, catalog, callers, secret),
        "/json": envoy.Envoy(limiter.engine, catalog, callers),
        "/v1/asks": keeping,
        "/v1/asks/forget": keeping,
        "/v1/asks/board": keeping,
    }
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        """FastAPI's, and the hot routes it does not know."""
        description = describe()
        for route in (check, authorize, envoy):
            route.describe(description)
        return description

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _catalog(settings: Settings) -> Live | Still:
    if settings.limits is None:
        return Still()
    return Live(settings.limits, kept=Kept(Path(settings.limits_kept)) if settings.limits_kept else None)


@asynccontextmanager
async def _watched(live: Live | Still) -> AsyncIterator[None]:
    watching = asyncio.create_task(live.watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _problem(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of every other error answer."""
    assert isinstance(error, HTTPException)
    detail = f"nothing answers {request.method} {request.url.path}; see /docs"
    response = problem_response(error.status_code, detail)
    response.headers.update(error.headers or {})
    return response

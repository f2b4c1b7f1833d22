"""onequota doctor: what is wrong with this deployment, as far as it can be seen from here. Nothing is charged."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx2 as httpx
from rich.console import Group
from rich.text import Text

from service.client import wire
from service.client.question import Check
from service.commands import judging, routes, words
from service.commands.asking import DEADLINE_S, Counters, Service, Whom
from service.commands.judging import Finding, RedisFacts
from service.commands.screen import Shown
from service.errors import AccessDenied, ConfigurationError, OnequotaError, StoreUnavailable
from service.limits import Limit, keys
from service.limits.decision import LOOK, Ask, Charge
from service.limits.engine import Engine
from service.limits.plan import outside
from service.redis_url import redacted
from service.routes.health import VERSION
from service.settings import (
    Settings,
    default_workers,
    redis_url_from_env,
    service_url_from_env,
    several_workers,
)
from service.settings import load as load_settings

TIMES = 20
"""How often something is asked to see how long it takes."""

_MARKS = {"good": ("✓", "green"), "note": ("!", "yellow"), "bad": ("✗", "bold red")}


def examine(whom: Whom, app: Any = None) -> Shown:
    """Look at everything there is; code 1 if anything is bad."""
    found = list(_all(whom, app))
    table = words.grid("left", "left", "fold")
    for finding in found:
        mark, style = _MARKS[finding.state]
        table.add_row(Text(mark, style), Text(finding.about, "bold"), Text(finding.sentence))
    bad = sum(finding.state == "bad" for finding in found)
    last = Text(f"{words.plural(bad, 'thing')} to mend", "bold red") if bad else Text("nothing to mend", "bold green")
    return Shown(
        text=Group(table, last),
        document={"findings": [asdict(finding) for finding in found], "bad": bad},
        code=1 if bad else 0,
    )


def _all(whom: Whom, app: Any) -> Iterator[Finding]:
    yield Finding("onequota", "good", f"{VERSION}, Python {sys.version.split()[0]}")
    settings = None
    try:
        settings = load_settings()
        workers = settings.workers or default_workers()
        yield from judging.of_settings(settings, workers=workers, open_files=_open_files())
    except ConfigurationError as error:
        yield Finding("environment", "bad", str(error))
    redis = whom.redis or (None if whom.url else _redis_url())
    if redis is not None:
        yield from _redis(redis, settings)
    url = whom.url or service_url_from_env()
    if url is not None:
        yield from _service(url, whom.api_key)
    if app is not None:
        try:
            for section in routes.sections(app):
                yield from judging.of_app(section, several_workers())
        except ConfigurationError as error:
            yield Finding("limiter", "bad", str(error))


def _redis_url() -> str | None:
    try:
        return redis_url_from_env()
    except ConfigurationError:  # told with the rest of the environment
        return None


def _open_files() -> int | None:
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  there is none on Windows

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _redis(url: str, settings: Settings | None) -> Iterator[Finding]:
    deadline_s = (settings.redis_timeout_ms if settings else 250) / 1000
    try:
        facts = Counters(url, None).run(lambda engine: _facts(engine, url))
    except (StoreUnavailable, ConfigurationError) as error:
        yield Finding("Redis", "bad", f"{error}")
        return
    yield from judging.of_redis(facts, deadline_s)


async def _facts(engine: Engine, url: str) -> RedisFacts:
    called = await engine.ping()
    limit = Limit(amount=1, window_s=1)
    ask = Ask([Charge(limit, keys.spell("", "doctor", outside("doctor"), limit.spelling), 0)], LOOK)
    await engine.decide(ask)  # connects, and brings the script
    took_s, ahead_s = [], 0.0
    for _ in range(TIMES):
        began_s = time.perf_counter()
        decision = await engine.decide(ask)
        took_s.append(time.perf_counter() - began_s)
        ahead_s = decision.at_us / 1e6 - time.time()
    store = engine.store()
    info: dict[str, Any] = {}
    client = getattr(store, "client", None)
    if client is not None:
        try:
            info = {**await client.info("memory"), **await client.info("replication")}
        except Exception:  # a managed Redis does not tell
            info = {}
    return RedisFacts(
        called=called, url=redacted(url), doubts=await store.doubts(), took_s=took_s, ahead_s=ahead_s, info=info
    )


def _service(url: str, api_key: str | None) -> Iterator[Finding]:
    try:
        where = wire.address(url, None).url
        service = Service(url, api_key)
    except ConfigurationError as error:
        yield Finding("service", "bad", str(error))
        return
    try:
        with httpx.Client(base_url=where, timeout=DEADLINE_S, trust_env=False) as http:
            health, ready = http.get("/health").json(), http.get("/ready")
            said = ready.json()
    except (httpx.HTTPError, ValueError) as error:
        yield Finding("service", "bad", f"{where} is no onequota service: {error or type(error).__name__}")
        return
    version, serving, all_of_them = health.get("version"), health.get("serving"), health.get("workers")
    yield Finding("service", "good", f"{where} is onequota {version}")
    if version != VERSION:
        yield Finding("versions", "note", f"the service is {version}, this command {VERSION}")
    if serving is not None and all_of_them is not None and serving < all_of_them:
        yield Finding("workers", "note", f"{serving} of {all_of_them} workers serve")
    if ready.status_code == 200:
        yield Finding("service's Redis", "good", str(said.get("store")))
    else:
        yield Finding("service's Redis", "bad", f"{said.get('detail')}")
    yield from _asked(service)


def _asked(service: Service) -> Iterator[Finding]:
    question = Check("onequota doctor", "1/second", peek=True)
    try:
        with service.client() as client:
            client.decide([question])
            began_s = time.perf_counter()
            for _ in range(TIMES):
                client.decide([question])
            took_ms = (time.perf_counter() - began_s) / TIMES * 1000
    except AccessDenied as error:
        yield Finding("API key", "bad", f"{error}; pass --api-key or set ONEQUOTA_API_KEY")
    except OnequotaError as error:
        yield Finding("checks", "bad", str(error))
    else:
        yield Finding("checks", "good", f"one takes {took_ms:.1f} ms from here")

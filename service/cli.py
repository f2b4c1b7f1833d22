"""The commands. No logic: options become settings and a target, an error becomes one line."""

import importlib.metadata
import sys
import traceback
from typing import Annotated, Any, NoReturn, cast

import typer

from service import logs
from service.commands import doctor, forms, routes, screen, validating
from service.commands.asking import Whom
from service.commands.forms import Make, Source
from service.errors import OnequotaError
from service.server import Banner, serve
from service.settings import load
from service.target import SERVICE, Target

app = typer.Typer(
    name="onequota",
    help="One quota for every worker: rate limits in Redis, exact over all processes of all hosts.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# click's, or that of the copy of click inside typer.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.", show_default="8000")]
GrpcPort = Annotated[
    int | None,
    typer.Option(metavar="PORT", help="Envoy's rate-limit service, by gRPC; 0 takes a free one.", show_default="off"),
]
Redis = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="See docs/redis.md: redis://, unix://, redis+cluster:// …",
        show_default="embedded",
    ),
]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="Least grave line.", show_default="info")]
LogFile = Annotated[str | None, typer.Option(metavar="FILE", help="Log there, too; rotating.", show_default=False)]
MaxRequests = Annotated[
    int | None, typer.Option(metavar="N", help="Replace a worker after so many.", show_default="never")
]
Json = Annotated[bool, typer.Option("--json", help="Say what is running as one line of JSON.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
Watch = Annotated[bool, typer.Option("--watch", help="Again and again, in place, until Ctrl-C.")]
Every = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often --watch looks.")]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A running service.", show_default="ONEQUOTA_URL")
]
ApiKey = Annotated[str | None, typer.Option(metavar="SECRET", help="For it.", show_default="ONEQUOTA_API_KEY")]
Counters = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="The Redis it counts in.", show_default="REDIS_URL")
]
Domain = Annotated[str | None, typer.Option(metavar="NAME", help="Of the service's limits.", show_default=False)]
Cost = Annotated[int, typer.Option(metavar="N", min=0, help="Units.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="Where it stands for this key.", show_default=False)]
AppDir = Annotated[str, typer.Option(metavar="DIR", help="Where MODULE is looked for first.")]
Factory = Annotated[bool, typer.Option("--factory", help="APP is a function that makes the app.")]
File = Annotated[str | None, typer.Option(metavar="FILE", show_default=False)]


def _workers(default: str) -> Any:
    return typer.Option(metavar="N", help="Processes that share the port.", show_default=default)


def _access_log(default: str) -> Any:
    return typer.Option("--access-log/--no-access-log", help="A line a request.", show_default=default)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = importlib.metadata.version("onequota")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed: a source tree)"
    typer.echo(f"onequota {version}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command("serve")
def _serve(
    *,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    workers: Annotated[int | None, _workers("one a core, at least 2")] = None,
    redis: Redis = None,
    limits: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Limits by name, read again on change; or a directory.", show_default=False),
    ] = None,
    max_requests: MaxRequests = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    access_log: Annotated[bool | None, _access_log("off: a line a decision costs more than the decision")] = None,
    as_json: Json = False,
) -> None:
    """The rate-limit service: POST /v1/check answers "may this caller do this now?"."""
    settings = load(
        host=host,
        port=port,
        grpc_port=grpc_port,
        workers=workers,
        redis_url=redis,
        limits=limits,
        max_requests=max_requests,
        log_level=log_level,
        log_file=log_file,
        access_log=access_log,
    )
    serve(settings, SERVICE, _announce(as_json))


@app.command("run")
def _run(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Any ASGI app, for example main:app.")],
    *,
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, _workers("1; in production one a core, at least 2")] = None,
    redis: Redis = None,
    max_requests: MaxRequests = None,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    access_log: Annotated[bool | None, _access_log("on")] = None,
    factory: Annotated[bool, typer.Option("--factory", help="APP is a function that makes the app.")] = False,
    app_dir: Annotated[str, typer.Option(metavar="DIR", help="Where MODULE is looked for first.")] = ".",
    uds: Annotated[
        str | None, typer.Option(metavar="PATH", help="Listen on a unix socket.", show_default=False)
    ] = None,
    fd: Annotated[
        int | None, typer.Option(metavar="N", help="Listen on an inherited socket.", show_default=False)
    ] = None,
    reload: Annotated[
        bool | None,
        typer.Option("--reload/--no-reload", help="Restart on changed files.", show_default="in development"),
    ] = None,
    ssl_keyfile: File = None,
    ssl_certfile: File = None,
    ssl_keyfile_password: Annotated[str | None, typer.Option(show_default=False)] = None,
    ssl_ca_certs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Ask clients for a certificate of these.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Any ASGI app, on the same runner; REDIS_URL of the embedded Redis is exported to it."""
    aim = Target(
        app=target,
        factory=factory,
        app_dir=app_dir,
        uds=uds,
        fd=fd,
        reload=reload,
        ssl_keyfile=ssl_keyfile,
        ssl_certfile=ssl_certfile,
        ssl_keyfile_password=ssl_keyfile_password,
        ssl_ca_certs=ssl_ca_certs,
    )
    settings = load(
        host=host,
        port=port,
        workers=workers,
        redis_url=redis,
        max_requests=max_requests,
        log_level=log_level,
        log_file=log_file,
        access_log=access_log,
    )
    serve(settings, aim, _announce(as_json))


@app.command("check")
def _check(
    words: Annotated[list[str], typer.Argument(metavar="KEY | KEY=VALUE...", help="Who asks; order counts.")],
    *,
    domain: Domain = None,
    limits: Annotated[
        str | None, typer.Option(metavar="LIMITS", help="Instead of a domain: 10/minute;200/hour", show_default=False)
    ] = None,
    cost: Cost = 1,
    algorithm: Annotated[str | None, typer.Option(metavar="NAME", show_default="fixed-window")] = None,
    burst: Annotated[int | None, typer.Option(metavar="N", help="For gcra.", show_default=False)] = None,
    peek: Annotated[bool, typer.Option("--peek", help="Look without spending.")] = False,
    limits_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A domain's limits, with --redis.", show_default=False)
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    redis: Counters = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="--peek again and again, until Ctrl-C.")] = False,
    every: Every = 1.0,
) -> None:
    """One decision: exit code 0 allowed, 1 refused, 2 no answer."""
    make = forms.check(
        words,
        Whom(url=url, api_key=api_key, redis=redis),
        domain=domain,
        limits=limits,
        limits_file=limits_file,
        algorithm=algorithm,
        burst=burst,
        cost=cost,
        peek=peek or watch,
    )
    _show(make, as_json, every if watch else None)


@app.command("explain")
def _explain(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:APP METHOD PATH | KEY=VALUE...]", help="A request to an app, or a domain."),
    ] = None,
    *,
    domain: Domain = None,
    limits_file: Annotated[
        str | None,
        typer.Option("--limits-file", "--limits", metavar="FILE", help="The domain's limits.", show_default=False),
    ] = None,
    key: Key = None,
    cost: Cost = 1,
    replay: Annotated[
        str | None,
        typer.Option(metavar="LOG", help="What the file would have refused of an access log.", show_default=False),
    ] = None,
    descriptor: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=FIELD],...", help="With --replay: what is made of a line.", show_default=False),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    redis: Counters = None,
    app_dir: AppDir = ".",
    factory: Factory = False,
    as_json: AsJson = False,
    watch: Watch = False,
    every: Every = 1.0,
) -> None:
    """Which limits hold for a request, in order, and why the others do not. Nothing is charged."""
    make = forms.explain(
        words or [],
        Whom(url=url, api_key=api_key, redis=redis),
        Source(app_dir=app_dir, factory=factory),
        domain=domain,
        limits_file=limits_file,
        key=key,
        cost=cost,
        replay=replay,
        descriptors=descriptor or [],
    )
    _show(make, as_json, every if watch else None)


@app.command("limits")
def _limits(
    what: Annotated[str | None, typer.Argument(metavar="MODULE:APP | FILE", help="An app, or a limits file.")] = None,
    *,
    key: Key = None,
    url: Url = None,
    api_key: ApiKey = None,
    redis: Counters = None,
    app_dir: AppDir = ".",
    factory: Factory = False,
    as_json: AsJson = False,
    watch: Watch = False,
    every: Every = 1.0,
) -> None:
    """All limits as a tree."""
    whom = Whom(url=url, api_key=api_key, redis=redis)
    make = forms.limits(what, whom, Source(app_dir=app_dir, factory=factory), key=key)
    _show(make, as_json, every if watch else None)


@app.command("validate")
def _validate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A limits file, or a directory of them.")],
    *,
    as_json: AsJson = False,
) -> None:
    """All that is wrong with a limits file: exit code 0 nothing, 1 something, 2 it cannot be read."""
    _show(lambda: validating.validate(file), as_json)


@app.command("reset")
def _reset(
    key: Annotated[str, typer.Argument(metavar="KEY", help="As it was charged.")],
    *,
    redis: Counters = None,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="Limiter(key_prefix=).", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Forget what was counted for a key, in all limits."""
    _show(forms.reset(key, redis, prefix), as_json)


@app.command("doctor")
def _doctor(
    target: Annotated[str | None, typer.Argument(metavar="[MODULE:APP]", help="An app to look at, too.")] = None,
    *,
    url: Url = None,
    api_key: ApiKey = None,
    redis: Counters = None,
    app_dir: AppDir = ".",
    factory: Factory = False,
    as_json: AsJson = False,
    watch: Watch = False,
    every: Every = 1.0,
) -> None:
    """What is wrong with this deployment: exit code 0 nothing, 1 something."""
    looked_at = None if target is None else routes.load(target, app_dir, factory=factory)
    whom = Whom(url=url, api_key=api_key, redis=redis)
    _show(lambda: doctor.examine(whom, looked_at), as_json, every if watch else None)


def _show(make: Make, as_json: bool, every_s: float | None = None) -> NoReturn:
    raise typer.Exit(screen.show(make, as_json=as_json, every_s=every_s))


def _announce(as_json: bool) -> Any:
    def say(banner: Banner) -> None:
        if banner.warning:
            _complain(f"warning: {banner.warning}")
        if sys.stdout is not None:  # whoever closed it does not want to know
            typer.echo(banner.json() if as_json else banner.text())
            sys.stdout.flush()

    return say


def _complain(sentence: str) -> None:
    """One line, whatever a user wrote is in it."""
    typer.echo(f"onequota: {' '.join(sentence.split())}", err=True)


def _fail(sentence: str) -> NoReturn:
    _complain(sentence)
    sys.exit(2)


def main() -> None:
    """Exit status 0 (or 1, where a command says what that means), or 2 with one line on standard error."""
    logs.answer_only()
    try:
        sys.exit(app(prog_name="onequota", standalone_mode=False))
    except OnequotaError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(f"{cast(Any, error).format_message().rstrip('.')}; see onequota --help")
    except typer.Abort:
        sys.exit(130)
    except Exception:  # a bug of ours: Python's own exit code would say "refused"
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    main()

"""The commands. No logic: options become settings and a target, an error becomes one line."""

import importlib.metadata
import sys
from typing import Annotated, Any, NoReturn, cast

import typer

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
    """Exit status 0, or 2 with one line on standard error."""
    try:
        sys.exit(app(prog_name="onequota", standalone_mode=False))
    except OnequotaError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(f"{cast(Any, error).format_message().rstrip('.')}; see onequota --help")
    except typer.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""The commands. No logic: options in, a table or JSON out. Exit 1: a promise does not hold; 2: could not measure."""

import contextlib
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import asked, exact, gateways, hangups, simulation, soak, tax, trust
from bench.processes import ROOT, Cpus
from bench.redises import MissingError
from bench.service import NotStartedError
from service.limits.algorithms import ALGORITHMS

app = typer.Typer(name="bench", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Figures as JSON.")]


class Generator(StrEnum):
    """What makes the load."""

    AUTO = "auto"
    WRK = "wrk"
    BUNDLED = "bundled"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """An expected error is one line and an exit status."""
    try:
        yield
    except tax.InexactError as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(1) from None
    except (
        MissingError,
        NotStartedError,
        exact.InconclusiveError,
        hangups.InconclusiveError,
        ValueError,
    ) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from None


@app.command("tax")
def _tax(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 9,
    requests: Annotated[int, typer.Option(min=100, help="A server and round; with wrk about as many.")] = 6_000,
    connections: Annotated[int, typer.Option(min=1, help="Kept alive.")] = 32,
    generator: Annotated[Generator, typer.Option(help="auto: wrk if it is installed.")] = Generator.AUTO,
    cpus: Annotated[Cpus, typer.Option(help="Of worker and Redis.")] = Cpus.APART,
    as_json: Json = False,
) -> None:
    """CPU a request: no limiter, stock slowapi, ours."""
    with_wrk = None if generator is Generator.AUTO else generator is Generator.WRK
    with _told():
        report = tax.measure(rounds=rounds, requests=requests, connections=connections, with_wrk=with_wrk, cpus=cpus)
    typer.echo(json.dumps(report.data()) if as_json else report.text())


@app.command("service")
def _service(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 9,
    requests: Annotated[int, typer.Option(min=100, help="Single checks a load and round; with wrk about as many.")] = (
        10_000
    ),
    bodies: Annotated[int, typer.Option(min=1, help="Of a thousand checks, a round.")] = 60,
    connections: Annotated[int, typer.Option(min=1, help="Kept alive.")] = 32,
    generator: Annotated[Generator, typer.Option(help="auto: wrk if it is installed.")] = Generator.AUTO,
    cpus: Annotated[Cpus, typer.Option(help="Of worker and Redis.")] = Cpus.APART,
    as_json: Json = False,
) -> None:
    """CPU an answer of the service: one check, a thousand at once; beside them a bare ASGI handler."""
    with_wrk = None if generator is Generator.AUTO else generator is Generator.WRK
    with _told():
        report = asked.measure(
            rounds=rounds, requests=requests, bodies=bodies, connections=connections, with_wrk=with_wrk, cpus=cpus
        )
    typer.echo(json.dumps(report.data()) if as_json else report.text())
    if not report.holds:
        raise typer.Exit(1)


@app.command("exact")
def _exact(
    *,
    requests: Annotated[int, typer.Option(min=2, help="An algorithm.")] = 20_000,
    limit: Annotated[int, typer.Option(min=1, help="Units; fewer than requests.")] = 5_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 8,
    algorithm: Annotated[str, typer.Option(help=f"all, {', '.join(ALGORITHMS)}.")] = "all",
    as_json: Json = False,
) -> None:
    """Many requests, one key, many processes: exactly the limit is admitted."""
    if algorithm not in ("all", *ALGORITHMS):
        raise typer.BadParameter(f'unknown algorithm "{algorithm}"; use all, {", ".join(ALGORITHMS)}')
    names = list(ALGORITHMS) if algorithm == "all" else [algorithm]
    with _told():
        counts = exact.exact(requests=requests, limit=limit, workers=workers, algorithms=names)
    typer.echo(json.dumps([c.data() for c in counts]) if as_json else "\n".join(c.text() for c in counts))
    if not all(count.exact for count in counts):
        raise typer.Exit(1)


@app.command("gateways")
def _gateways(
    *,
    requests: Annotated[int, typer.Option(min=4, help="Of all gateways together.")] = 20_000,
    limit: Annotated[int, typer.Option(min=1, help="Units; fewer than requests.")] = 5_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 4,
    as_json: Json = False,
) -> None:
    """gRPC, JSON and HTTP at once, one counter, many processes: exactly the limit is admitted."""
    with _told():
        mixed = gateways.mixed(requests=requests, limit=limit, workers=workers)
    typer.echo(json.dumps(mixed.data()) if as_json else mixed.text())
    if not mixed.exact:
        raise typer.Exit(1)


@app.command("hangups")
def _hangups(
    *,
    scenario: Annotated[list[str] | None, typer.Option(help=f"Repeatable: {', '.join(hangups.SCENARIOS)}.")] = None,
    requests: Annotated[int, typer.Option(min=400, help="A scenario and server.")] = hangups.FULL,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, where a scenario leaves it open.")] = None,
    patience: Annotated[float, typer.Option(min=1, help="Times longer than promised is fine: a shared machine.")] = 1,
    stock: Annotated[bool, typer.Option("--stock/--no-stock", help="Stock uvicorn beside ours.")] = True,
    as_json: Json = False,
) -> None:
    """Client errors while workers come and go: stock uvicorn, ours; Node keep-alive clients."""
    names = scenario or list(hangups.SCENARIOS)
    if unknown := [name for name in names if name not in hangups.SCENARIOS]:
        raise typer.BadParameter(f'unknown scenario "{unknown[0]}"; use {", ".join(hangups.SCENARIOS)}')
    size = hangups.Size(requests=requests, workers=workers, patience=patience)
    if not as_json:
        typer.echo(hangups.HEAD)
    with _told():
        report = hangups.measure(names, size, stock=stock, tell=lambda row: None if as_json else typer.echo(row.text()))
    typer.echo(json.dumps(report.data()) if as_json else report.verdict())
    if report.broken:
        raise typer.Exit(1)


@app.command("simulate")
def _simulate(
    *,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs.")] = 1_000,
    first: Annotated[int, typer.Option("--seed", min=0, help="The first of them.")] = 0,
    as_json: Json = False,
) -> None:
    """Fleets in virtual time, with all that can go wrong; a seed is a run, the same every time."""
    report = simulation.simulate(range(first, first + seeds), tell=lambda run: typer.echo(run.text(), err=True))
    typer.echo(json.dumps(report.data()) if as_json else report.text())
    if report.broken:
        raise typer.Exit(1)


@app.command("soak")
def _soak(
    *,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 4,
    connections: Annotated[int, typer.Option(min=1, help="Callers.")] = 32,
    as_json: Json = False,
) -> None:
    """A real service for a while, mixed traffic, workers and Redis that come and go: what was exact, lost, leaked."""
    with _told():
        report = soak.soak(minutes=minutes, workers=workers, connections=connections)
    typer.echo(json.dumps(report.data()) if as_json else report.text())
    if report.broken:
        raise typer.Exit(1)


@app.command("trust")
def _trust(
    *,
    row: Annotated[list[str] | None, typer.Option(help="Repeatable; default: every row.")] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Full counts and times; docs/trust.md is written, with --row those rows of it."),
    ] = False,
    patience: Annotated[float, typer.Option(min=1, help="Times longer than promised is fine: a shared machine.")] = 1,
    write: Annotated[Path | None, typer.Option(help="Write the page there.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """What must hold under faults, bad input and attack, row by row; a tenth of the full counts by default."""
    known = {one.key: one for one in trust.ROWS}
    if unknown := [key for key in row or () if key not in known]:
        raise typer.BadParameter(f'unknown row "{unknown[0]}"; use {", ".join(known)}')
    size = trust.Size(share=1 if full else trust.TENTH.share, patience=patience)
    rows = [known[key] for key in row] if row else list(trust.ROWS)
    with _told():
        results = trust.measure(rows, size, tell=lambda one: None if as_json else typer.echo(one.text()))
    if full:
        write = write or ROOT / "docs" / "trust.md"
    if write is not None:
        before = write.read_text(encoding="utf-8") if full and write.exists() else ""
        page = trust.page(results, size, before=before, rows=trust.ROWS if full else rows)
        write.write_text(page, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps([one.data() for one in results]))
    if not all(one.held for one in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m bench")

"""onequota validate: a limits file, before it is used."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from service.commands.screen import Shown
from service.commands.words import plural
from service.errors import ConfigurationError
from service.limits.catalog import MOST_FLAWS, InvalidCatalog, load


def validate(path: str) -> Shown:
    """All that is wrong with a file, or a directory of files; code 1 if anything is.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if not Path(path).exists():
        raise ConfigurationError(f"{path}: no such file or directory")
    try:
        catalog = load(path)
    except InvalidCatalog as error:
        if error.line == 0 and "cannot be read" in str(error):
            raise ConfigurationError(str(error)) from None
        return _flawed(path, error)
    rules = sum(1 for _ in catalog.rules())
    counted = f"{plural(len(catalog.domains), 'domain')}, {plural(rules, 'rule')}"
    return Shown(
        text=Text.assemble((f"{path} is good", "green"), f": {counted}", (f", version {catalog.version}", "dim")),
        document={
            "file": path,
            "valid": True,
            "flaws": [],
            "version": catalog.version,
            "domains": {name: sum(1 for _ in domain.rules()) for name, domain in catalog.domains.items()},
        },
    )


def _flawed(path: str, error: InvalidCatalog) -> Shown:
    lines: list[RenderableType] = [
        Text.assemble((f"{flaw.place}: ", "bold"), flaw.sentence, overflow="fold") for flaw in error.flaws
    ]
    least = "at least " if len(error.flaws) == MOST_FLAWS else ""
    lines.append(Text(f"{least}{plural(len(error.flaws), 'flaw')}: a service would keep the limits it has", "red"))
    return Shown(
        text=Group(*lines),
        document={
            "file": path,
            "valid": False,
            "flaws": [
                {
                    "file": flaw.place.file,
                    "line": flaw.place.line or None,
                    "column": flaw.place.column or None,
                    "sentence": flaw.sentence,
                }
                for flaw in error.flaws
            ],
        },
        code=1,
    )

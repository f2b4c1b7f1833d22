"""The last good catalog of a service, in a file of its own: for workers that start while the files are bad."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from service.logs import events

log = events()

Sources = Sequence[tuple[str, bytes]]


class Kept:
    """One file that all workers of a service write and read; each writes the same.

    Args:
        path: In a directory that only this service writes to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, sources: Sources, version: str) -> None:
        """Write the catalog, unless it is there. Never raises: without it all goes well as long as the files do."""
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            if self._version() != version:
                with zipfile.ZipFile(beside, "w") as archive:
                    archive.comment = version.encode()
                    for number, (_, content) in enumerate(sources):
                        archive.writestr(f"{number}.yaml", content)
                beside.replace(self.path)
        except OSError as error:
            log.warning("catalog_not_kept", path=self.path, error=error)

    def read(self) -> Sources | None:
        """The catalog that was kept; None = none, or none that can be read."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return [(name, archive.read(name)) for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile):
            return None

    def _version(self) -> str | None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.comment.decode()
        except (OSError, zipfile.BadZipFile):
            return None

"""The catalog in force: a file or a directory that is read again when it changes, the last good one kept."""

import asyncio
import gc
import stat
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from watchfiles import awatch

from service.limits.catalog.catalog import LARGEST_BYTES, Catalog, parse_all, version_of
from service.limits.catalog.faults import InvalidCatalog, Place
from service.limits.catalog.kept import Kept, Sources
from service.logs import events

log = events()

_TRIES = 5
_FRESH_NS = 2_000_000_000
"""A file that changed so shortly ago may change again without its time stamps showing it."""

_MOST_LINKS = 16

Trace = tuple[tuple[str, int, int, int, int, int], ...]
"""What tells that files changed, without reading them: name, device, inode, size and two time stamps of each."""


class Still:
    """No files: a catalog that knows no domain, and stays so. Like `Live` otherwise."""

    catalog = Catalog({}, "none")
    error: InvalidCatalog | None = None
    reloads = refusals = 0

    async def watch(self) -> None:
        """Nothing to see."""


def load(path: str | Path) -> Catalog:
    """The catalog of a file, or of all `*.yaml` and `*.yml` right in a directory, by name, without hidden ones.

    Raises:
        InvalidCatalog: What is wrong with it; also where it cannot be read.
    """
    return _parsed(_read(Path(path)))


def _parsed(sources: Sequence[tuple[str, bytes]]) -> Catalog:
    """`parse_all` in a third of its time: it makes no garbage in circles, and to look for that costs the rest.

    Where what stays is kept from the collector (`worker.py`), a catalog is, too: to walk one of 100,000 rules takes
    half a second, in which nobody is answered.
    """
    collecting, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    if frozen:
        gc.collect()  # else what is garbage by now would stay
    gc.disable()
    try:
        catalog = parse_all(sources)
        if frozen:
            gc.freeze()
        return catalog
    finally:
        if collecting:
            gc.enable()


class Live:
    """Holds the catalog of a path.

    `catalog` is a value: take it once for a request, and the request is decided by one version.

    Attributes:
        path: A file or a directory.
        catalog: In force; replaced as a whole, never changed.
        error: Why a newer one is not in force; None = there is none, or it was good.
        reloads: How often another one has come into force.
        refusals: How often a bad one has not.

    Args:
        path: Where the catalog is.
        settle_s: How long a file must have stopped changing before `watch` reads it, seconds: who writes in place
            instead of renaming is given time to finish.
        poll_s: How often `watch` looks for itself, seconds, for file systems that tell nothing.
        kept: Where the last good one of this service is, to begin with while the files are bad.

    Raises:
        InvalidCatalog: There is no good catalog to begin with.
    """

    def __init__(
        self, path: str | Path, *, settle_s: float = 0.25, poll_s: float = 2.0, kept: Kept | None = None
    ) -> None:
        self.path = Path(path)
        self.error: InvalidCatalog | None = None
        self.reloads = self.refusals = 0
        self._kept = kept
        self._settle_s = settle_s
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._seen = _trace(self.path)
        try:
            sources: Sources = _read(self.path)
            self.catalog = _parsed(sources)
        except InvalidCatalog as error:
            before = kept.read() if kept is not None else None
            if before is None:
                raise
            self.catalog = _parsed(before)
            self._refuse(error)
        else:
            self._tried = self.catalog.version
            self._take(sources)

    def refresh(self) -> bool:
        """Read the path again; whether another catalog is in force now. Never raises; may be called in any thread."""
        with self._lock:
            self._seen = _trace(self.path)
            try:
                sources = _read(self.path)
                version = version_of(content for _, content in sources)
                if version == self._tried:
                    return False
                before = self.catalog.version
                if version != before:
                    catalog = _parsed(sources)
                    old = [self.catalog]
                    self.catalog = catalog
                    _let_go(old)
            except InvalidCatalog as error:
                return self._refuse(error)
            self.error, self._tried = None, version
            self.reloads += version != before
            self._take(sources)
            return version != before

    def _refuse(self, error: InvalidCatalog) -> bool:
        if self.error is None or str(self.error) != str(error):
            self.refusals += 1
            log.error("catalog_refused", path=self.path, in_force=self.catalog.version, error=_line(error))
        self.error, self._tried = error, ""
        return False

    def _take(self, sources: Sources) -> None:
        """What has been read is in force."""
        catalog = self.catalog
        if self._kept is not None:
            self._kept.keep(sources, catalog.version)
        log.info("catalog_loaded", path=self.path, version=catalog.version, domains=len(catalog.domains))

    async def watch(self) -> None:
        """Refresh whenever the files change: written in place, renamed over, a symbolic link turned. Until cancelled.

        Changes are told by the system for the directories on the way to the files; what it does not tell (some network
        file systems, a link further up) is seen every `poll_s`. Files are touched in threads only: where one hangs,
        the loop does not.
        """
        told = ""
        while True:
            try:
                await self._watch_places()
            except Exception as error:  # there are no watches left, say: then it is looked at, in a while
                if told != str(error):
                    log.warning("catalog_watch_failed", path=self.path, error=error, polling_s=self._poll_s)
                    told = str(error)
                await asyncio.sleep(self._poll_s)

    async def _watch_places(self) -> None:
        """Until one of the watched directories is another one."""
        places = await asyncio.to_thread(_places, self.path)
        ticks = awatch(
            *{name for name, _, _ in places},
            watch_filter=None,
            debounce=200,
            step=20,
            rust_timeout=int(self._poll_s * 1000),
            yield_on_timeout=True,
            recursive=False,
        )
        async with aclosing(ticks):
            first = asyncio.create_task(_next(ticks))
            try:
                await asyncio.sleep(0)  # now it watches: nothing can change unseen after this look
                await self._look(told=False)
                await self._look(told=bool(await first))
            finally:
                first.cancel()
                await asyncio.wait([first])
            while await asyncio.to_thread(_places, self.path) == places:
                await self._look(told=bool(await _next(ticks)))

    async def _look(self, *, told: bool) -> None:
        """Refresh if something changed, once it stands still."""
        trace = await asyncio.to_thread(_trace, self.path)
        if trace == self._seen and not (told and _fresh(trace)):
            return
        while True:
            await _pause(self._settle_s)
            now = await asyncio.to_thread(_trace, self.path)
            if now == trace:
                break
            trace = now
        await asyncio.to_thread(self.refresh)


_pause = asyncio.sleep


async def _next(ticks: AsyncGenerator[set[Any], None]) -> set[Any]:
    """What changed; nothing = time is up."""
    return await anext(ticks)


def _let_go(old: list[Catalog]) -> None:
    """Free a catalog rule by rule: at once, a large one would keep all threads waiting meanwhile. Empties `old`."""
    held = [descriptor for domain in old.pop().domains.values() for descriptor in domain.children]
    for descriptor in held:  # grows meanwhile
        held += descriptor.children
    while held:
        held.pop()


def _line(error: InvalidCatalog) -> str:
    return "; ".join(str(error).splitlines())


def _files(path: Path) -> Iterator[Path]:
    """What a path stands for."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.iterdir()):
        if file.suffix in (".yaml", ".yml") and not file.name.startswith(".") and not file.is_dir():
            yield file


def _trace(path: Path) -> Trace:
    """As far as there are files; () = none."""
    found = []
    try:
        for file in _files(path):
            now = file.stat()
            found.append((file.name, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
    except OSError:
        return ()
    return tuple(found)


def _fresh(trace: Trace) -> bool:
    return any(time.time_ns() - max(file[-2:]) < _FRESH_NS for file in trace)


def _read(path: Path) -> list[tuple[str, bytes]]:
    """The files as they were at one moment: none changed, and no link was turned, while they were read."""
    for _ in range(_TRIES):
        before = _trace(path)
        try:
            sources = _contents(path)
        except OSError as error:
            if _trace(path) != before:
                continue
            reason = f"cannot be read: {error.strerror or error}"
            raise InvalidCatalog.at(Place(str(error.filename or path)), reason) from None
        if _trace(path) == before:
            if not sources:
                raise InvalidCatalog.at(Place(str(path)), "there is no .yaml or .yml file in this directory")
            return sources
    raise InvalidCatalog.at(Place(str(path)), "cannot be read: it changes all the time")


def _contents(path: Path) -> list[tuple[str, bytes]]:
    found, left = [], LARGEST_BYTES + 1
    for file in _files(path):
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would keep whoever opens it waiting
            raise InvalidCatalog.at(Place(str(file)), "cannot be read: it is no file")
        with file.open("rb") as opened:
            found.append((str(file), opened.read(left)))
        left -= len(found[-1][1])
    return found


def _places(path: Path) -> frozenset[tuple[str, int, int]]:
    """The directories in which a change shows, (path, device, inode): where names are, and where their links lead."""
    found = {path.parent, *([path] if path.is_dir() else [])}
    for file in [path, *islice(_files(path), _MOST_LINKS)]:
        link = file
        for _ in range(_MOST_LINKS):
            if not link.is_symlink():
                break
            link = link.parent / link.readlink()
            found.add(link.parent)
        found.add(link.resolve().parent)
    places = []
    for place in found:
        with suppress(OSError):
            now = place.stat()
            places.append((str(place), now.st_dev, now.st_ino))
    return frozenset(places)

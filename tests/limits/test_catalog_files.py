"""The catalog in force: read again when its files change, by one version at a time, the last good one kept."""

# ruff: noqa: ASYNC240  (files of a few bytes)

import asyncio
import gc
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.limits.catalog import InvalidCatalog, Kept, Live, live, load, parse

PATIENCE_S = 20


def text(amount: int, domain: str = "d") -> str:
    return f"domain: {domain}\ndescriptors:\n  - key: k\n    limits: {amount}/minute\n"


def amount(found: Live, domain: str = "d") -> int | None:
    match = found.catalog.match(domain, [("k", "v")])
    return match and match.rule.limits[0].amount


def replace(path: Path, content: str) -> None:
    """As a careful program writes: beside it, then renamed over it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(content)
    beside.rename(path)


def turn(link: Path, target: str) -> None:
    """Point a symbolic link elsewhere, at once."""
    beside = link.with_name(f"{link.name}.new")
    beside.symlink_to(target)
    beside.rename(link)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "limits.yaml"
    path.write_text(text(1))
    return path


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "onequota")

    def told() -> list[str]:
        return [record.onequota[0] for record in caplog.records if hasattr(record, "onequota")]

    return told


def test_a_file_is_read(file: Path) -> None:
    assert load(file).version == load(str(file)).version == parse(text(1)).version


def test_of_a_directory_its_yaml_files_are_read_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.yaml", ".hidden.yaml", "notes.txt", "d.yaml.bak"):
        (tmp_path / name).write_text(text(1, name) if name[0] in "abc" else "no: catalog")
    (tmp_path / "within.yaml").mkdir()
    (tmp_path / "within.yaml" / "e.yaml").write_text("no: catalog")
    assert list(load(tmp_path).domains) == ["a.yml", "b.yaml", "c.yaml"]


def test_flaws_name_the_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(1))
    (tmp_path / "b.yaml").write_text(text(2))
    with pytest.raises(InvalidCatalog) as caught:
        load(tmp_path)
    assert caught.value.file == str(tmp_path / "b.yaml")
    assert f"the first is at {tmp_path / 'a.yaml'}:1:1" in str(caught.value)


def _missing(path: Path) -> Path:
    return path / "none.yaml"


def _empty(path: Path) -> Path:
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path / "pipe.yaml")
    return path / "pipe.yaml"


def _dangling(path: Path) -> Path:
    (path / "a.yaml").write_text(text(1))
    (path / "b.yaml").symlink_to("nowhere")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "none.yaml: cannot be read: No such file or directory"),
        (_empty, "there is no .yaml or .yml file in this directory"),
        (_pipe, "pipe.yaml: cannot be read: it is no file"),
        (_dangling, "b.yaml: cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_read_is_an_invalid_catalog_too(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(InvalidCatalog) as caught:
        load(make(tmp_path))
    assert str(caught.value).startswith(str(tmp_path)) and str(caught.value).endswith(says)
    assert (caught.value.line, caught.value.column) == (0, 0)


def test_without_a_good_catalog_to_begin_with_there_is_none(file: Path) -> None:
    file.write_text("domain: [")
    with pytest.raises(InvalidCatalog):
        Live(file)


def test_the_first_load_is_an_event_with_the_version(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onequota")
    found = Live(file)
    assert [record.getMessage() for record in caplog.records] == [
        f"catalog_loaded path={file} version={found.catalog.version} domains=1"
    ]


def test_a_change_comes_into_force_and_is_told_once(file: Path, events: Callable[[], list[str]]) -> None:
    found = Live(file)
    before = found.catalog
    replace(file, text(2))
    assert found.refresh() is True
    assert (amount(found), found.error) == (2, None)
    assert before.match("d", [("k", "v")]).rule.limits[0].amount == 1, "a request in flight keeps its version"
    assert found.refresh() is False
    assert events() == ["catalog_loaded", "catalog_loaded"]


def test_the_same_content_written_again_is_no_change(file: Path, events: Callable[[], list[str]]) -> None:
    found = Live(file)
    before = found.catalog
    replace(file, text(1))
    assert found.refresh() is False
    assert found.catalog is before
    assert events() == ["catalog_loaded"]


def test_a_bad_file_keeps_the_last_good_one_and_says_why_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onequota")
    found = Live(file)
    version = found.catalog.version
    file.write_text("domain: d\nlimit: 3\nfoo: 4\n")
    assert [found.refresh() for _ in range(3)] == [False, False, False]
    assert (amount(found), found.error.line, len(found.error.flaws)) == (1, 2, 2)
    refused = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(refused) == 1
    assert refused[0].getMessage() == (
        f'catalog_refused path={file} in_force={version} error="{file}:2:1: unknown key \\"limit\\" in the top of the '
        f'file; known are domain, descriptors, atomic; {file}:3:1: unknown key \\"foo\\" in the top of the file; '
        'known are domain, descriptors, atomic"'
    )


def test_another_reason_is_told_again(file: Path, events: Callable[[], list[str]]) -> None:
    found = Live(file)
    for content in ("domain: [", "domain: d\nx: 1", text(1)):
        file.write_text(content)
        found.refresh()
    assert found.error is None
    assert events() == ["catalog_loaded", "catalog_refused", "catalog_refused", "catalog_loaded"]


def test_a_good_file_that_comes_back_is_the_very_catalog_that_was_in_force(file: Path) -> None:
    found = Live(file)
    before = found.catalog
    file.unlink()
    assert found.refresh() is False
    assert "No such file" in str(found.error)
    assert amount(found) == 1
    file.write_text(text(1))
    assert found.refresh() is False
    assert found.catalog is before
    assert found.error is None


def test_a_file_that_was_emptied_is_not_an_empty_catalog(file: Path) -> None:
    found = Live(file)
    file.write_text("")
    found.refresh()
    assert amount(found) == 1
    assert "the file is empty" in str(found.error)


def test_files_that_change_while_they_are_read_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files behind one link: turned after the first was read, the second would be of another version."""
    for version in (1, 2):
        (tmp_path / f"v{version}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"v{version}" / f"{name}.yaml").write_text(text(version, name))
    current = tmp_path / "current"
    current.symlink_to("v1")
    really = live._contents
    turned = []

    def contents(path: Path) -> list[tuple[str, bytes]]:
        found = really(path)
        if not turned:
            turned.append(turn(current, "v2"))
            found[1:] = really(path)[1:]
        return found

    monkeypatch.setattr(live, "_contents", contents)
    found = load(current)
    assert {found.match(name, [("k", "v")]).rule.limits[0].amount for name in ("a", "b")} == {2}


def test_files_that_never_stand_still_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = live._contents

    def contents(path: Path) -> list[tuple[str, bytes]]:
        found = really(path)
        replace(file, text(5))
        return found

    monkeypatch.setattr(live, "_contents", contents)
    with pytest.raises(InvalidCatalog, match="it changes all the time"):
        load(file)


def test_while_it_is_replaced_all_the_time_every_answer_is_of_one_version(file: Path) -> None:
    versions = {parse(content).version: content for content in (text(1) + " " * 100_000, text(2) + "#" * 100_000)}
    found = Live(file)
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for content in versions.values():
                replace(file, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        until = time.monotonic() + PATIENCE_S
        while len(seen) < 2 and time.monotonic() < until:
            found.refresh()
            if found.catalog.version in versions:
                seen.add(found.catalog.version)
                assert amount(found) == (1 if found.catalog.version == next(iter(versions)) else 2)
    finally:
        over.set()
        writer.join()
    assert seen == set(versions)
    assert found.refresh() in (True, False) and found.error is None


@asynccontextmanager
async def watching(found: Live) -> AsyncIterator[None]:
    task = asyncio.create_task(found.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE_S)
        assert task.cancelled()


async def until(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Whether it holds in time; nobody else knows when."""
    end = time.monotonic() + patience_s
    while not holds() and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return bool(holds())


async def came(found: Live, expected: int) -> None:
    assert await until(lambda: amount(found) == expected), (amount(found), str(found.error))


def watched(path: Path) -> Live:
    """Told by the system, not found by looking: that is too seldom to be waited for."""
    return Live(path, settle_s=0.02, poll_s=3 * PATIENCE_S)


async def follows(change: Callable[[int], object], *found: Live) -> None:
    """Each of several changes is seen: the first perhaps by the look at the beginning, the others are told."""
    for number in (101, 102, 103):
        change(number)
        for one in found:
            await came(one, number)


async def test_a_rename_over_the_file_is_seen(file: Path) -> None:
    found = watched(file)
    async with watching(found):
        await follows(lambda number: replace(file, text(number)), found)
        for number in (7, 8, 9):
            replace(file, text(number))
            await came(found, number)


async def test_a_file_written_in_place_is_seen(file: Path) -> None:
    found = watched(file)
    async with watching(found):
        await follows(lambda number: file.write_text(text(number)), found)
        file.write_text(text(9))
        await came(found, 9)


async def test_a_config_map_that_turns_its_link_is_seen(tmp_path: Path) -> None:
    """As Kubernetes mounts one: limits.yaml → ..data/limits.yaml, and ..data → a directory that is replaced."""

    def publish(number: int) -> None:
        directory = tmp_path / f"..{number}"
        directory.mkdir()
        (directory / "limits.yaml").write_text(text(number))
        turn(tmp_path / "..data", directory.name)

    publish(1)
    (tmp_path / "limits.yaml").symlink_to("..data/limits.yaml")
    one, all_of_it = watched(tmp_path / "limits.yaml"), watched(tmp_path)
    async with watching(one), watching(all_of_it):
        await follows(publish, one, all_of_it)
        publish(9)
        assert await until(lambda: amount(one) == amount(all_of_it) == 9)
        shutil.rmtree(tmp_path / "..1")


async def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.yaml").write_text(text(1))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "limits.yaml").symlink_to("../elsewhere/real.yaml")
    found = watched(tmp_path / "here" / "limits.yaml")
    async with watching(found):
        await follows(lambda number: replace(elsewhere / "real.yaml", text(number)), found)


async def test_a_deleted_file_keeps_the_catalog_and_its_return_is_seen(file: Path) -> None:
    found = watched(file)
    async with watching(found):
        await follows(lambda number: replace(file, text(number)), found)
        kept = amount(found)
        file.unlink()
        assert await until(lambda: found.error is not None)
        assert amount(found) == kept
        file.write_text(text(9))
        await came(found, 9)
        assert found.error is None


async def test_files_that_come_go_and_change_in_a_directory_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(1))
    found = watched(tmp_path)
    async with watching(found):
        await follows(lambda number: replace(tmp_path / "a.yaml", text(number)), found)
        (tmp_path / "b.yaml").write_text(text(2, "e"))
        assert await until(lambda: amount(found, "e") == 2)
        (tmp_path / "b.yaml").unlink()
        assert await until(lambda: "e" not in found.catalog.domains)


async def test_a_directory_that_is_replaced_as_a_whole_is_seen_and_watched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches: list[set[str]] = []
    really = live.awatch

    def awatch(*paths: str, **how: object) -> object:
        watches.append(set(paths))
        return really(*paths, **how)

    monkeypatch.setattr(live, "awatch", awatch)
    place = tmp_path / "conf"
    place.mkdir()
    (place / "limits.yaml").write_text(text(1))
    found = watched(place / "limits.yaml")
    found._poll_s = 0.05  # the way to the directory itself is looked at, not watched
    async with watching(found):
        await follows(lambda number: replace(place / "limits.yaml", text(number)), found)
        place.rename(tmp_path / "old")
        assert await until(lambda: found.error is not None)
        place.mkdir()
        (place / "limits.yaml").write_text(text(2))
        await came(found, 2)
        assert await until(lambda: watches == [{str(place)}, set(), {str(place)}])
        replace(place / "limits.yaml", text(3))
        await came(found, 3)


async def test_a_bad_file_under_watch_is_told_once_and_mended(file: Path, events: Callable[[], list[str]]) -> None:
    found = watched(file)
    async with watching(found):
        await follows(lambda number: replace(file, text(number)), found)
        so_far = len(events())
        replace(file, "domain: [")
        assert await until(lambda: found.error is not None)
        replace(file, text(9))
        await came(found, 9)
    assert events()[so_far:] == ["catalog_refused", "catalog_loaded"]


async def test_a_file_that_is_still_being_written_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half is a catalog too: only that it goes on changing tells that it is not all."""
    whole = text(7) + "  - {key: last, limits: 1/minute}\n"
    half = whole[: whole.index("  - {key: last")]
    paused = []

    async def pause(_: float) -> None:
        paused.append(file.read_text())
        if paused[-1] == half:
            with file.open("a") as opened:
                opened.write(whole[len(half) :])
        await asyncio.sleep(0)

    found = watched(file)
    seen: list[str] = []
    really = live._parsed

    def parsed(sources: list[tuple[str, bytes]]) -> object:
        seen.extend(content.decode() for _, content in sources)
        return really(sources)

    monkeypatch.setattr(live, "_pause", pause)
    monkeypatch.setattr(live, "_parsed", parsed)
    file.write_text(half)
    await found._look(told=True)
    assert paused == [half, whole]
    assert seen == [whole]
    assert found.catalog.match("d", [("last", "x")]) is not None


async def test_a_change_that_no_time_stamp_shows_is_read_when_it_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watched(file)
    monkeypatch.setattr(live, "_trace", lambda _: found._seen)  # as if within one tick of the file system's clock
    file.write_text(text(2))
    await found._look(told=True)
    assert amount(found) == 2


async def test_where_nothing_is_told_the_files_are_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch, events: Callable[[], list[str]]
) -> None:
    async def awatch(*_: object, **__: object) -> AsyncIterator[set[object]]:
        raise OSError("no watches left")
        yield set()

    monkeypatch.setattr(live, "awatch", awatch)
    found = Live(file, settle_s=0.01, poll_s=0.01)
    async with watching(found):
        replace(file, text(2))
        await came(found, 2)
        replace(file, text(3))
        await came(found, 3)
    assert events().count("catalog_watch_failed") == 1


async def test_the_loop_goes_on_while_a_catalog_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    really = live._parsed

    def parsed(sources: list[tuple[str, bytes]]) -> object:
        reading.set()
        assert go_on.wait(PATIENCE_S)
        return really(sources)

    found = watched(file)
    monkeypatch.setattr(live, "_parsed", parsed)
    replace(file, text(2))
    look: Awaitable[None] = asyncio.create_task(found._look(told=True))
    assert await until(reading.is_set)
    assert amount(found) == 1
    go_on.set()
    await look
    assert amount(found) == 2


def test_reading_leaves_the_garbage_collector_as_it_was(file: Path) -> None:
    import gc

    assert gc.isenabled()
    load(file)
    assert gc.isenabled()
    gc.disable()
    try:
        load(file)
        assert not gc.isenabled()
    finally:
        gc.enable()


# Kept


def test_what_was_good_is_kept_for_a_start_with_a_bad_file(file: Path, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.zip")
    version = Live(file, kept=kept).catalog.version
    file.write_text("no: catalog")
    found = Live(file, kept=kept)
    assert (found.catalog.version, amount(found), found.refusals) == (version, 1, 1)
    assert "no: unknown" in str(found.error) or str(found.error).startswith(str(file))
    file.write_text(text(2))
    assert found.refresh()
    assert (amount(found), found.error, found.reloads) == (2, None, 1)
    file.unlink()
    assert amount(Live(file, kept=kept)) == 2


def test_a_directory_is_kept_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "limits"
    folder.mkdir()
    for number, name in enumerate(("b.yaml", "a.yaml", "c.yml"), 1):
        (folder / name).write_text(text(number, name[0]))
    kept = Kept(tmp_path / "kept.zip")
    before = Live(folder, kept=kept).catalog
    shutil.rmtree(folder)
    assert Live(folder, kept=kept).catalog.version == before.version


@pytest.mark.parametrize("content", [None, b"", b"PK\x05\x06 broken"])
def test_without_anything_good_that_was_kept_a_bad_file_is_an_error(
    file: Path, tmp_path: Path, content: bytes | None
) -> None:
    file.write_text("no: catalog")
    if content is not None:
        (tmp_path / "kept.zip").write_bytes(content)
    with pytest.raises(InvalidCatalog):
        Live(file, kept=Kept(tmp_path / "kept.zip"))


def test_a_catalog_that_cannot_be_kept_is_in_force_all_the_same(
    file: Path, tmp_path: Path, events: Callable[[], list[str]]
) -> None:
    assert amount(Live(file, kept=Kept(tmp_path / "nowhere" / "kept.zip"))) == 1
    assert events().count("catalog_not_kept") == 1


# Memory


def test_a_catalog_is_kept_from_the_garbage_collector_where_the_rest_is(file: Path) -> None:
    found = Live(file)
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        file.write_text(text(2) + "".join(f"  - key: k{number}\n    limits: 1/minute\n" for number in range(500)))
        assert found.refresh()
        assert gc.get_freeze_count() > before + 1000
        assert gc.isenabled()
    finally:
        gc.unfreeze()

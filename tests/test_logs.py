"""One line an event: what a line holds, who writes one, and that logging never harms whoever logs."""

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.errors import ConfigurationError
from service.logs import REQUEST_ID, configure, events
from service.settings import Settings

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")

ROOT = Path(__file__).parents[1]
LOGGERS = ("", "onequota", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "httpx", "httpcore")
ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, [*logger.handlers], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    logging.captureWarnings(False)


class Lines:
    """What went to standard error since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self) -> list[str]:
        captured = self._capsys.readouterr()
        assert captured.out == "", "standard output belongs to the banner"
        return captured.err.split("\n")[:-1]

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text()]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return Lines(capsys)


def asked(**settings: Any) -> Settings:
    return Settings(**{"environment": "development", "log_format": "json", **settings})


@contextlib.contextmanager
def child(code: str, *arguments: str, **how: Any) -> "Iterator[subprocess.Popen[bytes]]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ONEQUOTA_")} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **how) as process:
        try:
            yield process
        finally:
            process.kill()  # a test that failed waits for nobody


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def raised() -> BaseException:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        return error


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


theirs = structlog.wrap_logger(
    logging.getLogger("theirs"),
    processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    wrapper_class=structlog.stdlib.BoundLogger,
)


@pytest.mark.parametrize(
    ("write", "members"),
    [
        (lambda: events().info("hello"), {"level": "info", "logger": "onequota", "event": "hello"}),
        (lambda: events("onequota.x").error("e"), {"level": "error", "logger": "onequota.x", "event": "e"}),
        (lambda: events().info("e", n=3, a=None, b=[1.5]), {"n": 3, "a": None, "b": [1.5]}),
        (lambda: events().info("a b\nc", d="e\nf"), {"event": "a b\nc", "d": "e\nf"}),
        (lambda: events().info("100 %"), {"event": "100 %"}),
        (lambda: events().info("e", error=ValueError("x")), {"error": "ValueError: x"}),
        (lambda: events().info("e", error=TimeoutError()), {"error": "TimeoutError"}),
        (lambda: events().info("e", path=Path("/x")), {"path": "/x"}),
        (lambda: events().info("e", level="of water", pid="p"), {"level_": "of water", "pid_": "p"}),
        (lambda: events().info("e", name="n", args=1, msg="m"), {"event": "e", "name": "n", "args": 1, "msg": "m"}),
        (
            lambda: events().info("e", event="f", self=1, method_name="m", logger=2),
            {"event": "e", "event_": "f", "self": 1, "method_name": "m", "logger_": 2},
        ),
        (
            lambda: logging.getLogger("app.x").warning("hi %s", "you", extra={"user": 3}),
            {"level": "warning", "logger": "app.x", "event": "hi you", "user": 3},
        ),
        (
            lambda: logging.getLogger("uvicorn.error").info("x %d", 1, extra={"color_message": "\x1b[1mx\x1b[0m"}),
            {"logger": "uvicorn.error", "event": "x 1"},
        ),
        (
            lambda: logging.getLogger("uvicorn.access").info(
                '%s - "%s %s HTTP/%s" %d', "10.0.0.1:9", "GET", "/x?y", "1.1", 200
            ),
            {
                "logger": "uvicorn.access",
                "event": '10.0.0.1:9 - "GET /x?y HTTP/1.1" 200',
                "client": "10.0.0.1:9",
                "method": "GET",
            }
            | {"path": "/x?y", "http_version": "1.1", "status": 200},
        ),
        (lambda: theirs.info("an app's structlog", x=1), {"logger": "theirs", "event": "an app's structlog", "x": 1}),
        (lambda: events().info("e", nan=float("nan")), {"nan": "nan"}),
        (lambda: events().info("e", odd={(1, 2): 3}), {"odd": "{(1, 2): 3}"}),
        (lambda: events().info("e", cycle=cycle(), fine=1), {"cycle": "{'self': {...}}", "fine": 1}),
        (lambda: events().info("e", odd=Unshowable()), {"odd": "<Unshowable that cannot be shown>"}),
        (lambda: events().info("e", deep=nested(100_000)), {"deep": "<list that cannot be shown>"}),
        (lambda: events().info("e", raw=b"\xff", half="\ud800"), {"raw": "b'\\xff'", "half": "\ud800"}),
        (
            lambda: logging.getLogger("uvicorn.error").info("%d users", "many"),
            {"logger": "uvicorn.error", "event": "%d users", "args": "('many',)"}
            | {"log_error": "TypeError: %d format: a real number is required, not str"},
        ),
        (
            lambda: logging.getLogger("uvicorn.error").info(Unshowable()),
            {"logger": "uvicorn.error", "event": "<Unshowable that cannot be shown>", "args": "()"}
            | {"log_error": "RuntimeError: no"},
        ),
    ],
)
def test_a_json_line_holds_the_event_and_its_fields(
    lines: Lines, write: Callable[[], None], members: dict[str, Any]
) -> None:
    """Nothing else: what is not in `members` is in every line."""
    configure(asked())
    write()
    (line,) = lines.json()
    assert re.fullmatch(ISO, line.pop("timestamp"))
    assert line.pop("pid") == os.getpid()
    assert line == {"level": "info", "logger": "onequota", "event": "e"} | members


@pytest.mark.parametrize(
    ("write", "shown"),
    [
        (lambda: events().info("hello"), "info onequota        hello"),
        (lambda: events().warning("e", n=3, who="alice"), "warning onequota        e n=3 who=alice"),
        (lambda: events().info("e", text="a b", empty=""), 'info onequota        e text="a b" empty=""'),
        (lambda: events().info("e", text='a="b"', win="\\n"), r'info onequota        e text="a=\"b\"" win="\\n"'),
        (lambda: events().info("grüße", an="Зоя"), "info onequota        grüße an=Зоя"),
        (lambda: logging.getLogger("uvicorn.error").info("Started"), "info uvicorn.error   Started"),
        (
            lambda: logging.getLogger("uvicorn.access").info(
                '%s - "%s %s HTTP/%s" %d', "10.0.0.1:9", "GET", "/", "1.1", 200
            ),
            'info uvicorn.access  10.0.0.1:9 - "GET / HTTP/1.1" 200',
        ),
        (
            lambda: logging.getLogger("an.app.with.a.long.name").critical("down", extra={"a b": 1}),
            'critical an.app.with.a.long.name down "a b"=1',
        ),
    ],
)
def test_a_text_line_is_aligned_and_its_values_can_be_told_apart(
    lines: Lines, write: Callable[[], None], shown: str
) -> None:
    configure(asked(log_format="text"))
    write()
    (line,) = lines.text()
    assert re.match(f"{ISO} ", line)
    level, rest = shown.split(maxsplit=1)
    assert line[25:] == f"{level:<8} {os.getpid():>7} {rest}"


@pytest.mark.parametrize(
    ("environment", "log_format", "is_json"),
    [
        ("production", None, True),
        ("development", None, False),
        ("production", "text", False),
        ("development", "json", 1),
    ],
)
def test_production_writes_for_machines_and_development_for_people(
    lines: Lines, environment: str, log_format: str | None, is_json: bool
) -> None:
    configure(asked(environment=environment, log_format=log_format))
    events().info("e")
    (line,) = lines.text()
    assert line.startswith("{") == is_json


# -- in an app of another server ----------------------------------------------------------------------------------


def test_unconfigured_an_event_is_a_record_whose_message_shows_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        events().warning("store_unavailable", error=TimeoutError("no\nanswer"), tries=2)
        events().debug("bare")
    assert caplog.messages == [r'store_unavailable error="TimeoutError: no\nanswer" tries=2', "bare"]
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("onequota", "WARNING"),
        ("onequota", "DEBUG"),
    ]


def test_unconfigured_the_record_is_of_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    """For formats with %(filename)s:%(lineno)d, and for whatever groups by place."""
    caplog.set_level(logging.DEBUG)
    log = events()
    for method in (log.debug, log.info, log.warning, log.error, log.exception):
        method("e")
    assert {(record.pathname, record.funcName) for record in caplog.records} == {
        (__file__, "test_unconfigured_the_record_is_of_the_callers_line")
    }


def test_unconfigured_an_event_bears_the_request_and_the_exception(caplog: pytest.LogCaptureFixture) -> None:
    token = REQUEST_ID.set("r-1")
    try:
        raise ValueError("x")
    except ValueError as error:
        events().exception("failed")
        assert caplog.records[0].exc_info is not None
        assert caplog.records[0].exc_info[1] is error
    finally:
        REQUEST_ID.reset(token)
    assert caplog.messages == ["failed request_id=r-1"]


def test_unconfigured_nothing_is_printed_and_structlog_is_left_to_the_app() -> None:
    """A user's app: no handler, so the standard library shows warnings on standard error, and nothing else."""
    code = """
import structlog
before = structlog.get_config()
from service.logs import events
log = events()
def refuse(*_): raise SystemExit("ours went through the app's structlog")
log.info("quiet")
log.warning("loud", a=1)
assert structlog.get_config() == before and not structlog.is_configured()
structlog.configure(processors=[refuse])
events().warning("louder", b="x y")
"""
    with child(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert err == b'loud a=1\nlouder b="x y"\n'


def test_an_event_below_the_level_is_not_even_put_into_words(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []

    class Costly:
        def __str__(self) -> str:
            shown.append("shown")
            return ""

    with caplog.at_level(logging.WARNING):
        events().info("e", value=Costly())
    assert not shown


# -- requests, callers, exceptions --------------------------------------------------------------------------------


async def test_every_line_of_a_request_bears_its_id_and_no_others(lines: Lines) -> None:
    configure(asked())

    async def serve(request_id: str) -> None:
        REQUEST_ID.set(request_id)
        await asyncio.sleep(0)
        events().info("ours", of=request_id)
        logging.getLogger("app").info("theirs", extra={"of": request_id})

    await asyncio.gather(asyncio.create_task(serve("r1")), asyncio.create_task(serve("r2")))
    events().info("of no request")
    *served, last = lines.json()
    assert [line["request_id"] for line in served] == [line["of"] for line in served]
    assert {line["request_id"] for line in served} == {"r1", "r2"}
    assert "request_id" not in last


BREAKS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[2J", "\x9b2J", "\u202e", "\x00")


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("breaking", BREAKS)
def test_what_a_caller_sends_cannot_start_a_line_or_command_a_terminal(
    lines: Lines, log_format: str, breaking: str
) -> None:
    configure(asked(log_format=log_format))
    forged = f"x{breaking}2026-01-01T00:00:00.000Z error 1 onequota forged"
    token = REQUEST_ID.set(forged)
    events(f"app{breaking}").info(forged, value=forged, **{forged: 1})
    logging.getLogger("app").info("%s", forged, extra={"list": [forged]})
    REQUEST_ID.reset(token)
    written = lines.text()
    assert len(written) == 2
    assert all(line.isprintable() and line.splitlines() == [line] for line in written)


def test_an_exception_is_in_its_one_json_line(lines: Lines) -> None:
    configure(asked())
    try:
        raise raised()
    except ValueError:
        events().exception("failed", a=1)
        logging.getLogger("app").exception("failed")
    for line in lines.json():
        assert (line["level"], line["event"]) == ("error", "failed")
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].endswith("ValueError: first\nsecond")


def test_an_exception_that_is_not_being_handled_can_be_given_or_is_missing(lines: Lines) -> None:
    configure(asked())
    events().warning("given", exc_info=raised())
    events().exception("none")
    given, none = lines.json()
    assert given["exception"].endswith("ValueError: first\nsecond")
    assert "exception" not in none


def test_a_stack_is_in_the_one_line_too(lines: Lines) -> None:
    configure(asked())
    logging.getLogger("app").info("where", stack_info=True)
    events().info("where", stack_info=True)
    assert all("test_a_stack_is_in_the_one_line_too" in line["stack"] for line in lines.json())


def test_a_traceback_in_text_is_indented_so_that_no_line_of_it_looks_like_an_event(lines: Lines) -> None:
    configure(asked(log_format="text"))
    events().error("failed", exc_info=ValueError("x\n2026-01-01T00:00:00.000Z error 1 onequota forged\x1b[2J\x85y"))
    first, *below = lines.text()
    assert first.endswith("failed")
    assert below == [
        "    ValueError: x",
        "    2026-01-01T00:00:00.000Z error 1 onequota forged\\x1b[2J",
        "    y",
    ]


def test_a_python_warning_is_a_line_like_any_other() -> None:
    """In a process of its own: pytest has its own way with warnings."""
    code = """
import warnings
from service.logs import configure
from service.settings import Settings
configure(Settings(log_format="json"))
warnings.warn("this is old", stacklevel=1)
"""
    with child(code, stderr=subprocess.PIPE) as process:
        (line,) = [json.loads(line) for line in process.communicate(timeout=60)[1].splitlines()]
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: this is old" in line["event"]


# -- who is heard -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_level", "heard"),
    [
        ("critical", {"onequota": 50, "uvicorn.error": 50, "app": 50, "httpx": 50}),
        ("warning", {"onequota": 30, "uvicorn.error": 30, "app": 30, "httpx": 30}),
        ("info", {"onequota": 20, "uvicorn.error": 20, "app": 20, "httpx": 30}),
        ("debug", {"onequota": 10, "uvicorn.error": 10, "app": 10, "httpx": 30}),
        ("trace", {"onequota": 5, "uvicorn.error": 5, "app": 5, "httpx": 30}),
    ],
)
def test_the_level_holds_for_us_uvicorn_and_the_app_but_talkers_are_held_at_warning(
    lines: Lines, log_level: str, heard: dict[str, int]
) -> None:
    configure(asked(log_level=log_level))
    for name in heard:
        for level in (5, 10, 20, 30, 40, 50):
            logging.getLogger(name).log(level, "x")
    found = lines.json()
    names = {5: "trace", 10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
    for name, least in heard.items():
        expected = [word for level, word in names.items() if level >= least]
        assert [line["level"] for line in found if line["logger"] == name] == expected


@pytest.mark.parametrize(("access_log", "shown"), [(None, 1), (True, 1), (False, 0)])
def test_the_access_log_can_be_switched_off(lines: Lines, access_log: bool | None, shown: int) -> None:
    configure(asked(access_log=access_log))
    access = logging.getLogger("uvicorn.access")
    access.info("x")
    assert (len(lines.text()), access.hasHandlers()) == (shown, bool(shown))


def test_configured_again_each_event_is_still_one_line_and_the_last_settings_hold(lines: Lines, tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    configure(asked(log_file=str(first)))
    events().info("one")
    for _ in range(3):
        configure(asked(log_file=str(second), log_level="warning"))
    events().info("not shown")
    events().warning("two")
    logging.getLogger("uvicorn.error").warning("three")
    logging.getLogger("app").warning("four")
    assert [line["event"] for line in lines.json()] == ["one", "two", "three", "four"]
    assert [json.loads(line)["event"] for line in first.read_text().splitlines()] == ["one"]
    assert [json.loads(line)["event"] for line in second.read_text().splitlines()] == ["two", "three", "four"]


def test_the_handlers_of_others_stay_at_the_root_and_those_of_uvicorn_are_replaced(lines: Lines) -> None:
    others = logging.NullHandler()
    logging.getLogger().addHandler(others)
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn.access").addHandler(logging.StreamHandler())
    configure(asked())
    logging.getLogger("uvicorn.error").info("once")
    logging.getLogger("uvicorn.access").info("once")
    assert others in logging.getLogger().handlers
    assert len(lines.json()) == 2


def test_an_app_that_sets_up_its_own_logging_does_not_silence_the_server(lines: Lines) -> None:
    configure(asked())
    logging.basicConfig(force=True, handlers=[logging.NullHandler()])
    events().info("ours")
    logging.getLogger("uvicorn.error").info("ours")
    logging.getLogger("app").info("the app's own")
    assert [line["event"] for line in lines.json()] == ["ours", "ours"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_and_not_if_they_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stream: type[io.StringIO],
    environment: dict[str, str],
    coloured: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream())
    configure(asked(log_format="text", log_file=str(tmp_path / "x.log")))
    events().error("failed", a="b c")
    written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert ("\x1b[31merror" in written) == coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", written) == (tmp_path / "x.log").read_text(), "never in the file"


# -- faults -------------------------------------------------------------------------------------------------------


class Failing(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("closed", [True, False])
def test_a_broken_standard_error_costs_the_line_and_nothing_else(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO() if closed else Failing())
    configure(asked())
    if closed:
        sys.stderr.close()
    events().info("e")
    logging.getLogger("app").exception("e")


FULL = """
import logging, os, resource, sys
from service.logs import configure, events
from service.settings import Settings
configure(Settings(log_format="json", log_file=sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
for n in range(100):
    events().info("line", n=n)
"""


@posix
def test_a_full_disk_is_told_once_on_standard_error_and_the_app_goes_on(tmp_path: Path) -> None:
    """Played by a limit on the size of files; standard error is a pipe, which has none."""
    path = tmp_path / "x.log"
    with child(FULL, str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in err.splitlines()]
    assert (process.returncode, out, path.stat().st_size) == (0, b"", 2_000)
    assert [line["n"] for line in lines if line["event"] == "line"] == list(range(100))
    (told,) = [line for line in lines if line["event"] == "log_file_failed"]
    assert (told["path"], told["error"]) == (str(path), "OSError: [Errno 27] File too large")


@posix
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing/x.log", "No such file or directory"),
        ("file/x.log", "Not a directory"),
        ("folder", "it is no file; standard error is written to in any case"),
        ("pipe", "it is no file; standard error is written to in any case"),
        ("locked.log", "Is a directory"),
    ],
)
def test_a_log_file_that_cannot_be_opened_is_one_sentence_and_changes_nothing(
    lines: Lines, tmp_path: Path, path: str, told: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".__locked.lock").mkdir()  # as a directory where no lock can be made
    os.mkfifo(tmp_path / "pipe")
    configure(asked())
    with pytest.raises(ConfigurationError) as caught:
        configure(asked(log_file=str(tmp_path / path), log_format="text"))
    assert str(caught.value) == (
        f'ONEQUOTA_LOG_FILE="{tmp_path / path}" cannot be written to: {told}; '
        "its directory must be writable too, for the lock and the old files"
    )
    events().info("as before")
    logging.getLogger("app").info("as before")
    assert [line["event"] for line in lines.json()] == ["as before"] * 2


@posix
def test_without_a_directory_for_temporary_files_a_log_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """As in a container whose files are read-only; the locks want one."""
    code = """
import sys, tempfile
tempfile._candidate_tempdir_list = lambda: []
from service.errors import ConfigurationError
from service.logs import configure
from service.settings import Settings
try:
    configure(Settings(log_file=sys.argv[1]))
except ConfigurationError as error:
    print(error)
"""
    with child(code, str(tmp_path / "x.log"), stdout=subprocess.PIPE) as process:
        assert b"No usable temporary directory found" in process.communicate(timeout=60)[0]


# -- many processes -----------------------------------------------------------------------------------------------

WRITER = """
import sys
from service.logs import configure, events
from service.settings import Settings
configure(Settings(log_format="json", log_file=sys.argv[1], log_file_mb=1))
sys.stdin.readline()
for n in range(10_000):
    events().info("line", writer=sys.argv[2], n=n)
"""


def test_processes_that_rotate_one_file_lose_and_tear_no_line(tmp_path: Path) -> None:
    """30,000 lines of about 140 bytes in files of 1 MB: several rotations, and the oldest file is still there."""
    path, how = str(tmp_path / "x.log"), {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child(WRITER, path, writer, **how)) for writer in "012"]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")  # all begin at once
            process.stdin.close()
        assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    files = sorted(tmp_path.glob("x.log*"))
    assert [file.name for file in files] == ["x.log", "x.log.1", "x.log.2", "x.log.3", "x.log.4"]
    found: dict[str, list[int]] = {"0": [], "1": [], "2": []}
    for file in reversed(files):  # the oldest first
        assert file.stat().st_size < 1_001_000
        for line in file.read_bytes().decode().split("\n")[:-1]:
            members = json.loads(line)
            found[members["writer"]].append(members["n"])
    assert found == {writer: list(range(10_000)) for writer in found}


@pytest.mark.skipif(sys.platform != "linux", reason="SOCK_SEQPACKET")
def test_a_line_on_standard_error_is_one_write_however_long_it_is() -> None:
    """So that workers do not cut into each other's; told by a socket that keeps writes apart."""
    code = """
import sys
from service.logs import configure, events
from service.settings import Settings
for log_format in ("json", "text"):
    configure(Settings(log_format=log_format))
    for length in (1, 4096, 8192, 100_000):
        try:
            raise ValueError("y" * length)
        except ValueError:
            events().exception("line", length=length, filling="x" * length)
"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, child(code, stderr=theirs):
        theirs.close()
        ours.settimeout(60)
        written = list(iter(lambda: ours.recv(1 << 20), b""))
    assert len(written) == 8
    assert [json.loads(line)["length"] for line in written[:4]] == [1, 4096, 8192, 100_000]
    assert all(line.endswith(b"y\n") for line in written[4:])


def test_uvicorns_own_lines_take_the_form(tmp_path: Path) -> None:
    """A real server on a real socket: every line it writes, from start to end, with an access line in parts."""
    code = """
import http.client, threading, uvicorn
from service.logs import configure
from service.settings import Settings
configure(Settings(log_format="json", log_level="trace"))
async def app(scope, receive, send):
    if scope["path"] == "/fail":
        raise ValueError("x")
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})
server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, log_level="trace", lifespan="off"))
class Started(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        threading.Thread(target=self.ask, args=self.servers[0].sockets[0].getsockname()).start()
    def ask(self, host, port):
        for path in ("/a", "/fail"):
            connection = http.client.HTTPConnection(host, port)
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
        self.should_exit = True
Started(server.config).run()
"""
    with child(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in err.splitlines()]
    assert (process.returncode, out) == (0, b"")
    assert "Started server process" in lines[0]["event"]
    assert not any("color_message" in line for line in lines)
    access = [(line["method"], line["path"], line["status"]) for line in lines if line["logger"] == "uvicorn.access"]
    assert access == [("GET", "/a", 204), ("GET", "/fail", 500)]
    (failed,) = [line for line in lines if line["level"] == "error"]
    assert failed["exception"].endswith("ValueError: x")
    assert "trace" in {line["level"] for line in lines}

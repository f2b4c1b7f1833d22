"""Logs: one line an event, to standard error and, if asked, to a file that all workers rotate together.

    events("onequota").warning("store_unavailable", error=error)

    json  {"timestamp": "2026-01-02T03:04:05.678Z", "level": "warning", "logger": "onequota",
           "event": "store_unavailable", "pid": 7, "request_id": "f3…", "error": "…"}      (on one line)
    text  2026-01-02T03:04:05.678Z warning        7 onequota        store_unavailable request_id=f3… error=…

`events` is for all of this package and works anywhere: in an app that was started by another server its events are
ordinary records of the standard library whose message ends with the fields. `configure` is for processes that are
ours, the runner and its workers: there uvicorn's lines and the app's own take the same form. What a caller sent
cannot start a line of its own: in JSON by its nature, in text because control characters are escaped.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.processors import format_exc_info
from structlog.stdlib import ProcessorFormatter, filter_by_level
from structlog.typing import EventDict

from service.errors import ConfigurationError
from service.settings import Settings, wants_no_colours

if TYPE_CHECKING:
    from concurrent_log_handler import ConcurrentRotatingFileHandler

REQUEST_ID: ContextVar[str | None] = ContextVar("onequota_request_id", default=None)
"""The request that is being served; every line that is logged meanwhile bears it."""

_TRACE = 5  # uvicorn's
_BACKUPS = 5

_TALKERS = ("httpx", "httpcore", "hpack", "h2", "watchfiles")
"""Held at WARNING whatever the log level: below it httpx writes a line a request, with the query; hpack and httpcore
write headers, in which keys travel; and watchfiles reports each change of a file, be it the log itself."""

_ONCE_S = 60.0

# What a line holds besides fields, and what is no field of a record.
_HEAD = ("timestamp", "level", "logger", "event", "pid")
_TRACES = ("exception", "stack")
_ACCESS = ("client", "method", "path", "http_version", "status")
_NO_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_NO_FIELDS |= {"color_message", "onequota", "_logger", "_name"}  # uvicorn's; ours; structlog's


class Events(structlog.BoundLoggerBase):
    """A logger of events: a name that is always the same, and fields that are not.

    A field may be of any type. `exc_info` and `stack_info` mean what they mean to `logging`.
    """

    def debug(self, event: str, /, **fields: Any) -> None:
        self._tell("debug", event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self._tell("info", event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self._tell("warning", event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._tell("error", event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """An error, with the exception that is being handled."""
        self._tell("exception", event, fields)

    def _tell(self, method: str, event: str, fields: dict[str, Any]) -> None:
        if "event" in fields:
            fields["event_"] = fields.pop("event")
        with contextlib.suppress(structlog.DropEvent):  # below the level
            args, how = self._process_event(method, event, fields)
            getattr(self._logger, method)(*args, **how)


def events(name: str = "onequota") -> Events:
    """The logger of events over `logging.getLogger(name)`; structlog's own configuration has no part in it."""
    proxy = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[filter_by_level, _record],
        wrapper_class=Events,
        context_class=dict,
        cache_logger_on_first_use=False,
    )
    bound: Events = proxy.bind()
    return bound


def _record(_logger: object, _method: str, fields: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """An event as the arguments of a standard logger: readable by any handler, and whole for ours."""
    how = {name: fields.pop(name) for name in ("exc_info", "stack_info") if name in fields}
    event = str(fields.pop("event"))
    request = {"request_id": REQUEST_ID.get()} if REQUEST_ID.get() else {}
    message = " ".join([_escaped(event), *_pairs({**request, **fields})])
    # Three frames up, past `_tell` and the method, is the caller, whose line the record is of.
    return (message,), {"extra": {"onequota": (event, fields)}, "stacklevel": 3, **how}


def configure(settings: Settings) -> None:
    """Give every logger of this process the one form; again with other settings, these hold.

    For the runner and each worker, before a `uvicorn.Config` is made (with `log_config=None`) and before the app is
    imported. Handlers that others gave the root logger stay. The app's loggers follow `log_level` too: an author who
    writes `log.info` wants to read it.

    Raises:
        ConfigurationError: `log_file` cannot be written to; nothing was changed.
    """
    handlers = _handlers(settings)
    logging.addLevelName(_TRACE, "TRACE")
    level = _level(settings)
    _replace(logging.getLogger(), handlers)
    logging.getLogger().setLevel(level)
    _give(handlers, settings)
    for name in _TALKERS:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def answer_only() -> None:
    """For commands that say themselves what went wrong: events go nowhere, until somebody calls `configure`."""
    logger = logging.getLogger("onequota")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def restore(settings: Settings) -> None:
    """After an app has configured logging its own way: our loggers and uvicorn's say what they said before."""
    if not any(isinstance(handler, _Ours) for handler in logging.getLogger("onequota").handlers):
        return  # `configure` was not called: this is no process of ours
    quiet, access = logging.getLogger("uvicorn.error").level, logging.getLogger("uvicorn.access").propagate
    _give(_handlers(settings), settings)
    logging.getLogger("uvicorn.error").setLevel(quiet)
    logging.getLogger("uvicorn.access").propagate = access


def _level(settings: Settings) -> int:
    return _TRACE if settings.log_level == "trace" else logging.getLevelNamesMapping()[settings.log_level.upper()]


def _give(handlers: list[logging.Handler], settings: Settings) -> None:
    level = _level(settings)
    for name in ("onequota", "uvicorn"):
        logger = logging.getLogger(name)
        _replace(logger, handlers)
        logger.setLevel(level)
        logger.disabled = False
        logger.propagate = False  # what an app does to the root logger must not silence the server
    for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        _replace(logger, [])
        logger.setLevel(level)
        logger.disabled = False
        logger.propagate = True
    logging.getLogger("uvicorn.access").propagate = settings.access_log is not False


def _replace(logger: logging.Logger, handlers: list[logging.Handler]) -> None:
    for handler in [*logger.handlers]:
        if isinstance(handler, _Ours) or logger.name != "root":
            logger.removeHandler(handler)
            with contextlib.suppress(OSError, ValueError):  # what a full disk still owes
                handler.close()
    for handler in handlers:
        logger.addHandler(handler)


def _handlers(settings: Settings) -> list[logging.Handler]:
    as_json = settings.log_format == "json" or (settings.log_format is None and settings.production)
    error = _Stderr(sys.stderr)
    error.setFormatter(_json_lines() if as_json else _text_lines(colours=_wants_colours(sys.stderr)))
    if settings.log_file is None:
        return [error]
    file = _file(settings.log_file, settings.log_file_mb * 1_000_000, error)
    file.setFormatter(_json_lines() if as_json else _text_lines(colours=False))
    return [error, file]


def _wants_colours(stream: TextIO) -> bool:
    if sys.platform == "win32" or wants_no_colours():
        return False
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


class _Ours(logging.Handler):
    """A handler that never raises, and that `configure` knows again."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: a line is lost, and a request must not be."""


class _Stderr(_Ours, logging.StreamHandler[TextIO]):
    """A line is one write(2), so that workers do not cut into each other's; only a full pipe may cut a long one."""


def _file(path: str, most_bytes: int, error: logging.Handler) -> logging.Handler:
    """The rotating file. While it cannot be written to (a full disk), `error` is told once a minute."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("it is no file; standard error is written to in any case")
        file = _rotating(path, most_bytes, error)
        for needed in (path, file.lockFilename):  # the lock lies beside it
            Path(needed).open("a").close()
    except OSError as reason:
        raise ConfigurationError(
            f"ONEQUOTA_LOG_FILE={json.dumps(path)} cannot be written to: {reason.strerror or reason}"
            "; its directory must be writable too, for the lock and the old files"
        ) from None
    return file


def _rotating(path: str, most_bytes: int, error: logging.Handler) -> "ConcurrentRotatingFileHandler":
    # Here, for it takes 0.15 s, which only who wants it pays; and it raises OSError where there is no directory for
    # temporary files, as in a container whose files are read-only.
    from concurrent_log_handler import ConcurrentRotatingFileHandler  # noqa: PLC0415

    class Rotating(_Ours, ConcurrentRotatingFileHandler):
        told = -_ONCE_S

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
            if time.monotonic() - self.told >= _ONCE_S:
                self.told = time.monotonic()
                error.handle(_event(record, "log_file_failed", path=path, error=sys.exc_info()[1]))

    return Rotating(path, maxBytes=most_bytes, backupCount=_BACKUPS, encoding="utf-8", newline="")


class _Lines(ProcessorFormatter):
    """Any record as one line. Never raises: what cannot be read is shown as far as it can."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:
            return super().format(_event(record, _shown(record.msg), args=_shown(record.args), log_error=error))


def _event(like: logging.LogRecord, event: str, **fields: Any) -> logging.LogRecord:
    """A record of an event that is told in the place of another."""
    kept = {name: getattr(like, name) for name in ("name", "levelno", "levelname", "created", "process")}
    return logging.makeLogRecord({**kept, "msg": event, "onequota": (event, fields)})


def _json_lines() -> _Lines:
    return _Lines(processors=[_with_access_fields, _arranged, _as_json], pass_foreign_args=True)


def _text_lines(*, colours: bool) -> _Lines:
    return _Lines(processors=[_arranged, _Text(colours)])


def _with_access_fields(_logger: object, _method: str, found: EventDict) -> EventDict:
    """uvicorn's access line in parts, to search by; people read them in its message."""
    args = found.pop("positional_args", ())
    if found["_record"].name == "uvicorn.access" and isinstance(args, tuple) and len(args) == len(_ACCESS):
        found.update(zip(_ACCESS, args, strict=True))
    return found


def _arranged(_logger: object, _method: str, found: EventDict) -> EventDict:
    """The members of a line in their order. A field that is called like one of ours gets a `_` behind its name."""
    record, _ = found.pop("_record"), found.pop("_from_structlog")
    event, fields = getattr(record, "onequota", (found.pop("event", ""), {}))
    traces = _traces(found)
    fields = {**found, **{name: value for name, value in vars(record).items() if name not in _NO_FIELDS}, **fields}
    fields.pop("event", None)
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    values = (at.replace("+00:00", "Z"), record.levelname.lower(), record.name, _shown(event), record.process)
    line: dict[str, Any] = dict(zip(_HEAD, values, strict=True))
    if "request_id" not in fields and REQUEST_ID.get():
        line["request_id"] = REQUEST_ID.get()
    for name, value in fields.items():
        line[_free(str(name), {**line, **traces})] = value
    return {**line, **traces}


def _traces(found: EventDict) -> dict[str, str]:
    """What spans lines elsewhere: the exception, and the stack if it was asked for."""
    format_exc_info(None, "", found)
    stack = found.pop("stack_info", None)
    if isinstance(stack, str):
        found["stack"] = stack
    return {name: _shown(found.pop(name)) for name in _TRACES if name in found}


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _as_json(_logger: object, _method: str, line: EventDict) -> str:
    # ASCII only, so that no encoding, terminal or line splitter on the way can mistake a character.
    try:
        return json.dumps(line, default=_shown, allow_nan=False)
    except Exception:  # a member cannot be JSON: NaN, a cycle, a key that is a tuple
        return json.dumps({name: _plain(value) for name, value in line.items()}, default=_shown)


def _plain(value: object) -> object:
    try:
        json.dumps(value, default=_shown, allow_nan=False)
    except Exception:
        return _shown(value)
    return value


_COLOURS = {"critical": "1;31", "error": "31", "warning": "33", "info": "32", "debug": "36", "trace": "2"}


class _Text:
    """A line for people. A traceback follows, indented: it is there to be read, and nothing else begins with a blank.

    Args:
        colours: Paint the level and dim what repeats.
    """

    def __init__(self, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: object, _method: str, line: EventDict) -> str:
        at, level, logger, event, pid = (line.pop(name) for name in _HEAD)
        traces = [line.pop(name) for name in _TRACES if name in line]
        head = (
            self._painted("2", at),
            self._painted(_COLOURS.get(level, "0"), f"{_escaped(level):<8}"),
            self._painted("2", f"{pid or 0:>7}"),
            f"{_escaped(logger):<15}",
            _escaped(event),
        )
        below = [f"    {_escaped(row)}" for trace in traces for row in trace.splitlines()]
        return "\n".join([" ".join([*head, *_pairs(line)]), *below])

    def _painted(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    return [f"{_word(name)}={_word(value)}" for name, value in fields.items()]


def _word(value: object) -> str:
    """A value on one line, in quotes where its end could not be seen otherwise."""
    text = _shown(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "=\\'):
        return text
    return _escaped(json.dumps(text, ensure_ascii=False))


def _escaped(text: str) -> str:
    """`text` without what ends a line, moves a cursor or turns the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: object) -> str:
    """Any value as text; an exception with its class, for many say nothing without it."""
    try:
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}".removesuffix(": ")
        return repr(value) if isinstance(value, bytes) else str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"

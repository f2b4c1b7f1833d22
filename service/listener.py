"""The one socket all workers share, and the other one for gRPC: bound by the parent, by port or path, or inherited.

Bound before the first worker starts, so that "in use" is one line and nobody is refused while they load.
"""

import contextlib
import errno
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from service.errors import ConfigurationError


@contextlib.contextmanager
def listening(*, host: str, port: int, uds: str | None, fd: int | None, backlog: int) -> Iterator[socket.socket]:
    """The socket, listening; at the end it is closed, and a path removed.

    Raises:
        ConfigurationError: It cannot be had; says why, and what to choose.
    """
    if fd is not None:
        listener = inherited(fd, backlog)
    elif uds is not None:
        listener = bound_to_path(uds, backlog)
    else:
        listener = bound(host, port, backlog)
    ours = _identity(uds)
    try:
        yield listener
    finally:
        listener.close()
        if uds is not None and _identity(uds) == ours:  # else somebody has taken our place while we drained
            Path(uds).unlink(missing_ok=True)


@contextlib.contextmanager
def listening_for_grpc(*, host: str, port: int | None, fd: int | None, backlog: int) -> Iterator[socket.socket | None]:
    """The socket of gRPC, listening; none where no port is meant. Raises ConfigurationError as `listening`."""
    if port is None:
        if fd is not None:
            inherited(fd, backlog).close()
        yield None
        return
    with inherited(fd, backlog) if fd is not None else bound(host, port, backlog, option="--grpc-port") as listener:
        yield listener


_for_grpc: socket.socket | None = None


def leave_for_grpc(listener: socket.socket | None) -> None:
    """In a worker: keep the socket of gRPC for the app."""
    global _for_grpc  # noqa: PLW0603
    _for_grpc = listener


def for_grpc() -> socket.socket | None:
    """What was left; None = gRPC is not wanted, or nobody listens for this process."""
    return _for_grpc


def _identity(path: str | None) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = Path(path).stat() if path is not None else None
        return (found.st_dev, found.st_ino) if found is not None else None
    return None


def bound(host: str, port: int, backlog: int, *, option: str = "--port") -> socket.socket:
    """A TCP socket; port 0 takes a free one. `option` is what the port was said by."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Here and not only in the workers: until one of both listens, two servers can bind the same port.
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_why_not(error, host, port, option)) from None
    return listener


def _why_not(error: OSError, host: str, port: int, option: str = "--port") -> str:
    if isinstance(error, socket.gaierror):
        return f'host "{host}" is not known: give an address of this machine with --host'
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there or choose another with {option}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not permitted to this user: choose one from 1024 on with {option}"
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return f"host {host} is no address of this machine: choose another with --host"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def bound_to_path(path: str, backlog: int) -> socket.socket:
    """A unix socket."""
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


def inherited(number: int, backlog: int) -> socket.socket:
    """A socket that came with this process; it may be bound only."""
    try:
        listener = socket.socket(fileno=number)
        listener.listen(backlog)
    except OSError as error:
        raise ConfigurationError(f"--fd {number} is no socket to listen on: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket, *, host: str, uds: str | None, fd: int | None, tls: bool) -> str:
    """Where it listens, as a URL with the real port, or `unix:PATH`."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{uds or name}"
    host = host if fd is None else name[0]
    return f"{'https' if tls else 'http'}://{_place(host, name[1])}"


def place_of(listener: socket.socket | None, host: str) -> str | None:
    """`HOST:PORT` with the real port; None = there is no listener."""
    return _place(host, listener.getsockname()[1]) if listener is not None else None


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

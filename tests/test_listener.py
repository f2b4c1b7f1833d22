"""Where it listens: taken before the first worker starts, and refused with a sentence."""

import errno
import socket
import sys
from pathlib import Path

import pytest

from service import listener
from service.errors import ConfigurationError


def test_two_servers_cannot_take_one_port_even_before_their_workers_are_up() -> None:
    with listener.bound("127.0.0.1", 0, 16) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            listener.bound("127.0.0.1", port, 16)
    assert str(caught.value) == (
        f"port {port} on 127.0.0.1 is in use: stop what listens there or choose another with --port"
    )


def test_a_client_that_comes_before_the_workers_waits_and_is_not_refused() -> None:
    with (
        listener.bound("127.0.0.1", 0, 16) as waiting,
        socket.create_connection(waiting.getsockname(), timeout=1),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EACCES, "x"), "port 80 on h is not permitted to this user: choose one from 1024 on"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "host h is no address of this machine"),
        (socket.gaierror(-2, "x"), 'host "h" is not known'),
        (OSError(errno.ENOBUFS, "no buffers"), "cannot listen on port 80 of h: no buffers"),
    ],
)
def test_a_port_that_cannot_be_taken_is_one_sentence(error: OSError, told: str) -> None:
    assert told in listener._why_not(error, "h", 80)


def test_a_host_that_is_not_of_this_machine_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"host 192\.0\.2\.1 is no address of this machine"):
        listener.bound("192.0.2.1", 0, 16)


unix = pytest.mark.skipif(sys.platform == "win32", reason="unix sockets")


@unix
def test_a_unix_socket_left_behind_is_replaced_and_one_in_use_or_a_file_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener.bound_to_path(path, 16).close()  # closing leaves the file
    with (
        listener.bound_to_path(path, 16),
        pytest.raises(ConfigurationError, match=r'cannot listen on --uds ".*": something else is there'),
    ):
        listener.bound_to_path(path, 16)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigurationError, match="something else is there"):
        listener.bound_to_path(str(tmp_path / "file"), 16)
    assert (tmp_path / "file").read_text() == "precious"

"""What systemd is told of a service of Type=notify."""

import contextlib
import socket

from service.settings import notify_socket


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where there is none."""
    path = notify_socket()
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
        messenger.connect("\0" + path[1:] if path.startswith("@") else path)
        messenger.send(state.encode())

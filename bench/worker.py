"""A uvicorn worker with one of `APPS`, or `bare`, on a free loopback port: `python -m bench.worker ours REDIS_SOCKET`.

Its first line on standard output is the port.
"""

import socket
import sys

import uvicorn

from bench.apps import APPS, bare


def main(name: str, redis_socket: str) -> None:
    """Serve until SIGTERM."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)  # before the port is told: who comes early waits
    app = bare if name == "bare" else APPS[name](redis_socket)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main(*sys.argv[1:])

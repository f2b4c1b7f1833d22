"""A real nginx for the tests: one site, on a loopback port, as this user, in a directory of its own."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from servers import needs

DEPLOY = Path(__file__).parents[1] / "deploy"
SITE = DEPLOY / "nginx" / "onequota.conf"

MAIN = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `old`, which must stand there once, replaced."""
    assert len(re.findall(re.escape(old), text)) == 1, old
    return text.replace(old, new)


class Nginx:
    """A committed site with two addresses replaced: where it listens, and `upstream` ("127.0.0.1:8000").

    `changes` are more of what is replaced in it.
    """

    def __init__(self, upstream: str, *, site: Path = SITE, changes: Mapping[str, str] | None = None) -> None:
        program = needs("nginx")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = tempfile.mkdtemp(prefix="oq-nginx-")
        text = replaced(site.read_text(), "listen 80;", f"listen 127.0.0.1:{self.port};")
        text = replaced(text, "server 127.0.0.1:8000;", f"server {upstream};")
        for old, new in (changes or {}).items():
            text = replaced(text, old, new)
        (Path(self.folder) / "site.conf").write_text(text)
        me = pwd.getpwuid(os.getuid()).pw_name
        user = f"user {me};" if os.getuid() == 0 else ""  # root's workers would change to nobody
        (Path(self.folder) / "nginx.conf").write_text(MAIN.format(user=user, folder=self.folder))
        self._errors = (Path(self.folder) / "errors").open("w")
        command = [program, "-e", "stderr", "-p", self.folder, "-c", f"{self.folder}/nginx.conf"]
        self.process = subprocess.Popen(command, stderr=self._errors)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            assert self.process.poll() is None, self.said()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.02)

    def said(self) -> str:
        """Its complaints."""
        return (Path(self.folder) / "errors").read_text()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._errors.close()
        shutil.rmtree(self.folder)

    def __enter__(self) -> "Nginx":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""A real Caddy for the tests: one Caddyfile, on loopback ports, in a directory of its own."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from nginx import DEPLOY, free_port, replaced
from servers import needs

SITE = DEPLOY / "caddy" / "Caddyfile"

# No port for administration, no certificates, nothing outside of its folder.
MAIN = """
{{
	admin off
	auto_https off
	storage file_system {folder}
}}
"""


class Caddy:
    """A Caddyfile whose addresses are replaced: where it listens, onequota's (`upstream`), and those of `changes`."""

    def __init__(self, upstream: str, text: str, changes: Mapping[str, str]) -> None:
        program = needs("caddy")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = tempfile.mkdtemp(prefix="oq-caddy-")
        text = replaced(text, "http://:80 {", f"http://:{self.port} {{\n\tbind 127.0.0.1\n")
        text = replaced(text, " 127.0.0.1:8000 ", f" {upstream} ")
        for old, new in changes.items():
            text = replaced(text, old, new)
        (Path(self.folder) / "Caddyfile").write_text(MAIN.format(folder=self.folder) + text)
        self._errors = (Path(self.folder) / "errors").open("w")
        self.process = subprocess.Popen(
            [program, "run", "--config", f"{self.folder}/Caddyfile", "--adapter", "caddyfile"],
            env={**os.environ, "HOME": self.folder, "XDG_CONFIG_HOME": self.folder, "XDG_DATA_HOME": self.folder},
            stderr=self._errors,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.said()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.02)

    def said(self) -> str:
        """Its log."""
        return (Path(self.folder) / "errors").read_text()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._errors.close()
        shutil.rmtree(self.folder)

    def __enter__(self) -> "Caddy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

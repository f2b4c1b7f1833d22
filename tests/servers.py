"""Real servers for the tests: found, started on private sockets, ended. Missing: skipped, but failed when CI=true."""

import os
import shutil

import pytest

from bench import redises


def needs(program: str) -> str:
    """The program's path. Without it the test is skipped; in CI that is a failure."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def redis_binaries() -> list[str]:
    """Every redis-server on PATH; one that is missing is named, too."""
    return redises.binaries() or ["redis-server"]


class RedisServer(redises.RedisServer):
    """One of the tests' own."""

    def __init__(self, *options: str, **more: object) -> None:
        needs("redis-server")
        super().__init__(*options, **more)

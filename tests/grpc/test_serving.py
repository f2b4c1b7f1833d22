"""Where gRPC cannot be served, that is said at once, in one line, with what to do."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calling import channel
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import command, environment

from service import grpc
from service.callers import Callers, parse
from service.errors import ConfigurationError
from service.grpc.server import Server
from service.limits import Limiter, catalog
from service.settings import Settings


def test_a_missing_package_is_told_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    grpc.check()
    monkeypatch.setattr(grpc, "_MODULES", ("grpc", "no_such.package"))
    with pytest.raises(ConfigurationError, match=r"gRPC .* missing here: pip install 'onequota\[grpc\]'"):
        grpc.check()


def test_windows_is_told_what_to_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match="leave out --grpc-port"):
        grpc.check()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_a_port_that_is_taken_is_told_by_the_option_it_came_from(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command("serve", "--port", "0", "--grpc-port", port), cwd=tmp_path, env=environment(),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"onequota: port {port} on 127.0.0.1 is in use: stop what listens there or choose another with --grpc-port\n"
    )


def test_the_parent_loads_none_of_it() -> None:
    """It could not be forked or replaced as cheaply."""
    program = "import sys, service.server; service.server.grpc.check(); sys.exit('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=60, check=False)
    assert done.returncode == 0


async def test_a_connection_that_says_nothing_is_closed() -> None:
    """After the time that an HTTP client has for its header."""
    listener = socket.create_server(("127.0.0.1", 0))
    async with Server(listener, {}, header_s=0.2), asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await reader.read() != b"", "the server's first frame"
        writer.close()


async def test_callers_without_a_key_are_counted_by_their_address() -> None:
    """As the app wires it: behind the door every connection comes from the same socket."""
    limiter = Limiter(lambda: "x", storage_uri="memory://")
    callers = Callers(parse("gateway:5f1d7a84e2c09b36a7d41ce80f93b265:*"), limiter)
    missed: list[str] = []

    async def noting(address: str) -> None:
        missed.append(address)

    callers.missed = noting  # type: ignore[method-assign]
    listener = socket.create_server(("127.0.0.1", 0))
    place = f"127.0.0.1:{listener.getsockname()[1]}"
    async with (
        grpc.serving(listener, limiter, lambda: catalog.Still().catalog, callers, Settings()),
        channel(place) as opened,
    ):
        try:
            await opened.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")(b"", timeout=20)
        except AioRpcError as error:
            assert error.code().name == "UNAUTHENTICATED"
    assert missed == ["127.0.0.1"]
    await limiter.aclose()


@pytest.mark.parametrize(
    ("network", "code"), [("127.0.0.0/8", "PERMISSION_DENIED"), ("10.0.0.0/8", "INVALID_ARGUMENT")]
)
async def test_who_is_never_let_in_is_not_let_in_by_grpc_either(network: str, code: str) -> None:
    limiter = Limiter(lambda: "x", storage_uri="memory://", deny=[network])
    callers = Callers((), limiter)
    listener = socket.create_server(("127.0.0.1", 0))
    place = f"127.0.0.1:{listener.getsockname()[1]}"
    async with (
        grpc.serving(listener, limiter, lambda: catalog.Still().catalog, callers, Settings()),
        channel(place) as opened,
    ):
        with pytest.raises(AioRpcError) as caught:
            await opened.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")(b"", timeout=20)
        assert caught.value.code().name == code
        caught.value.__traceback__ = None
    await limiter.aclose()


async def test_the_end_fits_into_the_drain_also_with_a_client_that_stays() -> None:
    """0.4 s here; 3 s are the most it takes anywhere."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(listener, {}, drain_s=0.4)
    async with channel(f"127.0.0.1:{listener.getsockname()[1]}") as opened:
        async with server:
            watch = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            await watch.read()
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 2
        watch.cancel()

import signal

import pytest
import redis
from servers import RedisServer

pytest_plugins = ["pytester", "service.limits.testing", "topologies"]


@pytest.fixture(autouse=True)
def _patience(request, monkeypatch):
    """A machine that others use as well is no outage: decisions have five seconds, unless a test is `impatient`."""
    if request.node.get_closest_marker("impatient") is None:
        monkeypatch.setenv("ONEQUOTA_REDIS_TIMEOUT_MS", "5000")


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """What runs in a shell's background, or under nohup, starts deaf to these; what tests interrupt must not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # a handler is not inherited


@pytest.fixture(scope="session")
def _one_redis():
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_server(_one_redis):
    """A real, empty Redis. Tests that stop or stall it start one of their own."""
    with redis.Redis(unix_socket_path=_one_redis.socket) as client:
        client.flushall()
    return _one_redis


def pytest_addoption(parser):
    parser.addoption("--times", type=int, default=1, help="So many times as many operations against the twins.")


def pytest_terminal_summary(terminalreporter):
    """What tests of docs/trust.md measured."""
    reports = [
        report for found in terminalreporter.stats.values() for report in found if getattr(report, "when", "") == "call"
    ]
    figures = [(report.location[2], dict(report.user_properties).get("figure")) for report in reports]
    if any(figure for _, figure in figures):
        terminalreporter.section("figures")
        for test, figure in figures:
            if figure:
                name, _, case = test.partition("[")
                terminalreporter.write_line(f"{case.rstrip(']') or name}: {figure}")

import pytest
import redis
from servers import RedisServer

pytest_plugins = ["pytester", "service.limits.testing"]


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

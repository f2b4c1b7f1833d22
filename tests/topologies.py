"""Redis as people run it, as fixtures: one server, over TLS, with an ACL user, a Cluster, Sentinels.

Real processes, started once a session, and only what is asked for. Whoever harms one heals it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from servers import RedisServer, needs

from bench.redises import Certificates, RedisCluster, RedisSentinels, free_port, tell

USER, PASSWORD = "limiter", "p@ss/word"
ACL = "~oq:* +@read +@write +@connection -@dangerous +evalsha +script|load +time +info +role +cluster|slots +asking"
"""What a limiter needs, as docs/redis.md says."""

PLACES = ("redis", "tls", "acl", "cluster", "sentinels")


@dataclass(frozen=True)
class Place:
    """A deployment: its URL, and the servers that have counters now."""

    name: str
    url: str
    servers: Callable[[], list[RedisServer]]
    password: str = ""

    def tell(self, *command):
        """Say it to every server; what each answers."""
        return [tell(server, *command, password=self.password) for server in self.servers()]


def _session(make):
    @pytest.fixture(scope="session")
    def started():
        needs("redis-server")
        with make() as served:
            yield served

    return started


redis_cluster = _session(RedisCluster)
redis_sentinels = _session(lambda: RedisSentinels(password=PASSWORD.replace("/", "")))


@pytest.fixture(scope="session")
def certificates():
    needs("openssl")
    with Certificates() as made:
        yield made


@pytest.fixture(scope="session")
def redis_tls(certificates):
    with RedisServer(port=free_port(), certificates=certificates) as server:
        yield server


@pytest.fixture(scope="session")
def redis_acl():
    """Whoever gives no password may do nothing but look after the server, over its socket."""
    with RedisServer(port=free_port()) as server:
        tell(server, "ACL", "SETUSER", USER, "on", f">{PASSWORD}", *ACL.split())
        yield server


@pytest.fixture
def place(request):
    """Empty; which one is said by `pytest.mark.parametrize("place", PLACES, indirect=True)`."""
    name = request.param
    if name == "redis":
        server = request.getfixturevalue("redis_server")
        found = Place(name, server.url, lambda: [server])
    elif name == "tls":
        server = request.getfixturevalue("redis_tls")
        query = request.getfixturevalue("certificates").query()
        found = Place(name, f"rediss://127.0.0.1:{server.port}/1?{query}", lambda: [server])
    elif name == "acl":
        server = request.getfixturevalue("redis_acl")
        found = Place(name, f"redis://{USER}:p%40ss%2Fword@127.0.0.1:{server.port}", lambda: [server])
    elif name == "cluster":
        cluster = request.getfixturevalue("redis_cluster")
        found = Place(name, cluster.url, cluster.primaries)
    else:
        sentinels = request.getfixturevalue("redis_sentinels")
        found = Place(name, sentinels.url, lambda: [sentinels.primary()], sentinels.password)
    found.tell("FLUSHALL")
    return found

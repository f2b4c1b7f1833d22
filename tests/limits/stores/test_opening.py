"""What a URL and its options open, and what is said at start-up when they cannot be meant."""

import pytest
from redis.asyncio import SSLConnection

from service.errors import ConfigurationError
from service.limits import Limiter
from service.limits.stores import opener
from service.limits.stores.cluster import ClusterStore
from service.limits.stores.redis import RedisStore
from service.limits.stores.sentinel import SentinelStore

SCHEMES = [
    ("redis://h", RedisStore),
    ("valkeys://h", RedisStore),
    ("unix:///run/redis.sock", RedisStore),
    ("redis+sentinel://h/orders", SentinelStore),
    ("valkeys+sentinel://h1,h2/orders/3", SentinelStore),
    ("redis+cluster://h", ClusterStore),
    ("rediss+cluster://h1,h2", ClusterStore),
]


@pytest.mark.parametrize(("url", "kind"), SCHEMES)
async def test_the_scheme_says_what_is_opened_and_nobody_is_asked_yet(url, kind):
    store = opener(url)()
    assert type(store) is kind
    await store.aclose()


@pytest.mark.parametrize(
    "base", ["rediss://:hunter2@h/0", "rediss+sentinel://:hunter2@h/orders", "rediss+cluster://:hunter2@h"]
)
@pytest.mark.parametrize(
    ("query", "options", "told"),
    [
        ("ssl_ca_certs=/nowhere/ca.pem", {}, "ssl_ca_certs=/nowhere/ca.pem: there is no such file"),
        ("", {"ssl_certfile": "/nowhere/client.pem"}, "ssl_certfile=/nowhere/client.pem: there is no such file"),
        ("socket_timeout=soon", {}, "the Redis URL cannot be used: Invalid value for 'socket_timeout'"),
        ("colour=blue", {}, "the Redis URL cannot be used: .*colour"),
        ("", {"colour": "blue"}, "the Redis URL cannot be used: .*colour"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_meant_is_said_at_once_without_the_password(base, query, options, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        opener(f"{base}?{query}" if query else base, options)
    assert "hunter2" not in str(caught.value)


def test_a_limiter_says_it_too():
    with pytest.raises(ConfigurationError, match="it names no service") as caught:
        Limiter(lambda: "x", storage_uri="redis+sentinel://:hunter2@h")
    assert "hunter2" not in str(caught.value)


def arguments(client):
    return client.connection_pool.connection_kwargs


def clients_of(store):
    """Those it has, and the one of a server that it hears of later."""
    found = [store.client] if isinstance(store, RedisStore) else list(getattr(store, "_sentinels", []))
    if not isinstance(store, RedisStore):
        opened = store._open(("10.0.0.1", 6380))
        found.append(opened.client if isinstance(opened, RedisStore) else opened)
    return found


async def test_sentinels_have_a_password_of_their_own_and_share_all_else():
    url = "rediss+sentinel://ann:data@h1,h2/orders/3?sentinel_password=theirs&ssl_cert_reqs=none"
    store = opener(url, {"ssl_check_hostname": False})()
    *sentinels, server = clients_of(store)
    for client in sentinels:
        said = arguments(client)
        assert (said.get("username"), said["password"], said.get("db") or 0) == (None, "theirs", 0)
        assert (said["ssl_cert_reqs"], said["ssl_check_hostname"]) == ("none", False)
        assert issubclass(client.connection_pool.connection_class, SSLConnection)
    said = arguments(server)
    assert (said["host"], said["port"], said["db"]) == ("10.0.0.1", 6380, 3)
    assert (said["username"], said["password"]) == ("ann", "data")
    assert issubclass(server.connection_pool.connection_class, SSLConnection)
    await store.aclose()


async def test_slowapis_way_to_tell_the_sentinels_password_works():
    store = opener("redis+sentinel://h/orders", {"password": "data", "sentinel_kwargs": {"password": "theirs"}})()
    sentinel, server = clients_of(store)
    assert (arguments(sentinel)["password"], arguments(server)["password"]) == ("theirs", "data")
    await store.aclose()


@pytest.mark.parametrize("url", [url for url, _ in SCHEMES])
async def test_no_client_tries_twice(url):
    """Whatever is asked for: a second try of a charge is a second charge."""
    url += ("&" if "?" in url else "?") + "retry_on_timeout=true"
    store = opener(url, {"retry_on_timeout": True})()
    for client in clients_of(store):
        assert client.connection_pool.make_connection().retry._retries == 0
    await store.aclose()

"""What a Redis URL of several servers may say; those of one are in test_settings."""

import pytest

from service.redis_url import Several, parse_redis_url, read, redacted


def several(url: str) -> Several:
    found = read(parse_redis_url(url))
    assert found is not None
    return found


def test_sentinels_name_a_service_and_the_servers_take_user_database_and_options() -> None:
    said = several("redis+sentinel://ann:p%40ss@10.0.0.1:26380,[::1],s3/orders/2?ssl_ca_certs=ca.pem")
    assert (said.kind, said.service) == ("sentinel", "orders")
    assert said.hosts == (("10.0.0.1", 26380), ("::1", 26379), ("s3", 26379))
    assert said.at(("db1", 6380)) == "redis://ann:p%40ss@db1:6380/2?ssl_ca_certs=ca.pem"
    assert said.at(("::1", 6380)) == "redis://ann:p%40ss@[::1]:6380/2?ssl_ca_certs=ca.pem"
    assert said.sentinel(said.hosts[0]) == "redis://10.0.0.1:26380/?ssl_ca_certs=ca.pem"


def test_what_sentinels_want_for_themselves_is_prefixed() -> None:
    said = several("redis+sentinel://:data@s1/orders?sentinel_username=eve&sentinel_password=a%26b&client_name=x")
    assert said.sentinel(("s1", 1)) == "redis://s1:1/?client_name=x&username=eve&password=a%26b"
    assert said.at(("db1", 6379)) == "redis://:data@db1:6379/?client_name=x"


def test_a_cluster_is_any_of_its_hosts() -> None:
    said = several("redis+cluster://h1:7000,h2,/?client_name=x")
    assert (said.kind, said.hosts, said.service) == ("cluster", (("h1", 7000), ("h2", 6379)), "")
    assert said.at(("h3", 7002)) == "redis://h3:7002/?client_name=x"
    assert several("redis+cluster://h/0").hosts == (("h", 6379),)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("valkey+cluster://h", "redis+cluster://h"),
        ("valkeys+cluster://h", "rediss+cluster://h"),
        ("Redis+Sentinel://h/s", "redis+sentinel://h/s"),
        ("valkey+sentinel://h/s", "redis+sentinel://h/s"),
        ("valkeys+sentinel://h/s", "rediss+sentinel://h/s"),
    ],
)
def test_valkey_is_redis_for_several_too(written: str, canonical: str) -> None:
    assert parse_redis_url(written) == canonical
    assert several(written).at(("x", 1)).startswith(canonical.partition("+")[0] + "://")


def test_one_server_is_not_several() -> None:
    assert [read(url) for url in ("redis://h", "rediss://h", "unix:///s", "fakeredis://")] == [None] * 4


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis+sentinel://", "it names no host; wanted redis+sentinel://HOST:26379,HOST:26379/SERVICE/DB"),
        ("redis+sentinel://:hunter2@", "it names no host"),
        ("redis+sentinel://:hunter2@h", "it names no service, as Sentinels call it"),
        ("redis+sentinel://:hunter2@h/0", "it names no service"),
        ("redis+sentinel://:hunter2@h/a b", "it holds a space"),
        ("redis+sentinel://:hunter2@h/orders/x", "its database is not a number"),
        ("redis+sentinel://:hunter2@h/orders/0/1", "its database is not a number"),
        ("redis+sentinel://:hunter2@h:port/orders", "its hosts are unreadable, or a port is not a number"),
        ("redis+sentinel://:hun/ter2@h/orders", "unreadable"),
        ("redis+sentinel://:hunter2@h:0/orders", "a port is not a number from 1 to 65535"),
        ("redis+sentinel://:hunter2@[::1/orders", "unreadable"),
        ("redis+sentinel://:p#hunter2@h/orders", "it holds a '#': in a password, write %23"),
        ("redis+cluster://:hunter2@", "it names no host; wanted redis+cluster://HOST:6379,HOST:6379"),
        ("redis+cluster://:hunter2@,", "it names no host"),
        ("redis+cluster://:hunter2@h:70000", "unreadable"),
        ("redis+cluster://:hunter2@h1,:7001", "unreadable"),
        ("redis+cluster://:hunter2@h/1", "a Cluster has database 0 only"),
        ("redis+cluster://:hun?ter2@h", "unreadable"),
        ("redis+magic://:hunter2@h", "wanted redis://HOST:PORT/DB"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_without_the_password(url: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_redis_url(url)
    assert told in str(caught.value)
    shown = redacted(url)
    assert not any(part in text for text in (str(caught.value), shown) for part in ("hun", "ter2"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+cluster://h1:7000,h2:7001", "redis+cluster://h1:7000,h2:7001"),
        ("redis+cluster://h1:7000,h2", "redis+cluster://h1:7000,h2"),
        ("redis+cluster://u:se,cret@h1:7000,h2", "redis+cluster://u:***@h1:7000,h2"),
        ("redis+sentinel://[::1]:26379,h/orders/0", "redis+sentinel://[::1]:26379,h/orders/0"),
        ("redis+sentinel://h/orders?sentinel_password=secret&a=b", "redis+sentinel://h/orders?sentinel_password=***&a=b"),
    ],
)  # fmt: skip
def test_it_is_shown_without_what_may_be_a_password(url: str, shown: str) -> None:
    assert redacted(url) == shown

"""Who asks: only configured proxies are believed about somebody else's address."""

import pytest
from driving import gated, limiter_of, statuses
from fastapi import FastAPI
from starlette.requests import Request
from starlette.testclient import TestClient

from service.errors import ConfigurationError
from service.limits import get_ipaddr, get_remote_address, identity
from service.limits.identity import NOBODY, Addresses

PROXIES = ["10.0.0.0/8", "192.0.2.9", "fd00::/8"]


def seen(trusted, peer, *headers):
    """The identity of a request from `peer` with these (name, value) headers."""
    scope = {
        "type": "http",
        "client": None if peer is None else (peer, 4711),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    return Addresses(trusted).of(scope)


PEERS = [
    ("203.0.113.7", "203.0.113.7"),
    ("::ffff:203.0.113.7", "203.0.113.7"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
    ("2001:DB8:1:3::1", "2001:db8:1:3::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("::1", "::/64"),
    ("testclient", NOBODY),
    ("", NOBODY),
    (None, NOBODY),
]


@pytest.mark.parametrize(("peer", "who"), PEERS)
def test_a_peer_is_its_address_and_one_customers_ipv6_addresses_are_one(peer, who):
    """IPv4-mapped addresses are unwrapped; IPv6 is cut to its /64; a peer without an address is `local`."""
    assert seen([], peer) == who


def test_without_trusted_proxies_no_header_is_believed():
    """Every header is written by whoever sends the request."""
    assert seen([], "203.0.113.7", ("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")) == "203.0.113.7"
    assert seen(PROXIES, "203.0.113.7", ("x-forwarded-for", "1.2.3.4")) == "203.0.113.7"


CHAINS = [
    # the header as the trusted peer 10.0.0.1 passes it on, and whom it is charged to
    ("203.0.113.7", "203.0.113.7"),
    ("1.1.1.1, 203.0.113.7", "203.0.113.7"),
    ("1.1.1.1, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
    ("1.1.1.1, 203.0.113.7, 192.0.2.9, 10.9.9.9", "203.0.113.7"),
    ("203.0.113.7,10.0.0.2", "203.0.113.7"),
    ("  203.0.113.7  ", "203.0.113.7"),
    ("203.0.113.7:51234", "203.0.113.7"),
    ("::ffff:203.0.113.7", "203.0.113.7"),
    ("[2001:db8:1:2::5]:51234", "2001:db8:1:2::/64"),
    ("[2001:db8:1:2::5]", "2001:db8:1:2::/64"),
    ("2001:db8:1:2::5", "2001:db8:1:2::/64"),
    ("203.0.113.7, fd00::1", "203.0.113.7"),
    ("203.0.113.7, ::ffff:10.0.0.2", "203.0.113.7"),
    # everybody in the chain is a proxy: the farthest one is the client
    ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
    # garbage ends the walk at the last hop that could be read: nobody gets a quota by writing nonsense
    ("203.0.113.7, unknown", "10.0.0.1"),
    ("unknown, 10.0.0.2", "10.0.0.2"),
    ("unknown, 203.0.113.7", "203.0.113.7"),
    ("203.0.113.7, ", "10.0.0.1"),
    ("", "10.0.0.1"),
    (",,,", "10.0.0.1"),
    ("203.0.113.999", "10.0.0.1"),
    ("3405803783", "10.0.0.1"),
    ("0x0a.1.1.1", "10.0.0.1"),
    ("203.0.113.7/32", "10.0.0.1"),
    ("\xff\xfe", "10.0.0.1"),
    ("[", "10.0.0.1"),
]


@pytest.mark.parametrize(("chain", "who"), CHAINS)
def test_behind_a_trusted_proxy_the_rightmost_untrusted_entry_is_the_client(chain, who):
    """What stands left of it is the client's own word."""
    assert seen(PROXIES, "10.0.0.1", ("x-forwarded-for", chain)) == who


@pytest.mark.parametrize(("trusted", "who"), [(["unix:"], "203.0.113.7"), (["10.0.0.0/8"], NOBODY), ([], NOBODY)])
@pytest.mark.parametrize("peer", [None, ""])
def test_a_proxy_on_a_unix_socket_is_believed_if_it_is_named(trusted, peer, who):
    """nginx on the same machine; a peer that does not even say where it is, is none."""
    scope = {"type": "http", "client": peer, "headers": [(b"x-forwarded-for", b"6.6.6.6, 203.0.113.7")]}
    assert Addresses(trusted).of(scope) == who
    assert str(Addresses(trusted).address(scope)) == ("None" if who == NOBODY else who)
    assert Addresses(trusted).of({**scope, "headers": []}) == NOBODY
    assert Addresses(trusted).of({**scope, "client": ("testclient", 1)}) == NOBODY


def test_the_whole_address_is_known_beside_the_identity():
    """Lists of networks may be finer than a /64."""
    scope = {"type": "http", "client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", b"2001:db8::5")]}
    assert str(Addresses(["10.0.0.0/8"]).address(scope)) == "2001:db8::5"
    assert str(Addresses([]).address(scope)) == "10.0.0.1"
    assert Addresses([]).address({**scope, "client": ("testclient", 1)}) is None


def test_several_header_lines_are_one_list_in_their_order():
    """RFC 9110: a proxy may add a line instead of an entry; the last line's last entry is the nearest hop."""
    lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7, 10.0.0.2")]
    assert seen(PROXIES, "10.0.0.1", *lines) == "203.0.113.7"
    assert seen(PROXIES, "10.0.0.1", *reversed(lines)) == "1.1.1.1"


FORWARDED = [
    ("for=203.0.113.7", "203.0.113.7"),
    ("For=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7"),
    ("proto=https; FOR = 203.0.113.7", "203.0.113.7"),
    ("for=1.1.1.1, for=203.0.113.7, for=10.0.0.2", "203.0.113.7"),
    ('for="203.0.113.7:51234"', "203.0.113.7"),
    ('for="[2001:db8:1:2::5]:51234"', "2001:db8:1:2::/64"),
    ('for="[2001:db8:1:2::5]"', "2001:db8:1:2::/64"),
    ("for=unknown", "10.0.0.1"),
    ("for=_hidden", "10.0.0.1"),
    ("by=203.0.113.7", "10.0.0.1"),
    ("for=203.0.113.7, proto=https", "10.0.0.1"),
    ("", "10.0.0.1"),
    (";;;===", "10.0.0.1"),
]


@pytest.mark.parametrize(("value", "who"), FORWARDED)
def test_forwarded_is_read_where_there_is_no_x_forwarded_for(value, who):
    """RFC 7239; a hop that does not say `for` cannot be walked past."""
    assert seen(PROXIES, "10.0.0.1", ("forwarded", value)) == who


def test_x_forwarded_for_goes_before_forwarded():
    """One of them is read, never a mixture of both."""
    both = [("forwarded", "for=1.1.1.1"), ("x-forwarded-for", "203.0.113.7")]
    assert seen(PROXIES, "10.0.0.1", *both) == "203.0.113.7"


def test_a_mapped_peer_is_a_proxy_as_its_ipv4_address_is():
    """A dual-stack socket shows 10.0.0.1 as ::ffff:10.0.0.1."""
    assert seen(PROXIES, "::ffff:10.0.0.1", ("x-forwarded-for", "203.0.113.7")) == "203.0.113.7"


REFUSED = [
    ("*", "name your proxies"),
    (" * ", "name your proxies"),
    ("0.0.0.0/0", "0.0.0.0/0"),
    ("::/0", "::/0"),
    ("proxy.example.com", "proxy.example.com"),
    ("10.0.0.1/8", "10.0.0.1/8"),
    ("10.0.0.0/33", "10.0.0.0/33"),
    ("", "trusted_proxies"),
]


@pytest.mark.parametrize(("entry", "says"), REFUSED)
def test_believing_everybody_or_nonsense_is_refused_when_the_limiter_is_made(entry, says):
    """`*` or a network of everybody lets every client choose its own address."""
    with pytest.raises(ConfigurationError, match="trusted_proxies") as caught:
        limiter_of(trusted_proxies=[entry])
    assert says in str(caught.value)


def test_the_identity_of_a_request_is_what_the_apps_limiter_believes():
    """`identity.client_address` takes the proxies from `app.state.limiter`; without one, none."""
    app = FastAPI()
    scope = {
        "type": "http",
        "app": app,
        "client": ("10.0.0.1", 1),
        "headers": [(b"x-forwarded-for", b"203.0.113.7")],
    }
    assert identity.client_address(Request(scope)) == "10.0.0.1"
    app.state.limiter = limiter_of(trusted_proxies=PROXIES)
    assert identity.client_address(Request(scope)) == "203.0.113.7"


@pytest.mark.parametrize("key_func", [identity.client_address, get_ipaddr, get_remote_address])
def test_slowapis_key_functions_believe_no_more_than_ours(key_func):
    """get_ipaddr reads a header that clients write, get_remote_address sees only the proxy: both become ours."""
    app = gated(FastAPI(), limiter_of(key_func=key_func, default_limits=["1/minute"], trusted_proxies=["10.0.0.0/8"]))

    @app.get("/")
    def index():
        return {}

    def get(peer, **headers):
        return TestClient(app, client=(peer, 1)).get("/", headers=headers).status_code

    spoof = {"X_FORWARDED_FOR": "6.6.6.6", "X-Forwarded-For": "7.7.7.7"}
    assert get("203.0.113.7") == 200
    assert get("203.0.113.7", **spoof) == 429
    assert get("10.0.0.1", **{"X-Forwarded-For": "203.0.113.8"}) == 200
    assert get("10.0.0.1", **{"X-Forwarded-For": "203.0.113.9"}) == 200
    assert get("10.0.0.1", **{"X-Forwarded-For": "7.7.7.7, 203.0.113.9"}) == 429


def test_a_peer_on_a_unix_socket_is_local():
    """uvicorn on a unix socket tells no address; all such requests count together."""
    app = gated(FastAPI(), limiter_of(key_func=identity.client_address, default_limits=["2/minute"]))

    @app.get("/")
    def index():
        return {}

    assert statuses(TestClient(app), "/", 3) == [200, 200, 429]

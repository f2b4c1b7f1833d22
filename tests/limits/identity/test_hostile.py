"""What hostile clients write about themselves, and whom it is charged to: a table of some 1,300 rows.

Each entry of ENTRIES (and how it is read) is put into each of SETTINGS (and who is charged there). The proxies are
10.0.0.0/8 and fd00::/8; the client's own word is always 6.6.6.6, and 6.6.6.6 is never charged.
"""

import pytest

from service.limits.identity import Addresses

PEER = "10.0.0.1"
STRANGER = "198.51.100.9"
PROXIES = ["10.0.0.0/8", "fd00::/8"]

NONE = None
"""It cannot be read as an address: the walk ends before it."""

ENTRIES = [
    # plain
    ("203.0.113.7", "203.0.113.7"),
    ("0.0.0.0", "0.0.0.0"),
    ("255.255.255.255", "255.255.255.255"),
    ("127.0.0.1", "127.0.0.1"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
    ("2001:0db8:0001:0002::9", "2001:db8:1:2::/64"),
    ("::", "::/64"),
    ("::1", "::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("fe80::1%25eth0", "fe80::/64"),
    ("fe80::1%", "fe80::/64"),
    # mapped, and what only looks so
    ("::ffff:203.0.113.7", "203.0.113.7"),
    ("::FFFF:203.0.113.7", "203.0.113.7"),
    ("::ffff:cb00:7107", "203.0.113.7"),
    ("0:0:0:0:0:ffff:203.0.113.7", "203.0.113.7"),
    ("::ffff:203.0.113.7%eth0", "203.0.113.7"),
    ("::203.0.113.7", "::/64"),
    ("::fffe:203.0.113.7", "::/64"),
    ("64:ff9b::203.0.113.7", "64:ff9b::/64"),
    ("2002:cb00:7107::1", "2002:cb00:7107::/64"),
    ("::ffff:203.0.113.07", NONE),
    ("::ffff:203.0.113.256", NONE),
    ("::ffff:0:203.0.113.7", "::/64"),
    # ports and brackets
    ("203.0.113.7:1", "203.0.113.7"),
    ("203.0.113.7:65535", "203.0.113.7"),
    ("203.0.113.7:_hidden", "203.0.113.7"),
    ("203.0.113.7:", NONE),
    ("203.0.113.7:123456", NONE),
    ("203.0.113.7:80:80", NONE),
    ("203.0.113.7:http", NONE),
    ("203.0.113.7:-1", NONE),
    ("203.0.113.7:6.6.6.6", NONE),
    ("[2001:db8:1:2::5]", "2001:db8:1:2::/64"),
    ("[2001:db8:1:2::5]:443", "2001:db8:1:2::/64"),
    ("[2001:db8:1:2::5]:_p", "2001:db8:1:2::/64"),
    ("[::ffff:203.0.113.7]:443", "203.0.113.7"),
    ("[fe80::1%eth0]:443", "fe80::/64"),
    ("[2001:db8:1:2::5]x", NONE),
    ("[2001:db8:1:2::5]:", NONE),
    ("[2001:db8:1:2::5", NONE),
    ("2001:db8:1:2::5]", NONE),
    ("[[2001:db8:1:2::5]]", NONE),
    ("[203.0.113.7]", NONE),
    ("[203.0.113.7]:80", NONE),
    ("[]", NONE),
    ("[", NONE),
    ("]", NONE),
    ("[]:80", NONE),
    (":80", NONE),
    ("2001:db8:1:2::5:443", "2001:db8:1:2::/64"),
    ("2001:db8:1:2:3:4:5:6:443", NONE),
    # numbers that other parsers take for an address
    ("203.0.113.07", NONE),
    ("0313.0.0113.07", NONE),
    ("0xcb.0x00.0x71.0x07", NONE),
    ("0xcb007107", NONE),
    ("3405803783", NONE),
    ("203.0.28935", NONE),
    ("203.7", NONE),
    ("203", NONE),
    ("203.0.113.7.", NONE),
    (".203.0.113.7", NONE),
    ("203..113.7", NONE),
    ("203.0.113.256", NONE),
    ("203.0.113.-7", NONE),
    ("+203.0.113.7", NONE),
    ("203.0.113.7e0", NONE),
    ("203.0.113.1_0", NONE),
    ("203.0.113.7/32", NONE),
    ("203.0.113.7/0", NONE),
    ("2001:db8::/32", NONE),
    ("203.0.113.7%eth0", NONE),
    ("2001:db8:::5", NONE),
    ("2001:db8::1::5", NONE),
    ("2001:db8:1:2:3:4:5", NONE),
    ("20011:db8::5", NONE),
    ("2001:db8::g", NONE),
    # words
    ("unknown", NONE),
    ("Unknown", NONE),
    ("_hidden", NONE),
    ("localhost", NONE),
    ("null", NONE),
    ("-", NONE),
    ("*", NONE),
    ("", NONE),
    ("''", NONE),
    ("example.com", NONE),
    ("http://203.0.113.7/", NONE),
    ("6.6.6.6;203.0.113.7", NONE),
    ("6.6.6.6 203.0.113.7", NONE),
    ("for=203.0.113.7", NONE),
    ("'203.0.113.7'", NONE),
    ("<203.0.113.7>", NONE),
    ("203.0.113.7#", NONE),
    ("203.0.113.7?", NONE),
    ("%32%30%33.0.113.7", NONE),
    ("&#50;03.0.113.7", NONE),
    # bytes: other digits, other blanks, controls as far as servers let them through
    ("²03.0.113.7", NONE),
    ("203.0.113.7\xa0", NONE),
    ("\xa0203.0.113.7", NONE),
    ("203.0.113.7\x85", NONE),
    ("203.0.113.7\x0b", NONE),
    ("203.0.113.7\x00", NONE),
    ("203.0.113.7\x1f", NONE),
    ("\xff\xfe", NONE),
    ("\xef\xbb\xbf203.0.113.7", NONE),
    ("203.0.113.7\t", "203.0.113.7"),
    ("\t 203.0.113.7 \t", "203.0.113.7"),
    # overlong
    ("1" * 300, NONE),
    ("203.0.113.7" + "0" * 300, NONE),
    ("2001:db8:1:2::5%" + "z" * 300, "2001:db8:1:2::/64"),
    ("[" * 500, NONE),
    (":" * 500, NONE),
]

X = "x-forwarded-for"
SETTINGS = {
    # what the proxy passes on, and who is charged if the entry is read as WHO, and if it cannot be read
    "alone": (PEER, [(X, "{}")], "WHO", PEER),
    "after the client's word": (PEER, [(X, "6.6.6.6, {}")], "WHO", PEER),
    "before a proxy": (PEER, [(X, "6.6.6.6, {}, 10.0.0.2")], "WHO", "10.0.0.2"),
    "before two proxies, one of IPv6": (PEER, [(X, "6.6.6.6,{},[fd00::1]:9,10.0.0.2")], "WHO", "fd00::/64"),
    "as the client's word": (PEER, [(X, "{}, 203.0.113.9")], "203.0.113.9", "203.0.113.9"),
    "in a line of its own": (PEER, [(X, "6.6.6.6"), (X, "{}")], "WHO", PEER),
    "in a line before the proxy's": (PEER, [(X, "{}"), (X, "203.0.113.9")], "203.0.113.9", "203.0.113.9"),
    "from a stranger": (STRANGER, [(X, "{}, 6.6.6.6"), ("forwarded", "for={}")], STRANGER, STRANGER),
}

QUOTED = {
    "forwarded": (PEER, [("forwarded", 'for="{}"')], "WHO", PEER),
    "forwarded before a proxy": (
        PEER,
        [("forwarded", 'for=6.6.6.6, for="{}";proto=https, for=10.0.0.2')],
        "WHO",
        "10.0.0.2",
    ),
    "forwarded, as the client's word": (
        PEER,
        [("forwarded", 'for="{}", for=203.0.113.9;by=10.0.0.1')],
        "203.0.113.9",
        "203.0.113.9",
    ),
}

FORWARDED = [
    # whole values of Forwarded: elements, parameters and quotes where they should not be
    ("for=203.0.113.7", "203.0.113.7"),
    ("FOR=203.0.113.7", "203.0.113.7"),
    ("for = 203.0.113.7", "203.0.113.7"),
    ("\tfor=203.0.113.7\t", "203.0.113.7"),
    (";for=203.0.113.7;", "203.0.113.7"),
    ("proto=http;for=203.0.113.7;by=_x", "203.0.113.7"),
    ('for="203.0.113.7"', "203.0.113.7"),
    ('for="[2001:db8:1:2::5]:4711"', "2001:db8:1:2::/64"),
    ("for=[2001:db8:1:2::5]", "2001:db8:1:2::/64"),
    ('for="203\\.0.113.7"', "203.0.113.7"),
    ("for=6.6.6.6;for=203.0.113.7", PEER),
    ("for=203.0.113.7;for=203.0.113.7", PEER),
    ("for=", PEER),
    ('for=""', PEER),
    ("for", PEER),
    ("=203.0.113.7", PEER),
    ("203.0.113.7", PEER),
    ("by=203.0.113.7", PEER),
    ("host=203.0.113.7", PEER),
    ("xfor=203.0.113.7", PEER),
    ("for.=203.0.113.7", PEER),
    ("for==203.0.113.7", PEER),
    ("for='203.0.113.7'", PEER),
    ('for="203.0.113.7', PEER),
    ('for=203.0.113.7"', PEER),
    ('for=""203.0.113.7""', PEER),
    ("for=unknown", PEER),
    ("for=_gazonk", PEER),
    ("for=203.0.113.7,", PEER),
    (",for=203.0.113.7", "203.0.113.7"),
    ("for=6.6.6.6,,for=203.0.113.7", "203.0.113.7"),
    ("for=6.6.6.6 for=203.0.113.7", PEER),
    # the proxy tells the host, which is the client's word, in quotes
    ('for=203.0.113.7;host="a, for=6.6.6.6"', "203.0.113.7"),
    ('for=203.0.113.7;host="a,for=6.6.6.6;b"', "203.0.113.7"),
    ('for=203.0.113.7;host=";for=6.6.6.6"', "203.0.113.7"),
    ('for=203.0.113.7;host="\\", for=6.6.6.6;x=\\""', "203.0.113.7"),
    ('for=203.0.113.7;host="\\\\\\", for=6.6.6.6"', "203.0.113.7"),
    ('host="a, for=6.6.6.6";for=203.0.113.7', "203.0.113.7"),
    ('for=203.0.113.7;host="a, for=6.6.6.6", for=10.0.0.2', "203.0.113.7"),
    # the client leaves a quote open, before what the proxy adds
    ('for="6.6.6.6, for=203.0.113.7', "203.0.113.7"),
    ('for="6.6.6.6;host=", for=203.0.113.7', "203.0.113.7"),
    ('", for=203.0.113.7', "203.0.113.7"),
    ('\\", for=203.0.113.7', "203.0.113.7"),
    ('for="6.6.6.6, for=203.0.113.7;host="a"', "203.0.113.7"),
    ('for="6.6.6.6, for="203.0.113.7"', "203.0.113.7"),
]

CHAINS = [
    # whole values of X-Forwarded-For
    (",203.0.113.7", "203.0.113.7"),
    ("203.0.113.7,", PEER),
    ("203.0.113.7,,10.0.0.2", "10.0.0.2"),
    (", ,", PEER),
    (",", PEER),
    (" ", PEER),
    ("10.0.0.3", "10.0.0.3"),
    ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
    ("10.0.0.3:80, [fd00::9]:80", "10.0.0.3"),
    ("203.0.113.7, ::ffff:10.0.0.2", "203.0.113.7"),
    ("6.6.6.6, 203.0.113.7, ::ffff:10.0.0.2", "203.0.113.7"),
    ("6.6.6.6, 203.0.113.7, 11.0.0.1", "11.0.0.1"),
    ("6.6.6.6, 9.255.255.255, 10.255.255.255", "9.255.255.255"),
    ("6.6.6.6, 203.0.113.7" + ", 10.0.0.2" * 5, "203.0.113.7"),
    ("6.6.6.6, 203.0.113.7" + ", 10.0.0.2" * 90, "203.0.113.7"),
    ("6.6.6.6, " * 2000 + "203.0.113.7", "203.0.113.7"),
    ("6" * 60_000 + ", 203.0.113.7", "203.0.113.7"),
    # a client that writes more proxies than are looked at is as far away as the last one that was
    ("6.6.6.6" + ", 10.0.0.2" * 2000, "10.0.0.2"),
    ("6.6.6.6" + ",10.0.0.3" * 113 + "," + "10.0.0.2", "10.0.0.3"),
    ('"203.0.113.7"', PEER),
    ("203.0.113.7; 10.0.0.2", PEER),
    ("203.0.113.7 10.0.0.2", PEER),
    ("203.0.113.7\r\n 6.6.6.6", PEER),
    ("6.6.6.6\r\n ,203.0.113.7", "203.0.113.7"),
]


def rows():
    for settings, quote in ((SETTINGS, False), (QUOTED, True)):
        for where, (peer, headers, read, unread) in settings.items():
            for entry, who in ENTRIES:
                if quote and '"' in entry:
                    continue
                expected = unread if who is NONE else who if read == "WHO" else read
                lines = [(name, value.format(entry)) for name, value in headers]
                yield pytest.param(peer, lines, expected, id=f"{where}: {entry[:24]!a}")
    for value, who in FORWARDED:
        yield pytest.param(PEER, [("forwarded", value)], who, id=f"Forwarded: {value[:50]!a}")
    for value, who in CHAINS:
        yield pytest.param(PEER, [(X, value)], who, id=f"{value[:50]!a}")
    for other in ("forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "client-ip", "via"):
        for value in ("6.6.6.6", "for=6.6.6.6"):
            both = [(other, value), (X, "203.0.113.7")]
            yield pytest.param(PEER, both, "203.0.113.7", id=f"beside {other}: {value}")
            yield pytest.param(STRANGER, [(other, value)], STRANGER, id=f"a stranger's {other}: {value}")
    for name in ("x_forwarded_for", "x-forwarded-for ", "x-forwarded-fo\xaf", "x-forwarded"):
        yield pytest.param(PEER, [(name, "6.6.6.6")], PEER, id=f"header {name!a}")


ROWS = list(rows())


def seen(peer, headers):
    scope = {
        "type": "http",
        "client": (peer, 4711),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
    }
    return Addresses(PROXIES).of(scope)


@pytest.mark.parametrize(("peer", "headers", "who"), ROWS)
def test_a_hostile_header_is_charged_to_whom_the_table_says(peer, headers, who):
    """Never to the client's own word, nor to nobody."""
    assert seen(peer, headers) == who


def test_the_table_is_long_and_never_charges_the_clients_own_word():
    """500 rows were asked for; those of other resolvers are in test_hostile_tokens.py."""
    assert len(ROWS) >= 1200
    assert not any("6.6.6.6" in row.values[2] for row in ROWS)


@pytest.mark.parametrize("network", ["2001:db8:1:2::/64", "2001:db8:ffff:ffff::/64", "fe80::/64"])
def test_a_sweep_through_one_slash_64_is_one_client(network):
    """2^64 addresses are what one customer gets: ten thousand of them, from the peer's side and from a proxy's."""
    prefix = network.removesuffix("::/64")
    hosts = [f"{prefix}:{n:x}:{n * 7919 % 65536:x}:{n * 31 % 65536:x}:{n:x}" for n in range(10_000)]
    if network.startswith("fe80"):
        hosts = [f"fe80:0:0:0:{n:x}:1:2:{n:x}" for n in range(10_000)]
    addresses = Addresses(PROXIES)
    found = {addresses.of({"type": "http", "client": (host, 1), "headers": []}) for host in hosts}
    found |= {
        addresses.of({"type": "http", "client": (PEER, 1), "headers": [(b"x-forwarded-for", host.encode())]})
        for host in hosts[:1000]
    }
    assert found == {network}


def test_neighbours_of_a_slash_64_are_other_clients():
    """The bit beyond the prefix counts for nothing, the last bit of the prefix for all."""
    assert seen("2001:db8:1:2::1", []) != seen("2001:db8:1:3::1", [])
    assert seen("2001:db8:1:2:8000::1", []) == seen("2001:db8:1:2:7fff::1", [])


def test_long_chains_are_not_kept_in_memory():
    """A client writes what it likes to the left: 2,000 chains of 60 kB leave nothing behind."""
    addresses = Addresses(PROXIES)
    for n in range(2_000):
        chain = b"%d," % n + b"6" * 60_000 + b", 203.0.113.7"
        scope = {"type": "http", "client": (PEER, 1), "headers": [(b"x-forwarded-for", chain)]}
        assert addresses.of(scope) == "203.0.113.7"
    assert addresses._kept.cache_info().currsize == 0

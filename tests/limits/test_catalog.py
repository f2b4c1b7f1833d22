"""The catalog: what a file says, which rule a request meets, and what is wrong with a file, where."""

import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import ConfigurationError
from service.limits.catalog import Catalog, Descriptor, Domain, InvalidCatalog, Place, Rule, index, parse, parse_all
from service.limits.limit import Limit


def catalog(text: str) -> Catalog:
    return parse(dedent(text))


def rule(found: Catalog, *entries: tuple[str, str], domain: str = "d") -> Rule | None:
    match = found.match(domain, entries)
    return None if match is None else match.rule


def name(found: Catalog, *entries: tuple[str, str], domain: str = "d") -> str | None:
    matched = rule(found, *entries, domain=domain)
    return None if matched is None else matched.name


def flaws(text: str | bytes) -> list[tuple[int, int, str]]:
    with pytest.raises(InvalidCatalog) as caught:
        parse(dedent(text) if isinstance(text, str) else text)
    return [(flaw.place.line, flaw.place.column, flaw.sentence) for flaw in caught.value.flaws]


ENVOY = """
    domain: envoy
    descriptors:
      - key: remote_address
        rate_limit: {unit: second, requests_per_unit: 10}
      - key: remote_address
        value: 50.0.0.5
        rate_limit: {unit: second, requests_per_unit: 0}
      - key: message_type
        value: marketing
        descriptors:
          - key: to_number
            rate_limit: {unit: day, requests_per_unit: 5}
      - key: to_number
        rate_limit: {unit: Day, requests_per_unit: 100}
      - key: code
        value: 404
        shadow_mode: true
        rate_limit: {unit: WEEK, requests_per_unit: 1_000, name: not_found}
      - key: ldap
        rate_limit: {unlimited: true}
      - key: ldap
        value: trusted
"""


@pytest.mark.parametrize(
    ("entries", "limits"),
    [
        ([("remote_address", "192.0.2.1")], [(10, 1)]),
        ([("message_type", "marketing"), ("to_number", "123")], [(5, 86_400)]),
        ([("to_number", "123")], [(100, 86_400)]),
        ([("code", "404")], [(1_000, 7 * 86_400)]),
    ],
)
def test_a_file_of_envoys_service_means_what_it_means_there(entries, limits):
    found = rule(catalog(ENVOY), *entries, domain="envoy")
    assert [(limit.amount, limit.window_s) for limit in found.limits] == limits
    assert all(limit.aligned and limit.algorithm == "fixed-window" for limit in found.limits)


@pytest.mark.parametrize(
    ("unit", "window_s"),
    [
        *[("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400), ("week", 604_800)],
        *[("month", 2_592_000), ("year", 31_536_000)],
    ],
)
def test_units_have_the_lengths_of_envoys_service(unit, window_s):
    found = catalog(f"""
        domain: d
        descriptors: [{{key: k, rate_limit: {{unit: {unit}, requests_per_unit: 7}}}}]
    """)
    matched = rule(found, ("k", "v"))
    assert matched.unit == unit
    assert [limit.window_s for limit in matched.limits] == [window_s]


def test_zero_requests_are_a_ban_and_unlimited_is_a_rule_without_a_counter():
    found = catalog(ENVOY)
    banned = rule(found, ("remote_address", "50.0.0.5"), domain="envoy")
    assert (banned.blocked, banned.unlimited, banned.limits, banned.unit) == (True, False, (), "second")
    free = rule(found, ("ldap", "anyone"), domain="envoy")
    assert (free.blocked, free.unlimited, free.limits, free.unit) == (False, True, (), None)


def test_a_descriptor_without_a_limit_lets_its_value_pass():
    assert rule(catalog(ENVOY), ("ldap", "trusted"), domain="envoy") is None


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [("unknown", "x")],
        [("message_type", "marketing")],
        [("message_type", "billing"), ("to_number", "123")],
        [("to_number", "123"), ("message_type", "marketing")],
        [("to_number", "123"), ("anything", "else")],
        [("message_type", "marketing"), ("to_number", "123"), ("anything", "else")],
        [("message_type", "marketing"), ("from_number", "123")],
    ],
)
def test_a_descriptor_matches_at_its_own_depth_and_order_only(entries):
    assert catalog(ENVOY).match("envoy", entries) is None


def test_an_unknown_domain_limits_nothing():
    assert catalog(ENVOY).match("other", [("to_number", "123")]) is None


def test_key_and_value_are_kept_apart():
    found = catalog("""
        domain: d
        descriptors:
          - {key: a_b, limits: 1/minute, name: key a_b}
          - {key: a, value: b_c, limits: 1/minute, name: a is b_c}
          - {key: a_b, value: c, limits: 1/minute, name: a_b is c}
    """)
    assert name(found, ("a", "b")) is None
    assert name(found, ("a", "b_c")) == "a is b_c"
    assert name(found, ("a_b", "c")) == "a_b is c"
    assert name(found, ("a_b", "")) == "key a_b"


PRECEDENCE = r"""
    domain: d
    descriptors:
      - {key: k, limits: 1/minute, name: no value}
      - {key: k, value_regex: "[0-9.]+3", limits: 1/minute, name: first regex}
      - {key: k, value_regex: "[0-9.]+", limits: 1/minute, name: second regex}
      - {key: k, value_cidr: 10.0.0.0/8, limits: 1/minute, name: large network}
      - {key: k, value_cidr: 10.2.0.0/16, limits: 1/minute, name: small network}
      - {key: k, value: 10.1.*, limits: 1/minute, name: first wildcard}
      - {key: k, value: 10.1.7.*, limits: 1/minute, name: second wildcard}
      - {key: k, value: 10.1.2.3, limits: 1/minute, name: exact}
"""


@pytest.mark.parametrize(
    ("value", "rule_name"),
    [
        ("10.1.2.3", "exact"),
        ("10.1.2.4", "first wildcard"),
        ("10.1.7.7", "first wildcard"),  # longer is not better: the first in the file is
        ("10.1.", "first wildcard"),
        ("10.2.9.3", "small network"),  # here longer is better, wherever it stands
        ("10.3.9.3", "large network"),
        ("10.3.9.0/24", "large network"),
        ("192.0.2.3", "first regex"),
        ("192.0.2.4", "second regex"),
        ("10.0.0.0/7", "no value"),
        ("10.1", "second regex"),
        ("alice", "no value"),
        ("", "no value"),
    ],
)
def test_exact_before_wildcard_before_network_before_regex_before_no_value(value, rule_name):
    assert name(catalog(PRECEDENCE), ("k", value)) == rule_name


@pytest.mark.parametrize(
    ("pattern", "matches", "does_not"),
    [
        ("foo*", ["foo", "foobar", "foo*"], ["fo", "xfoo", "Foo"]),
        ("*.example.com", ["a.example.com", ".example.com"], ["example.com", "a.example.com.evil"]),
        ("/api*v1", ["/apiv1", "/api/x/v1", "/api*v1"], ["/api", "/v1", "/api/v1/"]),
        ("a*a", ["aa", "aba"], ["a"]),  # no character is both the beginning and the end
        ("svc*ep*rpc", ["svceprpc", "svc1ep2rpc"], ["svcrpc", "svceprp", "svcepxrp"]),
        ("a*bc*cd", ["abccd"], ["abcd"]),  # nor the middle and the end
        ("*ab*ba*", ["abba"], ["aba"]),  # nor one middle and the next
        ("a**b", ["ab", "a--b"], ["a", "b"]),
        ("*", ["", "anything"], []),
        ("*x*", ["x", "axb"], ["", "ab"]),
    ],
)
def test_a_star_stands_for_any_text_at_any_place(pattern, matches, does_not):
    found = catalog(f"domain: d\ndescriptors: [{{key: k, value: '{pattern}', limits: 1/minute}}]")
    assert [value for value in [*matches, *does_not] if rule(found, ("k", value))] == matches


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (
            ["a*c*e", "*e", "a*", "*c*", "ab*de", "*"],
            {"abcde": "a*c*e", "abde": "*e", "abd": "a*", "xcx": "*c*", "xe": "*e", "x": "*", "": "*"},
        ),
        (["a*", "*c", "b*"], {"bc": "*c", "bd": "b*"}),
        (["x*", "*y", "b*", "*c"], {"bc": "b*", "by": "*y", "xc": "x*", "c": "*c"}),
    ],
)
def test_of_several_wildcards_the_first_in_the_file_holds_whatever_their_shapes(patterns, expected):
    lines = "".join(
        f"  - {{key: k, value: '{pattern}', limits: 1/minute, name: '{pattern}'}}\n" for pattern in patterns
    )
    found = parse(f"domain: d\ndescriptors:\n{lines}")
    assert {value: name(found, ("k", value)) for value in expected} == expected


@pytest.mark.parametrize(
    ("value", "network"),
    [
        ("10.0.0.1", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.0/8"),
        ("2001:db8::1", "2001:db8::/32"),
        ("2001:DB8:0::1", "2001:db8::/32"),
        ("2001:db8:0:1::/64", "2001:db8::/32"),  # as our own addresses of IPv6 clients are written
        ("2001:db8:1::/64", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/10"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.8", None),
        ("10.0.0.1:80", None),
        ("010.0.0.1", None),
        ("10", None),
        ("::/0", None),
        ("10.0.0.0/", None),
    ],
)
def test_an_address_is_in_the_smallest_network_that_holds_it(value, network):
    networks = ["10.0.0.0/8", "2001:db8::/32", "2001:db8:1::/48", "fe80::/10", "192.0.2.7"]
    lines = "".join(f"  - {{key: k, value_cidr: '{written}', limits: 1/minute}}\n" for written in networks)
    match = parse(f"domain: d\ndescriptors:\n{lines}").match("d", [("k", value)])
    assert (match and match.steps[0].value) == network


def test_what_an_entry_led_to_stays():
    found = catalog("""
        domain: d
        descriptors:
          - key: user
            value: alice
          - key: user
            descriptors:
              - {key: path, limits: 1/minute}
    """)
    assert rule(found, ("user", "bob"), ("path", "/")) is not None
    assert rule(found, ("user", "alice"), ("path", "/")) is None


SHARED = r"""
    domain: d
    descriptors:
      - {key: files, value: files/*, share_threshold: true, limits: 1/minute}
      - {key: page, value: page/*, limits: 1/minute}
      - {key: net, value_cidr: 192.0.2.0/24, share_threshold: true, limits: 1/minute}
      - {key: api, value_regex: "v[0-9]+", share_threshold: true, limits: 1/minute}
      - {key: api, limits: 1/minute}
      - key: tenant
        value: t*
        share_threshold: true
        descriptors:
          - key: file
            value: f/*
            descriptors: [{key: method, limits: 1/minute}]
"""


@pytest.mark.parametrize(
    ("entries", "identity", "counter"),
    [
        ([("files", "files/a")], [("files", "files/*")], "files::files%2F%2A"),
        ([("files", "files/*")], [("files", "files/*")], "files::files%2F%2A"),
        ([("page", "page/a")], [("page", "page/a")], "page:page%2Fa"),
        ([("net", "192.0.2.9")], [("net", "192.0.2.0/24")], "net::192.0.2.0%2F24"),
        ([("api", "v7")], [("api", "v[0-9]+")], "api::v%5B0-9%5D%2B"),
        ([("api", "v[0-9]+")], [("api", "v[0-9]+")], "api:v%5B0-9%5D%2B"),  # a caller who sends the pattern
        ([("api", "é/\ud800")], [("api", "é/\ud800")], "api:%C3%A9%2F%ED%A0%80"),
        (
            [("tenant", "t1"), ("file", "f/x"), ("method", "GET")],
            [("tenant", "t*"), ("file", "f/x"), ("method", "GET")],
            "tenant::t%2A/file:f%2Fx/method:GET",
        ),
    ],
)
def test_with_share_threshold_the_pattern_counts_in_place_of_the_value(entries, identity, counter):
    match = catalog(SHARED).match("d", entries)
    assert (list(match.identity), match.counter) == (identity, counter)


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.text("a:/%~é", max_size=3)), max_size=3), max_size=6))
def test_no_two_identities_have_one_counter(requests):
    below: tuple[Descriptor, ...] = ()
    for _ in range(3):
        limited = Rule(domain="d", path="d", unlimited=True)
        below = tuple(Descriptor(key=key, value="", kind="any", path="d", rule=limited, children=below) for key in "ab")
    found = Catalog({"d": Domain(name="d", children=below)}, "")
    matches = [match for match in (found.match("d", entries) for entries in requests) if match]
    assert len({match.counter for match in matches}) == len({match.identity for match in matches})


METRICS = """
    domain: d
    descriptors:
      - {key: plain, limits: 1/minute}
      - {key: plain, value: known, limits: 1/minute}
      - {key: detailed, detailed_metric: true, limits: 1/minute}
      - {key: told, value_to_metric: true, limits: 1/minute}
      - {key: wild, value: w*, limits: 1/minute}
      - {key: wildtold, value: w*, value_to_metric: true, limits: 1/minute}
      - {key: shared, value: s*, share_threshold: true, value_to_metric: true, limits: 1/minute}
      - key: route
        value_to_metric: true
        descriptors: [{key: method, limits: 1/minute}]
"""


@pytest.mark.parametrize(
    ("entries", "metric"),
    [
        ([("plain", "x")], "d.plain"),
        ([("plain", "known")], "d.plain_known"),
        ([("detailed", "x")], "d.detailed_x"),
        ([("told", "x")], "d.told_x"),
        ([("told", "")], "d.told"),
        ([("wild", "w1")], "d.wild_w*"),
        ([("wildtold", "w1")], "d.wildtold_w1"),
        ([("shared", "s1")], "d.shared_s*"),
        ([("route", "/a"), ("method", "GET")], "d.route_/a.method"),
    ],
)
def test_metrics_carry_the_values_that_were_asked_for(entries, metric):
    assert catalog(METRICS).match("d", entries).metric == metric


REPLACES = """
    domain: d
    descriptors:
      - {key: any, limits: 1/minute, name: general}
      - {key: one, rate_limit: {unit: minute, requests_per_unit: 9, name: special, replaces: [{name: general}]}}
      - {key: free, rate_limit: {unlimited: true, name: gift, replaces: [{name: general}, {name: special}]}}
      - {key: again, limits: 1/minute, name: general}
      - {key: left, limits: 1/minute, name: l, replaces: [{name: r}]}
      - {key: right, limits: 1/minute, name: r, replaces: [{name: l}]}
      - {key: ungift, limits: 1/minute, replaces: [{name: gift}]}
"""


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        (["any"], ["any"]),
        (["any", "one"], ["one"]),
        (["one", "any"], ["one"]),
        (["any", "one", "again"], ["one"]),
        (["any", "free", "one"], ["free"]),
        (["left", "right"], []),
        (["free", "ungift"], ["free", "ungift"]),
        (["any", "nowhere"], ["any"]),
    ],
)
def test_a_rule_that_replaces_drops_the_named_ones_of_the_same_request(keys, left):
    found = catalog(REPLACES).match_all("d", [[(key, "x")] for key in keys])
    assert [match.identity[0][0] for match in found if match is not None] == left
    assert len(found) == len(keys)


OURS = """
    domain: d
    atomic: false
    descriptors:
      - key: several
        limits: 20/minute;500/day
        name: pair
      - key: bucket
        limits: 10/second
        algorithm: gcra
        burst: 3
        name: bucket
        on_outage: deny
        cost_unit: tokens
        shadow_mode: true
        metadata: {owner: team a, since: 2024-01-01, level: 3, deep: [1.5, null, {x: yes}]}
      - key: upstream
        algorithm: sliding-window-counter
        rate_limit: {unit: hour, requests_per_unit: 5}
      - key: within
        rate_limit: {unit: hour, requests_per_unit: 5, algorithm: gcra, burst: 2}
      - key: monthly
        limits: 20/minute
        requests: 1000
        per: month
        align: calendar
        timezone: Europe/Berlin
"""


def test_our_own_keys_say_what_envoys_service_has_no_words_for():
    found = catalog(OURS)
    assert found.domains["d"].atomic is False
    several = rule(found, ("several", "x"))
    assert several.limits == Limit.parse("20/minute;500/day")
    assert several.name == "pair"
    bucket = rule(found, ("bucket", "x"))
    assert bucket.limits == Limit.parse("10/second", algorithm="gcra", burst=3, name="bucket", on_outage="deny")
    assert (bucket.on_outage, bucket.cost_unit, bucket.shadow_mode, bucket.quota_mode) == (
        "deny",
        "tokens",
        True,
        False,
    )
    assert bucket.metadata == {
        "owner": "team a",
        "since": "2024-01-01",
        "level": 3,
        "deep": [1.5, None, {"x": True}],
    }
    upstream = rule(found, ("upstream", "x")).limits
    assert upstream == (Limit(amount=5, window_s=3600, algorithm="sliding-window-counter"),)
    within = rule(found, ("within", "x")).limits
    assert within == (Limit(amount=5, window_s=3600, algorithm="gcra", burst=2),)
    monthly = rule(found, ("monthly", "x"))
    assert monthly.limits == Limit.parse("20/minute")
    calendar = monthly.calendar
    assert (calendar.amount, calendar.period, calendar.timezone) == (1000, "month", "Europe/Berlin")
    assert calendar.name == "1000/calendar month"


def test_all_or_nothing_is_the_default():
    assert catalog("domain: d").domains["d"].atomic is True


def test_several_domains_stand_in_one_file_and_in_several():
    one = "---\ndomain: a\n---\n---\ndomain: b\ndescriptors:\n"
    assert list(parse(one).domains) == ["a", "b"]
    assert list(parse_all([("1.yaml", one), ("2.yaml", b"domain: c")]).domains) == ["a", "b", "c"]


def test_anchors_aliases_and_merge_keys_work_and_what_is_written_beats_what_is_merged():
    found = catalog("""
        domain: d
        descriptors:
          - &base
            key: a
            limits: &limit 5/minute
            name: base
            descriptors: &below
              - {key: sub, limits: *limit}
          - {<<: *base, key: b, name: merged}
          - {<<: [{name: first}, *base], key: c}
          - {key: d, descriptors: *below}
    """)
    assert [name(found, (key, "x")) for key in "abc"] == ["base", "merged", "first"]
    assert all(rule(found, (key, "x"), ("sub", "y")).limits[0].amount == 5 for key in "abcd")


def test_rules_come_in_file_order_and_know_where_they_are_written():
    found = catalog(ENVOY)
    assert [(rule.path, rule.place.line, rule.place.column) for rule in found.rules()] == [
        ("envoy.remote_address", 4, 5),
        ("envoy.remote_address_50.0.0.5", 6, 5),
        ("envoy.message_type_marketing.to_number", 12, 9),
        ("envoy.to_number", 14, 5),
        ("envoy.code_404", 16, 5),
        ("envoy.ldap", 20, 5),
    ]


def test_a_walk_shows_how_far_a_request_came():
    steps = catalog(ENVOY).walk("envoy", [("message_type", "marketing"), ("nobody", "knows")])
    assert [(step.key, step.value, step.kind) for step in steps] == [("message_type", "marketing", "exact")]


def test_equal_content_has_an_equal_version_and_another_has_another():
    assert parse("domain: d").version == parse(b"domain: d", "other.yaml").version
    versions = {
        parse("domain: d").version,
        parse("domain: e").version,
        parse("domain: d\n---\ndomain: e").version,
        parse_all([("a", "domain: d"), ("b", "domain: e")]).version,
        parse_all([("a", "domain: d#"), ("b", "#\ndomain: e")]).version,
        parse_all([("a", "domain: d##"), ("b", "\ndomain: e")]).version,
    }
    assert len(versions) == 6
    assert all(len(version) == 12 and int(version, 16) >= 0 for version in versions)


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("", 1, 1, "the file is empty"),
        ("# nothing\n---\n", 1, 1, "the file is empty"),
        ("just words", 1, 1, 'a domain with its descriptors is wanted here, as keys and values; got "just words"'),
        ("[]", 1, 1, "got a list"),
        ("descriptors: []", 1, 1, "domain: a name is wanted"),
        ("domain: ''", 1, 1, "domain: a name is wanted"),
        ("domain: [d]", 1, 9, "domain: a text is wanted; got a list"),
        ("domain: d\n---\ndomain: d", 3, 1, 'a second domain "d"; the first is at limits.yaml:1:1'),
        ("domain: d\ndescriptor: []", 2, 1, 'unknown key "descriptor" in the top of the file; did you mean "descr'),
        ("domain: d\natomic: perhaps", 2, 9, 'atomic: true or false is wanted; got "perhaps"'),
        ("domain: d\natomic: 'false'", 2, 9, "atomic: true or false is wanted"),
        ("domain: d\nkey: k", 2, 1, '"key" does not belong to the top of the file but to a descriptor'),
        ("domain: d\ndomain: e", 2, 1, '"domain" is written twice, first in line 1'),
        ("domain: d\n? [a]\n: b", 2, 3, "a key of a domain with its descriptors is a word; got a list"),
        ("domain: d\ndescriptors: {key: k}", 2, 14, "descriptors: a list is wanted; got keys and values"),
        ("domain: d\ndescriptors: [k]", 2, 15, 'a descriptor is wanted here, as keys and values; got "k"'),
        ("domain: !x d", 1, 9, 'domain: a text is wanted; got !x "d"'),
        ("domain: d\n  x: [", 2, 4, "not YAML: mapping values are not allowed in this context"),
        ("domain: d\ndescriptors: [", 3, 1, "not YAML"),
        ("domain: \tx\n\t- y", 2, 1, "not YAML"),
        ("domain: *nobody", 1, 9, "not YAML: found undefined alias"),
        ("domain: d\n# a\x00b", 2, 4, "not YAML: the character U+0000 is not allowed"),
        (b"domain: d\n# \xe4h", 2, 3, "not UTF-8"),
        ("domain: \ud800", 1, 9, "not UTF-8"),
        ("[" * 129 + "]" * 129, 1, 129, "more than 128 lists and mappings within each other"),
        ("{a: " * 1_000_000, 1, 513, "more than 128 lists and mappings within each other"),
    ],
)
def test_a_file_that_is_no_catalog_is_refused_with_line_and_column(text, line, column, says):
    found = flaws(text)
    assert [flaw[:2] for flaw in found] == [(line, column)]
    assert says in found[0][2]


def _one(body: str) -> str:
    """A descriptor, `key` in line 3."""
    lines = "\n".join(f"    {row}" for row in dedent(body).strip().splitlines())
    return f"domain: d\ndescriptors:\n  - key: k\n{lines}\n"


@pytest.mark.parametrize(
    ("body", "line", "column", "says"),
    [
        ("shadowmode: true", 4, 5, 'unknown key "shadowmode" in a descriptor; did you mean "shadow_mode"?'),
        ("zzz: 1", 4, 5, 'unknown key "zzz" in a descriptor; known are key, value'),
        ("1: x", 4, 5, 'unknown key "1"'),
        ("unit: day", 4, 5, '"unit" does not belong to a descriptor but to rate_limit'),
        ("value: [a]", 4, 12, "value: a text is wanted; got a list"),
        ("value: a\nvalue_cidr: 10.0.0.0/8", 5, 5, "value_cidr: contradicts value"),
        ("value_cidr: 10.0.0.1/8", 4, 17, 'is an address within a network; write "10.0.0.0/8"'),
        ("value_cidr: 10.0.0/8", 4, 17, "a network such as 10.0.0.0/8 is wanted"),
        ("value_cidr: ''", 4, 17, "a network such as 10.0.0.0/8 is wanted"),
        ("value_cidr: ::ffff:10.0.0.0/104", 4, 17, "IPv4 within IPv6 is matched as IPv4"),
        (r"value_regex: (a)\1", 4, 18, 'value_regex: "(a)\\1": "\\1" is not read: a backreference takes longer than'),
        ("value_regex: '(a'", 4, 18, 'value_regex: "(a": a "(" without its ")"'),
        ("share_threshold: true", 4, 5, 'share_threshold: goes with a value that has a "*"'),
        ("value: a\nshare_threshold: true", 5, 5, 'share_threshold: goes with a value that has a "*"'),
        ("rate_limit: 10/minute", 4, 17, 'rate_limit with its unit is wanted here, as keys and values; got "10/min'),
        ("rate_limit: {unit: minutes, requests_per_unit: 1}", 4, 24, 'got "minutes"; did you mean "minute"?'),
        ("rate_limit: {unit: unknown, requests_per_unit: 1}", 4, 24, "unit: one of second, minute, hour, day, week"),
        ("rate_limit: {requests_per_unit: 1}", 4, 17, "unit: one of second"),
        ("rate_limit: {unit: day}", 4, 17, "requests_per_unit: a number is wanted; got none"),
        ("rate_limit: {unit: day, requests_per_unit: -1}", 4, 48, "a whole number from 0 to 1000000000"),
        ("rate_limit: {unit: day, requests_per_unit: 1.5}", 4, 48, 'got "1.5"'),
        ("rate_limit: {unit: day, requests_per_unit: 010}", 4, 48, 'got "010"'),
        ("rate_limit: {unit: day, requests_per_unit: 4294967295}", 4, 48, "from 0 to 1000000000 is wanted"),
        ("rate_limit: {unlimited: true, unit: day}", 4, 35, "unit: contradicts unlimited"),
        ("rate_limit: {unlimited: true}\nburst: 3", 5, 5, "burst: contradicts unlimited"),
        ("rate_limit: {unit: day, requests_per_unit: 1, shadow_mode: true}", 4, 51, "but to a descriptor"),
        ("rate_limit: {unit: day, requests_per_unit: 1, name: 'ä'}", 4, 48, "use up to 128 printable ASCII"),
        ("rate_limit: {unit: day, requests_per_unit: 1, replaces: [x]}", 4, 62, "a name in replaces is wanted here"),
        ("rate_limit: {unit: day, requests_per_unit: 1, replaces: [{}]}", 4, 62, "the name of another rule is wanted"),
        ("rate_limit: {unit: day, requests_per_unit: 1, name: n, replaces: [{name: n}]}", 4, 71, "cannot replace it"),
        ("rate_limit: {unlimited: true}\nlimits: 1/day", 5, 5, "limits: contradicts rate_limit beside it"),
        ("rate_limit: {unlimited: true}\nrequests: 1", 5, 5, "requests: contradicts rate_limit beside it"),
        ("rate_limit: {unlimited: true}\nname: n", 5, 5, "name: contradicts rate_limit beside it"),
        ("rate_limit: {unit: day, requests_per_unit: 1, burst: 1, algorithm: gcra}\nburst: 2", 5, 5, "contradicts the"),
        ("limits: 10/fortnight", 4, 13, 'limits: limit "10/fortnight": unknown period "fortnight"'),
        ("limits: 10", 4, 13, 'write "amount/period"'),
        ("limits: [10/day]", 4, 13, "limits: a text is wanted; got a list"),
        ("limits: 10/day\nburst: 3", 5, 5, "burst: goes with algorithm: gcra, not with fixed-window"),
        ("limits: 10/day\nburst: 0\nalgorithm: gcra", 5, 12, "burst: a whole number from 1"),
        ("limits: 10/day\nalgorithm: gcar", 5, 16, "algorithm: one of fixed-window, moving-window"),
        ("limits: 10/day\nalgorithm: gcar", 5, 16, 'did you mean "gcra"?'),
        ("limits: 999999937/minute\nalgorithm: gcra", 4, 13, "cannot count it exactly"),
        ("limits: 10/day\non_outage: open", 5, 16, "on_outage: one of allow, deny, local is wanted; got"),
        ("limits: 10/day\ncost_unit: 7 tokens", 5, 16, "cost_unit: a word such as tokens is wanted"),
        ("limits: 10/day\nper: month", 5, 5, "per: goes with requests"),
        ("requests: 10\nper: month", 4, 5, "requests: needs align: calendar beside it"),
        ("requests: 10\nalign: calendar", 4, 5, "requests: needs per beside it: hour, day, week, month, year"),
        ("requests: 0\nper: day\nalign: calendar", 4, 15, "requests: a whole number from 1"),
        ("requests: 1\nper: minute\nalign: calendar", 5, 10, "per: one of hour, day, week, month, year is wanted"),
        ("requests: 1\nper: day\nalign: epoch", 6, 12, 'align: calendar is wanted; got "epoch"'),
        ("requests: 1\nper: day\nalign: calendar\ntimezone: Mars/Base", 7, 15, 'unknown timezone "Mars/Base"'),
        ("requests: 1\nper: day\nalign: calendar\ntimezone: ../../etc/passwd", 7, 15, "unknown timezone"),
        ("requests: 1\nper: day\nalign: calendar\nalgorithm: gcra", 7, 5, "algorithm: goes with limits"),
        ("on_outage: deny", 4, 5, "on_outage: nothing is limited here; add limits or rate_limit"),
        ("algorithm: gcra", 4, 5, "algorithm: nothing is limited here"),
        ("metadata: words", 4, 15, "metadata: keys and values are wanted"),
        ("metadata: {a: 1, a: 2}", 4, 22, '"a" is written twice'),
        ("descriptors: [{value: v}]", 4, 19, "key: a descriptor needs one; got none"),
        ("descriptors: [{key: }]", 4, 19, "key: a descriptor needs one; got none"),
        ("descriptors: [{key: 'a*'}]", 4, 25, 'key: "*" stands for any text in values only'),
        (
            "descriptors: [{key: a}, {key: a}]",
            4,
            29,
            'a second descriptor for "a" on this level; the first is in line 4',
        ),
        ("descriptors: [{key: a, value: b}, {key: a, value: b}]", 4, 39, 'for "a" with value "b"'),
        (
            "descriptors: [{key: a, value_cidr: 1.0.0.0/8}, {key: a, value_cidr: 1.0.0.0/8}]",
            4,
            52,
            "a second descriptor",
        ),
    ],
)
def test_a_descriptor_that_cannot_be_meant_is_refused_with_line_and_column(body, line, column, says):
    found = flaws(_one(body))
    assert [flaw[:2] for flaw in found] == [(line, column)], found
    assert says in found[0][2]


def test_all_flaws_are_told_at_once_in_the_order_of_their_lines():
    text = "domain: d\nextra: 1\ndescriptors:\n- {kex: a}\n- {key: a, value_regex: '('}\n"
    text += "- {key: b, limits: x, rate_limit: {}}\n- key: c\n  limits: x\n  value_regex: '('\n"
    found = flaws(text)
    assert [line for line, _, _ in found] == [2, 4, 4, 5, 6, 6, 8, 9]
    with pytest.raises(InvalidCatalog) as caught:
        parse(text, "conf/limits.yaml")
    error = caught.value
    assert isinstance(error, ConfigurationError)
    assert (error.file, error.line, error.column) == ("conf/limits.yaml", 2, 1)
    assert str(error).splitlines()[0] == (
        'conf/limits.yaml:2:1: unknown key "extra" in the top of the file; known are domain, descriptors, atomic'
    )
    assert len(str(error).splitlines()) == len(error.flaws)


def test_twenty_flaws_are_enough():
    lines = "".join(f"- {{key: k{number}, valeu: x}}\n" for number in range(100))
    found = flaws(f"domain: d\ndescriptors:\n{lines}")
    assert [line for line, _, _ in found] == list(range(3, 23))


def test_the_flaws_of_several_files_are_told_together():
    with pytest.raises(InvalidCatalog) as caught:
        parse_all([("b.yaml", "domain: d\nx: 1"), ("a.yaml", "["), ("c.yaml", "domain: d")])
    assert [(flaw.place.file, flaw.place.line) for flaw in caught.value.flaws] == [
        ("b.yaml", 2),
        ("a.yaml", 2),
        ("c.yaml", 1),
    ]


def test_a_flaw_that_concerns_a_file_as_a_whole_has_no_line():
    assert str(Place("a.yaml")) == "a.yaml"
    assert str(Place("a.yaml", 2, 3)) == "a.yaml:2:3"


def test_a_catalog_that_is_too_large_is_refused_unread(monkeypatch):
    monkeypatch.setattr("service.limits.catalog.catalog.LARGEST_BYTES", 20)
    with pytest.raises(InvalidCatalog, match="more than 20 bytes"):
        parse_all([("a", "domain: d"), ("b", "domain: another")])


@pytest.mark.parametrize(
    "text",
    [
        # Ten descriptors of ten descriptors of ...: 10^9 if the aliases were followed.
        "domain: d\ndescriptors:\n"
        + "".join(
            f"- key: k{level}\n  descriptors: &a{level} "
            + (
                "[{key: a}]"
                if level == 0
                else "[" + ", ".join(f"{{key: b{i}, descriptors: *a{level - 1}}}" for i in range(10)) + "]"
            )
            + "\n"
            for level in range(9)
        ),
        "domain: d\ndescriptors: &a [{key: k, descriptors: *a}, {key: l, descriptors: *a}]",
        "domain: d\ndescriptors: [{key: k, limits: 1/day, metadata: &m {a: &n [*m, *m, *n]}}]",
        "domain: d\ndescriptors: [&a {key: k, <<: [*a, *a]}]",
        "domain: d\ndescriptors: [{key: k, limits: 1/day, metadata: &m {<<: [*m, *m]}}]",
    ],
    ids=["laughs", "descriptors", "metadata", "merge", "merged metadata"],
)
def test_aliases_that_multiply_without_end_are_refused(text):
    assert any("multiply" in sentence or "within each other" in sentence for _, _, sentence in flaws(text))


MARKS = [
    "domain",
    "descriptors",
    "key",
    "value",
    "limits",
    "rate_limit",
    "<<",
    "&a",
    "*a",
    "- ",
    ": ",
    "\n",
    "  ",
    "{",
    "}",
]
MARKS += [
    "[",
    "]",
    ",",
    '"',
    "'",
    "|",
    ">",
    "?",
    "!",
    "!!map",
    "%YAML 1.1",
    "---",
    "...",
    "#",
    "value_regex",
    "value_cidr",
]
MARKS += [
    "requests",
    "per",
    "align",
    "calendar",
    "timezone",
    "metadata",
    "d",
    "1/day",
    "10.0.0.0/8",
    "unit",
    "null",
    "\t",
]


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.binary(), st.lists(st.sampled_from(MARKS)).map("".join)))
@example("\ufeff")
@example("domain: d\ufeff")
@example("\x85\u2028")
@example(b"\xff\xfed\x00")
@example("%YAML 99999999999999999999.1\n---\n")
@example("%TAG ! tag:yaml.org,2002:\n---\ndomain: !int d")
@example('domain: "\\ud800"')
@example("domain: 0x")
@example("domain: =\n? =\n: =\n")
def test_any_text_is_a_catalog_or_an_invalid_one(text):
    try:
        parse(text)
    except InvalidCatalog as error:
        assert 1 <= len(error.flaws) <= 20


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 10**11), st.floats(), st.text(max_size=5), st.dates())
WORDS = st.one_of(
    SCALARS,
    st.sampled_from(
        ["1/day", "gcra", "day", "calendar", "Europe", "UTC", "10.0.0.0/8", "::/0", "fe80::%1/64", "(", "a*"]
    ),
)
KEYS = ["key", "value", "value_cidr", "value_regex", "limits", "rate_limit", "unit", "requests_per_unit", "unlimited"]
KEYS += ["name", "replaces", "algorithm", "burst", "requests", "per", "align", "timezone", "on_outage", "cost_unit"]
KEYS += ["metadata", "share_threshold", "shadow_mode", "descriptors", "atomic", "domain"]
TREES = st.recursive(
    WORDS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)),
    max_leaves=30,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=8))
def test_any_descriptor_is_read_or_refused(fields):
    text = yaml.safe_dump({"domain": "d", "descriptors": [{"key": "k", **fields}]}, allow_unicode=True)
    try:
        parse(text)
    except InvalidCatalog as error:
        assert all(flaw.place.line > 0 for flaw in error.flaws)


VALUES = [
    "a",
    "b",
    "ab",
    "ba",
    "aab",
    "",
    "*",
    "a*",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.0/30",
    "2001:db8::1",
    "::ffff:10.0.0.1",
]
PATTERNS = ["*", "a*", "*a", "a*b", "*a*b*", "10.*", "10.0.0.*", "ab*", "*.1", "2001:*", "a*a*b"]
NETWORKS = ["10.0.0.0/8", "10.0.0.0/31", "10.0.0.1/32", "0.0.0.0/0", "::/0", "2001:db8::/32", "10.0.0.0/30"]
REGEXES = ["[ab]+", "a*", "a|b", "10.*", "(ab?)*", ".*1", "b{1,2}a?", "[^a]*"]
LEAVES = st.one_of(
    st.tuples(st.just("value"), st.sampled_from(VALUES + PATTERNS)),
    st.tuples(st.just("value_cidr"), st.sampled_from(NETWORKS)),
    st.tuples(st.just("value_regex"), st.sampled_from(REGEXES)),
    st.tuples(st.just("value"), st.just("")),
)
LEVELS = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.tuples(st.sampled_from("kl"), LEAVES, st.booleans(), inner),
        max_size=12,
        unique_by=lambda written: (written[0], written[1][0] if written[1][1] else "value", written[1][1]),
    ),
    max_leaves=10,
)


def _written(level, numbers):
    return [
        {"key": key, how: value, "descriptors": _written(below, numbers)}
        | ({"limits": "1/day", "name": f"rule {next(numbers)}"} if limited else {})
        for key, (how, value), limited, below in level
    ]


def _holds(how: str, pattern: str, value: str) -> bool:
    """What one descriptor matches, by other means than the catalog's."""
    import fnmatch
    import re

    if how == "value_regex":
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    if how == "value_cidr":
        try:
            asked = ip_network(value)
        except ValueError:
            return False
        mapped = getattr(asked.network_address, "ipv4_mapped", None)
        asked = ip_network(ip_address(int(mapped))) if mapped else asked
        network = ip_network(pattern)
        return asked.version == network.version and asked.subnet_of(network)
    if "*" in pattern:
        return fnmatch.fnmatchcase(value, pattern)
    return pattern in ("", value)


def _rank(number: int, written: dict) -> tuple[int, int]:
    if "value_cidr" in written:
        return 2, -ip_network(written["value_cidr"]).prefixlen
    if "value_regex" in written:
        return 3, number
    value = written["value"]
    return (4, 0) if not value else (1, number) if "*" in value else (0, 0)


def _naive(level: list[dict], entries: list[tuple[str, str]]) -> str | None:
    """Every descriptor of the level is tried."""
    (key, value), *more = entries
    fitting = [
        (_rank(number, written), number)
        for number, written in enumerate(level)
        for how in ("value", "value_cidr", "value_regex")
        if how in written and written["key"] == key and _holds(how, written[how], value)
    ]
    if not fitting:
        return None
    best = level[min(fitting)[1]]
    return _naive(best["descriptors"], more) if more else best.get("name")


@settings(deadline=None, max_examples=300)
@given(
    LEVELS,
    st.lists(st.lists(st.tuples(st.sampled_from("klm"), st.sampled_from(VALUES)), min_size=1, max_size=3), max_size=20),
)
def test_the_fast_matcher_agrees_with_one_that_tries_every_descriptor(level, requests):
    level = _written(level, iter(range(10**6)))
    found = parse(yaml.safe_dump({"domain": "d", "descriptors": level}))
    for entries in requests:
        assert name(found, *entries) == _naive(level, entries), entries


def _steps(found: Catalog, entries: list[tuple[str, str]]) -> int:
    """Bytecodes of ours that one match executes, the first having warmed the automata."""
    assert found.match("d", entries) is not None
    ours = str(Path(index.__file__).parent)
    count = 0

    def traced(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(ours):  # what the garbage collector calls, say
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        found.match("d", entries)
    finally:
        sys.settrace(before)
    assert count
    return count


def _large(rules: int) -> Catalog:
    """That many rules: half of them exact, on two levels, the others wildcards and networks."""

    def one(key: str, kind: str, value: str, children: tuple[Descriptor, ...] = ()) -> Descriptor:
        limited = Rule(domain="d", path="d", unlimited=True)
        return Descriptor(key=key, kind=kind, value=value, path="d", rule=limited, children=children)

    quarter = rules // 4
    below = tuple(one("path", "exact", f"p{number:06}") for number in range(quarter))
    users = tuple(one("user", "exact", f"u{number:06}", below if number == 0 else ()) for number in range(quarter))
    files = tuple(one("file", "wildcard", f"f{number:06}/*") for number in range(quarter))
    networks = tuple(one("net", "cidr", f"10.{number >> 8}.{number & 255}.0/24") for number in range(quarter))
    return Catalog({"d": Domain(name="d", children=users + files + networks)}, "")


def test_a_match_takes_the_same_steps_among_ten_a_thousand_and_a_hundred_thousand_rules():
    requests = {
        "exact": [("user", "u000001")],
        "two levels": [("user", "u000000"), ("path", "p000001")],
        "wildcard": [("file", "f000001/x")],
        "network": [("net", "10.0.1.7")],
    }
    taken = [
        {kind: _steps(found, entries) for kind, entries in requests.items()}
        for found in (_large(10), _large(1_000), _large(100_000))
    ]
    assert taken[0] == taken[1] == taken[2]
    assert max(taken[0].values()) < 700


def test_more_levels_take_more_steps_by_the_same_amount_each():
    below: tuple[Descriptor, ...] = ()
    for _ in range(30):
        limited = Rule(domain="d", path="d", unlimited=True)
        below = (Descriptor(key="k", kind="any", value="", path="d", rule=limited, children=below),)
    found = Catalog({"d": Domain(name="d", children=below)}, "")
    taken = [_steps(found, [("k", "v")] * depth) for depth in (1, 2, 3, 30)]
    assert taken[1] - taken[0] == taken[2] - taken[1]
    assert taken[3] - taken[0] == 29 * (taken[1] - taken[0])


def test_a_hundred_regular_expressions_take_the_steps_of_one():
    def among(count: int) -> Catalog:
        limited = Rule(domain="d", path="d", unlimited=True)
        children = tuple(
            Descriptor(key="k", kind="regex", value=f"v{number:03}-[0-9]+", path="d", rule=limited)
            for number in range(count)
        )
        return Catalog({"d": Domain(name="d", children=children)}, "")

    assert _steps(among(1), [("k", "v000-12345")]) == _steps(among(100), [("k", "v099-12345")])

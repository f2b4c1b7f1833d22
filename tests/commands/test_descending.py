"""Why a descriptor of a catalog holds, and why the others do not."""

import pytest

from service.commands.descending import descend, limits, remarks
from service.limits.catalog import parse

CATALOG = parse(
    r"""
domain: d
descriptors:
  - {key: user, limits: 3/minute}
  - key: user
    value: alice
    rate_limit: {unit: minute, requests_per_unit: 9}
    descriptors:
      - {key: model, requests: 5, per: month, align: calendar}
  - {key: user, value: "al*", limits: 4/minute}
  - {key: user, value: "a*", limits: 5/minute}
  - {key: net, value_cidr: 10.0.0.0/8, limits: 1/minute}
  - {key: net, value_cidr: 10.0.0.0/16, limits: 2/minute}
  - {key: net, value_regex: "10.*", limits: 3/minute}
  - key: folder
    descriptors: [{key: file, limits: 1/day}]
  - {key: empty}
"""
)


def told(*entries):
    way = descend(CATALOG, "d", entries)
    steps = [
        (step.holds.path if step.holds else step.reason, [(other.path, why) for other, why in step.others])
        for step in way.steps
    ]
    return steps, way.match.rule.path if way.match else None, way.reason


def test_of_several_that_match_it_is_said_why_one_holds():
    assert told(("user", "alice")) == (
        [
            (
                "d.user_alice",
                [
                    ("d.user", 'value "alice" goes before any value'),
                    ("d.user_al*", 'value "alice" goes before a wildcard'),
                    ("d.user_a*", 'value "alice" goes before a wildcard'),
                ],
            )
        ],
        "d.user_alice",
        "",
    )
    assert told(("user", "alan"))[0][0][1] == [
        ("d.user", 'value "al*" goes before any value'),
        ("d.user_a*", "the first in the file holds"),
    ]
    assert told(("net", "10.0.0.1"))[0] == [
        (
            "d.net_10.0.0.0/16",
            [
                ("d.net_10.0.0.0/8", "the smaller network holds"),
                ("d.net_10.*", "value_cidr 10.0.0.0/16 goes before value_regex 10.*"),
            ],
        )
    ]


@pytest.mark.parametrize(
    ("entries", "last", "reason"),
    [
        ([("usr", "x")], 'no key "usr" within d; did you mean "user"?', "the way ends before all entries are used"),
        ([("x", "x")], 'no key "x" within d; there is: user, net, folder, empty', "the way ends before"),
        (
            [("net", "192.0.2.1")],
            'no descriptor of "net" takes "192.0.2.1"; there is: value_cidr 10.0.0.0/8, value_cidr 10.0.0.0/16, val',
            "the way ends before",
        ),
        (
            [("user", "bob"), ("model", "m")],
            "nothing is within d.user: the request has more entries than the file has levels",
            "the way ends before",
        ),
        (
            [("folder", "f")],
            "d.folder",
            "d.folder has no limit of its own; what is within it wants another entry: file",
        ),
        ([("empty", "e")], "d.empty", "d.empty has no limit"),
    ],
)
def test_where_nothing_holds_it_is_said_why(entries, last, reason):
    steps, rule, said = told(*entries)
    assert rule is None
    assert steps[-1][0].startswith(last)
    assert said.startswith(reason)


def test_an_unknown_domain_says_which_there_are():
    way = descend(CATALOG, "e", [("user", "x")])
    assert (way.steps, way.match, way.reason) == ((), None, 'there is no domain "e"; there are: d')


@pytest.mark.parametrize(
    ("written", "limit", "said"),
    [
        ("limits: 1/day;2/hour", "1/day; 2/hour", []),
        ("rate_limit: {unlimited: true}", "unlimited", ["unlimited: everything passes, nothing is counted"]),
        (
            "rate_limit: {unit: hour, requests_per_unit: 0}",
            "0/hour",
            ["requests_per_unit 0: nothing passes"],
        ),
        (
            "requests: 7, per: day, align: calendar, limits: 1/day, cost_unit: tokens, shadow_mode: y, on_outage: deny",
            "1/day; 7/calendar day",
            ["shadow_mode: counted, never refused", "while Redis is away: deny", "a unit is one of: tokens"],
        ),
        (
            "{limits: 1/day, quota_mode: true, name: a, replaces: [{name: b}]}",
            "a",
            [
                "quota_mode: of a request's descriptors with it, one that passes is enough",
                "replaces, within one request: b",
            ],
        ),
    ],
)  # fmt: skip
def test_a_rule_in_words(written, limit, said):
    body = written if written.startswith("{") else "{" + written + "}"
    [rule] = parse(f"domain: d\ndescriptors: [{{key: k, {body[1:]}]").rules()
    assert limits(rule) == limit
    assert remarks(rule) == said

"""What other limits would have refused, counted by hand."""

import asyncio
import gzip

import pytest

from service.commands.replaying import Entry, Replay, entries, opened, ways
from service.commands.reporting import shown
from service.errors import ConfigurationError, InvalidInput
from service.limits.catalog import parse

LIMITS = """
domain: web
descriptors:
  - key: remote_address
    limits: 2/minute
    descriptors:
      - {key: path, value: /login, limits: 1/minute}
  - key: user
    limits: 1/hour
    shadow_mode: true
  - {key: tenant, limits: 1/second}
"""


def line(second, address="192.0.2.1", path="/", user="-", method="GET"):
    minute, second = divmod(second, 60)
    return f'{address} - {user} [24/Nov/2025:17:{minute:02}:{second:02} +0000] "{method} {path} HTTP/1.1" 200 1'


def replayed(lines, limits=LIMITS, **more):
    replay = Replay(parse(limits), "web", **more)
    asyncio.run(replay.take(lines))
    return replay


def test_each_request_is_decided_at_the_time_of_its_line():
    replay = replayed(
        [
            line(0),
            line(10),
            line(20),  # the third within a minute: refused
            line(20, "192.0.2.2"),
            line(60),  # the next window
            line(61),
            line(62, path="/about"),  # refused
        ]
    )
    tally = replay.tally
    assert (tally.requests, tally.limited, tally.refused) == (7, 7, 2)
    [count] = tally.rules.values()
    assert (count.rule.path, count.met, count.refused) == ("web.remote_address", 7, 2)
    assert tally.identities == {"remote_address:192.0.2.1": 2}
    assert [(example.line, example.request, example.retry_after) for example in tally.examples] == [
        (3, "GET / from 192.0.2.1", 40),
        (7, "GET /about from 192.0.2.1", 58),
    ]


def test_all_descriptors_of_a_request_pass_or_none_is_charged():
    replay = replayed([line(0, path="/login"), line(1, path="/login"), line(2), line(3)])
    told = {count.rule.path: (count.met, count.refused) for count in replay.tally.rules.values()}
    assert told == {
        "web.remote_address": (4, 1),  # the second login was refused by its own limit and took nothing here
        "web.remote_address.path_/login": (2, 1),
    }
    assert replay.tally.refused == 2


def test_shadow_mode_counts_and_refuses_nothing():
    replay = replayed([line(0, "192.0.2.1", user="alice"), line(1, "192.0.2.2", user="alice")])
    told = {count.rule.path: (count.met, count.refused) for count in replay.tally.rules.values()}
    assert told["web.user"] == (2, 1)
    assert (replay.tally.refused, replay.tally.examples) == (0, [])


def test_only_what_refuses_is_blamed():
    replay = replayed([line(second, "192.0.2.1", user="alice") for second in range(3)])
    assert replay.tally.identities == {"remote_address:192.0.2.1": 1}
    assert [example.rule for example in replay.tally.examples] == ["web.remote_address"]


def test_a_line_out_of_order_does_not_turn_the_clock_back():
    replay = replayed([line(59), line(60), line(0), line(61)])
    assert replay.tally.refused == 2  # the third and fourth are within a minute of the first


def test_the_ways_down_a_domain_are_those_a_log_can_go():
    assert list(ways(parse(LIMITS).domains["web"])) == [
        (Entry("remote_address", "remote_address"),),
        (Entry("remote_address", "remote_address"), Entry("path", "path")),
        (Entry("user", "user"),),
    ]


def test_a_user_says_what_stands_for_what():
    assert entries("tenant=host, path") == (Entry("tenant", "host"), Entry("path", "path"))
    replay = replayed([line(0), line(0)], descriptors=[entries("tenant=remote_address")])
    assert replay.tally.refused == 1
    for text in ("tenant", "tenant=color", "=path", ""):
        with pytest.raises(InvalidInput, match="write KEY or KEY=FIELD; fields are remote_address, method"):
            entries(text)


def test_what_cannot_be_decided_by_a_log_is_said_before_it_is_read():
    with pytest.raises(InvalidInput, match='no "api" in the limits file; there is: web'):
        Replay(parse(LIMITS), "api")
    with pytest.raises(InvalidInput, match="no rule of d is made of remote_address, method"):
        Replay(parse("domain: d\ndescriptors: [{key: tenant, limits: 1/second}]"), "d")


def test_lines_that_cannot_be_read_are_counted_and_the_first_are_told():
    replay = replayed(["nonsense", "", line(0), "{"])
    tally = replay.tally
    assert (tally.requests, tally.unreadable, tally.other_lines) == (1, 2, 1)
    assert [number for number, _ in tally.first_unreadable] == [1, 4]


def test_the_report_names_rules_that_no_request_met():
    replay = replayed([line(0), line(1), line(2)])
    told = shown(replay, "limits.yaml", "web", parse(LIMITS))
    assert told.code == 1
    document = told.document
    assert (document["requests"], document["refused"], document["from"]) == (3, 1, "2025-11-24 17:00:00")
    assert [(rule["path"], rule["met"], rule["refused"]) for rule in document["rules"]] == [
        ("web.remote_address", 3, 1),
        ("web.remote_address.path_/login", 0, 0),
        ("web.user", 0, 0),
        ("web.tenant", 0, 0),
    ]
    assert shown(replayed([line(0)]), "limits.yaml", "web", parse(LIMITS)).code == 0


def test_a_log_may_be_gzipped(tmp_path):
    with gzip.open(tmp_path / "access.log.gz", "wt") as log:
        log.write(line(0) + "\n" + line(1) + "\n")
    with opened(str(tmp_path / "access.log.gz")) as lines:
        assert replayed(lines).tally.requests == 2
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"), opened("nowhere.log"):
        pass

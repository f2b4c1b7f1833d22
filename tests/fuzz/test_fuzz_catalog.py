"""Any text is a catalog, or InvalidCatalog with places inside the file: nothing else is raised, and soon."""

import functools
import random
import re
import time

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.limits import policy
from service.limits.catalog import MOST_FLAWS, Catalog, InvalidCatalog, parse

much = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))

BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""A line's end in YAML."""

SLOW_S = 5
"""Of CPU: what takes milliseconds, unless it grows faster than the text."""

GOOD = """\
domain: chat
atomic: true
descriptors:
  - key: user
    limits: "20/minute;500/day"
    on_outage: deny
  - key: user
    value: alice
    rate_limit: {unit: minute, requests_per_unit: 100, name: a, replaces: [{name: b}]}
    shadow_mode: true
    descriptors:
      - key: model
        requests: 1000000
        per: month
        align: calendar
        timezone: Europe/Berlin
        cost_unit: tokens
  - key: path
    value: files/*
    share_threshold: true
    rate_limit: {unlimited: true}
  - key: ip
    value_cidr: 10.0.0.0/8
    limits: 7/hour
    algorithm: gcra
    burst: 3
  - key: version
    value_regex: v[0-9]+
    quota_mode: true
    rate_limit: &r {unit: day, requests_per_unit: 5}
  - key: other
    rate_limit: *r
---
domain: second
descriptors: []
"""


def read(text):
    """The catalog, or None if it was refused as promised."""
    began_s = time.process_time()
    try:
        found = parse(text, "limits.yaml")
    except InvalidCatalog as error:
        found = None
        lines = BREAK.split(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
        assert 1 <= len(error.flaws) <= MOST_FLAWS
        for place, sentence in error.flaws:
            assert place.file == "limits.yaml"
            assert 0 <= place.line <= len(lines) + 1, (place, sentence)
            assert sentence and "\n" not in sentence
            if 1 <= place.line <= len(lines):
                assert 1 <= place.column <= len(lines[place.line - 1]) + 2, (place, sentence)
        assert str(error).startswith("limits.yaml")
    assert time.process_time() - began_s < SLOW_S
    return found


def used(found: Catalog):
    """What was taken can be asked."""
    for domain in found.domains:
        for entries in (
            [("user", "alice")],
            [("user", "x"), ("model", "")],
            [("path", "files/\x00")],
            [("ip", "10.1.1.1")],
        ):
            wanted = policy.Wanted(tuple(entries))
            policy.plan(found, domain, [wanted], now_us=1_790_000_000_000_000)
    list(found.rules())


def both(text):
    found = read(text)
    if found is not None:
        used(found)
    return found


def test_what_is_changed_here_was_good():
    assert list(both(GOOD).domains) == ["chat", "second"]


@much(max_examples=300)
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60), st.text("-:{}[]&*!|>'\"%@`#?, \n\tab1", max_size=60)))
@example(b"\r\x00\x80")  # a line ends with any of YAML's breaks
def test_any_text(text):
    both(text)


LINES = GOOD.splitlines(keepends=True)
FOREIGN = (
    "\t",
    "  ",
    ": ",
    "- ",
    "&a ",
    "*a",
    "<<: *r",
    "!!python/object:os.system ",
    "{",
    "]",
    '"',
    "|",
    "%YAML 9.9",
    "\x00",
    "\ud800",
    "9" * 30,
    "-1",
    "1.5",
    ".inf",
    "0x10",
    "yes",
    "~",
    "null",
    "2026-01-01",
    "1:30",
    "?",
    "key: user",
    "\ufeff",
    "é",
    "---\n",
    "...\n",
)


@st.composite
def mutated(draw):
    """The good file, with lines and characters lost, doubled, moved and foreign."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at, to = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["drop", "double", "move", "indent", "insert", "cut", "other"]))
        line = lines[at]
        if kind == "drop":
            lines[at] = ""
        elif kind == "double":
            lines[at] = line + line
        elif kind == "move":
            lines[at], lines[to] = lines[to], lines[at]
        elif kind == "indent":
            lines[at] = draw(st.sampled_from(["", " ", "  ", "      "])) + line.lstrip()
        elif kind == "cut":
            lines[at] = line[: draw(st.integers(0, len(line)))]
        elif kind == "insert":
            where = draw(st.integers(0, len(line)))
            lines[at] = line[:where] + draw(st.sampled_from(FOREIGN)) + line[where:]
        else:
            lines[at] = line.partition(":")[0] + ": " + draw(st.sampled_from(FOREIGN)) + "\n"
    return "".join(lines)


@much(max_examples=700)
@given(mutated())
def test_a_good_file_with_mistakes(text):
    both(text)


KEYS = [
    "domain",
    "descriptors",
    "key",
    "value",
    "rate_limit",
    "limits",
    "unit",
    "requests_per_unit",
    "per",
    "requests",
    "value_regex",
    "value_cidr",
    "replaces",
    "name",
    "atomic",
    "metadata",
    "burst",
    "algorithm",
    "timezone",
    "align",
    "on_outage",
    "x",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**70),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=3),
    st.dates(),
    st.sampled_from(
        ["user", "10/minute", "minute", "gcra", "month", "calendar", "10.0.0.0/8", "v[0-9]+", "*", "Europe/Berlin", "("]
    ),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
)


@much(max_examples=300)
@given(
    st.one_of(TREES, st.fixed_dictionaries({"domain": LEAVES, "descriptors": st.lists(TREES, max_size=3)})),
    st.booleans(),
)
def test_any_document(tree, flow):
    both(yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True))


def test_what_would_grow_does_not():
    """Aliases that double, nesting, long lines, long lists of anything: in time, and refused or taken."""
    doubling = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for text in (
        doubling,
        "[" * 5_000,
        "{a: " * 5_000,
        "- " * 5_000,
        "? " * 5_000,
        "&a " * 3_000,
        "a: " + "x" * 200_000,
        "\n" * 100_000 + "a",
        "%TAG ! tag:x,2000:\n" * 2_000 + "--- a",
        "domain: d\ndescriptors: [" + "{key: a}," * 5_000 + "]",
        "domain: d\ndescriptors: ["
        + ",".join(f"{{key: a, value: 'v{n}*', limits: 1/day}}" for n in range(3_000))
        + "]",
        "domain: d\ndescriptors: [{key: a, value_regex: '" + "(a*)*" * 200 + "', limits: 1/day}]",
        "domain: d\ndescriptors: [{key: a, value_regex: '" + "(" * 2_000 + "', limits: 1/day}]",
        "domain: d\ndescriptors: [{key: a, value_regex: '" + "a{1000}" * 200 + "', limits: 1/day}]",
        "domain: d\ndescriptors: [{key: a, value: '" + "*" * 5_000 + "', limits: 1/day}]",
        "domain: d\ndescriptors: [{key: a, limits: '" + "1/day;" * 5_000 + "'}]",
    ):
        both(text)


def test_bytes_of_a_file_cut_and_turned():
    """A disk that is full, a copy that was interrupted: every prefix, and single bits."""
    data = GOOD.encode()
    for end in range(0, len(data), 7):
        both(data[:end])
    bits = random.Random(7)
    for _ in range(300):
        changed = bytearray(data)
        changed[bits.randrange(len(data))] ^= 1 << bits.randrange(8)
        both(bytes(changed))

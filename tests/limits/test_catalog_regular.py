"""Regular expressions of the catalog: they mean what `re` means by them, and take as long as the value is long."""

import gc
import re
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from service.limits.catalog import index, regular
from service.limits.catalog.regular import InvalidPattern, Patterns, size
from service.limits.catalog.rules import Descriptor


def together(*patterns: str) -> Patterns:
    return Patterns(patterns, sum(map(size, patterns)))


def matches(pattern: str, value: str) -> bool:
    return together(pattern).find(value) == 0


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("v[0-9]+", ["v1", "v42"], ["v", "V1", "v1a", "xv1", "v1\n"]),
        ("^v[0-9]+$", ["v1"], ["v1\n", "^v1$"]),
        ("^", [""], ["^"]),
        ("", [""], ["a"]),
        (r"a\$", ["a$"], ["a"]),
        (r"a\\$", ["a\\"], ["a"]),
        ("cat|dog", ["cat", "dog"], ["cats", "hotdog", ""]),
        ("^cat|dog$", ["cat", "dog"], ["cats", "hotdog"]),  # all of the value, in each alternative
        ("(a|b)*c", ["c", "abac"], ["ab"]),
        ("(?:ab)+", ["ab", "abab"], ["aba"]),
        ("a{2}", ["aa"], ["a", "aaa"]),
        ("a{2,}", ["aa", "aaaaa"], ["a"]),
        ("a{1,3}", ["a", "aaa"], ["", "aaaa"]),
        ("a{0}b", ["b"], ["ab"]),
        ("a*?b+?", ["b", "aabb"], ["a"]),
        (".", ["a", "\n", "é", "🙂"], ["", "ab"]),
        (r"\d\w\s\D\W\S", ["1_ --x"], ["٣_ -- x"]),
        ("[^/]+", ["abc", "a\nb"], ["a/b", ""]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[^]a]", ["b"], ["]", "a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[-a]", ["a", "-"], ["b"]),
        (r"[\d-]", ["7", "-"], ["a"]),
        (r"[\]\\\[]", ["]", "\\", "["], ["a"]),
        (r"[^\w]", ["-"], ["a"]),
        (r"\x2f\t\.", ["/\t."], ["/\tx"]),
        ("a}]", ["a}]"], ["a"]),
        ("(){5}", [""], ["a"]),
        ("(a|)", ["a", ""], ["b"]),
        ("a^b|a$b", [], ["a^b", "a$b", "ab"]),
        ("(?i)ab", ["ab", "AB"], ["ac"]),
        (r".*\bb", ["b", "a b"], ["ab"]),
        ("[[:alpha:]]+", ["az"], ["a1"]),
        (".*", ["", "\ud800", "a\0b"], []),
    ],
)
def test_a_pattern_matches_whole_values(pattern, yes, no):
    assert [value for value in [*yes, *no] if matches(pattern, value)] == yes


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a", 'a "(" without its ")"'),
        ("a)", 'a ")" without its "("'),
        ("[a", 'a "[" without its "]", in "[a"'),
        ("*a", 'nothing to repeat before "*"; for the character itself write "\\*"'),
        ("a**", 'a repetition of a repetition, "**"; put the first into a group'),
        ("a*+", 'a repetition of a repetition, "*+"; put the first into a group'),
        ("a{,2}", 'a number is wanted after "{"; write "{0,2}"'),
        ("a{3,2}", 'repeated too often, "{3,2}"; repetitions within each other may come to 1000 in all'),
        ("(a{50}){50}", 'repeated too often, "{50}"; repetitions within each other may come to 1000 in all'),
        ("(?=a)", '"(?=" is not read: looking around takes longer than a value is long'),
        ("(?<!a)b", '"(?<!" is not read: looking around takes longer than a value is long'),
        ("(?>a)", '"(?>" is not read: it is none that RE2 knows'),
        ("(?P<n-1>a)", 'no name of a group, "(?P<n-1>"'),
        (r"(a)\1", '"\\1" is not read: a backreference takes longer than a value is long'),
        (r"a\Z", '"\\Z" is not read'),
        (r"\xg0", '"\\xg0" is not read'),
        ("a\\", "a backslash with nothing behind it"),
        ("[b-a]", 'no class of characters, or a range that runs backwards, "b-a"'),
        (r"\pX", 'no class of characters, or a range that runs backwards, "\\pX"'),
        ("a" * 1001, "1001 characters; use up to 1000"),
        (r"\pL{900}", "too large with its repetitions written out; use up to 10000"),
        (r"[\pL\pN]{9}", "too large with its repetitions written out; use up to 10000"),
        ("\ud800", "half of a surrogate pair is no character"),
    ],
)
def test_what_cannot_be_matched_in_time_or_space_is_refused_with_a_sentence(pattern, says):
    with pytest.raises(InvalidPattern) as caught:
        size(pattern)
    assert str(caught.value) == says


ATOMS = st.sampled_from(
    ["a", "b", "/", ".", r"\.", "é", "[ab]", "[^a]", "[a-c/]", r"\d", r"\W", r"[\d-]", r"\x61", "[]a]", "7", "\n"]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}", "*?"])).map(
            lambda parts: f"(?:{parts[0]}){parts[1]}"
        ),
    ),
    max_leaves=12,
)
TEXTS = st.text("ab/.c7é\n-A", max_size=8)


@settings(deadline=None, max_examples=500)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=8))
@example("(?:(?:a)*)*", ["aaa", ""])
@example("(?:(a|)){2}", ["", "a", "aa", "aaa"])
def test_a_pattern_means_what_it_means_to_re(pattern, values):
    found = together(pattern)
    reference = re.compile(pattern, re.ASCII | re.DOTALL)
    for value in values:
        assert (found.find(value) == 0) == (reference.fullmatch(value) is not None), value


@settings(deadline=None, max_examples=200)
@given(st.lists(PATTERNS, min_size=1, max_size=6), st.lists(TEXTS, min_size=1, max_size=8))
def test_of_several_patterns_in_one_pass_the_first_that_matches_is_found(patterns, values):
    found = together(*patterns)
    for value in values:
        fitting = [number for number, pattern in enumerate(patterns) if re.fullmatch(pattern, value, re.A | re.S)]
        assert found.find(value) == (fitting[0] if fitting else None)


@settings(deadline=None, max_examples=500)
@given(st.text("ab()[]{}|*+?^$\\-,.:09dx", max_size=12))
def test_what_is_read_at_all_re_reads_alike(pattern):
    try:
        found = together(pattern)
        reference = re.compile(pattern, re.A | re.S)
    except (InvalidPattern, re.error):
        return
    assume(not any(mark in pattern for mark in ("--", "||", "[:")))  # sets' own operators, some in RE2, some one day
    for value in ("", "a", "b", "ab", "aab", "-", "0", "a0", "\\", "{", ",", "|"):
        assert (found.find(value) == 0) == (reference.fullmatch(value) is not None)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "a*a*a*a*a*b", "(.*)(.*)(.*)x", "(a|aa)+b"])
def test_no_pattern_makes_a_value_take_longer_than_it_is_long(pattern):
    found = together(pattern)
    start_s = time.thread_time()
    assert found.find("a" * 1_000_000) is None  # `re` takes 2^1,000,000 steps, or 10^30
    assert time.thread_time() - start_s < 2


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_value_that_needs_ever_new_states_costs_no_more_memory():
    found = together("(a|b)*a(a|b){18}")  # 2^19 states, of some hundred bytes
    before = resident_bytes()
    for start in range(0, 200_000, 20_000):
        value = "".join("ab"[bit == "1"] for number in range(start, start + 20_000) for bit in f"{number:b}")
        assert (found.find(value) == 0) == (value[-19] == "a")
    assert resident_bytes() - before < 16 << 20


def test_patterns_that_are_too_large_together_never_silently_match_nothing(monkeypatch):
    monkeypatch.setattr(regular, "_BYTES_EACH", 0)
    refused = 0
    for spare_bytes in range(1_000, 100_000, 1_000):
        monkeypatch.setattr(regular, "_SPARE_BYTES", spare_bytes)
        try:
            assert Patterns([f"{number}[ab]*" for number in range(100)], 700).find("99ab") == 99
        except InvalidPattern as error:
            assert str(error) == "too large together"
            refused += 1
    assert 10 < refused < 90


def test_more_patterns_than_go_together_are_matched_in_file_order_all_the_same(monkeypatch):
    monkeypatch.setattr(index, "MOST_TOGETHER", 50)
    written = [*(f"v{number}-[0-9]+" for number in range(100)), "v.*", "v42-1"]
    found = index.index([Descriptor(key="k", kind="regex", value=value, path="d") for value in written])["k"]
    assert len(found._regulars) > 10
    asked = ("v0-1", "v42-1", "v99-7", "v100-1", "w")
    assert [step and step.value for step in map(found.other, asked)] == [
        "v0-[0-9]+", "v42-[0-9]+", "v99-[0-9]+", "v.*", None,
    ]  # fmt: skip

"""Regular expressions of the catalog: they mean what `re` means by them, and take as long as the value is long."""

import re
import sys

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from service.limits.catalog import automaton, regular
from service.limits.catalog.automaton import Automaton
from service.limits.catalog.regular import InvalidPattern


def matches(pattern: str, value: str) -> bool:
    return Automaton([regular.parse(pattern)]).find(value) == 0


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
    ],
)
def test_a_pattern_matches_whole_values(pattern, yes, no):
    assert [value for value in [*yes, *no] if matches(pattern, value)] == yes


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a", 'a "(" without its ")" (character 3)'),
        ("a)", 'a ")" without its "(" (character 2)'),
        ("[a", 'a "[" without its "]"'),
        ("*a", 'nothing to repeat before "*"; for the character itself write "\\*" (character 1)'),
        ("a**", "a repetition of a repetition"),
        ("a*+", "a repetition of a repetition"),
        ("a{2}{3}", "a repetition of a repetition"),
        ("a{", 'a number is wanted after "{"'),
        ("a{,2}", 'a number is wanted after "{"'),
        ("a{2", 'a "{" without its "}"'),
        ("a{3,2}", "a repetition of 3 to 2 times"),
        ("a^b", '"^" belongs at an end of the pattern'),
        ("a$b", '"$" belongs at an end of the pattern'),
        ("(?=a)", "no looking around"),
        ("(?i)a", "no flags"),
        ("(?P<n>a)", "no names"),
        (r"(a)\1", '"\\1" is not read'),
        (r"\bword", '"\\b" is not read'),
        (r"\xg0", "two hexadecimal digits"),
        ("a\\", '"\\" is not read'),
        ("[b-a]", "a range that runs backwards"),
        (r"[a-\d]", "a range that runs backwards, or not from character to character"),
        (r"[\d-a]", "a range that runs backwards, or not from character to character"),
        ("[[:alpha:]]", '"[" within brackets'),
        ("a" * 1001, "1001 characters; use up to 1000"),
        ("(a{50}){50}", "2500 characters when its repetitions are written out; use up to 2000"),
        ("((((a{9999}){9999}){9999}){9999})", "use up to 2000"),
        ("(" * 51 + ")" * 51, "more than 50 groups within each other"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_character(pattern, says):
    with pytest.raises(InvalidPattern) as caught:
        regular.parse(pattern)
    assert says in str(caught.value)


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
    found = Automaton([regular.parse(pattern)])
    reference = re.compile(pattern, re.ASCII | re.DOTALL)
    for value in values:
        assert (found.find(value) == 0) == (reference.fullmatch(value) is not None), value


@settings(deadline=None, max_examples=200)
@given(st.lists(PATTERNS, min_size=1, max_size=6), st.lists(TEXTS, min_size=1, max_size=8))
def test_of_several_patterns_in_one_automaton_the_first_that_matches_is_found(patterns, values):
    found = Automaton([regular.parse(pattern) for pattern in patterns])
    for value in values:
        fitting = [number for number, pattern in enumerate(patterns) if re.fullmatch(pattern, value, re.A | re.S)]
        assert found.find(value) == (fitting[0] if fitting else None)


@settings(deadline=None, max_examples=500)
@given(st.text("ab()[]{}|*+?^$\\-,.:09dx", max_size=12))
def test_what_is_read_at_all_re_reads_alike(pattern):
    try:
        parsed = regular.parse(pattern)
    except InvalidPattern:
        return
    assume(not any(mark in pattern for mark in ("--", "||")))  # to be sets' own operators one day, says `re`
    reference = re.compile(f"(?:{pattern.removeprefix('^')})" if pattern.startswith("^") else pattern, re.A | re.S)
    for value in ("", "a", "b", "ab", "aab", "-", "0", "a0", "\\", "{", ",", "|"):
        if not pattern.endswith("$"):
            assert (Automaton([parsed]).find(value) == 0) == (reference.fullmatch(value) is not None)


@settings(deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=20))
def test_what_was_forgotten_is_found_again(pattern, values):
    kept, forgetful = Automaton([regular.parse(pattern)]), Automaton([regular.parse(pattern)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(automaton, "MOST_KEPT", 3)
        answers = [forgetful.find(value) for value in values]
        assert forgetful._kept <= 3
    assert answers == [kept.find(value) for value in values]


def _steps(found: Automaton, value: str) -> int:
    count = 0

    def traced(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != automaton.__file__:  # what the garbage collector calls, say
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        found.find(value)
    finally:
        sys.settrace(before)
    assert count
    return count


def test_a_value_that_cannot_match_any_more_is_not_read_on():
    found = Automaton([regular.parse("[ab]+c")])
    assert found.find("abx") is None
    assert _steps(found, "abx") == _steps(found, "abx" + "a" * 10_000)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "a*a*a*a*a*b", "(.*)(.*)(.*)x", "(a|aa)+b"])
def test_no_pattern_makes_a_value_take_longer_than_it_is_long(pattern):
    found = Automaton([regular.parse(pattern)])
    short, long, longer = (_steps(found, "a" * length) for length in (100, 1_000, 2_000))
    assert longer - long <= 1.2 * (long - short) * 1_000 / 900


def test_a_value_that_needs_a_new_state_for_each_character_costs_its_length_times_the_pattern_at_most():
    found = Automaton([regular.parse("(a|b)*a(a|b){12}")])  # 2^13 states
    value = "".join("ab"[bit == "1"] for number in range(3_000) for bit in f"{number:b}")
    assert (found.find(value) == 0) == (value[-13] == "a")
    assert found._kept <= automaton.MOST_KEPT

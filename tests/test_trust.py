"""Every row of docs/trust.md holds, at a tenth of its size; and the page says what was found, whatever that is."""

import json

import pytest
from servers import needs
from typer.testing import CliRunner

from bench import trust
from bench.__main__ import app as command
from bench.processes import ROOT
from bench.promises import exactly
from bench.trust import Finding, Result, Row, Size
from bench.trust.finding import how
from bench.trust.proven import Proof

ALL = [(row.key, scenario) for row in trust.ROWS for scenario in row.scenarios]
SCENARIOS = [pytest.param(one, id=f"{key}-{one.__name__}") for key, one in ALL if not isinstance(one, Proof)]
PROOFS = [pytest.param(one, id=key) for key, one in ALL if isinstance(one, Proof)]

GOOD = Finding(figure="10 of 20 | admitted", checks=(exactly("admitted", 10, 10),))
BAD = Finding(figure="11 of 20 admitted", checks=(exactly("admitted", 11, 10), exactly("errors", 0, 0)))
ROW = Row(key="some", fault="A\nfault", promise="exactly 10", scenarios=(lambda size: BAD,))


@pytest.mark.trust
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_the_table_promises_holds_at_a_tenth(scenario, record_property):
    needs("redis-server")
    finding = scenario(trust.TENTH)
    record_property("figure", finding.figure)
    assert not finding.broken, finding.text()


def test_every_row_is_measured_and_says_how():
    keys = [row.key for row in trust.ROWS]
    assert len(set(keys)) == len(keys)
    for row in trust.ROWS:
        assert row.scenarios, f"nothing measures {row.key}"
        for scenario in row.scenarios:
            assert how(scenario).endswith("."), f"{row.key}: {scenario} does not say how it measures"


def test_the_page_that_is_shown_has_every_row_at_its_full_size_and_none_is_broken():
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    shown = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert shown == ["Fault or attack", *(row.fault for row in trust.ROWS)]
    assert not [line for line in page.splitlines() if "**BROKEN" in line or line.startswith("At 0.")]


def test_a_promise_that_did_not_hold_stands_in_the_page_and_ends_the_command_with_1(monkeypatch, tmp_path):
    monkeypatch.setattr(trust, "ROWS", (ROW,))
    page = tmp_path / "trust.md"
    done = CliRunner().invoke(command, ["trust", "--write", str(page)])
    assert done.exit_code == 1
    assert "BROKEN  admitted: 10, but 11" in done.output
    assert "| A fault | exactly 10 | 11 of 20 admitted; **BROKEN: admitted: 10, but 11** |" in page.read_text()
    assert "At 0.1 of the full size." in page.read_text()


def test_a_promise_that_held_is_a_figure(monkeypatch, tmp_path):
    row = Row(key="some", fault="a", promise="b", scenarios=(lambda size: GOOD, lambda size: GOOD))
    monkeypatch.setattr(trust, "ROWS", (row,))
    page = tmp_path / "trust.md"
    done = CliRunner().invoke(command, ["trust", "--json", "--write", str(page)])
    assert (done.exit_code, json.loads(done.output)[0]["held"]) == (0, True)
    assert "| a | b | 10 of 20 \\| admitted<br>10 of 20 \\| admitted |" in page.read_text()


def test_an_unknown_row_is_refused():
    done = CliRunner().invoke(command, ["trust", "--row", "nothing"])
    assert done.exit_code == 2
    assert 'unknown row "nothing"; use workers' in " ".join(done.output.replace("│", "").split())


def test_sizes_scale_counts_and_never_reach_zero():
    assert [Size(share=0.1).of(200_000), Size(share=0.001).of(50), Size(share=0.5).of(9, least=6)] == [20_000, 1, 6]
    assert Result(row=ROW, findings=(GOOD,)).held
    assert not Result(row=ROW, findings=(GOOD, BAD)).held


@pytest.mark.parametrize("scenario", PROOFS)
def test_tests_that_prove_a_row_are_there(scenario):
    """They run by themselves."""
    for test in scenario.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test


def test_rows_that_tests_prove_are_as_good_as_those(tmp_path):
    test = tmp_path / "test_some.py"
    test.write_text("def test_one(record_property):\n    record_property('figure', '7 of 7')\ndef test_two(): pass\n")
    good = Proof(tests=(str(test),), how="Counts.", least=2)(trust.FULL)
    assert (good.figure, good.broken) == ("2 tests passed; 7 of 7", ())
    assert Proof(tests=(str(test),), how="Counts.", least=3)(trust.FULL).broken
    test.write_text("import pytest\ndef test_one(): assert 0\ndef test_two(): pytest.skip()\n")
    bad = Proof(tests=(str(test),), how="Counts.", least=0)(trust.FULL)
    assert [check.promise for check in bad.broken] == ["tests that failed: []", "tests that were skipped: 0"]


def test_a_row_that_is_measured_again_replaces_its_line_and_no_other():
    rows = [Row(key=key, fault=f"fault {key}", promise="b", scenarios=(lambda size: GOOD,)) for key in "xyz"]
    whole = trust.page([Result(row=row, findings=(GOOD,)) for row in rows], rows=rows)
    again = trust.page([Result(row=rows[1], findings=(BAD,))], before=whole, rows=rows)
    changed = [new for old, new in zip(whole.splitlines(), again.splitlines(), strict=True) if old != new]
    assert changed == ["| fault y | b | 11 of 20 admitted; **BROKEN: admitted: 10, but 11** |"]
    elsewhere = whole.replace("CPUs", "sockets")
    assert "fault x" not in trust.page([Result(row=rows[1], findings=(BAD,))], before=elsewhere, rows=rows)

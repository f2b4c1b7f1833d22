"""Rows that are proven by tests: run as they are, and counted."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Tree
from dataclasses import dataclass
from pathlib import Path

from bench.processes import ROOT
from bench.promises import at_least, exactly
from bench.trust.finding import Finding, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A scenario: some tests. The suite runs them anyway, so they are not run at a tenth once more.

    Attributes:
        tests: Files or node ids.
        how: What they do, a sentence.
        least: So many there are, with all their parameters.
        options: Of pytest, at full size.
    """

    tests: tuple[str, ...]
    how: str
    least: int = 1
    options: tuple[str, ...] = ()

    def __call__(self, size: Size) -> Finding:
        with tempfile.TemporaryDirectory(prefix="oq-trust-") as folder:
            report = Path(folder) / "report.xml"
            options = self.options if size.share == 1 else ()
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                f"--junitxml={report}",
                "-o",
                "junit_family=xunit1",
                *options,
                *self.tests,
            ]
            done = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            if not report.exists():
                raise RuntimeError(f"pytest: {done.stdout[-2000:]}")
            return self._read(Tree.parse(report).getroot())

    def _read(self, root: Tree.Element) -> Finding:
        cases = list(root.iter("testcase"))
        failed = [
            case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
        ]
        skipped = sum(case.find("skipped") is not None for case in cases)
        passed = len(cases) - len(failed) - skipped
        told = [one.get("value", "") for one in root.iter("property") if one.get("name") == "figure"]
        return Finding(
            figure="; ".join([f"{passed:,} tests passed", *told]),
            checks=(
                exactly("tests that failed", failed[:5], []),
                exactly("tests that were skipped", skipped, 0),
                at_least("tests", passed, self.least),
            ),
        )

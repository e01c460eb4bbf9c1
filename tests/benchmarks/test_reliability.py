"""The table of faults says how their tests ended, and exits with an error if one has failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import FAULTS, Collector, result, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_results_are_those_of_the_tests():
    assert result({}) == "not covered"
    assert result({"passed": 3}) == "passed"
    assert result({"passed": 3, "skipped": 1}) == "passed"
    assert result({"skipped": 2}) == "skipped"
    assert result({"passed": 3, "failed": 1}) == "FAILED"

    counts = {28: {"passed": 2}, 31: {"failed": 1}, 40: {"skipped": 1}, 12: {}}
    head, *rows, _, total = table(counts).splitlines()
    assert [re.split(r"  +", row)[0] for row in (head, *rows)] == ["fault", "28", "31", "40", "12"]
    assert [re.split(r"  +", row)[-2:] for row in rows] == [
        ["2", "passed"],
        ["1", "FAILED"],
        ["1", "skipped"],
        ["0", "not covered"],
    ]
    assert total == "1 of 4 passed, 1 FAILED, 1 skipped, 1 not covered"


def test_tests_that_do_not_end_have_failed():
    collector = Collector([28])
    collector.numbers = {"a": {28}, "b": {28}}
    collector.outcomes = {"a": "passed"}
    assert collector.counts() == {28: {"passed": 1, "failed": 1}}


def test_faults_are_numbered_without_gaps():
    assert list(FAULTS) == list(range(1, 56))


def test_the_benchmark_runs_on_one_fault(tmp_path):
    """And on one that is not there."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.reliability", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    done = run("42")
    assert done.returncode == 0, done.stdout + done.stderr
    *_, row, _, total = done.stdout.splitlines()
    assert re.fullmatch(r"42 +two runs in one folder .* [1-9]\d* +passed", row)
    assert total == "1 of 1 passed"
    done = run("99")
    assert done.returncode == 2
    assert "faults are numbered 1 to 55, but some are [99]" in done.stderr

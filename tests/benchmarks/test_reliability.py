"""The table of faults says how their tests ended, and exits with an error if one has failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import FAULTS, Collector, Ended, _injected, conditions, result, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def ended(*outcomes, simulated=False):
    return [Ended(outcome, simulated) for outcome in outcomes]


def test_results_are_those_of_the_tests():
    assert result([]) == "not covered"
    assert result(ended("passed", "passed")) == "passed"
    assert result(ended("passed", "skipped")) == "passed"
    assert result(ended("skipped", "skipped")) == "skipped"
    assert result(ended("passed", "failed")) == "FAILED"


def test_conditions_are_those_of_the_tests_that_passed():
    real, simulated = ended("passed"), ended("passed", simulated=True)
    assert conditions(real) == "real"
    assert conditions(simulated) == "simulated"
    assert conditions(real + simulated) == "both"
    # what was skipped or failed under real conditions shows nothing
    assert conditions(simulated + ended("skipped", "failed")) == "simulated"
    assert conditions(ended("skipped")) == conditions([]) == ""


def test_the_table_has_a_row_per_fault_and_a_total():
    found = {
        28: ended("passed", "passed"),
        31: ended("failed"),
        40: ended("skipped") + ended("passed", simulated=True),
        43: ended("skipped"),
        12: [],
    }
    head, *rows, _, total = table(found).splitlines()
    numbers = [re.split(r"  +", row)[0] for row in (head, *rows)]
    assert numbers == ["fault", "28", "31", "40", "43", "12"]
    assert rows[0].split()[-3:] == ["real", "2", "passed"]
    assert rows[1].split()[-2:] == ["1", "FAILED"]
    assert rows[2].split()[-3:] == ["simulated", "2", "passed"]
    assert rows[3].split()[-2:] == ["1", "skipped"]
    assert rows[4].split()[-3:] == ["0", "not", "covered"]
    assert total == (
        "2 of 5 passed, 1 FAILED, 1 skipped, 1 not covered; "
        "1 of them under simulated conditions alone"
    )


def test_tests_that_do_not_end_have_failed():
    collector = Collector([28])
    collector.faults = {"a": {28: False}, "b": {28: True}}
    collector.outcomes = {"a": "passed"}
    assert collector.ended() == {28: [("passed", False), ("failed", True)]}


def test_faults_are_numbered_without_gaps():
    assert list(FAULTS) == list(range(1, len(FAULTS) + 1))


def test_tests_that_patch_say_whether_the_fault_is_simulated(request):
    """A test that takes `monkeypatch` may well put something in the place of the system."""

    def item(function, *marks):
        made = pytest.Function.from_parent(request.node.parent, name="t", callobj=function)
        for mark in marks:
            made.add_marker(mark)
        return made

    def plain():
        """Uses nothing."""

    def patching(monkeypatch):
        """Uses a patch."""

    fault = pytest.mark.fault
    assert _injected(item(plain, fault(41))) == {41: False}
    assert _injected(item(patching, fault(41, simulated=True))) == {41: True}
    with pytest.raises(pytest.UsageError, match=r"should say whether the fault is simulated"):
        _injected(item(patching, fault(41, simulated=True), fault(42)))
    with pytest.raises(pytest.UsageError, match=r"injects \{0\}, which is no fault"):
        _injected(item(plain, fault(0)))


def test_the_committed_table_has_all_rows():
    """Their numbers and words; how often each was tested is what the command says."""
    text = (ROOT / "benchmarks" / "results" / "reliability.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:3] != "|--"]
    shown = {row[0]: row[1:3] for row in rows if row[0].isdigit()}
    assert shown == {str(n): list(fault) for n, fault in FAULTS.items()}


@pytest.mark.long
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
    assert re.fullmatch(r"42 +two runs in one folder .* real +[1-9]\d* +passed", row)
    assert total == "1 of 1 passed"
    done = run("99")
    assert done.returncode == 2
    assert f"faults are numbered 1 to {max(FAULTS)}, but some are [99]" in done.stderr

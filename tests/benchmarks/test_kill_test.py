"""The table of kills: what it counts, and a few kills for real."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill_test import Row, changes, contents, forked, is_alive, shown, wait

ROOT = Path(__file__).parents[2]


def test_the_table_sums_up():
    lines = shown([Row("fit", 100, lost=1), Row("check", 6, left=2)]).splitlines()
    assert [line.split() for line in lines] == [
        ["killed", "kills", "torn", "lost", "failed", "different", "left"],
        ["fit", "100", "0", "1", "0", "0", "0"],
        ["check", "6", "0", "0", "0", "0", "2"],
        ["all", "106", "0", "1", "0", "0", "2"],
    ]


def test_processes_are_waited_for(tmp_path):
    assert wait(forked(lambda: 3, tmp_path)) == 3
    assert wait(forked(lambda: None, tmp_path)) == 0
    assert wait(forked(lambda: 1 // 0, tmp_path)) == 99
    process = forked(signal.pause, tmp_path)
    assert is_alive(process)
    os.kill(process, signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL


def test_operations_on_files_of_a_folder_are_told_from_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = os.O_WRONLY | os.O_CREAT
    assert changes("open", ("a", "w", write), tmp_path)
    assert changes("open", (str(tmp_path / "b" / "a"), None, os.O_RDWR), tmp_path)
    assert changes("os.rename", ("a", "b", -1, -1), tmp_path)
    assert changes("os.remove", (tmp_path / "a", -1), tmp_path)
    for event, arguments in (
        ("open", ("a", "r", os.O_RDONLY)),
        ("open", ("/dev/null", "w", write)),
        ("open", (3, "w", write)),
        ("os.remove", (str(tmp_path.parent / "a"), -1)),
        ("os.listdir", ("a",)),
    ):
        assert not changes(event, arguments, tmp_path), (event, arguments)


def test_contents_tell_bytes_of_results_and_names_of_others(tmp_path):
    before = contents(tmp_path)
    for name in ("a.nii.gz", "log.csv", "about.json"):
        (tmp_path / name).write_text("a")
    (tmp_path / ".mmpoe-a-1-0.tmp").write_text("half")
    one = contents(tmp_path)
    assert before == {}
    assert {str(path) for path in one} == {"a.nii.gz", "log.csv", "about.json"}
    (tmp_path / "about.json").write_text("b")
    (tmp_path / "log.csv").write_text("b")
    assert contents(tmp_path) == one
    (tmp_path / "a.nii.gz").write_text("b")
    assert contents(tmp_path) != one


@pytest.mark.long
@pytest.mark.fault(34)
def test_a_few_kills_leave_nothing_torn():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_test", "--smoke"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = done.stdout.splitlines()[-1].split()
    assert total[0] == "all"
    assert int(total[1]) >= 4 + 3
    assert total[2:] == ["0"] * 5

"""Jobs run some at a time, and end together."""

import os
import re
import signal
import threading
import time

import pytest

from benchmarks import _workers


def job(name, tmp_path, code):
    (tmp_path / f"job_{name}.py").write_text(code)
    return _workers.Job(name, f"job_{name}", (), tmp_path / f"{name}.log")


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, code: job(name, tmp_path, code)


def test_jobs_run_some_at_a_time_with_one_thread(jobs, tmp_path, capsys):
    code = "import os, pathlib; print(os.environ['OMP_NUM_THREADS'])"
    assert _workers.run_jobs([jobs(name, code) for name in "abc"], 2) == 0
    assert [(tmp_path / f"{name}.log").read_text() for name in "abc"] == ["1\n"] * 3
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert re.fullmatch(r"3 of 3: . done in \d+ s; running: none; 0 waiting", out[-1])
    with pytest.raises(ValueError, match=r"'workers' should be at least 1, but is 0"):
        _workers.run_jobs([], 0)


def test_a_job_that_fails_ends_the_others_and_shows_why(jobs, tmp_path, capsys):
    bad = jobs("bad", "import sys; print('the reason'); sys.exit(5)")
    slow = jobs("slow", "import time; time.sleep(60)")
    start = time.monotonic()
    assert _workers.run_jobs([slow, bad, jobs("never", "")], 2) == 5
    assert time.monotonic() - start < 30
    assert "the reason" in capsys.readouterr().out
    assert not (tmp_path / "never.log").exists()


def test_a_signal_ends_jobs_once_and_in_order(jobs, tmp_path, capsys):
    code = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[0]).parent
def end(*_):
    signals.append(1)
signals = []
signal.signal(signal.SIGTERM, end)
(place / "ready").touch()
while not signals:
    time.sleep(0.01)
time.sleep(1)
(place / "ended").write_text(str(len(signals)))
sys.exit(143)
"""

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    assert _workers.run_jobs([jobs("a", code), jobs("b", "")], 1) == 130
    thread.join()
    assert (tmp_path / "ended").read_text() == "1"
    assert not (tmp_path / "b.log").exists()
    assert "Stopped after 0 of 2 runs; the same command resumes" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_parts_are_done_here_or_as_jobs(tmp_path, monkeypatch):
    done = []
    parts = [("a", "1"), ("b", "2")]
    work = lambda *part: done.append(part)
    assert _workers.run_parts(work, parts, "part", [], tmp_path, 1) == 0
    assert done == parts
    (tmp_path / "part.py").write_text("import sys; print(*sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert _workers.run_parts(work, parts, "part", ["--x"], tmp_path, 2) == 0
    assert (tmp_path / "b 2.txt").read_text() == "--x --part b 2\n"
    assert done == parts

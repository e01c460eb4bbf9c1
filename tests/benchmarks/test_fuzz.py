"""Readers of files of others, tried for some seconds; and that a fault of theirs is noticed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("SimpleITK", reason="the example needs SimpleITK")
pytest.importorskip("pydicom", reason="the example needs pydicom")

from benchmarks.fuzz.__main__ import _attempt, main
from benchmarks.fuzz.changes import changed
from benchmarks.fuzz.readers import READERS, Reader

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.fault(58)
@pytest.mark.fault(66)
def test_every_reader_ends_as_it_says():
    command = [sys.executable, "-m", "benchmarks.fuzz", "--seconds", "12", "--seed", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(.{14}) +(\d+) +(\d+) +(\d+) +(\d+)$", done.stdout, flags=re.MULTILINE)
    assert [row[0].strip() for row in found] == list(READERS)
    for row in found:
        inputs, *ends = map(int, row[1:])
        assert inputs == sum(ends)
        assert inputs > 0


BROKEN = """
import os, sys
sys.path.insert(0, {root!r})
from benchmarks.fuzz import __main__ as fuzz

index = fuzz.READERS["index"]

def read(folder):
    whole = (folder / "index.csv").read_bytes().startswith(b"case")
    return index.read(folder) if whole else os.abort()

fuzz.READERS["index"] = index._replace(read=read)
sys.exit(fuzz.main())
"""


@pytest.mark.slow
def test_a_process_that_dies_is_noticed(tmp_path, monkeypatch, capsys):
    """The command fails, and keeps the input."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(root=str(ROOT)))
    real = subprocess.run

    def run(command, **options):
        return real([sys.executable, str(script), *command[3:]], **options)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seconds", "5", "--readers", "index"])
    assert main() == 1
    said = capsys.readouterr().out
    kept = re.search(r"a reader hung or died .* its input is in (\S+)\.$", said, re.MULTILINE)
    assert kept
    assert not (Path(kept[1]) / "index.csv").read_bytes().startswith(b"case")
    shutil.rmtree(Path(kept[1]).parent)


def reader(error):
    def read(folder):
        raise error(f"{folder} is bad") if error is not LookupError else LookupError("bad")

    return Reader(lambda folder: None, read, (LookupError if error is LookupError else ValueError))


@pytest.mark.parametrize("error", [KeyError, RecursionError, OverflowError])
def test_other_errors_are_failures(tmp_path, error):
    with pytest.raises(error):
        _attempt(reader(error), {"a": b""}, tmp_path / "input", agree=False)


def test_documented_errors_are_not(tmp_path):
    assert _attempt(reader(ValueError), {"a": b""}, tmp_path / "i", agree=False) == "refused"
    assert _attempt(reader(MemoryError), {"a": b""}, tmp_path / "i", agree=False) == "no memory"
    with pytest.raises(AssertionError, match="names no file"):
        _attempt(reader(LookupError), {"a": b""}, tmp_path / "i", agree=False)


@given(data=st.data(), content=st.binary(max_size=64))
def test_any_file_can_be_changed(data, content):
    assert isinstance(data.draw(changed(content)), bytes)

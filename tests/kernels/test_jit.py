"""The cache of compiled kernels: shared, checked, and never in the way."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mmpoe.kernels import _cpu, jit


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    return tmp_path / "kernels"


class Compiler:
    """Counts how often it is called."""

    def __init__(self, content=b"machine code"):
        self.content, self.calls = content, 0

    def __call__(self):
        self.calls += 1
        return self.content


def test_it_is_compiled_once(folder, caplog):
    compiler = Compiler()
    with caplog.at_level(logging.INFO, logger="mmpoe.kernels"):
        for _ in range(3):
            assert jit.cached("k", ".so", "what it depends on", compiler, "g++") == b"machine code"
    assert compiler.calls == 1
    (path,) = folder.iterdir()
    (record,) = caplog.records
    assert record.getMessage().startswith("compiled k (g++) in ")
    assert str(path) in record.getMessage()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_anything_it_depends_on_makes_another():
    first, second = Compiler(b"1"), Compiler(b"2")
    assert jit.cached("k", ".so", "a", first) == b"1"
    assert jit.cached("k", ".so", "b", second) == b"2"
    assert jit.cached("k", ".so", "a", second) == b"1"


@pytest.mark.fault(53)
@pytest.mark.parametrize("damage", [b"", b"machine cod", b"Machine code", b"machine code "])
def test_what_does_not_hold_what_its_name_says_is_built_again(folder, damage, caplog):
    compiler = Compiler()
    jit.cached("k", ".so", "a", compiler)
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    assert jit.cached("k", ".so", "a", compiler) == b"machine code"
    assert compiler.calls == 2
    assert "does not hold what its name says" in caplog.text
    assert path.read_bytes() == b"machine code"
    jit.cached("k", ".so", "a", compiler)
    assert compiler.calls == 2


@pytest.mark.fault(53)
def test_a_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path / "file"))
    assert jit.cached("k", ".so", "a", Compiler()) == b"machine code"
    assert "No cache of compiled kernels" in caplog.text


@pytest.mark.fault(53)
def test_a_folder_that_cannot_be_written_is_done_without(monkeypatch, folder, caplog):
    def refuse(*arguments, **options):
        raise PermissionError("read-only")

    monkeypatch.setattr(jit.tempfile, "NamedTemporaryFile", refuse)
    with caplog.at_level(logging.INFO, logger="mmpoe.kernels"):
        assert jit.cached("k", ".so", "a", Compiler()) == b"machine code"
    assert f"not kept: cannot write to {folder}" in caplog.text
    assert list(folder.iterdir()) == []


def test_a_folder_that_others_can_write_is_not_trusted(folder, caplog):
    planted = Compiler(b"planted")
    jit.cached("k", ".so", "a", planted)
    folder.chmod(0o777)
    assert jit.cached("k", ".so", "a", Compiler()) == b"machine code"
    assert "others may write to" in caplog.text


def test_an_interrupted_write_leaves_nothing_under_its_name(monkeypatch, folder):
    def stop(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", stop)
    assert jit.cached("k", ".so", "a", Compiler()) == b"machine code"
    assert not list(folder.glob("k-*"))
    assert not list(folder.iterdir())


def test_many_at_once(folder):
    compiler = Compiler()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: jit.cached("k", ".so", "a", compiler), range(32)))
    assert set(found) == {b"machine code"}
    assert len(list(folder.iterdir())) == 1


def test_it_depends_on_source_flags_compiler_and_processor(monkeypatch):
    seen = []
    monkeypatch.setattr(
        jit, "cached", lambda name, suffix, identity, *rest: seen.append(identity) or b""
    )

    def identity(dtype=torch.float32):
        with pytest.raises(jit.BuildError, match="cannot be loaded"):
            jit.cpu_library(dtype)
        return seen[-1]

    plain = identity()
    assert identity() == plain
    assert identity(torch.bfloat16) != plain
    with monkeypatch.context() as patch:
        patch.setattr(jit, "sources", lambda: {"cpu.cpp": "int main() {}"})
        assert identity() != plain
    with monkeypatch.context() as patch:
        patch.setattr(jit, "_version", lambda command: "another compiler")
        assert identity() != plain
    with monkeypatch.context() as patch:
        patch.setattr(jit, "_processor", lambda: "another processor")
        assert identity() != plain


SCRIPT = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from mmpoe.kernels import gaussian_poe, last_backend
one = [torch.ones(2, 3)]
q = gaussian_poe(one, one, torch.ones(2, 1, dtype=torch.bool), sample=False)
assert last_backend() == "cpu"
print("kl", q.kl.tolist())
"""


@pytest.mark.fault(53)
@pytest.mark.slow
def test_two_processes_at_once_then_a_third_that_finds_it(folder):
    command = [sys.executable, "-c", SCRIPT]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    third = subprocess.run(command, **options, check=False)
    assert third.returncode == 0
    assert "compiled" not in third.stdout
    lines = {line for text in (*said, third.stdout) for line in text.splitlines() if "kl" in line}
    assert len({line for line in lines if line.startswith("kl")}) == 1
    for path in folder.iterdir():
        assert jit._digest(path.read_bytes()) in path.name


def test_a_library_that_cannot_be_loaded_is_said(monkeypatch):
    monkeypatch.setattr(jit, "cached", lambda *arguments: b"no library")
    monkeypatch.setattr(_cpu, "_libraries", {})
    with pytest.raises(jit.BuildError, match="cannot be loaded"):
        _cpu.library(torch.float32)


def test_a_layout_that_differs_does_not_compile(monkeypatch):
    monkeypatch.setattr(jit, "SIZE", jit.SIZE + 8)
    with pytest.raises(jit.BuildError, match=r"mmpoe.kernels._arguments differs"):
        jit.cpu_library(torch.float32)

"""The compilers: what a build depends on, how it is loaded, and what goes wrong in words."""

import hashlib
import os
import subprocess
import sys
import time

import pytest
import torch

from mmpoe.kernels import _cpu, jit


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    return tmp_path / "kernels"


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
        patch.setattr(jit, "sources", lambda program: {"cpu.cpp": "int main() {}"})
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
@pytest.mark.long
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
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:32] in path.name


def test_a_library_that_cannot_be_loaded_is_said(monkeypatch):
    monkeypatch.setattr(jit, "cached", lambda *arguments: b"no library")
    monkeypatch.setattr(_cpu, "_libraries", {})
    with pytest.raises(jit.BuildError, match="cannot be loaded"):
        _cpu.library(torch.float32)


def test_a_layout_that_differs_does_not_compile():
    other = jit.POE._replace(sizes={"GPOE_ARGUMENTS_SIZE": 8})
    with pytest.raises(jit.BuildError, match=r"mmpoe.kernels._arguments differs"):
        jit.cpu_library(torch.float32, other)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Two libraries with a function that returns 1 in one and 2 in the other."""
    folder, contents = tmp_path_factory.mktemp("libraries"), []
    for number in (1, 2):
        (folder / "answer.cpp").write_text(f'extern "C" int answer() {{ return {number}; }}')
        command = [*jit.compiler(), "-shared", "-fPIC", str(folder / "answer.cpp")]
        subprocess.run([*command, "-o", str(folder / "answer.so")], check=True)
        contents.append((folder / "answer.so").read_bytes())
    return contents


def no_temporary_folder(*arguments, **options):
    raise FileNotFoundError("No usable temporary directory found")


def no_file_in_memory(name):
    raise PermissionError("Operation not permitted")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files in memory")
def test_a_library_is_loaded_without_a_file(libraries, monkeypatch):
    monkeypatch.setattr(jit.tempfile, "TemporaryDirectory", no_temporary_folder)
    assert [jit._load(content).answer() for content in libraries] == [1, 2]


def test_else_a_library_is_loaded_from_a_temporary_file(libraries, monkeypatch):
    monkeypatch.setattr(jit.os, "memfd_create", no_file_in_memory, raising=False)
    assert [jit._load(content).answer() for content in libraries] == [1, 2]
    monkeypatch.setattr(jit.tempfile, "TemporaryDirectory", no_temporary_folder)
    with pytest.raises(jit.BuildError, match="cannot be loaded: No usable temporary directory"):
        jit._load(libraries[0])


def test_what_a_compiler_starts_ends_with_it(tmp_path, monkeypatch):
    # its own child keeps the pipes open, as the stages of g++ do
    (tmp_path / "slow").write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    (tmp_path / "slow").chmod(0o700)
    monkeypatch.setattr(jit, "_PATIENCE", 0.2)
    started = time.monotonic()
    with pytest.raises(jit.BuildError, match=r"slow did not end within 0.2 s \(set CXX\)"):
        jit._run([str(tmp_path / "slow")])
    assert time.monotonic() - started < 30


def test_messages_in_any_encoding_are_read(tmp_path):
    (tmp_path / "latin").write_text("#!/bin/sh\nprintf 'error: \\344 in %s' $LC_ALL >&2\nexit 1\n")
    (tmp_path / "latin").chmod(0o700)
    with pytest.raises(jit.BuildError, match="latin failed with 1: error: \ufffd in C"):
        jit._run([str(tmp_path / "latin")])

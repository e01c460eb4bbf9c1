"""The command line: its subcommands, its exit codes, and what it says when something is wrong."""

import errno
import sys

import pytest
import torch

from examples.medical_mri_us import __main__ as cli
from examples.medical_mri_us.data import CaseError, ImageError
from mmpoe.training import (
    CheckpointError,
    DeviceMemoryError,
    NonFiniteError,
    WorkerError,
)


@pytest.fixture
def answer(monkeypatch, capsys):
    """Runs a command line and returns its exit code, and what it printed."""

    def ask(*arguments):
        monkeypatch.setattr(sys, "argv", ["mri_us", *map(str, arguments)])
        try:
            code = cli.main()
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return ask


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("'x' is wrong."), 2, "Error: 'x' is wrong."),
        (NonFiniteError("ten steps"), 2, "Error: ten steps"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.toml"), 2, "a.toml"),
        (ModuleNotFoundError("pip install it"), 2, "Error: pip install it"),
        (CaseError("case a: broken"), 3, "Error: case a: broken"),
        (ImageError("a.nii.gz is empty"), 3, "Error: a.nii.gz is empty"),
        (CheckpointError("altered"), 4, "Error: altered"),
        (OSError(errno.ENOSPC, "No space left", "out"), 5, "No space left"),
        (OSError(errno.EROFS, "Read-only file system", "out"), 5, "Read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 5, "Permission"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), 5, "Take a smaller batch"),
        (MemoryError(), 5, "out of memory"),
        (DeviceMemoryError("a batch of half the size"), 5, "Error: a batch of half the size"),
        (WorkerError("a process has died"), 5, "Error: a process has died"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (RuntimeError("a bug"), 1, "Unexpected error: RuntimeError: a bug (--debug shows"),
    ],
)
def test_exit_codes(error, code, text, answer, monkeypatch):
    """One message, no traceback; --debug, anywhere, shows one."""

    def fail(options):
        raise error

    options = cli.SUBCOMMANDS["import-official"][0]
    monkeypatch.setitem(cli.SUBCOMMANDS, "import-official", (options, fail))
    arguments = ["import-official", "a.pth", "--out", "b"]
    found, out, err = answer(*arguments)
    assert (found, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    for place in (0, 2, 4):
        found, _, err = answer(*arguments[:place], "--debug", *arguments[place:])
        assert found == code
        assert "Traceback" in err
        assert text in err


def test_every_verb_is_there_with_help(answer):
    code, out, _ = answer("--help")
    assert code == 0
    assert "Start with: python -m examples.medical_mri_us demo" in out
    assert "Exit codes: 0" in out
    for subcommand, (options, _) in cli.SUBCOMMANDS.items():
        assert subcommand in out
        code, text, _ = answer(subcommand, "--help")
        assert code == 0
        assert " ".join(options.__doc__.split()[:3]) in " ".join(text.split())


@pytest.mark.parametrize(
    "arguments", [(), ("bake",), ("train",), ("train", "--out", "x", "--lr", "3"), ("synthesize",)]
)
def test_wrong_usage(arguments, answer):
    code, _, err = answer(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_changes_may_be_given_again(answer, monkeypatch):
    seen = []
    monkeypatch.setitem(
        cli.SUBCOMMANDS, "train", (cli.SUBCOMMANDS["train"][0], lambda o: seen.append(o) or 0)
    )
    assert answer("train", "--out", "r", "--set", "size=32", "--set", "training.lr=1")[0] == 0
    assert seen[0].set == ("size=32", "training.lr=1")

"""Faults of the surroundings, as subcommands report them: folders, locks, devices, typos."""

import errno
import os
import resource
import signal
import sys
from contextlib import contextmanager

import pytest
import torch
from conditions import read_only, small_disk, without_override
from volumes import make_run, volume, write, write_index

from examples.medical_mri_us import __main__ as cli
from examples.medical_mri_us.subcommands import synthesize as synthesize_module
from examples.medical_mri_us.subcommands import train as train_module
from examples.medical_mri_us.synthesis import run as synthesis_module
from mmpoe.training import lock

SET = ["--set", "size=16", "--set", "model.widths=[8]", "--set", "model.latents=[2]"]


@pytest.fixture
def answer(monkeypatch, capsys):
    """Runs a command line and returns its exit code and what it says on the error stream."""

    def ask(*arguments):
        monkeypatch.setattr(sys, "argv", ["mri_us", *map(str, arguments)])
        code = cli.main()
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return ask


@pytest.fixture
def index(tmp_path):
    return write_index(tmp_path / "data", {"a": ("us", "t2", "cet1", "flair")})


@contextmanager
def locked_folder(tmp_path, what):
    """A folder with a run that nothing can be written to, and why not."""
    if what == "read-only":
        with small_disk(tmp_path / "disk", 1_000_000) as disk:
            make_run(disk / "run")
            with read_only(disk):
                yield disk, errno.EROFS
        return
    folder = tmp_path / "folder"
    run = make_run(folder / "run")
    for place in (run, folder):
        place.chmod(0o500)
    try:
        with without_override():
            yield folder, errno.EACCES
    finally:
        for place in (folder, run):
            place.chmod(0o700)


@pytest.mark.fault(41, simulated=False)
@pytest.mark.parametrize("what", ["read-only", "permissions"])
def test_output_folders_that_cannot_be_written_to(what, index, tmp_path, answer, monkeypatch):
    """Fault 41: exit code 5 before any image is read or any model trained."""
    monkeypatch.setattr(train_module, "store_subjects", lambda *_: pytest.fail("read images"))
    monkeypatch.setattr(synthesize_module, "synthesise_job", lambda *_: pytest.fail("computed"))
    us = write(tmp_path / "p.nii.gz", volume(0))
    with locked_folder(tmp_path, what) as (folder, number):
        run, out = folder / "run", folder / "out"
        for arguments in (
            ("train", "--data", index, "--out", out),
            ("synthesize", run, "--us", us, "--out", out),
            ("calibrate", run),
        ):
            code, err = answer(*arguments)
            assert code == 5
            assert "the output folder cannot be written to" in err
            assert os.strerror(number) in err
            assert str(run if arguments[0] == "calibrate" else out) in err


@pytest.mark.fault(42, simulated=False)
def test_two_runs_in_one_folder(index, tmp_path, answer, monkeypatch):
    """Fault 42: exit code 2 at once, naming who is there; and nothing of theirs is changed."""
    monkeypatch.setattr(train_module, "store_subjects", lambda *_: pytest.fail("read images"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.toml").write_text("size = 64")
    with lock(out):
        code, err = answer("train", "--data", index, "--out", out)
        assert code == 2
        assert f"{out} is in use by process {os.getpid()} on" in err
        code, err = answer("train", "--data", index, "--out", out, "--resume")
        assert code == 2
    assert (out / "config.toml").read_text() == "size = 64"
    assert not (out / "data.json").exists()


@pytest.mark.fault(43)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(index, tmp_path, answer, capsys):
    """Fault 43: exit code 2 if one is asked for; auto does without, and says so."""
    out = tmp_path / "out"
    run = make_run(tmp_path / "run")
    for arguments in (
        ("train", "--data", index, "--out", out),
        ("synthesize", run, "--us", "p.nii.gz", "--out", out),
    ):
        code, err = answer(*arguments, "--device", "cuda")
        assert code == 2
        assert "'device' should be 'cpu' or 'auto' without a GPU, but is 'cuda'" in err
    changes = [*SET, "--set", "training.steps=1", "--set", "training.precision=16-mixed"]
    code, err = answer("train", "--data", index, "--out", out, *changes)
    assert code == 2
    assert "'precision' should be '32-true' or 'bf16-mixed' on a CPU" in err


@pytest.mark.fault(43, simulated=False)
def test_a_gpu_is_not_needed(index, tmp_path, monkeypatch, capsys):
    changes = [*SET, "--set", "training.steps=1"]
    arguments = ["train", "--data", index, "--out", tmp_path / "out", "--device", "cpu", *changes]
    monkeypatch.setattr(sys, "argv", ["mri_us", *map(str, arguments)])
    assert cli.main() == 0
    assert "training on the CPU" in capsys.readouterr().out


@pytest.mark.fault(37, simulated=False)
@pytest.mark.fault(78, simulated=False)
@pytest.mark.parametrize(
    ("step", "named"),
    [("synthesise_case", "volumes of patient"), ("write_synthesis", "patient_t2_mean.nii.gz")],
)
def test_a_disk_that_fills_up_names_the_file_and_its_case(
    step, named, tmp_path, answer, monkeypatch
):
    """A real limit of the system: exit code 5, and no result of the case is there."""
    work = getattr(synthesis_module, step)

    def limited(*arguments, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        return work(*arguments, **options)

    monkeypatch.setattr(synthesis_module, step, limited)
    run = make_run(tmp_path / "run")
    us = write(tmp_path / "patient.nii.gz", volume(0))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        code, err = answer("synthesize", run, "--us", us, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 5
    assert "File too large" in err
    assert named in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.fault(44)
@pytest.mark.parametrize("how", ["file", "set"])
def test_typing_mistakes_in_a_configuration(how, index, tmp_path, answer):
    """Fault 44: exit code 2 with the nearest names, before anything else."""
    file = tmp_path / "own.toml"
    file.write_text("[training]\nstpes = 3\n" if how == "file" else "")
    more = ["--set", "training.stpes=3"] if how == "set" else []
    arguments = ("train", "--config", file, "--data", index, "--out", tmp_path / "out", *more)
    code, err = answer(*arguments)
    assert code == 2
    assert "unknown entry, training.stpes: did you mean training.steps" in err
    assert not (tmp_path / "out").exists()
    code, err = answer("train", "--config", "tyni", "--data", index, "--out", tmp_path / "out")
    assert code == 2
    assert "one of paper, small, tiny" in err


@pytest.mark.fault(30)
@pytest.mark.fault(31)
@pytest.mark.fault(33)
@pytest.mark.parametrize("what", ["model.safetensors", "model.json"])
def test_a_damaged_model_is_not_used(what, tmp_path, answer):
    """Faults 30, 31 and 33, by the subcommands: exit code 4."""
    run = make_run(tmp_path / "run")
    us = write(tmp_path / "p.nii.gz", volume(0))
    file = run / "model" / what
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])  # a weight, or the last bracket
    for bad in (b"", content[: len(content) // 2], flipped):
        file.write_bytes(bad)
        code, err = answer("synthesize", run, "--us", us, "--out", tmp_path / "out")
        assert code == 4, bad[:20]
        assert str(file.parent) in err
    assert not (tmp_path / "out").exists()

"""The recipe for ReMIND runs on a tiny copy of its layout, and quotes what was quoted."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.optimize import nnls

from benchmarks.paper_scale import compare, run
from benchmarks.paper_scale.compare import read_quoted
from examples.medical_mri_us import official
from examples.medical_mri_us.__main__ import parse
from examples.medical_mri_us.config import read_config
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.models import published_mmhvae
from mmpoe.training import Checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SETS = (
    "size=32",
    "model.widths=[16, 8]",
    "model.latents=[3, 2]",
    "training.steps=6",
    "training.batch=2",
    "training.restart=0.4",
    "adversary.weight=1.0",
    "adversary.width=4",
    "adversary.start=0.5",
    "adversary.charge=0.6",
)


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    return module.main()


@pytest.mark.parametrize("release", ["--remind", "--tcia"])
def test_a_dry_run_prints_commands_that_the_verbs_take(release, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ["--transforms", "t", "--split", "s.csv", "--out", out, "--processes", "4"]
    options += ["--weights", "CP_main_1000.pth", "--set", "training.batch=4", "--dry-run"]
    assert call(monkeypatch, run, release, "a folder", *options) == 0
    assert not out.exists()
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    found = {}
    for line in lines[:-1]:
        assert line[:2] == [sys.executable, "-m"]
        place = line.index("examples.medical_mri_us")
        options, _ = parse(line[place + 1 :])
        found[line[place + 1]] = options
        launched = line[2:place] == (
            ["torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m"]
        )
        assert launched == (line[place + 1] == "train")
    assert list(found) == [
        *("prepare", "check", "train", "import-official", "synthesize", "evaluate"),
    ]
    assert getattr(found["prepare"], release.strip("-")) == Path("a folder")
    assert found["prepare"].size == 192
    assert found["train"].resume
    config = read_config(found["train"].config, found["train"].set)
    assert config == read_config(Path("paper"), ["training.batch=4"])
    assert found["train"].data == found["evaluate"].data == found["prepare"].out / "index.csv"
    assert found["evaluate"].model == found["synthesize"].run == found["train"].out
    assert found["evaluate"].protocol == "strict,mmhvae-2026"
    assert found["evaluate"].compare == (found["import-official"].out,)
    assert lines[-1][2:] == ["benchmarks.paper_scale.compare", str(found["evaluate"].out)]


def test_usage(tmp_path, monkeypatch, capsys):
    options = ["--remind", "r", "--split", "s", "--out", tmp_path, "--set", "sizze=3"]
    assert call(monkeypatch, run, *options) == 2
    assert "did you mean size" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(monkeypatch, run, "--split", "s", "--out", tmp_path)


def test_steps_go_on_where_they_were_stopped(tmp_path, capfd):
    """A case that fails stops nothing; a step that fails, or was another, is done again."""

    def step(name, code):
        return [sys.executable, "-c", f"print('ran', {name!r}); raise SystemExit({code})"]

    steps = {"prepare": step("prepare", 1), "check": step("check", 3), "train": step("train", 0)}
    assert run.execute(steps, tmp_path) == 3
    printed = capfd.readouterr()
    assert "Stopped: check exited with 3." in printed.err
    assert "\nran train" not in printed.out
    steps["check"] = step("check", 0)
    assert run.execute(steps, tmp_path) == 0
    ran = [line for line in capfd.readouterr().out.splitlines() if line[0] != "/"]
    assert ran == ["Done already: prepare", "ran check", "ran train"]
    steps["prepare"] = step("another", 1)
    assert run.execute(steps, tmp_path) == 1
    ran = [line for line in capfd.readouterr().out.splitlines() if line[0] != "/"]
    assert ran == ["ran another", "Done already: check", "ran train"]  # a training knows itself
    steps["train"] = step("train", 1)
    assert run.execute(steps, tmp_path) == 1
    assert "Stopped: train exited with 1." in capfd.readouterr().err


def write_release(root):
    """Two cases that differ, of which the complete one trains; and published weights, random."""
    layouts.write_remind(root, root / "registration")
    for path in (root / "nrrd" / "Case002").rglob("*.nrrd"):  # another patient, not a copy
        image = sitk.ReadImage(str(path))
        dimmed = sitk.Cast(image, sitk.sitkFloat32) * 0.8
        sitk.WriteImage(sitk.Cast(dimmed, image.GetPixelID()), str(path))
    split = "case,split\nCase001-,training\nCase002-,inference\nCase003-,inference\n"
    (root / "split.csv").write_text(split)
    torch.manual_seed(0)
    model = published_mmhvae(MODALITIES, 32, width=4, max_width=8, blocks=1, head_width=4)
    official.save_checkpoint(model, root / "CP_main_1000.pth")


@pytest.mark.long
def test_the_recipe_runs_from_a_release_to_the_comparison(tmp_path):
    """As a program, with two processes that train against discriminators."""
    write_release(tmp_path)
    out = tmp_path / "out"
    options = ["--remind", tmp_path, "--transforms", tmp_path / "registration"]
    options += ["--split", tmp_path / "split.csv", "--out", out, "--processes", "2"]
    options += ["--weights", tmp_path / "CP_main_1000.pth", "--config", "tiny"]
    options += [part for entry in SETS for part in ("--set", entry)]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.paper_scale.run", *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 1, done.stderr  # Case003 has no transform
    assert "Failed: case Case003" in done.stderr
    assert "1 training cases" in done.stdout

    description = json.loads((out / "run" / "model" / "model.json").read_text())
    assert description["steps"] == 6
    assert description["settings"]["restart"] == 0.4
    saved = Checkpoints(out / "run" / "checkpoints").load(6)
    assert len(saved.state["random"]) == 2  # processes
    assert len(saved.state["learners"]) == 2  # the model, and discriminators
    assert saved.state["restarted"]
    assert len(list((out / "synthetic").glob("*_mean.nii.gz"))) == 6
    cells = json.loads((out / "evaluation" / "cells.json").read_text())
    assert list(cells["models"]) == ["run", "published"]
    text = (out / "evaluation" / "compare.md").read_text()
    assert text in done.stdout
    assert "| iUS | ceT1 | 22.2 (5.4) | " in text
    (row,) = [line for line in text.splitlines() if line.startswith("| iUS | ceT1 | 22.2 (5.4) |")]
    ours = next(
        c for c in cells["cells"]
        if (c["model"], c["protocol"], c["given"], c["target"], c["metric"])
        == ("run", "mmhvae-2026", ["us"], "cet1", "psnr")
    )  # fmt: skip
    assert row.split("|")[4].strip().startswith(f"{ours['mean']:.1f} ({ours['sd']:.1f}) [")


QUOTES = read_quoted()
METHODS = ("MoPoE", "MM-GAN", "ResViT", "M2DN", "MMHVAE")


@pytest.mark.parametrize("target", MODALITIES)
def test_quoted_averages_are_those_of_the_quoted_cells(target):
    """One weight for each of eight input sets explains 15 averages, to the rounding of one digit.

    The weights are shares of slices, unknown but the same for all methods and metrics: a slip in
    copying a number shows.
    """
    givens = [g for g in dict.fromkeys(given for _, given, *_ in QUOTES) if g != "average"]
    assert len(givens) == 8
    places = [(m, metric) for m in METHODS for metric in compare.METRICS]
    matrix = [[QUOTES[m, g, target, k].mean for g in givens] for m, k in places]
    wanted = [QUOTES[m, "average", target, k].mean for m, k in places]
    weights, _ = nnls(np.vstack([matrix, np.full(8, 1e3)]), np.append(wanted, 1e3))
    assert np.abs(matrix @ weights - wanted).max() < 0.08


def test_quotes_as_they_stand():
    assert QUOTES["MMHVAE", "us", "us", "psnr"] == (46.3, 2.9, 0, 0)
    assert QUOTES["MMHVAE", "t2+cet1+flair", "flair", "lpips"] == (1.5, 0.8, 0, 0)
    assert QUOTES["MHVAE", "t2", "us", "ssim"] == (73.9, 12.0, 0, 0)
    assert ("MHVAE", "us", "cet1", "psnr") not in QUOTES
    assert len(QUOTES) == 3 * (45 * 4 + 2 * 2)
    head = compare.QUOTED.read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in head)
    assert "https://doi.org/10.1109/TPAMI.2025.3616632" in " ".join(head)


def cell(given, target, metric, mean, **more):
    known = {"model": "run", "protocol": "mmhvae-2026", "sd": 0.05, "n": 90, "cases": 3, **more}
    return {"given": given, "target": target, "metric": metric, "mean": mean, **known}


def write_cells(folder, cells, protocols=("strict", "mmhvae-2026"), **more):
    about = {"models": {"run": {}}, "split": "test", "data": "index.csv", "phantom": False, **more}
    content = {**about, "protocols": {name: {} for name in protocols}, "cells": cells}
    folder.mkdir(exist_ok=True)
    (folder / "cells.json").write_text(json.dumps(content))
    return folder


def test_measured_cells_stand_beside_quoted_ones(tmp_path, monkeypatch, capsys):
    cells = [
        cell(["us"], "t2", "psnr", 21.5, sd=3.0),
        cell(["us"], "t2", "ssim", 0.8125),
        cell(["us"], "t2", "lpips", None, sd=None),
        cell(["us"], "cet1", "psnr", 30.0, protocol="strict"),
        cell(["us", "t2"], "cet1", "psnr", 30.0),  # nobody quotes it
        cell(["t2", "cet1"], "t2", "psnr", 35.0, sd=None, n=1, cases=1),
    ]
    folder = write_cells(tmp_path / "eval", cells)
    assert call(monkeypatch, compare, folder) == 0
    text = (folder / "compare.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    parts = dict(part.split("\n\n", 1) for part in text.split("\n## ")[1:])
    assert [len(part.splitlines()) for part in parts.values()] == [2 + 19, 2 + 13] * 3
    cross, own = "the target was not given", "the target was given"
    assert "| iUS | T2 | 20.8 (4.3) | 21.5 (3.0) [90, 3] | +0.7 |" in parts[f"PSNR, dB: {cross}"]
    assert "| iUS | T2 | 79.9 (9.6) | 81.2 (5.0) [90, 3] | +1.3 |" in parts[f"SSIM, %: {cross}"]
    assert "| iUS | T2 | 16.3 (6.6) | n/a |  |" in parts[f"LPIPS, %: {cross}"]
    assert "| iUS | ceT1 | 22.2 (5.4) | n/a |  |" in parts[f"PSNR, dB: {cross}"]
    assert "| T2 + ceT1 | T2 | 35.6 (4.5) | 35.0 [1, 1] | -0.6 |" in parts[f"PSNR, dB: {own}"]
    assert "doi.org/10.1109/TPAMI.2025.3616632" in text
    assert "Phantom" not in text

    write_cells(folder, cells, phantom=True)
    assert call(monkeypatch, compare, folder, "--method", "ResViT") == 0
    text = (folder / "compare.md").read_text()
    assert "| iUS | T2 | 20.7 (4.2) | 21.5 (3.0) [90, 3] | +0.8 |" in text
    assert "**Phantom images, so nothing here can be compared with the paper.**" in text


def test_no_evaluation_is_an_error(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, compare, tmp_path) == 2
    assert "'evaluation' should hold cells.json" in capsys.readouterr().err
    write_cells(tmp_path, [], protocols=["strict"])
    assert call(monkeypatch, compare, tmp_path) == 2
    assert "evaluate with --protocol mmhvae-2026" in capsys.readouterr().err

"""The demo, made very small: its four outputs, its interrupt, and what it says about bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.medical_mri_us.data import load_subjects, read_index
from examples.medical_mri_us.demo import Demo, run
from examples.medical_mri_us.evaluate import (
    SUBSETS,
    cross_modal_gain,
    evaluate,
    mean_images,
    synthesise,
)
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import cached_dataset
from examples.medical_mri_us.train import Settings, load_model, train
from mmpoe.metrics import psnr

ROOT = Path(__file__).parents[2]
PATIENTS = {"train": 8, "test": 2}
SETTINGS = Settings(steps=30, minutes=None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("MMPOE_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def demo(cache, tmp_path_factory):
    """A demo that has run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    demo = Demo(out=out, patients=8, held_out=2, workers=1, train=SETTINGS)
    assert run(demo) == 0
    return demo


def subjects(split):
    cases = read_index(cached_dataset(**PATIENTS, workers=1))
    return load_subjects([c for c in cases if c.split == split], progress=False)[0]


def test_four_outputs(demo):
    assert {p.name for p in demo.out.iterdir()} == {
        "metrics.json",
        "panel.png",
        "report.html",
        "model",
    }
    assert (demo.out / "panel.png").stat().st_size > 50_000


def test_metrics_are_60_cells(demo):
    cells = json.loads((demo.out / "metrics.json").read_text())
    assert len(cells) == 15 * 4
    places = {(tuple(cell["given"]), cell["target"]) for cell in cells}
    assert places == {(given, m) for given in SUBSETS for m in MODALITIES}
    for cell in cells:
        assert cell["kind"] == ("self" if cell["target"] in cell["given"] else "cross")
        assert cell["n"] == 2
        assert 0 < cell["psnr"] < 60
        assert -1 <= cell["ssim"] <= 1
        assert 5 < cell["baseline_psnr"] < 30
    assert len({cell["baseline_psnr"] for cell in cells}) == 4


def test_report_is_self_contained_and_leads_with_cross_modal(demo):
    text = (demo.out / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"]?(http|//|file)", text)
    assert text.count("data:image/png;base64,") == 2
    assert text.index("Cross-modal synthesis") < text.index("Self-reconstruction")
    assert "phantom" in text
    assert "not calibrated" in text
    assert "ICBM" in text  # the credit of the template


def test_saved_model_reproduces_the_metrics(demo):
    model, description = load_model(demo.out / "model")
    assert description["steps"] == 30
    cells = json.loads((demo.out / "metrics.json").read_text())
    cell = next(c for c in cells if c["given"] == ["us", "cet1"] and c["target"] == "flair")
    scores = []
    for subject in subjects("test"):
        image = synthesise(model, subject, ["us", "cet1"])["flair"]
        truth = (subject.images["flair"] + 1) / 2
        error = ((image - truth)[subject.fov] ** 2).mean()
        scores.append(-10 * np.log10(error))
    assert np.mean(scores) == pytest.approx(cell["psnr"], abs=1e-4)


def test_baseline_is_the_mean_training_image(demo):
    holders = [s for s in subjects("train") if "t2" in s.images]
    stack = np.concatenate([(s.images["t2"] + 1) / 2 for s in holders])
    seen = np.concatenate([s.fov for s in holders])
    mean = mean_images(subjects("train"))["t2"]
    row, column = np.argwhere(seen.sum(axis=0) > 3)[50]
    expected = stack[:, row, column][seen[:, row, column]].mean()
    assert mean[row, column] == pytest.approx(expected, rel=1e-5)

    cells = json.loads((demo.out / "metrics.json").read_text())
    cell = next(c for c in cells if c["target"] == "t2")
    scores = [
        psnr(
            np.broadcast_to(mean, s.fov.shape).reshape(-1, 64),
            ((s.images["t2"] + 1) / 2).reshape(-1, 64),
            mask=s.fov.reshape(-1, 64),
        )
        for s in subjects("test")
    ]
    assert np.mean(scores) == pytest.approx(cell["baseline_psnr"])


def test_training_is_reproducible_and_learns(demo):
    patients = subjects("train")
    (one, history), (two, _) = (train(patients, SETTINGS, progress=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert np.mean(history.bounds[-5:]) > np.mean(history.bounds[:5])
    other, _ = train(patients, Settings(steps=2, minutes=None, seed=1), progress=False)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_gain_counts_cross_cells_among_the_given_only():
    def cell(given, target, gain):
        kind = "self" if target in given else "cross"
        return {
            "given": given,
            "target": target,
            "kind": kind,
            "psnr": 10 + gain,
            "baseline_psnr": 10,
        }

    cells = [
        cell(["t2"], "flair", 1.0),
        cell(["t2", "cet1"], "flair", 3.0),
        cell(["us", "t2"], "flair", 50.0),
        cell(["t2"], "t2", 50.0),
        cell(["t2"], "us", 50.0),
    ]
    mr = {"t2", "cet1", "flair"}
    assert cross_modal_gain(cells, mr, mr) == 2.0


def test_incomplete_or_absent_test_subjects_are_named(demo):
    model, _ = load_model(demo.out / "model")
    with pytest.raises(ValueError, match="'test' should hold at least one subject"):
        evaluate(model, subjects("train"), [])
    incomplete = [s for s in subjects("train") if len(s.images) < 4]
    with pytest.raises(ValueError, match=f"complete subjects, but {incomplete[0].name} lacks"):
        evaluate(model, subjects("train"), incomplete)
    with pytest.raises(ValueError, match="'subjects' should hold at least one subject"):
        train([], SETTINGS)
    without = [s for s in subjects("train") if "flair" not in s.images]
    with pytest.raises(ValueError, match=r"each modality at least once, but none has .*flair"):
        train(without, SETTINGS)


def command(*arguments, **environment):
    return {
        "args": [sys.executable, "-m", "examples.medical_mri_us", *arguments],
        "cwd": ROOT,
        "env": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
        "text": True,
    }


def test_interrupt_leaves_a_usable_model(demo, cache, tmp_path):
    out = tmp_path / "out"
    arguments = ["demo", "--out", str(out), "--patients", "8", "--held-out", "2"]
    process = subprocess.Popen(
        **command(*arguments, "--train.steps", "100000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seen = ""
    deadline = time.monotonic() + 90
    while "step/s" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read(200)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the model can be used as it is" in printed
    assert "Traceback" not in errors
    model, description = load_model(out / "model")
    assert description["interrupted"]
    assert synthesise(model, subjects("test")[0], ["us"])["t2"].shape == (8, 64, 64)


def test_unusable_cache_folder_is_an_error_in_words(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = subprocess.run(
        **command("demo", "--out", str(tmp_path / "out"), MMPOE_CACHE=str(blocked)),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert "MMPOE_CACHE" in done.stderr
    assert "Traceback" not in done.stderr


def test_phantom_verb_writes_an_index(demo, cache, tmp_path):
    arguments = [
        "phantom",
        "--out",
        str(tmp_path),
        "--train",
        "1",
        "--test",
        "1",
        "--workers",
        "1",
    ]
    done = subprocess.run(**command(*arguments, "--size", "32"), capture_output=True, check=True)
    assert "index.csv" in done.stdout
    assert len(read_index(tmp_path / "index.csv")) == 2

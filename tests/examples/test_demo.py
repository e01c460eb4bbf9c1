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

from examples.medical_mri_us import demo as demo_module
from examples.medical_mri_us.__main__ import main
from examples.medical_mri_us.config import Matching, read_config
from examples.medical_mri_us.data import Subject, load_subjects, read_index
from examples.medical_mri_us.demo import Demo, demo_or_run, demo_run, run
from examples.medical_mri_us.evaluation import (
    SUBSETS,
    cross_modal_gain,
    evaluate,
    mean_images,
    synthesise,
)
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import MISSINGNESS, cached_dataset, make_dataset
from examples.medical_mri_us.subcommands import synthesize
from examples.medical_mri_us.train import Settings, load_model, train
from mmpoe.metrics import psnr
from mmpoe.training import Checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SIZE = 32
PATIENTS = {"train": 8, "test": 2, "size": SIZE, "workers": 1}
SETTINGS = Settings(steps=30, minutes=None)
SMALL = {
    "patients": 8,
    "held_out": 2,
    "calibrate_on": 3,
    "calibrate": Matching(steps=0, spread_steps=2),
    "size": SIZE,
    "workers": 1,
}


@pytest.fixture(scope="module")
def demo(brain, tmp_path_factory):
    """A demo that has run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    demo = Demo(out=out, **SMALL, train=SETTINGS)
    assert run(demo) == 0
    return demo


def subjects(split):
    cases = read_index(cached_dataset(**PATIENTS))
    return load_subjects([c for c in cases if c.split == split], progress=False)[0]


def test_outputs(demo):
    assert {p.name for p in demo.out.iterdir()} - {".lock"} == {
        "metrics.json",
        "panel.png",
        "report.html",
        "model",
        "data.json",
        "config.toml",
    }
    assert (demo.out / "panel.png").stat().st_size > 50_000
    names = {"model.safetensors", "model.json", "README.md"}
    assert {p.name for p in (demo.out / "model").iterdir()} == names


def test_the_model_has_a_card_and_is_one_of_a_run(demo):
    card = (demo.out / "model" / "README.md").read_text()
    assert "Trained on simulated patients (a phantom), not on people." in card
    assert "8 simulated patients of the split `train`" in card
    assert "30 steps" in card
    config = read_config(demo.out / "config.toml")
    assert (config.size, config.training) == (SIZE, SETTINGS)
    _, description = load_model(demo.out / "model")
    assert description["phantom"] is True
    assert description["spacing"] == [3.0, 3.0, 2.0]


def test_the_model_of_a_demo_is_kept_for_others(demo, cache, tmp_path, monkeypatch, capsys):
    """A run of the demo, and asking for its model, fill the same place once."""
    monkeypatch.setattr(demo_module, "train", lambda *_, **__: pytest.fail("trained again"))
    kept = demo_run(demo)
    assert kept.is_relative_to(cache)
    capsys.readouterr()
    names = {p.name for p in kept.iterdir()}
    assert names == {"model", "data.json", "config.toml"}
    (here, _), (there, _) = load_model(demo.out / "model"), load_model(kept / "model")
    for name, value in here.state_dict().items():
        assert torch.equal(value, there.state_dict()[name])
    monkeypatch.setattr(demo_module, "Demo", lambda: demo)
    case = cached_dataset(**PATIENTS).parent / "test-0000"
    options = {"us": case / "us.nii.gz", "samples": 1, "device": "cpu", "out": tmp_path / "out"}
    assert synthesize.run(synthesize.Synthesize(model="demo", **options)) == 0
    assert f"The model of the demo is that in {kept}" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert demo_or_run(Path("demo")) == kept
    (tmp_path / "demo").mkdir()
    assert demo_or_run(Path("demo")) == Path("demo")  # a run of that name
    for wrong in ({}, {"run": kept, "model": "demo"}):
        with pytest.raises(ValueError, match="'run', the folder of a run, or 'model' should be"):
            synthesize.run(synthesize.Synthesize(**wrong, **options))


def test_a_model_that_is_absent_is_trained_once(brain, cache, monkeypatch, capsys):
    settings = Settings(steps=3, minutes=None)
    small = Demo(**SMALL, train=settings)
    assert demo_run(small) == demo_run(small)
    printed = capsys.readouterr().out
    assert printed.count("training it once") == 1
    assert printed.count("The model of the demo is that in") == 1
    assert not list((cache / "models").glob(".*"))  # nothing half made

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "save_model", interrupt)
    other = Demo(**SMALL, train=Settings(steps=2, minutes=None))
    before = set((cache / "models").iterdir())
    with pytest.raises(KeyboardInterrupt):
        demo_run(other)
    assert set((cache / "models").iterdir()) == before


def test_a_training_that_stopped_early_says_so_on_top(brain, tmp_path):
    brief = Settings(steps=10**6, minutes=0.02)
    demo = Demo(out=tmp_path / "out", **SMALL, train=brief)
    assert run(demo) == 0
    _, description = load_model(tmp_path / "out" / "model")
    text = (tmp_path / "out" / "report.html").read_text()
    said = f"Training stopped at {description['steps']} of 1000000 steps"
    assert text.index(said) < text.index("One model learnt from")


def test_the_model_is_calibrated_as_far_as_it_helps(demo):
    model, description = load_model(demo.out / "model")
    how = description["calibration"]
    assert how["held_out_cases"] == 3
    assert set(how["energy"]) == {"as it was", "spread"}
    helped = how["energy"]["spread"] < how["energy"]["as it was"]
    assert (model.spread is not None) == helped
    assert set(how["coverage"]) >= {"voxels", "blocks of 8", "quarters"}
    within = all(abs(v - 0.9) <= 0.05 for v in how["coverage"].values())
    assert description["calibrated"] == within
    card = (demo.out / "model" / "README.md").read_text()
    assert ("**Not calibrated.**" in card) == (not within)
    text = (demo.out / "report.html").read_text()
    assert f"voxels {100 * how['coverage']['voxels']:.1f} %" in text


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
    assert "Training stopped" not in text  # it was not
    assert "90 % intervals hold: voxels" in text
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
            np.broadcast_to(mean, s.fov.shape).reshape(-1, SIZE),
            ((s.images["t2"] + 1) / 2).reshape(-1, SIZE),
            mask=s.fov.reshape(-1, SIZE),
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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"patients": 0}, "'patients' should be an integer of at least 1, but is 0"),
        ({"held_out": 0}, "'held_out' should be an integer of at least 1, but is 0"),
        ({"size": 20}, "'size' should be a multiple of 8.*, but is 20"),
        ({"size": 8}, "'size' should be an integer of at least 16, but is 8"),
        ({"workers": 0}, "'workers' should be an integer of at least 1, but is 0"),
        ({"resume": True}, "'keep' should be a folder to resume from, but is None"),
        ({"train": Settings(rare=2)}, "'rare' should be a number from 0 to 1, but is 2"),
    ],
)
def test_bad_arguments_are_errors_before_patients_are_made(bad, message, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "cached_dataset", lambda **_: pytest.fail("made patients"))
    with pytest.raises(ValueError, match=message):
        run(Demo(out=tmp_path / "out", **bad))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_cannot_be_used_is_an_error_before_training(
    brain, split, tmp_path, monkeypatch
):
    index = make_dataset(
        tmp_path / "data", train=2, test=2, size=16, slices=1, workers=1, progress=False
    )
    for case in index.parent.glob(f"{split}-*"):
        (case / "fov.nii.gz").write_bytes(b"broken")
    monkeypatch.setattr(demo_module, "cached_dataset", lambda **_: index)
    monkeypatch.setattr(demo_module, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=f"usable case of the split '{split}'"):
        run(Demo(out=tmp_path / "out"))


def test_the_panel_shows_a_tumour_at_the_upper_quartile():
    def subject(name, *cuts):
        label = np.zeros((len(cuts), 4, 4), np.uint8)
        for k, cut in enumerate(cuts):
            label[k].flat[:cut] = 1
        return Subject(name, {}, label == 0, label)

    held_out = [subject("a", 5, 1), subject("b", 0, 2), subject("c", 3, 3), subject("d", 9, 0)]
    assert demo_module._typical(held_out).name == "d"
    assert demo_module._typical(held_out[:3]).name == "a"


def command(*arguments, **environment):
    return {
        "args": [sys.executable, "-m", "examples.medical_mri_us", *arguments],
        "cwd": ROOT,
        "env": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
        "text": True,
    }


@pytest.mark.long
def test_interrupt_leaves_a_usable_model(demo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("of an earlier model")
    arguments = ["demo", "--out", str(out), "--patients", "8", "--held-out", "2"]
    process = subprocess.Popen(
        **command(*arguments, "--size", str(SIZE), "--train.steps", "100000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seen = ""
    deadline = time.monotonic() + 90
    while "step/s" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read(200)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "the model can be used as it is" in printed
    assert "Traceback" not in errors
    assert {p.name for p in out.iterdir()} - {".lock"} == {"model", "data.json", "config.toml"}
    assert "stopped before its end" in (out / "model" / "README.md").read_text()
    model, description = load_model(out / "model")
    assert description["interrupted"]
    assert synthesise(model, subjects("test")[0], ["us"])["t2"].shape == (8, SIZE, SIZE)


@pytest.mark.long
def test_sigterm_leaves_a_training_that_goes_on(demo, tmp_path):
    """Fault 35: the exit code is 143, and --resume takes the training up."""
    out, keep = tmp_path / "out", tmp_path / "keep"
    arguments = ["demo", "--out", str(out), "--patients", "8", "--held-out", "2"]
    arguments += ["--size", str(SIZE), "--train.steps", "100000", "--keep", str(keep)]
    for resume, code in ((False, 143), (True, 130)):
        process = subprocess.Popen(
            **command(*arguments, *["--resume"] * resume),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        seen = ""
        deadline = time.monotonic() + 90
        while "step/s" not in seen and time.monotonic() < deadline:
            seen += process.stderr.read(200)
        process.send_signal(code - 128)
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == code, errors
        assert f"--keep {keep} --resume" in printed
        assert "Traceback" not in errors
    checkpoints = Checkpoints(keep / "checkpoints")
    assert len(checkpoints.steps()) == 2  # one of each run
    damaged = checkpoints.path(checkpoints.steps()[-1]) / "training.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = subprocess.run(
        **command(*arguments, "--resume"), capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 4
    assert f"{damaged} is incomplete" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_help_and_errors_of_the_command_line(capsys, monkeypatch):
    def answer(*arguments):
        monkeypatch.setattr(sys, "argv", ["mri_us", *arguments])
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, text = answer("--help")
    assert code == 0
    assert "Start with: python -m examples.medical_mri_us demo" in text
    code, text = answer("phantom", "--help")
    assert code == 0
    assert ",".join(MISSINGNESS) in text  # the choices
    assert answer("demo", "--train.batch", "0") == (
        2,
        "Error: 'batch' should be an integer of at least 1, but is 0.\n",
    )


def test_phantom_verb_writes_an_index(brain, tmp_path):
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

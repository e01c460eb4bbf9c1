"""``train`` and ``calibrate``: from an index to a run, stopped and taken up again."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from volumes import prefer, volume, write, write_index

from examples.medical_mri_us import calibration
from examples.medical_mri_us import train as train_module
from examples.medical_mri_us.card import write_card
from examples.medical_mri_us.config import read_config
from examples.medical_mri_us.data import CaseError
from examples.medical_mri_us.facts import is_phantom
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import load_model
from examples.medical_mri_us.subcommands import calibrate, evaluate
from examples.medical_mri_us.subcommands.calibrate import Calibrate
from examples.medical_mri_us.subcommands.synthesize import Synthesize
from examples.medical_mri_us.subcommands.synthesize import run as synthesize
from examples.medical_mri_us.subcommands.train import Train, run
from mmpoe.training import CheckpointError, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow

HELD = {"a": MODALITIES, "b": ("us", "t2"), "c": ("us", "cet1"), "d": MODALITIES}
OWN = ("t2", "flair", "pet")
SET = (
    "size=16",
    "model.patch=4",
    "model.widths=[16, 8]",
    "model.latents=[3, 2]",
    "training.steps=6",
    "training.batch=2",
    "training.minutes=none",
    "training.save_every=2",
    "calibration.steps=3",
    "calibration.batch=4",
    "calibration.spread_steps=2",
)


@pytest.fixture
def index(tmp_path):
    return write_index(tmp_path / "data", HELD)


def fit(tmp_path, index, *changes, **options):
    options = {"out": tmp_path / "run", "data": index, "device": "cpu", **options}
    return run(Train(set=(*SET, *changes), **options))


def weights(tmp_path, name="run"):
    return load_model(tmp_path / name / "model")[0].state_dict()


def stopping_bound(after):
    """The bound of training, which ends the process as SIGTERM does in one of its calls."""
    original, calls = train_module.bound, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    return stop


def test_a_run_starts_from_the_weights_of_another(index, tmp_path, capsys):
    """Modalities that both share by name, and what all share, are copied; the rest is fresh."""
    assert fit(tmp_path, index) == 0
    pretrained = tmp_path / "run"
    own = write_index(tmp_path / "own", {"a": OWN, "b": ("pet", "t2")}, OWN)
    changes = (f"modalities={json.dumps(OWN)}", "training.steps=1", "training.lr=1e-30")
    changes += ("training.weight_decay=0.0", "training.average=0.0")
    options = {"config": Path("tiny"), "out": tmp_path / "more", "init": pretrained}
    capsys.readouterr()
    assert fit(tmp_path, own, *changes, **options) == 0  # of next to no steps
    said = f"Starting from {pretrained}: it knows t2, flair; pet start fresh."
    assert said in capsys.readouterr().out
    before, after = weights(tmp_path), weights(tmp_path, "more")
    fit(tmp_path, own, *changes, **{**options, "init": None, "out": tmp_path / "none"})
    fresh = weights(tmp_path, "none")
    for name, value in after.items():
        source = fresh if ".pet." in name else before
        torch.testing.assert_close(value, source[name], rtol=0, atol=1e-30, msg=name)
    differ = [n for n in fresh if n in before and (fresh[n] - before[n]).abs().max() > 1e-3]
    assert differ  # so that the comparison tells the two apart
    card = (tmp_path / "more" / "model" / "README.md").read_text()
    assert f"It started from the weights of `{pretrained}`" in card


def test_a_start_takes_the_configuration_of_its_run(index, tmp_path):
    assert fit(tmp_path, index) == 0
    again = Train(tmp_path / "more", data=index, init=tmp_path / "run", device="cpu")
    assert run(again) == 0
    configs = [read_config(tmp_path / name / "config.toml") for name in ("run", "more")]
    assert configs[0] == configs[1]


def test_a_start_that_does_not_fit_is_refused(index, tmp_path):
    assert fit(tmp_path, index) == 0
    init = tmp_path / "run"
    with pytest.raises(ValueError, match=r"but .* has widths = \[16, 8\] in place of \[24, 8\]"):
        fit(tmp_path, index, "model.widths=[24, 8]", out=tmp_path / "a", init=init)
    own = write_index(tmp_path / "own", {"a": ("ct", "pet")}, ("ct", "pet"))
    with pytest.raises(ValueError, match=r"'init' should be a run with one of ct, pet, but .* us"):
        fit(tmp_path, own, 'modalities=["ct", "pet"]', out=tmp_path / "b", init=init)
    with pytest.raises(CheckpointError):
        fit(tmp_path, index, out=tmp_path / "c", init=tmp_path / "data", config=Path("tiny"))
    larger = fit(tmp_path, index, "size=32", out=tmp_path / "d", init=init)
    assert larger == 0  # what depends on the size of slices is fresh


def test_a_run_that_was_started_from_another_resumes_without_it(
    index, tmp_path, monkeypatch, capsys
):
    assert fit(tmp_path, index, "training.seed=1", out=tmp_path / "first") == 0
    init = {"init": tmp_path / "first"}
    assert fit(tmp_path, index, out=tmp_path / "whole", **init) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "bound", stopping_bound(after=3))
        assert fit(tmp_path, index, **init) == 143
    with pytest.raises(ValueError, match=r"'init' should be that of the run to resume, .*first"):
        fit(tmp_path, index, resume=True, init=tmp_path / "whole")
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert fit(tmp_path, index, resume=True) == 0
    assert "Starting from" not in capsys.readouterr().out
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, weights(tmp_path, "whole")[name]), name
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"It started from the weights of `{tmp_path / 'first'}`" in card


def test_what_a_run_holds(index, tmp_path):
    assert fit(tmp_path, index) == 0
    folder = tmp_path / "run"
    names = {"config.toml", "data.json", "log.csv", "model", "checkpoints", ".lock"}
    assert {p.name for p in folder.iterdir()} == names
    assert {p.name for p in (folder / "model").iterdir()} == {
        "model.json",
        "model.safetensors",
        "README.md",
    }
    assert read_config(folder / "config.toml") == read_config(folder / "config.toml", SET)
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert rows[-1]["step"] == "6"

    data = json.loads((folder / "data.json").read_text())
    assert data["index"] == str(index)
    assert data["cases"][1] == {"name": "b", "modalities": ["us", "t2"]}
    assert data["missingness"]["observed"] == {"us": 4, "t2": 3, "cet1": 3, "flair": 2}
    assert not data["phantom"]

    model, description = load_model(folder / "model")
    assert not model.is_matched
    assert description["spacing"] == [1.5, 1.5, 2.0]
    assert description["axes"] == "RAS"
    assert description["calibrated"] is False
    assert description["phantom"] is False
    assert description["steps"] == 6


def test_the_card_says_what_the_model_is(index, tmp_path):
    fit(tmp_path, index)
    folder = tmp_path / "run"
    card = (folder / "model" / "README.md").read_text()
    _, description = load_model(folder / "model")
    for text in (
        description["sha256"],
        "Not for clinical use",
        "| x | x | x | x | 2 |",
        "4 cases of the split `train`, of which 2 lack some",
        "6 steps",
        "Not calibrated",
        "Not evaluated",
        "licence",
        "mmpoe 0",
        "16 x 16 pixels, 1.5 x 1.5 mm, 2 mm apart; axes: RAS",
    ):
        assert text in card, text
    assert "phantom" not in card
    write_card(folder, scores="# Evaluation\n\nProtocol strict: 20 dB.")
    assert (
        "### Evaluation\n\nProtocol strict: 20 dB." in (folder / "model" / "README.md").read_text()
    )
    assert "Not evaluated" not in (folder / "model" / "README.md").read_text()

    (index.parent / "dataset.json").write_text('{"missingness": "remind-files"}')
    assert is_phantom(index)
    fit(tmp_path, index, out=tmp_path / "other")
    card = (tmp_path / "other" / "model" / "README.md").read_text()
    assert "simulated patients (a phantom)" in card
    assert "ICBM" in card


def test_cases_that_hold_one_modality_each_are_noted(index, tmp_path, capsys):
    assert fit(tmp_path, index, "training.steps=1") == 0
    assert "no case has two modalities" not in capsys.readouterr().out
    apart = write_index(tmp_path / "apart", {m: (m,) for m in MODALITIES})
    assert fit(tmp_path, apart, "training.steps=1", out=tmp_path / "other") == 0
    assert "Note: no case has two modalities" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(index, tmp_path, monkeypatch, capsys):
    """Faults 35 and 36, by the command's own options alone."""
    assert fit(tmp_path, index, out=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "bound", stopping_bound(after=3))
        assert fit(tmp_path, index) == 143
    assert f"To resume: train --out {tmp_path / 'run'} --resume" in capsys.readouterr().out
    assert load_model(tmp_path / "run" / "model")[1]["interrupted"]
    assert run(Train(tmp_path / "run", resume=True, device="cpu")) == 0  # nothing else is said
    one, two = weights(tmp_path), weights(tmp_path, "whole")
    assert all(torch.equal(one[name], two[name]) for name in two)

    with pytest.raises(ValueError, match=r"'out' should be a new folder, or --resume be given"):
        fit(tmp_path, index)
    with pytest.raises(CheckpointError, match=r"should hold 0.1 as 'lr'"):
        fit(tmp_path, index, "training.lr=0.1", resume=True)
    assert read_config(tmp_path / "run" / "config.toml").training.lr == 2e-3


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_going_on_with_a_finished_run_leaves_its_model_alone(index, tmp_path, capsys):
    """Calibrated as it may be by now, wherever the data are, and in each process."""
    assert fit(tmp_path, index) == 0
    folder = tmp_path / "run"
    calibrate.run(Calibrate(folder))
    before = contents(folder)
    index.rename(index.with_name("elsewhere.csv"))
    for changes in ((), ("calibration.steps=9",)):
        capsys.readouterr()
        assert run(Train(folder, resume=True, set=changes, device="cpu")) == 0
        assert "is finished" in capsys.readouterr().out
        assert contents(folder) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        assert run(Train(folder, resume=True, device="cpu")) == 0
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize("fault", ["damaged", "older", "stopped", "absent"])
def test_a_model_that_is_not_that_of_the_last_checkpoint_is_written_anew(fault, index, tmp_path):
    fit(tmp_path, index)
    folder = tmp_path / "run" / "model"
    expected = weights(tmp_path)
    state, description = load_checkpoint(folder)
    if fault == "damaged":
        (folder / "model.safetensors").write_bytes(b"")
    elif fault == "older":  # a single weight
        name = next(iter(state))
        save_checkpoint(folder, {**state, name: state[name] + 1}, description)
    elif fault == "stopped":  # at its last step
        save_checkpoint(folder, state, {**description, "interrupted": True})
    else:
        (folder / "model.json").unlink()
    assert run(Train(tmp_path / "run", resume=True, device="cpu")) == 0
    found = weights(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert load_model(folder)[1]["interrupted"] is False


def test_evaluation_puts_its_tables_into_the_card(tmp_path):
    """Until the model changes."""
    held = dict.fromkeys("abcd", MODALITIES)
    index = write_index(tmp_path / "data", held, splits=["train", "train", "test", "test"])
    fit(tmp_path, index)
    folder, card = tmp_path / "run", tmp_path / "run" / "model" / "README.md"
    options = {"samples": 0, "views": 0, "perceptual": False, "device": "cpu"}
    assert evaluate.run(evaluate.Evaluate(folder, index, tmp_path / "eval", **options)) == 0
    text, tables = card.read_text(), (tmp_path / "eval" / "tables.md").read_text()
    scores = text.partition("## Scores\n\n")[2].partition("\n\n## Uncertainty")[0]
    assert scores.strip() == re.sub(r"(?m)^#", "###", tables).strip()
    assert "#### Protocol `strict`" in scores
    assert "| T2 | run |" in scores
    assert "Not evaluated" not in text
    calibrate.run(Calibrate(folder))
    assert "Not evaluated" in card.read_text()


def test_resume_of_nothing_starts(index, tmp_path):
    assert fit(tmp_path, index, resume=True) == 0
    with pytest.raises(ValueError, match=r"'data' should be an index of cases, but is not given"):
        run(Train(tmp_path / "new", resume=True))


def test_own_modalities_targets_and_sizes(tmp_path, capsys):
    """Columns of the index, harmonised targets, and slices that are larger than the model's."""
    names = ["ct", "pet"]
    held = {"a": names, "b": ["ct"], "c": names}
    index = write_index(tmp_path / "data", held, names, targets=["ct"])
    for case in held:
        for file in (index.parent / case).iterdir():
            write(file, volume(1, (24, 12, 3)))
    assert fit(tmp_path, index) == 0  # with the modalities of the index
    printed = capsys.readouterr().out
    assert "3 training cases with ct 3, pet 2" in printed
    assert "3 cases are larger than 16 x 16 pixels" in printed
    model, description = load_model(tmp_path / "run" / "model")
    assert model.modalities == names
    assert description["harmonised"] == ["ct"]
    assert "harmonised images for ct" in (tmp_path / "run" / "model" / "README.md").read_text()
    file = write(tmp_path / "p.nii.gz", volume(5, (24, 12, 3)))
    options = {"input": (f"ct={file}",), "samples": 1, "device": "cpu"}
    assert synthesize(Synthesize(tmp_path / "run", out=tmp_path / "out", **options)) == 0


def test_cases_that_cannot_be_used(index, tmp_path, capsys):
    """Faults 2 and 23: the rest continue; but not without any, or without a modality."""
    (index.parent / "b" / "us.nii.gz").write_bytes(b"")
    assert fit(tmp_path, index) == 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert len(data["problems"]) == 1
    assert "case b" in data["problems"][0]
    assert data["missingness"]["cases"] == 3
    for case in "acd":
        (index.parent / case / "us.nii.gz").write_bytes(b"")
    with pytest.raises(CaseError, match=r"none of 4 training cases can be used"):
        fit(tmp_path, index, out=tmp_path / "none")
    with pytest.raises(ValueError, match=r"index\.csv, train, but is 'valid'"):
        fit(tmp_path, index, out=tmp_path / "none", split="valid")
    lacking = write_index(tmp_path / "lacking", {"a": MODALITIES[:3]})
    with pytest.raises(ValueError, match=r"none of 1 training cases has flair"):
        fit(tmp_path, lacking, out=tmp_path / "none")
    assert not (tmp_path / "none" / "config.toml").exists()


@pytest.mark.parametrize("kept", ["matched", "spread"])
def test_calibration_adds_what_helps_and_changes_nothing_else(
    kept, index, tmp_path, capsys, monkeypatch
):
    fit(tmp_path, index)
    before = weights(tmp_path)
    prefer(monkeypatch, kept)
    if kept == "spread":  # which is better than matched experts are
        prefer(monkeypatch, "matched", "spread")
    assert calibrate.run(Calibrate(tmp_path / "run", set=("calibration.held_out=0.0",))) == 0
    printed = capsys.readouterr().out
    assert "no split 'val': 1 training case tells what helps" in printed
    assert "So few held-out cases (1) can hardly tell" in printed
    assert "as it was 1.0000, matched" in printed
    assert "90 % intervals hold: voxels 91.0 %, quarters 87.0 %." in printed
    model, description = load_model(tmp_path / "run" / "model")
    assert model.is_matched == (kept == "matched") == description["matched"]
    assert (model.spread is not None) == (kept == "spread")
    assert description["spread"] == (32 if kept == "spread" else None)
    assert description["calibrated"] is True
    assert description["calibration"]["coverage"] == {"voxels": 0.91, "quarters": 0.87}
    after = model.state_dict()
    assert len(after) > len(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert ("come from matched experts" in card) == (kept == "matched")
    assert "On 1 held-out case, 90 % intervals held: voxels 91.0 %, quarters 87.0 %." in card
    assert description["sha256"] in card

    us = write(tmp_path / "p.nii.gz", volume(9))
    options = {"us": us, "target": "t2", "samples": 2, "device": "cpu"}
    assert synthesize(Synthesize(tmp_path / "run", out=tmp_path / "out", **options)) == 0
    assert json.loads((tmp_path / "out" / "p.json").read_text())["std"].startswith("calibrated")


@pytest.mark.fault(65)
def test_calibrating_again_has_the_same_result(index, tmp_path, capsys):
    """To the same bits, whatever helped."""
    fit(tmp_path, index)
    options = Calibrate(tmp_path / "run", set=("calibration.held_out=0.0",))
    found = []
    for _ in range(2):
        assert calibrate.run(options) == 0
        description = load_model(tmp_path / "run" / "model")[1]
        found.append((weights(tmp_path), description["calibration"]))
    (first, how), (second, again) = found
    assert how == again
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], value) for name, value in second.items())


@pytest.mark.fault(65, simulated=True)
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_calibration_that_is_stopped_leaves_the_model_as_it_was(
    calibrated, index, tmp_path, capsys, monkeypatch
):
    fit(tmp_path, index)
    folder = tmp_path / "run"
    prefer(monkeypatch, "spread")
    if calibrated:
        assert calibrate.run(Calibrate(folder)) == 0
    before = contents(folder)

    def stop(*_, **options):
        def interrupt(step, loss):
            raise KeyboardInterrupt

        return fit_experts(*_, **{**options, "after_step": interrupt})

    fit_experts = calibration.calibrate
    monkeypatch.setattr(calibration, "calibrate", stop)
    assert calibrate.run(Calibrate(folder, set=("calibration.held_out=0.0",))) == 130
    assert "It was stopped: what was saved before stays." in capsys.readouterr().out
    assert contents(folder) == before
    assert load_model(folder / "model")[1]["calibrated"] is calibrated


def test_a_model_that_nothing_improves_is_not_called_calibrated(
    index, tmp_path, capsys, monkeypatch
):
    fit(tmp_path, index)
    before = weights(tmp_path)
    narrow = {"energy": 1.0, "voxels": 0.88, "quarters": 0.3}
    monkeypatch.setattr(calibration, "measure", lambda model, held_out: dict(narrow))
    assert calibrate.run(Calibrate(tmp_path / "run", set=("calibration.lr=1000.0",))) == 0
    printed = capsys.readouterr().out
    assert "Draws come from the model as it was trained, since nothing improved them" in printed
    assert "quarters 30.0 %. That is not calibrated" in printed
    model, description = load_model(tmp_path / "run" / "model")
    assert description["calibrated"] is False
    assert model.state_dict().keys() == before.keys()
    assert "**Not calibrated.**" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.fault(76)
def test_the_card_comes_where_a_kill_left_none(index, tmp_path):
    """Or that of the model before, as after a kill within ``calibrate``."""
    fit(tmp_path, index)
    folder, card = tmp_path / "run", tmp_path / "run" / "model" / "README.md"
    text = card.read_text()
    card.unlink()
    assert run(Train(folder, resume=True, device="cpu")) == 0
    assert card.read_text() == text
    calibrate.run(Calibrate(folder, set=("calibration.held_out=0.0",)))
    calibrated = card.read_text()
    card.write_text(text)
    assert run(Train(folder, resume=True, device="cpu")) == 0
    assert card.read_text() == calibrated


def test_calibration_needs_no_complete_cases_but_two_with_two_modalities(tmp_path, monkeypatch):
    prefer(monkeypatch, "spread")
    index = write_index(tmp_path / "data", {"a": MODALITIES[:3], "b": ("us", "flair")})
    fit(tmp_path, index)
    assert calibrate.run(Calibrate(tmp_path / "run")) == 0
    assert load_model(tmp_path / "run" / "model")[0].spread is not None
    index = write_index(tmp_path / "few", {"a": MODALITIES, "b": ("us",)})
    fit(tmp_path, index, out=tmp_path / "other")
    held_out = r"should list two cases that have two modalities"
    index = write_index(tmp_path / "one", {"a": MODALITIES})
    with pytest.raises(ValueError, match=held_out):
        calibrate.run(Calibrate(tmp_path / "other", data=index))


def test_other_processes_write_nothing(index, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    fit(tmp_path, index)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "data.json").exists()


def test_spacing_is_the_median(tmp_path):
    index = write_index(tmp_path / "data", HELD)
    for m in MODALITIES:
        write(index.parent / "a" / f"{m}.nii.gz", volume(3), np.diag([9.0, 0.5, 3.0, 1.0]))
    fit(tmp_path, index)
    assert load_model(tmp_path / "run" / "model")[1]["spacing"] == [1.5, 1.5, 2.0]
    for case in "ab":
        for m in HELD[case]:
            affine = np.diag([-1.5, 1.5, 2.0, 1.0])
            write(index.parent / case / f"{m}.nii.gz", volume(3 + len(m)), affine)
    fit(tmp_path, index, out=tmp_path / "mixed")
    assert load_model(tmp_path / "mixed" / "model")[1]["axes"] is None

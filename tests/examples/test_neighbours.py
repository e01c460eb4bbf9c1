"""Models that see neighbouring slices: what they see, and that a slice stays what it was."""

import copy
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from volumes import SMALL, prefer, volume, write, write_index

from examples.medical_mri_us.covariates import widen
from examples.medical_mri_us.data import Subject, TargetSlices, neighbours
from examples.medical_mri_us.evaluation import synthesise
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import PublishedModel, build_model, load_model
from examples.medical_mri_us.subcommands import calibrate, evaluate
from examples.medical_mri_us.subcommands.synthesize import Synthesize
from examples.medical_mri_us.subcommands.synthesize import run as synthesize
from examples.medical_mri_us.subcommands.train import Train, run

SET = (
    "size=16", "model.patch=4", "model.widths=[16, 8]", "model.latents=[3, 2]", "training.steps=4",
    "training.batch=2", "training.minutes=none", "training.save_every=2", "calibration.steps=2",
    "calibration.batch=4", "calibration.spread_steps=2", "slices=3",
)  # fmt: skip


@given(st.integers(1, 6), st.sampled_from([1, 3, 5]))
def test_each_slice_comes_first_and_then_those_beside_it(depth, slices):
    found = neighbours(np.arange(depth, dtype=float)[:, None, None], range(depth), slices)
    assert found.shape == (depth, slices, 1, 1)
    for k in range(depth):
        beside = [0, -1, 1, -2, 2][:slices]
        assert found[k, :, 0, 0].tolist() == [min(max(k + b, 0), depth - 1) for b in beside]


def test_inputs_have_neighbours_and_targets_do_not():
    images = {
        m: np.random.default_rng(0).random((4, 8, 8)).astype(np.float32) for m in ("us", "t2")
    }
    subject = Subject("a", images, np.ones((4, 8, 8), bool), None)
    x, targets, fov = TargetSlices([subject], slices=3)[2]
    assert (x["us"].shape, targets["us"].shape, fov.shape) == ((3, 8, 8), (1, 8, 8), (1, 8, 8))
    np.testing.assert_array_equal(x["us"], images["us"][[2, 1, 3]])
    np.testing.assert_array_equal(targets["t2"][0], images["t2"][2])


@pytest.mark.slow
@pytest.mark.parametrize("network", [SMALL, PublishedModel(width=4, max_width=8, blocks=1)])
def test_a_slice_is_unchanged_at_first_and_where_all_slices_are_alike(network):
    """Weights of neighbours are 0 at first; and they see no ends in a volume without change."""
    torch.manual_seed(0)
    plain = build_model(16, MODALITIES, network).eval()
    model = copy.deepcopy(plain)
    widen(model, 3)
    fov = np.ones((4, 16, 16), bool)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (4, 16, 16)).astype(np.float32)
    subject = Subject("a", {"us": image}, fov, None)
    np.testing.assert_allclose(
        synthesise(model, subject, ["us"])["t2"],
        synthesise(plain, subject, ["us"])["t2"],
        atol=1e-5,  # sums over more channels are in another order
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("encoders.") and weight.dim() == 4:
                weight += 0.05 * torch.randn_like(weight)
    alike = Subject("b", {"us": np.repeat(image[:1], 4, axis=0)}, fov, None)
    made = synthesise(model, alike, ["us"])["t2"]
    np.testing.assert_allclose(made, np.repeat(made[:1], 4, axis=0), atol=1e-6)
    other = image.copy()
    other[3] *= -1
    before, after = (
        synthesise(model, Subject("c", {"us": v}, fov, None), ["us"])["t2"] for v in (image, other)
    )
    changed = np.abs(before - after).max(axis=(1, 2))
    assert (changed[:2] < 1e-6).all()  # nothing beside these has changed
    assert changed[2] > 1e-4


@pytest.mark.long
def test_from_an_index_to_syntheses_and_scores(tmp_path, monkeypatch):
    index = write_index(tmp_path / "data", dict.fromkeys("abc", MODALITIES))
    folder = tmp_path / "run"
    assert run(Train(folder, data=index, set=SET, device="cpu")) == 0
    assert run(Train(folder, resume=True, device="cpu")) == 0
    prefer(monkeypatch, "spread")
    assert calibrate.run(calibrate.Calibrate(folder)) == 0
    model, description = load_model(folder / "model")
    assert model.spread is not None
    assert description["slices"] == model.slices == 3
    file = write(tmp_path / "p.nii.gz", volume(0))
    options = {"us": file, "target": "t2", "samples": 2, "device": "cpu"}
    assert synthesize(Synthesize(folder, out=tmp_path / "out", **options)) == 0
    made = nib.load(tmp_path / "out" / "p_t2_mean.nii.gz")
    assert made.shape == nib.load(file).shape
    scored = evaluate.Evaluate(
        folder, index, tmp_path / "eval", split="train", samples=2, views=1, perceptual=False
    )
    assert evaluate.run(scored) == 0
    more = Train(tmp_path / "more", data=index, init=folder, set=("slices=1",), device="cpu")
    with pytest.raises(ValueError, match=r"'init' should be a run of 1 slice, or of .* has 3"):
        run(more)
    for wrong in ("slices=2", "slices=33"):
        with pytest.raises(ValueError, match=r"'slices' should be odd, from 1 to 31"):
            run(Train(tmp_path / "x", data=index, set=(wrong,), device="cpu"))
    about = folder / "model" / "model.json"
    assert json.loads(about.read_text())["slices"] == 3


@pytest.mark.slow
def test_a_run_of_single_slices_is_one_to_start_from(tmp_path):
    index = write_index(tmp_path / "data", dict.fromkeys("ab", MODALITIES))
    assert run(Train(tmp_path / "one", data=index, set=SET[:-1], device="cpu")) == 0
    brief = (*SET, "training.steps=1", "training.lr=1e-30", "training.weight_decay=0.0")
    started = Train(tmp_path / "three", data=index, init=tmp_path / "one", set=brief, device="cpu")
    assert run(started) == 0
    one, three = (load_model(tmp_path / n / "model")[0].state_dict() for n in ("one", "three"))
    for name, value in three.items():
        wanted = one[name]
        if value.shape != wanted.shape:  # the stems, whose further weights are 0
            value, rest = value.split([wanted.shape[1], value.shape[1] - wanted.shape[1]], dim=1)
            assert rest.abs().max() < 1e-25
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-25)

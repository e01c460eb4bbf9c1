"""Volumes larger than the model's slices: scored whole, by the tiles of synthesis."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scored import SIZE, make_subject, tiny_model, write_dataset, write_run
from volumes import volume, write

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.downstream import segmentation
from examples.medical_mri_us.evaluation import (
    PROTOCOLS,
    cover_subject,
    make_view,
    mean_images,
    predict,
    score_baseline,
    score_subject,
)
from examples.medical_mri_us.evaluation import synthesis as evaluated
from examples.medical_mri_us.evaluation.baseline import laid_on
from examples.medical_mri_us.evaluation.tiled import predict_tiles, tiles_over
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import add_spread
from examples.medical_mri_us.subcommands import calibrate, evaluate, train
from examples.medical_mri_us.synthesis import slices
from examples.medical_mri_us.windows import Tiles, Window, pad_subject, tile_subject

pytestmark = pytest.mark.slow

SMALL = (
    "size=16", "model.patch=4", "model.widths=[16, 8]", "model.latents=[3, 2]",
    "training.steps=1", "training.batch=2", "calibration.steps=2", "calibration.batch=4",
    "calibration.spread_steps=2",
)  # fmt: skip

LEFT_OUT = {"strict": {"ms_ssim", "lpips", "st_lpips"}, "mmhvae-2026": {"lpips"}}


def large(seed=0, shape=(75, 50), held=MODALITIES):
    """A subject whose view needs several tiles of 32 pixels."""
    rng = np.random.default_rng(seed)
    fov = np.zeros((2, *shape), bool)
    fov[:, 3:-4, 2:-3] = True
    images = {m: np.where(fov, rng.uniform(-1, 1, fov.shape), -1).astype(np.float32) for m in held}
    return Subject(f"large-{seed}", images, fov, None)


@pytest.fixture
def model():
    return tiny_model()


def test_slices_of_the_models_size_go_through_it_as_before(model):
    """To the last bit: predictions at the mean and at random, draws, scores and coverage."""
    subject = make_subject(0, held=("us", "t2"))
    assert tiles_over(model, subject, SIZE) is None
    given = ("us", "t2")
    for temperature in (0.0, 0.7):
        torch.manual_seed(0)
        found = predict(model, subject, given, temperature=temperature, size=SIZE)
        torch.manual_seed(0)
        x = {m: torch.from_numpy(subject.images[m])[:, None] for m in given}
        wanted = model.predict(x, list(given), temperature=temperature, experts="trained")
        for m in MODALITIES:
            np.testing.assert_array_equal(found[m], wanted[m].mean[:, 0].numpy())
    for protocol in PROTOCOLS.values():
        rows = [
            list(score_subject("m", model, subject, [protocol], LEFT_OUT, **size))
            for size in ({"size": SIZE}, {})
        ]
        for a, b in zip(*rows, strict=True):
            assert (a.given, a.target) == (b.given, b.target)
            for metric, values in a.values.items():
                np.testing.assert_array_equal(values, b.values[metric])
    ours, theirs = (list(cover_subject("m", model, subject, 3, **s)) for s in ({"size": SIZE}, {}))
    assert ours == theirs
    assert pad_subject(subject, SIZE) is subject
    assert tile_subject(subject, SIZE, 16) == [subject]


def test_one_tile_is_the_model_itself(model):
    subject = make_subject(1)
    tiles = Tiles.over(np.ones_like(subject.fov), SIZE, 16)
    assert tiles.number == (1, 1)
    x = {m: subject.images[m][:, None] for m in ("us", "flair")}
    found = predict_tiles(model, x, tiles, temperature=0.0, samples=1, experts="trained")
    wanted = predict(model, subject, ("us", "flair"))
    for m, (mean, _) in found.items():
        np.testing.assert_allclose(mean[0], wanted[m], atol=1e-6)


def test_larger_slices_are_those_of_synthesis(model):
    """At the mean, tile by tile, whatever the number of slices at a time."""
    subject = large()
    given = ("us", "cet1")
    stride = slices.tile_stride(model, SIZE)
    tiles = Tiles.over(subject.fov, SIZE, stride)
    assert min(tiles.number) > 1
    found = predict(model, subject, given, size=SIZE)
    wanted = {m: np.zeros_like(subject.images[m]) for m in MODALITIES}

    def keep(made, k, image):
        assert made.what == "mean"
        wanted[made.target][k] = image

    covered = slices.predict_tiles(
        model, {m: subject.images[m] for m in given}, subject.fov, MODALITIES, tiles, keep,
        samples=1, temperature=0.0, seed=0, progress=False,
    )  # fmt: skip
    assert covered[subject.fov.any(axis=0)].all()
    for m in MODALITIES:
        np.testing.assert_allclose(found[m][:, covered], wanted[m][:, covered], atol=2e-6)
        assert (found[m][:, ~covered] == -1).all()


def test_scores_count_the_whole_view(model):
    """The mean absolute error is that of all voxels in view, by its definition."""
    subject = large(held=("us", "t2"))
    (row,) = [
        s
        for s in score_subject("m", model, subject, [PROTOCOLS["strict"]], LEFT_OUT, size=SIZE)
        if (s.given, s.target) == (("us",), "t2")
    ]
    made = predict(model, subject, ("us",), size=SIZE)["t2"]
    error = np.abs(made.clip(-1, 1) - subject.images["t2"])[subject.fov].mean() / 2
    assert row.values["mae"] == pytest.approx(error, rel=1e-5)
    # a change in a corner of the view, far outside a crop around the middle, counts
    changed = {**subject.images, "t2": subject.images["t2"].copy()}
    changed["t2"][:, 3:8, 2:8] = 1
    other = replace(subject, images=changed)
    (moved,) = [
        s
        for s in score_subject("m", model, other, [PROTOCOLS["strict"]], LEFT_OUT, size=SIZE)
        if (s.given, s.target) == (("us",), "t2")
    ]
    assert moved.values["mae"] != row.values["mae"]


def test_noise_of_the_likelihood_has_its_spread_where_tiles_overlap(model):
    """Blended noise would be too small there by up to 1 / sqrt(2)."""
    subject = large(shape=(50, 50))
    tiles = tiles_over(model, subject, SIZE)
    x = {"us": subject.images["us"][:, None]}
    torch.manual_seed(0)
    found = predict_tiles(model, x, tiles, temperature=1.0, samples=200, experts="trained")
    total = np.zeros(tiles.shape)
    for tile in tiles:
        tile.window.add((tile.weight > 0).astype(float), total)
    one = model.predict(
        {"us": torch.full((1, 1, SIZE, SIZE), -0.5)}, ["us"], temperature=0.0, experts="trained"
    )
    for m in MODALITIES:
        mean, whole = found[m]
        noise = (whole - mean).std(axis=0)
        scale = float(one[m].stddev.mean())
        assert float(one[m].stddev.std()) < 1e-6  # the same for all pixels
        for where in (total == 1, total > 1):
            assert noise[:, where].mean() == pytest.approx(scale, rel=0.02)


def test_a_spread_makes_draws_of_larger_slices(model):
    """Their deviation is that of synthesis, which is that of the spread, where tiles are alone."""
    add_spread(model, 3, SIZE)
    model.spread.scale.fill_(0.3)
    subject = large(shape=(50, 50))
    tiles = tiles_over(model, subject, SIZE)
    x = {"us": subject.images["us"]}
    found = {}

    def keep(made, k, image):
        found.setdefault((made.what, made.target), {})[k] = image

    options = {"samples": 2, "temperature": 1.0, "seed": 0, "progress": False}
    slices.predict_tiles(model, x, subject.fov, MODALITIES, tiles, keep, **options)
    torch.manual_seed(0)
    options = {"temperature": 1.0, "samples": 400, "experts": "trained"}
    wide = {m: v[:, None] for m, v in x.items()}
    drawn = predict_tiles(model, wide, tiles, **options)
    total = np.zeros(tiles.shape)
    for tile in tiles:
        tile.window.add((tile.weight > 0).astype(float), total)
    alone = (total == 1) & subject.fov
    for m in ("t2", "cet1", "flair"):
        mean, std = (np.stack([found[what, m][k] for k in (0, 1)]) for what in ("mean", "std"))
        whole = drawn[m][1]
        ratio = whole.std(axis=0)[alone] / std[alone]
        assert ratio.mean() == pytest.approx(1, rel=0.02)
        assert ratio.std() < 0.06  # of 400 draws
        far = (whole.mean(axis=0) - mean)[subject.fov] / std[subject.fov]
        assert np.square(far).mean() == pytest.approx(1 / 400, rel=0.6)
    (given,) = {k for k in found if k[1] == "us" and k[0] == "std"}
    assert (np.stack(list(found[given].values()))[alone] > 0).all()


def test_mean_images_are_laid_on_each_other_in_the_middle(model):
    """Of slices of differing sizes; one pixel is looked up in each of them."""
    subjects = [make_subject(0, held=("t2",)), large(1, (60, 40), held=("t2",))]
    mean = mean_images(iter(subjects), ("t2",), SIZE)["t2"]
    assert mean.shape[0] == mean.shape[1] >= 60
    first = laid_on(mean, subjects[0], SIZE)
    second = laid_on(mean, subjects[1], SIZE)
    top, left = Window.around(subjects[1].fov, SIZE).start
    pixels = [(s.images["t2"] + 1) / 2 for s in subjects]
    values = [pixels[0][k, 9, 9] for k in range(2)]
    values += [pixels[1][k, 9 + top, 9 + left] for k in range(2)]
    assert first[9, 9] == pytest.approx(np.mean(values), rel=1e-5)
    assert second[9 + top, 9 + left] == first[9, 9]
    assert second[4, 3] == pytest.approx(pixels[1][:, 4, 3].mean(), rel=1e-5)  # of one alone
    wide = laid_on(mean, large(2, (200, 200)), SIZE)
    assert wide[0, 0] == pytest.approx(mean.mean(), rel=1e-5)
    rows = list(
        score_baseline({"t2": mean}, subjects[1], [PROTOCOLS["strict"]], LEFT_OUT, size=SIZE)
    )
    error = np.abs(second - pixels[1])[subjects[1].fov].mean()
    assert rows[0].values["mae"] == pytest.approx(error, rel=1e-5)


def test_views_and_draws_cover_larger_slices(model):
    subject = large(held=("us", "t2"))
    view = make_view(model, subject, 2, size=SIZE)
    assert view["fov"].shape == (2, 75, 50)
    assert view["mean_t2"].shape == view["std_t2"].shape == (3, 2, 75, 50)
    assert (view["std_t2"][:, view["fov"]] > 0).any()
    for place, drawn in evaluated.draw(model, subject, ("us",), 3, size=SIZE):
        assert drawn["t2"][0].shape == (3, len(subject.fov[place]), 75, 50)
        assert drawn["t2"][1].abs().max() <= 1


def enlarge(index):
    """Makes the images of case b as large as several tiles."""
    case = index.parent / "b"
    rng = np.random.default_rng(7)
    for file in case.iterdir():
        image = nib.load(file)
        shape = 60, 45, image.shape[2]
        fov = np.zeros(shape)
        fov[3:-4, 2:-3, :2] = 1
        data = fov if file.name == "fov.nii.gz" else fov * rng.uniform(20, 250, shape)
        kind = image.get_data_dtype()
        nib.Nifti1Image(data.astype(kind), image.affine).to_filename(file)


def test_an_evaluation_takes_cases_of_any_size(tmp_path, capsys):
    """Those of the model's size have the scores that they have without the larger one."""
    names = ("us", "t2")
    cases = [
        (case, split, names) for case, split in (("c", "train"), ("a", "test"), ("b", "test"))
    ]
    index = write_dataset(tmp_path / "data", cases, names)
    run = write_run(tmp_path / "run", modalities=names)
    options = {"samples": 3, "views": 2, "perceptual": False, "device": "cpu"}
    found = []
    for name in ("before", "after"):
        if name == "after":
            enlarge(index)
        assert evaluate.run(evaluate.Evaluate(run, index, tmp_path / name, **options)) == 0
        with (tmp_path / name / "cases.csv").open(newline="") as file:
            found.append(list(csv.DictReader(file)))
    before, after = ([r for r in rows if r["case"] == "a"] for rows in found)
    assert before == after
    assert [r for r in found[0] if r["case"] == "b"] != [r for r in found[1] if r["case"] == "b"]
    assert "does not fit" not in capsys.readouterr().out
    views = np.load(tmp_path / "after" / "views" / "b.npz")
    assert views["fov"].shape[1:] == (60, 45)
    assert json.loads((tmp_path / "after" / "cells.json").read_text())["problems"] == []


def test_experts_are_matched_on_all_tiles(tmp_path, capsys):
    """Each pixel in view is in a tile, and calibration tells of tiles."""
    shape = (40, 24, 3)
    rows = ["case,split,us,t2"]
    for case in "ab":
        for k, m in enumerate(("us", "t2")):
            write(tmp_path / "data" / case / f"{m}.nii.gz", volume(ord(case) + k, shape))
        rows.append(f"{case},train,{case}/us.nii.gz,{case}/t2.nii.gz")
    index = tmp_path / "data" / "index.csv"
    index.write_text("\n".join(rows) + "\n")
    assert train.run(train.Train(tmp_path / "run", data=index, set=SMALL, device="cpu")) == 0
    assert calibrate.run(calibrate.Calibrate(tmp_path / "run")) == 0
    assert (
        "Calibrating on 24 tiles of slices, 24 of them complete, of 1 case."
        in capsys.readouterr().out
    )


def test_tiles_of_a_subject_hold_all_that_is_in_view():
    subject = replace(large(), label=np.ones((2, 75, 50), np.uint8))
    tiles = tile_subject(subject, SIZE, 16)
    assert {t.fov.shape for t in tiles} == {(2, SIZE, SIZE)}
    found = {v for t in tiles for v in t.images["t2"][t.fov].tolist()}
    assert found == set(subject.images["t2"][subject.fov].tolist())
    assert all((t.images["t2"][~t.fov] == -1).all() for t in tiles)
    assert sum(t.label.sum() for t in tiles) >= subject.fov.sum()


def test_networks_learn_from_slices_of_differing_sizes():
    """Smaller ones are padded out of view, and results have the size of the volume."""
    subjects = []
    for shape in ((20, 33), (32, 24)):
        s = large(0, shape, held=("us",))
        label = np.zeros(s.fov.shape, np.uint8)
        label[:, 8:14, 8:14] = segmentation.TUMOUR[0]
        subjects.append(replace(s, label=label))
    examples = segmentation.Examples([s.images["us"] for s in subjects], subjects)
    assert examples.images.shape == (4, 3, 32, 40)
    assert not examples.views[:2, :, 20:].any()
    assert (examples.images[:2, :, 20:] == -1).all()
    wanted = np.concatenate([segmentation.tumour_of(s).sum(axis=(1, 2)) for s in subjects])
    assert examples.truths.sum(dim=(1, 2, 3)).tolist() == wanted.tolist()
    network = segmentation.build_network()
    found = segmentation.segment(network, subjects[0].images["us"], subjects[0].fov)
    assert found.shape == subjects[0].fov.shape

"""Planes of slices: alike for all MR of a training, and the model knows which."""

import json

import nibabel as nib
import numpy as np
import pytest
from volumes import SHAPE, volume, write

from examples.medical_mri_us.data import (
    CaseError,
    Image,
    axis_codes,
    load_subjects,
    read_index,
    reorient,
    turn_alike,
    turned,
)
from examples.medical_mri_us.subcommands.check import Check
from examples.medical_mri_us.subcommands.check import run as check
from examples.medical_mri_us.subcommands.synthesize import Synthesize
from examples.medical_mri_us.subcommands.synthesize import run as synthesize
from examples.medical_mri_us.subcommands.train import Train, run

SMALL = (
    "size=16", "model.patch=4", "model.widths=[16, 8]", "model.latents=[3, 2]",
    "training.steps=2", "training.batch=2", 'modalities=["t2", "flair"]',
)  # fmt: skip
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def write_cases(folder, codes, modalities=("t2", "flair")):
    """Writes cases whose axes point to here and there, with an index."""
    rows = []
    for seed, (case, axes) in enumerate(codes.items()):
        for k, m in enumerate(modalities):
            image = reorient(Image(volume(10 * seed + k, SHAPE), AFFINE), axes)
            write(folder / case / f"{m}.nii.gz", image.data, image.affine)
        rows.append(",".join([case, "train", *(f"{case}/{m}.nii.gz" for m in modalities)]))
    header = ",".join(["case", "split", *modalities])
    (folder / "index.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "index.csv"


def load(index, modalities=("t2", "flair")):
    subjects, problems = load_subjects(read_index(index, modalities), progress=False)
    assert problems == []
    return subjects


@pytest.mark.parametrize("axes", ["LPS", "PLS", "ARI", "SRP"])
def test_turning_moves_no_voxel(axes, tmp_path):
    (one,) = load(write_cases(tmp_path, {"a": "RAS"}))
    other = turned(one, axes)
    assert axis_codes(other.affine) == axes
    back = turned(other, "RAS")
    for m in one.images:
        assert np.array_equal(back.images[m], one.images[m])
    assert np.array_equal(back.fov, one.fov)
    np.testing.assert_allclose(back.affine, one.affine)
    assert back.spacing == pytest.approx(one.spacing)
    assert turned(one, None) is one
    (stored,) = load(write_cases(tmp_path / "other", {"a": axes}))
    assert np.array_equal(other.fov, stored.fov)
    for m in one.images:
        np.testing.assert_allclose(other.images[m], stored.images[m], atol=1e-6)
    assert other.spacing == pytest.approx(stored.spacing)


def test_slices_of_one_plane_are_turned_alike(tmp_path):
    subjects = turn_alike(load(write_cases(tmp_path, {"a": "LPS", "b": "RAS", "c": "LPS"})))
    assert {axis_codes(s.affine) for s in subjects} == {"LPS"}


def test_planes_that_differ_are_refused(tmp_path, capsys):
    """By check, exit code 3, and by training; slices of ultrasound lie as the probe did."""
    index = write_cases(tmp_path, {"a": "RAS", "b": "RAS", "c": "ASR"})
    assert check(Check(index)) == 3
    said = capsys.readouterr().err
    assert "2 are axial (a, b) and 1 are sagittal (c): prepare them from their files" in said
    with pytest.raises(CaseError, match=r"should lie in one plane, but 2 are axial"):
        run(Train(tmp_path / "run", data=index, set=SMALL, device="cpu"))
    both = ("us", "t2")
    other = write_cases(tmp_path / "probe", {"a": "RAS", "b": "ASR"}, both)
    assert check(Check(other)) == 0
    kept = [axis_codes(s.affine) for s in turn_alike(load(other, both))]
    assert kept == ["RAS", "ASR"]


@pytest.mark.slow
def test_a_model_knows_its_plane(tmp_path):
    """One trained on files that are stored in two ways takes a third: the same image comes out."""
    index = write_cases(tmp_path, {"a": "LPS", "b": "RAS", "c": "LPS"})
    assert run(Train(tmp_path / "run", data=index, set=SMALL, device="cpu")) == 0
    said = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert said["axes"] == "LPS"
    found = []
    for axes in ("LPS", "ARI"):
        image = reorient(Image(volume(5, SHAPE), AFFINE), axes)
        file = write(tmp_path / axes / "p.nii.gz", image.data, image.affine)
        out = tmp_path / f"out-{axes}"
        options = {"t2": file, "samples": 1, "device": "cpu"}
        assert synthesize(Synthesize(tmp_path / "run", out=out, **options)) == 0
        made = nib.load(out / "p_flair_mean.nii.gz")
        values = Image(made.get_fdata(dtype=np.float32), made.affine)
        found.append(reorient(values, "RAS").data)
    np.testing.assert_allclose(*found, atol=1e-3)
    assert np.ptp(found[0]) > 1

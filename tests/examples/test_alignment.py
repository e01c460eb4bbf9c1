"""Alignment: a doubt where images share more when one is moved, and none where they lie right."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import mutual_info_score

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.data.alignment import doubts, mutual_information
from examples.medical_mri_us.subcommands.check import Check, run

SHAPE = (5, 64, 60)
CONTRASTS = {
    "t2": lambda tissue: 0.2 + 0.7 * tissue,
    "cet1": lambda tissue: 0.9 - 0.6 * tissue,
    "flair": lambda tissue: 0.3 + 2 * (tissue - 0.5) ** 2,
}


def anatomy(seed):
    """Smooth tissue from 0 to 1, slice by slice alike."""
    rng = np.random.default_rng(seed)
    tissue = ndimage.gaussian_filter(rng.normal(size=(9, 100, 100)), (2, 3, 3))[2:7]
    return (tissue - tissue.min()) / np.ptp(tissue)


def case(seed, shift=(0, 0), noise=0.03, spacing=(3.0, 1.0, 1.0)):
    """Three contrasts of one anatomy, the last of which is moved."""
    tissue, rng = anatomy(seed), np.random.default_rng(seed + 100)
    i, j = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 60), indexing="ij")
    fov = np.broadcast_to(i**2 + j**2 < 0.9, SHAPE)
    images = {}
    for m, contrast in CONTRASTS.items():
        a, b = shift if m == "flair" else (0, 0)
        shown = contrast(tissue[:, 18 - a : 82 - a, 20 - b : 80 - b])
        values = 2 * np.clip(shown + rng.normal(0, noise, SHAPE), 0, 1) - 1
        images[m] = np.where(fov, values, -1).astype(np.float32)
    return Subject("p", images, fov, None, spacing=spacing)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.sampled_from([0.0, 0.03, 0.1]))
def test_images_that_lie_right_are_not_doubted(seed, noise):
    assert doubts(case(seed, noise=noise)) == []


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.sampled_from([(6, 0), (0, -6), (-6, 6), (5, -7)]))
def test_images_that_are_moved_are_found_and_the_way_back_said(seed, shift):
    found = doubts(case(seed, shift))
    assert {(d.first, d.second) for d in found} == {("t2", "flair"), ("cet1", "flair")}
    for doubt in found:
        assert doubt.shift == tuple(-6.0 * np.sign(s) for s in shift)


def test_distances_are_in_mm():
    (first, _) = doubts(case(3, (3, 0), spacing=(3.0, 2.0, 2.0)))
    assert first.shift == (-6.0, 0.0)


def test_mutual_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 16, 5000)
    for b in (a, rng.integers(0, 16, 5000), (a + rng.integers(0, 4, 5000)) % 16):
        assert mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), abs=1e-9)


def test_check_warns_of_modalities_that_do_not_lie_on_each_other(tmp_path, capsys):
    for name, shift in (("a", (0, 0)), ("b", (6, 0))):
        subject = case(len(name) + shift[0], shift)
        (tmp_path / name).mkdir()
        for m, volume in subject.images.items():
            data = np.moveaxis(100 * (volume + 1), 0, -1)
            image = nib.Nifti1Image(data.astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0]))
            image.to_filename(tmp_path / name / f"{m}.nii.gz")
    columns = ("t2", "cet1", "flair")
    rows = [",".join([c, "train", *(f"{c}/{m}.nii.gz" for m in columns)]) for c in "ab"]
    index = tmp_path / "index.csv"
    index.write_text("\n".join([",".join(["case", "split", *columns]), *rows]) + "\n")
    assert run(Check(index)) == 0
    said = capsys.readouterr().out
    assert "2 warnings:" in said
    assert "case b: t2 and flair may not lie on each other: they share" in said
    assert "if flair is moved by -6 mm along rows and 0 mm along columns." in said
    assert "case a" not in said

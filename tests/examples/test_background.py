"""Background of images without a unit: what is outside is 0, what is inside keeps its contrast."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from examples.medical_mri_us.data import fill_slices, load_subjects, normalise, read_index
from examples.medical_mri_us.data.background import remove_background
from examples.medical_mri_us.subcommands.prepare import Prepare, run

SHAPE = (32, 40, 6)


def brain(seed=0, shape=SHAPE):
    """Tissue of 300 to 900 in an ellipse, and where that is."""
    i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = (i / 0.7) ** 2 + (j / 0.75) ** 2 < 1
    core = (i / 0.2) ** 2 + (j / 0.3) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    return np.rint(np.where(core, 900, 400) + noise), inside


def scores(values, inside):
    """z-scores of tissue, 0 outside."""
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)


@settings(max_examples=30, deadline=None)
@given(
    background=st.sampled_from([0.0, -1024.0, 37.5, -1.0]),
    gain=st.sampled_from([1e-3, 1.0, 250.0]),
    depth=st.floats(0, 0.12),
    seed=st.integers(0, 5),
)
def test_tissue_is_what_lies_above_the_background(background, gain, depth, seed):
    """Whatever the unit; a rim below the background, as of interpolation, becomes background."""
    tissue, inside = brain(seed)
    rim = np.roll(inside, 1, 0) & ~inside
    image = np.where(inside, gain * tissue, 0)
    image[rim] = -depth * image.max()
    image = (image + background).astype(np.float32)
    found, note = remove_background(image)
    assert (found[~inside] == 0).all()
    np.testing.assert_allclose(found[inside], gain * tissue[inside], rtol=1e-4, atol=1e-3)
    assert ("lie below the background" in note) == bool((image < background).any())


@settings(max_examples=30, deadline=None)
@given(
    gain=st.floats(1e-2, 1e2),
    offset=st.sampled_from([0.0, -5.0, 3.0]),
    seed=st.integers(0, 5),
)
def test_scores_keep_their_contrast(gain, offset, seed):
    """Tissue on both sides of the background: all of it in view, in order, none saturated."""
    tissue, inside = brain(seed)
    image = (gain * scores(tissue, inside) + offset).astype(np.float32)
    found, note = remove_background(image)
    assert "on both sides of the background" in note
    assert np.array_equal(found > 0, inside)
    order = np.argsort(image[inside], kind="stable")
    assert (np.diff(found[inside][order]) >= 0).all()
    assert np.corrcoef(found[inside], image[inside])[0, 1] > 0.9999
    for modality in ("t2", "cet1", "flair"):
        unit = (normalise(found, inside, modality)[inside] + 1) / 2
        assert (unit < 1).mean() > 0.99


@pytest.mark.parametrize("order", [3, 5])
def test_ripples_of_splines_are_background(order):
    """Splines leave no voxel at 0: the view is the brain and three voxels of it around."""
    tissue, inside = brain()
    image = ndimage.zoom(np.where(inside, tissue, 0), (1.7, 1.7, 1), order=order)
    wanted = ndimage.zoom(inside.astype(float), (1.7, 1.7, 1), order=1) > 0.5
    image = image.astype(np.float32)
    assert (image != 0).mean() > 0.95
    found, note = remove_background(image)
    assert "lie below the background" in note
    around = ndimage.binary_dilation(wanted, np.ones((3, 3, 1)), iterations=6)
    assert not found[~around].any()
    deep = ndimage.binary_erosion(wanted, np.ones((3, 3, 1)))
    np.testing.assert_allclose(found[deep], image[deep], atol=1e-3)


def test_images_that_say_nothing_of_a_background_lose_their_minimum():
    image = np.random.default_rng(0).uniform(7, 900, SHAPE).astype(np.float32)
    found, note = remove_background(image)
    assert note == ""
    np.testing.assert_array_equal(found, image - image.min())
    noise = np.random.default_rng(0).integers(0, 40, SHAPE).astype(np.float32)  # of air
    noise[8:-8, 8:-8] = 500
    assert remove_background(noise)[0] is noise


def test_holes_belong_to_the_view_slice_by_slice():
    shown = np.ones((12, 10, 3), bool)
    shown[:2] = False
    shown[5:7, 4:6, 1] = False  # within
    shown[3:, 7, 2] = False  # reaches the edge
    filled = fill_slices(shown)
    assert filled[5:7, 4:6, 1].all()
    assert not filled[:2].any()
    assert not filled[3:, 7, 2].any()
    turned = fill_slices(np.moveaxis(shown, -1, 0), 0)
    assert np.array_equal(np.moveaxis(turned, 0, -1), filled)


def prepared(folder, volumes, spacing=(1.0, 1.0, 3.0)):
    """Writes a case, prepares it, and loads it."""
    for modality, volume in volumes.items():
        (folder / "p").mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(volume.astype(np.float32), np.diag([*spacing, 1]))
        image.to_filename(folder / "p" / f"{modality}.nii.gz")
    files = ",".join(f"p/{m}.nii.gz" for m in volumes)
    (folder / "index.csv").write_text(f"case,split,{','.join(volumes)}\np,train,{files}\n")
    assert run(Prepare(index=folder / "index.csv", out=folder / "out")) == 0
    (subject,), problems = load_subjects(read_index(folder / "out/index.csv"), progress=False)
    assert problems == []
    return subject


@pytest.mark.parametrize("kind", ["ringing", "zscore"])
def test_prepared_brains_are_seen_and_not_saturated(kind, tmp_path, capsys):
    """The view is the brain, 40 % of the box, and says what became of the intensities."""
    tissue, inside = brain()
    image = scores(tissue, inside) if kind == "zscore" else np.where(inside, tissue, 0)
    if kind == "ringing":
        image[np.roll(inside, 1, 0) & ~inside] = -60
    subject = prepared(tmp_path, {"t2": image, "cet1": 2 * image})
    assert subject.fov.sum() == inside.sum()
    for volume in subject.images.values():
        assert (volume[subject.fov] == 1).mean() < 0.01
    said = capsys.readouterr().out
    assert said.count("Note: case p: ") == 2


def test_cysts_are_in_the_fan(tmp_path):
    """Exactly 0 within the fan: in view, with an intensity of 0; outside stays outside."""
    i, j = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    fan = (np.abs(i - 20) < 6 + 0.45 * j) & (np.hypot(i - 20, j + 10) < 44)
    us = np.where(fan, np.random.default_rng(0).integers(5, 200, fan.shape), 0)
    cyst = np.hypot(i - 20, j - 20) < 6
    us[cyst] = 0
    subject = prepared(tmp_path, {"us": np.repeat(us[..., None], 3, 2)}, (1.5, 1.5, 3.0))
    assert subject.fov.sum() == 3 * fan.sum()
    dark = subject.images["us"][subject.fov] == -1
    assert dark.sum() >= 3 * cyst.sum()

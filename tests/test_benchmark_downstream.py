"""The downstream benchmark segments, registers, and says so when it cannot compare."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.downstream import registration, segmentation
from benchmarks.downstream.registration import BINS, draw_motion, move, score_registration
from examples.medical_mri_us.data import Subject, load_subject, read_index
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import cached_dataset

SPACING = (2.0, 1.5, 1.5)


def subject(name="a", seed=0, modalities=MODALITIES, shape=(8, 64, 64)):
    """Blobs of several sizes in all modalities, another contrast in each, and a round tumour."""
    rng = np.random.default_rng(seed)
    depth, lateral = np.mgrid[: shape[1], : shape[2]] / shape[1]
    fov = np.broadcast_to(depth > 0.6 * np.abs(lateral - 0.5), shape).copy()
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (1, 3, 3))
    smooth = np.tanh(smooth / smooth.std())
    tumour = np.hypot(depth - 0.5, lateral - 0.55) < 0.15
    images = {}
    for m in modalities:
        contrast = {"us": np.abs(smooth) - 0.5, "t2": smooth}.get(m, -smooth)
        images[m] = np.where(fov, contrast * 0.8 + 0.4 * tumour, -1).clip(-1, 1).astype("f4")
    label = np.broadcast_to(np.where(tumour, 1, 0), shape).astype(np.uint8) * fov
    return Subject(name, images, fov, label.astype(np.uint8), spacing=SPACING)


def points(rng, count=25):
    return np.array(SPACING) * (rng.uniform(size=(count, 3)) * [6, 24, 24] + [1, 25, 20])


@pytest.mark.parametrize("limits", BINS)
def test_motion_displaces_landmarks_by_what_the_bin_says_and_is_smooth(limits):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        where = points(rng)
        motion = draw_motion(rng, where, (96, 96), limits)
        moved = motion.forward(where)
        mean = np.linalg.norm(moved - where, axis=1).mean()
        assert limits[0] - 1e-2 <= mean <= limits[1] + 1e-2
        assert np.allclose(moved + motion.displacement(moved), where, atol=1e-6)
        assert np.array_equal(moved[:, 0], where[:, 0])  # within slices
        step = 1e-3
        jacobian = [
            (motion.displacement(where + step * np.eye(3)[a]) - motion.displacement(where)) / step
            for a in (1, 2)
        ]
        matrix = np.eye(2) + np.stack(jacobian, axis=-1)[:, 1:, :]
        assert np.linalg.det(matrix).min() > 0.3  # nothing folds


def test_bending_is_a_cubic_spline():
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(2, 7, 7))
    motion = registration.Motion(2.0, np.zeros((2, 2)), np.zeros(2), coefficients, np.zeros(2))
    knot = np.array([[3.0, 2 * registration.MESH, registration.MESH]])  # a knot, inside
    weights = np.outer([1, 4, 1], [1, 4, 1]) / 36
    expected = 2 * (coefficients[:, 2:5, 1:4] * weights).sum(axis=(1, 2))
    assert motion.displacement(knot)[0] == pytest.approx([0, *expected])


def test_a_moved_image_shows_points_where_forward_says():
    rng = np.random.default_rng(3)
    centre = np.array([[8.0, 45.0, 50.0]])
    motion = draw_motion(rng, centre, (96, 96), BINS[1])
    grid = np.stack(np.mgrid[:8, :64, :64], -1) * np.array(SPACING)
    blob = np.exp(-(((grid - centre) ** 2).sum(-1)) / (2 * 4.0**2)).astype(np.float32)
    moved = move(2 * blob - 1, motion, SPACING) / 2 + 0.5
    seen = (grid * moved[..., None]).sum((0, 1, 2)) / moved.sum()
    assert np.abs(seen - motion.forward(centre)[0])[1:].max() < 0.4


def test_registration_finds_the_motion_of_the_same_contrast():
    s, rng = subject(), np.random.default_rng(1)
    where = points(rng)
    motion = draw_motion(rng, where, (96, 96), BINS[1])
    rigid = replace(motion, bending=np.zeros_like(motion.bending))
    none = score_registration(s, where, rigid, None, "t2", "correlation")
    assert none.tre == none.initial > 3
    assert not none.diverged
    true = score_registration(s, where, rigid, s.images["t2"], "t2", "correlation")
    assert true.tre < 0.5
    assert true.initial == none.initial
    other = score_registration(s, where, rigid, -s.images["t2"], "t2", "information")
    assert other.tre < 1.5


def test_a_registration_without_result_moves_nothing_and_counts_as_diverged(monkeypatch):
    s, rng = subject(), np.random.default_rng(1)
    where = points(rng)
    motion = draw_motion(rng, where, (96, 96), BINS[1])

    def lost(*arguments, **named):
        raise RuntimeError("All samples map outside moving image buffer.")

    monkeypatch.setattr(registration, "_optimise", lost)
    outcome = score_registration(s, where, motion, s.images["t2"], "t2", "correlation")
    assert outcome.failed
    assert outcome.diverged
    assert outcome.tre == outcome.initial
    worse = registration.Outcome(initial=2.0, tre=2.1, seconds=1.0)
    assert worse.diverged
    assert not replace(worse, tre=1.9).diverged


def test_landmarks_lie_on_the_grid_of_the_subject():
    index = cached_dataset(train=1, test=1, size=32, slices=2, workers=1, progress=False)
    case = read_index(index)[-1]
    s = load_subject(case)
    voxels = registration.landmarks(case, s) / s.spacing
    assert voxels.shape[1] == 3
    assert np.abs(voxels[:, 0] - np.rint(voxels[:, 0])).max() < 1e-2
    halves = np.abs(voxels[:, 1:] * 2 - np.rint(voxels[:, 1:] * 2)).max()
    assert halves < 1e-2  # between two pixels
    whole = np.rint(voxels).astype(int)
    assert s.fov[tuple(whole.T)].all()
    with pytest.raises(ValueError, match=r"'case' should have landmarks"):
        registration.landmarks(replace(case, landmarks=None), s)


def test_dice_and_surface_distance_are_what_their_definitions_say():
    truth = np.zeros((4, 16, 16), dtype=bool)
    truth[1:3, 4:8, 4:8] = True
    found = np.roll(truth, 2, axis=1)
    score = segmentation.score_volume(found, truth, SPACING)
    assert score.dice == pytest.approx(0.5)
    surface = lambda v: v & ~ndimage.binary_erosion(v)
    a, b = (np.argwhere(surface(v)) * np.array(SPACING) for v in (found, truth))
    far = np.linalg.norm(a[:, None] - b[None], axis=-1)
    expected = np.concatenate([far.min(0), far.min(1)]).mean()
    assert score.assd == pytest.approx(expected, abs=1e-5)
    same = segmentation.score_volume(truth, truth, SPACING)
    assert (same.dice, same.assd) == (1.0, 0.0)
    nothing = segmentation.score_volume(np.zeros_like(truth), truth, SPACING)
    assert nothing.dice == 0
    assert np.isnan(nothing.assd)
    with pytest.raises(ValueError, match=r"'truth' should mark a tumour"):
        segmentation.score_volume(truth, np.zeros_like(truth), SPACING)

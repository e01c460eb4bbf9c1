"""Downstream tasks: each measure beside its definition, and what the verb writes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import SPACING, subject
from scipy import ndimage

from examples.medical_mri_us.data import load_subject, read_index
from examples.medical_mri_us.downstream import (
    BINS,
    draw_motion,
    move,
    registration,
    score_registration,
    segmentation,
)
from examples.medical_mri_us.phantom import cached_dataset


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


def test_network_learns_tumours_it_is_shown_and_looks_at_neighbours():
    s = subject(shape=(4, 32, 32))
    shown = replace(s, images={**s.images, "us": np.where(s.label > 0, 0.9, s.images["us"] / 3)})
    slices = segmentation.Examples([shown.images["us"].astype("f4")] * 2, [shown] * 2)
    assert len(slices) == 8
    image, truth = slices[0]
    assert image.shape == (3, 32, 32)
    assert image.min() == -1  # out of view
    assert truth.unique().tolist() == [0, 1]
    network = segmentation.train(slices, steps=60, seed=0)
    found = segmentation.segment(network, shown.images["us"], s.fov)
    assert segmentation.score_volume(found, segmentation.tumour_of(s), SPACING).dice > 0.6
    assert not (found & ~s.fov).any()
    volume = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4)
    stacked = segmentation._between_neighbours(volume).numpy()
    assert np.array_equal(stacked[1], volume)
    assert np.array_equal(stacked[0], volume[[0, 0, 1]])


def test_what_is_learnt_from_is_moved_with_its_outline(monkeypatch):
    s = subject(shape=(2, 32, 32))
    volume = np.where(s.label > 0, 0.5, -0.5).astype("f4")
    slices = segmentation.Examples([volume], [replace(s, fov=np.ones_like(s.fov))])
    torch.manual_seed(0)
    areas = []
    for _ in range(20):
        image, truth = slices[0]
        inside = truth[0] > 0
        areas.append(int(inside.sum()))
        assert image[1][inside].mean() > image[1][~inside].mean() + 0.4
    assert len(set(areas)) > 10  # stretched
    monkeypatch.setattr(segmentation, "_symmetric", lambda: torch.zeros(()))
    monkeypatch.setattr(torch, "rand", lambda size: torch.full(size, 0.9))  # mirrored alone
    image, truth = slices[0]
    torch.testing.assert_close(image, slices.images[0].flip(-1))
    assert torch.equal(truth, slices.truths[0].flip(-1))


def test_oedema_counts_as_tumour_and_what_is_out_of_view_does_not():
    s = subject(shape=(3, 24, 24))
    label, fov = np.zeros(s.fov.shape, dtype=np.uint8), np.zeros_like(s.fov)
    label[:, 4:20, 4:20] = np.arange(1, 5).repeat(4)  # all parts, side by side
    label[:, 10:12, 10:12] = 0  # a hole
    label[:, 12, 20] = 2  # a spike
    fov[:, :12] = True
    found = segmentation.tumour_of(replace(s, label=label, fov=fov))
    expected = np.zeros_like(fov)
    expected[:, 4:12, 4:20] = True
    expected[:, 4, [4, 19]] = False  # corners are rounded
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match=r"'subject' should have labels"):
        segmentation.tumour_of(replace(s, label=None))

"""Slices and volumes as they are looked at: what is on the left of a picture is the right side."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from examples.medical_mri_us.data import axis_codes
from examples.medical_mri_us.display import Turn, sides
from examples.medical_mri_us.evaluation.volumes import _fitted, _placed, _tilt

AXES = [
    "".join(codes)
    for order in itertools.permutations(("LR", "AP", "IS"))
    for codes in itertools.product(*order)
]


def affine_of(axes, spacing=(1.0, 2.0, 3.0)):
    """An affine whose axes of voxels point there."""
    turn = nib.orientations.axcodes2ornt(axes)
    affine = np.zeros((4, 4))
    for k, (axis, sign) in enumerate(turn):
        affine[int(axis), k] = sign * spacing[k]
    affine[:3, 3], affine[3, 3] = (5, -7, 11), 1
    assert axis_codes(affine) == axes
    return affine


def places(affine, shape=(3, 4, 5)):
    """The places of voxels, mm, RAS: (3, rows, columns, slices)."""
    index = np.stack([*np.indices(shape), np.ones(shape)])
    return np.einsum("ab,bijk->aijk", affine, index)[:3]


@pytest.mark.parametrize("axes", AXES)
def test_slices_are_turned_to_radiological_convention(axes):
    turn = Turn.of(axes, probe=False)
    where = np.moveaxis(places(affine_of(axes)), -1, 1)  # (3, slices, rows, columns)
    x, y, z = turn.apply(where)
    down, across = (lambda v: np.diff(v, axis=1)), (lambda v: np.diff(v, axis=2))
    plane = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal"}.get(axes[2], "sagittal")
    if plane == "axial":
        assert (across(x) < 0).all()  # from right to left
        assert (down(y) < 0).all()  # from front to back
    elif plane == "coronal":
        assert (across(x) < 0).all()
        assert (down(z) < 0).all()
    else:
        assert (across(y) < 0).all()
        assert (down(z) < 0).all()
    wanted = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}[plane]
    assert sides(turn.axes) == list(wanted)
    kept = Turn.of(axes, probe=True)
    np.testing.assert_array_equal(kept.apply(where), where)
    assert kept.axes == axes


@pytest.mark.parametrize("axes", AXES)
def test_volumes_are_turned_to_up_back_and_left(axes):
    affine = affine_of(axes)
    slices_first = np.moveaxis(places(affine), -1, 1)
    spacing = np.array([3.0, 1.0, 2.0])  # slices, rows, columns
    x, y, z = (_placed(v, affine, spacing)[0] for v in slices_first)
    apart = _placed(slices_first[0], affine, spacing)[1]
    np.testing.assert_allclose(np.diff(z, axis=0), apart[0])
    np.testing.assert_allclose(np.diff(y, axis=1), -apart[1])
    np.testing.assert_allclose(np.diff(x, axis=2), -apart[2])


def test_volumes_are_halved_until_they_fit():
    volume = np.random.default_rng(0).random((8, 16, 16))
    small, spacing = _fitted(volume, np.array([4.0, 1.0, 1.0]), 300)
    assert small.shape == (8, 4, 8)
    np.testing.assert_allclose(spacing, [4, 4, 2])
    np.testing.assert_allclose(small[0, 0, 0], volume[0, :4, :2].mean())
    whole, _ = _fitted(volume, np.array([4.0, 1.0, 1.0]), volume.size)
    np.testing.assert_array_equal(whole, volume)


def test_the_tilt_is_that_of_the_axis_furthest_away():
    turned = np.eye(4)
    angle = np.radians(12)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert _tilt(turned) == pytest.approx(12)
    assert _tilt(affine_of("PIR")) == pytest.approx(0, abs=1e-6)

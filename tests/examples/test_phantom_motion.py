"""The phantom's brain shift, registration error and landmarks: what is stored is what was done."""

import csv
import io

import numpy as np
import pytest
from numpy.random import default_rng
from scipy import ndimage

from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import LANDMARK_COLUMNS, TISSUE_NAMES, render_patient
from examples.medical_mri_us.phantom.landmarks import place_landmarks
from examples.medical_mri_us.phantom.motion import random_misalignment, random_shift
from examples.medical_mri_us.phantom.probe import ProbeGrid, choose_pose
from examples.medical_mri_us.phantom.tissues import tissue_index

pytestmark = pytest.mark.slow

SHIFT, ERROR = 6.0, 4.0


@pytest.fixture(scope="module")
def shifted(brain):
    return render_patient(1, brain, slices=4, brain_shift_mm=SHIFT)


@pytest.fixture(scope="module")
def misaligned(brain):
    return render_patient(1, brain, slices=4, misalign_mm=ERROR)


@pytest.fixture(scope="module")
def both(brain):
    return render_patient(1, brain, slices=4, brain_shift_mm=SHIFT, misalign_mm=ERROR)


def grid_of(seed):
    rng = default_rng(seed)
    contact = rng.normal(0, 30, 3).astype(np.float32)
    pose = choose_pose(rng, contact, contact + rng.normal(0, 1, 3))
    return ProbeGrid(contact, pose, 32, 3.0, 8, 2.0)


def numerical_jacobian(motion, points, step=1e-3):
    columns = [
        (motion.to_head(points + step * axis) - motion.to_head(points - step * axis)) / (2 * step)
        for axis in np.eye(3)[:, :, None]
    ]
    return np.linalg.det(np.moveaxis(np.stack(columns, axis=1), -1, 0))


# Motion


@pytest.mark.parametrize("size", [1.0, 6.0, 15.0])
def test_shifts_have_their_size_do_not_fold_and_can_be_inverted(size):
    inward = 0
    for seed in range(12):
        grid = grid_of(seed)
        points = grid.points().reshape(3, -1).astype(np.float64)
        shift = random_shift(default_rng(seed), grid.contact, grid.directions[:, 0], points, size)
        moved = shift.displacement(points)
        assert np.linalg.norm(moved, axis=0).max() == pytest.approx(size)
        assert np.linalg.norm(moved, axis=0).min() < 0.8 * size
        assert shift.from_head(shift.to_head(points)) == pytest.approx(points, abs=1e-3)
        jacobian = numerical_jacobian(shift, points[:, ::5])
        assert jacobian.min() > 0
        assert shift.min_jacobian(points[:, ::5]) == pytest.approx(jacobian.min(), abs=1e-5)
        inward += grid.directions[:, 0] @ moved[:, np.linalg.norm(moved, axis=0).argmax()] > 0
    assert 6 <= inward <= 11  # it mostly sinks in, and sometimes bulges out


def test_a_violent_shift_is_reported_as_folded():
    grid = grid_of(0)
    points = grid.points().reshape(3, -1)
    shift = random_shift(default_rng(0), grid.contact, grid.directions[:, 0], points, 150.0)
    assert shift.min_jacobian(points) < 0


@pytest.mark.parametrize("size", [0.5, 4.0, 20.0])
def test_misalignments_are_rigid_and_have_their_size(size):
    turned = []
    for seed in range(12):
        points = grid_of(seed).points().reshape(3, -1).astype(np.float64)
        motion = random_misalignment(default_rng(seed), points, size)
        assert motion.rotation @ motion.rotation.T == pytest.approx(np.eye(3), abs=1e-12)
        assert np.linalg.det(motion.rotation) == pytest.approx(1)
        moved = motion.to_head(points) - points
        assert np.sqrt((moved**2).sum(0).mean()) == pytest.approx(size, rel=1e-6)
        assert motion.from_head(motion.to_head(points)) == pytest.approx(points, abs=1e-9)
        turned.append(np.linalg.norm(motion.translation) / size)
    assert max(turned) <= 1
    assert min(turned) < 0.95  # the rest is rotation


# Patients


def test_a_shift_moves_the_ultrasound_alone(patients, shifted):
    still = patients[1]
    assert still.displacement is None
    assert still.info["brain_shift"] is None
    for name in MODALITIES:
        assert np.array_equal(still.images[name], shifted.images[name]) == (name != "us")
    assert np.array_equal(still.tumour, shifted.tumour_mr)
    assert not np.array_equal(still.tumour, shifted.tumour)
    length = np.linalg.norm(shifted.displacement, axis=0)
    assert length[shifted.fov].max() == pytest.approx(SHIFT, rel=1e-4)
    assert shifted.info["brain_shift"]["largest_mm"] == SHIFT
    assert shifted.info["brain_shift"]["min_jacobian"] > 0


def test_a_misalignment_moves_the_mr_alone(patients, misaligned):
    still = patients[1]
    assert np.array_equal(still.images["us"], misaligned.images["us"])
    assert np.array_equal(still.tumour, misaligned.tumour)
    assert np.array_equal(still.tissue, misaligned.tissue)
    for name in ("t2", "cet1", "flair"):
        assert not np.array_equal(still.images[name], misaligned.images[name])
    assert not np.array_equal(still.tumour, misaligned.tumour_mr)
    moved = misaligned.displacement[:, misaligned.fov]
    assert np.sqrt((moved**2).sum(0).mean()) == pytest.approx(ERROR, rel=0.02)


def test_the_displacement_undoes_the_motion(both):
    """T2 pulled back by the stored truth fits the tissues of the ultrasound; as it is, not."""
    voxels = np.stack(np.meshgrid(*map(np.arange, both.fov.shape), indexing="ij")).astype(float)
    inverse = np.linalg.inv(both.affine[:3, :3])
    there = voxels + np.einsum("ij,j...->i...", inverse, both.displacement)
    limits = np.array(both.fov.shape).reshape(3, 1, 1, 1) - 1
    usable = both.fov & np.all((there >= 0) & (there <= limits), axis=0)
    for modality in ("t2", "cet1"):
        image = both.images[modality]
        undone = ndimage.map_coordinates(image, there, order=1)
        usable &= undone > 0
        spread = {}
        for name, volume in (("undone", undone), ("as it is", image)):
            groups = [volume[usable & (both.tissue == t)] for t in np.unique(both.tissue)[1:]]
            within = sum(len(g) * g.var() for g in groups if len(g))
            spread[name] = within / (usable & (both.tissue > 0)).sum() / volume[usable].var()
        assert spread["undone"] < 0.75 * spread["as it is"]


# Landmarks


def test_landmarks_lie_on_borders_well_inside_the_view(patients, both):
    for patient in (*patients, both):
        assert len(patient.landmarks) == patient.info["landmarks"] == 25
        inner = np.stack(
            [ndimage.distance_transform_edt(np.pad(p, 1))[1:-1, 1:-1] for p in patient.fov.T]
        ).T
        inverse = np.linalg.inv(patient.affine)
        for points in (patient.landmarks.us, patient.landmarks.mr):
            voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
            nearest = np.rint(voxels + 1e-6).astype(int)
            assert np.all(inner[tuple(nearest.T)] > 4)
        voxels = patient.landmarks.us @ inverse[:3, :3].T + inverse[:3, 3]
        sides = [np.rint(voxels + nudge).astype(int) for nudge in (-0.25, 0.25)]
        labels = np.stack([patient.tissue[tuple(side.T)] for side in sides], axis=1)
        assert np.all(labels > 0)
        assert np.all(labels[:, 0] != labels[:, 1])
        for pair, border in zip(labels, patient.landmarks.border, strict=True):
            assert border == "/".join(TISSUE_NAMES[label - 1] for label in pair)


def test_landmarks_are_spread_out(patients):
    for patient in patients:
        points = patient.landmarks.us
        distance = np.linalg.norm(points[:, None] - points[None], axis=2)
        assert (distance + 99 * np.eye(len(points))).min() > 4
        assert np.ptp(points, axis=0).max() > 40


def test_landmarks_correspond(patients, shifted, misaligned, both):
    assert np.array_equal(patients[1].landmarks.us, patients[1].landmarks.mr)
    for patient in (shifted, misaligned, both):
        marks = patient.landmarks
        voxels = (marks.us - patient.affine[:3, 3]) @ np.linalg.inv(patient.affine[:3, :3]).T
        expected = np.stack(
            [
                ndimage.map_coordinates(component, voxels.T, order=1, mode="nearest")
                for component in patient.displacement
            ]
        )
        moved = marks.mr - marks.us
        assert moved == pytest.approx(expected.T, abs=0.02)
        assert np.linalg.norm(moved, axis=1).max() > 1


def test_landmarks_in_a_file(shifted):
    rows = list(csv.DictReader(io.StringIO(shifted.landmarks.to_csv())))
    assert tuple(rows[0]) == LANDMARK_COLUMNS
    assert [row["landmark"] for row in rows] == [str(i) for i in range(25)]
    for space in ("us", "mr"):
        read = [[float(row[f"{axis}_{space}"]) for axis in "xyz"] for row in rows]
        assert read == pytest.approx(getattr(shifted.landmarks, space), abs=1e-4)


def test_where_there_are_no_borders_there_are_no_landmarks():
    tissue = np.full((32, 32, 2), 1 + tissue_index("white_matter"), dtype=np.uint8)
    fov = np.ones(tissue.shape, dtype=bool)
    assert len(place_landmarks(default_rng(0), tissue, fov, np.eye(4))) == 0
    tissue[16:, 10:12] = 1 + tissue_index("csf")
    marks = place_landmarks(default_rng(0), tissue, fov, np.eye(4))
    assert 0 < len(marks) <= 25
    assert set(marks.border) == {"white_matter/csf", "csf/white_matter"}
    fov[:] = False
    assert len(place_landmarks(default_rng(0), tissue, fov, np.eye(4))) == 0

"""Where voxels lie, through every format, and what is looked up there."""

import gzip
import json

import layouts
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from examples.medical_mri_us.data import (
    Grid,
    Image,
    ImageError,
    TargetSlices,
    axis_codes,
    batch_targets,
    check_training,
    load_subjects,
    missingness_table,
    normalise,
    read_image,
    read_index,
    reorient,
    resample,
    same_grid,
    write_image,
)
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.subcommands.check import Check, run

angles = st.floats(-180, 180)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def oblique(seed, shape, spacing=(0.7, 1.1, 2.3)):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = rng.normal(0, 40, 3)
    return Image(rng.normal(100, 30, shape).astype(np.float32), affine)


@given(
    seed=st.integers(0, 10**6), shape=shapes, axes=st.sampled_from(["RAS", "LPS", "SRA", "AIL"])
)
def test_turning_is_undone_and_moves_nothing(seed, shape, axes):
    image = oblique(seed, shape)
    turned = reorient(image, axes)
    assert axis_codes(turned.affine) == axes
    back = reorient(turned, axis_codes(image.affine))
    np.testing.assert_array_equal(back.data, image.data)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-10)
    # each voxel of the turned image lies where the same voxel lay
    index = np.random.default_rng(seed).integers(0, turned.data.shape)
    place = turned.affine @ [*index, 1]
    i, j, k = np.rint(np.linalg.solve(image.affine, place)[:3]).astype(int)
    assert turned.data[tuple(index)] == image.data[i, j, k]


@pytest.mark.parametrize("axes", ["RAR", "RA", "ras", "RAX", ""])
def test_axes_that_are_none_are_named(axes):
    with pytest.raises(ValueError, match=r"'axes' should name one each of R or L"):
        reorient(oblique(0, (2, 2, 2)), axes)


@given(seed=st.integers(0, 10**6), shape=shapes, order=st.sampled_from([0, 1, 3]))
def test_an_image_on_its_own_grid_is_itself(seed, shape, order):
    """To the edge: rounding errors of places beyond it by 1e-15 are no reason for zeros."""
    image = oblique(seed, shape)
    np.testing.assert_allclose(resample(image, Grid.of(image), order), image.data, rtol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_resampling_is_that_of_simpleitk(seed, order):
    """Half-voxel edges included, on oblique grids, through an affine map."""
    image = oblique(seed, (11, 12, 9), (1.0, 1.2, 1.5))
    grid = Grid((9, 10, 8), layouts.placed((9, 10, 8), (1.3, 1.1, 1.7), (5, 20, -9), [0, 0, 0]))
    middle = image.affine @ [5, 5.5, 4, 1]
    grid.affine[:3, 3] += middle[:3]
    through = np.eye(4)
    through[:3, :3] = layouts.rotation(4, -3, 6) @ np.diag([1.05, 0.97, 1.02])
    through[:3, 3] = middle[:3] - through[:3, :3] @ middle[:3] + [0.7, -0.4, 0.2]
    lps = layouts.TO_RAS
    target = layouts.itk(np.zeros(grid.shape, np.float32), lps @ grid.affine)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            layouts.itk(image.data, lps @ image.affine),
            target,
            layouts.itk_affine(lps @ through @ lps),
            sitk.sitkLinear if order else sitk.sitkNearestNeighbor,
            0.0,
        )
    ).T
    found = resample(image, grid, order, through=through)
    assert 0.3 < (expected != 0).mean() < 1
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_edges_reach_half_a_voxel():
    image = Image(np.array([5, 7], np.float32).reshape(2, 1, 1), np.eye(4))
    affine = np.diag([0.25, 1, 1, 1.0])
    affine[0, 3] = -0.75
    found = resample(image, Grid((11, 1, 1), affine)).ravel()
    np.testing.assert_allclose(found, [0, 5, 5, 5, 5.5, 6, 6.5, 7, 7, 7, 0])


def test_grids_are_compared_at_their_corners():
    a = Grid.of(oblique(0, (100, 100, 50)))
    assert same_grid(a, a)
    turned = a.affine.copy()
    turned[:3, 0] += 2e-5  # next to nothing for a voxel, but 2 micrometres at the far corner
    assert not same_grid(a, Grid(a.shape, turned))
    assert same_grid(a, Grid(a.shape, turned), tolerance_mm=0.01)
    assert not same_grid(a, Grid((100, 100, 49), a.affine))
    assert (
        str(Grid((4, 5, 6), np.diag([-0.5, 0.5, 2, 1]))) == "4 x 5 x 6 of 0.5 x 0.5 x 2 mm (LAS)"
    )


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "dicom"])
def test_formats_agree(tmp_path, name):
    image = oblique(5, (6, 7, 5))
    stored = np.rint(image.data).astype(np.int16)
    path = tmp_path / name
    lps = layouts.TO_RAS @ image.affine
    if name == "dicom":
        if np.linalg.det(lps[:3, :3]) < 0:
            pytest.fail("slices of DICOM are stacked along the normal")
        layouts.write_slices(path, stored, lps, Modality="MR")
    elif ".nii" in name:
        write_image(path, stored, image.affine, dtype="int16")
    else:
        sitk.WriteImage(layouts.itk(stored, lps), str(path))
    found = read_image(path)
    np.testing.assert_array_equal(found.data, stored)
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-4 if name == "dicom" else 1e-5)
    assert found.data.dtype == np.float32


@pytest.mark.parametrize("kind", ["patient", "volume", "simple"])
def test_frames_say_where_they_lie_in_three_ways(tmp_path, kind):
    affine = layouts.placed((6, 7, 5), (0.7, 1.1, 2.3), (10, 20, -15), [3, 4, 5])
    data = np.arange(210, dtype=np.uint8).reshape(6, 7, 5)
    path = tmp_path / "us" / "1.dcm"
    layouts.write_frames(path, data, affine, Modality="US", PatientID="a")
    file = pydicom.dcmread(path)
    shared, own = file.SharedFunctionalGroupsSequence[0], file.PerFrameFunctionalGroupsSequence
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    if kind == "volume":
        shared.PlaneOrientationVolumeSequence = [layouts.item(ImageOrientationVolume=orientation)]
        del shared.PlaneOrientationSequence
        for frame in own:
            position = [float(n) for n in frame.PlanePositionSequence[0].ImagePositionPatient]
            frame.PlanePositionVolumeSequence = [layouts.item(ImagePositionVolume=position)]
            del frame.PlanePositionSequence
    elif kind == "simple":
        file.ImageOrientationPatient = orientation
        file.ImagePositionPatient = own[-1].PlanePositionSequence[0].ImagePositionPatient
        file.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
        file.SpacingBetweenSlices = "2.3"
        file.PixelData = np.ascontiguousarray(data.transpose(2, 1, 0)).tobytes()
        del file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence
    file.save_as(path)
    found = read_image(tmp_path / "us")
    np.testing.assert_array_equal(found.data, data)
    np.testing.assert_allclose(found.affine, layouts.TO_RAS @ affine, atol=1e-4)
    if kind == "simple":
        del file.SpacingBetweenSlices
        file.save_as(path)
        with pytest.raises(ImageError, match="it does not say where it lies"):
            read_image(tmp_path / "us")


def test_a_second_nifti_is_read(tmp_path):
    image = oblique(1, (3, 4, 5))
    nib.Nifti2Image(image.data, image.affine).to_filename(tmp_path / "a.nii.gz")
    found = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.data, image.data)
    np.testing.assert_allclose(found.affine, image.affine)


@pytest.mark.parametrize("kind", ["<c8", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_no_numbers_are_refused(tmp_path, kind):
    nib.Nifti1Image(np.zeros((2, 2, 2), kind), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="not plain numbers"):
        read_image(tmp_path / "a.nii")


def test_colours_and_damage_in_nrrd_are_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2, 3), "u1"), isVector=True), str(path))
    with pytest.raises(ImageError, match="3 numbers per voxel; save one volume per file"):
        read_image(path)
    layouts.write_nrrd(path, layouts.ultrasound((9, 9, 9), np.eye(4)), np.eye(4))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImageError, match=r"a\.nrrd cannot be read: .*; copy or export it again"):
        read_image(path)


def test_any_damage_to_a_header_is_an_image_error(tmp_path):
    """Random bytes anywhere: a usable image or an ImageError, and nothing else."""
    rng = np.random.default_rng(0)
    whole = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes()
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, 352, rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.nii").write_bytes(bytes(damaged))
        try:
            image = read_image(tmp_path / "a.nii")
        except ImageError as error:
            refused += "a.nii" in str(error)
        else:
            assert image.data.ndim == 3
            assert np.isfinite(image.data).all()
    assert refused > 50


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write_image(path, np.ones((2, 2, 2)), np.eye(4))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_image(path, np.zeros((2, 2, 2)), np.eye(4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_image_is_the_same_file(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_image(tmp_path / name, np.ones((2, 2, 2)), np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert nib.load(tmp_path / "a.nii.gz").header.get_xyzt_units()[0] == "mm"
    gzip.decompress((tmp_path / "a.nii.gz").read_bytes())


def test_ultrasound_on_another_scale_is_refused():
    fov = np.ones(3, bool)
    for level in (0.9, 256):
        with pytest.raises(ValueError, match=r"'image' should be ultrasound in 0 to 255"):
            normalise(np.array([0, 0.1, level], np.float32), fov, "us")
    other = normalise(np.array([0, 50, 100], np.float32), fov, "pet")
    assert other.tolist() == pytest.approx([-1, 2 * 0.4 * 50 / 75 - 1, 2 * 0.4 * 100 / 75 - 1])


@pytest.fixture
def harmonised(tmp_path):
    """Two cases of modalities "us" and "pet"; the first one has a target for the second one."""
    rng = np.random.default_rng(0)
    affine = np.diag([1.5, 1.5, 2, 1])
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        for name in ("us", "pet", "h"):
            data = rng.integers(0, 200, (8, 8, 3)).astype(np.uint8)
            data[:2], data[:, 0] = 0, 0
            write_image(tmp_path / case / f"{name}.nii.gz", data, affine, dtype="uint8")
    (tmp_path / "index.csv").write_text(
        "case,split,us,pet,target_pet\n"
        "a,train,a/us.nii.gz,a/pet.nii.gz,a/h.nii.gz\n"
        "b,train,,b/pet.nii.gz,\n"
    )
    return tmp_path / "index.csv"


def test_targets_stand_in_for_images(harmonised):
    cases = read_index(harmonised, ("us", "pet"))
    subjects, problems = load_subjects(cases, progress=False)
    assert problems == []
    a, b = subjects
    assert a.spacing == (2, 1.5, 1.5)
    np.testing.assert_array_equal(a.affine, np.diag([1.5, 1.5, 2, 1]))
    raw = {n: read_image(harmonised.parent / f"a/{n}.nii.gz").data for n in ("us", "pet", "h")}
    assert (a.fov == np.moveaxis(raw["us"] > 0, -1, 0)).all()  # no file says, so ultrasound does
    other = read_image(harmonised.parent / "b/pet.nii.gz").data
    assert (b.fov == np.moveaxis(other != 0, -1, 0)).all()
    expected = np.moveaxis(normalise(raw["h"], raw["us"] > 0, "pet"), -1, 0)
    np.testing.assert_array_equal(a.targets["pet"], expected)

    slices = TargetSlices(subjects, flip=False)
    assert len(slices) == len(slices.weights(0.5)) == 6
    x, targets, observed, fov = batch_targets([slices[1], slices[4]], ("us", "pet"))
    assert observed.tolist() == [[True, True], [False, True]]
    np.testing.assert_array_equal(targets["pet"][0, 0], expected[1])
    np.testing.assert_array_equal(targets["us"][0], x["us"][0])
    np.testing.assert_array_equal(targets["pet"][1], x["pet"][1])
    assert not (targets["pet"][0] == x["pet"][0]).all()
    assert fov.shape == (2, 1, 8, 8)
    flipping, seen = TargetSlices(subjects, flip=True), set()
    for _ in range(20):
        images, moved, inside = flipping[1]
        mirrored = not (inside[0].numpy() == a.fov[1]).all()
        seen.add(mirrored)
        for found, whole in ((images["pet"], a.images), (moved["pet"], a.targets)):
            wanted = whole["pet"][1][:, ::-1] if mirrored else whole["pet"][1]
            np.testing.assert_array_equal(found[0], wanted)
    assert seen == {True, False}


def test_a_target_without_its_image_is_named(harmonised):
    text = harmonised.read_text()
    harmonised.write_text(text.replace("a/pet.nii.gz", ""))
    with pytest.raises(
        ValueError, match=r"line 2: case a has a target for pet, but no such image"
    ):
        read_index(harmonised, ("us", "pet"))


def test_own_modalities_are_checked(harmonised, tmp_path, capsys):
    assert run(Check(harmonised, modalities=("us", "pet"), out=tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "2  3 slices of 8 x 8 voxels, 1.5 x 1.5 mm, 2 mm apart (RAS 2)" in said
    assert "Split train: 2 cases, of which 1 lacks a modality (50 %)." in said
    assert "     1  iUS + pet\n" in said
    table = json.loads((tmp_path / "out" / "missingness.json").read_text())
    assert table == missingness_table(read_index(harmonised, ("us", "pet")), ("us", "pet"))
    assert table["splits"]["train"] == {
        "cases": 2,
        "observed": {"us": 1, "pet": 2},
        "incomplete": 1,
        "patterns": [
            {"observed": [False, True], "cases": 1},
            {"observed": [True, True], "cases": 1},
        ],
    }
    assert (tmp_path / "out" / "missingness.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="has t2, cet1, flair"):
        check_training(read_index(harmonised, ("us", "pet")), MODALITIES)

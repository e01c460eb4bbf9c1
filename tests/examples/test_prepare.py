"""Genuine layouts, in tiny copies: everything lands on the grid of the ultrasound."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from layouts import AFFINE, BLOB, RIGID, TO_RAS, US_AFFINE, US_SHAPE

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import (
    Grid,
    axis_codes,
    load_subjects,
    read_image,
    read_index,
    same_grid,
    store_subjects,
)
from examples.medical_mri_us.data import stored as stored_module
from examples.medical_mri_us.prepare import read_split, read_tag, read_transform
from examples.medical_mri_us.subcommands.check import Check
from examples.medical_mri_us.subcommands.check import run as check
from examples.medical_mri_us.subcommands.prepare import Prepare, run

SPACING, SIZE = 0.8, 40
SETTINGS = {"spacing": SPACING, "size": SIZE}


@pytest.fixture(scope="module")
def remind(tmp_path_factory):
    base = tmp_path_factory.mktemp("remind")
    layouts.write_remind(base / "data", base / "registration")
    code = run(
        Prepare(
            remind=base / "data", transforms=base / "registration", out=base / "out", **SETTINGS
        )
    )
    return base, code


@pytest.fixture(scope="module")
def tcia(tmp_path_factory):
    base = tmp_path_factory.mktemp("tcia")
    layouts.write_tcia(base / "data", base / "registration")
    code = run(
        Prepare(tcia=base / "data", transforms=base / "registration", out=base / "out", **SETTINGS)
    )
    return base, code


@pytest.fixture(scope="module")
def resect(tmp_path_factory):
    base = tmp_path_factory.mktemp("resect")
    layouts.write_resect(base / "data", base / "seg")
    code = run(
        Prepare(resect=base / "data", resect_seg=base / "seg", out=base / "out", **SETTINGS)
    )
    return base, code


def rows(base):
    with (base / "out" / "index.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def record(base):
    return json.loads((base / "out" / "prepare.json").read_text())


def image(base, case, column):
    return read_image(base / "out" / rows(base)[case][column])


def centre(volume, weight):
    """Where the brightest part of a volume has its middle, in voxels."""
    top = np.where(weight, volume.data, 0).astype(float)
    top = np.clip(top - top.max() / 2, 0, None)
    return np.array([(index * top).sum() / top.sum() for index in np.indices(top.shape)])


def in_voxels(volume, place):
    return (np.linalg.inv(volume.affine) @ TO_RAS @ [*place, 1])[:3]


COMPLETE = [
    ("remind", "Case001", ["t2", "cet1", "flair"]),
    ("remind", "Case002", ["cet1", "flair"]),
    ("tcia", "Case001", ["t2", "cet1"]),
    ("tcia", "Case002", ["t2"]),
    ("resect", "Case1", ["flair"]),
    ("resect", "Case12", []),
]


@pytest.mark.parametrize(("release", "case", "present"), COMPLETE)
def test_blobs_coincide(request, release, case, present):
    base, _ = request.getfixturevalue(release)
    row = rows(base)[case]
    assert [m for m in ("t2", "cet1", "flair") if row.get(m)] == present
    us = image(base, case, "us")
    fov = us.data > 0
    expected = in_voxels(us, BLOB)
    for m in ("us", *present):
        volume = image(base, case, m)
        assert same_grid(Grid.of(volume), Grid.of(us))
        assert np.abs(centre(volume, fov) - expected).max() < 0.5
        assert volume.data.min() >= 0  # the minimum is subtracted


@pytest.mark.parametrize("release", ["remind", "tcia", "resect"])
def test_the_grid_is_that_of_the_ultrasound(request, release):
    base, _ = request.getfixturevalue(release)
    for case in rows(base):
        us = image(base, case, "us")
        assert us.data.shape[:2] == (SIZE, SIZE)
        assert Grid.of(us).spacing == pytest.approx([SPACING] * 3, rel=1e-6)
        axes = us.affine[:3, :3] / SPACING
        found = TO_RAS[:3, :3] @ US_AFFINE[:3, :3] / 0.9
        np.testing.assert_allclose(axes, found, atol=1e-6)
        fov = image(base, case, "fov").data
        assert (fov == (us.data > 0)).all()
        shown = fov.any(axis=(0, 1))
        assert shown[0]
        assert shown[-1]  # cropped to what is shown
        assert shown.sum() == pytest.approx((US_SHAPE[2] - 3) * 0.9 / SPACING, abs=2)


def test_ultrasound_keeps_its_values(remind):
    us = image(remind[0], "Case001", "us")
    raw = layouts.ultrasound(US_SHAPE, US_AFFINE)
    grid = layouts.itk(raw.astype(np.float32), US_AFFINE)
    np.testing.assert_allclose(us.data, oracle(grid, us, sitk.Transform()), atol=0.02)


def oracle(source, like, transform):
    """What SimpleITK resamples, on the grid of one of our images."""
    target = layouts.itk(np.zeros(like.data.shape, np.float32), TO_RAS @ like.affine)
    found = sitk.Resample(source, target, transform, sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(found).T


@pytest.mark.parametrize("case", ["Case001", "Case002"])
def test_transforms_chain_as_simpleitk_would_apply_them(remind, case):
    """Q from another MR to the reference, A from the reference to ultrasound: both inverted."""
    base, _ = remind
    name = f"{case}-preop-MR-3D_SAG_T2_FLAIR"
    (affine,) = (base / "registration" / "affine" / case).glob("*.tfm")
    (rigid,) = (base / "registration" / "rigid" / case).glob(f"*-to-{name}.tfm")
    chain = sitk.CompositeTransform(3)
    chain.AddTransform(sitk.ReadTransform(str(rigid)).GetInverse())
    chain.AddTransform(sitk.ReadTransform(str(affine)).GetInverse())
    source = sitk.ReadImage(str(base / "data/nrrd" / case / "Preop-MR" / f"{name}.nrrd"))
    source = sitk.Cast(source - float(sitk.GetArrayFromImage(source).min()), sitk.sitkFloat32)
    found = image(base, case, "flair")
    expected = oracle(source, found, chain)
    assert expected.max() > 300
    np.testing.assert_allclose(found.data, expected, atol=0.5)


def test_transforms_are_read_composite_ones_too(tmp_path):
    layouts.write_tfm(tmp_path / "a.tfm", AFFINE)
    layouts.write_tfm(tmp_path / "b.tfm", AFFINE, composite=True)
    assert "CompositeTransform" in (tmp_path / "b.tfm").read_text()
    for name in ("a.tfm", "b.tfm"):
        np.testing.assert_allclose(
            TO_RAS @ read_transform(tmp_path / name) @ TO_RAS, AFFINE, atol=1e-9
        )
    (tmp_path / "c.tfm").write_text("no transform")
    with pytest.raises(ValueError, match=r"c\.tfm cannot be read as a transform"):
        read_transform(tmp_path / "c.tfm")
    bent = sitk.BSplineTransform(3)
    bent.SetTransformDomainPhysicalDimensions([400.0] * 3)
    bent.SetTransformDomainOrigin([-100.0] * 3)
    bent.SetTransformDomainMeshSize([2, 2, 2])
    bent.SetParameters(np.random.default_rng(0).normal(size=len(bent.GetParameters())).tolist())
    sitk.WriteTransform(bent, str(tmp_path / "d.tfm"))
    with pytest.raises(ValueError, match=r"should be an affine transform, but bends space"):
        read_transform(tmp_path / "d.tfm")


def test_one_case_that_fails_does_not_stop_the_others(remind, capsys):
    base, code = remind
    assert code == 1
    assert list(rows(base)) == ["Case001", "Case0010", "Case002"]
    about = record(base)
    assert list(about["failed"]) == ["Case003"]
    assert "there should be one affine transform" in about["failed"]["Case003"]
    assert not (base / "out" / "Case003").exists()
    assert not list((base / "out").glob(".partial*"))


def test_the_finest_registered_series_is_taken(remind):
    about = record(remind[0])["cases"]["Case001"]
    assert about["from"]["cet1"].endswith("3D_AX_T1_postcontrast-r.nrrd")
    assert about["notes"] == ["Case001-preop-MR-3D_COR_T1_postcontrast.nrrd has no transform"]
    for case in record(remind[0])["cases"].values():
        assert not any("2D_" in name or "MP2RAGE" in name for name in case["from"].values())


@pytest.mark.parametrize(("release", "case"), [("remind", "Case001"), ("tcia", "Case001")])
def test_labels_keep_their_values_and_places(request, release, case):
    base, _ = request.getfixturevalue(release)
    label = image(base, case, "label")
    assert set(np.unique(label.data)) == {0, 1, 2}
    place = TO_RAS @ label.affine
    moved = np.linalg.inv(RIGID) @ np.linalg.inv(AFFINE) @ place
    expected = layouts.ball(label.data.shape, moved, layouts.OTHER_BLOB)
    inside = expected > 0
    assert 2 * ((label.data > 0) & inside).sum() / ((label.data > 0).sum() + inside.sum()) > 0.93
    core = expected == 2
    assert 2 * ((label.data == 2) & core).sum() / ((label.data == 2).sum() + core.sum()) > 0.85


def test_what_has_no_annotation_has_an_empty_cell(remind, tcia, resect):
    for base, case in ((remind[0], "Case002"), (tcia[0], "Case002"), (resect[0], "Case12")):
        assert rows(base)[case]["label"] == ""
    assert set(np.unique(image(resect[0], "Case1", "label").data)) == {0, 1}


def test_prepared_cases_load_with_their_missing_bits(remind, monkeypatch):
    """In memory, and from what is stored beside them, without reading a file of theirs again."""
    cases = read_index(remind[0] / "out" / "index.csv")
    subjects, problems = load_subjects(cases, progress=False)
    assert problems == []
    held = {s.name: set(s.images) for s in subjects}
    assert held["Case001"] == {"us", "t2", "cet1", "flair"}
    assert held["Case002"] == {"us", "cet1", "flair"}
    assert held["Case0010"] == {"us", "t2"}
    monkeypatch.setattr(stored_module, "read_volumes", None)
    stored, _ = store_subjects(cases, remind[0] / "out" / "slices", progress=False)
    for subject, other in zip(subjects, stored, strict=True):
        for k in range(len(subject.fov)):
            for m, image in other.cut(k)[0].items():
                assert np.array_equal(image, subject.images[m][k])
        assert subject.spacing == pytest.approx((SPACING,) * 3, rel=1e-5)
        for volume in subject.images.values():
            assert -1 <= volume.min() < volume.max() <= 1
            assert (volume[~subject.fov] == -1).all()


def test_tables_of_the_release_decide(tmp_path):
    layouts.write_remind(tmp_path / "data", tmp_path / "registration")
    layouts.write_refs(tmp_path / "data")
    case = tmp_path / "registration" / "affine" / "Case001"
    (one,) = case.glob("*.tfm")
    one.with_name(one.name.replace("3D_AX_T2_SPACE", "2D_AX_T2_BLADE")).write_bytes(
        one.read_bytes()
    )
    options = {"remind": tmp_path / "data", "transforms": tmp_path / "registration", **SETTINGS}
    assert run(Prepare(out=tmp_path / "a", **options)) == 1
    about = json.loads((tmp_path / "a" / "prepare.json").read_text())
    assert list(about["failed"]) == ["Case003"]
    assert about["cases"]["Case001"]["label"].endswith("T1_postcontrast-r.nrrd")
    (tmp_path / "data" / "refs_files.csv").unlink()
    run(Prepare(out=tmp_path / "b", **options))
    about = json.loads((tmp_path / "b" / "prepare.json").read_text())
    assert "there are 2" in about["failed"]["Case001"]


def test_splits_name_cases_exactly(tmp_path, capsys):
    file = tmp_path / "split.csv"
    file.write_text(
        "case,split\r\nCase001-,training\r\nCase0010-,inference\r\nCase009-,validation\r\n"
    )
    split = {"Case001": "train", "Case0010": "test", "Case009": "validation"}
    assert read_split(file) == split
    layouts.write_remind(tmp_path / "data", tmp_path / "registration")
    code = run(
        Prepare(
            remind=tmp_path / "data",
            transforms=tmp_path / "registration",
            split=file,
            out=tmp_path / "out",
            **SETTINGS,
        )
    )
    assert code == 1  # Case003 has no transform
    found = rows(tmp_path)
    assert {case: row["split"] for case, row in found.items()} == {
        "Case001": "train",
        "Case0010": "test",
    }
    said = capsys.readouterr().out
    assert "Left out: case Case009: the split names it, but there are no data of it." in said
    assert "Left out: case Case002: the split does not name it." in said
    for text, message in (
        ("case,fold\na,b\n", r"columns case and split, but has \['case', 'fold'\]"),
        ("case,split\na-,training\na,inference\n", r"line 3: case a stands twice"),
        ("case,split\na,\n", r"line 2: lacks a case or a split"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_split(file)


def test_dicom_is_told_apart_by_tags(tcia):
    base, code = tcia
    assert code == 0
    about = record(base)["cases"]
    assert list(about) == ["Case001", "Case002"]
    assert "'3D_AX_T1_postcontrast'" in about["Case001"]["from"]["cet1"]
    assert {row["patient"] for row in rows(base).values()} == {"ReMIND-001", "ReMIND-002"}


def test_without_transforms_dicom_lies_as_it_says(tmp_path, capsys):
    layouts.write_tcia(tmp_path / "data")
    assert run(Prepare(tcia=tmp_path / "data", out=tmp_path / "out", **SETTINGS)) == 0
    assert "no transforms: coordinates are taken as they are" in capsys.readouterr().out
    t2 = image(tmp_path, "Case001", "t2")
    assert np.abs(centre(t2, t2.data > 0) - in_voxels(t2, layouts.REFERENCE_BLOB)).max() < 0.5


def test_landmarks_are_pairs_of_points(resect, tmp_path):
    base, code = resect
    assert code == 0
    for case in ("Case1", "Case12"):
        with (base / "out" / rows(base)[case]["landmarks"]).open() as file:
            found = list(csv.DictReader(file))
        mr = [[float(row[f"{axis}_mr"]) for axis in "xyz"] for row in found]
        us = [[float(row[f"{axis}_us"]) for axis in "xyz"] for row in found]
        np.testing.assert_array_equal(np.stack([mr, us], axis=1), layouts.TAGS)
    layouts.write_tag(tmp_path / "a.tag")
    np.testing.assert_array_equal(read_tag(tmp_path / "a.tag"), layouts.TAGS)
    text = (tmp_path / "a.tag").read_text()
    for broken, message in (
        ("", "MNI tag file with points"),
        (text.replace("Volumes = 2", "Volumes = 1"), "two volumes, but has 1"),
        (text.replace("-1.5", "x"), "a line that is no point"),
        (text.replace("-1.5 2.25", ""), "no pair of points"),
    ):
        (tmp_path / "b.tag").write_text(broken)
        with pytest.raises(ValueError, match=message):
            read_tag(tmp_path / "b.tag")


def test_another_modality_of_resect(tmp_path):
    layouts.write_resect(tmp_path / "data", tmp_path / "seg")
    code = run(
        Prepare(
            resect=tmp_path / "data",
            out=tmp_path / "out",
            modalities=("us", "t1", "flair"),
            **SETTINGS,
        )
    )
    assert code == 0
    (case,) = [
        c
        for c in read_index(tmp_path / "out" / "index.csv", ("us", "t1", "flair"))
        if c.name == "Case12"
    ]
    assert list(case.images) == ["us", "t1"]
    assert case.split == "test"


@pytest.fixture
def own(tmp_path):
    """Two cases on grids that differ: NIfTI and NRRD, then DICOM and without ultrasound."""
    us = layouts.ultrasound(US_SHAPE, US_AFFINE)
    layouts.write_nifti(tmp_path / "a" / "us.nii.gz", us, US_AFFINE)
    t2, affine = layouts.mr((34, 30, 40), (1.1, 1.3, 0.9), (-12, 4, 7), BLOB)
    layouts.write_nrrd(tmp_path / "a" / "t2.nrrd", t2, affine)
    layouts.write_nifti(tmp_path / "a" / "h.nii", (t2 + 120) / np.float32(900), affine)
    layouts.write_nifti(
        tmp_path / "a" / "label.nii.gz", layouts.ball(US_SHAPE, US_AFFINE, BLOB), US_AFFINE
    )
    (tmp_path / "a" / "marks.csv").write_text("landmark,x_us\n1,2\n")
    layouts.write_slices(tmp_path / "b" / "t2", t2, affine, Modality="MR", PatientID="b")
    layouts.write_nifti(tmp_path / "b" / "flair.nii.gz", t2, affine)
    (tmp_path / "index.csv").write_text(
        "case,split,us,t2,flair,label,landmarks,target_t2,patient\n"
        "a,train,a/us.nii.gz,a/t2.nrrd,,a/label.nii.gz,a/marks.csv,a/h.nii,p1\n"
        "b,test,,b/t2,b/flair.nii.gz,,,,p2\n"
    )
    return tmp_path


def test_own_images_are_brought_to_one_grid(own, capsys):
    assert run(Prepare(index=own / "index.csv", out=own / "out", **SETTINGS)) == 0
    assert "case b: without us, its grid is that of t2" in capsys.readouterr().out
    found = rows(own)
    assert {row["patient"] for row in found.values()} == {"p1", "p2"}
    cases = read_index(own / "out" / "index.csv")
    subjects, problems = load_subjects(cases, progress=False)
    assert problems == []
    a, b = subjects
    assert set(a.images) == {"us", "t2"}
    assert set(a.targets) == {"t2"}
    assert set(b.images) == {"t2", "flair"}
    # here the harmonised target is the input on another scale, which normalisation undoes
    np.testing.assert_allclose(a.targets["t2"], a.images["t2"], atol=2e-3)
    assert (own / "out" / found["a"]["landmarks"]).read_text() == "landmark,x_us\n1,2\n"
    us, t2 = image(own, "a", "us"), image(own, "a", "t2")
    assert np.abs(centre(t2, us.data > 0) - in_voxels(us, BLOB)).max() < 0.5


def test_another_reference_can_be_asked_for(own):
    assert (
        run(Prepare(index=own / "index.csv", resample_to="t2", out=own / "out", **SETTINGS)) == 0
    )
    axes = image(own, "a", "us").affine[:3, :3] / SPACING
    raw = read_image(own / "a" / "t2.nrrd").affine[:3, :3]
    np.testing.assert_allclose(axes, raw / np.linalg.norm(raw, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of 'from', 'remind', 'tcia', 'resect' and 'index' should be given, but none is"),
        ({"remind": ".", "tcia": "."}, "but 'remind' and 'tcia' is"),
        ({"remind": "."}, "'transforms' should be given"),
        ({"remind": ".", "transforms": "."}, "should be the folder with affine/ and rigid/"),
        ({"remind": "lost", "transforms": "."}, "'remind' should be a folder"),
        ({"tcia": "."}, "'tcia' should be a folder with DICOM files"),
        ({"resect": "."}, "'resect' should be a folder with NIFTI/CaseN"),
        ({"resect_seg": ".", "tcia": "."}, "'resect_seg' should go with 'resect'"),
        ({"index": "lost.csv"}, "should be an index file"),
        ({"index": "lost.csv", "resample_to": "t1"}, "'resample_to' should be one of us, t2"),
        ({"remind": ".", "transforms": ".", "modalities": ("us", "pet")}, "holds pet"),
        ({"tcia": ".", "spacing": 0.01}, "'spacing' should be a number from 0.1 to 10"),
        ({"tcia": ".", "size": 4}, "'size' should be an integer of at least 8"),
        ({"tcia": ".", "split": "lost.csv"}, "'split' should be a CSV file"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    if "transforms" in options and "modalities" in options:
        (tmp_path / "affine").mkdir()
    (tmp_path / "CaseX").mkdir() if options.get("transforms") else None
    paths = {"remind", "tcia", "resect", "resect_seg", "transforms", "index", "split"}
    options = {k: tmp_path / v if k in paths else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        run(Prepare(out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_in_use_is_left_alone(own):
    with pytest.raises(ValueError, match="'out' should be an empty folder"):
        run(Prepare(index=own / "index.csv", out=own, **SETTINGS))
    assert nib.load(own / "a" / "us.nii.gz").shape == US_SHAPE


@pytest.mark.slow
@pytest.mark.fault(76)
@pytest.mark.parametrize("moment", [0, 1, 2, 3, 4, 6])
def test_what_a_kill_stopped_goes_on_to_the_same_files(moment, own, capsys):
    """Killed for real, as it gives the folder of a case, or of its slices, its name."""
    (own / "index.csv").write_text("case,split,us\na,train,a/us.nii.gz\nc,train,c/us.nii.gz\n")
    shutil.copytree(own / "a", own / "c")
    options = Prepare(index=own / "index.csv", out=own / "out", **SETTINGS)
    assert run(replace(options, out=own / "whole")) == 0
    if (child := os.fork()) == 0:
        renames = iter(range(100))

        def kill(path, target):
            if path.is_dir() and next(renames) == moment // 2:
                if moment % 2:  # as soon as it has its name
                    rename(path, target)
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        rename, Path.rename = Path.rename, kill
        run(options)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (own / "out" / "index.csv").exists()

    for name, value in (("spacing", 1.0), ("size", 48)):
        said = (
            rf"'{name}' should be {getattr(options, name)}, as in what was begun .* but is {value}"
        )
        with pytest.raises(ValueError, match=said):
            run(replace(options, **{name: value}))
    capsys.readouterr()
    assert run(options) == 0
    assert f"where {counted(moment // 4, 'case is', 'cases are')} done" in capsys.readouterr().out
    found, expected = (
        {
            p.relative_to(own / name): p.read_bytes()
            for p in (own / name).rglob("*.*")
            if p.is_file()
        }
        for name in ("out", "whole")
    )
    for files in (found, expected):  # which hold the name of their folder
        files.pop(Path("prepare.json")), files.pop(Path(".lock"))
    assert found == expected
    with pytest.raises(ValueError, match="'out' should be an empty folder"):
        run(options)


def test_nothing_prepared_is_an_error(own, capsys):
    (own / "index.csv").write_text("case,split,us\na,train,a/lost.nii.gz\n")
    assert run(Prepare(index=own / "index.csv", out=own / "out", **SETTINGS)) == 3
    assert "a/lost.nii.gz cannot be read: there is no such file" in capsys.readouterr().err


def test_what_is_broken_in_a_release_is_named(tmp_path):
    """A damaged series, no ultrasound, two patients of one name: each fails, the others do not."""
    layouts.write_remind(tmp_path / "a", tmp_path / "registration")
    folder = tmp_path / "a" / "nrrd"
    broken = folder / "Case001" / "Preop-MR" / "Case001-preop-MR-3D_AX_T2_SPACE.nrrd"
    broken.write_bytes(broken.read_bytes()[:-50])
    shutil.rmtree(folder / "Case002" / "Intraop-US")
    options = {"transforms": tmp_path / "registration", **SETTINGS}
    assert run(Prepare(remind=tmp_path / "a", out=tmp_path / "a-out", **options)) == 1
    failed = json.loads((tmp_path / "a-out" / "prepare.json").read_text())["failed"]
    assert list(failed) == ["Case002", "Case003", "Case001"]
    assert failed["Case001"].startswith(f"{broken} cannot be read")
    assert "there should be one ultrasound" in failed["Case002"]
    assert not list((tmp_path / "a-out").glob(".partial*"))

    layouts.write_tcia(tmp_path / "b", tmp_path / "c")
    options["transforms"] = tmp_path / "c"
    (seg,) = (tmp_path / "b").rglob("303*/1-1.dcm")
    file = pydicom.dcmread(seg)
    del file.PixelData
    file.save_as(seg)
    for slice_ in list((tmp_path / "b").rglob("ReMIND-002/**/*.dcm"))[:3]:
        file = pydicom.dcmread(slice_)
        file.PatientID = "ReMIND-02"
        file.SeriesInstanceUID = "1.2.9"
        file.save_as(slice_)
    assert run(Prepare(tcia=tmp_path / "b", out=tmp_path / "b-out", **options)) == 3
    failed = json.loads((tmp_path / "b-out" / "prepare.json").read_text())["failed"]
    assert failed["Case001"].startswith(f"{seg} cannot be read as a segmentation")
    assert failed["Case002"] == "several patients have this name."


def test_images_that_share_no_place_are_refused(own, capsys):
    image = nib.load(own / "b" / "flair.nii.gz")
    image.affine[:3, 3] += 500
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine).to_filename(
        own / "b" / "flair.nii.gz"
    )
    us = nib.load(own / "a" / "us.nii.gz")
    nib.Nifti1Image(np.asarray(us.dataobj) / np.float32(255), us.affine).to_filename(
        own / "a" / "us.nii.gz"
    )
    assert run(Prepare(index=own / "index.csv", out=own / "out", **SETTINGS)) == 3
    said = capsys.readouterr().err
    assert "flair.nii.gz shows nothing where the reference lies; do they share a world?" in said
    assert "us.nii.gz should be ultrasound in 0 to 255, but lies in 0 to 0." in said


def write_cases(folder, volumes, affine, header="t2"):
    """Writes one image a case, and an index of them."""
    for case, (volume, place) in volumes.items():
        path = folder / case / f"{header}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.Nifti1Image(volume.astype(np.float32), affine if place is None else place).to_filename(
            path
        )
    rows = [f"{case},train,{case}/{header}.nii.gz" for case in volumes]
    (folder / "index.csv").write_text("\n".join([f"case,split,{header}", *rows]) + "\n")
    return folder / "index.csv"


def ellipse(shape, value=500.0):
    i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return np.where((i / 0.7) ** 2 + (j / 0.8) ** 2 < 1, value + 100 * i, 0)


def test_the_grid_holds_what_is_there(tmp_path, capsys):
    """By default, the pixels are the median of the cases, and the widest view fits."""
    small, wide = ellipse((60, 70, 3)), ellipse((90, 116, 4))
    index = write_cases(
        tmp_path,
        {"a": (small, None), "b": (small + 1, None), "c": (wide, None)},
        np.diag([2.0, 2.0, 6.0, 1.0]),
    )
    assert run(Prepare(index=index, out=tmp_path / "out")) == 0
    about = record(tmp_path)
    assert (about["spacing"], about["size"]) == (2.0, 96)  # the ellipse is 92 pixels long
    assert "Slices are 96 x 96 pixels of 2 mm." in capsys.readouterr().out
    for case, volume in (("a", small), ("c", wide)):
        assert about["cases"][case]["cropped"] == 0
        assert (image(tmp_path, case, "t2").data > 0).sum() == (volume > 0).sum()


def test_what_a_size_crops_is_said_case_by_case(tmp_path, capsys):
    wide, small = np.zeros((100, 80, 3)), np.zeros((100, 80, 3))
    wide[10:90, 20:60] = small[30:60, 30:60] = 100
    wide[10, 20:60] = small[30, 30:60] = 90
    index = write_cases(
        tmp_path, {"a": (wide, None), "b": (small, None)}, np.diag([1.0, 1.0, 3.0, 1.0])
    )
    assert run(Prepare(index=index, out=tmp_path / "out", spacing=1.0, size=32)) == 0
    assert record(tmp_path)["cases"]["a"]["cropped"] == pytest.approx(1 - 32 * 32 / (80 * 40))
    assert record(tmp_path)["cases"]["b"]["cropped"] == 0
    said = capsys.readouterr().out
    assert "Note: case a: 68 % of what t2 shows is cropped by the grid, 32 x 32 x 3" in said
    assert "case b: " not in said


def test_slices_of_mr_are_turned_alike(tmp_path):
    """Axial slices, however files are stored; those far apart stay the slices that they are."""
    head = ellipse((20, 30, 16))
    head[:, :, 0] = 0
    sagittal = np.array([[0, 0, 3.0, 0], [3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    thick = np.diag([6.0, 1.0, 1.0, 1.0])
    index = write_cases(
        tmp_path,
        {
            "a": (head, np.diag([3.0, 3.0, 3.0, 1])),
            "b": (2 * head.transpose(1, 2, 0), sagittal),  # axes to A, S, R
            "c": (ellipse((30, 20, 4), 300).transpose(2, 0, 1), thick),
        },
        None,
    )
    assert run(Prepare(index=index, out=tmp_path / "out")) == 0
    a, b, c = (image(tmp_path, case, "t2") for case in "abc")
    assert [axis_codes(i.affine) for i in (a, b, c)] == ["PLS", "PLS", "IPR"]
    assert same_grid(Grid.of(a), Grid.of(b))
    np.testing.assert_allclose(b.data, 2 * a.data, rtol=1e-5)
    assert Grid.of(c).spacing[2] == pytest.approx(6.0)


def test_sheared_images_are_straightened(tmp_path):
    """A plane wave stays where it is in mm, on axes at right angles."""
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    affine[0, 1] = 0.3
    i, j, k = np.indices((40, 44, 5))
    x, y, z = (np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]).transpose(3, 0, 1, 2)
    volume = 100 + x + 0.5 * y + 0.25 * z
    volume[[0, -1]] = volume[:, [0, -1]] = 0
    header = nib.Nifti1Image(volume.astype(np.float32), None)
    header.set_sform(affine, 1)
    header.set_qform(None, 0)
    (tmp_path / "p").mkdir()
    header.to_filename(tmp_path / "p" / "us.nii.gz")
    (tmp_path / "index.csv").write_text("case,split,us\np,train,p/us.nii.gz\n")
    assert run(Prepare(index=tmp_path / "index.csv", out=tmp_path / "out")) == 0
    us = image(tmp_path, "p", "us")  # which refuses axes that are sheared
    axes = us.affine[:3, :3] / Grid.of(us).spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    places = np.moveaxis(np.indices(us.data.shape), 0, -1) @ us.affine[:3, :3].T + us.affine[:3, 3]
    wanted = 100 + places @ [1, 0.5, 0.25]
    index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    edge = np.array([1, 1, 0])  # of zeros
    deep = ((index >= edge) & (index <= np.array(volume.shape) - 1 - edge)).all(-1)
    assert deep.sum() > 0.7 * 38 * 42 * 5
    np.testing.assert_allclose(us.data[deep], wanted[deep], rtol=1e-4)


def test_modalities_are_those_that_are_there(tmp_path):
    """An index of MR alone, and one of other modalities, without any option."""
    volume, affine = ellipse((30, 34, 3)), np.diag([2.0, 2.0, 6.0, 1.0])
    index = write_cases(tmp_path, {"a": (volume, None)}, affine, header="pet")
    assert run(Prepare(index=index, out=tmp_path / "out")) == 0
    assert list(rows(tmp_path)["a"]) == ["case", "split", "patient", "pet", "fov"]
    index.write_text("case,split,us,t2,flair\na,train,,a/pet.nii.gz,\n")
    assert run(Prepare(index=index, out=tmp_path / "again")) == 0
    text = (tmp_path / "again" / "index.csv").read_text()
    assert text.startswith("case,split,patient,t2,fov\n")
    assert check(Check(tmp_path / "again" / "index.csv")) == 0
    assert check(Check(tmp_path / "again" / "index.csv", modalities=("t2",))) == 0
    assert run(Prepare(index=index, modalities=("t2", "flair"), out=tmp_path / "chosen")) == 0
    assert (tmp_path / "chosen" / "index.csv").read_text() == text

"""Folders as people have them: recognised, said before anything is written, and prepared."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from volumes import make_run

from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import (
    CaseError,
    list_series,
    read_image,
    read_index,
    read_series,
)
from examples.medical_mri_us.prepare import recognise
from examples.medical_mri_us.prepare.study import modality_of
from examples.medical_mri_us.subcommands.check import Check
from examples.medical_mri_us.subcommands.check import run as check
from examples.medical_mri_us.subcommands.prepare import Prepare, run
from examples.medical_mri_us.subcommands.synthesize import Synthesize
from examples.medical_mri_us.subcommands.synthesize import run as synthesize
from examples.medical_mri_us.synthesis.bids import open_derivatives
from examples.medical_mri_us.synthesis.jobs import in_folder, in_index

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def brain(level, shape=(20, 24, 3)):
    """Tissue of a level that nothing else has."""
    i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return np.where((i / 0.8) ** 2 + (j / 0.8) ** 2 < 1, level + 10 * i, 0).astype(np.float32)


def write(path, level, shape=(20, 24, 3), affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(brain(level, shape), affine).to_filename(path)


LEVELS = {"us": 200, "t1": 400, "cet1": 500, "t2": 600, "flair": 700}
"""How bright each modality is made, so that a mistaken one is found out."""


def write_bids(root):
    """Two patients: one of two sessions, with several T2; one without contrast agent."""
    a, b = root / "sub-01/ses-a/anat", root / "sub-01/ses-b/anat"
    write(a / "sub-01_ses-a_T2w.nii.gz", 600)
    write(a / "sub-01_ses-a_acq-low_T2w.nii.gz", 900, (10, 12, 3), np.diag([4.0, 4, 5, 1]))
    write(a / "sub-01_ses-a_ce-gadolinium_T1w.nii.gz", 500)
    write(a / "sub-01_ses-a_FLAIR.nii.gz", 700)
    write(a / "sub-01_ses-a_T2star.nii.gz", 900)
    (a / "sub-01_ses-a_T2w.json").write_text("{}")
    write(b / "sub-01_ses-b_T2w.nii.gz", 610)
    write(root / "sub-02/anat/sub-02_T1w.nii.gz", 400)
    write(root / "sub-02/anat/sub-02_T2w.nii", 620)
    (root / "dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.8.0"}')
    return {
        "sub-01_ses-a": {"t2", "cet1", "flair"}, "sub-01_ses-b": {"t2"}, "sub-02": {"t1", "t2"},
    }, {"sub-01", "sub-02"}  # fmt: skip


def write_brats(root):
    """New names: two visits of a patient, one of whom lacks a sequence."""
    names = {"t1n": "t1", "t1c": "cet1", "t2w": "t2", "t2f": "flair"}
    for k, case in enumerate(
        ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00007-000")
    ):
        for name, modality in names.items():
            if k or name != "t2f":
                write(root / case / f"{case}-{name}.nii.gz", LEVELS[modality] + k)
        label = (brain(LEVELS["t2"]) > 605).astype(np.uint8)
        nib.Nifti1Image(label, AFFINE).to_filename(root / case / f"{case}-seg.nii.gz")
    full = set(names.values())
    return {
        "BraTS-GLI-00001-000": full - {"flair"}, "BraTS-GLI-00001-001": full,
        "BraTS-GLI-00007-000": full,
    }, {"BraTS-GLI-00001", "BraTS-GLI-00007"}  # fmt: skip


def write_old_brats(root):
    """Old names, sorted by grade."""
    names = {"t1": "t1", "t1ce": "cet1", "t2": "t2", "flair": "flair"}
    for k, case in enumerate(("HGG/Brats18_2013_10_1", "LGG/Brats18_TCIA09_1")):
        for name, modality in names.items():
            write(root / case / f"{case.split('/')[1]}_{name}.nii.gz", LEVELS[modality] + k)
    cases = {"Brats18_2013_10_1": set(names.values()), "Brats18_TCIA09_1": set(names.values())}
    return cases, set(cases)


def write_named(root):
    write(root / "p1" / "t2.nii.gz", 600)
    write(root / "p1" / "FLAIR.nii.gz", 700)
    write(root / "p2" / "T1ce.nii.gz", 500)
    write(root / "p2" / "mask.nii.gz", 1)
    (root / "p2" / "notes.txt").write_text("made up")
    return {"p1": {"t2", "flair"}, "p2": {"cet1"}}, {"p1", "p2"}


def write_lgg(root):
    """One complete patient, and one whose T1 after contrast agent is a copy of FLAIR."""
    for case, contrast in (("TCGA_CS_4941_19960909", 500), ("TCGA_DU_5849_19950405", 700)):
        folder = root / "kaggle_3m" / case
        folder.mkdir(parents=True)
        colours = [brain(level / 4)[..., 0].T for level in (400, 700, contrast)]
        for colour in colours:
            colour[8:10, 8:10] += contrast / 100  # patients differ
        for k in range(11):  # 10 comes after 2
            slices = np.stack([c + (c > 0) * k for c in colours], axis=-1).astype(np.uint8)
            image = sitk.GetImageFromArray(slices, isVector=True)
            sitk.WriteImage(image, str(folder / f"{case}_{k + 1}.tif"))
            mask = sitk.GetImageFromArray(((slices[..., 0] > 0) * 255).astype(np.uint8))
            sitk.WriteImage(mask, str(folder / f"{case}_{k + 1}_mask.tif"))
    return {
        "TCGA_CS_4941_19960909": {"t1", "cet1", "flair"}, "TCGA_DU_5849_19950405": {"t1", "flair"},
    }, {"TCGA_CS_4941", "TCGA_DU_5849"}  # fmt: skip


SERIES = [
    ("AX T2 FSE", "t2", 600), ("AX T2 FSE thick", None, 900), ("AX FLAIR", "flair", 700),
    ("SAG T1 MPRAGE +C", "cet1", 500), ("AX T1 SE PRE", "t1", 400), ("AX DWI b1000", None, 900),
    ("3-plane localizer T2", None, 900),
]  # fmt: skip
"""The series of a study: their descriptions, what they are taken for, and how bright they are."""


def write_study(root):
    for number, (said, _, level) in enumerate(SERIES, start=1):
        step = 8.0 if "thick" in said else 5.0
        layouts.write_slices(
            root / f"{number:03d}", brain(level).astype(np.int16), np.diag([2, 2, step, 1]),
            Modality="MR", SeriesDescription=said, SeriesNumber=number, PatientID="anon 7",
            StudyInstanceUID="1.2.3.4",
        )  # fmt: skip
    return {"anon_7": {"t2", "flair", "cet1", "t1"}}, {"anon 7"}


KINDS = {
    "BIDS": write_bids,
    "BraTS": write_brats,
    "BraTS of old": write_old_brats,
    "a folder for each case": write_named,
    "LGG Segmentation Dataset, TIFF": write_lgg,
    "studies of DICOM series": write_study,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_becomes_an_index(kind, tmp_path, capsys):
    """One command, no option: what was taken for what is said, and is what it should be."""
    cases, patients = KINDS[kind](tmp_path / "data")
    assert run(Prepare(folder=tmp_path / "data", out=tmp_path / "out")) == 0
    said = capsys.readouterr().out
    name = kind.removesuffix(" of old")
    assert f"{tmp_path / 'data'} is {name}: {counted(len(cases), 'case')} with" in said
    with (tmp_path / "out" / "index.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {row["patient"] for row in rows.values()} == patients
    order = [c for c in next(iter(rows.values())) if c in LEVELS]
    assert order == [m for m in ("t2", "cet1", "flair", "t1") if m in order]
    assert {case: {m for m in order if row[m]} for case, row in rows.items()} == cases
    for case, held in cases.items():
        assert f"\n  {case}\n" in said
        for m in held:
            values = read_image(tmp_path / "out" / rows[case][m]).data
            level = LEVELS[m] / (4 if kind.startswith("LGG") else 1)
            assert np.median(values[values > 0]) == pytest.approx(level, abs=30)
    assert check(Check(tmp_path / "out" / "index.csv")) == 0


def test_what_is_said_of_participants_is_kept(tmp_path):
    write_bids(tmp_path / "data")
    text = "participant_id\tage\tsex\tsplit\nsub-01\t61\tF\tx\nsub-02\t45\tn/a\tx\n"
    (tmp_path / "data" / "participants.tsv").write_text(text)
    assert run(Prepare(folder=tmp_path / "data", out=tmp_path / "out")) == 0
    cases = read_index(tmp_path / "out" / "index.csv", ("t2", "cet1", "flair", "t1"))
    assert {c.name: c.further["age"] for c in cases} == {
        "sub-01_ses-a": "61", "sub-01_ses-b": "61", "sub-02": "45",
    }  # fmt: skip
    assert {c.split for c in cases} == {"train"}


def test_files_and_columns_of_own_indexes(tmp_path):
    """Absolute paths, links and further columns, alike by prepare and by synthesize."""
    write(tmp_path / "elsewhere" / "t2.nii.gz", 600)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    index = tmp_path / "own" / "index.csv"
    index.parent.mkdir()
    index.write_text(
        f"case,split,t2,age\na,train,{tmp_path}/elsewhere/t2.nii.gz,61\nb,train,../link/t2.nii.gz,7\n"
    )
    assert run(Prepare(index=index, out=tmp_path / "out")) == 0
    cases = read_index(tmp_path / "out" / "index.csv")
    assert [(c.name, c.further) for c in cases] == [("a", {"age": "61"}), ("b", {"age": "7"})]
    jobs = in_index(index, ("t2", "flair"))
    assert [job.images["t2"].files[0].name for job in jobs] == ["t2.nii.gz"] * 2
    write(tmp_path / "folder" / "c" / "t2.nii.gz", 600)
    (tmp_path / "folder" / "d").symlink_to(tmp_path / "elsewhere")
    assert [job.name for job in in_folder(tmp_path / "folder", ("t2", "flair"))] == ["c", "d"]


def test_what_is_left_out_is_said(tmp_path, capsys):
    write_bids(tmp_path / "bids")
    run(Prepare(folder=tmp_path / "bids", out=tmp_path / "a"))
    said = capsys.readouterr().out
    assert "sub-01_ses-a_acq-low_T2w.nii.gz is left out: sub-01_ses-a_T2w.nii.gz is taken" in said
    assert said.index("is left out") < said.index("Prepared 3 cases")
    write_study(tmp_path / "study")
    run(Prepare(folder=tmp_path / "study", out=tmp_path / "b"))
    said = capsys.readouterr().out
    assert "t2 = MR 'AX T2 FSE', 3 files" in said
    assert "MR 'AX T2 FSE thick'" in said
    assert "is left out: it is coarser" in said
    assert said.count("its description names no modality") == 2
    for case in "abcdef":
        write(tmp_path / "named" / case / "T1w.nii.gz", 450)
    for case in "af":
        write(tmp_path / "named" / case / "t1.nii.gz", 400)
    run(Prepare(folder=tmp_path / "named", out=tmp_path / "d"))
    said = capsys.readouterr().out
    assert "\n    a/t1.nii.gz is left out: T1w.nii.gz is taken for t1" in said
    assert "\n  f: f/t1.nii.gz is left out" in said  # though only five cases are listed
    write_lgg(tmp_path / "lgg")
    run(Prepare(folder=tmp_path / "lgg", out=tmp_path / "c"))
    assert "cet1 is a copy of flair: it is missing" in capsys.readouterr().out
    about = json.loads((tmp_path / "c" / "prepare.json").read_text())
    assert about["cases"]["TCGA_DU_5849_19950405"]["from"]["t1"].endswith("*.tif, colour 0")


def test_names_in_capitals_are_read(tmp_path):
    """As computers write them that do not tell small letters from capitals."""
    folder = tmp_path / "data" / "Case One"
    image = sitk.GetImageFromArray(brain(500))
    for name, ending in (("t2", "nii.gz"), ("t1", "nii"), ("cet1", "mha"), ("flair", "nrrd")):
        small = tmp_path / f"{name}.{ending}"
        sitk.WriteImage(image, str(small))
        folder.mkdir(parents=True, exist_ok=True)
        small.rename(folder / small.name.upper())
    assert run(Prepare(folder=tmp_path / "data", out=tmp_path / "out")) == 0
    (case,) = read_index(tmp_path / "out" / "index.csv", ("t2", "cet1", "flair", "t1"))
    assert len(case.images) == 4


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("t2_tse_tra", "t2"),
        ("T2 FLAIR", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("AX T1 FLAIR", "t1"),
        ("3D_AX_T1_postcontrast", "cet1"),
        ("t1_mprage_sag_KM", "cet1"),
        ("T1W+C", "cet1"),
        ("CE-T1 SE", "cet1"),
        ("T1 pre contrast", "t1"),
        ("T1 w/o contrast", "t1"),
        ("MPRAGE", "t1"),
        ("ep2d_diff_trace", None),
        ("T2*_GRE", None),
        ("SWI", None),
        ("T1 subtraction", None),
        ("localizer", None),
        ("", None),
    ],
)
def test_descriptions_name_modalities(text, modality, tmp_path):
    image = np.ones((3, 3, 1), np.int16)
    layouts.write_slices(tmp_path, image, np.eye(4), Modality="MR", SeriesDescription=text)
    (series,) = list_series(tmp_path)
    assert modality_of(series) == modality


def test_releases_are_recognised(tmp_path):
    layouts.write_remind(tmp_path / "a", tmp_path / "a" / "registration")
    name, findings = recognise(tmp_path / "a")
    assert (name, len(findings.sources)) == ("ReMIND, NRRD", 3)
    layouts.write_tcia(tmp_path / "b")
    assert recognise(tmp_path / "b")[0] == "ReMIND, DICOM"
    layouts.write_resect(tmp_path / "c", tmp_path / "seg")
    name, findings = recognise(tmp_path / "c")
    assert name == "RESECT"
    assert set(findings.modalities) == {"us", "flair", "t1"}
    layouts.write_remind(tmp_path / "d", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"'transforms' should be given for ReMIND's NRRD"):
        recognise(tmp_path / "d")


def test_folders_of_no_known_layout_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"'from' should be a folder \(unpack archives first\)"):
        recognise(tmp_path / "absent")
    (tmp_path / "readme.txt").write_text("made up")
    with pytest.raises(ValueError, match=r"in the layout of BIDS, BraTS, .* is none of these"):
        recognise(tmp_path)


def test_modalities_can_be_chosen(tmp_path):
    write_brats(tmp_path / "data")
    options = {"folder": tmp_path / "data", "modalities": ("flair", "t2")}
    assert run(Prepare(out=tmp_path / "out", **options)) == 0
    with (tmp_path / "out" / "index.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header == ["case", "split", "patient", "flair", "t2", "fov", "label"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BIDS", "BraTS", "studies of DICOM series"])
def test_the_same_layouts_are_synthesised_from(kind, tmp_path):
    cases, _ = KINDS[kind](tmp_path / "data")
    trained = make_run(tmp_path / "run", ["t2", "cet1", "flair"], size=32)
    options = {"input_dir": tmp_path / "data", "samples": 1, "device": "cpu", "target": "flair"}
    assert synthesize(Synthesize(trained, out=tmp_path / "out", **options)) == 0
    assert {p.stem for p in (tmp_path / "out").glob("*.json")} == set(cases)
    said = json.loads((tmp_path / "out" / f"{next(iter(cases))}.json").read_text())
    assert set(said["inputs"]) == next(iter(cases.values())) & {"t2", "cet1"}
    assert all(len(i["sha256"]) == 64 for i in said["inputs"].values())


def write_brasyn(root):
    """Cases that lack one modality each, and a complete one."""
    names = {"t1n": "t1", "t1c": "cet1", "t2w": "t2", "t2f": "flair"}
    for k, lacking in enumerate((*names, None)):
        case = f"BraTS-GLI-0000{k}-000"
        for name, modality in names.items():
            if name != lacking:
                write(root / case / f"{case}-{name}.nii.gz", LEVELS[modality] + k)
    return root


@pytest.mark.slow
def test_brasyn_in_and_brasyn_out(tmp_path, capsys):
    """The one image that a case lacks, on its grid, named as in the challenge; nothing else."""
    data = write_brasyn(tmp_path / "data")
    trained = make_run(tmp_path / "run", ["us", "t2", "cet1", "flair", "t1"], size=32)
    options = {"layout": "brats", "device": "cpu"}
    out = tmp_path / "out"
    assert synthesize(Synthesize(trained, out=out, input_dir=data, **options)) == 0
    assert "Nothing is missing of BraTS-GLI-00004-000" in capsys.readouterr().out
    made = [
        f"BraTS-GLI-0000{k}-000-{m}.nii.gz" for k, m in enumerate(("t1n", "t1c", "t2w", "t2f"))
    ]
    assert sorted(p.name for p in out.iterdir()) == sorted(made)
    one = nib.load(out / made[2])
    like = nib.load(data / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t1n.nii.gz")
    assert one.shape == like.shape
    np.testing.assert_array_equal(one.affine, like.affine)
    assert one.get_fdata().max() > 10

    alone = (data / "BraTS-GLI-00002-000").rename(tmp_path / "any")  # a folder of one case
    there = tmp_path / "there"
    assert synthesize(Synthesize(trained, out=there, input_dir=alone, **options)) == 0
    assert [p.name for p in there.iterdir()] == [made[2]]
    np.testing.assert_array_equal(nib.load(there / made[2]).get_fdata(), one.get_fdata())


@pytest.mark.slow
def test_brasyn_cases_that_cannot_be_filled_are_failures(tmp_path, capsys):
    data = write_brasyn(tmp_path / "data")
    trained = make_run(tmp_path / "run", ["t2", "cet1", "flair"], size=32)
    options = {"layout": "brats", "device": "cpu", "out": tmp_path / "out"}
    assert synthesize(Synthesize(trained, input_dir=data, **options)) == 1
    printed = capsys.readouterr().out
    assert "BraTS-GLI-00000-000: it lacks t1, but the model makes t2, cet1, flair." in printed
    assert len(list((tmp_path / "out").iterdir())) == 3
    write_bids(tmp_path / "bids")
    for wrong, message in (
        ({"input_dir": tmp_path / "bids"}, r"should be in the layout of BraTS, .* is BIDS"),
        ({"input_dir": tmp_path / "none"}, r"'input-dir' should be a folder, but is"),
        ({"input_dir": data, "bids": True}, r"'layout' should be brats .* but 'bids' is given"),
        ({"t2": tmp_path / "a.nii.gz"}, r"'layout' should be brats .* but a file is given too"),
    ):
        with pytest.raises(ValueError, match=message):
            synthesize(Synthesize(trained, **wrong, **options))


@pytest.mark.long
def test_the_command_of_the_image_fills_a_folder_of_brasyn(tmp_path):
    """The entry point of the Dockerfile, with folders of this machine where those are mounted."""
    root = Path(__file__).parents[2]
    text = (root / "examples" / "medical_mri_us" / "Dockerfile").read_text()
    entry = json.loads(text.split("ENTRYPOINT")[1].replace("\\\n", ""))
    mounted = re.findall(r"-v [A-Z]+:(/\w+)", text)
    assert mounted == ["/model", "/input", "/output"]
    data = write_brasyn(tmp_path / "input")
    make_run(tmp_path / "model", ["t2", "cet1", "flair", "t1"], size=32)
    assert set(mounted) <= set(entry)
    command = [f"{tmp_path}{part}" if part in mounted else part for part in entry]
    command[0] = sys.executable
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert len(list((tmp_path / "output").iterdir())) == 4
    shutil.rmtree(data)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((root / name).exists() for name in copied.split())


@pytest.mark.slow
def test_syntheses_become_derivatives_of_bids(tmp_path):
    write_bids(tmp_path / "data")
    trained = make_run(tmp_path / "run", ["t2", "cet1", "flair"], size=32)
    options = {"input_dir": tmp_path / "data", "samples": 2, "device": "cpu", "bids": True}
    out = tmp_path / "out"
    assert (
        synthesize(Synthesize(trained, out=out, given="t2", target="cet1,flair", **options)) == 0
    )
    made = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    anat = "sub-01/ses-a/anat/sub-01_ses-a"
    assert f"{anat}_ce-gadolinium_desc-mean_T1w.nii.gz" in made
    assert f"{anat}_desc-sample02_FLAIR.nii.gz" in made
    assert "sub-02/anat/sub-02_desc-std_FLAIR.nii.gz" in made
    assert not any(name.startswith(".") for name in made)
    listed = json.loads((out / f"{anat}.json").read_text())["files"]
    assert {f"sub-01/ses-a/anat/{f}" for f in listed} <= made
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert open_derivatives(out, "p 1.x")[1] == "sub-p1x"


@pytest.mark.slow
def test_syntheses_become_series_of_the_patient(tmp_path):
    """The grid and the values of the NIfTI, the patient and study of the input, marked derived."""
    write_study(tmp_path / "data")
    trained = make_run(tmp_path / "run", ["t2", "cet1", "us"], size=32)
    options = {"samples": 1, "device": "cpu", "dicom": True, "given": "t2", "target": "cet1,us"}
    out = tmp_path / "out"
    for _ in range(2):  # the second run replaces what the first one wrote
        assert (
            synthesize(Synthesize(trained, out=out, input_dir=tmp_path / "data", **options)) == 0
        )
    source = list_series(tmp_path / "data")[0].header
    for target, modality in (("cet1", "MR"), ("us", "OT")):
        (series,) = list_series(out / f"anon_7_{target}_dicom")
        assert len(series.files) == 3
        found, wanted = read_series(series), read_image(out / f"anon_7_{target}_mean.nii.gz")
        np.testing.assert_allclose(found.data, wanted.data, atol=0.0051)
        assert np.ptp(found.data) > 10
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-5)
        for name in ("PatientID", "StudyInstanceUID"):
            assert series.tag(name) == str(source[name].value) != ""
        assert series.header.SeriesInstanceUID != source.SeriesInstanceUID
        assert series.header.ImageType[0] == "DERIVED"
        assert series.tag("Modality") == modality
        assert "research only" in series.tag("SeriesDescription")
    again = {**options, "dicom": False, "target": "cet1"}
    assert synthesize(Synthesize(trained, out=out, input_dir=tmp_path / "data", **again)) == 0
    assert not list(out.glob("*_dicom"))  # those of the earlier run beside a new JSON
    write(tmp_path / "p.nii.gz", 600)
    with pytest.raises(CaseError, match=r"p\.nii\.gz should be DICOM for results in DICOM"):
        synthesize(Synthesize(trained, out=tmp_path / "none", t2=tmp_path / "p.nii.gz", **options))

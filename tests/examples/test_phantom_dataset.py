"""The phantom's datasets: missingness, files against what was drawn, errors in words."""

import csv
import io
import json
import math
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from numpy.random import default_rng
from scipy import stats

from examples.medical_mri_us.data import read_index
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import (
    INDEX_COLUMNS,
    MISSINGNESS,
    REMIND_FILES,
    CacheError,
    cached_dataset,
    dataset,
    default_slices,
    draw_patterns,
    draw_sheet,
    given_enhancement,
    load_atlas,
    make_dataset,
    parallel,
    pattern_probabilities,
    recipe,
    render_patient,
    storage,
)
from examples.medical_mri_us.phantom.colin import COLIN27
from examples.medical_mri_us.phantom.patient import draw_lesion
from examples.medical_mri_us.phantom.tissues import tissue_values
from examples.medical_mri_us.subcommands.phantom import Phantom, run

pytestmark = pytest.mark.slow

SMALL = {"size": 16, "slices": 2, "progress": False}


@pytest.fixture(scope="module")
def index(brain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return make_dataset(folder, train=6, test=1, workers=1, **SMALL)


def rows_of(index):
    with index.open(newline="") as stream:
        return list(csv.DictReader(stream))


def bytes_of(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# Missingness


@pytest.mark.parametrize("name", MISSINGNESS)
def test_pattern_frequencies(name):
    n = 20_000
    patterns = draw_patterns(name, n, default_rng(0))
    assert patterns.shape == (n, 4)
    assert patterns.dtype == bool
    found, counts = np.unique(patterns, axis=0, return_counts=True)
    observed = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
    assert set(observed) == set(REMIND_FILES)

    def p_value(of):
        expected = pattern_probabilities(of)
        assert sum(expected.values()) == pytest.approx(1)
        return stats.chisquare(
            [observed[key] for key in REMIND_FILES], [n * expected[key] for key in REMIND_FILES]
        ).pvalue

    (other,) = set(MISSINGNESS) - {name}
    assert p_value(name) > 0.01
    assert p_value(other) < 1e-6


def test_remind_counts():
    total = sum(REMIND_FILES.values())
    per_modality = [sum(n for key, n in REMIND_FILES.items() if key[i]) for i in range(4)]
    assert (total, per_modality) == (103, [103, 66, 97, 15])
    complete = pattern_probabilities("paper-87")[True, True, True, True]
    assert 1 - complete == pytest.approx(99 / 114)


def test_enhancing_tumours_lack_cet1_less_often_and_no_pattern_gets_rarer():
    share = 66 / 114
    for name in MISSINGNESS:
        asked = pattern_probabilities(name)
        kinds = {kind: given_enhancement(asked, kind) for kind in (True, False)}
        absent = {k: sum(p for key, p in d.items() if not key[2]) for k, d in kinds.items()}
        overall = sum(p for key, p in asked.items() if not key[2])
        assert absent[True] == pytest.approx(overall / 3)
        assert absent[False] > 4 * absent[True]
        for kind in kinds.values():
            assert sum(kind.values()) == pytest.approx(1)
        for pattern, probability in asked.items():
            mixed = share * kinds[True][pattern] + (1 - share) * kinds[False][pattern]
            assert mixed == pytest.approx(probability)
    drawn = draw_patterns("remind-files", 20_000, default_rng(0), enhancing=False)
    assert 1 - drawn[:, 2].mean() == pytest.approx(absent_share(False), abs=0.01)
    assert 1 - drawn[:, 2].mean() > 1.5 * absent_share(None)


def absent_share(enhancing):
    probabilities = pattern_probabilities("remind-files")
    if enhancing is not None:
        probabilities = given_enhancement(probabilities, enhancing)
    return sum(p for key, p in probabilities.items() if not key[2])


def test_recipes_that_are_not_missing_at_random():
    mar, mnar = (recipe.check_recipe(64, 8, "remind-files", 0, mnar=m) for m in (False, True))
    numbers = range(1500)
    enhancing = np.array([draw_lesion(mnar.seed_of("train", n)).enhancing for n in numbers])
    for made, lower, upper in ((mar, 0.5, 1.8), (mnar, 2.0, 20.0)):
        lacks = ~np.array([made.observed("train", n) for n in numbers])[:, 2]
        assert lacks.mean() == pytest.approx(absent_share(None), abs=0.02)
        assert lower < lacks[~enhancing].mean() / lacks[enhancing].mean() < upper
    assert mnar.observed("test", 0) == [True] * 4


# Datasets


@pytest.mark.parametrize(("size", "slices"), [(16, 8), (64, 8), (96, 16), (128, 24), (192, 32)])
def test_slices_follow_from_the_size(size, slices):
    assert default_slices(size) == slices
    assert recipe.check_recipe(size, None, "remind-files", 0).slices == slices


def test_the_kind_of_tumour_is_known_before_the_patient(patients):
    for seed, patient in enumerate(patients):
        assert asdict(draw_lesion(seed)) == patient.info["lesion"]


def test_displaced_dataset_holds_the_truth(brain, tmp_path):
    options = {"brain_shift_mm": 5.0, "misalign_mm": 2.0}
    made = make_dataset(tmp_path, train=0, test=1, workers=1, **{**SMALL, "size": 48}, **options)
    (row,) = rows_of(made)
    patient = render_patient([0, 1, 0], brain, size=48, slices=2, **options)
    vectors = nib.Nifti1Image.from_filename(made.parent / "test-0000" / "displacement.nii.gz")
    assert vectors.shape == (48, 48, 2, 1, 3)
    assert vectors.header.get_intent()[0] == "vector"
    stored = np.moveaxis(np.asarray(vectors.dataobj)[:, :, :, 0], -1, 0)
    assert stored == pytest.approx(patient.displacement, abs=1e-5)
    tumour = nib.Nifti1Image.from_filename(made.parent / "test-0000" / "tumour_mr.nii.gz")
    assert np.array_equal(np.asarray(tumour.dataobj), patient.tumour_mr)
    assert (made.parent / row["landmarks"]).read_text() == patient.landmarks.to_csv()
    info = json.loads((made.parent / "test-0000" / "patient.json").read_text())
    assert info["brain_shift"]["largest_mm"] == 5
    assert info["misalignment"]["root_mean_square_mm"] == 2
    facts = json.loads((made.parent / "dataset.json").read_text())
    assert (facts["brain_shift_mm"], facts["anatomy"], facts["mnar"]) == (5.0, "mni", False)
    assert len(read_index(made)) == 1


@pytest.mark.skipif(
    not COLIN27.is_file(), reason="Colin27 of Debian's mricron-data is not installed"
)
def test_both_anatomies_are_used(brain, tmp_path):
    made = make_dataset(tmp_path, train=6, test=0, workers=1, anatomy="both", **SMALL)
    names = {
        json.loads(file.read_text())["anatomy"] for file in made.parent.glob("*/patient.json")
    }
    assert names == {"mni", "colin27"}


def test_contact_sheet_shows_the_patients(index):
    picture = matplotlib.image.imread(io.BytesIO(draw_sheet(index, patients=3)))
    assert picture.shape[1] == pytest.approx(5 * 1.75 * 110 + 27, abs=2)
    rows = 3 * 1.75 * 110
    assert picture.shape[0] == pytest.approx(rows + 68, abs=3)
    column = picture[:, 30 : 30 + 190, :3].max(-1)
    assert (column > 0.2).mean() > 0.05
    # Labels are drawn in colour, images in grey.
    saturation = np.ptp(picture[..., :3], axis=-1)[40:-60]
    assert saturation[:, 30:780].max() < 0.02
    assert (saturation[:, 790:] > 0.2).mean() > 0.02
    assert draw_sheet(index, patients=3) == draw_sheet(index, patients=3)
    with pytest.raises(ValueError, match=r"'patients' should be an integer of at least 1"):
        draw_sheet(index, patients=0)


def test_verb_hands_its_options_on(brain, tmp_path, capsys):
    options = Phantom(
        out=tmp_path, train=1, test=1, size=32, slices=2, workers=1, misalign_mm=1.5, mnar=True
    )
    assert run(options) == 0
    assert "contact_sheet.png" in capsys.readouterr().out
    assert (tmp_path / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
    facts = json.loads((tmp_path / "dataset.json").read_text())
    assert (facts["misalign_mm"], facts["mnar"], facts["slices"]) == (1.5, True, 2)
    (tmp_path / "contact_sheet.png").unlink()
    assert run(replace(options, sheet=False)) == 0
    assert not (tmp_path / "contact_sheet.png").exists()
    for name, value in {"anatomy": "atlas", "brain_shift_mm": 16, "mnar": "yes"}.items():
        with pytest.raises(ValueError, match=f"'{name}' should be .*but is {value!r}"):
            run(replace(options, **{name: value}))


def test_index_and_files_agree(index):
    rows = rows_of(index)
    assert tuple(rows[0]) == INDEX_COLUMNS
    assert [row["case"] for row in rows] == [f"train-000{i}" for i in range(6)] + ["test-0000"]
    assert any(row["t2"] == "" for row in rows)
    assert all(rows[-1].values())
    assert sorted(path.name for path in index.parent.iterdir()) == sorted(
        [row["case"] for row in rows] + ["dataset.json", "index.csv"]
    )
    for row in rows:
        info = json.loads((index.parent / row["case"] / "patient.json").read_text())
        assert info["observed"] == [name for name in MODALITIES if row[name]]
        for name in MODALITIES:
            file = index.parent / row["case"] / f"{name}.nii.gz"
            assert file.exists() == bool(row[name])
            assert not row[name] or index.parent / row[name] == file


def test_nifti_files_hold_the_patient(brain, index):
    row = rows_of(index)[-1]
    patient = render_patient([0, 1, 0], brain, size=16, slices=2)
    for column in (*MODALITIES, "fov", "label"):
        image = nib.Nifti1Image.from_filename(index.parent / row[column])
        assert image.shape == (16, 16, 2)
        assert image.affine == pytest.approx(patient.affine, abs=1e-4)
        assert image.header.get_zooms() == pytest.approx((6.0, 6.0, 2.0), rel=1e-5)
        assert image.header.get_xyzt_units()[0] == "mm"
        kind = np.int16 if column in ("t2", "cet1", "flair") else np.uint8
        assert image.get_data_dtype() == kind
        expected = {"fov": patient.fov, "label": patient.tumour, **patient.images}[column]
        assert np.array_equal(np.asarray(image.dataobj), np.rint(expected))


def test_cached_dataset_is_made_once(brain, cache, monkeypatch):
    arguments = {"train": 1, "test": 1, "workers": 1, **SMALL}
    first = cached_dataset(**arguments)
    assert first.is_relative_to(cache)
    before = bytes_of(first.parent)
    times = {file: file.stat().st_mtime_ns for file in first.parent.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "render_patient", lambda *a, **k: pytest.fail("rendered again"))
        assert make_dataset(first.parent, **arguments) == first
        patch.setattr(dataset, "make_dataset", lambda *a, **k: pytest.fail("not looked up"))
        assert cached_dataset(**arguments) == first
    assert bytes_of(first.parent) == before
    assert {file: file.stat().st_mtime_ns for file in first.parent.rglob("*")} == times
    assert cached_dataset(**{**arguments, "seed": 1}) != first


def test_interrupted_run_resumes(index, tmp_path, monkeypatch):
    rendered = []

    def interrupted(seed, *args, **kwargs):
        rendered.append(seed)
        if len(rendered) == 3:
            raise KeyboardInterrupt
        return render_patient(seed, *args, **kwargs)

    monkeypatch.setattr(recipe, "render_patient", interrupted)
    arguments = {"train": 6, "test": 1, "workers": 1, **SMALL}
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path, **arguments)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train-0000", "train-0001", "dataset.json"}
    make_dataset(tmp_path, **arguments)
    assert len(rendered) == 3 + 5
    assert bytes_of(tmp_path) == bytes_of(index.parent)


def test_case_that_cannot_be_written_leaves_nothing(brain, tmp_path, monkeypatch):
    def full_disk(file, data, affine):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_write_nifti", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_dataset(tmp_path, train=1, test=0, workers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_leftovers_of_a_killed_run_are_removed(index, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover = tmp_path / f".mmpoe-{socket.gethostname()}-{dead.pid}-0.tmp"
    leftover.mkdir()
    (leftover / "us.nii.gz").write_bytes(b"half")
    make_dataset(tmp_path, train=1, test=0, workers=1, **SMALL)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train-0000", "dataset.json", "index.csv"}


def test_case_that_another_process_finished_first_stays(patients, tmp_path):
    first, second = patients[:2]
    everything = [True] * len(MODALITIES)
    storage.write_case(tmp_path / "train-0000", first, everything, {"number": 1})
    before = bytes_of(tmp_path)
    storage.write_case(tmp_path / "train-0000", second, everything, {"number": 2})
    assert bytes_of(tmp_path) == before


@pytest.mark.long
def test_workers_and_length_do_not_matter(index, tmp_path):
    longer = make_dataset(tmp_path, train=2, test=0, workers=2, **SMALL)
    for case in ("train-0000", "train-0001"):
        assert bytes_of(longer.parent / case) == bytes_of(index.parent / case)
    assert (longer.parent / "dataset.json").read_bytes() == (
        index.parent / "dataset.json"
    ).read_bytes()
    assert len(rows_of(longer)) == 2


def test_an_error_stops_the_work():
    done = []
    with pytest.raises(ZeroDivisionError):
        parallel.run_all(lambda x: 1 / x, [2, 1, 0, 3], 1, lambda: done.append(1))
    assert len(done) == 2
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        parallel.run_all(math.sqrt, [-1.0], 2, lambda: None)


def test_folder_of_another_dataset_is_refused(index):
    with pytest.raises(ValueError, match=r"'folder' should be empty or hold .* same arg"):
        make_dataset(index.parent, train=1, test=0, workers=1, **{**SMALL, "slices": 3})


def test_unusable_cache_is_named(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("not a folder")
    monkeypatch.setenv("MMPOE_CACHE", str(file / "cache"))
    for call in (load_atlas, lambda: cached_dataset(train=1, test=0, **SMALL)):
        with pytest.raises(CacheError, match="MMPOE_CACHE") as caught:
            call()
        assert str(file) in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, OSError)
    monkeypatch.setenv("MMPOE_CACHE", "~a-user-who-does-not-exist/cache")
    with pytest.raises(CacheError, match=r"'~a-user-who-does-not-exist/cache' .*MMPOE_CACHE"):
        load_atlas()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train", -1),
        ("test", 2.5),
        ("size", 8),
        ("size", "64"),
        ("slices", 0),
        ("seed", -1),
        ("seed", True),
        ("missingness", "all"),
        ("workers", 0),
    ],
)
def test_bad_arguments_of_datasets(name, value, tmp_path):
    for make in (lambda **given: make_dataset(tmp_path / "data", **given), cached_dataset):
        with pytest.raises(ValueError, match=rf"'{name}' should be .*but is {value!r}"):
            make(**{name: value})
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_elsewhere(brain, tmp_path):
    for name, value in {
        "seed": -1,
        "size": 15,
        "spacing": 0.0,
        "slices": 1.5,
        "slice_spacing": float("nan"),
        "oversampling": 0,
        "brain_shift_mm": 15.5,
        "misalign_mm": -1,
    }.items():
        with pytest.raises(ValueError, match=f"'{name}' should be .*but is {value!r}"):
            render_patient(**{"seed": 0, "atlas": brain, name: value})
    with pytest.raises(ValueError, match="'name' should be one of 'remind-files', 'paper-87'"):
        draw_patterns("half", 3, default_rng(0))
    with pytest.raises(ValueError, match="'n' should be an integer"):
        draw_patterns("paper-87", -3, default_rng(0))
    with pytest.raises(ValueError, match="'train' and 'test' should not both be 0"):
        make_dataset(tmp_path, train=0, test=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="'folder' should be a folder"):
        make_dataset(tmp_path / "file")
    with pytest.raises(ValueError, match="'folder' should be a path, but is 3"):
        make_dataset(3)
    with pytest.raises(ValueError, match="'field' should be one of t1, t2"):
        tissue_values("t3")
    assert not Path("3").exists()

"""The phantom: physics against equations and distributions, files against what was drawn."""

import csv
import importlib.util
import json
import math
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import stats

from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import (
    INDEX_COLUMNS,
    MISSINGNESS,
    REMIND_FILES,
    TISSUE_NAMES,
    atlas,
    cached_dataset,
    dataset,
    draw_patterns,
    load_atlas,
    make_dataset,
    mri,
    parallel,
    pattern_probabilities,
    render_patient,
    storage,
)
from examples.medical_mri_us.phantom.anatomy import Lesion, build_anatomy, random_lesion
from examples.medical_mri_us.phantom.deformation import random_warp, smooth_noise
from examples.medical_mri_us.phantom.probe import Fan, ProbeGrid, choose_pose
from examples.medical_mri_us.phantom.tissues import mix, tissue_index, tissue_values
from examples.medical_mri_us.phantom.tumour import VISIBLE_DENSITY, grow_tumour, growth_step
from examples.medical_mri_us.phantom.ultrasound import (
    UltrasoundSettings,
    log_compress,
    speckle_envelope,
)

SMALL = {"size": 16, "slices": 2, "progress": False}
RAYLEIGH_SNR = np.sqrt(np.pi / (4 - np.pi))  # 1.913


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPOE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def brain(cache):
    known = set(sys.modules)
    built = load_atlas()
    assert not {name for name in set(sys.modules) - known if name.startswith("nilearn")}
    return built


@pytest.fixture(scope="module")
def patients(brain):
    return [render_patient(seed, brain, slices=4) for seed in range(4)]


@pytest.fixture(scope="module")
def index(brain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return make_dataset(folder, train=6, test=1, workers=1, **SMALL)


def seeded(seed=0):
    return np.random.default_rng(seed)


def rows_of(index):
    with index.open(newline="") as stream:
        return list(csv.DictReader(stream))


def bytes_of(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# Atlas


def test_atlas_is_a_brain(brain):
    csf, grey, white, ventricle, falx = brain.maps.sum((1, 2, 3), dtype=float) / 255 / 1000  # ml
    assert 1500 < csf + grey + white < 2200
    assert 500 < white < grey < 1200
    assert 5 < ventricle < 80
    assert 1 < falx < 40
    assert np.all(brain.sample("white", brain.tumour_sites.T) > 0.69)
    assert np.abs(brain.tumour_sites[:, 0]).min() > 14
    inside = sum(brain.sample(name, brain.surface.T) for name in ("csf", "grey", "white"))
    assert np.median(inside) > 0.3
    # One centimetre further from the middle of the head there is nothing.
    middle = brain.surface.mean(0)
    outward = brain.surface - middle
    outward *= 1 + 10 / np.linalg.norm(outward, axis=1, keepdims=True)
    beyond = sum(brain.sample(name, (middle + outward).T) for name in ("csf", "grey", "white"))
    assert np.median(beyond) == 0


def test_atlas_comes_back_from_the_cache(brain, cache, monkeypatch):
    monkeypatch.setattr(atlas, "build_atlas", lambda: pytest.fail("built again"))
    again = load_atlas()
    for name, value in vars(brain).items():
        assert np.array_equal(getattr(again, name), value)


def test_without_nilearn_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"'medical' extra"):
        load_atlas()


# Deformation and tumour


def test_smooth_noise_is_standardised_and_as_wide_as_asked():
    field = smooth_noise(seeded(), (96, 96, 40), (6.0, 6.0, 3.0))
    assert abs(field.mean()) < 1e-3
    assert field.std() == pytest.approx(1, abs=1e-3)
    for axis, sigma in ((0, 6), (2, 3)):
        length = field.shape[axis]
        first = field.take(range(length - 2 * sigma), axis).ravel()
        second = field.take(range(2 * sigma, length), axis).ravel()
        # White noise blurred by sigma is correlated by exp(-(d / 2 sigma)^2) at distance d.
        assert np.corrcoef(first, second)[0, 1] == pytest.approx(np.exp(-1), abs=0.12)


def test_warps_do_not_fold_and_can_be_inverted(brain):
    for seed in range(6):
        rng = seeded(seed)
        anchor = brain.surface[rng.integers(len(brain.surface))]
        target = brain.tumour_sites[rng.integers(len(brain.tumour_sites))]
        warp = random_warp(rng, brain.origin, brain.upper, anchor)
        assert 0 < warp.min_jacobian < 1
        assert warp.pull(anchor[:, None])[:, 0] == pytest.approx(anchor, abs=1e-3)
        assert warp.pull(warp.push(target)[:, None])[:, 0] == pytest.approx(target, abs=0.05)
        assert np.linalg.norm(warp.push(target) - target) > 0.01


def test_a_violent_displacement_is_reported_as_folded(brain):
    warp = random_warp(
        seeded(), brain.origin, brain.upper, brain.surface[0], amplitude=40, squarings=0
    )
    assert warp.min_jacobian < 0


def test_growth_conserves_cells_that_only_move():
    rng = seeded()
    density = rng.uniform(0, 1, (8, 9, 10))
    diffusivity = rng.uniform(0, 1, density.shape)
    still = np.zeros_like(density)
    moved = growth_step(density, diffusivity, still, time=0.1)
    assert moved.sum() == pytest.approx(density.sum(), rel=1e-12)
    assert moved.std() < density.std()
    grown = growth_step(density, still, still + 2.0, time=0.1)
    assert grown == pytest.approx(density + 0.2 * density * (1 - density))


def test_growth_does_not_cross_a_wall():
    density = np.zeros((9, 5, 5))
    density[:4] = 1
    diffusivity = np.ones_like(density)
    diffusivity[4] = 0
    for _ in range(50):
        density = growth_step(density, diffusivity, np.zeros_like(density), time=0.1)
    assert density[5:].max() == 0


@pytest.mark.parametrize("volume_ml", [0.8, 12.0, 60.0])
def test_tumour_reaches_its_volume(brain, volume_ml):
    for seed in range(2):
        centre = brain.tumour_sites[seeded(seed).integers(len(brain.tumour_sites))]
        tumour = grow_tumour(seeded(seed), brain, centre, volume_ml)
        assert volume_ml <= tumour.volume_ml < 1.15 * volume_ml
        voxels = (tumour.density > VISIBLE_DENSITY).sum()
        assert tumour.volume_ml == pytest.approx(voxels * tumour.spacing**3 / 1000)
        assert tumour.density_at(centre[:, None]) > VISIBLE_DENSITY


# Anatomy


def test_partial_volumes_fill_the_brain(brain):
    rng = seeded(3)
    lesion = Lesion(**{**vars(random_lesion(rng)), "enhancing": True, "necrotic": True})
    centre, contact = brain.tumour_sites[100], brain.surface[100]
    warp = random_warp(rng, brain.origin, brain.upper, contact)
    pose = choose_pose(rng, contact, warp.push(centre))
    grid = ProbeGrid(contact, pose, 64, 1.5, 4, 4.0)
    tumour = grow_tumour(rng, brain, centre, lesion.volume_ml)
    anatomy = build_anatomy(rng, brain, warp, tumour, lesion, grid)
    assert anatomy.fractions.shape == (len(TISSUE_NAMES), *grid.shape)
    assert anatomy.fractions.min() >= 0
    total = anatomy.fractions.sum(0)
    assert total[anatomy.brain > 0.999] == pytest.approx(1, abs=1e-3)
    assert total == pytest.approx(anatomy.brain, abs=1e-4)
    assert np.all(anatomy.fractions[:, anatomy.brain == 0] == 0)
    assert (anatomy.brain > 0.999).mean() > 0.2
    for name in ("enhancing_rim", "necrosis", "oedema", "tumour"):
        assert anatomy.fractions[tissue_index(name)].max() > 0.5


def test_mix_is_the_weighted_sum():
    fractions = seeded().uniform(0, 1, (len(TISSUE_NAMES), 3, 4)).astype(np.float32)
    values = tissue_values("attenuation")
    assert mix(values, fractions) == pytest.approx(np.tensordot(values, fractions, 1), rel=1e-5)


# Magnetic resonance


def test_noise_is_rician():
    for signal in (0.0, 10.0, 40.0):
        image = np.full((200, 200, 5), signal, dtype=np.float32)
        noisy = mri.add_rician_noise(seeded(), image, 10.0)
        expected = stats.rice(signal / 10, scale=10)
        error = expected.std() / np.sqrt(noisy.size)
        assert noisy.mean() == pytest.approx(expected.mean(), abs=4 * error)
        assert noisy.std() == pytest.approx(expected.std(), rel=0.01)


def test_flair_nulls_fluid():
    csf, grey = tissue_index("csf"), tissue_index("grey_matter")
    for seed in range(20):
        tissue = mri.Relaxation.of_patient(seeded(seed))
        for tr in (5000.0, 7000.0, 9000.0):
            null = mri.csf_nulling_ti(tissue.t1[csf], tr)
            signal = mri.inversion_recovery(tissue, tr=tr, te=120, ti=null)
            assert signal[csf] < 1e-9
            for error in (0.97, 1.03):  # as far off as patients are scanned
                signal = mri.inversion_recovery(tissue, tr=tr, te=120, ti=error * null)
                assert signal[csf] < 0.2 * signal[grey]
            assert mri.spin_echo(tissue, tr=tr, te=120)[csf] > signal[grey]


def test_contrast_order_of_the_equations():
    names = ("csf", "grey_matter", "white_matter", "oedema", "enhancing_rim")
    csf, grey, white, oedema, rim = map(tissue_index, names)
    for seed in range(50):
        plain = mri.Relaxation.of_patient(seeded(seed))
        enhanced = plain.with_contrast(0.7 + 0.6 * (seed % 2))
        t2 = mri.spin_echo(plain, tr=3500, te=105)
        assert t2[csf] > t2[grey] > t2[white]
        flair = mri.inversion_recovery(plain, tr=7000, te=120, ti=2300)
        assert flair[oedema] > flair[white] > flair[csf]
        for tissue, is_enhanced in ((plain, False), (enhanced, True)):
            for t1 in (
                mri.mprage(tissue, tr=2100, ti=925),
                mri.spgr(tissue, tr=8.5, te=3, flip=np.deg2rad(16)),
            ):
                assert t1[white] > t1[grey] > t1[csf]
                assert (t1[rim] > t1[white]) == is_enhanced


def test_spoiled_gradient_echo_peaks_at_the_ernst_angle():
    tissue = mri.Relaxation.of_patient(seeded())
    flips = np.deg2rad(np.arange(1, 90, 0.25))
    signals = np.array([mri.spgr(tissue, tr=8.0, te=3.0, flip=flip)[2] for flip in flips])
    assert flips[signals.argmax()] == pytest.approx(
        np.arccos(np.exp(-8.0 / tissue.t1[2])), abs=0.005
    )


def test_contrast_order_of_the_images(patients):
    def level(modality, name):
        values = [p.images[modality][p.tissue == 1 + tissue_index(name)] for p in patients]
        return np.median(np.concatenate(values))

    white = "white_matter"
    assert level("t2", "csf") > level("t2", "grey_matter") > level("t2", white)
    assert level("cet1", white) > level("cet1", "grey_matter") > level("cet1", "csf")
    assert level("cet1", "enhancing_rim") > 1.3 * level("cet1", white)
    assert level("flair", "oedema") > level("flair", white) > level("flair", "csf")
    assert level("us", "tumour") > level("us", white) > level("us", "csf")
    assert all(150 < level(name, white) < 600 for name in ("t2", "cet1", "flair"))


# Ultrasound


@pytest.mark.parametrize("defocus", [0.0, 0.5, 1.0])
def test_speckle_of_a_homogeneous_block_is_rayleigh(defocus):
    amplitude = np.full((600, 600), 0.3, dtype=np.float32)
    blur = np.full((600, 1), defocus, dtype=np.float32)
    envelope = speckle_envelope(seeded(), amplitude, (0.8, 0.5), (1.04, 1.2), blur)
    assert envelope.mean() / envelope.std() == pytest.approx(RAYLEIGH_SNR, rel=0.02)
    assert (envelope**2).mean() == pytest.approx(2 * 0.3**2, rel=0.03)
    quantiles = np.quantile(envelope, [0.1, 0.5, 0.9])
    assert quantiles == pytest.approx(stats.rayleigh(scale=0.3).ppf([0.1, 0.5, 0.9]), rel=0.03)


def test_compounding_and_reflections_calm_the_speckle():
    amplitude = np.ones((400, 400), dtype=np.float32)
    shape = ((0.8, 0.5), (1.0, 1.2), np.zeros((400, 1), dtype=np.float32))
    four = speckle_envelope(seeded(), amplitude, *shape, looks=4)
    # The mean of K intensities is gamma distributed; its root is a Nakagami variable.
    expected = stats.nakagami(4, scale=np.sqrt(2))
    assert four.mean() / four.std() == pytest.approx(expected.mean() / expected.std(), rel=0.03)
    assert (four**2).mean() == pytest.approx(2, rel=0.03)
    bright = speckle_envelope(seeded(), amplitude, *shape, reflection=3.0)
    expected = stats.rice(3.0)
    assert bright.mean() == pytest.approx(expected.mean(), rel=0.02)
    assert bright.std() == pytest.approx(expected.std(), rel=0.03)


def test_gain_puts_the_median_of_the_brain_at_its_grey_level():
    setting = UltrasoundSettings.random(seeded())
    decibel = seeded().normal(-40, 5, (50, 50, 2)).astype(np.float32)
    inside = np.zeros(decibel.shape, dtype=bool)
    inside[10:40] = True
    grey = log_compress(decibel, inside, setting)
    assert np.median(grey[inside]) == pytest.approx(setting.grey_level, abs=1e-4)
    assert grey.min() >= 0
    assert grey.max() <= 1


# Patients


def test_a_seed_is_a_patient(brain, patients):
    again = render_patient(2, brain, slices=4)
    other = render_patient(3, brain, slices=4)
    for name in MODALITIES:
        assert again.images[name].tobytes() == patients[2].images[name].tobytes()
        assert not np.array_equal(again.images[name], other.images[name])
    for name in ("fov", "tumour", "tissue", "affine"):
        assert np.array_equal(getattr(again, name), getattr(patients[2], name))
    assert again.info == patients[2].info
    assert again.info != other.info


def test_the_same_patient_at_another_size(brain, patients):
    large = render_patient(1, brain, size=128, slices=4)
    assert large.info["oversampling"] == 1
    assert patients[1].info["oversampling"] == 2
    for name in ("lesion", "fan", "ultrasound", "min_jacobian", "volume_ml"):
        assert large.info[name] == patients[1].info[name]
    corner = [-0.5, -0.5, 0, 1]  # the outer corner of both grids
    assert large.affine @ corner == pytest.approx(patients[1].affine @ corner, abs=1e-3)
    small, fine = patients[1].images["t2"], large.images["t2"]
    pooled = fine.reshape(64, 2, 64, 2, 4).mean((1, 3))
    inside = patients[1].fov
    assert np.corrcoef(small[inside], pooled[inside])[0, 1] > 0.9


def test_patients_look_as_promised(patients):
    for patient in patients:
        assert set(patient.images) == set(MODALITIES)
        assert patient.info["min_jacobian"] > 0
        assert 0.4 < patient.fov.mean() < 0.8
        assert patient.fov[:2].sum() < patient.fov[20:22].sum()  # the probe is at the top
        for image in patient.images.values():
            assert image.shape == (64, 64, 4)
            assert image.dtype == np.float32
            assert np.all(image[~patient.fov] == 0)
            assert image[patient.fov].std() > 10
        assert patient.images["us"].min() >= 0
        assert patient.images["us"].max() <= 255
        assert set(np.unique(patient.tumour)) <= {0, 1, 2, 3, 4}
        assert patient.tissue.max() <= len(TISSUE_NAMES)
        assert not patient.tumour[~patient.fov].any()
        assert not patient.tissue[~patient.fov].any()
        assert (patient.tumour > 0).sum() > 10
        assert patient.info["enhancing"] or not (patient.tumour == 4).any()
        json.dumps(patient.info)


def test_pixels_of_the_field_of_view_lie_wholly_in_the_fan(patients):
    for patient in patients:
        fan = Fan(**patient.info["fan"])
        fine = ProbeGrid(np.zeros(3), np.eye(3), 128, 0.75, 1, 2.0)
        parts = fan.contains(fine).reshape(64, 2, 64, 2)
        assert np.array_equal(patient.fov[:, :, 0], parts.all((1, 3)))
        assert parts.any((1, 3)).sum() > patient.fov[:, :, 0].sum()


def test_affine_is_an_oblique_grid_in_the_brain(brain, patients):
    for patient in patients:
        linear = patient.affine[:3, :3]
        assert linear.T @ linear == pytest.approx(np.diag([1.5, 1.5, 2.0]) ** 2, abs=1e-4)
        assert np.linalg.det(linear) > 0
        assert np.abs(linear / [1.5, 1.5, 2.0]).max() < 0.9999
        # Depth 0 in the middle column and slice is the point of contact, on the brain's surface.
        touch = (patient.affine @ [6 / 1.5 - 0.5, 31.5, 1.5, 1])[:3]
        assert np.linalg.norm(brain.surface - touch, axis=1).min() < 0.01


def test_pose_is_a_rotation_that_aims_at_the_tumour():
    contact, target = np.array([40.0, 10.0, 60.0]), np.array([20.0, -15.0, 35.0])
    aim = (target - contact) / np.linalg.norm(target - contact)
    poses = np.array([choose_pose(seeded(seed), contact, target) for seed in range(50)])
    assert poses @ poses.swapaxes(1, 2) == pytest.approx(np.tile(np.eye(3), (50, 1, 1)), abs=1e-5)
    assert np.linalg.det(poses) == pytest.approx(np.ones(50), abs=1e-5)
    assert np.median(aim @ poses[:, :, 0].T) > 0.95
    assert abs(np.median(aim @ poses[:, :, 1].T)) < 0.1


def test_grid_points_follow_the_affine():
    pose = choose_pose(seeded(), np.zeros(3), np.array([1.0, 2.0, 3.0]))
    grid = ProbeGrid(np.array([10.0, -20.0, 30.0]), pose, 8, 0.7, 3, 2.5)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    expected = np.tensordot(grid.affine[:3, :3], voxels, 1) + grid.affine[:3, 3, None, None, None]
    assert grid.points() == pytest.approx(expected, abs=1e-4)


# Missingness


@pytest.mark.parametrize("name", MISSINGNESS)
def test_pattern_frequencies(name):
    n = 20_000
    patterns = draw_patterns(name, n, seeded())
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


# Datasets


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
        patch.setattr(dataset, "render_patient", lambda *a, **k: pytest.fail("rendered again"))
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

    monkeypatch.setattr(dataset, "render_patient", interrupted)
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
    (tmp_path / f"{storage.PARTIAL}train-0000-abc").mkdir()
    (tmp_path / f"{storage.PARTIAL}train-0000-abc" / "us.nii.gz").write_bytes(b"half")
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
        with pytest.raises(OSError, match="MMPOE_CACHE") as caught:
            call()
        assert str(file) in str(caught.value)


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
    }.items():
        with pytest.raises(ValueError, match=f"'{name}' should be .*but is {value!r}"):
            render_patient(**{"seed": 0, "atlas": brain, name: value})
    with pytest.raises(ValueError, match="'name' should be one of 'remind-files', 'paper-87'"):
        draw_patterns("half", 3, seeded())
    with pytest.raises(ValueError, match="'n' should be an integer"):
        draw_patterns("paper-87", -3, seeded())
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

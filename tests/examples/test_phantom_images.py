"""The phantom's images: physics against equations and distributions, and whole patients."""

import json

import numpy as np
import pytest
from numpy.random import default_rng
from scipy import ndimage, stats

from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.phantom import TISSUE_NAMES, mri, render_patient
from examples.medical_mri_us.phantom.probe import Fan, ProbeGrid, choose_pose
from examples.medical_mri_us.phantom.sweep import (
    Frame,
    compound,
    random_frames,
    sweep_bands,
)
from examples.medical_mri_us.phantom.tissues import tissue_index
from examples.medical_mri_us.phantom.ultrasound import (
    UltrasoundSettings,
    log_compress,
    speckle_envelope,
)

pytestmark = pytest.mark.slow

RAYLEIGH_SNR = np.sqrt(np.pi / (4 - np.pi))  # 1.913


# Magnetic resonance


def test_noise_is_rician():
    for signal in (0.0, 10.0, 40.0):
        image = np.full((200, 200, 5), signal, dtype=np.float32)
        noisy = mri.add_rician_noise(default_rng(0), image, 10.0)
        expected = stats.rice(signal / 10, scale=10)
        error = expected.std() / np.sqrt(noisy.size)
        assert noisy.mean() == pytest.approx(expected.mean(), abs=4 * error)
        assert noisy.std() == pytest.approx(expected.std(), rel=0.01)


def test_flair_nulls_fluid():
    csf, grey = tissue_index("csf"), tissue_index("grey_matter")
    for seed in range(20):
        tissue = mri.Relaxation.of_patient(default_rng(seed))
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
        plain = mri.Relaxation.of_patient(default_rng(seed))
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
    tissue = mri.Relaxation.of_patient(default_rng(0))
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
    assert level("cet1", "vessel") > 1.3 * level("cet1", white)
    assert level("t2", "vessel") < level("t2", "csf")
    assert level("us", "pia") > 1.5 * level("us", white)
    assert level("flair", "oedema") > level("flair", white) > level("flair", "csf")
    assert level("us", "tumour") > level("us", white) > level("us", "csf")
    assert all(150 < level(name, white) < 600 for name in ("t2", "cet1", "flair"))


# Ultrasound


@pytest.mark.parametrize("defocus", [0.0, 0.5, 1.0])
def test_speckle_of_a_homogeneous_block_is_rayleigh(defocus):
    amplitude = np.full((600, 600), 0.3, dtype=np.float32)
    blur = np.full((600, 1), defocus, dtype=np.float32)
    envelope = speckle_envelope(default_rng(0), amplitude, (0.8, 0.5), (1.04, 1.2), blur)
    assert envelope.mean() / envelope.std() == pytest.approx(RAYLEIGH_SNR, rel=0.02)
    assert (envelope**2).mean() == pytest.approx(2 * 0.3**2, rel=0.03)
    quantiles = np.quantile(envelope, [0.1, 0.5, 0.9])
    assert quantiles == pytest.approx(stats.rayleigh(scale=0.3).ppf([0.1, 0.5, 0.9]), rel=0.03)


def test_reflections_make_the_speckle_rician():
    amplitude = np.ones((400, 400), dtype=np.float32)
    shape = ((0.8, 0.5), (1.0, 1.2), np.zeros((400, 1), dtype=np.float32))
    bright = speckle_envelope(default_rng(0), amplitude, *shape, reflection=3.0)
    expected = stats.rice(3.0)
    assert bright.mean() == pytest.approx(expected.mean(), rel=0.02)
    assert bright.std() == pytest.approx(expected.std(), rel=0.03)


def test_frames_of_a_sweep_map_beams_and_pixels_to_each_other():
    fan = Fan(apex=-22.0, radius=18.0, reach=80.0, half_angle=0.65)
    grid = ProbeGrid(np.zeros(3), np.eye(3), 96, 1.0, 1, 2.0)
    ranges, angles = np.linspace(0, 80, 40), np.linspace(-0.65, 0.65, 30)
    for frame in (Frame(0.0, 0.0, 0.0), Frame(0.15, -2.0, 1.0), Frame(-0.1, 3.0, 0.0)):
        rows, columns = frame.pixels(fan, grid, ranges, angles)
        inside = (rows > 1) & (rows < 94) & (columns > 1) & (columns < 94)
        distance, angle = frame.polar(fan, grid)
        for volume, expected in (
            (distance, np.broadcast_to(fan.radius + ranges[:, None], rows.shape)),
            (angle, np.broadcast_to(angles, rows.shape)),
        ):
            found = ndimage.map_coordinates(volume, (rows, columns), order=1)
            assert found[inside] == pytest.approx(expected[inside], abs=0.02)
    straight = Frame(0.0, 0.0, 0.0).polar(fan, grid)
    assert all(np.allclose(a, b) for a, b in zip(straight, fan.polar(grid), strict=True))


def test_compounding_calms_the_speckle_and_covers_the_fan():
    rng = default_rng(0)
    frames = 20 * np.log10(rng.rayleigh(size=(4, 300, 300)))
    angle = np.zeros((4, 300, 300))
    angle[1:, :, 200:] = 0.7  # beyond the fan of all frames but the first
    mean = compound(frames, angle, 0.6)
    one = frames[0].std()
    assert one == pytest.approx(5.57, abs=0.05)  # dB, of fully developed speckle
    assert mean[:, :200].std() == pytest.approx(one / 2, rel=0.03)
    assert mean[:, 200:] == pytest.approx(frames[0, :, 200:])
    angle[0] = 0.7
    assert np.isfinite(compound(frames, angle, 0.6)).all()


def test_hands_are_unsteady_and_the_first_frame_looks_straight_ahead():
    sweep = random_frames(default_rng(0), 40, 3)
    tilts, offsets, gains = (
        np.array([[getattr(frame, name) for frame in frames] for frames in sweep])
        for name in ("tilt", "offset", "gain")
    )
    assert tilts.shape == (40, 3)
    assert np.abs(np.median(tilts, axis=0)[0]) < np.deg2rad(0.3)
    assert np.all(np.abs(np.rad2deg(np.median(tilts, axis=0)[1:])) > 2.5)
    assert np.prod(np.sign(np.median(tilts, axis=0)[1:])) == -1
    assert tilts.std(axis=0) == pytest.approx(np.deg2rad(0.4), rel=0.35)
    assert offsets.std(axis=0) == pytest.approx(0.25, rel=0.35)
    assert gains.std() == pytest.approx(0.8, rel=0.2)


def test_sweeps_leave_mild_stripes_with_few_gaps():
    grid = ProbeGrid(np.zeros(3), np.eye(3), 128, 0.75, 4, 2.0)
    bands = np.stack([sweep_bands(default_rng(seed), grid) for seed in range(20)])
    assert bands.shape == (20, *grid.shape)
    assert 0.3 < bands.std() < 1.5  # dB
    assert (bands < -2).mean() < 0.1
    assert bands.min() < -2
    assert bands.max() < 3
    # They run along the depth: next to each other in depth is more alike than across.
    assert np.abs(np.diff(bands, axis=1)).mean() < 0.6 * np.abs(np.diff(bands, axis=2)).mean()


def test_gain_puts_the_median_of_the_brain_at_its_grey_level():
    setting = UltrasoundSettings.random(default_rng(0))
    decibel = default_rng(0).normal(-40, 5, (50, 50, 2)).astype(np.float32)
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
    poses = np.array([choose_pose(default_rng(seed), contact, target) for seed in range(50)])
    assert poses @ poses.swapaxes(1, 2) == pytest.approx(np.tile(np.eye(3), (50, 1, 1)), abs=1e-5)
    assert np.linalg.det(poses) == pytest.approx(np.ones(50), abs=1e-5)
    assert np.median(aim @ poses[:, :, 0].T) > 0.95
    assert abs(np.median(aim @ poses[:, :, 1].T)) < 0.1


def test_grid_points_follow_the_affine():
    pose = choose_pose(default_rng(0), np.zeros(3), np.array([1.0, 2.0, 3.0]))
    grid = ProbeGrid(np.array([10.0, -20.0, 30.0]), pose, 8, 0.7, 3, 2.5)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    expected = np.tensordot(grid.affine[:3, :3], voxels, 1) + grid.affine[:3, 3, None, None, None]
    assert grid.points() == pytest.approx(expected, abs=1e-4)

"""The phantom's anatomy: the atlas, its deformation, the tumour and the tissues."""

import importlib.util

import numpy as np
import pytest
from numpy.random import default_rng

from examples.medical_mri_us.phantom import TISSUE_NAMES, atlas, load_atlas
from examples.medical_mri_us.phantom.anatomy import Lesion, build_anatomy, random_lesion
from examples.medical_mri_us.phantom.deformation import random_warp, smooth_noise
from examples.medical_mri_us.phantom.probe import ProbeGrid, choose_pose
from examples.medical_mri_us.phantom.tissues import mix, tissue_index, tissue_values
from examples.medical_mri_us.phantom.tumour import VISIBLE_DENSITY, grow_tumour, growth_step

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
    monkeypatch.setattr(atlas, "build_atlas", lambda name: pytest.fail("built again"))
    again = load_atlas()
    for name, value in vars(brain).items():
        assert np.array_equal(getattr(again, name), value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text"])
def test_a_damaged_atlas_is_built_again(brain, damage, tmp_path, cache, monkeypatch):
    (stored,) = (cache / "phantom").glob("atlas-*.npz")
    damaged = tmp_path / "phantom" / stored.name
    damaged.parent.mkdir()
    damaged.write_bytes(damage(stored.read_bytes()))
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(atlas, "build_atlas", lambda name: brain)
    assert load_atlas() is brain
    monkeypatch.setattr(atlas, "build_atlas", lambda name: pytest.fail("built again"))
    assert np.array_equal(load_atlas().maps, brain.maps)


def test_without_nilearn_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"'medical' extra"):
        load_atlas()


# Deformation and tumour


def test_smooth_noise_is_standardised_and_as_wide_as_asked():
    field = smooth_noise(default_rng(0), (96, 96, 40), (6.0, 6.0, 3.0))
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
        rng = default_rng(seed)
        anchor = brain.surface[rng.integers(len(brain.surface))]
        target = brain.tumour_sites[rng.integers(len(brain.tumour_sites))]
        warp = random_warp(rng, brain.origin, brain.upper, anchor)
        assert 0 < warp.min_jacobian < 1
        assert warp.pull(anchor[:, None])[:, 0] == pytest.approx(anchor, abs=1e-3)
        assert warp.pull(warp.push(target)[:, None])[:, 0] == pytest.approx(target, abs=0.05)
        assert np.linalg.norm(warp.push(target) - target) > 0.01


def test_a_violent_displacement_is_reported_as_folded(brain):
    warp = random_warp(
        default_rng(0), brain.origin, brain.upper, brain.surface[0], amplitude=40, squarings=0
    )
    assert warp.min_jacobian < 0


def test_growth_conserves_cells_that_only_move():
    rng = default_rng(0)
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
        centre = brain.tumour_sites[default_rng(seed).integers(len(brain.tumour_sites))]
        tumour = grow_tumour(default_rng(seed), brain, centre, volume_ml)
        assert volume_ml <= tumour.volume_ml < 1.15 * volume_ml
        voxels = (tumour.density > VISIBLE_DENSITY).sum()
        assert tumour.volume_ml == pytest.approx(voxels * tumour.spacing**3 / 1000)
        assert tumour.density_at(centre[:, None]) > VISIBLE_DENSITY


# Anatomy


def test_partial_volumes_fill_the_brain(brain):
    rng = default_rng(3)
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
    fractions = default_rng(0).uniform(0, 1, (len(TISSUE_NAMES), 3, 4)).astype(np.float32)
    values = tissue_values("attenuation")
    assert mix(values, fractions) == pytest.approx(np.tensordot(values, fractions, 1), rel=1e-5)

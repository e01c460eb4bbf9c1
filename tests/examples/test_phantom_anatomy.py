"""The phantom's anatomy: the atlas, its deformation, the tumour and the tissues."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.random import default_rng

from examples.medical_mri_us.phantom import TISSUE_NAMES, atlas, colin, load_atlas
from examples.medical_mri_us.phantom.anatomy import (
    TUMOUR_LABELS,
    Anatomy,
    Head,
    build_anatomy,
    supply_head,
)
from examples.medical_mri_us.phantom.colin import COLIN27, three_classes
from examples.medical_mri_us.phantom.deformation import random_warp, smooth_noise
from examples.medical_mri_us.phantom.lesion import Lesion, lesion_texture, random_lesion
from examples.medical_mri_us.phantom.probe import ProbeGrid, choose_pose
from examples.medical_mri_us.phantom.tissues import mix, tissue_index, tissue_values
from examples.medical_mri_us.phantom.tumour import VISIBLE_DENSITY, grow_tumour, growth_step
from examples.medical_mri_us.phantom.vessels import Vessels, draw_vessels, grow_vessels, tree_grid

pytestmark = pytest.mark.slow

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


@pytest.mark.skipif(
    not COLIN27.is_file(), reason="Colin27 of Debian's mricron-data is not installed"
)
def test_colin27_is_another_brain(brain):
    colin = load_atlas("colin27")
    assert (colin.name, brain.name) == ("colin27", "mni")
    csf, grey, white, ventricle, _ = colin.maps.sum((1, 2, 3), dtype=float) / 255 / 1000  # ml
    assert 1300 < csf + grey + white < 2200
    assert 400 < white < 900
    assert 500 < grey < 1250
    assert 5 < ventricle < 80
    points = brain.tumour_sites.T
    assert colin.sample("white", points).mean() > 0.6  # registered to the MNI space
    assert np.abs(colin.sample("grey", points) - brain.sample("grey", points)).mean() > 0.05


def test_without_colin27_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    monkeypatch.setattr(colin, "COLIN27", tmp_path / "ch2bet.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"mricron-data.*apt-get install mricron-data"):
        load_atlas("colin27")
    with pytest.raises(ValueError, match=r"'name' should be one of 'mni', 'colin27'"):
        load_atlas("both")


def test_three_classes_finds_a_mixture_of_gaussians():
    rng = default_rng(0)
    truth = rng.choice(3, size=60_000, p=[0.2, 0.45, 0.35])
    image = rng.normal(np.array([20.0, 60.0, 100.0])[truth], np.array([7.0, 9.0, 6.0])[truth])
    inside = np.ones(image.shape, dtype=bool)
    inside[-100:] = False
    fractions = three_classes(image.astype(np.float32), inside)
    assert fractions[:, inside].sum(0) == pytest.approx(1, abs=1e-5)
    assert np.all(fractions[:, ~inside] == 0)
    assert fractions[:, inside].mean(1) == pytest.approx([0.2, 0.45, 0.35], abs=0.02)
    assert (fractions.argmax(0) == truth)[inside].mean() > 0.97


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
    head = supply_head(rng, Head(brain, warp, tumour, lesion), contact, pose)
    anatomy = build_anatomy(rng, head, grid)
    assert anatomy.fractions.shape == (len(TISSUE_NAMES), *grid.shape)
    assert anatomy.fractions.min() >= 0
    total = anatomy.fractions.sum(0)
    assert total[anatomy.brain > 0.999] == pytest.approx(1, abs=1e-3)
    assert total == pytest.approx(anatomy.brain, abs=1e-4)
    assert np.all(anatomy.fractions[:, anatomy.brain == 0] == 0)
    assert (anatomy.brain > 0.999).mean() > 0.2
    for name in ("enhancing_rim", "necrosis", "oedema", "tumour", "vessel"):
        assert anatomy.fractions[tissue_index(name)].max() > 0.5


def test_mix_is_the_weighted_sum():
    fractions = default_rng(0).uniform(0, 1, (len(TISSUE_NAMES), 3, 4)).astype(np.float32)
    values = tissue_values("attenuation")
    assert mix(values, fractions) == pytest.approx(np.tensordot(values, fractions, 1), rel=1e-5)


def test_texture_divides_the_solid_part_and_follows_the_kind_of_tumour():
    lesion = random_lesion(default_rng(0))

    def draw(**changes):
        rng = default_rng(1)
        kind = Lesion(**{**vars(lesion), **changes})
        return lesion_texture(lambda width: smooth_noise(rng, (48, 48, 24), [width] * 3), kind)

    cysts, loose, patches = draw(enhancing=True, cystic=0.2)
    for part in (cysts, loose, patches):
        assert part.min() >= 0
        assert part.std() > 0.02
    assert (cysts + loose + patches).max() <= 1
    assert draw(enhancing=False)[2].max() == 0
    few, many = (draw(cystic=cystic)[0].mean() for cystic in (0.1, 0.3))
    assert 0 < few < 0.05 < many < 0.4


# Vessels


def sulci_on_a_grid():
    """Two perpendicular sheets of fluid that meet in a line, in tissue."""
    points = tree_grid(np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    sulcus = np.zeros(points.shape[1:], dtype=np.float32)
    sulcus[:, 15] = sulcus[15] = 1
    return points, sulcus, 1 - sulcus


def grown(enhancing=False):
    points, sulcus, tissue = sulci_on_a_grid()
    rim = np.zeros_like(sulcus)
    rim[25:28, 4:8, 8:12] = 1
    vessels = grow_vessels(default_rng(0), points, sulcus, tissue, rim, enhancing=enhancing)
    return vessels, points, sulcus, rim


def test_vessels_are_trees_that_follow_the_sulci_and_feed_the_tumour():
    vessels, points, sulcus, rim = grown()
    begin, end = vessels.ends.swapaxes(0, 1)  # (E, 3)
    # A tube begins where another one ends, but for those that leave the roots.
    gap = np.linalg.norm(begin[:, None] - end[None], axis=2).min(1)
    orphans = np.unique(np.round(begin[gap > 1e-6], 6), axis=0)
    assert 1 <= len(orphans) <= 2
    # No point is reached twice: there are no loops.
    assert len(np.unique(np.round(end, 6), axis=0)) == len(end)
    node = np.linalg.norm(points.reshape(3, -1).T[:, None] - end[None, ::7], axis=2).argmin(0)
    assert sulcus.ravel()[node].mean() > 0.5 > 3 * sulcus.mean()

    def feeders(vessels):
        place = points.reshape(3, -1).T[rim.ravel() > 0].mean(0)
        return (np.linalg.norm(vessels.ends[:, 1] - place, axis=1) < 8).sum()

    assert feeders(grown(enhancing=True)[0]) > feeders(vessels) > 0


def test_radii_follow_murrays_law(monkeypatch):
    from examples.medical_mri_us.phantom import vessels as module

    monkeypatch.setattr(module, "_WIDEST", np.inf)
    vessels = grown()[0]
    begin, end = (np.round(x, 6) for x in vessels.ends.swapaxes(0, 1))
    entering = {
        tuple(place): radius for place, radius in zip(end, vessels.radii[:, 1], strict=True)
    }
    assert min(entering.values()) == pytest.approx(module._LEAF_RADIUS)
    leaving: dict[tuple[float, ...], list[int]] = {}
    for tube, place in enumerate(begin):
        leaving.setdefault(tuple(place), []).append(tube)
    branchings = 0
    for place, tubes in leaving.items():
        if place in entering and len(tubes) > 1:
            # Each tube has two halves; the radius that a branch needs is that at its far end.
            far = {tuple(begin[t]): t for t in range(len(begin))}
            supplied = sum(vessels.radii[far[tuple(end[t])], 1] ** 3 for t in tubes)
            own = (entering[place] ** 3 - supplied) / module._LEAF_RADIUS**3
            assert own == pytest.approx(round(own), abs=1e-6)  # leaves in the branching itself
            assert own > -0.5
            branchings += 1
    assert branchings > 20
    assert max(entering.values()) > 3 * module._LEAF_RADIUS


def test_a_tube_is_drawn_as_deep_as_it_is():
    ends = np.array([[[0.0, 0.0, 0.0], [24.0, 0.0, 0.0]]])
    tube = Vessels(ends, np.array([[1.5, 0.5]]))
    grid = ProbeGrid(np.array([6.0, 0, 0]), np.eye(3), 48, 0.5, 3, 2.0)
    depth = draw_vessels(tube, grid)
    x, y, z = grid.points()
    nearest = np.clip(x, 0, 24)
    expected = 1.5 - nearest / 24 - np.sqrt((x - nearest) ** 2 + y**2 + (0.6 * z) ** 2)
    close = expected > -0.5
    assert close.sum() > 200
    assert depth[close] == pytest.approx(expected[close], abs=0.1)
    assert np.all(depth[expected < -1] < -0.5)
    nothing = Vessels(np.zeros((0, 2, 3)), np.zeros((0, 2)))
    assert np.all(draw_vessels(nothing, grid) == -2)


def test_without_a_sulcus_there_are_no_vessels():
    points, sulcus, tissue = sulci_on_a_grid()
    none = grow_vessels(default_rng(0), points, 0 * sulcus, tissue, 0 * sulcus, enhancing=True)
    assert none.ends.shape == (0, 2, 3)


def test_a_lesion_is_labelled_where_its_parts_together_fill_more_than_half():
    parts = np.zeros((4, 5))  # solid, oedema, necrosis, rim
    parts[:, 0] = 0.3, 0.3, 0.0, 0.0  # no part alone does
    parts[:, 1] = 0.1, 0.5, 0.0, 0.2
    parts[:, 2] = 0.2, 0.1, 0.4, 0.1
    parts[:, 3] = 0.1, 0.1, 0.1, 0.3
    parts[:, 4] = 0.2, 0.2, 0.0, 0.0
    labels = Anatomy.tumour_labels(SimpleNamespace(lesion=parts))
    names = ["solid tumour", "oedema", "necrosis", "enhancing rim", "background"]
    assert labels.tolist() == [TUMOUR_LABELS[name] for name in names]

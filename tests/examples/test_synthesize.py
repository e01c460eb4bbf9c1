"""Synthesis of volumes: on the grid of the input, from any subset, whole or not at all."""

import gzip
import itertools
import json
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from volumes import AFFINE, SMALL, make_run, volume, write, write_index

from examples.medical_mri_us.data import CaseError, Grid, Image, axis_codes, reorient
from examples.medical_mri_us.data.grids import orientations
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import add_spread, build_model, load_model
from examples.medical_mri_us.subcommands.synthesize import Synthesize, run
from examples.medical_mri_us.synthesis import slices as slices_module
from examples.medical_mri_us.synthesis.case import synthesise_case
from examples.medical_mri_us.synthesis.frame import Frame
from examples.medical_mri_us.synthesis.intensities import to_model
from examples.medical_mri_us.synthesis.jobs import choose, stem
from examples.medical_mri_us.synthesis.slices import Made, Noise, predict_tiles, tile_stride
from examples.medical_mri_us.windows import Tiles, Window
from mmpoe.imputation import add_matched_experts

pytestmark = pytest.mark.slow

PNG = b"\x89PNG"
DESCRIPTION = {"architecture": {"size": 16}, "normalisation": "as here"}


def rotation(degrees=(20, -35, 50)):
    """An oblique direction."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


def oriented(codes, spacing=(1.5, 1.5, 2.0), oblique=False):
    """An affine whose voxel axes point to where the codes say."""
    turn = orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k, (axis, sign) in enumerate(turn):
        affine[int(axis), k] = sign * spacing[k]
    if oblique:
        affine[:3, :3] = rotation() @ affine[:3, :3]
    affine[:3, 3] = (-31.4, 15.9, -26.5)
    return affine


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(16, MODALITIES, SMALL).eval()


@pytest.fixture
def trained(tmp_path):
    """The folder of a run."""
    return make_run(tmp_path / "run")


def synthesise(model, images, description=DESCRIPTION, **options):
    options = {"targets": ["t2"], "samples": 2, "progress": False, **options}
    return synthesise_case(model, description, images, **options)


# grids


@pytest.mark.parametrize("axes", [None, "RAS", "IAR"])
@pytest.mark.parametrize(
    ("codes", "oblique"),
    [
        ("RAS", False),
        ("LPS", False),
        ("LAS", False),
        ("SRP", False),
        ("IAR", False),
        ("RAS", True),
    ],
)
def test_outputs_have_the_grid_of_the_input(codes, oblique, axes, trained, tmp_path):
    """Shape and affine, in six orientations, one of them oblique, whatever the model's axes."""
    description = json.loads((trained / "model" / "model.json").read_text())
    description["axes"] = axes
    del description["description_sha256"]
    (trained / "model" / "model.json").write_text(json.dumps(description))
    affine = oriented(codes, oblique=oblique)
    data = volume(0, (16, 13, 11))
    file = write(tmp_path / "p.nii.gz", data, affine)
    out = tmp_path / "out"
    assert run(Synthesize(trained, out=out, us=file, target="t2", samples=2, device="cpu")) == 0
    for what in ("mean", "std", "sample01", "sample02"):
        made = nib.load(out / f"p_t2_{what}.nii.gz")
        assert made.shape == data.shape
        assert np.abs(made.affine - affine).max() < 1e-5
        given, other = sitk.ReadImage(str(file)), sitk.ReadImage(str(out / f"p_t2_{what}.nii.gz"))
        assert other.GetSize() == given.GetSize()
        for place in ("GetOrigin", "GetSpacing", "GetDirection"):
            ours, theirs = (getattr(image, place)() for image in (other, given))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        values = made.get_fdata()
        assert (values[data == 0] == 0).all()  # out of view
        assert (values[data > 0] > 0).any()


@pytest.mark.parametrize("codes", ["LPS", "SRP", "IAR", "AIL"])
def test_a_case_that_is_stored_otherwise_is_synthesised_alike(codes, model):
    """With axes of the model's own, voxels get the same values however they are stored."""
    description = {**DESCRIPTION, "axes": "RAS", "spacing": [1.5, 1.5, 2.0]}
    image = Image(volume(0, (16, 12, 5)), oriented("RAS", oblique=True))
    codes = codes if codes != "RAS" else "LPS"
    other = reorient(image, codes)
    one, two = (synthesise(model, {"us": i}, description).mean["t2"] for i in (image, other))
    back = reorient(Image(two, other.affine), axis_codes(image.affine))
    np.testing.assert_allclose(back.data, one, atol=1e-4)
    assert np.ptp(one) > 1


@pytest.mark.parametrize(
    "turn",
    list(itertools.product(itertools.permutations("RAS"), itertools.product((0, 1), repeat=3))),
)
def test_frames_are_undone(turn):
    """All 48 orders and signs of axes: what goes to the model comes back to its voxel."""
    letters, flips = turn
    mirror = {"R": "L", "A": "P", "S": "I"}
    codes = "".join(mirror[c] if f else c for c, f in zip(letters, flips, strict=True))
    rng = np.random.default_rng(0)
    image = Image(rng.normal(size=(5, 7, 6)).astype(np.float32), oriented(codes))
    description = {"architecture": {"size": 8}, "axes": "RAS"}
    frame = Frame.of(Grid.of(image), description)
    assert np.array_equal(frame.back(frame.forward(image.data)), image.data)
    wanted = np.moveaxis(reorient(image, "RAS").data, -1, 0)
    assert np.array_equal(frame.forward(image.data), wanted)
    assert image.data.shape[frame.slice_axis] == len(wanted)


def test_pixels_are_resampled_to_the_models_and_back():
    """A ramp stays where it is in mm: pixels are boxes, whose edges agree."""
    grid = Grid((12, 20, 4), oriented("RAS", (1.0, 0.5, 3.0)))
    rows, columns = (np.arange(12) + 0.5) * 1.0, (np.arange(20) + 0.5) * 0.5  # mm
    ramp = (rows[:, None] + 10 * columns)[..., None] * np.ones(4)
    ramp = ramp.astype(np.float32)
    description = {"architecture": {"size": 24}, "axes": "RAS", "spacing": [0.5, 0.5, 9.0]}
    frame = Frame.of(grid, description)
    assert frame.record()["resampled_to"] == [24, 20]
    fine = frame.forward(ramp)  # (4, 24, 20)
    expected = (np.arange(24)[:, None] + 0.5) * 0.5 + 10 * columns
    np.testing.assert_allclose(fine[2, 1:-1], expected[1:-1], rtol=1e-5)
    np.testing.assert_allclose(frame.back(frame.forward(ramp))[1:-1], ramp[1:-1], rtol=1e-5)
    close = {**description, "spacing": [1.01, 0.5, 9.0]}
    assert Frame.of(grid, close).pixels == (12, 20)


def test_windows_pad_small_slices_and_follow_what_is_in_view():
    fov = np.zeros((2, 10, 30), bool)
    fov[1, 2:5, 20:26] = True
    window = Window.around(fov, 16)
    assert window.start == (-3, 14)  # the middle of 10 rows; columns of which 23 is in the middle
    x = np.random.default_rng(0).normal(size=(2, 10, 30))
    cut = window.cut(x, -1.0)
    assert cut.shape == (2, 16, 16)
    assert (cut[:, :3] == -1).all()
    assert (cut[:, 13:] == -1).all()
    assert np.array_equal(cut[:, 3:13], x[..., 14:30])
    back = np.zeros_like(x)
    window.add(cut, back)
    assert np.array_equal(back[..., 14:], x[..., 14:])
    assert (back[..., :14] == 0).all()
    far = np.zeros((1, 40, 40), bool)
    far[0, 39, 0] = True
    assert Window.around(far, 16).start == (24, 0)
    assert Window.around(np.zeros((1, 40, 40), bool), 16).start == (12, 12)


def test_what_fits_is_one_window_and_what_does_not_is_tiles(model):
    found = synthesise(model, {"us": Image(volume(0, (16, 40, 3)), AFFINE)})
    inside = found.fov
    assert inside.sum() == 12 * 38 * 3
    assert (found.mean["t2"] > 0)[inside].mean() > 0.99
    assert not found.mean["t2"][~inside].any()
    assert found.record["view_cut_off"] == 0
    assert found.record["window_starts"] == [[0], [0, 8, 16, 24]]
    small = np.zeros((16, 40, 3), np.float32)
    small[2:-2, 20:34] = volume(0, (16, 16, 3))[2:-2, 1:-1]
    assert synthesise(model, {"us": Image(small, AFFINE)}).record["window_starts"] == [[0], [19]]


class Moving(torch.nn.Module):
    """A model whose prediction moves with its input: a convolution that reaches some pixels."""

    def __init__(self, reach):
        super().__init__()
        self.modalities, self.best_experts, self.spread = list(MODALITIES), "trained", None
        kernel = torch.rand((1, 1, 2 * reach + 1, 2 * reach + 1)) / (2 * reach + 1) ** 2
        self.kernel = torch.nn.Parameter(kernel)
        self.groups = [types.SimpleNamespace(shape=(1, side, side)) for side in (8, 32)]

    def encode(self, x, given):
        return x

    def infer(self, x, given, *, noise, temperature, experts):
        state = torch.nn.functional.conv2d(x["us"], self.kernel, padding="same")[None]
        if noise is not None:
            for draws in noise:
                shape = draws.shape[-1]
                state = state + 0.1 * temperature * draws.repeat_interleave(
                    32 // shape, -1
                ).repeat_interleave(32 // shape, -2)
        return types.SimpleNamespace(state=state)

    def decode(self, state, targets):
        return {m: torch.distributions.Normal(state, 0.1) for m in targets}


def kept(model, x, fov, tiles, **options):
    """The images that are made of T2, by what they are, (number, slices, height, width)."""
    found = {}

    def keep(made, k, image):
        assert made.target == "t2"
        found[made][k] = image

    samples = options["samples"]
    for made in (
        Made("mean", "t2"),
        Made("std", "t2"),
        *(Made("sample", "t2", k) for k in range(samples)),
    ):
        found[made] = np.zeros(x.shape, np.float32)
    options = {"progress": False, "seed": 0, **options}
    covered = predict_tiles(model, {"us": x}, fov, ["t2"], tiles, keep, **options)
    assert covered.all()
    return {
        what: np.stack([v for made, v in found.items() if made.what == what])
        for what in ("mean", "std", "sample")
    }


@pytest.mark.parametrize("shape", [(100, 70), (32, 45), (33, 90)])
@pytest.mark.parametrize("reach", [0, 2, 4])
def test_seams_of_tiles_are_invisible(shape, reach):
    """Tiles make the image of one pass over the whole, if the network moves with its input."""
    torch.manual_seed(0)
    model, rng = Moving(reach), np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, *shape)).astype(np.float32)
    fov = np.ones(x.shape, bool)
    tiles = Tiles.over(fov, 32, tile_stride(model, 32))
    assert tiles.stride == 16
    options = {"samples": 3, "temperature": 0.5, "seed": 0, "progress": False}
    found = kept(model, x, fov, tiles, **options)
    pads = [(-s[0], s[-1] + 32 - n) for s, n in zip(tiles.starts, shape, strict=True)]
    padded = np.pad(x, [(0, 0), *pads], constant_values=-1)  # as far as the tiles reach
    once = torch.nn.functional.conv2d(
        torch.from_numpy(padded)[:, None], model.kernel, padding="same"
    )[:, 0].detach()
    once = once[:, pads[0][0] :, pads[1][0] :][:, : shape[0], : shape[1]]
    np.testing.assert_allclose(found["mean"][0], once, atol=1e-6)
    noise = found["sample"] - found["mean"]  # one field: alike in all slices
    np.testing.assert_allclose(noise[:, 0], noise[:, 1], atol=1e-5)
    assert noise.std() == pytest.approx(0.05 * 2**0.5, rel=0.25)
    ours = Noise(model, 3, 0, tiles)
    fine = np.zeros((3, *shape), np.float32)
    for tile in tiles:  # no tile disagrees with its neighbours
        coarse, own = (n.numpy()[:, 0] for n in ours.at(tile.place))
        whole = 0.05 * (coarse.repeat(4, -1).repeat(4, -2) + own)
        window = tile.window
        i, j = (slice(max(0, s), s + 32) for s in window.start)
        part = whole[:, max(0, -window.start[0]) :, max(0, -window.start[1]) :]
        fine[:, i, j] = part[:, : fine[:, i, j].shape[1], : fine[:, i, j].shape[2]]
    np.testing.assert_allclose(noise[:, 0], fine, atol=1e-5)


@pytest.mark.parametrize("extent", [5, 16, 17, 24, 25, 40])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_tiles_cover_what_is_in_view(extent, stride):
    fov = np.zeros((1, 50, 60), bool)
    fov[:, 7 : 7 + extent, 30:34] = True
    tiles = Tiles.over(fov, 16, stride)
    assert tiles.number[1] == 1
    assert tiles.number[0] == (1 if extent <= 16 else 1 + -(-(extent - 16) // stride))
    total = np.zeros((50, 60), np.float32)
    for tile in tiles:
        tile.window.add(tile.weight, total)
    assert (total[fov[0]] > 0).all()
    if stride >= 8:  # no more than two tiles in one place
        np.testing.assert_allclose(total[fov[0]], 1, atol=1e-6)


def test_one_tile_has_the_noise_of_the_model(model):
    """Samples of slices that fit are those of the seed alone."""
    tiles = Tiles.over(np.ones((1, 16, 16), bool), 16, tile_stride(model, 16))
    generator = torch.Generator().manual_seed(3)
    for found, group in zip(Noise(model, 2, 3, tiles).at((0, 0)), model.groups, strict=True):
        assert torch.equal(found, torch.randn((2, *group.shape), generator=generator))


@pytest.mark.parametrize("kind", ["ringing", "zscore"])
def test_the_background_of_mr_is_removed_as_prepare_does(kind, model):
    """The view is the brain, however negative some of its voxels, or some around it, are."""
    brain = volume(0)
    inside = brain > 0
    image = brain.copy()
    if kind == "ringing":
        image[1, 1:-1] = -20
    else:
        image[inside] = (brain[inside] - brain[inside].mean()) / brain[inside].std()
    found = synthesise(model, {"t2": Image(image, AFFINE)}, targets=["us"])
    assert np.array_equal(found.fov, inside)
    assert len(found.record["notes"]) == 1
    assert found.record["notes"][0].startswith("t2: ")
    if kind == "ringing":
        alike = synthesise(model, {"t2": Image(brain, AFFINE)}, targets=["us"])
        assert np.array_equal(found.mean["us"], alike.mean["us"])
        assert alike.record["notes"] == []


@pytest.mark.parametrize("codes", ["RAS", "SRP"])
def test_holes_of_a_fan_are_in_view(codes, model):
    """Exactly 0 within a slice of the model, whichever axis of the file counts slices."""
    description = {**DESCRIPTION, "axes": "RAS"}
    us = volume(0, (16, 16, 4))
    us[6:9, 5:9, 1] = 0
    image = reorient(Image(us, oriented("RAS")), codes)
    found = synthesise(model, {"us": image}, description)
    whole = reorient(Image(found.fov.astype(np.float32), image.affine), "RAS").data
    wanted = np.zeros(us.shape)
    wanted[2:-2, 1:-1] = 1
    assert np.array_equal(whole, wanted)
    mean = reorient(Image(found.mean["t2"], image.affine), "RAS").data
    assert (mean[6:9, 5:9, 1] > 0).any()


def test_modalities_share_a_grid_or_are_brought_to_it(model):
    """Fault 15: both grids are named; to 1e-3 mm."""
    us = Image(volume(0), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 5e-4
    alike = synthesise(model, {"us": us, "flair": Image(volume(1), AFFINE)}).mean["t2"]
    close = synthesise(model, {"us": us, "flair": Image(volume(1), moved)}).mean["t2"]
    assert np.array_equal(alike, close)
    moved[0, 3] = 3.0  # two voxels
    images = {"flair": Image(volume(1), moved), "us": us}
    with pytest.raises(CaseError, match=r"flair should lie on the grid of us, 16 x 16 x 3 of 1.5"):
        synthesise(model, images)
    found = synthesise(model, images, to_first=True)
    assert found.grid.affine is us.affine
    shifted = found.images["flair"][4:-2, 4] / volume(1)[2:-4, 4]
    assert np.ptp(shifted) < 1e-4  # the voxels of two rows before, times one number


# what is synthesised


def test_the_mean_is_the_prediction_at_the_mean(model):
    us = Image(volume(0), AFFINE)
    found = synthesise(model, {"us": us}, targets=["t2", "us"])
    x = torch.from_numpy(np.moveaxis(to_model(us.data, us.data > 0, "us", DESCRIPTION), -1, 0))
    wanted = model.predict({"us": x[:, None]}, temperature=0.0)
    for m in ("t2", "us"):
        image = np.moveaxis(wanted[m].mean[:, 0].numpy(), 0, -1)
        image = np.where(us.data > 0, (image + 1) / 2 * 255, 0).clip(0, 255)
        np.testing.assert_allclose(found.mean[m], image, atol=1e-3)


def test_samples_depend_on_seed_and_temperature_and_not_on_batches(model):
    us = Image(volume(0), AFFINE)

    def samples(**options):
        return np.stack(synthesise(model, {"us": us}, samples=3, **options).samples["t2"])

    one = samples()
    assert np.array_equal(one, samples())
    np.testing.assert_allclose(samples(batch=1), one, atol=1e-3)
    assert np.abs(samples(seed=1) - one).max() > 1e-2
    mean = synthesise(model, {"us": us}).mean["t2"]
    far = [np.abs(samples(temperature=t) - mean).mean() for t in (0.1, 0.5, 1.0)]
    assert far[0] < far[1] < far[2]
    assert synthesise(model, {"us": us}, temperature=0.0).samples == {}
    assert synthesise(model, {"us": us}, samples=1).std == {}


def test_standard_deviations_are_those_of_temperature_1_with_the_noise(model):
    us = Image(volume(0), AFFINE)
    cold = synthesise(model, {"us": us}, samples=6, temperature=0.1)
    hot = synthesise(model, {"us": us}, samples=6, temperature=1.0)
    inside = us.data > 0
    assert np.array_equal(cold.std["t2"], hot.std["t2"])
    noise = model.decoders["t2"].scale.item() * 2**0.5 * 255 / 2
    draws = np.stack(hot.samples["t2"]).std(axis=0, ddof=1)
    np.testing.assert_allclose(hot.std["t2"][inside], np.hypot(draws, noise)[inside], rtol=1e-3)


def test_matched_experts_make_the_spread_and_not_the_mean(model):
    us = Image(volume(0), AFFINE)
    plain = synthesise(model, {"us": us})
    add_matched_experts(model)
    with torch.no_grad():
        for group in model.groups:  # experts that know less
            bias = group.matched.expert["us"][-1].bias
            bias[len(bias) // 2 :] += 2
    matched = synthesise(model, {"us": us})
    assert np.array_equal(matched.mean["t2"], plain.mean["t2"])
    inside = us.data > 0
    assert matched.std["t2"][inside].mean() > 1.02 * plain.std["t2"][inside].mean()
    assert (matched.std["t2"][inside] > plain.std["t2"][inside]).mean() > 0.7


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_spread_says_the_deviation_of_what_is_not_given_alone(model, temperature):
    """Images at the mean, samples, and the deviation of what is given stay to the bit."""
    us = Image(volume(0), AFFINE)
    options = {"targets": ["us", "t2"], "temperature": temperature, "samples": 3}
    plain = synthesise(model, {"us": us}, **options)
    add_spread(model, 2, 16)
    model.spread.scale.fill_(0.2)
    learned = synthesise(model, {"us": us}, **options)
    for m in ("us", "t2"):
        assert np.array_equal(learned.mean[m], plain.mean[m])
        assert np.array_equal(np.stack(learned.samples[m]), np.stack(plain.samples[m]))
    assert np.array_equal(learned.std["us"], plain.std["us"])
    before = learned.std["t2"]
    assert not np.array_equal(before, plain.std["t2"])
    model.spread.scale.fill_(0.1)
    after = synthesise(model, {"us": us}, **options).std["t2"]
    np.testing.assert_allclose(after, before / 2, rtol=1e-4)


@pytest.mark.fault(40, simulated=True)
def test_memory_that_runs_out_halves_the_batch(model, monkeypatch):
    """Fault 40: with the same result; and an error if there is no room for one slice."""
    x = np.random.default_rng(0).uniform(-1, 1, (11, 16, 16)).astype(np.float32)
    fov = np.ones(x.shape, bool)
    tiles = Tiles.over(fov, 16, tile_stride(model, 16))
    options = {"samples": 3, "temperature": 1.0, "batch": 8}
    whole = kept(model, x, fov, tiles, **options)
    decode, sizes = slices_module._decode, []

    def small(model, encodings, given, *arguments):
        sizes.append(len(given))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(model, encodings, given, *arguments)

    monkeypatch.setattr(slices_module, "_decode", small)
    limit = 2
    halved = kept(model, x, fov, tiles, **options)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2
    for what in whole:
        np.testing.assert_allclose(whole[what], halved[what], atol=1e-5)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        kept(model, x, fov, tiles, **options)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_inputs_are_encoded_once_and_draws_come_a_few_at_a_time(model, monkeypatch, temperature):
    """Whatever is made of them: four rows at a time on a CPU."""
    x = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    tiles = Tiles.over(np.ones(x.shape, bool), 16, 8)
    encoded, inferred = [], []
    encode, infer = type(model).encode, type(model).infer

    def counted(self, x, given):
        encoded.append(len(given))
        return encode(self, x, given)

    def watched(self, encodings, given, **options):
        inferred.append(given.shape[:2])
        return infer(self, encodings, given, **options)

    monkeypatch.setattr(type(model), "encode", counted)
    monkeypatch.setattr(type(model), "infer", watched)
    options = {"samples": 5, "temperature": temperature, "batch": 2}
    found = kept(model, x, np.ones(x.shape, bool), tiles, **options)
    assert encoded == [2, 1]
    draws = [(2, 2), (2, 2), (1, 2)], [(4, 1), (1, 1)]
    twice = 1 if temperature == 1 else 2
    assert inferred == [(1, 2), *twice * draws[0], (1, 1), *twice * draws[1]]
    noise = model.decoders["t2"].scale.item() * 2**0.5
    if temperature == 1:
        spread = found["sample"].std(axis=0, ddof=1)
        np.testing.assert_allclose(found["std"][0], np.hypot(spread, noise), rtol=1e-4)


@pytest.mark.fault(81)
def test_volumes_that_are_held_do_not_grow_with_samples_and_targets(model):
    """No more than 3 for what is made, however many there are."""
    data = np.zeros((16, 16, 3000), np.float32)
    data[..., :6] = volume(0, (16, 16, 6))  # slices without a view take no time
    us, size = Image(data, AFFINE), data.nbytes

    def most(samples, targets):
        tracemalloc.start()
        try:
            found = synthesise(model, {"us": us}, samples=samples, targets=targets, batch=2)
            before = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            for volumes in (found.mean, found.std, found.images):
                for m in volumes:
                    assert volumes[m].nbytes == size
            for m in found.samples:
                assert sum(1 for _ in found.samples[m]) == samples
            held, after = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < size
        assert after - held < 3.1 * size  # with what is small
        return before / size

    synthesise(model, {"us": Image(volume(0), AFFINE)})  # imports what it needs
    few, many = most(2, ["t2"]), most(6, ["t2", "cet1", "flair"])
    assert many < few + 0.1
    assert few < 3.1  # its input is here already


def test_slices_without_a_view_are_skipped(model):
    data = volume(0)
    data[..., 1] = 0
    found = synthesise(model, {"us": Image(data, AFFINE)})
    assert not found.mean["t2"][..., 1].any()
    with pytest.raises(CaseError, match=r"nothing is in view"):
        synthesise(model, {"us": Image(0 * data, AFFINE)})
    with pytest.raises(CaseError, match=r"t2 cannot be used: it is constant in view"):
        synthesise(model, {"us": Image(data, AFFINE), "t2": Image(0 * data, AFFINE)})


def test_published_weights_get_what_their_authors_gave_them():
    """From -255/256 at the least to 1 at the 99.95th percentile above 0; -1 is background."""
    image = np.zeros((10, 10, 10), np.float32)
    image[1:] = np.linspace(5, 105, 900).reshape(9, 10, 10)
    found = to_model(image, image > 0, "t2", {"model": "published_mmhvae"})
    assert (found[0] == -1).all()
    assert found[image > 0].min() == pytest.approx(-255 / 256)
    assert found.max() == 1
    middle = np.percentile(image[1:], 99.95)
    assert np.interp(0.0, np.sort(found[1:].ravel()), np.sort(image[1:].ravel())) == pytest.approx(
        5 + (middle - 5) * 255 / 511, rel=1e-3
    )


@pytest.mark.parametrize(
    ("held", "given", "targets", "every", "pairs"),
    [
        ("us", "", "", False, [("us", "t2 cet1")]),
        ("us t2", "", "t2", False, [("us", "t2")]),
        ("us", "", "us", False, [("us", "us")]),
        ("us t2", "us t2", "t2", False, [("us t2", "t2")]),
        ("us t2", "t2", "", False, [("t2", "us cet1")]),
        ("us t2", "", "", True, [("us", "t2 cet1"), ("t2", "us cet1"), ("us t2", "cet1")]),
        ("us t2 cet1", "", "cet1", True, 7),
        ("us t2 cet1", "", "", True, 6),
    ],
)
def test_what_is_given_and_what_is_made(held, given, targets, every, pairs):
    parts = (held.split(), ["us", "t2", "cet1"], given.split(), targets.split())
    found = choose(*parts, every=every)
    if isinstance(pairs, int):
        assert len(found) == pairs
    else:
        assert [(" ".join(a), " ".join(b)) for a, b in found] == pairs


def test_nothing_to_choose_from():
    with pytest.raises(CaseError, match=r"it has us, but should have one of t2"):
        choose(["us"], ["us", "t2"], ["t2"], [], every=False)
    with pytest.raises(CaseError, match=r"every modality already"):
        choose(["us", "t2"], ["us", "t2"], [], [], every=False)


# files


def test_files_of_a_case(trained, tmp_path):
    us = write(tmp_path / "in" / "p.nii.gz", volume(0))
    out = tmp_path / "out"
    fov = write(tmp_path / "in" / "fov.nii.gz", np.ones((16, 16, 3)))
    options = {"target": "t2,flair", "samples": 3, "temperature": 1.0, "seed": 5, "device": "cpu"}
    assert run(Synthesize(trained, out=out, us=us, fov=fov, **options)) == 0
    volumes = [
        f"p_{m}_{w}.nii.gz"
        for m in ("t2", "flair")
        for w in ("mean", "std", "sample01", "sample02", "sample03")
    ]
    assert sorted(p.name for p in out.iterdir()) == sorted([*volumes, "p.json", "p.png"])
    assert (out / "p.png").read_bytes().startswith(PNG)
    said = json.loads((out / "p.json").read_text())
    _, description = load_model(trained / "model")
    assert said["model"]["sha256"] == description["sha256"]
    assert said["inputs"]["us"]["sha256"] == slow_hash(us)
    assert said["fov"] == {"file": str(fov), "sha256": slow_hash(fov)}
    assert (said["seed"], said["temperature"], said["samples"]) == (5, 1.0, 3)
    assert said["files"] == volumes
    assert said["grid"]["shape"] == [16, 16, 3]
    assert said["std"].startswith("uncalibrated")
    spread = nib.load(out / "p_t2_std.nii.gz").header["descrip"].item().decode()
    assert "uncalibrated" in spread
    assert {"mmpoe", "torch"} <= set(said["versions"])
    mean = nib.load(out / "p_t2_mean.nii.gz").get_fdata()
    assert 0 <= mean.min() < mean.max() <= 255


def test_files_of_an_earlier_run_do_not_stay(trained, tmp_path):
    """Those that its JSON lists; others are left alone."""
    us, out = write(tmp_path / "p.nii.gz", volume(0)), tmp_path / "out"
    options = {"us": us, "device": "cpu"}
    assert run(Synthesize(trained, out=out, target="t2,flair", samples=3, **options)) == 0
    (out / "p_notes.txt").write_text("mine")
    (out / "other_t2_mean.nii.gz").write_bytes(b"")
    assert run(Synthesize(trained, out=out, target="t2", samples=1, **options)) == 0
    listed = json.loads((out / "p.json").read_text())["files"]
    assert {p.name for p in out.iterdir()} == {
        *listed, "p.json", "p.png", "p_notes.txt", "other_t2_mean.nii.gz"
    }  # fmt: skip


def test_samples_as_one_sequence_on_the_grid_of_the_input(trained, tmp_path):
    us = write(tmp_path / "p.nii.gz", volume(0))
    options = {"us": us, "target": "t2", "samples": 3, "device": "cpu"}
    one, each = tmp_path / "one", tmp_path / "each"
    assert run(Synthesize(trained, out=one, sequence=True, **options)) == 0
    assert run(Synthesize(trained, out=each, **options)) == 0
    sequence = nib.load(one / "p_t2_samples.nii.gz")
    assert sequence.shape == (16, 16, 3, 3)
    np.testing.assert_array_equal(sequence.affine, nib.load(us).affine)
    for k in range(3):
        sample = nib.load(each / f"p_t2_sample0{k + 1}.nii.gz").get_fdata()
        np.testing.assert_array_equal(sequence.get_fdata()[..., k], sample)
    listed = json.loads((one / "p.json").read_text())["files"]
    assert listed == ["p_t2_mean.nii.gz", "p_t2_std.nii.gz", "p_t2_samples.nii.gz"]


def slow_hash(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_in_and_a_folder_out(trained, tmp_path, capsys):
    """One bad case does not stop the others: exit code 1, and a list."""
    data = tmp_path / "data"
    write(data / "a" / "us.nii.gz", volume(0))
    write(data / "b" / "us.nii", volume(1))
    write(data / "b" / "t2.nii.gz", volume(2))
    sitk.WriteImage(sitk.GetImageFromArray(volume(3).T.copy()), str(make(data / "c") / "us.nrrd"))
    broken = write(data / "d" / "us.nii.gz", volume(4))
    broken.write_bytes(gzip.compress(b"no image"))
    out = tmp_path / "out"
    options = {"samples": 1, "device": "cpu"}
    assert run(Synthesize(trained, out=out, input_dir=data, **options)) == 1
    printed = capsys.readouterr().out
    assert "Synthesised 3 of 4 cases; failed:\n  d: " in printed
    assert str(broken) in printed
    assert {p.name.split("_")[0] for p in out.glob("*mean*")} == {"a", "b", "c"}
    assert not (out / "b_t2_mean.nii.gz").exists()  # it is there already
    assert not list(out.glob(".*"))
    for case in "abc":
        for file in (data / case).iterdir():
            file.unlink()
    with pytest.raises(CaseError, match=r"no case could be used: d: "):
        run(Synthesize(trained, out=out, input_dir=data, **options))


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_an_index_in_and_every_subset_out(trained, tmp_path):
    index = write_index(tmp_path / "data", {"a": ("us", "t2"), "b": MODALITIES[:3]})
    options = {"input_dir": index, "all_subsets": True, "samples": 1, "temperature": 0.0}
    out = tmp_path / "out"
    assert run(Synthesize(trained, out=out, device="cpu", **options)) == 0
    assert len(list(out.iterdir())) == 7
    assert sorted(p.name for p in (out / "from-us-t2").iterdir()) == sorted(
        [f"{c}_{m}_mean.nii.gz" for c in "ab" for m in ("cet1", "flair")]
        + [f"{c}.{s}" for c in "ab" for s in ("json", "png")]
    )
    assert not (out / "from-cet1" / "a.json").exists()
    whole = {"input_dir": index.parent, "target": "flair", "samples": 1, "device": "cpu"}
    assert run(Synthesize(trained, out=tmp_path / "all", **whole)) == 0
    assert {p.name for p in (tmp_path / "all").glob("*.json")} == {"a.json", "b.json"}


def test_complete_cases_are_nothing_to_do(trained, tmp_path, capsys):
    index = write_index(tmp_path / "data", {"a": MODALITIES, "b": ("us",), "c": MODALITIES})
    options = {"input_dir": index, "samples": 1, "device": "cpu"}
    assert run(Synthesize(trained, out=tmp_path / "out", **options)) == 0
    assert "Nothing is missing of a, c; --target " in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").glob("*.json")} == {"b.json"}
    index = write_index(tmp_path / "whole", {"a": MODALITIES, "c": MODALITIES})
    assert run(Synthesize(trained, out=tmp_path / "none", input_dir=index, device="cpu")) == 0
    said = capsys.readouterr().out
    assert "Nothing is missing of any case; --target flair, for one, makes it from" in said
    assert "Synthesised" not in said
    assert not (tmp_path / "none").exists()


def test_own_modalities(tmp_path):
    trained = make_run(tmp_path / "run", ["ct", "pet"])
    ct = write(tmp_path / "one.nii.gz", volume(0))
    options = {"samples": 1, "device": "cpu", "out": tmp_path / "out"}
    assert run(Synthesize(trained, input=(f"ct={ct}",), **options)) == 0
    assert (tmp_path / "out" / "one_pet_mean.nii.gz").exists()
    with pytest.raises(ValueError, match=r"'input' should be modalities of the model, ct, pet"):
        run(Synthesize(trained, us=ct, **options))


def test_files_are_all_there_or_none(trained, tmp_path, monkeypatch):
    """A run that fails while writing leaves nothing under a final name."""
    from examples.medical_mri_us.synthesis import files as files_module

    us, out = write(tmp_path / "p.nii.gz", volume(0)), tmp_path / "out"

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module, "draw_preview", full)
    with pytest.raises(OSError, match="No space left"):
        run(Synthesize(trained, out=out, us=us, samples=1, device="cpu"))
    assert not list(out.iterdir())


def test_files_get_their_names_with_the_json_last(trained, tmp_path, monkeypatch):
    """A run that is stopped in between leaves no JSON, nor that of an earlier run."""
    us, out = write(tmp_path / "p.nii.gz", volume(0)), tmp_path / "out"
    options = {"us": us, "samples": 1, "device": "cpu"}
    assert run(Synthesize(trained, out=out, **options)) == 0
    replace, named = Path.replace, []

    def counted(path, target):
        if Path(target).parent == out:
            named.append(Path(target).name)
            assert not (out / "p.json").exists()
            if len(named) == 2:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", counted)
    with pytest.raises(KeyboardInterrupt):
        run(Synthesize(trained, out=out, **options))
    assert not (out / "p.json").exists()
    assert not list(out.glob(".*"))
    named[:] = ["", "", ""]
    assert run(Synthesize(trained, out=out, **options)) == 0
    assert named[-1] == "p.json"


def test_each_process_has_its_share(trained, tmp_path, monkeypatch):
    index = write_index(tmp_path / "data", dict.fromkeys("abc", ("us",)))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = {"samples": 1, "device": "cpu", "input_dir": index, "target": "t2"}
    assert run(Synthesize(trained, out=tmp_path / "out", **options)) == 0
    assert [p.name for p in (tmp_path / "out").glob("*mean*")] == ["b_t2_mean.nii.gz"]


@pytest.mark.long
def test_a_failure_in_one_process_does_not_stop_another(trained, tmp_path):
    """torchrun ends all processes once one exits with an error: none may before the others."""
    index = write_index(tmp_path / "data", dict.fromkeys("abcd", ("us",)))
    for case in "ac":  # all of one process, which has failed before the other has begun
        (index.parent / case / "us.nii.gz").write_bytes(b"no image")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "examples.medical_mri_us", "synthesize", trained, "--out", tmp_path / "out"),
        *("--input-dir", index, "--target", "t2", "--samples", "1", "--device", "cpu"),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode != 0
    assert "no case could be used: a: " in done.stderr
    assert "Synthesised 2 cases" in done.stdout
    made = {p.name for p in (tmp_path / "out").glob("*mean*")}
    assert made == {"b_t2_mean.nii.gz", "d_t2_mean.nii.gz"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"'input-dir' or files such as --us FILE .* neither does"),
        ({"us": "p", "input_dir": "d"}, r"one of the two, but both do"),
        ({"us": "p", "target": "t3"}, r"'target' should be modalities .* Did you mean t2"),
        ({"us": "p", "given": "ceT1w"}, r"'given' should be .* Did you mean cet1"),
        ({"us": "p", "samples": 0}, r"'samples' should be an integer of at least 1"),
        ({"us": "p", "temperature": -1.0}, r"'temperature' should be a number of at least 0"),
        ({"us": "p", "batch": 0}, r"'batch' should be an integer of at least 1"),
        ({"input": ("us",)}, r"'input' should be a modality and its file, NAME=FILE"),
        ({"input_dir": "absent"}, r"'input-dir' should be a folder or an index, but is"),
        ({"input_dir": "empty"}, r"'input-dir' should hold an index.csv or a folder for each"),
        ({"input_dir": "empty", "fov": "f"}, r"'fov' should be a file of the cases themselves"),
    ],
)
def test_options_that_cannot_be_used(options, message, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = {k: tmp_path / v for k, v in options.items() if k in ("us", "input_dir", "fov")}
    with pytest.raises(ValueError, match=message):
        run(Synthesize(trained, out=tmp_path / "out", **{**options, **paths}))
    assert not (tmp_path / "out").exists()


def test_names_without_what_they_end_in(tmp_path):
    assert stem(tmp_path / "a.b.nii.gz") == "a.b"
    assert stem(tmp_path / "scan.nrrd") == "scan"
    assert stem(tmp_path / "dicom") == "dicom"

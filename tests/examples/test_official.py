"""Published weights: the numbers of the published code, round trips, and files of other kinds."""

import math
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.medical_mri_us import official
from examples.medical_mri_us.__main__ import main
from examples.medical_mri_us.official import (
    as_exact_product,
    convert,
    fill_background,
    load_checkpoint,
    save_checkpoint,
)
from examples.medical_mri_us.official_names import published_state
from examples.medical_mri_us.train import load_model
from mmpoe import kernels
from mmpoe.likelihoods import Laplace
from mmpoe.models import image_mmhvae, published_mmhvae
from mmpoe.training import CheckpointError
from mmpoe.training import save_checkpoint as save_folder

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "published_mmhvae.npz")
NAMES = ["us", "t2", "cet1", "flair"]
SUBSETS = [list(map(str, GOLDEN[f"s{i}/subset"])) for i in range(4)]
LEVELS = (4, 3, 2, 1)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

every_subset = pytest.mark.parametrize("i", range(4), ids=map("+".join, SUBSETS))
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def weights(dtype=torch.float32):
    """The published state dict."""
    keys = [key for key in GOLDEN.files if key.startswith("sd/")]
    return {key.removeprefix("sd/"): torch.from_numpy(GOLDEN[key]).to(dtype) for key in keys}


def inputs(dtype):
    return {m: torch.from_numpy(GOLDEN[f"x/{m}"]).to(dtype) for m in NAMES}


def noise(i, dtype):
    return [torch.from_numpy(GOLDEN[f"s{i}/z{level}/eps"]).to(dtype) for level in LEVELS]


@pytest.fixture
def checkpoint(tmp_path):
    """Writes tensors, those of the golden model by default, and returns the file."""

    def write(state=None, name="CP_main_1000.pth"):
        torch.save(weights() if state is None else state, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, loaded = tmp_path_factory.mktemp("models"), {}
    for dtype in TOLERANCE:
        torch.save(weights(dtype), folder / "main.pth")
        loaded[dtype] = load_checkpoint(folder / "main.pth")
    return loaded


def assert_golden(found, key, dtype):
    """Compares with recorded elements, by their error relative to the largest of them."""
    expected = torch.from_numpy(GOLDEN[f"{str(dtype).removeprefix('torch.')}/{key}"])
    assert found.dtype == expected.dtype == dtype
    elements = torch.from_numpy(np.linspace(0, found.numel() - 1, len(expected)).astype(int))
    error = (found.detach().flatten()[elements] - expected).abs().max()
    assert error <= TOLERANCE[dtype] * expected.abs().max(), key


def assert_as_published(output, i, dtype, x):
    for level, q, p, z in zip(LEVELS, output.posteriors, output.priors, output.z, strict=True):
        assert_golden(q.loc, f"s{i}/z{level}/full/loc", dtype)
        assert_golden(q.scale, f"s{i}/z{level}/full/scale", dtype)
        assert_golden(p.loc.contiguous(), f"s{i}/z{level}/prior/loc", dtype)
        assert_golden(p.scale.contiguous(), f"s{i}/z{level}/prior/scale", dtype)
        assert_golden(z, f"s{i}/z{level}/z", dtype)
    mask = x[SUBSETS[i][0]] > -1
    for m in NAMES:
        image = output.likelihoods[m].mean
        assert_golden(fill_background(image, mask), f"s{i}/img/{m}", dtype)
        assert (image[~mask] > -1).all()  # likelihoods hold what the head says


@every_subset
@every_dtype
def test_numbers_of_the_published_code(models, i, dtype):
    x = inputs(dtype)
    output = models[dtype](x, SUBSETS[i], noise=noise(i, dtype))
    assert_as_published(output, i, dtype, x)


@every_subset
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_numbers_of_every_backend(models, i, backend):
    """The fused kernel adds inverse scales and clamps like PyTorch does."""
    x, dtype = inputs(torch.float32), torch.float32
    try:
        forced = kernels.use_backend(backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    with forced:
        output = models[dtype](x, SUBSETS[i], noise=noise(i, dtype))
    assert kernels.last_backend() == backend
    assert_as_published(output, i, dtype, x)


@every_dtype
def test_numbers_of_all_subsets_at_once(models, dtype):
    x = inputs(dtype)
    given = torch.tensor([[[m in s for m in NAMES]] * 2 for s in SUBSETS])  # (S, B, M)
    draws = [torch.stack(eps) for eps in zip(*(noise(i, dtype) for i in range(4)), strict=True)]
    output = models[dtype](x, given, noise=draws)
    for i in range(4):
        for level, q in zip(LEVELS, output.posteriors, strict=True):
            assert_golden(q.loc[i], f"s{i}/z{level}/full/loc", dtype)
            assert_golden(q.scale[i], f"s{i}/z{level}/full/scale", dtype)
        for m in NAMES:
            image = output.likelihoods[m].mean[i]
            assert_golden(fill_background(image, x[SUBSETS[i][0]] > -1), f"s{i}/img/{m}", dtype)


@every_subset
@every_dtype
def test_divergences_of_the_published_code(models, i, dtype):
    """It records log-ratios at one sample, over the batch: every element counts here."""
    output = models[dtype](inputs(dtype), SUBSETS[i], noise=noise(i, dtype))
    found = [
        (q.log_prob(z) - p.log_prob(z)).sum().item()
        for q, p, z in zip(output.posteriors, output.priors, output.z, strict=True)
    ]
    expected = GOLDEN[f"{str(dtype).removeprefix('torch.')}/s{i}/kl"]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype])
    closed = [kl.sum().item() for kl in output.kl]  # their expectations
    np.testing.assert_allclose(closed[1:], expected[1:], rtol=0.25)


def test_what_follows_from_names_and_shapes(models):
    model = models[torch.float32]
    assert model.modalities == NAMES
    assert not model.training
    shapes = [(32,), (8, 8, 8), (8, 16, 16), (4, 32, 32)]
    assert [group.shape for group in model.groups] == shapes
    assert {(g.posterior.power, g.posterior.clamp) for g in model.groups} == {(1, 10.0)}


@every_dtype
def test_round_trips_keep_every_bit(checkpoint, tmp_path, dtype):
    state = weights(dtype)
    save_checkpoint(load_checkpoint(checkpoint(state)), tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": 2, "head_width": 2},  # as wide as the latents
        {"levels": 1},
        {"levels": 2},
        {"modalities": ["a", "type"], "depth": 2},
        {"width": 8, "max_width": 64},  # wider than it gets
    ],
)
def test_round_trips_of_other_models(tmp_path, options):
    options = {"modalities": NAMES, "size": 16, "width": 4, "max_width": 8, **options}
    model = published_mmhvae(**options, power=1)
    save_checkpoint(model, tmp_path / "main.pth")
    loaded = load_checkpoint(tmp_path / "main.pth")
    assert str(loaded) == str(model.eval())
    state = loaded.state_dict()
    assert all(torch.equal(state[name], v) for name, v in model.state_dict().items())


def test_the_default_model_has_the_published_tensors():
    state, sizes = published_state(published_mmhvae()), {}
    assert len(state) == 536
    for name, tensor in state.items():
        prefix = name.split(".")[0]
        sizes[prefix] = sizes.get(prefix, 0) + tensor.numel()
    assert sizes == {
        "conv_blocks_context": 5_149_680,
        "conv_blocks_localization": 3_601_066,
        "td": 2_158_976,
        "qz": 1_535_844,
        "bottleneck_down": 590_848,
        "tu": 343_296,
        "bottleneck_up": 297_216,
        "pz": 55_024,
        "final_blocks": 42_180,
        "first_conv": 640,
    }
    assert state["final_blocks.us.res.5.conv_block.5.weight"].shape == (8, 8, 3, 3)
    assert state["conv_blocks_localization.0.dw_conv_1.weight"].shape == (768, 1, 5, 5)
    assert state["qz.5.last_conv.parametrizations.weight.original1"].shape == (16, 16, 1, 1)


def test_tensors_are_found_by_name(models, checkpoint):
    state = weights()
    model = load_checkpoint(checkpoint({name: state[name] for name in sorted(state)}))
    assert model.modalities == sorted(NAMES)
    x, eps = inputs(torch.float32), noise(2, torch.float32)
    one = model(x, SUBSETS[2], noise=eps)
    two = models[torch.float32](x, SUBSETS[2], noise=eps)
    for m in NAMES:
        torch.testing.assert_close(one.likelihoods[m].mean, two.likelihoods[m].mean)


def test_names_of_2023(checkpoint):
    state, old = weights(), {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        for index, m in enumerate(NAMES):
            name = name.replace(f"final_blocks.{m}.", f"final_blocks.{index}.")
        old[name] = tensor
    assert len(set(old) - set(state)) == 10 * 4 + 2 * 8
    found = published_state(load_checkpoint(checkpoint(old)))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@every_dtype
def test_one_input_as_an_exact_product(models, dtype):
    x, model = inputs(dtype), models[dtype]
    exact = as_exact_product(model)
    assert {g.posterior.power for g in exact.groups} == {2}
    assert {g.posterior.power for g in model.groups} == {1}
    output = exact(x, ["us"], noise=noise(0, dtype))
    assert_as_published(output, 0, dtype, x)

    tolerance = {"rtol": 10 * TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for m in NAMES:
        one = model(x, [m], noise=noise(1, dtype))
        two = exact(x, [m], noise=noise(1, dtype))
        for q, p in zip(one.posteriors + one.priors, two.posteriors + two.priors, strict=True):
            torch.testing.assert_close(q.loc, p.loc, **tolerance)
            torch.testing.assert_close(q.log_scale, p.log_scale, **tolerance)
        for a, b in zip(one.kl, two.kl, strict=True):
            torch.testing.assert_close(a, b, rtol=10 * TOLERANCE[dtype], atol=0)

    # with several inputs it is another model, wider
    one, two = (f(x, ["us", "t2"], noise=noise(1, dtype)).posteriors[0] for f in (model, exact))
    assert (two.log_scale > one.log_scale).all()


def test_only_published_rules_become_exact_products():
    model = published_mmhvae(["us"], 16, width=4, max_width=8)
    with pytest.raises(ValueError, match=r"'model' should fuse by .* power 1, but group 0"):
        as_exact_product(model)


def test_background():
    image, mask = torch.rand(2, 1, 4, 4), torch.rand(1, 1, 4, 4) > 0.5
    filled = fill_background(image, mask)
    assert torch.equal(filled[mask.expand_as(image)], image[mask.expand_as(image)])
    assert (filled[~mask.expand_as(image)] == -1).all()
    image[~mask.expand_as(image)] = torch.nan
    assert torch.equal(fill_background(image, mask), filled)
    with pytest.raises(ValueError, match=r"'mask' should be boolean, but has dtype torch.float32"):
        fill_background(image, image)


def without(name):
    return {key: value for key, value in weights().items() if key != name}


def with_one(name, value):
    return {**weights(), name: value}


PRIOR = "pz.1.parametrizations.weight.original0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: without("td.t2.1.bias"), r"but lacks td\.t2\.1\.bias\."),
        (lambda: without(PRIOR), rf"but lacks {PRIOR}\."),
        (lambda: without("first_conv.us.bias"), r"but lacks first_conv\.us\.bias\."),
        (
            lambda: without("bottleneck_up.linear.parametrizations.weight.original1"),
            r"it lacks bottleneck_up\.linear\.parametrizations\.weight\.original1\.",
        ),
        (lambda: with_one("qz.9.bias", torch.zeros(1)), r"has the unexpected qz\.9\.bias\."),
        (
            lambda: with_one("tu.0.conv_1.weight", torch.zeros(16, 16, 5, 5)),
            r"of another shape, tu\.0\.conv_1\.weight \(\(16, 16, 5, 5\), not \(16, 16, 3, 3",
        ),
        (
            lambda: {f"module.{name}": tensor for name, tensor in weights().items()},
            r"it lacks first_conv\.<modality>\.weight\.",
        ),
        (
            lambda: {name: v for name, v in weights().items() if not name.startswith("final")},
            r"it lacks final_blocks\.us\.convt3\.weight\.",
        ),
        (
            lambda: {n: v for n, v in weights().items() if not n.startswith("conv_blocks_cont")},
            r"but lacks conv_blocks_context\.us\.0\.conv_0\.weight, .* and \d+ more\.",
        ),
        (lambda: {}, r"of one floating-point dtype, but holds none"),
        (lambda: with_one("x", torch.zeros(1)), r"has the unexpected x\."),
        (
            lambda: without("qz.2.conv_0.weight"),
            r"but lacks qz\.2\.conv_0\.weight; ",
        ),
        (lambda: with_one("x", torch.zeros(1).double()), r"holds torch.float32, torch.float64"),
        (lambda: {"epoch": 3}, r"should hold tensors by name, and nothing else"),
        (lambda: [torch.zeros(1)], r"should hold tensors by name, and nothing else"),
        (
            lambda: with_one(
                "bottleneck_down.linear.parametrizations.weight.original1", torch.zeros(64, 240)
            ),
            r"bottleneck_down takes 240 features, which are no square of 16 channels",
        ),
    ],
)
def test_faults_are_named(checkpoint, make, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint(make()))


@pytest.mark.parametrize("shape", [(), (0,), (0, 0, 0, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "name",
    [
        "first_conv.us.weight",
        "bottleneck_up.linear.parametrizations.weight.original1",
        "bottleneck_down.linear.parametrizations.weight.original1",
        "final_blocks.us.convt3.weight",
        "td.us.0.weight",
        PRIOR,
    ],
)
def test_any_shape_is_refused(checkpoint, name, shape):
    path = checkpoint(with_one(name, torch.zeros(shape)))
    with pytest.raises(CheckpointError, match=rf"{path} should hold published MMHVAE weights"):
        load_checkpoint(path)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload",)


def test_files_of_other_kinds(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint()
    truncated, text, code, empty = (tmp_path / n for n in ("cut.pth", "a.txt", "b.pth", "c.pth"))
    truncated.write_bytes(path.read_bytes()[:10_000])
    text.write_text("no weights")
    code.write_bytes(pickle.dumps({"first_conv.us.weight": Payload()}, protocol=2))
    empty.touch()
    for file in (truncated, text, code, empty):
        with pytest.raises(CheckpointError, match=r"file of tensors that PyTorch saved") as raised:
            load_checkpoint(file)
        assert "weights_only" not in str(raised.value)  # PyTorch advises to switch it off
    torch.save({"first_conv.us.weight": Payload()}, code)
    with pytest.raises(CheckpointError, match=r"file of tensors that PyTorch saved, but"):
        load_checkpoint(code)
    assert not (tmp_path / "payload").exists()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent.pth")


def with_learned_scales():
    model = published_mmhvae(NAMES, 16, width=4, max_width=8)
    model.decoders["us"] = Laplace(model.decoders["us"].network, learn_scale=True)
    return model


@pytest.mark.parametrize(
    "model",
    [
        with_learned_scales,
        lambda: image_mmhvae(NAMES, 16),
        lambda: published_mmhvae(NAMES, 16, width=4, max_width=8, cell="inverted"),
    ],
)
def test_other_architectures_have_no_published_names(tmp_path, model):
    with pytest.raises(ValueError, match=r"'model' should be one that published_mmhvae builds"):
        save_checkpoint(model(), tmp_path / "main.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(16, 64), (64,), (8, 8, 16)])
def test_models_of_other_images_are_not_written(tmp_path, size):
    model = published_mmhvae(["us"], size, width=4, max_width=8)
    with pytest.raises(ValueError, match=r"'model' should be one for square images, but"):
        save_checkpoint(model, tmp_path / "main.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_older_file(models, checkpoint, monkeypatch):
    path = checkpoint()
    before = path.read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(official.torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(models[torch.float32], path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def answer(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["mri_us", *map(str, arguments)])
    try:
        code = main()
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_import_official(models, checkpoint, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    arguments = ("import-official", checkpoint(), "--out", folder)
    code, out, err = answer(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert f"Wrote {folder}: an MMHVAE of us, t2, cet1, flair, 4 latent groups, 195,472 p" in out
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "model.json"}

    loaded, description = load_model(folder)
    assert description["architecture"]["power"] == 1
    x, eps = inputs(torch.float32), noise(3, torch.float32)
    one, two = (m(x, NAMES, noise=eps) for m in (loaded, models[torch.float32]))
    for m in NAMES:
        assert torch.equal(one.likelihoods[m].mean, two.likelihoods[m].mean)


def test_errors_of_import_official(checkpoint, tmp_path, monkeypatch, capsys):
    def fails(*arguments, expected=2):
        code, out, err = answer(monkeypatch, capsys, "import-official", *arguments)
        assert (code, out) == (expected, "")
        return err

    folder = tmp_path / "model"
    broken = checkpoint(without("tu.0.conv_1.weight"))
    error = (
        f"Error: {broken} should hold published MMHVAE weights, but lacks tu.0.conv_1.weight.\n"
    )
    assert fails(broken, "--out", folder, expected=4) == error
    assert "absent.pth" in fails(tmp_path / "absent.pth", "--out", folder)
    assert "--out" in fails(broken)
    (tmp_path / "file").touch()
    assert "file" in fails(checkpoint(), "--out", tmp_path / "file" / "model")
    assert not folder.exists()


def test_two_modalities_are_converted(tmp_path):
    model = published_mmhvae(["us", "t2"], 16, width=4, max_width=8, power=1)
    save_checkpoint(model, tmp_path / "main.pth")
    assert convert(tmp_path / "main.pth", tmp_path / "model").modalities == ["us", "t2"]
    assert load_model(tmp_path / "model")[0].modalities == ["us", "t2"]
    with pytest.raises(CheckpointError, match=r"should hold a model of us, t2, cet1, flair"):
        load_model(tmp_path / "model", NAMES)


def test_models_of_other_kinds_are_not_loaded(tmp_path):
    save_folder(tmp_path, weights(), {"model": "mystery", "modalities": NAMES})
    with pytest.raises(CheckpointError, match=r"of image_mmhvae or published_mmhvae, but .* myst"):
        load_model(tmp_path)


def official_zip(path, state):
    """Writes tensors as PyTorch does, but compressed."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.fault(66)
def test_a_tensor_that_claims_more_than_its_file_holds(checkpoint):
    path = checkpoint(with_one("first_conv.us.weight", torch.zeros(1).expand(10**12)))
    with pytest.raises(CheckpointError, match=r"'first_conv\.us\.weight' is one that repeats"):
        load_checkpoint(path)


@pytest.mark.fault(58)
def test_compressed_weights_are_not_inflated(tmp_path):
    file = official_zip(tmp_path / "a.pth", weights())
    with pytest.raises(CheckpointError, match="cannot be read as one"):
        load_checkpoint(file)


@pytest.mark.fault(62)
def test_modalities_of_published_weights_have_names(checkpoint):
    state = {name.replace(".us.", ".=us."): value for name, value in weights().items()}
    with pytest.raises(CheckpointError, match="name of a modality cannot be '=us'"):
        load_checkpoint(checkpoint(state))


@pytest.mark.fault(70)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named(checkpoint, bad):
    name = "first_conv.us.weight"
    weight = weights()[name].clone()
    weight.view(-1)[:3] = bad
    path = checkpoint(with_one(name, weight))
    with pytest.raises(CheckpointError, match=rf"but 3 of {weight.numel()} in '{name}' are NaN"):
        load_checkpoint(path)


@pytest.mark.fault(66)
@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_that_are_not_dense_are_named(checkpoint, kind):
    name = "first_conv.us.weight"
    weight = weights()[name]
    other = weight.to_sparse() if kind == "sparse" else weight.to("meta")
    path = checkpoint(with_one(name, other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about checks of sparse tensors
        with pytest.raises(CheckpointError, match=rf"but '{name}' is (one without|sparse)"):
            load_checkpoint(path)

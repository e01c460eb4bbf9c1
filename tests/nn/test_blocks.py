"""Building blocks: dictionaries with any names, pyramids in one, two and three dimensions."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from mmpoe.nn import (
    BottomUp,
    GaussianHead,
    ImageHead,
    MLPTopDown,
    ModalityDict,
    Patchify,
    ProjectionCell,
    ResidualBlock,
    TopDown,
    cells,
)
from mmpoe.nn.containers import _RESERVED
from mmpoe.nn.pyramid import Fold, InstanceNorm, Unfold

ODD = ["us", "a.b", "a%2Eb", "%a%2Eb", "type", "%type", "", "%", "forward", "training", "_modules"]


def modules(names):
    return {name: nn.Linear(1, 1) for name in names}


def check(expected):
    found = ModalityDict(expected)
    assert list(found) == list(found.keys()) == list(expected)
    assert list(found.items()) == list(expected.items())
    assert list(found.values()) == list(expected.values())
    assert len(found) == len(expected)
    assert len(found.state_dict()) == 2 * len(expected)
    assert all(name in found and found[name] is module for name, module in expected.items())
    # PyTorch finds modules by their paths, as attributes
    assert all(found.get_submodule(path) is module for path, module in found.named_children())
    return found


def test_odd_names_do_not_collide():
    found = check(modules(ODD))
    assert "b" not in found
    assert "%us" not in found
    x = torch.ones(1, 1)
    state = dict(found.state_dict())
    assert all(torch.equal(copy.deepcopy(found)[name](x), found[name](x)) for name in ODD)
    ModalityDict(modules(ODD)).load_state_dict(state)


@given(
    st.lists(st.text() | st.text("%2E5._") | st.sampled_from(dir(nn.ModuleDict())), unique=True)
)
def test_any_names_do_not_collide(names):
    check(modules(names))


def test_modules_are_removed_by_their_names():
    found = ModalityDict(modules(ODD))
    del found["a.b"]
    last = found["type"]
    assert found.pop("type") is last
    assert list(found) == [name for name in ODD if name not in ("a.b", "type")]
    with pytest.raises(KeyError):
        found["a.b"]


def test_names_in_a_state_dict():
    """They must not change, or saved models could not be read."""
    names = ["us", "t2-flair", "T1 post", "t2.space", "type", "_x"]
    found = [key.removesuffix(".weight") for key in ModalityDict(modules(names)).state_dict()]
    expected = ["us", "t2-flair", "T1 post", "%t2%2Espace", "%type", "%_x"]
    assert found[::2] == expected


def test_attributes_of_pytorch_are_reserved():
    """Should this fail with a new PyTorch: add what is new, which it refuses as a name anyway."""
    public = {name for name in dir(nn.ModuleDict()) if not name.startswith("_")}
    assert public <= _RESERVED


every_dimension = pytest.mark.parametrize("dims", [1, 2, 3])


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_of_images_fold_as_in_pytorch(patch):
    x = torch.rand(2, 3, 6, 12)
    assert torch.equal(Fold(patch)(x), nn.PixelUnshuffle(patch)(x))
    y = torch.rand(2, 3 * patch**2, 2, 4)
    assert torch.equal(Unfold(patch)(y), nn.PixelShuffle(patch)(y))


@every_dimension
@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 2])
def test_folding_keeps_patches_together(dims, patch, rows):
    x = torch.rand(rows, 3, *(6, 12, 18)[:dims])
    folded = Fold(patch)(x)
    assert folded.shape == (rows, 3 * patch**dims, *(s // patch for s in x.shape[2:]))
    assert torch.equal(Unfold(patch)(folded), x)
    inside = x[(slice(None), slice(None), *[slice(patch, 2 * patch)] * dims)]
    assert torch.equal(folded[(slice(None), slice(None), *[1] * dims)], inside.flatten(1))


@every_dimension
def test_normalisation_is_that_of_pytorch(dims):
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
    x = torch.rand(2, 3, *(4, 5, 6)[:dims])
    torch.testing.assert_close(InstanceNorm()(x), kind(3)(x))


@every_dimension
def test_pyramids_of_every_dimension(dims):
    x = torch.rand(2, 1, *(8, 16, 24)[:dims])
    features = BottomUp([6, 4], dims)(Patchify(1, 4, 2, dims)(x))
    sides = [(2, 4, 6)[:dims], (4, 8, 12)[:dims]]
    assert [f.shape for f in features] == [(2, 6, *sides[0]), (2, 4, *sides[1])]
    assert GaussianHead(6, 3, dims=dims)(features[0]).shape == (2, 6, *sides[0])
    h = TopDown(3, 6, 4, size=sides[0], dims=dims)(None, torch.rand(2, 3, *sides[0]))
    assert h.shape == (2, 4, *sides[1])
    h = TopDown(2, 4, None, dims=dims)(h, torch.rand(2, 2, *sides[1]))
    assert ImageHead(4, 1, 2, dims)(h).shape == x.shape


@every_dimension
def test_a_network_of_more_dimensions_does_to_constants_what_fewer_do(dims):
    """Along an axis on which images and weights are constant, nothing changes."""
    torch.manual_seed(0)
    line, block = ResidualBlock(2, 1), ResidualBlock(2, dims)
    for i in (2, 5):  # let one slice of the kernel act along the first axis, none elsewhere
        with torch.no_grad():
            kernel = block.layers[i].weight.zero_()
            kernel[(slice(None), slice(None), slice(None), *[1] * (dims - 1))] = line.layers[
                i
            ].weight
    x = torch.rand(2, 2, 8)
    spread = x.reshape(2, 2, 8, *[1] * (dims - 1)).expand(2, 2, 8, *[4] * (dims - 1))
    expected = line(x).reshape(2, 2, 8, *[1] * (dims - 1)).expand_as(spread)
    torch.testing.assert_close(block(spread), expected)


def test_markov_steps_forget_the_state():
    torch.manual_seed(0)
    images = TopDown(2, 4, None, markov=True), torch.rand(2, 4, 8, 8), torch.rand(2, 2, 8, 8)
    vectors = MLPTopDown(2, 4, markov=True), torch.rand(2, 4), torch.rand(2, 2)
    for step, h, z in (images, vectors):
        forgets = step(h, z)
        assert torch.equal(forgets, step(None, z))
        step.markov = False
        assert not torch.allclose(forgets, step(h, z))


@pytest.mark.parametrize("dims", [0, 4])
def test_other_dimensions_are_errors(dims):
    with pytest.raises(ValueError, match=rf"'dims' should be 1, 2 or 3, but is {dims}"):
        ResidualBlock(4, dims)


def test_a_projection_cell_in_two_parts_is_the_whole():
    torch.manual_seed(0)
    cell = ProjectionCell(5, 4, 6).double()
    h, x = torch.randn(3, 2, 8, 8).double(), torch.randn(3, 3, 8, 8).double()
    with torch.no_grad():
        whole = cell(torch.cat([h, x], dim=1))
        parts = cell.end(cell.begin(h) + cell.begin(x, after=2))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


# ---- What is faster on a CPU ----------------------------------------------------------------


def images(*shape, layout=torch.channels_last):
    return torch.randn(shape).contiguous(memory_format=layout).requires_grad_()


def outputs_and_gradients(module, run, x):
    """Returns what a function makes of images, and the gradients of all that it depends on."""
    outputs = run(x)
    total = sum((y * torch.arange(y.numel()).view_as(y).cos()).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(total, [x, *module.parameters()])]


def assert_equal_to_rounding(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("width", [16, 12, 7, 4])
@pytest.mark.parametrize("out_channels", [1, 3, 8, 16])
def test_neighbouring_pixels_at_once_have_the_same_numbers(out_channels, width, layout):
    conv = cells.Reflecting(5, out_channels, 7, padding=3)

    def plain(x):
        padded = functional.pad(x, (3,) * 4, mode="reflect")
        return [functional.conv2d(padded, conv.weight, conv.bias)]

    x = images(2, 5, 6, width, layout=layout)
    found = outputs_and_gradients(conv, lambda x: [conv(x)], x)
    assert_equal_to_rounding(found, outputs_and_gradients(conv, plain, x))
    with torch.no_grad():
        torch.testing.assert_close(conv(x), found[0])


@pytest.mark.parametrize("side", [2, 3, 5])
@pytest.mark.parametrize("pixels", [1, 3])
def test_borders_are_reflected_with_and_without_gradients(pixels, side):
    x = images(2, 3, 4, side)
    if pixels >= side:
        with pytest.raises(RuntimeError, match="Padding size should be less"), torch.no_grad():
            cells.reflect(x, pixels)
        return
    expected = functional.pad(x, (pixels,) * 4, mode="reflect")
    assert torch.equal(cells.reflect(x, pixels), expected)
    with torch.no_grad():
        assert torch.equal(cells.reflect(x, pixels), expected)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize(("channels", "width"), [(8, 8), (3, 8), (4, 4), (4, 20)])
def test_heads_together_are_heads_apart(channels, width, number):
    heads = torch.nn.ModuleList(
        cells.ResNetHead(channels, width, 1, blocks=2) for _ in range(number)
    )
    x = images(2, channels, 6, 8)
    assert cells.can_run_together(list(heads), x)
    found = outputs_and_gradients(heads, lambda x: cells.run_heads(list(heads), x), x)
    apart = outputs_and_gradients(heads, lambda x: [head(x) for head in heads], x)
    assert_equal_to_rounding(found, apart)


def test_heads_of_other_kinds_do_not_run_together():
    x = images(2, 8, 6, 8)
    one, other = cells.ResNetHead(8, 8, 1, blocks=2), cells.ResNetHead(8, 8, 1, blocks=3)
    assert not cells.can_run_together([one, other], x)
    assert not cells.can_run_together([one, one], x[:, :, :3])
    assert not cells.can_run_together([one, one], x[..., 0])

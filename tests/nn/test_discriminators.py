"""Discriminators see patches of the size that they say, and no more."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmpoe.nn import GlobalDiscriminator, PatchDiscriminator
from mmpoe.nn.discriminators import receptive_field


def build(*arguments, **options):
    torch.manual_seed(0)
    return PatchDiscriminator(*arguments, **options).double().eval()


def reach(discriminator, shape, pixel):
    """Which outputs change with one pixel, along each dimension."""
    torch.manual_seed(1)
    x = torch.randn(1, 1, *shape, dtype=torch.float64)
    other = x.clone()
    other[(0, 0, *pixel)] += 1
    changed = (discriminator(x) != discriminator(other))[0, 0]
    return [changed.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
            if changed.dim() > 1 else changed.nonzero()[:, 0].tolist()
            for axis in range(changed.dim())]  # fmt: skip


def covering(depth, size, pixel):
    """The outputs whose patch covers a pixel, from the first pixel of each patch: strides
    multiply, and each layer starts one pixel (of its input) earlier, its padding."""
    stride, start = 1, 0
    side = size
    for layer in range(depth + 2):
        start -= stride
        step = 2 if layer < depth else 1
        stride *= step
        side = (side + 2 - 4) // step + 1
    field = 9 * 2**depth - 2
    first = [start + stride * place for place in range(side)]
    return [place for place, edge in enumerate(first) if edge <= pixel < edge + field]


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize(
    ("shape", "depth", "pixel"),
    [
        ((40, 48), 1, (20, 21)),
        ((40, 48), 1, (0, 47)),
        ((40, 44), 2, (19, 3)),
        ((11, 8), 0, (5, 5)),
        ((20, 18, 22), 1, (9, 10, 0)),
        ((30,), 1, (7,)),
    ],
)
def test_a_pixel_changes_the_patches_that_cover_it(shape, depth, pixel, spectral_norm):
    found = build(1, shape, 4, depth, len(shape), spectral_norm=spectral_norm)
    expected = [covering(depth, *of) for of in zip(shape, pixel, strict=True)]
    assert reach(found, shape, pixel) == expected
    assert all(expected)


def test_a_pixel_leaves_other_patches_alone():
    wide = build(1, (7 + 40,), 4, 0, 1)
    assert [len(places) for places in reach(wide, (47,), (20,))] == [7]  # one output a pixel
    changed = reach(build(1, 64, 4, 1), (64, 64), (32, 32))
    assert [len(places) for places in changed] == [8, 8]  # 16 pixels, every second one
    # instance normalisation looks at all of the image
    changed = reach(build(1, 64, 4, 1, instance_norm=True), (64, 64), (32, 32))
    assert [len(places) for places in changed] == [30, 30]


@given(st.integers(0, 4), st.integers(1, 3))
@settings(max_examples=15)
def test_receptive_field_of_a_depth(depth, dims):
    size = 9 * 2**depth - 1 if dims < 3 else 143
    found = PatchDiscriminator(1, size, 1, depth, dims)
    assert found.receptive_field == receptive_field(found) == [7, 16, 34, 70, 142][depth]


def test_receptive_field_of_other_chains():
    assert receptive_field(nn.Sequential()) == 1
    assert receptive_field(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 5))) == 5
    assert receptive_field(nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.Conv2d(1, 1, 3))) == 6
    assert receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 2, 2))) == 4


@pytest.mark.parametrize(
    ("size", "field"),
    [(8, 7), (14, 7), (31, 7), (32, 16), (64, 16), (68, 34), (128, 34), (140, 70), (192, 70),
     (256, 70), (284, 142)],
)  # fmt: skip
def test_depth_is_picked_for_the_size(size, field):
    assert PatchDiscriminator(1, size, 1).receptive_field == field
    assert PatchDiscriminator(1, (size, 1000), 1).receptive_field == field
    assert 2 * field <= size or field == 7


def test_patches_that_are_no_patches_are_named():
    found = r"'size' should be larger than a patch of depth 6, 574 pixels a side, but is 192 x 192"
    with pytest.raises(ValueError, match=found):
        PatchDiscriminator(1, 192, depth=6)
    with pytest.raises(ValueError, match=r"depth 1, 16 pixels a side, but is 64 x 16"):
        PatchDiscriminator(1, (64, 16), depth=1)
    with pytest.raises(ValueError, match=r"depth 0, 7 pixels a side, but is 7 x 7 x 7"):
        PatchDiscriminator(1, 7, dims=3)
    with pytest.raises(ValueError, match=r"'depth' should be at least 0, but is -1"):
        PatchDiscriminator(1, 64, depth=-1)
    with pytest.raises(ValueError, match=r"'size' .* per dimension \(2\), but is \(64, 64, 64\)"):
        PatchDiscriminator(1, (64, 64, 64))
    with pytest.raises(ValueError, match=r"'dims' should be 1, 2 or 3, but is 4"):
        PatchDiscriminator(1, 64, dims=4)
    built = PatchDiscriminator(1, 64, 4)
    with pytest.raises(ValueError, match=r"'x' should be .* 16 pixels a side, but is 32 x 16"):
        built(torch.zeros(1, 1, 32, 16))


def test_scores_of_a_sample_are_its_own():
    for options in ({}, {"instance_norm": True}):
        built = build(2, 20, 4, **options)
        x = torch.randn(3, 2, 20, 20, dtype=torch.float64)
        assert built(x).shape == (3, 1, 18, 18)
        torch.testing.assert_close(built(x)[1:2], built(x[1:2]))


def test_spectral_norm_bounds_every_layer():
    torch.manual_seed(0)
    built = PatchDiscriminator(1, 64, 8)
    with torch.no_grad():
        for p in built.parameters():
            p.mul_(5)
    for _ in range(100):  # steps of the power iteration
        built(torch.zeros(1, 1, 64, 64))
    convolutions = [layer for layer in built.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3
    for layer in convolutions:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
        assert largest.item() == pytest.approx(1, abs=1e-4)
    plain = PatchDiscriminator(1, 64, 8, spectral_norm=False)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in built.parameters())


def test_published_discriminator():
    """Layer by layer: names, shapes, strides, normalisation, and the one score of an image."""
    built = GlobalDiscriminator()
    widths = [1, 64, 128, 256, 256, 256, 256, 256, 1]
    expected = {}
    for index, (before, after) in zip([0, 2, 5, 8, 11, 14, 17, 20], pairwise(widths), strict=True):
        expected[f"model.{index}.weight"] = (after, before, 4, 4)
        expected[f"model.{index}.bias"] = (after,)
    assert {name: tuple(v.shape) for name, v in built.state_dict().items()} == expected
    assert sum(p.numel() for p in built.parameters()) == 4_856_257
    convolutions = [layer for layer in built.model if isinstance(layer, nn.Conv2d)]
    assert [layer.stride[0] for layer in convolutions] == [2] * 6 + [1] * 2
    assert {layer.padding for layer in convolutions} == {(1, 1)}
    slopes = [layer.negative_slope for layer in built.model if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 7
    assert receptive_field(built) == 574

    x = torch.randn(2, 1, 192, 192)
    assert built(x).shape == (2, 1, 1, 1)
    # the same with the normalisation of PyTorch, none after the first convolution
    layers = [nn.InstanceNorm2d(1) if re.match("Instance", type(v).__name__) else v
              for v in built.model]  # fmt: skip
    assert [i for i, v in enumerate(layers) if isinstance(v, nn.InstanceNorm2d)] == [
        3, 6, 9, 12, 15, 18,
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="num_features"):
        torch.testing.assert_close(nn.Sequential(*layers)(x), built(x))
    with pytest.raises(ValueError, match=r"'x' should have at least 192 .* but is 192 x 191"):
        built(x[..., 1:])

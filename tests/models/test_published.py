"""The published MMHVAE: its size and cost, its variants, and what all models promise."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import mmpoe
from mmpoe.models import published_mmhvae
from mmpoe.nn import InvertedResidualCell, SqueezeExcite, UpsampleConv, cells
from mmpoe.nn.cells import MarkovStep, ResidualCell
from mmpoe.objectives import mixture_elbo

NAMES = ["us", "t2", "flair"]
SMALL = {"width": 4, "max_width": 8, "blocks": 1, "head_width": 4}

# every pattern of three modalities, the empty one included
OBSERVED = torch.tensor([[b >> m & 1 for m in range(3)] for b in range(8)]).bool()

VARIANTS = {
    "small": {},
    "published rule": {"power": 1},
    "paper": {"blocks": 5, "cell": "inverted"},
    "one group": {"levels": 1},
    "two groups of four": {"levels": 2, "depth": 4},
    "shallow": {"depth": 2},
    "oblong": {"size": (16, 24)},
    "sequences": {"size": (32,)},
    "volumes": {"size": (8, 16, 8)},
    "wider than it gets": {"max_width": 64},
    "no projection": {"head_width": 2},  # as many channels as latents
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def make(name):
    torch.manual_seed(0)
    return published_mmhvae(NAMES, **{"size": 16, **SMALL, **VARIANTS[name]})


def sides(name):
    size = VARIANTS[name].get("size", 16)
    return (size, size) if isinstance(size, int) else size


def batch(name, filler=0.0):
    generator = torch.Generator().manual_seed(0)
    x = {}
    for column, m in enumerate(NAMES):
        values = 2 * torch.rand(8, 1, *sides(name), generator=generator) - 1
        seen = OBSERVED[:, column].reshape(8, 1, *[1] * len(sides(name)))
        x[m] = torch.where(seen, values, filler)
    return x


def noise_for(model):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, *group.shape, generator=generator) for group in model.groups]


def giga_macs(model, given):
    """Multiplications of convolutions and matrices, in 1e9, for one sample."""
    x = {m: torch.zeros(1, 1, 192, 192) for m in given}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, given)
    return counter.get_total_flops() / 2e9  # a multiplication and an addition


@pytest.fixture(scope="module")
def published():
    return published_mmhvae()


def test_published_size(published):
    assert len(published.state_dict()) == 536
    assert sum(p.numel() for p in published.parameters()) == 13_774_770
    shapes = [(256,), (64, 6, 6), (64, 12, 12), (64, 24, 24), (32, 48, 48), (16, 96, 96)]
    assert [group.shape for group in published.groups] == [*shapes, (8, 192, 192)]
    assert {(g.posterior.power, g.posterior.clamp) for g in published.groups} == {(2, 10.0)}


@pytest.mark.parametrize(
    ("inputs", "expected", "shared"),
    [(1, 6.541, 6.541), (2, 8.577, 8.211), (3, 10.613, 9.880), (4, 12.649, 11.550)],
)
@pytest.mark.slow
def test_published_cost(published, inputs, expected, shared, monkeypatch):
    """4 targets are decoded; each input more costs one encoder and one expert a level.

    Here it costs less: experts share what their first convolution makes of the state. Pixels that
    are computed at once multiply by zeros too, in place of nothing: they are left out.
    """
    monkeypatch.setattr(cells, "MOST_PIXELS", 1)
    assert round(giga_macs(published, published.modalities[:inputs]), 3) == shared
    apart = copy.deepcopy(published)
    for group in apart.groups:
        group.expert = nn.Sequential(group.expert)  # a module that cannot be split
    assert round(giga_macs(apart, published.modalities[:inputs]), 3) == expected


def test_size_and_cost_of_the_ablation_without_a_hierarchy(monkeypatch):
    monkeypatch.setattr(cells, "MOST_PIXELS", 1)
    model = published_mmhvae(levels=1)
    assert len(model.state_dict()) == 524
    assert sum(p.numel() for p in model.parameters()) == 13_201_482
    assert [group.shape for group in model.groups] == [(256,)]
    assert round(giga_macs(model, ["us"]), 2) == 6.11
    assert round(giga_macs(model, model.modalities), 2) == 8.80


def test_published_weight_of_divergences():
    """Its loss is half the mean absolute error, plus 0.001 divergences per pixel and modality."""
    torch.manual_seed(0)
    model = published_mmhvae(size=16, **SMALL)
    x = {m: 2 * torch.rand(3, 1, 16, 16) - 1 for m in model.modalities}
    output = model(x)
    error = torch.stack([(output.likelihoods[m].mean - v).abs() for m, v in x.items()])
    loss = error.mean(dim=(0, 2, 3, 4)) / 2 + 1e-3 * sum(output.kl) / (4 * 16**2)
    bound = mmpoe.elbo(output, x, torch.ones(3, 4).bool()) / (4 * 16**2)
    torch.testing.assert_close(-1e-3 * (bound + math.log(2 * 2e-3)), loss)


def test_both_rules_have_the_same_weights():
    one, two = make("published rule"), make("small")
    one.load_state_dict(two.state_dict())
    x, noise = batch("small"), noise_for(two)
    q, p = (model(x, OBSERVED, noise=noise) for model in (one, two))
    assert torch.equal(q.posteriors[0].loc[0], p.posteriors[0].loc[0])  # given nothing
    # scales of 1 / (1 + n) and 1 / sqrt(1 + n), for n experts as wide as the prior
    wider = p.posteriors[0].log_scale[1:] - q.posteriors[0].log_scale[1:]
    assert wider.min() > 0


@every_variant
def test_variants_keep_shapes(name):
    model, x = make(name), batch(name)
    output = model(x, OBSERVED)
    for m in NAMES:
        assert output.likelihoods[m].mean.shape == (8, 1, *sides(name))
    for group, z in zip(model.groups, output.z, strict=True):
        assert z.shape == (8, *group.shape)
    if name not in ("one group", "two groups of four"):
        assert output.z[-1].shape[2:] == sides(name)


@every_variant
@pytest.mark.parametrize("filler", [7.0, math.nan])
def test_missing_slots_change_no_bit(name, filler):
    model = make(name)
    noise = noise_for(model)

    def run(value):
        x = batch(name, value)
        bound = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
        return [bound, *torch.autograd.grad(bound.mean(), list(model.parameters()))]

    for a, b in zip(run(filler), run(0.0), strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)


def test_missing_modalities_have_no_gradient():
    model, x = make("small"), batch("small")
    x = {m: v.requires_grad_() for m, v in x.items()}
    given = OBSERVED & torch.tensor([True, True, False])  # nobody has the last modality
    output = model(x, given, noise=noise_for(model))
    sum(output.likelihoods[m].mean.square().sum() for m in NAMES).backward()
    for column, m in enumerate(NAMES[:2]):
        rows = x[m].grad.flatten(1).abs().sum(dim=1)
        assert torch.equal(rows > 0, given[:, column])
        assert any(p.grad.any() for p in model.encoders[m].parameters())
    assert x["flair"].grad is None or not x["flair"].grad.any()
    for p in model.encoders["flair"].parameters():
        assert p.grad is None or not p.grad.any()
    assert any(p.grad.any() for p in model.decoders["flair"].parameters())


@every_variant
def test_every_parameter_takes_part(name):
    model, x = make(name), batch(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SqueezeExcite):
                module.layers[0].bias.fill_(2.0)  # so that no rectifier is off
    (-mixture_elbo(model, x, OBSERVED).mean()).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # instance normalisation takes away what these add, but for rounding
    assert [n for n in unused if not n.endswith("bias")] == []


@every_variant
def test_rows_do_not_influence_each_other(name):
    model, x = make(name).double(), batch(name)
    x, noise = {m: v.double() for m, v in x.items()}, [n.double() for n in noise_for(model)]
    together = model(x, OBSERVED, noise=noise)
    for b in (0, 3, 7):
        row = {m: v[b : b + 1] for m, v in x.items()}
        alone = model(row, OBSERVED[b : b + 1], noise=[n[b : b + 1] for n in noise])
        for m in NAMES:
            expected = together.likelihoods[m].mean[b : b + 1]
            torch.testing.assert_close(alone.likelihoods[m].mean, expected)
    assert [kl[0].item() for kl in together.kl] == [0.0] * len(model.groups)  # given nothing


def test_the_path_down_is_markov():
    """Changes z of the first group, and the noise of the second such that its z stays."""
    model = make("small").double()
    x, noise = {m: v.double() for m, v in batch("small").items()}, noise_for(model)
    noise = [n.double() for n in noise]
    one = model(x, OBSERVED, noise=noise)
    changed = [noise[0] + 1, *noise[1:]]
    q = model(x, OBSERVED, noise=changed).posteriors[1]
    changed[1] = (one.z[1] - q.loc) / q.scale
    two = model(x, OBSERVED, noise=changed)
    assert (one.posteriors[1].loc - two.posteriors[1].loc).abs().max() > 1e-3
    torch.testing.assert_close(two.posteriors[2].loc, one.posteriors[2].loc)
    torch.testing.assert_close(two.likelihoods["us"].mean, one.likelihoods["us"].mean)


def test_empty_batches_and_prior_samples():
    model, x = make("small"), batch("small")
    nothing = {m: v[:0] for m, v in x.items()}
    assert mixture_elbo(model, nothing, OBSERVED[:0]).shape == (0,)
    drawn = model({}, OBSERVED & False)
    assert drawn.likelihoods["us"].mean.shape == (8, 1, 16, 16)
    assert drawn.likelihoods["us"].mean.abs().max() < 1


@pytest.mark.parametrize("levels", range(1, 8))
def test_one_to_seven_groups(levels):
    model = published_mmhvae(["us"], 128, levels=levels, **SMALL)
    assert len(model.groups) == levels
    expected = [(16,)] + [(4, s, s) for s in (4, 8, 16, 32, 64)] + [(2, 128, 128)]
    assert [group.shape for group in model.groups] == expected[:levels]
    image = model({"us": torch.zeros(1, 1, 128, 128)}).likelihoods["us"].mean
    assert image.shape == (1, 1, 128, 128)


@pytest.mark.parametrize(
    ("size", "depth"), [(64, 6), (192, 7), (256, 7), (208, 5), (6, 2), ((64, 128), 7)]
)
def test_depth_follows_from_the_size(size, depth):
    assert len(published_mmhvae(["us"], size, **SMALL).groups) == depth


def test_more_than_seven_resolutions_if_asked():
    assert len(published_mmhvae(["us"], 256, depth=8, **SMALL).groups) == 8


def test_learns():
    torch.manual_seed(0)
    model = published_mmhvae(["a", "b"], 8, scale=0.1, **SMALL)
    image = torch.linspace(-0.8, 0.8, 8).expand(16, 1, 8, 8)
    x = {"a": image, "b": -image}
    optimiser = torch.optim.Adamax(model.parameters(), lr=1e-2)
    complete, bounds = torch.ones(16, 2).bool(), []
    for _ in range(25):
        bound = mixture_elbo(model, x, complete).mean()
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()
        bounds.append(bound.item())
    error = (model.predict(x, ["a"], temperature=0.0)["b"].mean - x["b"]).abs().mean()
    assert bounds[-1] > bounds[0] + 50
    assert error < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64, "levels": 7}, r"'levels' should be from 1 to 6, .*64 x 64 pixels, but is 7"),
        ({"size": 64, "depth": 7}, r"'depth' should be from 2 to 6 .*64 x 64 pixels, .* but is 7"),
        ({"size": 64, "depth": 1}, r"'depth' should be from 2 to 6 .* but is 1"),
        ({"levels": 0}, r"'levels' should be from 1 to 7, .*192 x 192 pixels, but is 0"),
        ({"depth": 3, "levels": 4}, r"'levels' should be from 1 to 3, .* but is 4"),
        ({"size": 45}, r"'size' should have .* even .* but is 45 x 45 pixels"),
        ({"size": 2}, r"'size' should have .* at least 4 pixels, but is 2 x 2"),
        ({"size": (8, 8, 8, 8)}, r"'size' should have 1, 2 or 3 sides"),
        ({"size": 8, "width": 3}, r"'width' should be positive and even, but is 3"),
        ({"size": 8, "max_width": 0}, r"'max_width' should be positive and even, but is 0"),
        ({"size": 8, "blocks": 0}, r"'blocks' should be at least 1, but is 0"),
        ({"size": 8, "head_width": 0}, r"'head_width' should be at least 1, but is 0"),
        ({"size": 8, "cell": "dense"}, r"'cell' should be one of residual, inverted, but is 'den"),
        ({"size": 8, "power": 3}, r"'power' should be"),
        ({"size": 8, "scale": 0.0}, r"'scale' should be positive"),
        ({"modalities": "us"}, r"'modalities' should be a list of distinct names"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        published_mmhvae(**options)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 15, 16), (1, 16)])
def test_images_of_another_size_are_named(shape):
    """Of 15 pixels, the coarsest features would have the size that they should have."""
    message = r"'x' should hold images of 16 x 16 pixels, .* but holds entries of shape \(1, "
    with pytest.raises(ValueError, match=message):
        make("small")({"us": torch.zeros(2, *shape)})


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_cells_of_every_dimension(dims):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *(4, 6, 8)[:dims])
    for cell in (ResidualCell(4, dims), InvertedResidualCell(4, dims)):
        assert cell(x).shape == x.shape
        torch.testing.assert_close(cell(x) - x, cell.layers(x))
    step = UpsampleConv(4, 3, dims)
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
    mode = ("linear", "bilinear", "trilinear")[dims - 1]
    larger = functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)
    torch.testing.assert_close(step(x), conv(larger, step[1].weight, padding=1))


def test_squeeze_and_excite_scales_channels():
    torch.manual_seed(0)
    x, excite = torch.randn(2, 3, 4, 5), SqueezeExcite(3)
    first, _, second, _ = excite.layers
    scale = torch.sigmoid(second(first(x.mean(dim=(2, 3))).relu()))
    torch.testing.assert_close(excite(x), x * scale[:, :, None, None])
    assert [SqueezeExcite(c).layers[0].out_features for c in (16, 64, 65, 128)] == [4, 4, 4, 8]


def test_a_markov_step_forgets_the_state():
    step, z = MarkovStep(nn.Linear(2, 3)), torch.randn(5, 2)
    assert torch.equal(step(None, z), step(torch.randn(5, 7), z))


def test_channels_last_is_the_same_network():
    """Weights and images with channels last in memory: the same bounds and gradients."""
    torch.manual_seed(0)
    model = published_mmhvae(["us", "t2"], 16, **SMALL).double()
    x = {m: 2 * torch.rand(3, 1, 16, 16).double() - 1 for m in model.modalities}
    noise = [torch.randn(3, *group.shape).double() for group in model.groups]
    observed = torch.tensor([[True, True], [True, False], [False, True]])
    bounds, gradients = [], []
    for memory in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory)
        images = {m: v.to(memory_format=memory) for m, v in x.items()}
        bound = mmpoe.elbo(model(images, observed, noise=noise), images, observed)
        bounds.append(bound)
        gradients.append(torch.autograd.grad(bound.sum(), list(model.parameters())))
    torch.testing.assert_close(bounds[1], bounds[0], rtol=1e-10, atol=0)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-8)

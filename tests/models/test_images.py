"""The MMHVAE for images keeps what every model promises, and uses all of its parts."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import (
    conv2d,
    group_norm,
    interpolate,
    pixel_shuffle,
    pixel_unshuffle,
    silu,
)

import mmpoe
from mmpoe.likelihoods import Normal
from mmpoe.models import image_mmhvae
from mmpoe.nn import ResidualBlock
from mmpoe.objectives import mixture_elbo

NAMES = ["us", "t2", "flair"]
OBSERVED = torch.tensor([[b >> m & 1 for m in range(3)] for b in range(8)]).bool()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return image_mmhvae(NAMES, 16, widths=[8, 4], latents=[3, 2])


def batch(filler=0.0):
    generator = torch.Generator().manual_seed(0)
    x = {}
    for column, m in enumerate(NAMES):
        values = 2 * torch.rand(8, 1, 16, 16, generator=generator) - 1
        x[m] = torch.where(OBSERVED[:, column, None, None, None], values, filler)
    return x


def noise(subsets=()):
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 4, 4), (2, 8, 8)]
    return [torch.randn(*subsets, 8, *shape, generator=generator) for shape in shapes]


class Saved:
    """The networks of a saved model for images, from the names in its state and plain PyTorch."""

    def __init__(self, state, patch):
        self.state, self.patch, self.used = state, patch, set()

    def __getitem__(self, name):
        self.used.add(name)
        return self.state[name]

    def conv(self, name, x, **options):
        return conv2d(x, self[f"{name}.weight"], self[f"{name}.bias"], **options)

    def active(self, x):
        return silu(group_norm(x, x.shape[1]))

    def residual(self, name, x):
        inside = self.conv(f"{name}.layers.2", self.active(x), padding=1)
        return x + self.conv(f"{name}.layers.5", self.active(inside), padding=1)

    def features(self, m, x):
        x = self.conv(f"encoders.{m}.1", pixel_unshuffle(x, self.patch), padding=1)
        features = [self.residual("trunk.blocks.0", x)]
        while f"trunk.strides.{len(features) - 1}.weight" in self.state:
            level = len(features)
            x = self.conv(f"trunk.strides.{level - 1}", features[-1], stride=2, padding=1)
            features.append(self.residual(f"trunk.blocks.{level}", x))
        return features[::-1]

    def expert(self, level, m, features):
        return self.conv(f"groups.{level}.expert.{m}.2", self.active(features), padding=1)

    def merge(self, level, h, z):
        name = f"groups.{level}.merge"
        above = self[f"{name}.start"] if h is None else h
        h = self.residual(f"{name}.block", self.conv(f"{name}.inject", z, padding=1) + above)
        if f"{name}.expand.weight" not in self.state:
            return h
        return interpolate(self.conv(f"{name}.expand", h), scale_factor=2)

    def image(self, m, h):
        x = self.conv(f"decoders.{m}.network.1", silu(h), padding=1)
        return pixel_shuffle(x, self.patch).tanh()


@pytest.mark.parametrize("patch", [1, 2])
def test_saved_models_mean_the_same(patch):
    """Names and arithmetic must not change, or saved models could not be read."""
    torch.manual_seed(0)
    model = image_mmhvae(NAMES, 16, widths=[8, 6, 4], latents=[3, 2, 2], patch=patch)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))  # biases and the start are zero at first
    x = {m: 2 * torch.rand(4, 1, 16, 16) - 1 for m in NAMES}
    saved = Saved(model.state_dict(), patch)

    output = model(x)
    features = {m: saved.features(m, x[m]) for m in NAMES}
    h = None
    for level, group in enumerate(model.groups):
        experts = [saved.expert(level, m, features[m][level]).chunk(2, dim=1) for m in NAMES]
        prior = None if level == 0 else saved.conv(f"groups.{level}.prior", h).chunk(2, dim=1)
        q = group.posterior(*zip(*experts, strict=True), torch.ones(4, 3).bool(), prior)
        torch.testing.assert_close(output.posteriors[level].loc, q.loc)
        torch.testing.assert_close(output.posteriors[level].log_scale, q.log_scale)
        h = saved.merge(level, h, output.z[level])
    for m in NAMES:
        p = output.likelihoods[m]
        torch.testing.assert_close(p.mean, saved.image(m, h))
        scale = saved[f"decoders.{m}.log_scale"].exp()
        torch.testing.assert_close(p.stddev, (math.sqrt(2) * scale).expand_as(p.mean))
    assert saved.used == set(saved.state)


def test_seeds_mean_the_same():
    """Parts draw their initial weights one after another, in an order that must not change."""
    torch.manual_seed(0)
    model = image_mmhvae(NAMES, 16, widths=[8, 6, 4], latents=[3, 2, 2])
    torch.manual_seed(0)
    for part in (model.groups, model.encoders, model.decoders, model.trunk):
        for name, found in part.named_modules():
            if isinstance(found, nn.Conv2d):
                drawn = nn.Conv2d(found.in_channels, found.out_channels, found.kernel_size).weight
                assert torch.equal(found.weight, 0.3 * drawn if "prior" in name else drawn)


def test_latents_are_maps_coarse_to_fine(model):
    output = model(batch(), OBSERVED)
    assert [z.shape[1:] for z in output.z] == [(3, 4, 4), (2, 8, 8)]
    for kl, q, p in zip(output.kl, output.posteriors, output.priors, strict=True):
        torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p))
    for p in output.likelihoods.values():
        assert p.event_shape == (1, 16, 16)
        assert p.mean.abs().max() <= 1


@pytest.mark.parametrize("filler", [7.0, math.inf, math.nan])
def test_missing_slots_change_no_bit(model, filler):
    def run(value):
        x = batch(value)
        bound = mmpoe.elbo(model(x, OBSERVED, noise=noise()), x, OBSERVED)
        return [bound, *torch.autograd.grad(bound.mean(), list(model.parameters()))]

    for a, b in zip(run(filler), run(0.0), strict=True):
        assert torch.equal(a, b)


def test_every_latent_group_reaches_every_image(model):
    x = batch()
    for level in range(2):
        changed = noise()
        changed[level] = changed[level] + 1
        one, two = model(x, OBSERVED, noise=noise()), model(x, OBSERVED, noise=changed)
        for m in NAMES:
            difference = (one.likelihoods[m].mean - two.likelihoods[m].mean).abs()
            assert (difference.amax(dim=(1, 2, 3)) > 1e-4).all()


def test_every_parameter_takes_part(model):
    x = batch()
    (-mixture_elbo(model, x, OBSERVED).mean()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_trunk_features_belong_to_their_modality(model):
    """A modality alone in a batch is encoded as it is among others."""
    x = batch()
    together = model.encode(x, OBSERVED)
    for column, m in enumerate(NAMES):
        only = torch.zeros_like(OBSERVED)
        only[:, column] = OBSERVED[:, column]
        alone = model.encode(x, only)
        for a, b in zip(together.features[m], alone.features[m], strict=True):
            torch.testing.assert_close(a, b)


def test_trunk_runs_once_for_all_modalities_and_subsets(model):
    calls = []
    model.trunk.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    mixture_elbo(model, batch(), OBSERVED)
    assert calls == [int(OBSERVED.sum())]


def test_rows_and_subsets_do_not_influence_each_other(model):
    x, draws = batch(), noise(subsets=(2,))
    given = torch.stack([OBSERVED, OBSERVED & torch.tensor([True, False, True])])
    together = mmpoe.elbo(model(x, given, noise=draws), x, OBSERVED)
    for s in range(2):
        for b in (3, 7):
            row = {m: v[b : b + 1] for m, v in x.items()}
            drawn = [n[s, b : b + 1] for n in draws]
            output = model(row, given[s, b : b + 1], noise=drawn)
            alone = mmpoe.elbo(output, row, OBSERVED[b : b + 1])
            torch.testing.assert_close(alone, together[s, b : b + 1], rtol=1e-4, atol=1e-3)


def test_experts_start_precise_and_priors_near_standard(model):
    output = model(batch(), OBSERVED)
    full = OBSERVED.all(dim=1)
    assert output.posteriors[0].log_scale[full].mean() < -1.5
    assert output.priors[1].log_scale.abs().mean() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modalities": "us"}, "'modalities' should be a list of distinct names"),
        ({"size": 10}, "'size' should be a multiple of 4, and at least 8, .* but is 10"),
        ({"size": 4}, "'size' should be a multiple of 4, and at least 8"),
        ({"latents": [3]}, "'widths' and 'latents' should have one entry per latent group"),
        ({"patch": 0}, "'patch' should be at least 1, but is 0"),
        ({"clamp": -1.0}, "'clamp' should be positive"),
        ({"size": (16, 10)}, r"'size' should be a multiple of 4, .* but is \(16, 10\)"),
        ({"size": (16,) * 4}, "'size' should have 1, 2 or 3 sides"),
        ({"widths": [8, 0]}, "'widths' should be at least 1, but is 0"),
        ({"latents": [0, 2]}, "'latents' should be at least 1, but is 0"),
        ({"channels": {"us": 1}}, "'channels' should have the names of the modalities, us, t2, "),
        ({"channels": 0}, "'channels' should be at least 1, but is 0"),
        ({"likelihoods": {"t1": Normal}}, "'likelihoods' should hold modalities among us, t2, "),
    ],
)
def test_bad_numbers_are_named(arguments, message):
    usual = {"modalities": NAMES, "size": 16, "widths": [8, 4], "latents": [3, 2]}
    with pytest.raises(ValueError, match=message):
        image_mmhvae(**(usual | arguments))


def test_normalising_one_pixel_is_an_error():
    with pytest.raises(ValueError, match=r"more than one pixel .* \(2, 4, 1, 1\)"):
        ResidualBlock(4)(torch.zeros(2, 4, 1, 1))

"""Whether calibration works: models are trained, calibrated, and held against exact conditionals.

`make calibration-gate` runs this; it takes some minutes. Predictions are of one modality given
another, with 100 draws each and the noise of the likelihood.
"""

import copy
import math

import pytest
import torch
from example_models import conditioned
from torch import nn
from torch.distributions import MultivariateNormal

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.imputation import calibrate, impute
from mmpoe.likelihoods import Normal
from mmpoe.metrics import coverage, crps, energy_score
from mmpoe.missing import random_subsets
from mmpoe.nn import MLP

pytestmark = [
    pytest.mark.gate,
    pytest.mark.filterwarnings("ignore::mmpoe.models.UncalibratedWarning"),
]
DRAWS = 100


def cosine(done):
    return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


# Flat and linear: two modalities with 8 numbers each, from 2 factors that they share and 2 of
# their own, with noise of variance 0.25. All conditionals are normal and known.

PAIRS = torch.tensor([[True, False], [False, True], [True, True]])


class Linear(nn.Module):
    """An expert whose precision does not depend on the data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(8, 6)
        self.log_scale = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        loc = self.loc(x)
        return torch.cat([loc, self.log_scale.expand_as(loc)], dim=1)


def factors(seed):
    loadings = 0.65 * torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(seed))
    loadings[0, :, 4:] = 0
    loadings[1, :, 2:4] = 0
    return dict(zip("ab", loadings, strict=True))


def linear_data(loadings, rows):
    z = torch.randn(rows, 6)
    return {m: z @ w.T + 0.5 * torch.randn(rows, 8) for m, w in loadings.items()}


def train_linear(loadings, cross, steps, rows=256):
    """Trains on new data at each step: every subset scores all, or what it is given."""
    vae = mmpoe.MVAE(
        {m: Linear() for m in "ab"},
        {m: Normal(nn.Linear(6, 8), learn_scale=True) for m in "ab"},
        latent_dim=6,
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-2)
    given = PAIRS.repeat_interleave(rows, dim=0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * cosine(step / steps)
        x = linear_data(loadings, rows)
        output = conditioned(vae, x, given, rows=torch.arange(rows).repeat(3))
        x = {m: v.repeat(3, 1) for m, v in x.items()}
        scored = torch.ones_like(given) if cross else given
        loss = -mmpoe.elbo(output, x, scored).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae


@torch.no_grad()
def linear_scores(vae, loadings):
    """Of b given a: coverage, that of the first principal axis, CRPS and log-density to exact."""
    x = linear_data(loadings, 2000)
    a, b = loadings["a"], loadings["b"]
    slope = b @ a.T @ torch.linalg.inv(a @ a.T + 0.25 * torch.eye(8))
    covariance = b @ b.T + 0.25 * torch.eye(8) - slope @ a @ b.T
    exact = MultivariateNormal(x["a"] @ slope.T, covariance)
    axis = torch.linalg.eigh(covariance)[1][:, -1:]

    draws = impute(vae, x, ["a"], DRAWS, targets=["b"])["b"].draws
    q = conditioned(vae, x, ["a"], experts="matched" if vae.is_matched else "trained").posteriors[
        0
    ]
    network, scale = vae.decoders["b"].network, vae.decoders["b"].scale
    spread = (network.weight * q.variance.unsqueeze(1)) @ network.weight.T
    predicted = MultivariateNormal(network(q.loc), spread + scale.square() * torch.eye(8))
    return torch.tensor(
        [
            coverage(draws, x["b"]).mean(),
            coverage(draws @ axis, x["b"] @ axis).mean(),
            crps(draws, x["b"]).mean() / crps(exact.sample((DRAWS,)), x["b"]).mean(),
            (predicted.log_prob(x["b"]) - exact.log_prob(x["b"])).mean(),
        ]
    )


def linear_gate(seed, steps):
    """The scores of a posterior trained across modalities, and of one that is calibrated."""
    torch.manual_seed(seed)
    loadings = factors(seed)
    narrow = linear_scores(train_linear(loadings, cross=True, steps=steps), loadings)
    vae = train_linear(loadings, cross=False, steps=steps)
    complete = torch.ones(8000, 2, dtype=torch.bool)
    calibrate(vae, (linear_data(loadings, 8000), complete), steps=600, batch_size=256, lr=5e-3)
    wide = linear_scores(vae, loadings)
    print(f"seed {seed}: across {narrow.tolist()}, calibrated {wide.tolist()}")
    return torch.stack([narrow, wide])


def test_linear_models():
    scores = torch.stack([linear_gate(seed, steps=1000) for seed in range(8)]).mean(dim=0)
    (_, narrow_axis, _, narrow_log_p), (whole, axis, relative_crps, log_p) = scores
    assert narrow_axis < 0.75
    assert narrow_log_p < -1.5
    assert whole == pytest.approx(0.9, abs=0.015)
    assert axis > 0.87
    assert relative_crps < 1.01
    assert log_p > -0.15


# Images: a bump in three pictures of 16 x 16 pixels, at a place that they share up to small
# shifts of their own, over a ramp with a random slope. The second one also has bars, whose sign
# is a coin toss that no other modality knows of.

NAMES = ["first", "second", "third"]
SIDE, NOISE = 16, 0.15
SHARED, OWN, SLOPE, BARS = 0.36, 0.12, 0.37, 0.28  # standard deviations; the height of the bars
PIXEL = torch.linspace(-1, 1, SIDE)
RAMPS = {
    "first": PIXEL.expand(SIDE, SIDE),
    "second": PIXEL[:, None].expand(SIDE, SIDE),
    "third": (PIXEL + PIXEL[:, None]) / 2,
}
PATTERN = torch.sin(2 * math.pi * (PIXEL + 1) + 0.01).sign().expand(SIDE, SIDE)


def bump(place):
    """Pictures of a bump at some places, (*, 2) -> (*, 16, 16)."""
    across = PIXEL - place[..., 0, None, None]
    down = PIXEL[:, None] - place[..., 1, None, None]
    return 1.5 * torch.exp(-(across.square() + down.square()) / 0.18)


def coin(*shape):
    return 2.0 * torch.randint(2, shape) - 1


def pictures(rows):
    place = SHARED * torch.randn(rows, 1, 2) + OWN * torch.randn(rows, 3, 2)
    x = {}
    for column, m in enumerate(NAMES):
        clean = bump(place[:, column]) + SLOPE * torch.randn(rows, 1, 1) * RAMPS[m]
        if m == "second":
            clean = clean + BARS * coin(rows, 1, 1) * PATTERN
        x[m] = clean + NOISE * torch.randn(rows, SIDE, SIDE)
    observed = torch.rand(rows, 3) < 0.7
    return x, observed | ~observed.any(dim=1, keepdim=True)


def exact_draws(first):
    """Draws of the second picture given the first: its place is found on a grid."""
    steps = torch.linspace(-1.6, 1.6, 81)
    grid = torch.cartesian_prod(steps, steps)
    ramp = RAMPS["first"].flatten()
    share = SLOPE**2 / (NOISE**2 + SLOPE**2 * ramp.dot(ramp))
    clean = bump(grid).flatten(1)
    white = (clean - share * torch.outer(clean @ ramp, ramp)) / NOISE**2  # precision times picture
    variance = SHARED**2 + OWN**2
    logits = first.flatten(1) @ white.T - 0.5 * (white * clean).sum(dim=1)
    logits = logits - 0.5 * grid.square().sum(dim=1) / variance
    found = grid[torch.distributions.Categorical(logits=logits).sample((DRAWS,))]
    found = found + (torch.rand_like(found) - 0.5) * (steps[1] - steps[0])

    slope = SHARED**2 / variance
    place = slope * found + math.sqrt(variance * (1 - slope**2)) * torch.randn_like(found)
    some = (DRAWS, len(first), 1, 1)
    clean = (
        bump(place) + SLOPE * torch.randn(some) * RAMPS["second"] + BARS * coin(*some) * PATTERN
    )
    return clean + NOISE * torch.randn(DRAWS, len(first), SIDE, SIDE)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Flatten(), MLP(SIDE**2, 96, hidden=[96]), nn.SiLU())
        self.coarse = nn.Sequential(nn.Linear(96, 96), nn.SiLU())

    def forward(self, x):
        fine = self.fine(x)
        return [self.coarse(fine), fine]


class Merge(nn.Module):
    def __init__(self, latent):
        super().__init__()
        self.inject = nn.Linear(latent, 64)
        self.network = nn.Sequential(nn.SiLU(), MLP(64, 64, hidden=[64]))

    def forward(self, h, z):
        state = self.inject(z) + (0 if h is None else h)
        return (state + self.network(state)).tanh()  # bounded: priors do not extrapolate


def picture_model():
    def experts(features, latent):
        return {m: MLP(features, 2 * latent, hidden=[64]) for m in NAMES}

    def head():
        return nn.Sequential(
            nn.SiLU(), MLP(64, SIDE**2, hidden=[96]), nn.Unflatten(1, (SIDE, SIDE))
        )

    groups = [
        LatentGroup((8,), experts(96, 8), Merge(8)),
        LatentGroup((16,), experts(96 + 64, 16), Merge(16), prior=MLP(64, 32, hidden=[64])),
    ]
    decoders = {m: Normal(head(), scale=0.6, learn_scale=True) for m in NAMES}
    return mmpoe.MMHVAE({m: Encoder() for m in NAMES}, groups, decoders)


def train_pictures(seed, steps=3000, rows=96):
    """Trains across modalities: half of the bound is that of a random subset."""
    torch.manual_seed(seed)
    vae = picture_model()
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * cosine(step / steps)
        x, observed = pictures(rows)
        given = torch.stack([observed, random_subsets(observed)[0]])
        beta = min(1.0, (step + 1) / (0.3 * steps))
        loss = -mmpoe.elbo(vae(x, given), x, observed, beta).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1000.0)
        optimizer.step()
    return vae


def picture_scores(draws, truth):
    """Coverage of pixels, of the slope and of the sign; energy score; error of the mean."""

    def along(direction):
        return [(v * direction).sum(dim=(-1, -2)) for v in (draws, truth)]

    return {
        "coverage": coverage(draws, truth).mean().item(),
        "slope": coverage(*along(RAMPS["second"])).mean().item(),
        "sign": coverage(*along(PATTERN)).mean().item(),
        "energy": energy_score(draws, truth).mean().item(),
        "rmse": (draws.mean(dim=0) - truth).square().mean().sqrt().item(),
    }


def predicted_scores(vae):
    torch.manual_seed(99)
    x, _ = pictures(400)
    draws = impute(vae, x, ["first"], DRAWS, targets=["second"])["second"].draws
    return picture_scores(draws, x["second"])


def test_exact_draws_are_calibrated():
    torch.manual_seed(99)
    x, _ = pictures(400)
    scores = picture_scores(exact_draws(x["first"]), x["second"])
    print(f"exact: {scores}")
    assert all(scores[name] == pytest.approx(0.9, abs=0.03) for name in ("slope", "sign"))
    assert scores["coverage"] == pytest.approx(0.9, abs=0.01)
    assert 4.4 < scores["energy"] < 4.6


def test_pictures():
    vae = train_pictures(seed=0)
    before = predicted_scores(vae)
    torch.manual_seed(7)
    data, after = pictures(16_000), {}
    for teacher in ("complete", "bootstrap", "all"):
        model = copy.deepcopy(vae)
        torch.manual_seed(1)
        calibrate(model, data, teacher=teacher, batch_size=96)
        after[teacher] = predicted_scores(model)
    print(f"before: {before}\nafter: {after}")

    assert before["coverage"] < 0.7
    assert max(before["slope"], before["sign"]) < 0.2
    assert before["energy"] >= 4.9
    for teacher in ("complete", "bootstrap"):
        assert 0.84 <= after[teacher]["coverage"] <= 0.92
        assert after[teacher]["energy"] <= 4.7
        assert after[teacher]["slope"] > 0.8
        assert after[teacher]["sign"] > 0.5  # a coin toss has two peaks, which no Gaussian has
        assert after[teacher]["rmse"] < before["rmse"] + 0.01
    assert after["all"]["coverage"] < after["complete"]["coverage"] - 0.08

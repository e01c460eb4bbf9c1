r"""Rules against exact posteriors: how far the best that each can do is from the truth.

Experts are linear with a scale that is learned, which is what the exact ones are. Each rule is
trained to be close to :math:`p(z \mid x_s)` for single modalities and all of them at once; what is
left is the rule's. Pairs of modalities are never trained on.
"""

from __future__ import annotations

__all__ = ["TRUTHS", "Truth", "fit"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from mmpoe.distributions import DiagNormal, MixtureOfProducts
from mmpoe.missing import subsets
from mmpoe.models import MVAE
from mmpoe.objectives import SubsetWeights, mmvm
from mmpoe.oracles import LinearGaussian, LinearGaussianHierarchy

from .rules import LEARNED, RULES, Views

NAMES = ["a", "b", "c"]
LATENTS, FEATURES, BATCH, HELD_OUT = 2, 3, 64, 1000
PATTERNS = subsets(torch.ones(1, len(NAMES), dtype=torch.bool))[0]  # (7, 1, 3)
NUMBER = PATTERNS[:, 0].sum(dim=1)
"""All subsets, and how many modalities each holds."""


@dataclass(frozen=True)
class Truth:
    """A linear-Gaussian model of one latent vector with a standard normal prior."""

    sample: Callable[[int], Views]
    """Draws complete samples."""
    precision: Callable[[Views, Sequence[str]], tuple[Tensor, Tensor]]
    """The precision and natural mean, in each dimension, of what some modalities say."""
    alone: LinearGaussian
    """A model with the same likelihood of each modality, whose modalities are independent."""

    def posterior(self, x: Views, given: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and scale for subsets of shape (S, B, M), both of shape (S, B, D)."""
        means, scales = [], []
        for pattern in given[:, 0].tolist():
            names = [m for m, seen in zip(NAMES, pattern, strict=True) if seen]
            precision, natural = self.precision(x, names)
            means.append(natural / (1 + precision))
            scales.append((1 + precision).rsqrt())
        return torch.stack(means), torch.stack(scales)


def independent(generator: torch.Generator) -> Truth:
    """Modalities are independent given z."""
    oracle = LinearGaussian.random(NAMES, LATENTS, FEATURES, generator=generator)

    def precision(x: Views, given: Sequence[str]) -> tuple[Tensor, Tensor]:
        matrix, natural = oracle.message(x, given)
        return matrix.diagonal(dim1=-2, dim2=-1), natural

    return Truth(lambda n: oracle.sample(n)[0], precision, oracle)


def shared_noise(generator: torch.Generator) -> Truth:
    """Modalities see z through one noise, that of a level of a chain below it."""
    chain = LinearGaussianHierarchy.random(NAMES, 2, LATENTS, FEATURES, generator=generator)
    slope, intercept, variance = (v[0] for v in chain.steps[0])
    flat = chain.flat
    alone = LinearGaussian(
        {m: w * slope for m, w in flat.weight.items()},
        {m: flat.bias[m] + w @ intercept for m, w in flat.weight.items()},
        {m: flat.covariance[m] + (w * variance) @ w.T for m, w in flat.weight.items()},
    )
    return Truth(lambda n: chain.sample(n)[0], lambda x, given: chain.messages(x, given)[0], alone)


TRUTHS = {"independent": independent, "shared noise": shared_noise}


class Expert(nn.Module):
    """A linear mean, and a log standard deviation that is the same for all data."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Linear(FEATURES, LATENTS)
        self.log_scale = nn.Parameter(torch.zeros(LATENTS))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean and log standard deviation, stacked."""
        loc = self.loc(x)
        return torch.cat([loc, self.log_scale.expand_as(loc)], dim=1)


def fit(rule: str, truth: str, seed: int, steps: int) -> dict[str, float]:
    """Trains a rule, and returns how far it is from the exact posteriors.

    Arguments:
        rule: The name of the rule.
        truth: The name of the model.
        seed: The seed, of the model too.
        steps: The number of steps.
    """
    torch.manual_seed(seed)
    oracle = TRUTHS[truth](torch.Generator().manual_seed(seed))
    build = (lambda: nn.Linear(FEATURES, 2 * LATENTS)) if rule == "SumPooling" else Expert
    exact_model = oracle.alone.model()
    model = MVAE(
        {m: build() for m in NAMES},
        {m: exact_model.decoders[m].requires_grad_(False) for m in NAMES},
        posterior=RULES[rule].build(len(NAMES), LATENTS),
    ).double()
    weights = SubsetWeights(len(NAMES)).double()

    trained = [p for p in (*model.parameters(), *weights.parameters()) if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    learned = weights if rule == LEARNED else None
    data = oracle.sample(steps * BATCH)  # each sample is seen once
    exact = oracle.posterior(data, PATTERNS)
    for step in range(steps):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        x = {m: v[rows] for m, v in data.items()}
        if rule == "MMVM":
            loss = -mmvm(model, x, torch.ones(BATCH, len(NAMES), dtype=torch.bool)).mean()
        else:
            mean, scale = (v[:, rows] for v in exact)
            loss = gap(mixture(model, x, learned), mean, scale)[NUMBER != 2].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x = oracle.sample(HELD_OUT)
        q = mixture(model, x, learned)
        mean, scale = oracle.posterior(x, PATTERNS)
        gaps = torch.stack([gap(q, mean, scale) for _ in range(20)]).mean(dim=(0, 2))  # (7)
    shape = mean.shape
    off = (q.mean.view(shape) - mean)[-1] / scale[-1]
    ratio = (q.variance.view(shape).sqrt() / scale)[-1].log()
    return {
        "gap one": gaps[NUMBER == 1].mean().item(),
        "gap two": gaps[NUMBER == 2].mean().item(),
        "gap all": gaps[-1].item(),
        "mean": off.square().mean().sqrt().item(),
        "scale": ratio.mean().exp().item(),
        "weight of all": weights(PATTERNS[-1])[1][-1, 0].item(),
    }


def mixture(model: MVAE, x: Views, weights: SubsetWeights | None) -> MixtureOfProducts:
    """Returns the posteriors of all patterns, with batch shape (7 B)."""
    size = len(x[NAMES[0]])
    masks = PATTERNS.expand(-1, size, -1).flatten(0, 1)  # (7 B, M)
    parts, weight = subsets(masks, model.family, dtype=torch.float64)
    if weights is not None:
        parts, weight = weights(masks)
    given = parts.unflatten(1, (len(PATTERNS), size)).flatten(0, 1)  # (C 7, B, M)
    q = model.infer(model.encode(x, given), given, temperature=0.0).posteriors[0]
    loc, log_scale = (v.reshape(*weight.shape, LATENTS) for v in (q.loc, q.log_scale))
    return MixtureOfProducts(DiagNormal(loc, log_scale), weight)


def gap(q: MixtureOfProducts, mean: Tensor, scale: Tensor) -> Tensor:
    """Estimates the divergence of posteriors from the exact ones, from a sample of each component.

    Arguments:
        q: The posteriors, with batch shape (7 B).
        mean: The exact means, with shape (7, B, D).
        scale: The exact standard deviations, likewise.

    Returns:
        The divergence, in nats, with shape (7, B).
    """
    z = q.components.rsample()  # (C, 7 B, D)
    exact = Normal(mean.flatten(0, 1), scale.flatten(0, 1))
    ratio = q.log_prob(z) - exact.log_prob(z).sum(dim=-1)
    return (q.weight * ratio).sum(dim=0).view(mean.shape[:2])

r"""Rules on six views of digits, see `examples.digit_views`: the same networks, steps and choices.

Half of the digits train, with 40 % of the views missing. Of the other half, 300 choose between the
two settings of a rule, and the step to stop at, by how likely views are that are predicted from
one view and from five; the other 700 are looked at once, with what was chosen.
"""

from __future__ import annotations

__all__ = ["DIGITS", "HIERARCHY", "Size", "fit", "noise"]

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from examples.digit_views import VIEWS, Views, load
from mmpoe.distributions import Draws
from mmpoe.evidence import log_weights
from mmpoe.likelihoods import Normal
from mmpoe.metrics import conditional_coherence, coverage
from mmpoe.missing import mcar
from mmpoe.models import MVAE, MultimodalVAE, UncalibratedWarning, vector_mmhvae
from mmpoe.nn import MLP
from mmpoe.objectives import SubsetWeights

from .rules import RULES, Rule, one_part

SIZES = dict(zip(VIEWS, (76, 216, 64, 240, 47, 6), strict=True))
LATENTS, HIDDEN, BATCH, LEVEL = 24, 128, 64, 0.9
CHOOSES = 0.3
"""The share of the digits that do not train which chooses; the rest tests."""
Loaded = tuple[Views, Views, np.ndarray, np.ndarray]
"""The return type of `examples.digit_views.load`."""
HIERARCHY = "PoE, two groups"
"""The name of a hierarchy that fuses by products, which is on digits alone."""
DIGITS = [*RULES, HIERARCHY]
PATTERNS = [[v] for v in VIEWS] + [[v for v in VIEWS if v != target] for target in VIEWS]
"""The views that predictions are given: each alone, and all but one."""


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    steps: int
    """The number of steps of each training."""
    checks: int
    """The number of times that validation looks at it."""
    samples: int
    """The number of samples that scores of the test are of."""
    load: Callable[[int], Loaded] = load
    """Returns the data of a seed."""


class Trained(NamedTuple):
    """A model at its best step."""

    model: MultimodalVAE
    score: float
    """On validation data, the log-density given one view plus that given five."""
    setting: float
    step: int
    milliseconds: float
    """The processor time of a step."""


class Data(NamedTuple):
    """The digits of a seed."""

    x: Views
    """The views that train, with shape (1000, *)."""
    observed: Tensor
    """The entries that were observed, boolean, with shape (1000, 6)."""
    validation: Views
    test: Views
    labels: Tensor
    """The digits of the test."""
    classifiers: dict[str, LogisticRegression]
    """Classifiers of digits, one for each view, fitted to the views that were observed."""


def noise(seed: int) -> Loaded:
    """Returns noise in place of digits, of which there is nothing to download.

    Arguments:
        seed: The seed.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [
        {v: torch.randn(60, size, generator=generator) for v, size in SIZES.items()}
        for _ in range(2)
    ]
    return parts[0], parts[1], np.arange(120) % 10, np.zeros((2, 1))


@lru_cache(maxsize=1)
def split(seed: int, load: Callable[[int], Loaded]) -> Data:
    """Returns the data of a seed, some of it missing.

    Arguments:
        seed: The seed.
        load: Returns the data, complete.
    """
    x, others, digits, _ = load(seed)
    labels = torch.as_tensor(digits)
    size = len(x[VIEWS[0]])
    chooses = round(CHOOSES * (len(labels) - size))
    torch.manual_seed(seed)
    observed = mcar(size, [0.4] * len(VIEWS))
    classifiers = {
        v: LogisticRegression(max_iter=300).fit(x[v][seen], labels[:size][seen])
        for v, seen in zip(VIEWS, observed.T, strict=True)
    }
    validation = {v: values[:chooses] for v, values in others.items()}
    test = {v: values[chooses:] for v, values in others.items()}
    return Data(x, observed, validation, test, labels[size + chooses :], classifiers)


def fit(name: str, seed: int, size: Size) -> dict[str, float | None]:
    """Trains a rule with each of its settings, and scores the best on test data.

    Arguments:
        name: The name of the rule.
        seed: The seed, of the split as well.
        size: How large the run is.
    """
    data = split(seed, size.load)
    rule = RULES.get(name) or Rule(RULES["PoE"].build, one_part)
    runs = [_train(name, rule, setting, data, seed, size) for setting in rule.settings]
    best = max(runs, key=lambda run: run.score)
    torch.manual_seed(seed)
    scores = _score(best.model, data, size)
    if name == "MMVM":  # is trained without p(z), under which these are
        scores |= {"bound": None, "evidence": None}
    return scores | {
        "setting": best.setting,
        "step": best.step,
        "milliseconds": sum(run.milliseconds for run in runs) / len(runs),
        "parameters": sum(p.numel() for p in best.model.parameters()),
    }


def build(name: str) -> MultimodalVAE:
    """Returns an untrained model.

    Arguments:
        name: The name of the rule.
    """
    if name == HIERARCHY:
        return vector_mmhvae(SIZES, hidden=HIDDEN, latents=(8, LATENTS))
    return MVAE(
        {v: MLP(size, 2 * LATENTS, hidden=[HIDDEN]) for v, size in SIZES.items()},
        {
            v: Normal(MLP(LATENTS, size, hidden=[HIDDEN]), scale=0.3, learn_scale=True)
            for v, size in SIZES.items()
        },
        LATENTS,
        posterior=RULES[name].build(len(VIEWS), LATENTS),
    )


def _train(name: str, rule: Rule, setting: float, data: Data, seed: int, size: Size) -> Trained:
    torch.manual_seed(seed)
    model, weights = build(name), SubsetWeights(len(VIEWS))
    optimizer = torch.optim.Adam([*model.parameters(), *weights.parameters()], 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.steps)
    x, observed = data.x, data.observed
    every, seconds = size.steps // size.checks, 0.0
    best = Trained(model, -math.inf, setting, 0, 0.0)
    for step in range(1, size.steps + 1):
        start = time.process_time()
        rows = torch.randperm(len(observed))[:BATCH]
        batch = {v: values[rows] for v, values in x.items()}
        bound = rule.objective(model, batch, observed[rows], setting, weights)
        optimizer.zero_grad()
        (-bound.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - start
        if step % every == 0:
            score = sum(over_patterns(model, data.validation, 16, likelihood).values())
            if score > best.score:
                best = Trained(copy.deepcopy(model), score, setting, step, 0.0)
    return best._replace(milliseconds=1000 * seconds / size.steps)


def likelihood(target: str, p: Draws, x: Tensor) -> dict[str, float]:
    """Returns the mean log-density that a prediction gives to a feature of a view, in nats.

    Arguments:
        target: The view.
        p: The prediction, of several samples.
        x: The truth.
    """
    log_p = p.components.log_prob(x)  # (K, B)
    mean = log_p.logsumexp(dim=0).mean().item() - math.log(len(log_p))
    return {"likelihood": mean / x.shape[1]}


def over_patterns(
    model: MultimodalVAE,
    x: Views,
    samples: int,
    score: Callable[[str, Draws, Tensor], dict[str, float]],
) -> dict[str, float]:
    """Averages scores of predictions over targets and patterns, given one view and five.

    Arguments:
        model: The model.
        x: The views of some digits.
        samples: The number of samples of a prediction.
        score: The scores of a view that is predicted, from its name, prediction and truth.
    """
    found: dict[str, list[float]] = {}
    for given in PATTERNS:
        targets = [v for v in VIEWS if v not in given]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)
            prediction = model.predict(x, given, targets=targets, samples=samples)
        number = "one" if len(given) == 1 else "five"
        for target, p in prediction.items():
            assert isinstance(p, Draws)
            for key, value in score(target, p, x[target]).items():
                found.setdefault(f"{key} {number}", []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _score(model: MultimodalVAE, data: Data, size: Size) -> dict[str, float | None]:
    """The scores on test data."""
    x, labels = data.test, data.labels

    def score(target: str, p: Draws, truth: Tensor) -> dict[str, float]:
        shown = {target: torch.as_tensor(data.classifiers[target].predict(p.mean))}
        return {
            **likelihood(target, p, truth),
            "coverage": coverage(p.sample(), truth, LEVEL).mean().item(),
            "coherence": conditional_coherence(shown, labels).mean().item(),
        }

    with torch.no_grad():
        observed = torch.ones(len(labels), len(VIEWS), dtype=torch.bool)
        log_w = log_weights(model, x, observed, samples=size.samples)
    return {
        "bound": log_w.mean().item(),
        "evidence": (log_w.logsumexp(dim=0) - math.log(size.samples)).mean().item(),
        **over_patterns(model, x, size.samples, score),
    }

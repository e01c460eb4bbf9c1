"""Scores of models on cases, and the cells of tables that they are averaged into."""

from __future__ import annotations

__all__ = ["BASELINE", "Scores", "cell_means", "score_baseline", "score_subject"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from examples.medical_mri_us.data import Subject, Volume
from mmpoe.models import MMHVAE

from .baseline import laid_on
from .protocols import PROTOCOLS, Protocol
from .subsets import all_subsets, is_published
from .synthesis import predict, truths

BASELINE = "mean image"
"""The name of the baseline among the models: the mean image of the training cases."""

Missing = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Scores:
    """How well one image of one case was synthesised, by one protocol."""

    model: str
    protocol: str
    case: str
    given: tuple[str, ...]
    target: str
    values: dict[str, np.ndarray]
    """For each metric one number per unit: per case, or per slice."""

    @property
    def kind(self) -> str:
        """Whether this is synthesis, ``"cross"``, or reconstruction of an input, ``"self"``."""
        return "self" if self.target in self.given else "cross"


def score_subject(
    name: str,
    model: MMHVAE,
    subject: Subject,
    protocols: Sequence[Protocol],
    missing: Missing,
    seed: int = 0,
    *,
    size: int | None = None,
) -> Iterator[Scores]:
    """Scores all that can be scored: from each subset of what a case has, each truth it has.

    Arguments:
        name: The name of the model.
        model: The model.
        subject: The case, complete or not.
        protocols: The protocols.
        missing: For each protocol the metrics to leave out, with reasons.
        seed: What latent samples are drawn from, for protocols that draw them.
        size: The height and width of the model's slices, in pixels; None for the subject's.
    """
    true = truths(subject)
    held = [m for m in model.modalities if m in subject.images]
    for given in all_subsets(held):
        for protocol in protocols:
            torch.manual_seed(seed)
            images = predict(model, subject, given, temperature=protocol.temperature, size=size)
            first = subject.images[given[0]]
            for m in model.modalities:
                if m in true:
                    without = set(missing[protocol.name])
                    values = protocol.score(images[m], true[m], first, subject.fov, without)
                    yield Scores(name, protocol.name, subject.name, given, m, values)


def score_baseline(
    means: Mapping[str, Volume],
    subject: Subject,
    protocols: Sequence[Protocol],
    missing: Missing,
    *,
    size: int | None = None,
) -> Iterator[Scores]:
    """Scores the mean images, which are given nothing of the case but its field of view.

    Arguments:
        means: The mean images, see `mean_images`.
        subject: The case, complete or not.
        protocols: The protocols.
        missing: For each protocol the metrics to leave out, with reasons.
        size: See `score_subject`.
    """
    inside = np.where(subject.fov, 1, -1).astype(np.float32)
    for m, true in truths(subject).items():
        if m not in means:
            continue
        mean = laid_on(means[m], subject, size)
        image = np.broadcast_to(2 * mean - 1, true.shape).astype(np.float32)
        for protocol in protocols:
            without = set(missing[protocol.name])
            values = protocol.score(image, true, inside, subject.fov, without)
            yield Scores(BASELINE, protocol.name, subject.name, (), m, values)


def cell_means(scores: Sequence[Scores], missing: Missing) -> list[dict[str, Any]]:
    """Averages scores over cases or slices, as their protocol says.

    A cell counts the cases that have its inputs and its truth. Numbers that are not finite, such
    as the PSNR of an image without error, are not averaged but counted as dropped.

    Returns:
        One cell per model, protocol, inputs, target and metric: its ``mean`` and ``sd`` (None if
        there is none), ``n`` units, ``unit``, ``cases``, ``dropped``, and a ``reason`` where there
        is no number.
    """
    groups: dict[tuple[str, str, tuple[str, ...], str], list[Scores]] = {}
    for s in scores:
        groups.setdefault((s.model, s.protocol, s.given, s.target), []).append(s)
    cells = []
    for (model, protocol, given, target), group in groups.items():
        for metric in PROTOCOLS[protocol].metrics:
            values = np.concatenate([s.values[metric.name] for s in group])
            finite = values[np.isfinite(values)]
            reason = missing[protocol].get(metric.name)
            cells.append(
                {
                    "model": model,
                    "protocol": protocol,
                    "kind": group[0].kind,
                    "given": list(given),
                    "published": is_published(given),
                    "target": target,
                    "metric": metric.name,
                    "mean": float(finite.mean()) if finite.size else None,
                    "sd": float(finite.std(ddof=1)) if finite.size > 1 else None,
                    "n": int(finite.size),
                    "unit": PROTOCOLS[protocol].unit,
                    "cases": sum(bool(np.isfinite(s.values[metric.name]).any()) for s in group),
                    "dropped": 0 if reason else int(values.size - finite.size),
                    "reason": reason,
                }
            )
    return cells

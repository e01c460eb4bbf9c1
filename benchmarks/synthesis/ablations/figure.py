"""The curves of the ablations."""

from __future__ import annotations

__all__ = ["draw"]

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.synthesis.profiles import Profile

from .factors import GROUPS, MISSING, WEIGHT
from .missing import left
from .tables import METRICS, Scores
from .variants import BASE, Variant

SHOWN = ("psnr", "ssim")
BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#666666"


def draw(found: Sequence[Scores], profile: Profile, path: Path) -> None:
    """Draws scores against missing images, latent groups and the weight of the divergence.

    Arguments:
        found: The scores, the base among them.
        profile: The size of the comparison.
        path: The file to write.
    """
    levels = {m: np.mean([s.values["cross", m] for s in found], axis=0) for m in SHOWN}
    figure = Figure(figsize=(9.5, 5.2), dpi=130, layout="constrained")
    axes = figure.subplots(len(SHOWN), 3, sharex="col", squeeze=False)
    base = [s for s in found if s.variant == BASE]
    weights = [*base, *(s for s in found if s.variant.factor == WEIGHT)]
    groups = [s for s in found if s.variant.factor == GROUPS]
    missing = [s for s in found if s.variant.factor == MISSING]
    whole = [s for s in missing if not s.variant.discard]
    alone = whole[:1] + [s for s in missing if s.variant.discard]

    for metric, row in zip(SHOWN, axes, strict=True):
        line = partial(_line, metric=metric, levels=levels[metric])
        share = lambda variant: 100 * (variant.missing or 0.0)
        line(row[0], whole, place=share, color=BLUE, label="all patients")
        line(row[0], alone, place=share, color=ORANGE, label="complete patients alone", style="--")
        count = lambda variant: variant.groups or 0
        line(row[1], groups, place=count, color=BLUE, label="coarsest groups")
        level = METRICS[metric][1] * base[0].values["cross", metric].mean()
        row[1].axhline(level, color=GREY, lw=0.9, ls=":", label="base: three finest groups")
        line(row[2], weights, place=lambda variant: variant.beta, color=BLUE, label="divergence")
        row[0].set_ylabel(METRICS[metric][0])
        row[1].set_xticks([s.variant.groups for s in groups])
        row[2].set_xscale("log")
        for axis in row:
            axis.grid(alpha=0.25, lw=0.6)
            axis.spines[["top", "right"]].set_visible(False)
    for axis, name in zip(axes[-1], ("images dropped, %", GROUPS, WEIGHT), strict=True):
        axis.set_xlabel(name)
    for share in sorted({s.variant.missing for s in alone if s.variant.missing}):
        count = left(profile.patients, share).complete
        height = _height(alone, share)
        axes[0, 0].annotate(
            f"{count}", (100 * share, height), (0, -13), textcoords="offset points", ha="center",
            fontsize=7, color=ORANGE,
        )  # fmt: skip
    axes[0, 0].legend(fontsize=7, frameon=False)
    axes[0, 1].legend(fontsize=7, frameon=False)
    figure.suptitle(
        "Phantom patients: missing modalities, means over held-out patients, and standard errors "
        "beyond what makes one harder than another",
        fontsize=10,
    )
    figure.savefig(path)


def _line(
    axis: Axes,
    scores: Sequence[Scores],
    *,
    metric: str,
    levels: np.ndarray,
    place: Callable[[Variant], float],
    color: str,
    label: str,
    style: str = "-",
) -> None:
    """Draws means over patients, and standard errors beyond the patients' own levels."""
    factor = METRICS[metric][1]
    ordered = sorted(scores, key=lambda s: place(s.variant))
    values = [factor * s.values["cross", metric] for s in ordered]
    few = len(levels) < 2
    errors = [0.0 if few else np.std(v - factor * levels, ddof=1) / len(v) ** 0.5 for v in values]
    axis.errorbar(
        [place(s.variant) for s in ordered],
        [float(v.mean()) for v in values],
        errors,
        color=color,
        label=label,
        ls=style,
        marker="o",
        ms=3.5,
        lw=1.4,
        elinewidth=0.8,
    )


def _height(scores: Sequence[Scores], share: float) -> float:
    found = next(s for s in scores if s.variant.missing == share)
    return float(found.values["cross", "psnr"].mean())

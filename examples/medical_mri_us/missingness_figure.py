"""The picture of what a data set lacks."""

from __future__ import annotations

__all__ = ["draw_missingness"]

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .modalities import LABELS

OBSERVED, MISSING = "#3b6fb6", "#e9ecf1"


def draw_missingness(table: dict[str, Any]) -> bytes:
    """Draws one panel per split: a row per pattern, as high as it is frequent.

    Arguments:
        table: What `missingness_table` counted.

    Returns:
        The picture as PNG.
    """
    splits, modalities = table["splits"], table["modalities"]
    width = 1.4 + len(splits) * (0.62 * len(modalities) + 1.5)
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    for axes, (split, about) in zip(
        np.atleast_1d(figure.subplots(1, len(splits))), splits.items(), strict=True
    ):
        top = 0
        for pattern in about["patterns"]:
            for k, there in enumerate(pattern["observed"]):
                color = OBSERVED if there else MISSING
                axes.bar(k, pattern["cases"], 0.94, top, color=color, ec="white", lw=0.8)
            middle = top + pattern["cases"] / 2
            unit = " case" if pattern["cases"] == 1 else " cases"
            axes.annotate(
                f"{pattern['cases']}{unit}",
                (len(modalities) - 0.42, middle),
                va="center",
                fontsize=8,
            )
            top += pattern["cases"]
        axes.set(xlim=(-0.55, len(modalities) + 0.3), ylim=(top, 0), yticks=[])
        counts = [f"{LABELS.get(m, m)}\n{about['observed'][m]}" for m in modalities]
        axes.set_xticks(range(len(modalities)), counts, fontsize=9)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axes.set_title(f"{split}: {about['incomplete']} of {top} incomplete", fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150, metadata={"Software": None})
    return stream.getvalue()

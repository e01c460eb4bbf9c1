"""A picture of a synthesis: one slice of the inputs, of what was made of them, and its spread."""

from __future__ import annotations

__all__ = ["draw_preview"]

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from nibabel import orientations

from examples.medical_mri_us.data import Volume, axis_codes
from examples.medical_mri_us.display import OPPOSITE, Turn, mark_sides
from examples.medical_mri_us.modalities import LABELS

from .case import Synthesis
from .intensities import SCALE

SIDE = 2.1
"""The width of an image, in inches."""

MOST = 0.9
"""How much of the largest view a slice has to show to be drawn."""


def draw_preview(synthesis: Synthesis, name: str, calibrated: bool) -> bytes:
    """Draws a slice in the middle of those with most in view.

    Inputs are on the left. Right of them, for each target, stand the image at the mean, a sample
    and the standard deviation, as far as there are any.

    Arguments:
        synthesis: The synthesis.
        name: The name of the case.
        calibrated: Whether its standard deviations are known to match errors.

    Returns:
        The picture, a PNG.
    """
    turn = np.array(synthesis.record["axes"], float)
    shown_as = Turn.of(_axes(synthesis, turn), probe="us" in synthesis.images)
    inside = orientations.apply_orientation(synthesis.fov, turn)
    counts = inside.sum(axis=(0, 1))
    full = np.flatnonzero(counts >= MOST * counts.max())
    k = int(full[len(full) // 2])
    seen = shown_as.apply(inside[..., k])
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    spacing = [synthesis.grid.spacing[int(a)] for a in np.argsort(turn[:, 0])]
    aspect = spacing[1] / spacing[0] if shown_as.swapped else spacing[0] / spacing[1]

    def cut(volume: Volume) -> np.ndarray:
        shown = shown_as.apply(orientations.apply_orientation(volume, turn)[..., k])
        return shown[box].copy()  # lets go of the volume

    shown = ["mean"] + ["sample"] * bool(synthesis.samples) + ["std"] * bool(synthesis.std)
    inputs, targets = list(synthesis.images), list(synthesis.mean)
    high = seen[box].shape[0] / seen[box].shape[1] * aspect * SIDE
    figure = Figure(
        figsize=((len(inputs) + len(targets)) * SIDE + 1.6, len(shown) * (high + 0.05) + 0.7),
        facecolor="black",
        layout="constrained",
    )
    axes = figure.subplots(len(shown), len(inputs) + len(targets), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for column, m in enumerate(inputs):
        _show(axes[0, column], cut(synthesis.images[m]), "gray", 1.0, aspect)
        axes[0, column].set_title(f"{LABELS.get(m, m)}, given", color="#6cc0ff", fontsize=10)
    mark_sides(axes[0, 0], shown_as.axes)
    spreads = {m: cut(volume) for m, volume in synthesis.std.items()}
    shades = [v[seen[box] & (v > 0)] for v in spreads.values()]
    low, limit = np.quantile(np.concatenate(shades), (0.02, 0.98)) if shades else (0.0, 1.0)
    for column, m in enumerate(targets, start=len(inputs)):
        axes[0, column].set_title(LABELS.get(m, m), color="white", fontsize=10)
        for row, what in enumerate(shown):
            if what == "std":
                drawn = _show(
                    axes[row, column],
                    np.where(seen[box], spreads[m], np.nan),
                    "viridis",
                    limit,
                    aspect,
                    low,
                )
                if m == targets[-1]:
                    bar = figure.colorbar(drawn, ax=axes[row, column], shrink=0.8, extend="both")
                    bar.ax.tick_params(colors="white", labelsize=7)
            else:
                volume = synthesis.mean[m] if what == "mean" else synthesis.samples[m][0]
                _show(axes[row, column], cut(volume), "gray", SCALE, aspect)
    words = {"mean": "at the mean", "sample": "a sample", "std": "standard deviation"}
    kind = "" if calibrated else ", uncalibrated"
    for row, what in enumerate(shown):
        text = words[what] + (kind if what == "std" else "")
        axes[row, len(inputs)].text(
            -0.04,
            0.5,
            text,
            color="0.8",
            fontsize=8,
            rotation=90,
            ha="right",
            va="center",
            transform=axes[row, len(inputs)].transAxes,
        )
    figure.suptitle(f"{name}, slice {k}: synthetic, research only", color="0.75", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _axes(synthesis: Synthesis, turn: np.ndarray) -> str:
    """The directions of the rows, columns and slices of the model, nearly."""
    own = axis_codes(synthesis.grid.affine)
    order = np.argsort(turn[:, 0])
    return "".join(own[int(a)] if turn[int(a), 1] > 0 else OPPOSITE[own[int(a)]] for a in order)


def _show(
    ax: Axes, image: np.ndarray, colours: str, limit: float, aspect: float, low: float = 0.0
) -> AxesImage:
    return ax.imshow(image, cmap=colours, vmin=low, vmax=limit, aspect=aspect)

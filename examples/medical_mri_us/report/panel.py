"""The picture of a result: truth, syntheses, their errors and their spread."""

from __future__ import annotations

__all__ = ["draw_panel", "draw_training"]

import io
from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.medical_mri_us.data import Subject, axis_codes
from examples.medical_mri_us.display import mark_sides
from examples.medical_mri_us.evaluation import synthesise
from examples.medical_mri_us.evaluation.synthesis import draw
from examples.medical_mri_us.modalities import LABELS, MODALITIES
from examples.medical_mri_us.models import is_calibrated
from mmpoe.models import MMHVAE

DRAWS = 64
"""The number of draws behind a map of standard deviations."""

LIMITS = (0.05, 0.1, 0.2, 0.4)
"""The ends that the colour scale of errors and deviations may have; images run from 0 to 1."""


def draw_panel(model: MMHVAE, subject: Subject, subsets: Sequence[Sequence[str]]) -> bytes:
    """Draws one slice of a subject, the one with the largest tumour.

    The first row is the truth. Then come, for each subset, what the model makes of it at the mean,
    the absolute error, the standard deviation of draws on the same scale, and two of the draws.
    Letters say where the sides of the slice point to, nearly.

    Arguments:
        model: The trained model.
        subject: A complete subject.
        subsets: The subsets to condition on.

    Returns:
        The picture, a PNG.
    """
    k = _slice_with_most_tumour(subject)
    fov = subject.fov[k]
    crop = _bounding_box(fov)
    truth = {m: np.where(fov, (subject.images[m][k] + 1) / 2, 0) for m in MODALITIES}

    rows, columns = 1 + 5 * len(subsets), len(MODALITIES)
    height, width = (s.stop - s.start for s in crop)
    side = 1.55  # inches
    figure = Figure(
        figsize=(columns * side + 2.3, rows * side * height / width + 0.9), facecolor="black"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.17,
        right=0.90,
        top=1 - 0.62 / figure.get_figheight(),
        bottom=0.01,
        wspace=0.03,
        hspace=0.03,
    )

    for ax, m in zip(axes[0], MODALITIES, strict=True):
        _show(ax, truth[m][crop], "gray", 1.0)
        ax.set_title(LABELS[m], color="white", fontsize=12)
    _label(axes[0, 0], "truth")

    mark_sides(axes[0, 0], axis_codes(subject.affine))

    made = [{m: v[k] for m, v in synthesise(model, subject, g).items()} for g in subsets]
    errors = [{m: np.abs(images[m] - truth[m]) for m in MODALITIES} for images in made]
    largest = max(np.quantile(e[fov], 0.98) for error in errors for e in error.values())
    limit = next((end for end in LIMITS if largest <= end), LIMITS[-1])
    for number, (given, images, error) in enumerate(zip(subsets, made, errors, strict=True)):
        draws = {m: v.numpy() for m, v in _draws(model, subject, given, k).items()}
        top = 1 + 5 * number
        for ax, m in zip(axes[top], MODALITIES, strict=True):
            _show(ax, images[m][crop], "gray", 1.0, given=m in given)
        for ax, m in zip(axes[top + 1], MODALITIES, strict=True):
            _show(ax, np.where(fov, error[m], np.nan)[crop], "inferno", limit)
        for ax, m in zip(axes[top + 2], MODALITIES, strict=True):
            deviation = 0 * fov if m in given else draws[m].std(axis=0)
            _show(ax, np.where(fov, deviation, np.nan)[crop], "inferno", limit)
        for row in (0, 1):
            for ax, m in zip(axes[top + 3 + row], MODALITIES, strict=True):
                shown = images[m] if m in given else np.where(fov, draws[m][row], 0)
                _show(ax, shown[crop], "gray", 1.0, given=m in given)
            _label(axes[top + 3 + row, 0], ("a draw", "another")[row])
        names = " + ".join(LABELS[m] for m in given)
        _label(axes[top, 0], f"from\n{names}")
        _label(axes[top + 1, 0], "|error|")
        _label(axes[top + 2, 0], f"standard\ndeviation\n({_state(model)})")
        _scale(figure, axes[top + 1, -1])
        _scale(figure, axes[top + 2, -1])

    figure.text(
        0.5,
        1 - 0.2 / figure.get_figheight(),
        f"{subject.name}, slice {k}: phantom, not a patient. Framed images were given.",
        color="0.75",
        fontsize=9,
        ha="center",
    )
    return _png(figure)


def draw_training(bounds: Sequence[float]) -> bytes:
    """Draws the bound during training, with its moving average.

    Arguments:
        bounds: The bound of each step, nats per pixel in view; not finite where it was skipped.

    Returns:
        The picture, a PNG.
    """
    values = np.asarray(bounds)
    steps = np.flatnonzero(np.isfinite(values))
    values = values[steps]
    window = max(1, len(values) // 50)
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 2.4), layout="constrained")
        ax = figure.subplots()
        if len(values) > 1:
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            ax.plot(steps, values, color="0.8", linewidth=0.5)
            ax.plot(steps[window // 2 :][: len(smooth)], smooth, color="C0")
            ax.set_ylim(float(np.quantile(values, 0.02)), float(values.max()))
        ax.set_xlabel("step")
        ax.set_ylabel("bound, nats per pixel")
        return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draws(
    model: MMHVAE, subject: Subject, given: Sequence[str], k: int
) -> dict[str, torch.Tensor]:
    """Whole predictions of a slice, on the scale from 0 to 1, (draws, height, width)."""
    image = {m: v[k : k + 1] for m, v in subject.images.items()}
    one = replace(subject, images=image, fov=subject.fov[k : k + 1], label=None)
    torch.manual_seed(0)
    (_, drawn), *_ = draw(model, one, given, DRAWS)
    return {m: (whole[:, 0] + 1) / 2 for m, (_, whole) in drawn.items()}


def _state(model: MMHVAE) -> str:
    return "calibrated" if is_calibrated(model) else "uncalibrated"


def _slice_with_most_tumour(subject: Subject) -> int:
    if subject.label is None or not subject.label.any():
        return len(subject.fov) // 2
    return int((subject.label > 0).sum(axis=(1, 2)).argmax())


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _show(ax: Axes, image: np.ndarray, colours: str, limit: float, *, given: bool = False) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(given)
        spine.set_color("#35a7ff")
        spine.set_linewidth(2)
    ax.set_facecolor("black")  # what is outside the field of view, where it is NaN
    smooth = "nearest" if np.isnan(image).any() else "bicubic"
    ax.imshow(image, cmap=colours, vmin=0, vmax=limit, interpolation=smooth)


def _label(ax: Axes, text: str) -> None:
    ax.set_ylabel(
        text, color="white", fontsize=10, rotation=0, ha="right", va="center", labelpad=8
    )


def _scale(figure: Figure, ax: Axes) -> None:
    place = ax.get_position()
    bar = figure.add_axes(
        (place.x1 + 0.012, place.y0 + 0.1 * place.height, 0.012, 0.8 * place.height)
    )
    colours = figure.colorbar(ax.images[0], cax=bar, extend="max")
    colours.ax.tick_params(colors="white", labelsize=8)
    colours.outline.set_visible(False)  # pyright: ignore[reportCallIssue]

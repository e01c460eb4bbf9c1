"""The figures of the synthesis benchmark: ranks of the systems, and images of two patients."""

from __future__ import annotations

__all__ = ["draw", "draw_images", "draw_ranks"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.modalities import LABELS as MODALITY

from .profiles import Profile, load
from .results import METRICS, REFERENCE, Metric, Result, ranking
from .scoring import BASELINE, images_of
from .systems import LABELS, System
from .training import load_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = (
    (("us",), "t2"),
    (("us",), "flair"),
    (("t2",), "us"),
    (("t2", "cet1"), "flair"),
    (("t2", "cet1", "flair"), "us"),
)
"""The inputs and the target of each row."""
PATIENTS = 2
ACCENT, PLAIN = "#c0392b", "#44546a"


def draw(results: Sequence[Result], folder: Path, profile: Profile, to: Path) -> list[str]:
    """Draws all figures.

    Arguments:
        results: The scores of all systems.
        folder: The folder of the profile, which holds their weights.
        profile: The size of the comparison.
        to: Where to write.

    Returns:
        The names of the files.
    """
    names = []
    ranks = [(metric, ranking(results, metric)) for metric in METRICS]
    ranks = [(metric, found) for metric, found in ranks if found]
    if ranks:
        names.append("synthesis_ranks.png")
        _save(draw_ranks(ranks), to / names[-1])
    shown = {r.system for r in results} - {BASELINE}
    seeds = {r.system: r.runs[0]["seed"] for r in results}
    systems = {
        label: load_trained(folder, name, seeds[label])
        for name, label in LABELS.items()
        if label in shown
    }
    _, test = load(profile)
    for number, subject in enumerate(test[:PATIENTS], start=1):
        names.append(f"synthesis_images_{number}.png")
        _save(draw_images(systems, subject), to / names[-1])
    return names


def draw_ranks(ranks: Sequence[tuple[Metric, Mapping[str, np.ndarray]]]) -> Figure:
    """Draws the mean rank of each system by each metric, with its spread over patients.

    Arguments:
        ranks: For each metric the ranks by system, one per patient.
    """
    first = ranks[0][1]
    order = sorted(first, key=lambda s: np.mean([r[s].mean() for _, r in ranks]), reverse=True)
    figure, axes = _subplots(1, len(ranks), (1.1 + 1.75 * len(ranks), 0.9 + 0.32 * len(order)))
    for axis, (metric, found) in zip(axes[0], ranks, strict=True):
        for y, system in enumerate(order):
            values = found[system]
            color = ACCENT if system == REFERENCE else PLAIN
            axis.plot(values, np.full(len(values), y), "o", color=color, ms=2.5, alpha=0.25, mew=0)
            axis.plot(np.percentile(values, [25, 75]), [y, y], color=color, lw=2)
            axis.plot(values.mean(), y, "o", color=color, ms=6)
        axis.set_title(f"{metric.heading.split(',')[0]}\n{metric.protocol}", fontsize=8)
        axis.set_xlim(len(order) + 0.3, 0.7)  # the best on the right
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.set_xticks(range(1, len(order) + 1))
        axis.set_yticks(range(len(order)), order if axis is axes[0][0] else [""] * len(order))
        axis.tick_params(labelsize=7, length=0)
        axis.grid(axis="x", lw=0.4, color="0.85")
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel(
        "mean rank over the cells of what was not given, 1 is the best (phantom)\n"
        "large dots: mean over patients; lines: quartiles; small dots: patients",
        fontsize=7,
    )
    return figure


def draw_images(systems: Mapping[str, System], subject: Subject) -> Figure:
    """Draws the images that systems synthesise of the middle slice of a patient, and the truth.

    Arguments:
        systems: Trained systems by label.
        subject: A complete patient.
    """
    middle = int(subject.fov.sum(axis=(1, 2)).argmax())
    widest = max(len(given) for given, _ in CELLS)
    columns = widest + 1 + len(systems)
    figure, axes = _subplots(len(CELLS), columns, (0.82 * columns, 0.95 * len(CELLS) + 0.25))
    for row, (given, target) in zip(axes, CELLS, strict=True):
        for axis in row:
            axis.axis("off")
            axis.set_box_aspect(1)
        for axis, m in zip(row[widest - len(given) :], given, strict=False):
            _show(axis, subject.images[m], subject, middle, MODALITY[m])
        _show(row[widest], subject.images[target], subject, middle, f"true {MODALITY[target]}")
        for axis, (label, system) in zip(row[widest + 1 :], systems.items(), strict=True):
            if {*given, target} <= set(system.handled):
                image = images_of(system, subject, given)[target]
                _show(axis, image, subject, middle, label)
            else:
                axis.set_title(label, fontsize=6.5, pad=2, color="0.6")
                axis.text(0.5, 0.5, "n/a", ha="center", va="center", fontsize=6.5, color="0.6")
    figure.supxlabel(
        f"phantom patient {subject.name}, not seen in training: given (left), true, synthesised",
        fontsize=7,
    )
    return figure


def _show(axis: Axes, image: Volume, subject: Subject, k: int, title: str) -> None:
    unit = np.where(subject.fov[k], (image[k] + 1) / 2, 0)
    axis.imshow(unit, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=6.5, pad=2, color=ACCENT if title == REFERENCE else "black")


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})

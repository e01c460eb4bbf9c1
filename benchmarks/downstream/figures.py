"""The figure of the downstream benchmark: what networks find, and errors of registration."""

from __future__ import annotations

__all__ = ["draw"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from benchmarks._results import RESULTS
from benchmarks.synthesis.systems import SYSTEMS
from examples.medical_mri_us.downstream import (
    BINS,
    REGISTRATION_REFERENCES,
    SEGMENTATION_REFERENCES,
    tumour_of,
)
from examples.medical_mri_us.modalities import LABELS
from mmpoe.metrics import mean_with_error

from .table import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from examples.medical_mri_us.data import Subject

FOUND, TRUTH = "#e8590c", "#15aabf"
TICKS = (0.3, 1.0, 3.0, 10.0, 30.0)
SHADES = ("#a5d8ff", "#339af0", "#1864ab")
"""The colours of the bins, from small displacements to large ones."""


def draw(
    folder: Path, subjects: Sequence[Subject], found: dict[str, Any], out: Path = RESULTS
) -> Path:
    """Draws tumours as found by the network of each system, and errors of registration.

    Arguments:
        folder: The folder of the profile.
        subjects: The held-out patients.
        found: What :func:`benchmarks.downstream.table.results` returns.
        out: Where to write ``downstream.png``.

    Returns:
        The file.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    order = [SEGMENTATION_REFERENCES[0], *SYSTEMS, *SEGMENTATION_REFERENCES[1:]]
    names = [name for name in order if name in found["segmentation"]]
    targets = list(
        dict.fromkeys(
            c["target"] for kept in found["registration"].values() for c in kept["cells"]
        )
    )
    columns = max(len(names), 1)
    figure = plt.figure(figsize=(1.55 * columns, 2.1 + 2.5 * len(targets)), layout="constrained")
    figure.suptitle(
        "Phantom patients, not clinical ones: the tumour (blue) as networks find it (orange), and "
        "errors of registration",
        fontsize=8,
    )
    above, below = np.ravel(
        figure.subfigures(2, 1, height_ratios=[1.9, 2.5 * max(len(targets), 1)])  # pyright: ignore
    )
    by_name = {s.name: s for s in subjects}
    for axes, name in zip(np.ravel(above.subplots(1, columns)), names, strict=True):
        run = json.loads((folder / f"segmentation-{name}-0.json").read_text())
        _overlay(axes, run, by_name)
        dice = mean_with_error(found["segmentation"][name]["dice"]).mean
        text = label("segmentation", name).replace(" (", "\n(")
        axes.set_title(f"{text}\nDice {100 * dice:.0f} %", fontsize=7)
    places = np.ravel(below.subplots(len(targets), 1, sharex=True, squeeze=False))
    for axes, target in zip(places, targets, strict=True):
        _errors(axes, found["registration"], target)
    figure.savefig(out / "downstream.png", dpi=110)
    plt.close(figure)
    return out / "downstream.png"


def _overlay(axes: Axes, run: dict[str, Any], subjects: dict[str, Subject]) -> None:
    """True ultrasound of one patient, with outlines of the tumour and of what was found."""
    example = run["example"]
    subject, k = subjects[example["patient"]], example["slice"]
    axes.imshow(subject.images["us"][k], cmap="gray", vmin=-1, vmax=1)
    outlines = ((tumour_of(subject)[k], TRUTH), (np.array(example["found"]), FOUND))
    for mask, colour in outlines:
        if mask.any():
            axes.contour(mask, levels=[0.5], colors=colour, linewidths=1)
    axes.set_axis_off()


def _errors(axes: Axes, found: dict[str, Any], target: str) -> None:
    """Boxes of the errors of each system, one for each bin, logarithmic."""
    order = [*REGISTRATION_REFERENCES[:2], *SYSTEMS, *REGISTRATION_REFERENCES[2:]]
    names = [n for n in order if n in found]
    for b, (limits, shade) in enumerate(zip(BINS, SHADES, strict=True)):
        for i, name in enumerate(names):
            cells = found[name]["cells"]
            values = [
                c["tre"] for c in cells if c["target"] == target and c["bin"] == list(limits)
            ]
            if values:
                axes.boxplot(
                    values[0],
                    positions=[i + 0.26 * (b - 1)],
                    widths=0.2,
                    patch_artist=True,
                    flierprops={"markersize": 2},
                    medianprops={"color": "black"},
                    boxprops={"facecolor": shade, "linewidth": 0.6},
                )
        axes.plot([], [], "s", color=shade, label=f"moved {limits[0]:g}-{limits[1]:g} mm")
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [f"{t:g}" for t in TICKS])
    axes.minorticks_off()
    axes.set_ylabel(f"TRE to {LABELS[target]}, mm", fontsize=8)
    labels = [label("registration", n).replace(" (", "\n(") for n in names]
    axes.set_xticks(range(len(names)), labels, fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))

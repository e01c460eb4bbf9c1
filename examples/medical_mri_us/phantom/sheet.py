"""A contact sheet: what the patients of a dataset look like, side by side."""

import csv
import io
import warnings
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.medical_mri_us.checks import check_integer
from examples.medical_mri_us.modalities import LABELS, MODALITIES

__all__ = ["LABEL_COLOURS", "draw_sheet"]

LABEL_COLOURS = {
    "outside": "#000000",
    "CSF": "#2b4f81",
    "grey matter": "#7a7a7a",
    "white matter": "#c9c9c9",
    "oedema": "#5fb0a5",
    "tumour": "#e0a33a",
    "enhancing rim": "#e2543e",
    "necrosis": "#7b2d6b",
    "vessel": "#ff2f6d",
    "pia": "#4f79b5",
    "dura": "#f4efd8",
    "choroid plexus": "#a678c8",
}
"""How the tissue labels 0..11 are drawn."""

_SIDE = 1.75  # inches


def draw_sheet(index: str | Path, patients: int = 6) -> bytes:
    """Draws one slice of some patients of a dataset: the images that they have, and the truth.

    Each row is a patient, complete ones first, in the slice with the largest tumour. The last
    column shows the tissue labels, and the landmarks within one slice as dots. MR is shown up to
    the 99.7th percentile of its slice.

    Arguments:
        index: The `index.csv` of a phantom dataset.
        patients: The number of patients at most.

    Returns:
        The picture, a PNG.
    """
    index = Path(index)
    patients = check_integer("patients", patients, 1)
    with index.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    complete = [row for row in rows if all(row[m] for m in MODALITIES)]
    others = [row for row in rows if row not in complete]
    half = max(patients - len(others), (patients + 1) // 2)
    rows = [*complete[:half], *others][:patients]

    figure = Figure(
        figsize=(5 * _SIDE + 0.25, len(rows) * _SIDE + 0.62), facecolor="black", dpi=110
    )
    axes = figure.subplots(len(rows), 5, squeeze=False)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.25 / figure.get_figwidth(),
        right=1,
        top=1 - 0.27 / height,
        bottom=0.35 / height,
        wspace=0.02,
        hspace=0.02,
    )
    for ax, title in zip(axes[0], [*LABELS.values(), "labels"], strict=True):
        ax.set_title(title, color="white", fontsize=10, pad=4)
    for line, row in zip(axes, rows, strict=True):
        _draw_patient(line, index.parent, row)
    _draw_key(figure)
    target = io.BytesIO()
    with mpl.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(target, format="png", facecolor="black")
    return target.getvalue()


def _draw_patient(axes: np.ndarray, folder: Path, row: dict[str, str]) -> None:
    """Fills one row of the sheet."""
    label, affine = _read(folder / row["label"])
    tissue, _ = _read(folder / row["case"] / "tissue.nii.gz")
    fov, _ = _read(folder / row["fov"])
    k = int((label > 0).sum(axis=(0, 1)).argmax())
    zoom = affine[:3, :3]
    size = np.linalg.norm(zoom, axis=0)
    volume = (np.isin(label, (1, 3, 4)).sum() * size.prod()) / 1000
    axes[0].set_ylabel(f"{row['case']}, {volume:.0f} ml in view", color="white", fontsize=7)
    for ax, modality in zip(axes, MODALITIES, strict=False):
        _bare(ax)
        if not row[modality]:
            ax.text(0.5, 0.5, "missing", color="0.5", fontsize=9, ha="center", va="center")
            continue
        image = _read(folder / row[modality])[0][..., k]
        top = 255 if modality == "us" else np.percentile(image[fov[..., k] > 0], 99.7)
        ax.imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="bilinear")
    _bare(axes[4])
    colours = ListedColormap(list(LABEL_COLOURS.values()))
    axes[4].imshow(tissue[..., k], cmap=colours, vmin=-0.5, vmax=11.5, interpolation="nearest")
    with (folder / row["landmarks"]).open(newline="") as stream:
        marks = [[float(mark[f"{c}_us"]) for c in "xyz"] for mark in csv.DictReader(stream)]
    if marks:
        voxels = (np.array(marks) - affine[:3, 3]) @ np.linalg.inv(zoom).T
        near = voxels[np.abs(voxels[:, 2] - k) <= 1]
        axes[4].scatter(near[:, 1], near[:, 0], s=9, c="white", edgecolors="black", linewidths=0.6)


def _bare(ax: Axes) -> None:
    ax.set_facecolor("black")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _draw_key(figure: Figure) -> None:
    """Names the colours, and says what this is."""
    names = list(LABEL_COLOURS)[1:]
    width, height = figure.get_size_inches()
    for number, name in enumerate(names):
        left, low = 0.025 + 0.0885 * number, 0.20 / height
        square = Rectangle((left, low), 0.08 / width, 0.08 / height, facecolor=LABEL_COLOURS[name])
        figure.add_artist(square)
        figure.text(left + 0.12 / width, low, name, color="0.85", fontsize=6)
    figure.text(
        0.025,
        0.06 / figure.get_figheight(),
        "Phantom images, not patients. Dots are landmarks within one slice.",
        color="0.6",
        fontsize=6.5,
    )


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.Nifti1Image.from_filename(file)
    return np.asarray(image.dataobj), np.asarray(image.affine)

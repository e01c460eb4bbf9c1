"""Kept slices as one picture per case and target, for the page to cut tiles from."""

from __future__ import annotations

__all__ = ["make_sprites"]

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.medical_mri_us.display import Turn, sides


def make_sprites(view: Mapping[str, np.ndarray], modalities: Sequence[str]) -> dict[str, Any]:
    """Returns what the page needs of a case.

    What no slice has in view is cut off. Slices of cases without ultrasound are turned as
    radiologists look at them, the patient's right on the left. A picture has one row of tiles per
    slice, and in each row the truth, the field of view, the mean from each subset and the standard
    deviation from each subset, as far as there are any.

    Arguments:
        view: The arrays of a case, as of `evaluation.make_view`.
        modalities: The targets.

    Returns:
        The ``slices``, ``subsets``, ``width`` and ``height`` of tiles, and for each target its
        ``picture`` (PNG, base64), and whether it has a ``truth`` and a ``spread``. ``sides`` are
        the letters at the left, right, top and bottom of a tile, ``pixel`` is the width and height
        of its pixels, mm, and ``planes`` as of `make_planes`: None where an older evaluation did
        not keep what they need.
    """
    planes = make_planes(view, modalities) if "volume_fov" in view else None
    view = _turned(view)
    crop = _bounding_box(np.max(view["fov"], axis=0))
    view = {n: v[..., crop[0], crop[1]] if v.ndim > 1 else v for n, v in view.items()}
    fov = view["fov"].astype(np.uint8) * 255
    targets = {}
    for m in modalities:
        truth, spread = view.get(f"truth_{m}"), view.get(f"std_{m}")
        tiles = [np.zeros_like(fov) if truth is None else truth, fov, *view[f"mean_{m}"]]
        tiles += [] if spread is None else [_coarse(s) for s in spread]
        rows = [np.concatenate([tile[k] for tile in tiles], axis=1) for k in range(len(fov))]
        targets[m] = {
            "picture": _png(np.concatenate(rows)),
            "truth": truth is not None,
            "spread": spread is not None,
        }
    return {
        "slices": [int(k) for k in view["slices"]],
        "subsets": [str(name) for name in view["subsets"]],
        "height": fov.shape[1],
        "width": fov.shape[2],
        "targets": targets,
        "sides": sides(str(view["axes"])) if "axes" in view else None,
        "pixel": [float(view["spacing"][k]) for k in (1, 0)] if "spacing" in view else None,
        "planes": planes,
    }


def make_planes(view: Mapping[str, np.ndarray], modalities: Sequence[str]) -> dict[str, Any]:
    """Returns the volumes of a case as pictures.

    A picture has one row of tiles for each axial slice, from below, and in each row the field of
    view, the truth, the mean and the standard deviation, as far as there are any.

    Arguments:
        view: The arrays of a case, as of `evaluation.make_view`.
        modalities: The targets.

    Returns:
        The ``shape`` (K, J, I) and ``spacing``, mm, of the volumes, the ``tilt`` of their axes,
        degrees, and for each target its ``picture`` (PNG, base64), whether it has a ``truth`` and
        a ``spread``, and what it was made of, ``given``.
    """
    fov = view["volume_fov"].astype(np.uint8) * 255
    held = [m for m in modalities if f"truth_{m}" in view]
    targets = {}
    for m in modalities:
        if f"volume_mean_{m}" not in view:
            continue
        truth, spread = view.get(f"volume_truth_{m}"), view.get(f"volume_std_{m}")
        volumes = [fov, *(v for v in (truth, view[f"volume_mean_{m}"]) if v is not None)]
        volumes += [] if spread is None else [_coarse(spread)]
        targets[m] = {
            "picture": _png(
                np.concatenate(volumes, axis=2).reshape(-1, len(volumes) * fov.shape[2])
            ),
            "truth": truth is not None,
            "spread": spread is not None,
            "given": [o for o in held if o != m],
        }
    return {
        "shape": list(fov.shape),
        "spacing": [round(float(s), 3) for s in view["volume_spacing"]],
        "tilt": round(float(view["volume_tilt"])),
        "targets": targets,
    }


def _turned(view: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns the slices of a case, unless the probe of an ultrasound says how they lie."""
    found = dict(view)
    if "axes" not in found:
        return found
    turn = Turn.of(str(found["axes"]), probe="truth_us" in found)
    for name, value in view.items():
        if name == "fov" or name.startswith(("truth_", "mean_", "std_")):
            found[name] = turn.apply(value)
    spacing = view["spacing"]
    found |= {
        "axes": np.array(turn.axes),
        "spacing": spacing[[1, 0, 2]] if turn.swapped else spacing,
    }
    return found


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _coarse(values: np.ndarray) -> np.ndarray:
    """Rounds to multiples of 5, which no eye tells apart in a colour map, for smaller files."""
    return (5 * ((values.astype(np.int32) + 2) // 5)).clip(0, 255).astype(np.uint8)


def _png(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()

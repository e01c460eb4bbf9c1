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


def make_sprites(view: Mapping[str, np.ndarray], modalities: Sequence[str]) -> dict[str, Any]:
    """Returns what the page needs of a case.

    What no slice has in view is cut off. A picture has one row of tiles per slice, and in each row
    the truth, the field of view, the mean from each subset and the standard deviation from each
    subset, as far as there are any.

    Arguments:
        view: The arrays of a case, as of `evaluation.make_view`.
        modalities: The targets.

    Returns:
        The ``slices``, ``subsets``, ``width`` and ``height`` of tiles, and for each target its
        ``picture`` (PNG, base64), and whether it has a ``truth`` and a ``spread``.
    """
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
    }


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

"""From the grid of an input to the slices that a model takes, and back."""

from __future__ import annotations

__all__ = ["Frame"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel import orientations
from torch.nn.functional import interpolate

from examples.medical_mri_us.data import Grid, Volume, axis_codes

CLOSE = 0.02
"""How far, in parts of it, a spacing may be from the model's without being resampled."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The way to a model's slices: axes are turned, and pixels resampled.

    Both are undone in the end, so that what comes back has the input's shape, and its affine is
    the input's own.
    """

    turn: np.ndarray
    """The axis of the model that each axis of the input is, and its sign, as nibabel has it."""
    turned: tuple[int, int, int]
    """The shape after that: rows, columns, slices."""
    pixels: tuple[int, int]
    """The rows and columns at the model's spacing."""

    @classmethod
    def of(cls, grid: Grid, description: dict[str, Any]) -> Frame:
        """Returns the frame of a grid.

        Arguments:
            grid: The grid of the input.
            description: The description of the model. Without ``axes``, those of the file are
                taken: rows, columns, slices. Without ``spacing``, pixels are not resampled.
        """
        codes = description.get("axes") or axis_codes(grid.affine)
        now = orientations.io_orientation(grid.affine)
        turn = orientations.ornt_transform(now, orientations.axcodes2ornt(codes))
        order = np.argsort(turn[:, 0])  # the input's axis of each of ours
        x, y, z = (grid.shape[int(axis)] for axis in order)
        pixels = [x, y]
        spacing: Sequence[float] = (description.get("spacing") or ())[:2]
        for k, wanted in enumerate(spacing):
            own = grid.spacing[int(order[k])]
            if abs(own / wanted - 1) > CLOSE:
                pixels[k] = max(1, round(pixels[k] * own / wanted))
        return cls(turn, (x, y, z), (pixels[0], pixels[1]))

    @property
    def slice_axis(self) -> int:
        """The axis of the input that counts the model's slices."""
        return int(np.argsort(self.turn[:, 0])[2])

    def forward(self, volume: Volume) -> Volume:
        """Returns the slices of a volume, (slices, rows, columns)."""
        turned = orientations.apply_orientation(volume, self.turn)
        slices = np.ascontiguousarray(np.moveaxis(turned, -1, 0))
        return self._resample(slices, self.pixels)

    def back(self, slices: Volume) -> Volume:
        """Returns the volume on the input's grid."""
        whole = self._resample(slices, self.turned[:2])
        order = np.argsort(self.turn[:, 0])
        back = np.stack([order, self.turn[order, 1]], axis=1)
        turned = np.moveaxis(whole, 0, -1)
        return np.ascontiguousarray(orientations.apply_orientation(turned, back))

    def record(self) -> dict[str, Any]:
        """Returns what was done, ready for JSON."""
        return {
            "axes": [[int(axis), int(sign)] for axis, sign in self.turn],
            "rows_columns_slices": list(self.turned),
            "resampled_to": list(self.pixels),
        }

    @staticmethod
    def _resample(slices: Volume, pixels: tuple[int, int]) -> Volume:
        """Slices with other rows and columns over the same field: edges of pixels agree."""
        if slices.shape[1:] == pixels:
            return slices
        x = torch.from_numpy(np.ascontiguousarray(slices))[:, None]
        smaller = pixels[0] < slices.shape[1] or pixels[1] < slices.shape[2]
        out = interpolate(x, pixels, mode="bilinear", align_corners=False, antialias=smaller)
        return out[:, 0].numpy()

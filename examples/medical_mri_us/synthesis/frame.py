"""From the grid of an input to the slices that a model takes, and back."""

from __future__ import annotations

__all__ = ["Frame"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel import orientations
from torch.nn.functional import interpolate

from examples.medical_mri_us.data import Grid, Mask, Volume, axis_codes
from examples.medical_mri_us.windows import Window

CLOSE = 0.02
"""How far, in parts of it, a spacing may be from the model's without being resampled."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The way to a model's slices: axes are turned, pixels resampled, and a window cut.

    Every step is undone in the end, so that what comes back has the input's shape, and its affine
    is the input's own.
    """

    turn: np.ndarray
    """The axis of the input that each axis of the model is, and its sign, as nibabel has it."""
    turned: tuple[int, int, int]
    """The shape after that: rows, columns, slices."""
    pixels: tuple[int, int]
    """The rows and columns at the model's spacing."""
    window: Window
    """The part of these that the model sees."""

    @classmethod
    def of(cls, grid: Grid, fov: Mask, description: dict[str, Any]) -> Frame:
        """Returns the frame of a grid.

        Arguments:
            grid: The grid of the input.
            fov: Its field of view.
            description: The description of the model. Without ``axes``, those of the file are
                taken: rows, columns, slices. Without ``spacing``, pixels are not resampled.
        """
        codes = description.get("axes") or axis_codes(grid.affine)
        now = orientations.io_orientation(grid.affine)
        turn = orientations.ornt_transform(now, orientations.axcodes2ornt(codes))
        inside = orientations.apply_orientation(fov, turn)
        order = np.argsort(turn[:, 0])  # the input's axis of each of ours
        sides, pixels = inside.shape, []
        for axis, wanted in enumerate((description.get("spacing") or [None, None])[:2]):
            own = grid.spacing[int(order[axis])]
            far = wanted is not None and abs(own / wanted - 1) > CLOSE
            pixels.append(max(1, round(sides[axis] * own / wanted)) if far else sides[axis])
        slices = np.moveaxis(inside, -1, 0)  # (slices, rows, columns)
        frame = cls(
            turn,
            (sides[0], sides[1], sides[2]),
            (pixels[0], pixels[1]),
            Window((pixels[0], pixels[1]), 1, (0, 0)),
        )
        seen = frame._resample(slices.astype(np.float32), frame.pixels) > 0.5
        window = Window.around(seen, int(description["architecture"]["size"]))
        return cls(turn, frame.turned, frame.pixels, window)

    def forward(self, volume: Volume, fill: float) -> Volume:
        """Returns the slices of a volume, (slices, size, size)."""
        turned = orientations.apply_orientation(volume, self.turn)
        slices = np.ascontiguousarray(np.moveaxis(turned, -1, 0))
        return self.window.cut(self._resample(slices, self.pixels), fill)

    def back(self, slices: Volume) -> Volume:
        """Returns the volume on the input's grid; 0 where the model saw nothing."""
        whole = self._resample(self.window.paste(slices), self.turned[:2])
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
            "window_start": list(self.window.start),
            "window_size": self.window.size,
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

"""DICOM segmentations: frames in any order, on a grid of their own, empty ones left out."""

from __future__ import annotations

__all__ = ["read_segmentation"]

import numpy as np
import pydicom

from examples.medical_mri_us.data import Grid, Image, ImageError, Series, read_series, resample
from examples.medical_mri_us.data.datasets import read_dataset
from examples.medical_mri_us.data.foreign import check_voxels, walled
from examples.medical_mri_us.data.planes import plane_affine, plane_of, said

OFF = 0.1
"""How far a frame may be from its slice, in slices."""


def read_segmentation(series: Series, reference: Series) -> Image:
    """Reads a segmentation onto the grid of the MR that it was drawn on, the nearest voxel each.

    Frames are placed by ImagePositionPatient along the normal of their plane; the value of a
    voxel is the number of its segment.

    Arguments:
        series: The segmentation.
        reference: The MR.

    Raises:
        ImageError: If one of them is damaged, or the frames lie on no regular grid.
    """
    path = series.files[0]
    if series.damaged:
        raise ImageError(f"{series.damaged[0]} cannot be read as DICOM; export it again.")
    with walled(path, " as a segmentation"):
        image = _frames(series)
    grid = Grid.of(read_series(reference))
    return Image(resample(image, grid, 0), grid.affine)


def _frames(series: Series) -> Image:
    path = series.files[0]
    dataset = read_dataset(path)
    masks = np.asarray(dataset.pixel_array) > 0
    masks = masks.reshape(-1, *masks.shape[-2:])  # (frame, row, column)
    planes = [plane_of(dataset, k, path) for k in range(len(masks))]
    along = np.array([p.position for p in planes]) @ planes[0].normal
    step = float(said(dataset, 0, "SpacingBetweenSlices") or 0) or _step(
        along, float(said(dataset, 0, "SliceThickness") or 1)
    )
    places = (along - along.min()) / step
    if np.abs(places - np.rint(places)).max() > OFF:
        raise ImageError(
            f"{path} cannot be used: its frames lie between slices {step:.4g} mm apart."
        )
    slices = np.rint(places).astype(int)
    shape = (masks.shape[2], masks.shape[1], int(slices.max()) + 1)
    check_voxels(shape)
    data = np.zeros(shape, np.float32)
    for k, place in enumerate(slices):
        data[..., place][masks[k].T] = _segment(dataset, k)
    return Image(data, plane_affine(planes[along.argmin()], step))


def _step(along: np.ndarray, thickness: float) -> float:
    """The smallest distance between frames that are not in one place."""
    gaps = np.diff(np.unique(along.round(3)))
    return float(gaps.min()) if gaps.size else thickness


def _segment(dataset: pydicom.Dataset, frame: int) -> int:
    return int(said(dataset, frame, "ReferencedSegmentNumber"))

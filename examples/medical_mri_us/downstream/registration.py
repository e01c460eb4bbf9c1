"""Registration of ultrasound to MR, directly and by way of MR synthesised from it.

An ultrasound volume is moved by a known smooth motion, and is to be brought back onto the MR of
the patient. What is registered is the ultrasound itself or an MR synthesised from it, moved alike;
how far landmarks end up from where they belong says how well that went. Volumes have three
dimensions, but are thin: motions stay within slices, and so does the search.
"""

from __future__ import annotations

__all__ = [
    "BINS",
    "Motion",
    "Outcome",
    "draw_motion",
    "landmarks",
    "move",
    "register",
    "score_registration",
]

import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage
from scipy.optimize import brentq

from examples.medical_mri_us.data import Case, Subject, Volume

BINS = ((0.0, 4.0), (4.0, 8.0), (8.0, 12.0))
"""The bins of the mean displacement of the landmarks, mm."""
MARGIN = 2
"""How many pixels at the edge of the field of view are hidden from the registration: the edge
itself would give the motion away."""
BACKGROUND = -1.0
MESH = 24.0
"""The spacing of the control points of the bending part of a motion, mm."""

TURNS = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
"""1 for those of three angles and three shifts that are searched for: those within slices."""
SHEARS = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
"""1 for those of the nine entries of a matrix and three shifts that are searched for."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    r"""A smooth displacement within slices, affine and bending.

    .. math:: u(p) = s \, \big(A (p - c) + t + b(p)\big)

    A moved image shows at :math:`p` what was at :math:`p + u(p)`. Points are in mm, along
    (slice, depth, lateral), the first of which no motion changes.
    """

    scale: float
    linear: Array
    """:math:`A`, with shape (2, 2)."""
    shift: Array
    """:math:`t`, with shape (2)."""
    bending: Array
    """The coefficients of the cubic B-spline :math:`b`, with shape (2, K, K), a knot outside the
    image on each side."""
    centre: Array
    """:math:`c`, with shape (2)."""

    def displacement(self, points: Array) -> Array:
        """Returns where to look from points (N, 3), relative to them, with the same shape."""
        plane = points[:, 1:]
        knots = plane.T / MESH + 1  # (2, N)
        bend = [
            ndimage.map_coordinates(c, knots, order=3, prefilter=False, mode="nearest")
            for c in self.bending
        ]
        inside = (plane - self.centre) @ self.linear.T + self.shift + np.stack(bend, axis=1)
        return self.scale * np.pad(inside, ((0, 0), (1, 0)))

    def forward(self, points: Array) -> Array:
        """Returns where moved images show what was at points (N, 3)."""
        moved = points - self.displacement(points)
        for _ in range(20):  # contracts, as the motion bends little
            moved = points - self.displacement(moved)
        return moved


@dataclass(frozen=True)
class Outcome:
    """How a registration went."""

    initial: float
    """The mean distance of landmarks from where they belong before, mm."""
    tre: float
    """The mean distance after it, the target registration error, mm."""
    seconds: float
    """Its processor time."""
    failed: bool = False
    """Whether it gave no result; then nothing was moved."""

    @property
    def diverged(self) -> bool:
        """Whether it made things worse, or failed."""
        return self.failed or self.tre > self.initial


def landmarks(case: Case, subject: Subject) -> Array:
    """Reads the landmarks of a case, mm along (slice, depth, lateral), with shape (N, 3).

    Arguments:
        case: The case, which has a file of landmarks.
        subject: The same case in memory.
    """
    if case.landmarks is None:
        raise ValueError(f"'case' should have landmarks, but {case.name} has none.")
    table = np.genfromtxt(case.landmarks, delimiter=",", names=True, dtype=None, encoding="utf-8")
    table = np.atleast_1d(table)
    world = np.stack([table[f"{axis}_us"] for axis in "xyz"], axis=1)
    inverse = np.linalg.inv(subject.affine)
    voxels = world @ inverse[:3, :3].T + inverse[:3, 3]  # depth, lateral, slice
    return voxels[:, [2, 0, 1]] * subject.spacing


def draw_motion(
    rng: np.random.Generator,
    points: Array,
    extent: tuple[float, float],
    displaced: tuple[float, float],
) -> Motion:
    """Draws a motion that displaces points by a mean distance within a bin.

    Arguments:
        rng: The source of randomness.
        points: The landmarks, with shape (N, 3).
        extent: The size of the image along depth and lateral, mm.
        displaced: The limits of the mean displacement, mm.
    """
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.deg2rad(rng.normal(0, 4))
    linear = rng.normal(0, 0.02, (2, 2)) + np.array([[0, -turn], [turn, 0]])
    knots = int(np.ceil(max(extent) / MESH)) + 3
    shape = Motion(
        scale=1.0,
        linear=linear,
        shift=7 * np.array([np.cos(angle), np.sin(angle)]),
        bending=rng.normal(0, 1.0, (2, knots, knots)),
        centre=np.array(extent) / 2,
    )
    wanted = rng.uniform(*displaced)

    def excess(scale: float) -> float:
        moved = replace(shape, scale=scale).forward(points)
        return float(np.linalg.norm(moved - points, axis=1).mean()) - wanted

    scale, _ = brentq(excess, 0.0, 4.0, xtol=1e-4, full_output=True)
    return replace(shape, scale=scale)


def move(volume: Volume, motion: Motion, spacing: tuple[float, float, float]) -> Volume:
    """Returns a volume moved, with axes (slice, depth, lateral), linear between voxels.

    Arguments:
        volume: The volume.
        motion: The motion.
        spacing: The spacing of its voxels, mm.
    """
    grid = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1).reshape(-1, 3)
    points = grid * np.array(spacing, dtype=np.float64)
    at = (points + motion.displacement(points)) / spacing
    moved = ndimage.map_coordinates(volume, at.T, order=1, cval=BACKGROUND)
    return moved.reshape(volume.shape).astype(np.float32)


def score_registration(
    subject: Subject,
    points: Array,
    motion: Motion,
    source: Volume | None,
    target: str,
    metric: str,
) -> Outcome:
    """Registers what was made of a moved ultrasound to MR, and measures the error at landmarks.

    Arguments:
        subject: The patient, in place.
        points: The landmarks in place, with shape (N, 3).
        motion: How the ultrasound has moved.
        source: What to register, as it would be in place; None for not registering.
        target: The modality to register to.
        metric: ``"correlation"`` for images of the same modality, else ``"information"``.
    """
    belong = motion.forward(points)
    initial = float(np.linalg.norm(belong - points, axis=1).mean())
    if source is None:
        return Outcome(initial, initial, 0.0)
    inner = inner_view(subject.fov)
    moving = move(source, motion, subject.spacing)
    seen = move(np.where(inner, 1.0, BACKGROUND), motion, subject.spacing) > 0.999
    start = time.process_time()
    transform = register(
        subject.images[target], moving, inner, seen, subject.spacing, metric=metric
    )
    seconds = time.process_time() - start
    if transform is None:
        return Outcome(initial, initial, seconds, failed=True)
    found = np.array([transform.TransformPoint(p[::-1].tolist())[::-1] for p in points])
    tre = float(np.linalg.norm(found - belong, axis=1).mean())
    return Outcome(initial, tre, seconds)


def inner_view(fov: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Returns the field of view without its edge, slice by slice."""
    plane = ndimage.generate_binary_structure(2, 2)[None]
    return np.asarray(ndimage.binary_erosion(fov, plane, iterations=MARGIN), dtype=bool)


def register(
    fixed: Volume,
    moving: Volume,
    fixed_mask: npt.NDArray[np.bool_],
    moving_mask: npt.NDArray[np.bool_],
    spacing: tuple[float, float, float],
    *,
    metric: str,
) -> sitk.Transform | None:
    """Finds where points of one volume are in another: rigid, then affine, within slices.

    Arguments:
        fixed: The volume to register to, with axes (slice, depth, lateral).
        moving: The volume to register.
        fixed_mask: Where the former may be looked at.
        moving_mask: Where the latter may be.
        spacing: The spacing of voxels, mm.
        metric: ``"correlation"`` or ``"information"``.

    Returns:
        The transform of points (lateral, depth, slice) in mm, None if it was not found, as when
        the volumes lose sight of each other.
    """
    masks = fixed_mask, moving_mask
    # in place of what is hidden, the mean: blurring brings no edge into view
    volumes = [
        np.where(m, v, v[m].mean()).astype(np.float32)
        for v, m in zip((fixed, moving), masks, strict=True)
    ]
    shown = [_image(m.astype(np.uint8), spacing) for m in masks]
    centre = [(n - 1) * s / 2 for n, s in zip(fixed.shape, spacing, strict=True)][::-1]
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre)
    try:
        for blur in (4.0, 2.0):
            _optimise(_blurred(volumes, spacing, blur), shown, rigid, TURNS, metric, step=0.5)
        affine.SetMatrix(rigid.GetMatrix())
        affine.SetTranslation(rigid.GetTranslation())
        _optimise(_blurred(volumes, spacing, 1.0), shown, affine, SHEARS, metric, step=0.3)
    except RuntimeError:  # what ITK raises, whatever the reason
        return None
    return affine


def _optimise(
    images: list[sitk.Image],
    masks: list[sitk.Image],
    transform: sitk.Transform,
    free: list[float],
    metric: str,
    step: float,
) -> None:
    """Changes the free parameters of a transform so that the images agree, by steps in mm."""
    method = sitk.ImageRegistrationMethod()
    if metric == "information":
        method.SetMetricAsMattesMutualInformation(24)
    else:
        method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(masks[0])
    method.SetMetricMovingMask(masks[1])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        step, 0.01, 40, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerWeights(free)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(*images)


def _blurred(
    volumes: list[Volume], spacing: tuple[float, float, float], blur: float
) -> list[sitk.Image]:
    """The volumes as images, blurred within slices by a Gaussian, mm."""
    width = 0, blur / spacing[1], blur / spacing[2]
    return [_image(ndimage.gaussian_filter(v, width), spacing) for v in volumes]


def _image(volume: npt.NDArray[np.generic], spacing: tuple[float, float, float]) -> sitk.Image:
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    return image

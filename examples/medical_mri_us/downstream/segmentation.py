"""Segmentation of tumours in ultrasound, learnt from what is synthesised of it.

A small U-Net is trained on synthetic ultrasound, made of the MR that a training patient has, and
tested on true ultrasound of held-out patients. Trained on true
ultrasound it says what can be reached, trained on raw MR what the wrong contrast costs. Tumours
are outlined as a person draws them, smooth and without holes.
"""

from __future__ import annotations

__all__ = [
    "Examples",
    "Score",
    "build_network",
    "score_volume",
    "segment",
    "train",
    "tumour_ml",
    "tumour_of",
]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.phantom import TUMOUR_LABELS
from mmpoe.extras import needs
from mmpoe.training import Optimizer, fit

TUMOUR = tuple(label for name, label in TUMOUR_LABELS.items() if name != "background")
"""The labels that count as tumour: oedema too, which ultrasound hardly tells apart."""
CHANNELS = (16, 32, 64, 96)
BATCH = 16
LR = 4e-3
BACKGROUND = -1.0
OUTLINE = 1.5
"""How smooth outlines are: the standard deviation of a Gaussian, mm."""
TURN, STRETCH, SHIFT = 0.35, 0.2, 0.15
"""The largest turn (radians), stretch (logarithm) and shift (share of half the side) of what is
learnt from."""

Example = tuple[Tensor, Tensor]
"""A slice between its neighbours, with shape (3, H, W), and the tumour in it, (1, H, W)."""


@dataclass(frozen=True)
class Score:
    """How well the tumour of one patient was found."""

    dice: float
    """The overlap with the truth, from 0 to 1."""
    assd: float
    """The average symmetric surface distance, mm; NaN if nothing was found."""


class Examples(Dataset[Example]):
    """Slices to learn from, at random mirrored, turned, stretched, shifted, and brightened.

    Arguments:
        volumes: The images, in [-1, 1], with axes (slice, depth, lateral).
        subjects: Whom they show.
    """

    def __init__(self, volumes: Sequence[Volume], subjects: Sequence[Subject]) -> None:
        sides = _sides(volumes)
        images = [_padded(v, sides, BACKGROUND) for v in volumes]
        views = [_padded(s.fov, sides, False) for s in subjects]
        truths = [_padded(tumour_of(s), sides, False) for s in subjects]
        self.images = torch.cat([_between_neighbours(v) for v in images])  # (N, 3, H, W)
        self.views = torch.cat([_between_neighbours(v) for v in views]) > 0
        self.truths = torch.from_numpy(np.concatenate(truths)[:, None]).float()  # (N, 1, H, W)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image, view, truth = self.images[index], self.views[index], self.truths[index]
        parts = torch.cat([image - BACKGROUND, view.float(), truth])[None]  # (1, 7, H, W)
        grid = functional.affine_grid(_random_map(), list(parts.shape), align_corners=False)
        moved = functional.grid_sample(parts, grid, align_corners=False)[0]
        image, view, truth = moved[:3] + BACKGROUND, moved[3:6] > 0.5, moved[6:] > 0.5
        gain, offset = 1 + 0.2 * _symmetric(), 0.2 * _symmetric()
        changed = (gain * image + offset).clamp(-1, 1)
        return torch.where(view, changed, BACKGROUND), truth.float()


def tumour_of(subject: Subject) -> npt.NDArray[np.bool_]:
    """Returns where the tumour of a subject is, in view, by a smooth outline without holes.

    Raises:
        ValueError: If the subject has no labels.
    """
    if subject.label is None:
        raise ValueError(f"'subject' should have labels, but {subject.name} has none.")
    lesion = np.isin(subject.label, TUMOUR).astype(np.float32)
    smooth = ndimage.gaussian_filter(lesion, [OUTLINE / s for s in subject.spacing]) > 0.5
    filled = [np.asarray(ndimage.binary_fill_holes(plane), dtype=bool) for plane in smooth]
    return np.stack(filled) & subject.fov


def tumour_ml(subject: Subject) -> float:
    """Returns the volume of tumour in view, ml."""
    return float(tumour_of(subject).sum() * np.prod(subject.spacing) / 1000)


def build_network() -> nn.Module:
    """Returns the network: a U-Net of MONAI with residual units, images in, logits out.

    Raises:
        ModuleNotFoundError: If MONAI, of the extra ``downstream``, is not installed.
    """
    with needs("downstream"):
        from monai.networks.nets.unet import UNet  # takes seconds

    return UNet(
        2, 3, 1, channels=CHANNELS, strides=[2] * (len(CHANNELS) - 1), num_res_units=2,
        norm="instance",
    )  # fmt: skip


def train(examples: Examples, *, steps: int, seed: int) -> nn.Module:
    """Trains the network for a number of steps, with the Dice and cross-entropy losses.

    Arguments:
        examples: What to learn from.
        steps: The number of steps.
        seed: The seed of weights, draws and changes.

    Raises:
        ModuleNotFoundError: If MONAI, of the extra ``downstream``, is not installed.
    """
    with needs("downstream"):
        from monai.losses.dice import DiceCELoss

    torch.manual_seed(seed)
    network = build_network()
    losses = DiceCELoss(sigmoid=True, batch=True)

    def objective(network: nn.Module, batch: Example, done: float) -> Tensor:
        image, truth = batch
        return -losses(network(image), truth).expand(len(image))

    generator = torch.Generator().manual_seed(seed)
    draws = RandomSampler(examples, True, steps * BATCH, generator)
    fit(
        network,
        DataLoader(examples, BATCH, sampler=draws),
        objective,
        steps=steps,
        optimizer=Optimizer(lr=LR),
        accelerator="cpu",
    )
    return network


@torch.no_grad()
def segment(
    network: nn.Module, image: Volume, fov: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Returns where the network sees tumour in a volume, in view.

    Arguments:
        network: The network, trained.
        image: The volume, with axes (slice, depth, lateral).
        fov: The field of view, with the same shape.
    """
    height, width = image.shape[1:]
    padded = _padded(image, _sides([image]), BACKGROUND)
    logits = network(_between_neighbours(padded))  # (S, 1, H, W)
    return (logits[:, 0, :height, :width] > 0).numpy() & fov


def _random_map() -> Tensor:
    """A random affine map of the plane, with shape (1, 2, 3), half of them mirroring."""
    angle, scale = TURN * _symmetric(), torch.exp(STRETCH * _symmetric())
    cos, sin = scale * angle.cos(), scale * angle.sin()
    side = 1.0 if torch.rand(()) < 0.5 else -1.0
    rows = [side * cos, -sin, SHIFT * _symmetric(), side * sin, cos, SHIFT * _symmetric()]
    return torch.stack(rows).reshape(1, 2, 3)


def _sides(volumes: Sequence[Volume]) -> tuple[int, int]:
    """The height and width that hold the slices of all, and that the network can halve."""
    step = 2 ** (len(CHANNELS) - 1)
    height, width = (step * -(-max(v.shape[axis] for v in volumes) // step) for axis in (1, 2))
    return height, width


def _padded(volume: np.ndarray, sides: tuple[int, int], fill: float) -> np.ndarray:
    """A volume whose slices have these sides, with what is added behind."""
    behind = [(0, side - n) for side, n in zip(sides, volume.shape[1:], strict=True)]
    return np.pad(volume, [(0, 0), *behind], constant_values=fill)


def _symmetric() -> Tensor:
    """A random number between -1 and 1."""
    return 2 * torch.rand(()) - 1


def _between_neighbours(volume: Volume | npt.NDArray[np.bool_]) -> Tensor:
    """Each slice of a volume between those before and after it, with shape (S, 3, H, W)."""
    padded = np.pad(volume.astype(np.float32), ((1, 1), (0, 0), (0, 0)), mode="edge")
    return torch.from_numpy(np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1))


def score_volume(
    found: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> Score:
    r"""Scores a segmentation of a patient.

    .. math:: \mathrm{Dice} = 2 |F \cap T| / (|F| + |T|)

    The average symmetric surface distance is the mean, over the surface voxels of both together,
    of the distance to the nearest one of the other.

    Arguments:
        found: The segmentation.
        truth: The tumour, not empty.
        spacing: The distances between voxels, mm.

    Raises:
        ValueError: If there is no tumour.
    """
    if not truth.any():
        raise ValueError("'truth' should mark a tumour, but is empty.")
    if not found.any():
        return Score(0.0, float("nan"))
    edges = [v & ~np.asarray(ndimage.binary_erosion(v), dtype=bool) for v in (found, truth)]
    ways = (edges, edges[::-1])
    far = [np.asarray(ndimage.distance_transform_edt(~b, sampling=spacing))[a] for a, b in ways]
    return Score(
        dice=float(2 * (found & truth).sum() / (found.sum() + truth.sum())),
        assd=float(np.concatenate(far).mean()),
    )

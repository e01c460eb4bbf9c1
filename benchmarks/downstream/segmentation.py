"""Segmentation of tumours in ultrasound, learnt from what systems synthesise of it.

The same small U-Net is trained on the synthetic ultrasound of each system, made of the MR that a
training patient has, and tested on true ultrasound of held-out patients. Trained on true
ultrasound it says what can be reached, trained on raw MR what the wrong contrast costs.
"""

from __future__ import annotations

__all__ = [
    "Examples",
    "Score",
    "build_network",
    "score_volume",
    "segment",
    "train",
    "tumour_of",
]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.phantom import TUMOUR_LABELS
from mmpoe.training import fit

TUMOUR = tuple(TUMOUR_LABELS[k] for k in ("solid tumour", "necrosis", "enhancing rim"))
"""What counts as tumour: oedema does not."""
CHANNELS = (16, 32, 64, 96)
BATCH = 16
LR = 4e-3
BACKGROUND = -1.0

Example = tuple[Tensor, Tensor, Tensor]
"""An image, the tumour in it, and the field of view, each with shape (1, H, W)."""


@dataclass(frozen=True)
class Score:
    """How well the tumour of one patient was found."""

    dice: float
    """The overlap with the truth, from 0 to 1."""
    assd: float
    """The average symmetric surface distance, mm; NaN if nothing was found."""


class Examples(Dataset[Example]):
    """Slices to learn from: mirrored and changed in brightness and contrast at random.

    Arguments:
        volumes: The images, in [-1, 1], with axes (slice, depth, lateral).
        subjects: Whom they show.
    """

    def __init__(self, volumes: Sequence[Volume], subjects: Sequence[Subject]) -> None:
        self.images, self.truths, self.views = (
            torch.from_numpy(np.concatenate(parts))[:, None]
            for parts in (
                [v.astype(np.float32) for v in volumes],
                [tumour_of(s).astype(np.float32) for s in subjects],
                [s.fov for s in subjects],
            )
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image, truth, fov = self.images[index], self.truths[index], self.views[index]
        gain, offset = 1 + 0.2 * (2 * torch.rand(()) - 1), 0.2 * (2 * torch.rand(()) - 1)
        image = torch.where(fov, (gain * image + offset).clamp(-1, 1), BACKGROUND)
        if torch.rand(()) < 0.5:
            image, truth, fov = image.flip(-1), truth.flip(-1), fov.flip(-1)
        return image, truth, fov


def tumour_of(subject: Subject) -> npt.NDArray[np.bool_]:
    """Returns where the tumour of a subject is, in view.

    Raises:
        ValueError: If the subject has no labels.
    """
    if subject.label is None:
        raise ValueError(f"'subject' should have labels, but {subject.name} has none.")
    return np.isin(subject.label, TUMOUR) & subject.fov


def build_network() -> nn.Module:
    """Returns the network: a U-Net of MONAI with residual units, images in, logits out."""
    from monai.networks.nets.unet import UNet  # takes seconds

    return UNet(
        2, 1, 1, channels=CHANNELS, strides=[2] * (len(CHANNELS) - 1), num_res_units=2,
        norm=("group", {"num_groups": 4}),
    )  # fmt: skip


def train(examples: Examples, *, steps: int, seed: int) -> nn.Module:
    """Trains the network for a number of steps, with the Dice and cross-entropy losses.

    Arguments:
        examples: What to learn from.
        steps: The number of steps.
        seed: The seed of weights, draws and changes.
    """
    from monai.losses.dice import DiceCELoss

    torch.manual_seed(seed)
    network = build_network()
    losses = DiceCELoss(sigmoid=True, batch=True)

    def objective(network: nn.Module, batch: Example, done: float) -> Tensor:
        image, truth, _ = batch
        return -losses(network(image), truth).expand(len(image))

    generator = torch.Generator().manual_seed(seed)
    draws = RandomSampler(examples, True, steps * BATCH, generator)
    fit(
        network,
        DataLoader(examples, BATCH, sampler=draws),
        objective,
        steps=steps,
        lr=LR,
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
    logits = network(torch.from_numpy(image.astype(np.float32))[:, None])
    return (logits[:, 0] > 0).numpy() & fov


def score_volume(
    found: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> Score:
    r"""Scores a segmentation of a patient.

    .. math:: \mathrm{Dice} = 2 |F \cap T| / (|F| + |T|)

    The average symmetric surface distance is MONAI's: the mean over the surface voxels of both,
    together, of the distance to the surface of the other.

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
    from monai.metrics.surface_distance import compute_average_surface_distance

    volumes = [torch.from_numpy(v)[None, None] for v in (found, truth)]
    distance = compute_average_surface_distance(
        *volumes, include_background=True, symmetric=True, spacing=list(spacing)
    )
    return Score(float(2 * (found & truth).sum() / (found.sum() + truth.sum())), distance.item())

r"""MHVAE: the two-modality forerunner of MMHVAE, which learns from complete pairs.

Source:
    Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations (Dorent et
    al., 2023), https://arxiv.org/abs/2309.08747: ultrasound and T2, complete pairs, a smooth
    absolute error plus the divergence, an adversarial term after 100 epochs, Adamax with 2e-3,
    batches of 2.

It handles the first two modalities. Of incomplete patients it can use those who have both: other
rows have a loss of 0, and what else a patient has is not read. The bound is the mean over the pair
and each of the two alone.

Slim:
    The slim network of MMHVAE with two modalities, its likelihood and its weight of the
    divergence. A Laplace likelihood in place of the smooth absolute error; no adversary.

Full:
    The published network of MMHVAE with two modalities, as the publications describe it; sizes
    that only the 2023 code states are not reproduced. No adversary, which leaves costs of
    synthesis as they are.
"""

from __future__ import annotations

__all__ = ["MHVAESystem", "full", "slim"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from examples.medical_mri_us.train import build_model
from mmpoe.models import MMHVAE, published_mmhvae
from mmpoe.objectives import mhvae
from mmpoe.training import Adversary

from .common import Batch, check_among, predict_means


def slim(modalities: Sequence[str], size: int) -> MHVAESystem:
    """Builds the system for minutes on two cores, for images of any multiple of 8 pixels."""
    return MHVAESystem(modalities, build_model(size, modalities[:2]), beta=0.01)


def full(modalities: Sequence[str], size: int) -> MHVAESystem:
    """Builds the published network of two modalities."""
    return MHVAESystem(modalities, published_mmhvae(modalities[:2], size), beta=1.0)


class MHVAESystem:
    """MHVAE, as a system to compare.

    Arguments:
        modalities: The names of all modalities.
        model: The model, of the first two of them.
        beta: The weight of the divergence, after a tenth of training.

    Raises:
        ValueError: If the model is not of the first two modalities.
    """

    adversary: Adversary | None = None
    lr = 2e-3

    def __init__(self, modalities: Sequence[str], model: MMHVAE, beta: float) -> None:
        self.modalities = list(modalities)
        self.handled = list(model.modalities)
        if len(self.handled) != 2 or self.handled != self.modalities[:2]:
            raise ValueError(
                f"'model' should be one of the first two of {', '.join(modalities)}, "
                f"but is one of {', '.join(self.handled)}."
            )
        self.beta = beta
        self.network: MMHVAE = model

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns minus the bound of each row that has both, in nats per pixel in view."""
        x, observed, fov = batch
        pair = observed[:, :2] & observed[:, :2].all(dim=1, keepdim=True)
        seen = {m: x[m] for m in self.handled if m in x}
        beta = self.beta * min(1.0, 10 * done)
        bound = mhvae(self.network, seen, pair, beta, valid=dict.fromkeys(seen, fov))
        return -bound / fov.flatten(1).sum(dim=1).clamp(min=1)

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, at the mean of the posterior.

        Raises:
            ValueError: If a target or something that is given is not one of the two modalities.
        """
        check_among("targets", targets, self.handled)
        if bool(given[:, 2:].any()):
            columns = torch.nonzero(given.any(dim=0))[:, 0].tolist()
            raise ValueError(
                f"'given' should be among {', '.join(self.handled)}, "
                f"but holds {', '.join(self.modalities[c] for c in columns)}."
            )
        seen = {m: x[m] for m in self.handled if m in x}
        return predict_means(self.network, seen, given[:, :2], targets, temperature)

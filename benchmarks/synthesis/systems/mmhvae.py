r"""MMHVAE: a hierarchy of latent groups, each with a product of experts as its posterior.

Source:
    Unified Cross-Modal Medical Image Synthesis with Hierarchical Mixture of Product-of-Experts
    (Dorent et al., 2026), https://doi.org/10.1109/TPAMI.2025.3616632, and the code published with
    it: 192 x 192 pixels, 7 groups, 16 to 128 channels, 6 residual blocks a head, half the absolute
    error plus 0.001 times the divergence from three subsets of a patient, an adversarial term in
    the last 200 of 1000 epochs, Adamax, batches of 16, images drawn at temperature 0.7.

Slim:
    The model of the example, `examples.medical_mri_us.train`: three groups on patches of 2 x 2
    pixels, experts that see their own modality alone, a pyramid shared by all modalities, one
    random proper subset for each row, a learned scale of the likelihood, the divergence weighed by
    0.01 after a warm-up, and the score of what was given by 0.3. No adversary.

Full:
    The published network. The loss is the bound over the published family of subsets, with
    divergences in closed form, and without the adversarial term, which leaves costs of synthesis
    as they are. The product of experts is the Gaussian one: weights trained with the published
    rule need ``power=1``.

Both synthesise at the mean of the posterior, temperature 0, where the publication draws a sample.
"""

from __future__ import annotations

__all__ = ["MMHVAESystem", "full", "slim"]

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from examples.medical_mri_us.train import bound, build_model, infer
from mmpoe.models import MMHVAE, published_mmhvae
from mmpoe.objectives import mmhvae
from mmpoe.training import Adversary

from .common import Batch, predict_means

BETA = 0.01
RECONSTRUCTION = 0.3


def slim(modalities: Sequence[str], size: int) -> MMHVAESystem:
    """Builds the system for minutes on two cores, for images of any multiple of 8 pixels."""
    model = build_model(size, modalities)

    def loss(batch: Batch, done: float) -> Tensor:
        x, observed, fov = batch
        scored = x, x, observed, fov  # what was observed, and no other target
        output, given = infer(model, scored)
        return -bound(output, scored, given, BETA * min(1.0, 10 * done), RECONSTRUCTION)

    return MMHVAESystem(model, loss)


def full(modalities: Sequence[str], size: int) -> MMHVAESystem:
    """Builds the published network, with the first modality as the special one."""
    model = published_mmhvae(modalities, size)

    def loss(batch: Batch, done: float) -> Tensor:
        x, observed, fov = batch
        total = mmhvae(model, x, observed, valid=dict.fromkeys(x, fov))
        return -total / fov.flatten(1).sum(dim=1).clamp(min=1)

    return MMHVAESystem(model, loss)


class MMHVAESystem:
    """MMHVAE, as a system to compare.

    Arguments:
        model: The model.
        loss: The loss of each row of a batch, given the share of training done so far.
    """

    adversary: Adversary | None = None
    lr = 2e-3

    def __init__(self, model: MMHVAE, loss: Callable[[Batch, float], Tensor]) -> None:
        self.modalities = self.handled = list(model.modalities)
        self.network: MMHVAE = model
        self._loss = loss

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns minus the bound of each row, in nats per pixel in view."""
        return self._loss(batch, done)

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, at the mean of the posterior or at a sample."""
        return predict_means(self.network, x, given, targets, temperature)

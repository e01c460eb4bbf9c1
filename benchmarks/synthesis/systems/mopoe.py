r"""MoPoE-VAE: one latent vector, whose posterior is the mixture of products of all subsets.

Source:
    Generalized Multimodal ELBO (Sutter et al., 2021), https://arxiv.org/abs/2105.02470, and the
    code published with it. Published for 28 x 28 images: one encoder of strided 3 x 3 convolutions
    with 32, 64 and 128 channels for each modality, decoders that mirror them, 512 latents, a
    Laplace likelihood of scale 0.75 for images in [0, 1], a divergence of weight 2.5, the prior as
    a factor of the full product alone, Adam with 5e-4, batches of 256.

Slim:
    Convolutions with 32, 64, 128 and 128 channels, down to 4 x 4 pixels at 64 x 64, and 256
    latents. The likelihood is that of the MMHVAE here, a Laplace with a learned scale from 0.12
    on, and so is the weight of the divergence, 0.01 with a warm-up, so that the two differ in
    their structure. Closed-form divergences; each row is decoded from one subset.

Full:
    As published, with more levels of 128 channels, down to 6 x 6 pixels at 192 x 192, and a
    warm-up of the divergence. The scale is twice 0.75, since images are in [-1, 1]. What the
    comparison in the MMHVAE paper used is not stated there.
"""

from __future__ import annotations

__all__ = ["MoPoESystem", "full", "slim"]

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmpoe.likelihoods import Laplace
from mmpoe.models import MoPoEVAE
from mmpoe.objectives import mopoe
from mmpoe.training import Adversary

from .common import Batch, predict_means

SMALLEST = 8
"""Images are halved until they have fewer pixels a side."""


def slim(modalities: Sequence[str], size: int) -> MoPoESystem:
    """Builds the system for minutes on two cores."""
    widths = [32, 64, 128, 128]
    return MoPoESystem(
        modalities, size, widths, 256, lr=2e-3, scale=0.12, learn_scale=True, beta=0.01
    )


def full(modalities: Sequence[str], size: int) -> MoPoESystem:
    """Builds the system with its published settings, and more levels for larger images."""
    widths = [32, 64, *[128] * 6]
    return MoPoESystem(
        modalities, size, widths, 512, lr=5e-4, scale=1.5, learn_scale=False, beta=2.5
    )


class MoPoESystem:
    """MoPoE-VAE, as a system to compare.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images, in pixels.
        widths: The number of channels after each halving; as many are used as the size allows.
        latents: The number of latent dimensions.
        lr: The learning rate.
        scale: The scale of the likelihood.
        learn_scale: Whether that is where it starts from.
        beta: The weight of the divergence, after a tenth of training.
    """

    adversary: Adversary | None = None

    def __init__(
        self,
        modalities: Sequence[str],
        size: int,
        widths: Sequence[int],
        latents: int,
        *,
        lr: float,
        scale: float,
        learn_scale: bool,
        beta: float,
    ) -> None:
        self.modalities = self.handled = list(modalities)
        self.lr, self.beta = lr, beta
        used, side = [], size
        for width in widths:
            if side % 2 or side < SMALLEST:
                break
            used.append(width)
            side //= 2
        self.network: MoPoEVAE = MoPoEVAE(
            encoders={m: _encoder(used, side, latents) for m in modalities},
            decoders={
                m: Laplace(_decoder(used, side, latents), scale=scale, learn_scale=learn_scale)
                for m in modalities
            },
            latent_dim=latents,
            prior_in="full",
        )

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns minus the bound of each row, in nats per pixel in view."""
        x, observed, fov = batch
        beta = self.beta * min(1.0, 10 * done)
        bound = mopoe(self.network, x, observed, beta, valid=dict.fromkeys(x, fov))
        return -bound / fov.flatten(1).sum(dim=1).clamp(min=1)

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets, at the mean of the product of all that is given."""
        return predict_means(self.network, x, given, targets, temperature)


def _encoder(widths: Sequence[int], side: int, latents: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 2 * latents))


def _decoder(widths: Sequence[int], side: int, latents: int) -> nn.Module:
    first, *others = [*widths[::-1], 1]
    layers: list[nn.Module] = [
        nn.Linear(latents, first * side**2),
        nn.Unflatten(1, (first, side, side)),
    ]
    for width in others:
        up = nn.ConvTranspose2d(first, width, 3, stride=2, padding=1, output_padding=1)
        layers += [nn.ReLU(), up]
        first = width
    return nn.Sequential(*layers, nn.Tanh())

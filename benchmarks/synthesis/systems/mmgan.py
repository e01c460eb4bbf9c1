r"""MM-GAN: a U-Net that is conditioned by copying, and a discriminator of modalities.

Source:
    Missing MRI Pulse Sequence Synthesis using Multi-Modal Generative Adversarial Network (Sharma &
    Hamarneh, 2020), https://arxiv.org/abs/1904.12200, and the code published with it. Published:
    256 x 256 pixels; eight 4 x 4 convolutions of stride 2, 64 to 512 channels, and back; zeros,
    the background, for what is missing; no mask as input. Inputs are copied into the output
    before any loss of it. The discriminator sees output and truth, and has one map of scores for
    each modality: 1 where it is real, 0 where it was synthesised. Least squares with
    weight 0.1, absolute error of what is missing with weight 0.9. First one modality is hidden,
    then more. Adam with 2e-4 and betas of 0.5 and 0.999, batches of 4, 60 epochs.

Here, patients are incomplete and rows have their own subsets: a modality that a patient does not
have is background in output and truth, and not scored by anything. The curriculum hides at most
one modality in the first sixth of training, at most two in the second, then any number, of
what a patient has. Images are in [-1, 1], the background is -1, the last layer a hyperbolic
tangent. A patient with a single modality is not scored.

Slim:
    32 to 256 channels and as many halvings as the size allows, six at 64 x 64; the generator is
    trained like all systems here, with a learning rate of 2e-3.

Full:
    The published widths. 192 can be halved six times, and the published eight levels fail there;
    at 256 there are eight, with the published 54.4 M parameters.
"""

from __future__ import annotations

__all__ = ["Discriminator", "Generator", "MMGANSystem", "full", "slim"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmpoe.missing import random_subsets
from mmpoe.training import Adversary

from .common import Batch, against, mean_by_row, mean_error, paste, predict_channels, stack

LEVELS, DROPOUT = 8, 0.2


def slim(modalities: Sequence[str], size: int) -> MMGANSystem:
    """Builds the system for minutes on two cores, for images of a multiple of 32 pixels."""
    return MMGANSystem(modalities, size, width=32, lr=2e-3)


def full(modalities: Sequence[str], size: int) -> MMGANSystem:
    """Builds the system of the published widths, for images of a multiple of 32 pixels."""
    return MMGANSystem(modalities, size, width=64, lr=2e-4)


class Generator(nn.Module):
    """A U-Net of strided convolutions with `width` channels, doubled three times.

    The first and the last layer of the way down have no normalisation.
    """

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        levels = 0
        while levels < LEVELS and size % 2 == 0:
            levels, size = levels + 1, size // 2
        widths = [width * min(2**level, 8) for level in range(levels)]
        self.down = nn.ModuleList()
        for level, after in enumerate(widths):
            normalise = 0 < level < levels - 1
            self.down.append(
                _down(channels if level == 0 else widths[level - 1], after, normalise)
            )
        self.up = nn.ModuleList()
        for level in reversed(range(1, levels)):
            skipped = 0 if level == levels - 1 else widths[level]
            self.up.append(_up(widths[level] + skipped, widths[level - 1]))
        self.widest = 8 * width
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(2 * widths[0], channels, 4, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns images (B, M, H, W) in (-1, 1)."""
        skipped = []
        for down in self.down:
            x = self._drop(down(x))
            skipped.append(x)
        skipped.pop()
        for up in self.up:
            x = torch.cat([self._drop(up(x)), skipped.pop()], dim=1)
        return self.head(x)

    def _drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, DROPOUT, self.training and x.shape[1] == self.widest)


class Discriminator(nn.Sequential):
    """Scores patches of each modality, (B, M, h, w), given output and truth as channels.

    Arguments:
        modalities: The number of modalities M.
        width: The number of channels of the first level; it doubles three times.
    """

    def __init__(self, modalities: int, width: int) -> None:
        layers: list[nn.Module] = []
        channels = 2 * modalities
        for level in range(4):
            after = width * 2**level
            layers.append(nn.Conv2d(channels, after, 4, stride=2, padding=1))
            if level > 0:
                layers.append(nn.InstanceNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
            channels = after
        last = nn.Conv2d(channels, modalities, 4, padding=1, bias=False)
        super().__init__(*layers, nn.ZeroPad2d((1, 0, 1, 0)), last)


class MMGANSystem:
    """MM-GAN, as a system to compare.

    Arguments:
        modalities: The names of the modalities.
        size: The height and width of the images, in pixels.
        width: The number of channels of the first level of both networks.
        lr: The learning rate of the generator.

    Raises:
        ValueError: If the size is not a multiple of 32 pixels.
    """

    def __init__(self, modalities: Sequence[str], size: int, width: int, lr: float) -> None:
        if size < 32 or size % 32:
            raise ValueError(f"'size' should be a positive multiple of 32, but is {size}.")
        self.modalities = self.handled = list(modalities)
        self.lr = lr
        self.network: nn.Module = _initialised(Generator(len(modalities), size, width))
        self.critic = _initialised(Discriminator(len(modalities), width))
        self.adversary: Adversary | None = against(self.critic, self._critic_loss)
        self._shown: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns the error of what was hidden of each row, and what the discriminator finds."""
        x, observed, fov = batch
        given = _give_back(observed, random_subsets(observed, proper=True)[0], 1 + int(6 * done))
        truth = stack(x, observed, self.modalities)
        images = self.network(stack(x, given, self.modalities))
        hidden = observed & ~given
        fake, real = paste(images, truth, hidden, fov)  # what is given is copied
        scored = observed & hidden.any(dim=1, keepdim=True)
        self._shown = fake.detach(), real, given, scored
        scores = self.critic(torch.cat([fake, real], dim=1))
        fooled = mean_by_row((scores - 1).square().mean(dim=(2, 3)), scored)
        return 0.9 * mean_error(images, truth, hidden, fov) + 0.1 * fooled

    def synthesise(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        targets: Sequence[str],
        temperature: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the targets; what is given is synthesised too, not copied."""
        images = stack(x, given, self.modalities)
        return predict_channels(self.network, images, self.modalities, targets)

    def _critic_loss(self, critic: nn.Module) -> Tensor:
        assert self._shown is not None  # the loss comes first
        fake, real, given, scored = self._shown
        of_real = (critic(torch.cat([real, real], dim=1)) - 1).square()
        wanted = given[:, :, None, None].to(fake)
        of_fake = (critic(torch.cat([fake, real], dim=1)) - wanted).square()
        return mean_by_row((of_real + of_fake).mean(dim=(2, 3)) / 2, scored)


def _give_back(observed: Tensor, given: Tensor, most: int) -> Tensor:
    """Hides at most a number of modalities of each row, drawn among those that are hidden."""
    keys = torch.rand(given.shape).masked_fill(~(observed & ~given), 2.0)
    kept = keys.argsort(dim=1).argsort(dim=1) < most
    return given | (observed & ~kept)


def _down(before: int, after: int, normalise: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)]
    if normalise:
        layers.append(nn.InstanceNorm2d(after))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))


def _up(before: int, after: int) -> nn.Module:
    up = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(up, nn.InstanceNorm2d(after), nn.ReLU())


def _initialised(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
    return network

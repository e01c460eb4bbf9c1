r"""ResViT: a residual generator with a vision transformer in two of its blocks.

Source:
    ResViT: Residual Vision Transformers for Multi-modal Medical Image Synthesis (Dalmaz et al.,
    2022), https://arxiv.org/abs/2106.16031, and the code published with it, whose ViT-B/16 variant
    this is: nine blocks at a quarter of the resolution, of which the first and the sixth send 1/16
    of it through a transformer (768 features, 12 layers, 12 heads) whose weights they share;
    a 70 x 70 patch discriminator; weights of 100 for the error of what is missing, 100 for that
    of what is given, 1 for least squares; convolutions trained first, then the transformer from
    ImageNet weights.

The code has no variant for any subset; this is how its description is understood: background for
what is missing, one discriminator of what is given and what was synthesised together. Modalities
that a patient does not have are background, and not scored. Losses are divided by 100. There are
no ImageNet weights: all is trained at once, from scratch. The discriminator is the library's, of
up to 256 channels in place of 512, with instance normalisation.

Slim:
    24 in place of 64 channels, a transformer of 192 features and 6 layers; a discriminator of 32
    in place of 64 channels, of 16 x 16 patches.

Full:
    As published, 123 M parameters with four modalities at 192 x 192, where the grid of the
    transformer is 12 x 12. The 293 M parameters and 274 GMAC that the MMHVAE paper quotes are of
    no variant of the published code that was found: ViT-L/16 has 343 M.
"""

from __future__ import annotations

__all__ = ["ResViT", "ResViTSystem", "full", "slim"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmpoe.missing import random_subsets
from mmpoe.nn import PatchDiscriminator
from mmpoe.training import Adversary

from .common import Batch, against, mean_error, paste, predict_channels, stack

BLOCKS, WITH_TRANSFORMER = 9, (0, 5)
DROPOUT = 0.1
CRITIC = {"spectral_norm": False, "instance_norm": True}


def slim(modalities: Sequence[str], size: int) -> ResViTSystem:
    """Builds the system for minutes on two cores, for images of a multiple of 16 pixels."""
    network = ResViT(len(modalities), size, width=24, features=192, layers=6, heads=6)
    critic = PatchDiscriminator(len(modalities), size, 32, 1, **CRITIC)
    return ResViTSystem(modalities, network, critic, lr=2e-3)


def full(modalities: Sequence[str], size: int) -> ResViTSystem:
    """Builds the published system, for images of a multiple of 16 pixels."""
    network = ResViT(len(modalities), size, width=64, features=768, layers=12, heads=12)
    critic = PatchDiscriminator(len(modalities), size, 64, 3, **CRITIC)
    return ResViTSystem(modalities, network, critic, lr=2e-4)


class ResViT(nn.Module):
    """The generator: `width` channels at full resolution, a transformer of `features` features.

    Raises:
        ValueError: If the size is not a multiple of 16 pixels, and at least 32.
    """

    def __init__(
        self, channels: int, size: int, width: int, features: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        if size < 32 or size % 16:
            raise ValueError(f"'size' should be at least 32, a multiple of 16, but is {size}.")
        wide = 4 * width
        self.encode = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_convolution(channels, width, 7, padding=0),
            *_convolution(width, 2 * width, stride=2),
            *_convolution(2 * width, wide, stride=2),
        )
        norm = nn.LayerNorm(features, eps=1e-6)
        transformer = nn.Sequential(*(_layer(features, heads) for _ in range(layers)), norm)
        self.blocks = nn.ModuleList()
        for block in range(BLOCKS):
            if block in WITH_TRANSFORMER:
                self.blocks.append(Transformed(wide, transformer, features, (size // 16) ** 2))
            self.blocks.append(Residual(wide))
        self.decode = nn.Sequential(
            *_upward(wide, 2 * width),
            *_upward(2 * width, width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns images of the shape of the input, in (-1, 1)."""
        h = self.encode(x)
        for block in self.blocks:
            h = block(h)
        return self.decode(h)


class Residual(nn.Module):
    """Two 3 x 3 convolutions that reflect at the border, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), *_convolution(channels, channels, padding=0)]
        layers += [nn.ReflectionPad2d(1), *_convolution(channels, channels, padding=0)[:2]]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features of the same shape."""
        return x + self.layers(x)


class Transformed(nn.Module):
    """Adds channels that a shared transformer made of a quarter of the resolution."""

    def __init__(self, channels: int, transformer: nn.Module, features: int, tokens: int) -> None:
        super().__init__()
        down = _convolution(channels, 2 * channels, stride=2)
        self.down = nn.Sequential(*down, *_convolution(2 * channels, 4 * channels, stride=2))
        self.embed = nn.Conv2d(4 * channels, features, 1)
        self.position = nn.Parameter(torch.zeros(tokens, features))
        self.transformer = transformer
        self.up = nn.Sequential(*_upward(features, 2 * channels), *_upward(2 * channels, channels))
        first = _convolution(2 * channels, channels)
        self.compress = nn.Sequential(*first, *_convolution(channels, channels)[:2])
        self.skip = nn.Sequential(*_convolution(2 * channels, channels, 1, padding=0)[:2])

    def forward(self, x: Tensor) -> Tensor:
        """Returns features of the same shape."""
        h = self.embed(self.down(x))
        tokens = h.flatten(2).transpose(1, 2) + self.position  # (B, T, F)
        tokens = nn.functional.dropout(tokens, DROPOUT, self.training)
        h = self.transformer(tokens).transpose(1, 2).reshape(h.shape)
        both = torch.cat([x, self.up(h)], dim=1)
        return torch.relu(self.compress(both) + self.skip(both))


class ResViTSystem:
    """ResViT, as a system to compare: a generator with its learning rate, and a discriminator."""

    def __init__(
        self, modalities: Sequence[str], network: nn.Module, critic: nn.Module, lr: float
    ) -> None:
        self.modalities = self.handled = list(modalities)
        self.lr = lr
        self.network, self.critic = network, critic
        self.adversary: Adversary | None = against(critic, self._critic_loss)
        self._shown: tuple[Tensor, Tensor, Tensor] | None = None

    def loss(self, batch: Batch, done: float) -> Tensor:
        """Returns the errors of each row, and what the discriminator finds."""
        x, observed, fov = batch
        given = random_subsets(observed, proper=True)[0]
        truth = stack(x, observed, self.modalities)
        images = self.network(stack(x, given, self.modalities))
        hidden = observed & ~given
        fake, real = paste(images, truth, hidden, fov)  # what is given is copied
        scored = hidden.any(dim=1)
        self._shown = fake.detach(), real, scored
        fooled = (self.critic(fake) - 1).square().mean(dim=(1, 2, 3))
        errors = mean_error(images, truth, hidden, fov) + mean_error(images, truth, given, fov)
        return errors + 0.01 * torch.where(scored, fooled, 0)

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
        fake, real, scored = self._shown
        loss = (critic(real) - 1).square() + critic(fake).square()
        return torch.where(scored, loss.mean(dim=(1, 2, 3)) / 2, 0)


def _layer(features: int, heads: int) -> nn.Module:
    first = {"batch_first": True, "norm_first": True}
    sizes = features, heads, 4 * features
    return nn.TransformerEncoderLayer(*sizes, DROPOUT, "gelu", 1e-6, **first)


def _convolution(
    before: int, after: int, side: int = 3, stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, side, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


def _upward(before: int, after: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=1, bias=False)
    return [up, nn.BatchNorm2d(after), nn.ReLU()]

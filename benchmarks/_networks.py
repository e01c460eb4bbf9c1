"""Networks written once, so that two libraries can be compared with the same weights."""

from __future__ import annotations

__all__ = ["FlatNetworks", "LadderNetworks", "draw_batch", "mhvae", "mopoe", "mvae"]

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Normal
from mmpoe.missing import mcar


class Heads(nn.Module):
    """A mean and a log variance, each from the same features."""

    def __init__(self, body: nn.Module, loc: nn.Module, log_variance: nn.Module) -> None:
        super().__init__()
        self.body, self.loc, self.log_variance = body, loc, log_variance

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and the log variance."""
        features = self.body(x)
        return self.loc(features), self.log_variance(features)


class FlatNetworks(nn.Module):
    """Perceptrons for modalities of one shape, and one latent vector.

    Arguments:
        modalities: The number of modalities.
        shape: The shape of an entry.
        latent: The number of latent dimensions.
        hidden: The number of features of the hidden layers: two of encoders, one of decoders.
    """

    def __init__(
        self,
        modalities: int,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 20,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.shape, self.latent = tuple(shape), latent
        self.names = [f"m{column}" for column in range(modalities)]
        size = torch.Size(shape).numel()

        def encoder() -> nn.Module:
            layers = nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
            body = nn.Sequential(nn.Flatten(), *layers)
            return Heads(body, nn.Linear(hidden, latent), nn.Linear(hidden, latent))

        def decoder() -> nn.Module:
            layers = nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.Sigmoid()
            return nn.Sequential(*layers, nn.Unflatten(1, self.shape))

        self.encoders = nn.ModuleDict({m: encoder() for m in self.names})
        self.decoders = nn.ModuleDict({m: decoder() for m in self.names})


class LadderNetworks(nn.Module):
    """Convolutions for images of 28 x 28 pixels and three latent groups: a vector and two maps.

    Lists over the maps run fine to coarse: 14 x 14, 7 x 7.

    Arguments:
        modalities: The number of modalities.
        latent: The number of dimensions of the vector.
        width: The number of channels of the finest map; the other has twice as many.
    """

    shape = (3, 28, 28)

    def __init__(self, modalities: int, latent: int = 10, width: int = 32) -> None:
        super().__init__()
        self.names = [f"m{column}" for column in range(modalities)]
        self.latent, self.width = latent, width
        fine, middle, coarse = width, 2 * width, 4 * width

        def down(channels: int, out_channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, out_channels, 3, 2, 1), nn.SiLU())

        def top() -> nn.Module:
            layers = nn.Flatten(), nn.Linear(16 * coarse, 512), nn.ReLU()
            body = nn.Sequential(*down(middle, coarse), *layers)
            return Heads(body, nn.Linear(512, latent), nn.Linear(512, latent))

        def decoder() -> nn.Module:
            up = nn.ConvTranspose2d(fine, self.shape[0], 3, 2, 1, output_padding=1)
            return nn.Sequential(up, nn.Sigmoid())

        def prior(channels: int) -> nn.Module:
            return Heads(
                nn.Identity(), nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
            )

        def posterior(channels: int) -> nn.Module:
            body = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, 1, 1), nn.SiLU())
            return Heads(body, nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1))

        self.stems = nn.ModuleDict({m: down(self.shape[0], fine) for m in self.names})
        self.rises = nn.ModuleDict({m: down(fine, middle) for m in self.names})
        self.tops = nn.ModuleDict({m: top() for m in self.names})
        self.falls = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(middle, fine, 3, 2, 1, output_padding=1), nn.SiLU()
                ),
                nn.Sequential(
                    nn.Linear(latent, 16 * coarse),
                    nn.ReLU(),
                    nn.Unflatten(1, (coarse, 4, 4)),
                    nn.ConvTranspose2d(coarse, middle, 3, 2, 1),
                    nn.SiLU(),
                ),
            ]
        )
        self.priors = nn.ModuleList([prior(fine), prior(middle)])
        self.posteriors = nn.ModuleList([posterior(fine), posterior(middle)])
        self.decoders = nn.ModuleDict({m: decoder() for m in self.names})


class Expert(nn.Module):
    """The mean and log standard deviation, stacked, of a network that returns a log variance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Returns both, stacked along dimension 1."""
        loc, log_variance = self.network(x)
        return torch.cat([loc, log_variance / 2], dim=1)


class Step(nn.Module):
    """The step down to a state that depends on the sample alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, h: Tensor | None, z: Tensor) -> Tensor:
        """Returns the next state."""
        return self.network(z)


class Climb(nn.Module):
    """The features of one modality for each latent group, coarse to fine."""

    def __init__(self, stem: nn.Module, rise: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.stem, self.rise, self.top = stem, rise, Expert(top)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the parameters of the coarsest expert, then the features of the maps."""
        fine = self.stem(x)
        middle = self.rise(fine)
        return [self.top(middle), middle, fine]


def mvae(networks: FlatNetworks) -> mmpoe.MVAE:
    """The product-of-experts model of some networks."""
    return mmpoe.MVAE(*_flat_parts(networks), networks.latent)


def mopoe(networks: FlatNetworks) -> mmpoe.MoPoEVAE:
    """The mixture of products of some networks, with the prior where the published code has it."""
    return mmpoe.MoPoEVAE(*_flat_parts(networks), networks.latent, prior_in="full")


def mhvae(networks: LadderNetworks) -> mmpoe.MHVAE:
    """The hierarchical model of some networks."""
    fall, (prior, coarse_prior) = networks.falls, networks.priors
    posterior, coarse_posterior = networks.posteriors
    maps = (2 * networks.width, 7, 7), (networks.width, 14, 14)
    groups = [
        LatentGroup((networks.latent,), nn.Identity(), Step(fall[1])),
        LatentGroup(maps[0], Expert(coarse_posterior), Step(fall[0]), Expert(coarse_prior)),
        LatentGroup(maps[1], Expert(posterior), prior=Expert(prior)),
    ]
    stems, rises, tops = networks.stems, networks.rises, networks.tops
    encoders = {m: Climb(stems[m], rises[m], tops[m]) for m in networks.names}
    return mmpoe.MHVAE(encoders, groups, _likelihoods(networks))


def draw_batch(
    networks: FlatNetworks | LadderNetworks, rows: int, missing: float = 0.3, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns noise images, 0 where they are missing, and what of them was observed.

    Every row observed something.
    """
    generator = Generator().manual_seed(seed)
    observed = mcar(rows, [missing] * len(networks.names), generator=generator)
    x = {}
    for column, m in enumerate(networks.names):
        images = torch.rand(rows, *networks.shape, generator=generator)
        x[m] = torch.where(observed[:, column, None, None, None], images, 0)
    return x, observed


def _flat_parts(networks: FlatNetworks) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    return {m: Expert(networks.encoders[m]) for m in networks.names}, _likelihoods(networks)


def _likelihoods(networks: FlatNetworks | LadderNetworks) -> dict[str, nn.Module]:
    return {m: Normal(networks.decoders[m]) for m in networks.names}

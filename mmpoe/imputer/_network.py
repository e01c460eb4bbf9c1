r"""The model of a table: each column or group of columns is a modality."""

from __future__ import annotations

__all__ = ["Modality", "SideBySide", "build"]

import copy
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mmpoe.gaussian import kl_divergence, widen
from mmpoe.kernels import gaussian_poe
from mmpoe.likelihoods import Categorical, Likelihood, NegativeBinomial
from mmpoe.models import MMHVAE, vector_mmhvae
from mmpoe.nn import MLPBottomUp, ModalityDict, Recorded
from mmpoe.posteriors import Draw, Posterior

AT_ONCE = 32
"""How many experts the fused operation takes at once."""


class Modality(NamedTuple):
    """Columns that are given or hidden together."""

    name: str
    columns: list[int]
    """Their positions in the table."""
    kind: str
    """The kind of all columns, or ``"mixed"``."""
    classes: int
    """The number of categories, if they are categorical."""
    parts: tuple[Modality, ...] = ()
    """If they are mixed, columns of one kind: all numbers together, any other column alone."""

    @property
    def blocks(self) -> list[Modality]:
        """The parts, each read by one expert of a hierarchy; itself if it is of one kind."""
        return list(self.parts) or [self]


class Cells(nn.Module):
    """Turns several numbers, NaN where they are missing, into themselves and which are there."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (*, k) to (*, 2k)."""
        there = ~x.isnan()
        return torch.cat([torch.where(there, x, 0), there.to(x)], dim=-1)


class Indicators(Recorded, nn.Module):
    """Turns the code of a category into its indicator."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (*, 1) to (*, K)."""
        return one_hot(x.long().squeeze(-1), self.classes).to(x)


class LogCounts(nn.Module):
    """Turns counts into the logarithms of one more."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (*, 1) to (*, 1)."""
        return x.log1p()


def build(modalities: Sequence[Modality], hidden: int, latents: Sequence[int]) -> MMHVAE:
    """Builds the model of a table whose cells are numbers: standardised values, codes, counts.

    Arguments:
        modalities: The modalities.
        hidden: The number of features of hidden layers and of the state.
        latents: The number of latents of each group, coarse to fine.
    """
    sizes, readers, likelihoods = {}, {}, {}
    for m in modalities:
        sizes[m.name] = m.classes if m.kind == "categorical" else len(m.columns)
        if m.kind == "categorical":
            readers[m.name] = Indicators(m.classes), m.classes
            likelihoods[m.name] = partial(_categorical, classes=m.classes)
        elif m.kind == "count":
            readers[m.name] = LogCounts(), 1
            likelihoods[m.name] = NegativeBinomial
        elif len(m.columns) > 1:
            readers[m.name] = Cells(), 2 * len(m.columns)
    model = vector_mmhvae(
        sizes, likelihoods=likelihoods, hidden=hidden, latents=latents, scale=0.5
    )
    for name, (reader, features) in readers.items():
        bottom_up = MLPBottomUp(features, hidden, len(latents))
        model.encoders[name] = nn.Sequential(reader, bottom_up)
    model.gather = False  # many small encoders run faster on all rows than on some
    model.validate = False  # cells are NaN inside groups that are observed in part
    return model


def _categorical(network: nn.Module, classes: int) -> Categorical:
    return Categorical(nn.Sequential(network, nn.Unflatten(-1, (classes, 1))), classes)


class SideBySide(nn.Module):
    """The model of a table with all networks of one size run as one, for training.

    Modalities of one kind and size have networks of one size, whose layers become products of
    batches of matrices. The steps down, priors and rules are the model's own.

    Arguments:
        model: The model.
        modalities: Its modalities.
    """

    def __init__(self, model: MMHVAE, modalities: Sequence[Modality]) -> None:
        super().__init__()
        alike: dict[tuple[str, int, int], list[int]] = {}
        for number, m in enumerate(modalities):
            alike.setdefault((m.kind, len(m.columns), m.classes), []).append(number)
        self.order = [number for numbers in alike.values() for number in numbers]
        # a ModuleList, whose items type checkers would take for any modules
        self.stacks: Sequence[_Stack] = nn.ModuleList(  # pyright: ignore
            _Stack(model, [modalities[number] for number in numbers]) for numbers in alike.values()
        )
        self.merges = nn.ModuleList(group.merge for group in model.groups)
        self.priors = nn.ModuleList(
            nn.Identity() if group.prior is None else group.prior for group in model.groups
        )
        self.rules: Sequence[Posterior] = nn.ModuleList(  # pyright: ignore
            group.posterior for group in model.groups
        )

    def bound(self, table: Tensor, given: Tensor, beta: float = 1.0) -> Tensor:
        """Returns the evidence lower bound of all cells that are there, with shape (n).

        It is that of :func:`mmpoe.objectives.elbo`.

        Arguments:
            table: The cells, NaN where they are missing, with shape (n, d).
            given: The modalities to condition on, boolean, with shape (n, M).
            beta: The cost of divergences.
        """
        given = given[:, self.order]
        sizes = [len(stack.names) for stack in self.stacks]
        parts = zip(self.stacks, given.T.split(sizes), strict=True)
        encoded = [stack.encode(table, part) for stack, part in parts]
        h, bound = None, table.new_zeros(len(table))
        for level, outputs in enumerate(zip(*encoded, strict=True)):
            loc, log_scale = torch.cat(outputs).chunk(2, dim=-1)  # (M, n, C)
            prior = None if h is None else self.priors[level](h).chunk(2, dim=1)
            z, kl = _product(self.rules[level], (loc, log_scale), given, prior)
            bound = bound - beta * kl
            h = self.merges[level](h, z)
        assert h is not None  # there is at least one level
        for stack in self.stacks:
            bound = bound + stack.log_likelihood(table, h)
        return bound

    @torch.no_grad()
    def write(self, model: MMHVAE) -> None:
        """Writes the weights into the model that this was made of."""
        for stack in self.stacks:
            for number, name in enumerate(stack.names):
                own = _networks(model, name)
                for path, side in stack.networks.named_modules():
                    module = own.get_submodule(path)
                    for key, values in side.named_parameters(recurse=False):
                        p = getattr(module, key)
                        value = values[number].T if isinstance(side, _Linears) else values[number]
                        p.copy_(value.reshape(p.shape))


def _product(
    rule: Posterior,
    experts: tuple[Tensor, Tensor],
    given: Tensor,
    prior: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Fuses M experts by a product, and returns a sample and the divergence from the prior.

    The fused operation takes some experts at a time: their product is the prior of the next ones.

    Arguments:
        rule: The rule, a product.
        experts: Means and log standard deviations, each with shape (M, n, C).
        given: The experts that take part in each row, boolean, with shape (n, M).
        prior: The mean and log standard deviation of the prior, each with shape (n, C).
    """
    if len(experts[0]) <= AT_ONCE:
        q = rule(*map(list, experts), given, prior)
        return q.z, q.kl
    loc, log_scale = map(rule.squash, experts)
    zeros = torch.zeros_like(loc[0])
    mean, deviation = (zeros, zeros) if prior is None else map(rule.squash, prior)
    last = mean, deviation
    pieces = zip(
        loc.split(AT_ONCE), log_scale.split(AT_ONCE), given.split(AT_ONCE, 1), strict=True
    )
    for locs, log_scales, taken in pieces:
        q = gaussian_poe(list(locs), list(log_scales), taken, last, sample=False)
        last = q.loc, q.log_scale
    kl = kl_divergence(*last, mean, deviation).sum(dim=1)
    return Draw().sample(*last), kl


class _Stack(nn.Module):
    """The networks of m modalities of one kind and size."""

    def __init__(self, model: MMHVAE, modalities: Sequence[Modality]) -> None:
        super().__init__()
        self.names = [m.name for m in modalities]
        self.columns = torch.tensor([m.columns for m in modalities])  # (m, k)
        self.networks = _side_by_side([_networks(model, name) for name in self.names])

    def encode(self, table: Tensor, given: Tensor) -> list[Tensor]:
        """Returns the parameters of the experts of each level, with shape (m, n, 2C)."""
        encoder, _, *experts = self.networks
        features = encoder(torch.where(given[..., None], self._cells(table), 0))
        return [expert(f) for expert, f in zip(experts, features, strict=True)]

    def log_likelihood(self, table: Tensor, h: Tensor) -> Tensor:
        """Returns the log-likelihood of the cells that are there, with shape (n)."""
        likelihood = cast("Likelihood", self.networks[1])
        phi = widen(likelihood.network(h.expand(len(self.names), *h.shape)))
        phi = phi if likelihood.outputs is None else phi.movedim(2, -1)
        x = self._cells(table)
        there = ~x.isnan()
        log_p = likelihood.distribution(phi).log_prob(torch.where(there, x, 0))
        return torch.where(there, log_p, 0).sum(dim=(0, 2))

    def _cells(self, table: Tensor) -> Tensor:
        """The cells of the modalities, with shape (m, n, k)."""
        return table[:, self.columns].transpose(0, 1)


class _Linears(nn.Module):
    """Linear layers of one size, each for an input of its own."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (m, n, inputs) to (m, n, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


def _networks(model: MMHVAE, modality: str) -> nn.ModuleList:
    """The encoder, the decoder and the experts of a modality."""
    experts = [cast("ModalityDict", group.expert)[modality] for group in model.groups]
    return nn.ModuleList([model.encoders[modality], model.decoders[modality], *experts])


def _side_by_side(networks: Sequence[nn.ModuleList]) -> nn.ModuleList:
    """Copies networks of one architecture into one, whose parameters have a leading dimension.

    Parameters outside of linear layers, those of likelihoods, have shape (m, 1, k), or (m, 1, 1).
    """
    whole = copy.deepcopy(networks[0])
    for path, module in list(whole.named_modules()):
        alike = [network.get_submodule(path) for network in networks]
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(whole.get_submodule(parent), name, _Linears(cast("list[nn.Linear]", alike)))
        else:
            for key, _ in list(module.named_parameters(recurse=False)):
                values = [getattr(other, key).detach().reshape(1, -1) for other in alike]
                setattr(module, key, nn.Parameter(torch.stack(values)))
    return whole

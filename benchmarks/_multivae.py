"""MultiVae, the other library, with the networks of :mod:`benchmarks._networks`, and its draws.

It is an optional package, for the benchmark and its tests alone: ``pip install --group bench``.
"""

from __future__ import annotations

__all__ = [
    "dataset",
    "drawing",
    "importable",
    "mhvae",
    "mopoe",
    "mopoe_parity",
    "mvae",
    "relative_difference",
]

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpoe.hierarchy import Encodings, Inference
from mmpoe.objectives import mixture_elbo

from . import _networks
from ._networks import FlatNetworks, LadderNetworks


def importable() -> bool:
    """Whether the package is there."""
    return find_spec("multivae") is not None


def mvae(networks: FlatNetworks) -> nn.Module:
    """Its product of experts, without annealing."""
    peer = _library()
    config = peer.models.MVAEConfig(**_shapes(networks), warmup=0)
    return peer.models.MVAE(config, *_wrapped(networks))


def mopoe(networks: FlatNetworks) -> nn.Module:
    """Its mixture of the products of all subsets."""
    peer = _library()
    return peer.models.MoPoE(peer.models.MoPoEConfig(**_shapes(networks)), *_wrapped(networks))


def mhvae(networks: LadderNetworks) -> nn.Module:
    """Its hierarchical model, which sweeps all subsets."""
    peer, names = _library(), networks.names
    config = peer.models.MHVAEConfig(**_shapes(networks), n_latent=3)
    stems = {m: peer.features(networks.stems[m]) for m in names}
    decoders = {m: peer.decoder(networks.decoders[m]) for m in names}
    rises = {m: [networks.rises[m], peer.heads(networks.tops[m])] for m in names}
    posteriors = [peer.heads(network) for network in networks.posteriors]
    priors = [peer.heads(network) for network in networks.priors]
    falls = list(networks.falls)
    return peer.models.MHVAE(config, stems, decoders, rises, falls, posteriors, priors)


def dataset(x: Mapping[str, Tensor], observed: Tensor | None = None) -> Any:  # noqa: ANN401
    """Its batch: complete, or with a mask for each modality."""
    peer = _library()
    if observed is None:
        return peer.data.MultimodalBaseDataset(data=dict(x))
    masks = {m: observed[:, column] for column, m in enumerate(x)}
    return peer.data.IncompleteDataset(data=dict(x), masks=masks)


@contextmanager
def drawing(model: nn.Module, noise: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Makes its model draw with some noise: a function of the mean."""
    module: Any = import_module(type(model).__module__)
    own = module.rsample_from_gaussian

    def draw(mu: Tensor, log_var: Tensor, N: int = 1, **options: Any) -> Tensor:  # noqa: ANN401
        return mu + torch.exp(log_var / 2) * noise(mu)

    module.rsample_from_gaussian = draw
    try:
        yield
    finally:
        module.rsample_from_gaussian = own


class Parity(NamedTuple):
    """One objective of some networks, computed by both libraries with the same draws."""

    losses: tuple[float, float]
    """The mean loss, ours and theirs."""
    divergences: tuple[float, float]
    """The mean divergence, ours and theirs."""
    gradients: float
    """The largest difference of gradients, relative to the largest gradient of a parameter."""


def mopoe_parity(networks: FlatNetworks, x: dict[str, Tensor], observed: Tensor) -> Parity:
    """Computes the objective of a mixture of products, and its gradients, by both libraries.

    Arguments:
        networks: The networks; those of the other library are a copy.
        x: The batch.
        observed: What was observed. No row may be empty, which the other library refuses.
    """
    model, seen = _networks.mopoe(networks), {}
    infer, log_likelihood = model.infer, model.log_likelihood

    def inferring(encodings: Encodings, given: Tensor, **options: Any) -> Inference:  # noqa: ANN401
        q = infer(encodings, given, **options)
        seen.update(given=given, rows=options["rows"], q=q)
        return q

    def scoring(*inputs: Any, **options: Any) -> Tensor:  # noqa: ANN401
        seen["drawn"] = options["weight"][:, 0] > 0
        return log_likelihood(*inputs, **options)

    model.infer, model.log_likelihood = inferring, scoring
    bound = mixture_elbo(model, x, observed, decode="drawn")
    gradients = torch.autograd.grad(-bound.mean(), list(networks.parameters()))

    # the component that each row was decoded from, and the noise of its sample
    given, rows, drawn, output = seen["given"], seen["rows"], seen["drawn"], seen["q"]
    order = rows[drawn].argsort()
    given, q, z = given[drawn][order], output.posteriors[0], output.z[0]
    noise = ((z - q.loc) / q.scale)[drawn][order].detach()
    count = 2 ** observed.sum(dim=1) - 1
    divergence = (output.kl[0] / count[rows]).sum() / len(observed)

    copied = deepcopy(networks)
    peer: Any = mopoe(copied)
    members = members_of(peer)
    chosen = (members[:, None] == given).all(dim=-1).long().argmax(dim=0)  # (B)

    def select(mus: Tensor, logvars: Tensor, availabilities: Tensor) -> tuple[Tensor, Tensor]:
        every = torch.arange(len(chosen))
        return mus[chosen, every], logvars[chosen, every]

    peer.random_mixture_component_selection = select
    with drawing(peer, lambda mu: noise):
        result = peer(dataset(x, observed))
    peer_gradients = torch.autograd.grad(result.loss, list(copied.parameters()))
    return Parity(
        losses=(-bound.mean().item(), result.loss.item()),
        divergences=(divergence.item(), result.metrics["joint_divergence"].item()),
        gradients=relative_difference(gradients, peer_gradients),
    )


def members_of(model: Any) -> Tensor:  # noqa: ANN401
    """The subsets of its mixture of products, (S, M), in its order."""
    subsets = [names for key, names in model.subsets.items() if key]
    return torch.tensor([[m in names for m in model.encoders] for names in subsets])


def relative_difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference of some tensors, each relative to its largest element."""
    parts = [
        (a - b).abs().max() / b.abs().max().clamp(min=1e-30)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(parts).max().item()  # NaN if there is any


def _shapes(networks: FlatNetworks | LadderNetworks) -> dict[str, Any]:
    names = networks.names
    dims = dict.fromkeys(names, networks.shape)
    return {"n_modalities": len(names), "latent_dim": networks.latent, "input_dims": dims}


def _wrapped(networks: FlatNetworks) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    peer, names = _library(), networks.names
    encoders = {m: peer.heads(networks.encoders[m]) for m in names}
    return encoders, {m: peer.decoder(networks.decoders[m]) for m in names}


def _library() -> SimpleNamespace:
    """The package, and what wraps a network as it wants it."""
    logging.disable(logging.INFO)  # it reports what it was built of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of what it imports
        models = import_module("multivae.models")
        bases = import_module("multivae.models.base")
        data = import_module("multivae.data")

    class Wrapper(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

    class HeadsWrapper(Wrapper, bases.BaseEncoder):
        def forward(self, x: Tensor) -> Any:  # noqa: ANN401
            loc, log_variance = self.network(x)
            return bases.ModelOutput(embedding=loc, log_covariance=log_variance)

    class FeaturesWrapper(Wrapper, bases.BaseEncoder):
        def forward(self, x: Tensor) -> Any:  # noqa: ANN401
            return bases.ModelOutput(embedding=self.network(x))

    class DecoderWrapper(Wrapper, bases.BaseDecoder):
        def forward(self, z: Tensor) -> Any:  # noqa: ANN401
            return bases.ModelOutput(reconstruction=self.network(z))

    return SimpleNamespace(
        models=models,
        data=data,
        heads=HeadsWrapper,
        features=FeaturesWrapper,
        decoder=DecoderWrapper,
    )

r"""The same networks as a Pyro model and guide.

The evidence lower bound that Pyro's :class:`~pyro.infer.TraceMeanField_ELBO` computes for the pair
is the one of :func:`mmpoe.elbo <mmpoe.objectives.elbo>`, with everything observed given.
"""

from __future__ import annotations

__all__ = ["guide", "model"]

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .distributions import DiagNormal
from .missing import check_observed, fill

if TYPE_CHECKING:
    from .hierarchy import LatentGroup
    from .models import MultimodalVAE

Program = Callable[[Mapping[str, Tensor], Tensor], None]


def model(vae: MultimodalVAE) -> Program:
    r"""Returns the generative program :math:`p(z) \prod_m p(x_m \mid z)`.

    Its latent sites are ``z_L`` to ``z_1`` and its observed sites ``x_<modality>``, inside the
    plate ``batch``; entries that were not observed are masked out and never read.

    Arguments:
        vae: Any model of the library.

    Returns:
        A Pyro program of the batch `x` and the boolean mask `observed` (B, M).
    """

    def program(x: Mapping[str, Tensor], observed: Tensor) -> None:
        check_observed(observed, vae.modalities)
        pyro.module("mmpoe", vae)
        like = next(vae.parameters()).detach()
        h = None
        with pyro.plate("batch", len(observed), dim=-1):
            for level, group in enumerate(_groups(vae)):
                raw = None if group.prior is None else group.prior(h)
                prior = group.prior_distribution(raw, len(observed), like)
                h = group.merge(h, _sample(vae, level, prior))
            for m, seen in zip(vae.modalities, observed.unbind(dim=-1), strict=True):
                if m in x:
                    with poutine.mask(mask=cast("torch.BoolTensor", seen)):
                        pyro.sample(f"x_{m}", vae.decoders[m](h), obs=fill(x[m], seen))

    return program


def guide(vae: MultimodalVAE) -> Program:
    r"""Returns the inference program :math:`\prod_l q(z_l \mid z_{>l}, x_r)`, given all observed.

    Arguments:
        vae: Any model of the library.

    Returns:
        A Pyro program of the batch `x` and the boolean mask `observed` (B, M).
    """

    def program(x: Mapping[str, Tensor], observed: Tensor) -> None:
        check_observed(observed, vae.modalities)
        pyro.module("mmpoe", vae)
        encodings = vae.encode(x, observed)
        h = None
        with pyro.plate("batch", len(observed), dim=-1):
            for level, group in enumerate(_groups(vae)):
                step = group(h, level, encodings, observed, sample=False)
                h = group.merge(h, _sample(vae, level, step.posterior))

    return program


def _sample(vae: MultimodalVAE, level: int, distribution: DiagNormal) -> Tensor:
    z = pyro.sample(f"z_{len(vae.groups) - level}", distribution)
    return cast("torch.Tensor", z)


def _groups(vae: MultimodalVAE) -> list[LatentGroup]:
    return cast("list[LatentGroup]", list(vae.groups))

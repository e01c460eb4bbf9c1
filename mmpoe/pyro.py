r"""The same networks as a Pyro model and guide.

The evidence lower bound that Pyro's :class:`~pyro.infer.TraceMeanField_ELBO` computes for the pair
is the one of :func:`mmpoe.elbo <mmpoe.objectives.elbo>`, with everything observed given, and they
raise the same errors. The parameters of a model stand in Pyro's store under ``mmpoe``, or, if
another model does, under ``mmpoe_2`` and so on.
"""

from __future__ import annotations

__all__ = ["guide", "model"]

from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, cast

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import param_with_module_name
from torch import Tensor

from .distributions import DiagNormal
from .missing import check_names, check_observed, fill
from .models.inputs import check_entries

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
        check_names(list(x), vae.modalities, argument="x")
        for m, seen in zip(vae.modalities, observed.unbind(dim=-1), strict=True):
            if m in x or bool(seen.any()):
                check_entries(x, m, seen, None, finite=vae.validate)
        _register(vae)
        like = next(vae.parameters()).detach()
        h = None
        with pyro.plate("batch", len(observed), dim=-1):
            for level, group in enumerate(_groups(vae)):
                raw = None if group.prior is None else group.prior(h)
                prior = group.prior_distribution(raw, len(observed), like)
                h = group.merge(h, _sample(vae, level, prior))
            for m, seen in zip(vae.modalities, observed.unbind(dim=-1), strict=True):
                if m not in x:
                    continue
                p = vae.decoders[m](h)
                shape = (len(observed), *p.event_shape)
                if x[m].shape != shape:
                    raise ValueError(
                        "'x' should have one row per row of 'observed' and the shape of what is "
                        f"decoded, {shape}, but {m!r} has shape {tuple(x[m].shape)}."
                    )
                with poutine.mask(mask=cast("torch.BoolTensor", seen)):
                    pyro.sample(f"x_{m}", p, obs=fill(x[m], seen))

    return program


def guide(vae: MultimodalVAE) -> Program:
    r"""Returns the inference program :math:`\prod_l q(z_l \mid z_{>l}, x_r)`, given all observed.

    Arguments:
        vae: Any model of the library.

    Returns:
        A Pyro program of the batch `x` and the boolean mask `observed` (B, M).
    """

    def program(x: Mapping[str, Tensor], observed: Tensor) -> None:
        check_names(list(x), vae.modalities, argument="x")
        _register(vae)
        encodings = vae.encode(x, observed)  # checks the rest
        h = None
        with pyro.plate("batch", len(observed), dim=-1):
            for level, group in enumerate(_groups(vae)):
                step = group(h, level, encodings, observed, sample=False)
                h = group.merge(h, _sample(vae, level, step.posterior))

    return program


def _register(vae: MultimodalVAE) -> None:
    """Registers the parameters under the first name that no other model has in Pyro's store."""
    store = pyro.get_param_store()
    parameters = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    for name, p in parameters.items():
        if not p.is_contiguous():
            raise ValueError(
                "'vae' should have contiguous parameters, since Pyro trains copies of others, "
                f"but {name!r} has strides {p.stride()}."
            )

    for number in count(1):
        prefix = "mmpoe" if number == 1 else f"mmpoe_{number}"
        names = {param_with_module_name(prefix, name): p for name, p in parameters.items()}
        if all(name not in store or store[name] is p for name, p in names.items()):
            pyro.module(prefix, vae)
            return


def _sample(vae: MultimodalVAE, level: int, distribution: DiagNormal) -> Tensor:
    z = pyro.sample(f"z_{len(vae.groups) - level}", distribution)
    return cast("torch.Tensor", z)


def _groups(vae: MultimodalVAE) -> list[LatentGroup]:
    return cast("list[LatentGroup]", list(vae.groups))

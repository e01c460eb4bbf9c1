r"""The same networks as a Pyro model and guide.

The evidence lower bound that Pyro's :class:`~pyro.infer.TraceMeanField_ELBO` computes for the pair
is the one of :func:`mmpoe.elbo <mmpoe.objectives.elbo>`, with everything observed given, and they
raise the same errors. If the posterior is a mixture, the guide draws one component for each row,
as the model does. The parameters of a model stand in Pyro's store under ``mmpoe``, or, if
another model does, under ``mmpoe_2`` and so on.
"""

from __future__ import annotations

__all__ = ["guide", "model"]

from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Protocol, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, TorchDistribution
from pyro.params.param_store import param_with_module_name
from torch import Tensor

from .distributions import DiagNormal
from .hierarchy import State
from .likelihoods._scoring import check_scored, prepared
from .missing import check_names, check_observed, valid_of, with_valid
from .models._inputs import check_entries, draw_component

if TYPE_CHECKING:
    from .models import MultimodalVAE


class Program(Protocol):
    """A Pyro program of a batch, what was observed of it, and which elements count."""

    def __call__(
        self,
        x: Mapping[str, Tensor],
        observed: Tensor,
        valid: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Runs the program."""
        ...


def model(vae: MultimodalVAE) -> Program:
    r"""Returns the generative program :math:`p(z) \prod_m p(x_m \mid z)`.

    Its latent sites are ``z_L`` to ``z_1`` and its observed sites ``x_<modality>``, inside the
    plate ``batch``; entries that were not observed are masked out and never read. Without
    gradients, as inside :class:`~pyro.infer.Predictive`, their values are draws, of modalities
    that the batch lacks as well.

    Arguments:
        vae: Any model of the library.

    Returns:
        A Pyro program of the batch `x` and the boolean mask `observed` (B, M), and optionally of
        `valid`, which elements inside an entry to score, see
        :func:`mmpoe.elbo <mmpoe.objectives.elbo>`.
    """

    def program(
        x: Mapping[str, Tensor],
        observed: Tensor,
        valid: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_observed(observed, vae.modalities)
        check_names(list(x), vae.modalities, argument="x")
        valid = valid_of(x) if valid is None else valid
        check_names(list(valid), vae.modalities, argument="valid")
        for m, seen in zip(vae.modalities, observed.unbind(dim=-1), strict=True):
            if m in x or bool(seen.any()):
                check_entries(x, m, seen, None, finite=False)
        _register(vae)
        none = torch.zeros_like(observed)
        with pyro.plate("batch", len(observed), dim=-1):
            # the posterior given nothing is the prior
            q = vae.infer(vae.encode(x, none), none, z=partial(_sample, vae))
            for m, seen in zip(vae.modalities, observed.unbind(dim=-1), strict=True):
                if m in x:
                    p, target = _scored(vae, m, q.state, x[m], seen, valid.get(m))
                elif not torch.is_grad_enabled():
                    p, target = cast("TorchDistribution", vae.decode(q.state, [m])[m]), None
                else:
                    continue
                with poutine.mask(mask=cast("torch.BoolTensor", seen)):
                    pyro.sample(f"x_{m}", p, obs=_drawn(p, target, seen, valid.get(m)))

    return program


def guide(vae: MultimodalVAE) -> Program:
    r"""Returns the inference program :math:`\prod_l q(z_l \mid z_{>l}, x_r)`, given all observed.

    Arguments:
        vae: Any model of the library.

    Returns:
        A Pyro program of the same arguments as that of :func:`model`.
    """

    def program(
        x: Mapping[str, Tensor],
        observed: Tensor,
        valid: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_names(list(x), vae.modalities, argument="x")
        check_observed(observed, vae.modalities)
        _register(vae)
        encodings = vae.encode(with_valid(x, valid), observed)  # checks the rest
        given = draw_component(observed, vae.family)
        with pyro.plate("batch", len(observed), dim=-1):
            vae.infer(encodings, given, z=partial(_sample, vae))

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


def _scored(
    vae: MultimodalVAE, m: str, state: State, x: Tensor, seen: Tensor, valid: Tensor | None
) -> tuple[TorchDistribution, Tensor]:
    """The likelihood of a modality and the entries to score, 0 wherever they are missing."""
    likelihood = vae.decode(state, [m])[m]
    check_scored(likelihood, x, seen, m, valid, values=vae.validate)
    likelihood, target = prepared(likelihood, x, seen, valid=valid)
    p = cast("TorchDistribution", likelihood)
    if valid is not None:
        target = torch.where(valid, target, 0)
        elements = p.base_dist if isinstance(p, Independent) else p
        p = elements.mask(valid.expand(target.shape)).to_event(len(p.event_shape))
    return p, target


def _drawn(
    p: TorchDistribution, target: Tensor | None, seen: Tensor, valid: Tensor | None
) -> Tensor:
    """The entries of a site: without gradients, draws in place of what was not observed."""
    if torch.is_grad_enabled():
        assert target is not None
        return target
    drawn = p.sample()
    if target is None:
        return drawn
    kept = seen.reshape(-1, *(1,) * (target.dim() - 1))
    kept = kept if valid is None else kept & valid
    return torch.where(kept, target.to(drawn.dtype), drawn)


def _sample(vae: MultimodalVAE, level: int, distribution: DiagNormal) -> Tensor:
    z = cast("Tensor", pyro.sample(f"z_{len(vae.groups) - level}", distribution))
    if z.dim() > distribution.loc.dim():
        raise ValueError(
            f"The latents of a sample should have shape {tuple(distribution.loc.shape)}, but have "
            f"{tuple(z.shape)}: set 'vectorize_particles' (or 'parallel') to False, so that Pyro "
            "runs the program once for each particle."
        )
    return z

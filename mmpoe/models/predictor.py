r"""Predictions as a module from tensors to tensors, for what deploys models."""

from __future__ import annotations

__all__ = ["Predictor"]

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmpoe.distributions import Draws
from mmpoe.hierarchy import Experts
from mmpoe.missing import Batch, check_names

from ._inputs import components_of, given_mask
from .core import MultimodalVAE


class Predictor(nn.Module):
    r"""The means that a model predicts at temperature 0, as a module to compile or to export.

    It is what :meth:`MultimodalVAE.predict <mmpoe.models.MultimodalVAE.predict>` computes,
    without what depends on the data in Python: one compiled or exported program serves any pattern
    of missing modalities, whatever the missing entries hold. Nothing is checked inside such a
    program: a NaN that is observed comes out as NaN.

    Arguments:
        model: The model.
        targets: The modalities to predict; by default, all of them.
        experts: The experts to infer with, as for ``predict``: the matched ones by default, if the
            model has any.
        product: Whether to condition on the product of all that is given if the posterior is a
            mixture, as for ``predict``.

    Raises:
        ValueError: If a target is unknown.

    Example:
        >>> from mmpoe.models import vector_mmhvae
        >>> predictor = Predictor(vector_mmhvae({"a": 3, "b": 2}), targets=["b"]).eval()
        >>> batch = torch.export.Dim("batch")
        >>> program = torch.export.export(
        ...     predictor,
        ...     ({"a": torch.zeros(4, 3)}, torch.ones(4, 2).bool()),
        ...     dynamic_shapes=({"a": {0: batch}}, {0: batch}),
        ... )
        >>> program.module()({"a": torch.zeros(9, 3)}, torch.ones(9, 2).bool())["b"].shape
        torch.Size([9, 2])
    """

    def __init__(
        self,
        model: MultimodalVAE,
        targets: Sequence[str] | None = None,
        experts: Experts | None = None,
        product: bool = False,
    ) -> None:
        super().__init__()
        self.experts: Experts = model.best_experts if experts is None else experts
        self.family = "full" if product else model.family_of(self.experts)
        if targets is not None:
            check_names(targets, model.modalities, argument="targets")
        self.model = model
        self.targets = list(model.modalities if targets is None else targets)

    def forward(
        self,
        x: Mapping[str, Tensor],
        given: Tensor,
        context: Mapping[str, Tensor] | None = None,
        valid: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        r"""Returns the mean of each target.

        Arguments:
            x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
            given: What to condition on, boolean, with shape :math:`(B, M)`.
            context: The covariates by name, see :class:`mmpoe.missing.Batch`.
            valid: For some modalities, the elements that were observed.
        """
        model = self.model
        if context is not None or valid is not None:
            x = Batch(x, context=context, valid=valid)
        given = given_mask(x, given, model.modalities, given)
        encodings = model.encode(x, given)
        component, weight = components_of(given, self.family)
        q = model.infer(encodings, component, temperature=0.0, experts=self.experts)
        predicted = model.decode(q.state, self.targets)
        if weight is None:
            return {m: p.mean for m, p in predicted.items()}
        return {m: Draws(p, weight).mean for m, p in predicted.items()}

r"""The loss of matched experts: they learn the posterior of complete data from a part of them."""

from __future__ import annotations

__all__ = ["posterior_matching"]

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmpoe.models import MultimodalVAE

from ._matching import match


def posterior_matching(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor | Sequence[str] | None = None,
    *,
    teacher: str = "complete",
) -> Tensor:
    r"""Returns how far the matched experts are from the posterior of all that was observed.

    .. math::
        \mathcal{M}_s(x_r) = \sum_l \mathrm{KL}\big( q(z_l \mid z_{>l}, x_r) \,\|\,
        r(z_l \mid z_{>l}, x_s) \big), \qquad z \sim q(z \mid x_r)

    It is a loss: lower is better. The teacher :math:`q` is not trained by it. Gradients reach the
    matched experts :math:`r` alone, so that adding it to another objective changes no other
    gradient by a single bit. On average over data, its minimum is

    .. math:: r(z \mid x_s) = \mathrm{E} \big[ q(z \mid x_r) \; | \; x_s \big],

    the posterior of a random complete sample that has this :math:`x_s`: as wide as it should be to
    draw what is missing. Up to a constant, the loss is :math:`-\mathrm{E}_q[\log r(z \mid x_s)]`
    with the expectation over each group in closed form; if the posterior is a mixture, a component
    is drawn as teacher, which changes the constant only.

    All but the matched experts are in evaluation mode meanwhile.

    Arguments:
        model: The model, with matched experts, see
            :func:`mmpoe.imputation.add_matched_experts`.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read.
        observed: What was observed, :math:`r`, boolean, with shape :math:`(B, M)`.
        given: The subset of it that the matched experts see, :math:`s`: a boolean mask of shape
            :math:`(B, M)` or names. By default, one non-empty subset for each row is drawn
            uniformly; of an incomplete row, a proper one.
        teacher: Which rows teach, and what. The posterior of an incomplete row has itself been
            trained to be too narrow if the model was trained across modalities, and must not teach
            then:

            - ``"complete"``: rows that observed all modalities;
            - ``"bootstrap"``: these, and incomplete rows teach what the *matched* experts say of
              all that they observed. That feeds back into itself and can diverge where complete
              rows are few; :func:`mmpoe.calibrate` holds the matched experts that teach fixed;
            - ``"all"``: every row, by the posterior. Only if the model was trained to score
              nothing but what it was given.

    Returns:
        The loss, in nats, with shape :math:`(B)`; 0 for rows that do not teach.

    Raises:
        ValueError: If the model has no matched experts, `teacher` is unknown, `given` is no subset
            of `observed`, or an observed entry is absent or not finite.

    References:
        | Posterior Matching for Arbitrary Conditioning (Strauss & Oliva, 2022)
        | https://arxiv.org/abs/2201.12414
    """
    return match(model, x, observed, given, teacher=teacher, by=model)

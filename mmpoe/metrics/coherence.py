r"""Coherence: agreement of generated modalities in their content, as classifiers see it.

The classifiers are the user's, and so are their errors: report their accuracy on real data beside
the coherence, which cannot be expected to exceed it.
"""

from __future__ import annotations

__all__ = ["conditional_coherence", "joint_coherence"]

from collections.abc import Mapping

import torch
from torch import Tensor


def conditional_coherence(
    predictions: Mapping[str, Tensor], labels: Tensor, *, generated: Tensor | None = None
) -> Tensor:
    r"""Returns whether each generated modality shows the label of what it was conditioned on.

    Arguments:
        predictions: For each of :math:`M` modalities, the labels that a classifier gives to what
            was generated, with shape :math:`(B)`.
        labels: The labels of the conditions, with shape :math:`(B)`.
        generated: Which entries were generated and count, boolean, with shape :math:`(B, M)`,
            columns in the order of `predictions`; all if None. What was given is no generation.

    Returns:
        1 where the labels agree, 0 where they do not, NaN where nothing was generated, with shape
        :math:`(B, M)`. ``nanmean(dim=0)`` is the coherence of each target.

    Raises:
        ValueError: If labels are not integers of shape :math:`(B)`, or `generated` is not a
            boolean matrix with one column per modality.

    References:
        | Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
          (Shi et al., 2019)
        | https://arxiv.org/abs/1911.03393

    Example:
        >>> predictions = {"svhn": torch.tensor([3, 5]), "text": torch.tensor([3, 7])}
        >>> conditional_coherence(predictions, torch.tensor([3, 7]))
        tensor([[1., 1.],
                [0., 1.]])
    """
    predicted, generated = _stack(predictions, generated)
    _check_labels(labels, len(predicted), argument="labels")
    agree = predicted == labels.to(predicted.device)[:, None]
    return torch.where(generated, agree.to(torch.get_default_dtype()), torch.nan)


def joint_coherence(
    predictions: Mapping[str, Tensor], *, generated: Tensor | None = None
) -> Tensor:
    r"""Returns whether all modalities that were generated for a sample show the same label.

    Arguments:
        predictions: For each of :math:`M` modalities, the labels that a classifier gives to what
            was generated, with shape :math:`(B)`.
        generated: Which entries were generated and count, boolean, with shape :math:`(B, M)`,
            columns in the order of `predictions`; all if None.

    Returns:
        1 where all agree, 0 where they do not, NaN for samples with fewer than two generated
        modalities, with shape :math:`(B)`. Chance is :math:`C^{1 - M}` for :math:`C` balanced
        classes.

    Raises:
        ValueError: As :func:`conditional_coherence`.

    References:
        | Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
          (Shi et al., 2019)
        | https://arxiv.org/abs/1911.03393

    Example:
        >>> joint_coherence({"svhn": torch.tensor([3, 5]), "text": torch.tensor([3, 7])})
        tensor([1., 0.])
    """
    predicted, generated = _stack(predictions, generated)
    first = generated.int().argmax(dim=1, keepdim=True)  # (B, 1)
    agree = (predicted == predicted.gather(1, first)) | ~generated  # (B, M)
    together = agree.all(dim=1).to(torch.get_default_dtype())
    return torch.where(generated.sum(dim=1) > 1, together, torch.nan)


def _stack(predictions: Mapping[str, Tensor], generated: Tensor | None) -> tuple[Tensor, Tensor]:
    """The predicted labels and what counts of them, both (B, M)."""
    if not predictions:
        raise ValueError("'predictions' should hold at least one modality, but holds none.")
    rows = next(iter(predictions.values())).numel()
    for m, labels in predictions.items():
        _check_labels(labels, rows, argument="predictions", name=f"{m!r} ")
    predicted = torch.stack(list(predictions.values()), dim=1)  # (B, M)
    if generated is None:
        return predicted, torch.ones_like(predicted, dtype=torch.bool)
    if generated.dtype != torch.bool or generated.shape != predicted.shape:
        raise ValueError(
            f"'generated' should be boolean with shape (B, M), {tuple(predicted.shape)}, "
            f"but has dtype {generated.dtype} and shape {tuple(generated.shape)}."
        )
    return predicted, generated.to(predicted.device)


def _check_labels(labels: Tensor, rows: int, argument: str, name: str = "") -> None:
    if labels.is_floating_point() or labels.shape != (rows,):
        raise ValueError(
            f"'{argument}' should hold integer labels with shape ({rows},), "
            f"but {name}has dtype {labels.dtype} and shape {tuple(labels.shape)}."
        )

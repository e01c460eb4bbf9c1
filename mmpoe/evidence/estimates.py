r"""Importance-weighted estimates of the evidence, by samples from a posterior."""

from __future__ import annotations

__all__ = [
    "effective_sample_size",
    "log_conditional",
    "log_marginal",
    "log_predictive",
    "log_weights",
]

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmpoe.hierarchy import Encodings, Experts
from mmpoe.missing import check_observed, with_valid
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import subset_mask

from ._samples import log_ratio, propose


def log_weights(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor | Sequence[str] | None = None,
    *,
    samples: int,
    experts: Experts = "trained",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Returns the log importance weights of samples from a posterior.

    .. math::
        \log w_k = \sum_{m \in r} \log p(x_m \mid z_k)
        + \sum_l \big[ \log p(z_{k,l} \mid z_{k,>l}) - \log q(z_{k,l} \mid z_{k,>l}, x_s) \big],
        \qquad z_k \sim q(z \mid x_s)

    The mean of :math:`w_k` is an unbiased estimate of :math:`p(x_r)`, whatever :math:`x_s` the
    samples condition on. If the posterior is a mixture, its components are drawn systematically,
    each as often as it weighs up to rounding, and :math:`q` is the density of the whole mixture.

    Encoders run once, decoders only for what is scored, and samples pass through the model in
    portions: without gradients, memory stays that of one portion.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`. Missing
            entries are never read.
        observed: What to score, :math:`r`, boolean, with shape :math:`(B, M)`.
        given: What the samples condition on, :math:`s`: a boolean mask of shape :math:`(B, M)`, or
            the names of some modalities. By default, what is scored.
        samples: The number of samples :math:`K` of each row.
        experts: The experts to sample from, ``"trained"`` or ``"matched"``. The matched ones, see
            :func:`mmpoe.calibrate`, are the better choice for a part of what a model trained
            across modalities has seen: its own posterior is then too narrow, and the weights may
            have no variance at all.
        valid: Which elements of each modality were observed, see :func:`elbo`; those of the batch
            by default. Encoders see 0 in place of others.

    Returns:
        The log-weights, in nats, with shape :math:`(K, B)`.

    Raises:
        ValueError: If the masks do not have one boolean column per modality, an entry that is read
            is absent or not finite, or `samples` is not positive.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> x, _ = oracle.sample(5)
        >>> observed = torch.ones(5, 2, dtype=torch.bool)
        >>> log_w = log_weights(oracle.model(), x, observed, samples=3)
        >>> torch.allclose(log_w, oracle.log_prob(x, observed))  # with the exact posterior
        True
    """
    check_observed(observed, model.modalities)
    given = observed if given is None else given
    given = subset_mask(given, model.modalities, len(observed))
    x = with_valid(x, valid)
    weights = _Weights(model, model.encode(x, given), x, experts)
    return weights.log(observed, given, samples)


def log_marginal(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    observed: Tensor,
    given: Tensor | Sequence[str] | None = None,
    samples: int = 1000,
    *,
    experts: Experts = "trained",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Estimates the evidence from importance weights.

    .. math:: \log \hat{p}(x_r) = \log \frac{1}{K} \sum_{k=1}^{K} w_k

    In expectation, it is a lower bound of :math:`\log p(x_r)` that rises with :math:`K`; a small
    :func:`effective_sample_size` of the :func:`log_weights` says that it is loose. A large one
    says nothing by itself: a posterior that is too narrow never sees the weights that it lacks. As
    an objective with a few samples, it is the importance-weighted bound. So it records gradients:
    to estimate alone, call it under :class:`torch.no_grad`, which takes less than half of the
    memory.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        observed: What to score, boolean, with shape :math:`(B, M)`.
        given: What the samples condition on; by default, what is scored.
        samples: The number of samples :math:`K`.
        experts: The experts to sample from, see :func:`log_weights`.
        valid: Which elements of each modality to score, see :func:`log_weights`.

    Returns:
        The estimate, in nats, with shape :math:`(B)`; 0 for a row that observed nothing and is
        given nothing.

    Raises:
        ValueError: As :func:`log_weights`.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei &
          Frellsen, 2019)
        | https://arxiv.org/abs/1812.02633
    """
    log_w = log_weights(model, x, observed, given, samples=samples, experts=experts, valid=valid)
    return _log_mean_exp(log_w)


def log_conditional(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    targets: Tensor | Sequence[str],
    given: Tensor | Sequence[str],
    samples: int = 1000,
    *,
    experts: Experts = "trained",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Estimates the evidence of some modalities given others.

    .. math:: \log \hat{p}(x_t \mid x_s) = \log \hat{p}(x_t, x_s) - \log \hat{p}(x_s)

    This is the difference of two estimates that are both too low on average, each with samples
    from a posterior of its own: it is consistent, but no bound, and can err on either side.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        targets: What to score, :math:`t`: a boolean mask of shape :math:`(B, M)`, or names.
        given: What to condition on, :math:`s`: a mask or names.
        samples: The number of samples :math:`K` of each of the two estimates.
        experts: The experts to sample from, for both estimates, see :func:`log_weights`.
        valid: Which elements of each modality to score, see :func:`log_weights`.

    Returns:
        The estimate, in nats, with shape :math:`(B)`; 0 for a row without targets beyond what is
        given.

    Raises:
        ValueError: As :func:`log_weights`.
    """
    size = _size(x)
    given = subset_mask(given, model.modalities, size)
    both = given | subset_mask(targets, model.modalities, size, argument="targets")
    x = with_valid(x, valid)
    weights = _Weights(model, model.encode(x, both), x, experts)
    joint, part = (_log_mean_exp(weights.log(mask, mask, samples)) for mask in (both, given))
    return torch.where((both != given).any(dim=1).to(joint.device), joint - part, 0)


def log_predictive(
    model: MultimodalVAE,
    x: Mapping[str, Tensor],
    targets: Tensor | Sequence[str],
    given: Tensor | Sequence[str],
    samples: int = 1000,
    *,
    experts: Experts = "trained",
    valid: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Estimates the log-density that predictions from a posterior give to the truth.

    .. math::
        \log \frac{1}{K} \sum_{k=1}^{K} p(x_t \mid z_k), \qquad z_k \sim q(z \mid x_s)

    It scores what :func:`mmpoe.impute` draws, and is a strictly proper score of it. It is
    :func:`log_conditional` only if the posterior is exact. Only targets are decoded.

    Arguments:
        model: The model.
        x: The batch, a mapping from modality names to tensors of shape :math:`(B, *)`.
        targets: What to score, :math:`t`: a boolean mask of shape :math:`(B, M)`, or names.
        given: What to condition on, :math:`s`: a mask or names.
        samples: The number of samples :math:`K`.
        experts: The experts to sample from, see :func:`log_weights`.
        valid: Which elements of each modality to score, see :func:`log_weights`.

    Returns:
        The estimate, in nats, with shape :math:`(B)`, on average too low.

    Raises:
        ValueError: As :func:`log_weights`.
    """
    size = _size(x)
    targets = subset_mask(targets, model.modalities, size, argument="targets")
    given = subset_mask(given, model.modalities, size)
    x = with_valid(x, valid)
    parts = propose(model, model.encode(x, given), given, x, samples, experts=experts)
    log_p = [model.log_likelihood(q.state, x, targets) for q in parts]
    return _log_mean_exp(torch.cat(log_p))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Returns how many samples of equal weight the weighted samples are worth.

    .. math:: \frac{(\sum_k w_k)^2}{\sum_k w_k^2} \in [1, K]

    For a normal target and a normal proposal of :math:`\rho` times its variance in each of
    :math:`D` dimensions, the share :math:`\mathrm{ESS} / K` tends to :math:`(\sqrt{2 \rho - 1} /
    \rho)^D`; for :math:`\rho \le 1/2`, to 0.

    Arguments:
        log_weights: The log-weights, with shape :math:`(K, B)`.

    Returns:
        The size, with shape :math:`(B)`.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0], [0.0], [-100.0]]))
        tensor([2.])
    """
    return (2 * log_weights.logsumexp(dim=0) - (2 * log_weights).logsumexp(dim=0)).exp()


class _Weights(NamedTuple):
    """Weighs samples of one batch, which is encoded once."""

    model: MultimodalVAE
    encodings: Encodings
    x: Mapping[str, Tensor]
    experts: Experts

    def log(self, observed: Tensor, given: Tensor, samples: int) -> Tensor:
        """Returns the log-weights, with shape (K, B), see :func:`log_weights`."""
        model, encodings, x, experts = self
        return torch.cat(
            [
                log_ratio(model, encodings, given, q, experts=experts)
                + model.log_likelihood(q.state, x, observed)
                for q in propose(model, encodings, given, x, samples, experts=experts)
            ]
        )


def _log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(dim=0) - math.log(len(log_w))


def _size(x: Mapping[str, Tensor]) -> int:
    if not x:
        raise ValueError("'x' should hold at least one modality.")
    return len(next(iter(x.values())))

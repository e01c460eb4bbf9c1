r"""Whether the modalities of a sample fit together: p-values against held-out data."""

from __future__ import annotations

__all__ = ["ConsistencyTest"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpoe.evidence import log_marginal, log_predictive
from mmpoe.missing import Batch, check_names
from mmpoe.models import MultimodalVAE
from mmpoe.models._inputs import held, subset_mask
from mmpoe.nn.modes import evaluation


class ConsistencyTest:
    r"""Tests whether each modality of a sample fits the others, as it does in held-out data.

    A modality that is swapped with another sample's, mislabelled, shifted or damaged is
    surprising in the light of the others:

    .. math:: S_m(x) = \log p(x_m) - \log p(x_m \mid x_{s \setminus m})

    This is the negative pointwise mutual information, in nats. No other score tells samples with
    swapped entries better from sound ones, if both densities are exact (Neyman & Pearson): entries
    that are hard to describe in any case do not count. The first is estimated by
    :func:`mmpoe.evidence.log_marginal`, the second by :func:`mmpoe.evidence.log_predictive`. The
    conformal p-value is the rank of the score among the N held-out samples that have these
    modalities, each reduced to them:

    .. math:: p_m = \frac{1 + \#\{n : S_m(x_n) \ge S_m(x)\}}{N + 1}

    For a sample that is exchangeable with the held-out ones,
    :math:`\Pr(p_m \le \alpha) \le \alpha`, whatever the model. No p-value is below
    :math:`1 / (N + 1)`. Reducing the held-out samples presumes that modalities are missing
    completely at random.

    Arguments:
        model: The model.
        x: Held-out samples: none that the model was trained on.
        observed: What was observed in them, a boolean mask of shape :math:`(B, M)`; by default,
            all that `x` holds.
        samples: The number of samples K of each estimate.

    Raises:
        ValueError: If a mask or name does not fit the model, or `samples` is not positive.

    References:
        | Testing for Outliers with Conformal p-values (Bates et al., 2023)
        | https://doi.org/10.1214/22-AOS2244

    Example:
        >>> from mmpoe.oracles import LinearGaussian
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> test = ConsistencyTest(oracle.model(), oracle.sample(50)[0])
        >>> test.p_values(oracle.sample(4)[0]).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        model: MultimodalVAE,
        x: Mapping[str, Tensor],
        observed: Tensor | None = None,
        *,
        samples: int = 32,
    ) -> None:
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"'samples' should be an integer of at least 1, but is {samples!r}.")
        self.model, self.samples = model, samples
        self._x, self._observed = Batch.of(x), _observed(model, x, observed)
        self._held_out: dict[tuple[int, tuple[bool, ...]], Tensor] = {}

    def p_values(
        self, x: Mapping[str, Tensor], observed: Tensor | Sequence[str] | None = None
    ) -> Tensor:
        r"""Returns the p-value of each modality in the light of the others.

        Arguments:
            x: The samples, a mapping from modality names to tensors of shape :math:`(B, *)`.
            observed: What was observed in them: a boolean mask of shape :math:`(B, M)`, or names;
                by default, all that `x` holds.

        Returns:
            The p-values, with shape :math:`(B, M)`; NaN where the modality or all others are
            missing, or no held-out sample has the same modalities.

        Raises:
            ValueError: If a mask or name does not fit the model.
        """
        observed = _observed(self.model, x, observed)
        scores = self.scores(x, observed)
        p = torch.full_like(scores, torch.nan, dtype=torch.float64)
        patterns, which = observed.unique(dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            rows = (which == number).nonzero()[:, 0]
            for m in pattern.nonzero()[:, 0].tolist() if pattern.sum() > 1 else []:
                known = self._known(m, pattern)
                if len(known):
                    above = (known[:, None] >= scores[rows, m]).sum(dim=0)
                    p[rows, m] = (1 + above).double() / (len(known) + 1)
        return p

    def flags(
        self,
        x: Mapping[str, Tensor],
        observed: Tensor | Sequence[str] | None = None,
        *,
        rate: float = 0.05,
    ) -> Tensor:
        r"""Returns which modalities do not fit, at a rate of false alarms per sample.

        The p-values of a sample are multiplied by their number (Bonferroni), so that at most that
        share of sound samples has any flag.

        Arguments:
            x: The samples.
            observed: What was observed in them.
            rate: The rate of false alarms, between 0 and 1.

        Returns:
            The flags, boolean, with shape :math:`(B, M)`.

        Raises:
            ValueError: As :meth:`p_values`, or if `rate` is not between 0 and 1.
        """
        if not 0 < rate < 1:
            raise ValueError(f"'rate' should be between 0 and 1, but is {rate!r}.")
        p = self.p_values(x, observed)
        number = (~p.isnan()).sum(dim=1, keepdim=True)
        return p * number <= rate * (1 + 1e-12)  # whatever the last digit of the product

    def scores(
        self, x: Mapping[str, Tensor], observed: Tensor | Sequence[str] | None = None
    ) -> Tensor:
        r"""Returns how surprising each modality is in the light of the others.

        Arguments:
            x: The samples.
            observed: What was observed in them.

        Returns:
            The scores :math:`S_m`, in nats, with shape :math:`(B, M)`; NaN where the modality or
            all others are missing.
        """
        observed = _observed(self.model, x, observed)
        columns = [self._score(m, x, observed) for m in range(len(self.model.modalities))]
        return torch.stack(columns, dim=1)

    def _known(self, modality: int, pattern: Tensor) -> Tensor:
        """The scores of one modality in the held-out samples that have a pattern."""
        key = modality, tuple(pattern.tolist())
        if key not in self._held_out:
            pattern = pattern.to(self._observed.device)
            rows = (self._observed | ~pattern).all(dim=1).nonzero()[:, 0]
            reduced = pattern.expand(len(rows), -1)
            self._held_out[key] = self._score(modality, self._x.take(rows), reduced)
        return self._held_out[key]

    def _score(self, modality: int, x: Mapping[str, Tensor], observed: Tensor) -> Tensor:
        """The score of one modality, with shape (B)."""
        only = torch.zeros_like(observed)
        only[:, modality] = observed[:, modality]
        others = observed & ~only
        tested = (only.any(dim=1) & others.any(dim=1)).nonzero()[:, 0]
        score = torch.full((len(observed),), torch.nan, device=observed.device)
        if not len(tested):
            return score
        batch = Batch.of(x).take(tested)
        only, others = only[tested], others[tested]
        with torch.no_grad(), evaluation(self.model.modules()):
            alone = log_marginal(self.model, batch, only, samples=self.samples)
            rest = log_predictive(
                self.model, batch, only, others, self.samples, experts=self.model.best_experts
            )
        return score.to(alone).index_copy(0, tested, alone - rest)


def _observed(
    model: MultimodalVAE, x: Mapping[str, Tensor], observed: Tensor | Sequence[str] | None
) -> Tensor:
    check_names(list(x), model.modalities, argument="x")
    if not x:
        raise ValueError("'x' should hold at least one modality.")
    first = next(iter(x.values()))
    observed = held(x, model.modalities) if observed is None else observed
    return subset_mask(observed, model.modalities, len(first), "observed").to(first.device)

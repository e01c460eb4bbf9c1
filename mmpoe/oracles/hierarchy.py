r"""The hierarchical linear-Gaussian model, with one latent vector per level."""

from __future__ import annotations

__all__ = ["LinearGaussianHierarchy"]

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from mmpoe.hierarchy import LatentGroup
from mmpoe.models import MMHVAE
from mmpoe.posteriors import CommonNoisePoE, PoE, Posterior

from ._chain import Step, carry, check_steps, finest_prior, without_noise
from ._inputs import check_diagonal, read
from ._networks import ChainEncoder, Expert, JointPoE, Transition, likelihood, probe
from .flat import LinearGaussian

FUSIONS = ("joint", "common_noise", "poe")


class LinearGaussianHierarchy:
    r"""A chain of linear-Gaussian levels, of which everything is known exactly.

    .. math::
        z_L \sim \mathcal{N}(0, I), \qquad
        z_l \mid z_{l+1} \sim \mathcal{N}(a_l \odot z_{l+1} + c_l, \operatorname{diag}(q_l)),
        \qquad x_m \mid z_1 \sim \mathcal{N}(W_m z_1 + b_m, \Psi_m)

    What a subset says about level l has, in each dimension, a precision :math:`j_l` and a natural
    mean :math:`h_l`:

    .. math::
        j_1 = \sum_{m \in s} \Lambda_m, \quad h_1 = \sum_{m \in s} \eta_m, \qquad
        k_l = 1 + q_l j_l, \quad
        j_{l+1} = \frac{a_l^2 j_l}{k_l}, \quad h_{l+1} = \frac{a_l (h_l - j_l c_l)}{k_l}

    Three fusions of the given modalities are compared. Writing :math:`\lambda_m` for the precision
    of what modality m says about level l with :math:`q = 0` below:

    - ``"joint"``: the recursion above, from the sum at :math:`z_1`; the exact posterior.
    - ``"common_noise"``: :math:`j_l = \Lambda / (1 + \kappa_l \Lambda)` with :math:`\Lambda =
      \sum_{m \in s} \lambda_m`, and :math:`\kappa_1 = 0`, :math:`\kappa_{l+1} = (\kappa_l + q_l) /
      a_l^2`; exact as well, in another way.
    - ``"poe"``: the sum of what each modality says alone. It is exact at :math:`z_1`, for a single
      modality, and where modalities share no level but the top. Otherwise it counts the noise
      that they share as if each had its own, and its bound is below the evidence.

    A step whose parameters have shape :math:`(n, D)` puts :math:`n` branches below each of the
    :math:`D` dimensions of the level above: for chains private to each modality, that is the first
    step with :math:`n = M`, and weights that are 0 outside the branch of the modality.

    Batches and masks are those of :class:`LinearGaussian`.

    Arguments:
        weight: For each modality, the weight :math:`W_m`, with shape :math:`(D_m, D_1)`.
        bias: For each modality, the bias :math:`b_m`, with shape :math:`(D_m)`.
        covariance: For each modality, the covariance :math:`\Psi_m`, with shape
            :math:`(D_m, D_m)`. :math:`\Lambda_m` should be diagonal.
        steps: For each level but the top, coarse to fine, the slope :math:`a_l`, intercept
            :math:`c_l` and variance :math:`q_l`, each with shape :math:`(D)`, or :math:`(n, D)`
            for :math:`n` branches: level l then has :math:`n D` dimensions, branch by branch.

    Attributes:
        modalities: The names of the modalities, in the order of the columns of all masks.
        latent_dims: The number of dimensions of each level, coarse to fine.
        flat: The same model of the data with the levels above :math:`z_1` integrated out: a
            :class:`LinearGaussian`, for the posterior of :math:`z_1`, the evidence and the rest.

    Raises:
        ValueError: If shapes do not fit together, a slope is 0, a variance is not positive, or a
            :math:`\Lambda_m` is not diagonal.

    References:
        | A Unifying Review of Linear Gaussian Models (Roweis & Ghahramani, 1999)
        | https://doi.org/10.1162/089976699300016674

    Example:
        >>> oracle = LinearGaussianHierarchy.random(["a", "b"], levels=3, latent_dim=2, data_dim=2)
        >>> x, z = oracle.sample(5)
        >>> both = torch.ones(5, 2, dtype=torch.bool)
        >>> evidence = oracle.log_prob(x, both)
        >>> torch.allclose(oracle.elbo(x, both, both, "common_noise"), evidence)
        True
        >>> bool((oracle.elbo(x, both, both, "poe") < evidence).all())
        True
    """

    def __init__(
        self,
        weight: Mapping[str, Tensor],
        bias: Mapping[str, Tensor],
        covariance: Mapping[str, Tensor],
        steps: Sequence[tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        self.steps = check_steps(steps)
        self.latent_dims = [self.steps[0].slope.shape[1], *(a.numel() for a, _, _ in self.steps)]
        self.flat = LinearGaussian(weight, bias, covariance, *finest_prior(self.steps))
        check_diagonal(self.flat.information)
        self.modalities = self.flat.modalities

    @classmethod
    def random(
        cls,
        modalities: Sequence[str],
        levels: int,
        latent_dim: int,
        data_dim: int,
        *,
        private: bool = False,
        generator: Generator | None = None,
    ) -> LinearGaussianHierarchy:
        """Draws a model.

        Arguments:
            modalities: The names of the modalities.
            levels: The number of levels, at least 2.
            latent_dim: The number of dimensions of the top level.
            data_dim: The number of dimensions of each modality, at least `latent_dim`.
            private: Whether each modality has a chain of its own below the top level; if not, all
                share one chain.
            generator: The random generator, PyTorch's own if None.

        Raises:
            ValueError: If there are too few levels or dimensions.
        """
        if levels < 2:
            raise ValueError(f"'levels' should be at least 2, but is {levels}.")
        leaves = LinearGaussian.random(modalities, latent_dim, data_dim, generator=generator)
        weight, steps = leaves.weight, []
        branches = len(modalities) if private else 1
        if private:
            blank = torch.zeros(data_dim, latent_dim, dtype=torch.float64)
            weight = {
                m: torch.cat([w if other == m else blank for other in modalities], dim=1)
                for m, w in weight.items()
            }

        def uniform(low: float, high: float) -> Tensor:
            draw = torch.rand(shape, generator=generator, dtype=torch.float64)
            return low + (high - low) * draw

        for level in range(levels - 1):
            shape = (branches, latent_dim) if level == 0 else (1, branches * latent_dim)
            sign = 1 - 2 * (uniform(0, 1) < 0.5).double()
            steps.append((sign * uniform(0.5, 1.5), uniform(-0.5, 0.5), uniform(0.2, 1)))
        return cls(weight, leaves.bias, leaves.covariance, steps)

    def messages(
        self, x: Mapping[str, Tensor], given: Tensor | Sequence[str], fusion: str = "joint"
    ) -> list[tuple[Tensor, Tensor]]:
        r"""Returns what the given modalities say about each level, without its prior.

        Arguments:
            x: The batch.
            given: What to condition on.
            fusion: How the modalities are fused: ``"joint"``, ``"common_noise"`` or ``"poe"``.

        Returns:
            For each level, coarse to fine, the precision :math:`j_l` and the natural mean
            :math:`h_l`, each with shape :math:`(B, D_l)`.
        """
        _check_fusion(fusion)
        if fusion == "poe":
            mask, _ = read(x, given, self.flat.data_dims)
            alone = torch.eye(len(self.modalities), dtype=torch.bool)
            each = [self.messages(x, mask & only) for only in alone]
            return [_add(level) for level in zip(*each, strict=True)]

        precision, h = self.flat.message(x, given)
        j = precision.diagonal(dim1=-2, dim2=-1)
        if fusion == "joint":
            return carry(j, h, self.steps)
        noise, messages = self.common_noise(), carry(j, h, without_noise(self.steps))
        return [
            (j / (1 + k * j), h / (1 + k * j)) for k, (j, h) in zip(noise, messages, strict=True)
        ]

    def common_noise(self) -> list[Tensor]:
        r"""Returns the variance :math:`\kappa_l` that all modalities share below each level.

        Returns:
            The variances, coarse to fine, each with shape :math:`(D)`.

        Raises:
            ValueError: If the chain has branches.
        """
        self._check_no_branches()
        noise = [torch.zeros(self.latent_dims[-1], dtype=torch.float64)]
        for a, _, q in reversed(self.steps):
            noise.append(((noise[-1] + q) / a.square())[0])
        return noise[::-1]

    def log_prob(self, x: Mapping[str, Tensor], observed: Tensor) -> Tensor:
        r"""Returns the evidence :math:`\log p(x_r)`, see :meth:`LinearGaussian.log_prob`.

        Arguments:
            x: The batch.
            observed: What was observed.

        Returns:
            The evidence, in nats, with shape :math:`(B)`.
        """
        return self.flat.log_prob(x, observed)

    def elbo(
        self,
        x: Mapping[str, Tensor],
        observed: Tensor,
        given: Tensor | Sequence[str],
        fusion: str = "joint",
    ) -> Tensor:
        r"""Returns the bound on the evidence at the posterior of a subset.

        .. math::
            \mathcal{L}_s(x_r) = \sum_{m \in r} \mathrm{E}_{q(z \mid x_s)} [\log p(x_m \mid z_1)]
            - \sum_l \mathrm{E}_{q(z_{>l} \mid x_s)}
            \mathrm{KL}\big(q(z_l \mid z_{l+1}, x_s) \,\|\, p(z_l \mid z_{l+1})\big)

        Nothing is sampled: it is what :func:`mmpoe.elbo` of :meth:`model` is on average. The
        moments of :math:`q` follow from those of the level above.

        Arguments:
            x: The batch.
            observed: What was observed, and is scored.
            given: What the posterior conditions on.
            fusion: How the modalities are fused: ``"joint"``, ``"common_noise"`` or ``"poe"``.

        Returns:
            The bound, in nats, with shape :math:`(B)`.
        """
        messages = self.messages(x, given, fusion)
        one = torch.ones(1, self.latent_dims[0], dtype=torch.float64)
        top = Step(0 * one, 0 * one, one)  # the prior of z_L, as a step

        mean = variance = torch.zeros(self.latent_dims[0], dtype=torch.float64)
        divergence = torch.zeros((), dtype=torch.float64)
        for (a, c, q), (j, h) in zip([top, *self.steps], messages, strict=True):
            # the mean of the prior is itself random: its moments
            prior_mean = (a * mean.unsqueeze(-2) + c).flatten(-2)
            spread = (a.square() * variance.unsqueeze(-2)).flatten(-2)
            q = q.flatten()

            k = 1 + q * j  # the precision of the posterior relative to that of the prior
            shift = (h - j * prior_mean) * q / k
            moved = shift.square() + (j * q / k).square() * spread  # E (mean - prior mean)^2
            divergence = divergence + 0.5 * (1 / k - 1 + k.log() + moved / q).sum(dim=-1)
            mean, variance = prior_mean + shift, q / k + spread / k.square()

        score = self.flat.expected_log_likelihood(x, observed, mean, torch.diag_embed(variance))
        return score - divergence

    def model(self, fusion: str) -> MMHVAE:
        r"""Returns this model as an MMHVAE with exact experts.

        Its posterior is what :meth:`messages` says with the same fusion, for every subset.

        Arguments:
            fusion: How the modalities are fused: ``"poe"``, where each expert is what its modality
                says alone, or, for a chain without branches, ``"common_noise"`` (a
                :class:`~mmpoe.posteriors.CommonNoisePoE`) or ``"joint"`` (experts of :math:`z_1`,
                fused and carried up).

        Raises:
            ValueError: If the fusion is unknown, or there are branches where it allows none.
        """
        _check_fusion(fusion)
        if fusion != "poe":
            self._check_no_branches()
        # what lies between the expert of a modality at z_1 and that at each level
        between = {
            "joint": [Step(torch.ones_like(a), 0 * c, 0 * q) for a, c, q in self.steps],
            "common_noise": without_noise(self.steps),
            "poe": self.steps,
        }[fusion]
        encoders, decoders = {}, {}
        for m, bias in self.flat.bias.items():
            precision, h = self.flat.message({m: probe(len(bias))}, [m])
            experts = carry(precision.diagonal(dim1=-2, dim2=-1), h, between)
            encoders[m] = ChainEncoder([Expert(j[0], h) for j, h in experts])
            decoders[m] = likelihood(self.flat.weight[m], bias, self.flat.covariance[m])

        priors = [None, *(Transition(*step) for step in self.steps)]
        levels = zip(self.latent_dims, priors, self._rules(fusion), strict=True)
        groups = [
            LatentGroup(
                (size,), nn.Identity(), prior=prior, expert_sees_state=False, posterior=rule
            )
            for size, prior, rule in levels
        ]
        return MMHVAE(encoders, groups, decoders)

    def sample(
        self, n: int, *, generator: Generator | None = None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Draws complete samples.

        Arguments:
            n: The number of samples.
            generator: The random generator, PyTorch's own if None.

        Returns:
            The batch, and the latents it was made from, coarse to fine, each with shape
            :math:`(n, D_l)`.
        """

        def noise(size: int) -> Tensor:
            return torch.randn(n, size, generator=generator, dtype=torch.float64)

        z = [noise(self.latent_dims[0])]
        for a, c, q in self.steps:
            mean = (a * z[-1].unsqueeze(1) + c).flatten(1)
            z.append(mean + q.flatten().sqrt() * noise(a.numel()))
        return self.flat.observe(z[-1], generator=generator), z

    def _rules(self, fusion: str) -> list[Posterior]:
        """The posterior of each level, coarse to fine."""
        size = self.latent_dims[-1]
        if fusion == "joint":
            levels = range(len(self.latent_dims))
            return [JointPoE(self.steps[level:], size) for level in levels]
        if fusion == "poe":
            return [PoE() for _ in self.latent_dims]
        rules: list[Posterior] = []
        variances = [torch.ones(size), *(q[0] for _, _, q in self.steps)]  # of the priors
        for noise, variance in zip(self.common_noise()[:-1], variances, strict=False):
            gamma = noise / variance
            rule = CommonNoisePoE(size, gamma.tolist()).double()
            with torch.no_grad():
                rule.log_gamma.copy_(gamma.log())  # in float64, to the last bit
            rules.append(rule)
        return [*rules, PoE()]  # below the finest level, no noise is shared

    def _check_no_branches(self) -> None:
        if len(set(self.latent_dims)) > 1:
            raise ValueError(
                "'steps' should have no branches for modalities to share all noise, "
                f"but levels have {self.latent_dims} dimensions."
            )


def _add(messages: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sum of what several modalities say about one level."""
    j, h = (torch.stack(part).sum(dim=0) for part in zip(*messages, strict=True))
    return j, h


def _check_fusion(fusion: str) -> None:
    if fusion not in FUSIONS:
        raise ValueError(f"'fusion' should be one of {', '.join(FUSIONS)}, but is {fusion!r}.")

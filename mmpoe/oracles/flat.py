r"""The flat linear-Gaussian model, with one latent vector."""

from __future__ import annotations

__all__ = ["LinearGaussian"]

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from mmpoe.missing import as_mask, check_modalities, check_names, check_observed
from mmpoe.models import MVAE

from ._inputs import check_covariance, check_diagonal, check_shape, read
from ._networks import Expert, likelihood, probe


class LinearGaussian:
    r"""A linear-Gaussian model of several modalities, of which everything is known exactly.

    .. math::
        z \sim \mathcal{N}(m_0, S_0), \qquad x_m \mid z \sim \mathcal{N}(W_m z + b_m, \Psi_m)

    The posterior given any subset is a product of experts, with natural parameters

    .. math::
        \Lambda_m = W_m^\top \Psi_m^{-1} W_m, \qquad
        \eta_m = W_m^\top \Psi_m^{-1} (x_m - b_m)

    A batch `x` maps names of modalities to tensors of shape :math:`(B, D_m)`; missing entries are
    never read. `observed`, what is scored, is a boolean mask of shape :math:`(B, M)`. `given`,
    what is conditioned on, is a boolean mask of shape :math:`(B, M)`, or :math:`(S, B, M)` for S
    subsets, and then results gain a leading S; or the names of some modalities. Methods raise a
    ValueError if these do not fit together, or an entry that they read is not finite.

    Arguments:
        weight: For each modality, the weight :math:`W_m`, with shape :math:`(D_m, D)`.
        bias: For each modality, the bias :math:`b_m`, with shape :math:`(D_m)`.
        covariance: For each modality, the covariance :math:`\Psi_m` of the noise, with shape
            :math:`(D_m, D_m)`.
        prior_mean: The mean :math:`m_0`, with shape :math:`(D)`; zero if None.
        prior_covariance: The covariance :math:`S_0`, with shape :math:`(D, D)`; the identity if
            None.

    Attributes:
        modalities: The names of the modalities, in the order of the columns of all masks.
        latent_dim: The number of latent dimensions :math:`D`.
        data_dims: The number of dimensions of each modality, :math:`D_m`.
        information: For each modality, the precision :math:`\Lambda_m`, with shape :math:`(D, D)`.

    Raises:
        ValueError: If the mappings have different keys, shapes do not fit together, or a
            covariance is not positive definite.

    References:
        | A Unifying Review of Linear Gaussian Models (Roweis & Ghahramani, 1999)
        | https://doi.org/10.1162/089976699300016674

    Example:
        >>> oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
        >>> x, z = oracle.sample(5)
        >>> output, observed = oracle.model()(x), torch.ones(5, 2, dtype=torch.bool)
        >>> log_w = sum(p.log_prob(x[m]) for m, p in output.likelihoods.items())
        >>> log_w = log_w + output.priors[0].log_prob(output.z[0])
        >>> log_w = log_w - output.posteriors[0].log_prob(output.z[0])
        >>> torch.allclose(log_w, oracle.log_prob(x, observed))  # whatever was sampled
        True
    """

    def __init__(
        self,
        weight: Mapping[str, Tensor],
        bias: Mapping[str, Tensor],
        covariance: Mapping[str, Tensor],
        prior_mean: Tensor | None = None,
        prior_covariance: Tensor | None = None,
    ) -> None:
        check_modalities(list(weight))
        for name, mapping in (("bias", bias), ("covariance", covariance)):
            if set(mapping) != set(weight):
                raise ValueError(
                    f"'{name}' should have the keys of 'weight', {sorted(weight)}, "
                    f"but has {sorted(mapping)}."
                )
        self.modalities = list(weight)
        self.weight = {m: _double(weight[m]) for m in self.modalities}
        self.bias = {m: _double(bias[m]) for m in self.modalities}
        self.covariance = {m: _double(covariance[m]) for m in self.modalities}
        for m, w in self.weight.items():
            if w.dim() != 2:
                raise ValueError(
                    f"'weight[{m!r}]' should have shape (D_m, D), but has shape {tuple(w.shape)}."
                )
        self.latent_dim = size = next(iter(self.weight.values())).shape[1]
        zero, one = torch.zeros(size), torch.eye(size)
        self.prior_mean = _double(zero if prior_mean is None else prior_mean)
        self.prior_covariance = _double(one if prior_covariance is None else prior_covariance)

        check_shape("prior_mean", self.prior_mean, (size,))
        check_covariance("prior_covariance", self.prior_covariance, size)
        for m in self.modalities:
            data_dim = self.weight[m].shape[0]
            check_shape(f"weight[{m!r}]", self.weight[m], (data_dim, size))
            check_shape(f"bias[{m!r}]", self.bias[m], (data_dim,))
            check_covariance(f"covariance[{m!r}]", self.covariance[m], data_dim)

        self.data_dims = {m: len(b) for m, b in self.bias.items()}
        # Psi^-1 W and Lambda = W' Psi^-1 W
        self._scaled = {
            m: torch.linalg.solve(self.covariance[m], w) for m, w in self.weight.items()
        }
        self.information = {m: w.T @ self._scaled[m] for m, w in self.weight.items()}

    @classmethod
    def random(
        cls,
        modalities: Sequence[str],
        latent_dim: int,
        data_dim: int,
        *,
        generator: Generator | None = None,
    ) -> LinearGaussian:
        r"""Draws a model with a standard normal prior that :meth:`model` can represent.

        .. math::
            W_m = \Psi_m^{1/2} U_m \operatorname{diag}(a_m), \qquad U_m^\top U_m = I, \qquad
            \Lambda_m = \operatorname{diag}(a_m^2)

        Arguments:
            modalities: The names of the modalities.
            latent_dim: The number of latent dimensions :math:`D`.
            data_dim: The number of dimensions of each modality, at least `latent_dim`.
            generator: The random generator, PyTorch's own if None.

        Raises:
            ValueError: If `data_dim` is less than `latent_dim`.
        """
        check_modalities(modalities)
        if not 1 <= latent_dim <= data_dim:
            raise ValueError(
                "'data_dim' should be at least 'latent_dim', and that at least 1, "
                f"but they are {data_dim} and {latent_dim}."
            )

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            draw = torch.rand(shape, generator=generator, dtype=torch.float64)
            return low + (high - low) * draw

        weight, bias, covariance = {}, {}, {}
        for m in modalities:
            scale = uniform(0.5, 1.5, data_dim)
            draw = torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
            directions = torch.linalg.qr(draw)[0]
            weight[m] = scale[:, None] * directions * uniform(0.5, 2, latent_dim)
            bias[m] = uniform(-1, 1, data_dim)
            covariance[m] = scale.square().diag()
        return cls(weight, bias, covariance)

    def message(
        self, x: Mapping[str, Tensor], given: Tensor | Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns what the given modalities say about z, without the prior.

        .. math:: J = \sum_{m \in s} \Lambda_m, \qquad h = \sum_{m \in s} \eta_m

        Arguments:
            x: The batch.
            given: What to condition on.

        Returns:
            The precision :math:`J`, with shape :math:`(B, D, D)`, and the natural mean :math:`h`,
            with shape :math:`(B, D)`.
        """
        mask, entries = read(x, given, self.data_dims)
        natural = torch.zeros(*mask.shape[:-1], self.latent_dim, dtype=torch.float64)
        for column, m in enumerate(self.modalities):
            message = (entries[m] - self.bias[m]) @ self._scaled[m]  # (B, D)
            natural = natural + torch.where(mask[..., column, None], message, 0)
        return self._information(mask), natural

    def posterior(
        self, x: Mapping[str, Tensor], given: Tensor | Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the mean and covariance of :math:`p(z \mid x_s)`.

        .. math::
            \Sigma_s^{-1} = S_0^{-1} + \sum_{m \in s} \Lambda_m, \qquad
            \mu_s = \Sigma_s \Big( S_0^{-1} m_0 + \sum_{m \in s} \eta_m \Big)

        Arguments:
            x: The batch.
            given: What to condition on.

        Returns:
            The mean, with shape :math:`(B, D)`, and the covariance, with shape :math:`(B, D, D)`.
        """
        precision, natural = self.message(x, given)
        covariance = self._posterior_covariance(precision)
        natural = natural + torch.linalg.solve(self.prior_covariance, self.prior_mean)
        return (covariance @ natural.unsqueeze(-1)).squeeze(-1), covariance

    def log_prob(self, x: Mapping[str, Tensor], observed: Tensor) -> Tensor:
        r"""Returns the evidence of what was observed.

        .. math::
            \log p(x_r) = \log \mathcal{N}(x_r; W_r m_0 + b_r, W_r S_0 W_r^\top + \Psi_r)

        Arguments:
            x: The batch.
            observed: What was observed.

        Returns:
            The evidence, in nats, with shape :math:`(B)`; 0 for a row that observed nothing.
        """
        check_observed(observed, self.modalities)
        mask, entries = read(x, observed, self.data_dims)
        weight, bias, noise = self._stacked(self.modalities)
        sizes = torch.tensor(list(self.data_dims.values()))
        seen = mask.repeat_interleave(sizes, dim=1)  # (B, N)

        # what was not observed is made independent and equal to its mean
        residual = torch.cat([entries[m] for m in self.modalities], dim=1)
        residual = torch.where(seen, residual - weight @ self.prior_mean - bias, 0)
        covariance = weight @ self.prior_covariance @ weight.T + noise
        both = seen.unsqueeze(2) & seen.unsqueeze(1)  # (B, N, N)
        factor = torch.linalg.cholesky(torch.where(both, covariance, torch.eye(len(noise))))

        return _log_normal(residual, factor, seen.sum(dim=1, dtype=torch.float64))

    def conditional(
        self, x: Mapping[str, Tensor], given: Tensor | Sequence[str], target: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the mean and covariance of :math:`p(x_t \mid x_s)`, noise included.

        .. math:: x_t \mid x_s \sim \mathcal{N}(W_t \mu_s + b_t, W_t \Sigma_s W_t^\top + \Psi_t)

        Arguments:
            x: The batch.
            given: What to condition on.
            target: The names of the modalities to predict, one after the other in the result.
                None of them should be given.

        Returns:
            The mean, with shape :math:`(B, N_t)`, and the covariance, with shape
            :math:`(B, N_t, N_t)`.
        """
        check_names(target, self.modalities, argument="target")
        mask, _ = read(x, given, self.data_dims)
        for m in target:
            if bool(mask[..., self.modalities.index(m)].any()):
                raise ValueError(f"'target' should name modalities not given, but names {m!r}.")
        mean, covariance = self.posterior(x, given)
        weight, bias, noise = self._stacked(target)
        return mean @ weight.T + bias, weight @ covariance @ weight.T + noise

    def elbo(
        self, x: Mapping[str, Tensor], observed: Tensor, given: Tensor | Sequence[str]
    ) -> Tensor:
        r"""Returns the bound on the evidence at the exact posterior of a subset.

        .. math::
            \mathcal{L}_s(x_r) = \sum_{m \in r} \mathrm{E}_{p(z \mid x_s)} [\log p(x_m \mid z)]
            - \mathrm{KL}\big(p(z \mid x_s) \,\|\, p(z)\big)

        Nothing is sampled: it is what :func:`mmpoe.elbo` of :meth:`model` is on average.

        Arguments:
            x: The batch.
            observed: What was observed, and is scored.
            given: What the posterior conditions on.

        Returns:
            The bound, in nats, with shape :math:`(B)`.
        """
        mean, covariance = self.posterior(x, given)
        posterior = MultivariateNormal(mean, covariance, validate_args=False)
        prior = MultivariateNormal(self.prior_mean, self.prior_covariance, validate_args=False)
        divergence = kl_divergence(posterior, prior)
        return self.expected_log_likelihood(x, observed, mean, covariance) - divergence

    def expected_log_likelihood(
        self, x: Mapping[str, Tensor], observed: Tensor, mean: Tensor, covariance: Tensor
    ) -> Tensor:
        r"""Returns the reconstruction term of a bound, for any Gaussian posterior.

        .. math::
            \sum_{m \in r} \mathrm{E}_{\mathcal{N}(z; \mu, \Sigma)} [\log p(x_m \mid z)]
            = \sum_{m \in r} \log \mathcal{N}(x_m; W_m \mu + b_m, \Psi_m)
            - \tfrac{1}{2} \operatorname{tr}(\Lambda_m \Sigma)

        Arguments:
            x: The batch.
            observed: What was observed.
            mean: The mean :math:`\mu`, with shape :math:`(B, D)`.
            covariance: The covariance :math:`\Sigma`, with shape :math:`(B, D, D)`.

        Returns:
            The term, in nats, with shape :math:`(B)`.
        """
        check_observed(observed, self.modalities)
        mask, entries = read(x, observed, self.data_dims)
        total = torch.zeros(mean.shape[:-1], dtype=torch.float64)
        for column, m in enumerate(self.modalities):
            residual = entries[m] - mean @ self.weight[m].T - self.bias[m]
            factor = torch.linalg.cholesky(self.covariance[m])
            spread = (self.information[m] * covariance).sum(dim=(-2, -1))
            score = _log_normal(residual, factor, self.data_dims[m]) - 0.5 * spread
            total = total + torch.where(mask[:, column], score, 0)
        return total

    def cross_posterior(
        self, x: Mapping[str, Tensor], observed: Tensor, given: Tensor | Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the best posterior given a part, if all that was observed is scored.

        .. math::
            q_s^*(z) \propto \exp \mathrm{E}\big[\log p(z \mid x_r) \,|\, x_s\big]
            = \mathcal{N}(z; \mu_s, \Sigma_r)

        It maximises the bound :math:`\mathcal{L}_s(x_r)` on average over data, and has the mean of
        :math:`p(z \mid x_s)`, but the smaller covariance of :math:`p(z \mid x_r)`.

        Arguments:
            x: The batch.
            observed: What was observed, :math:`r`.
            given: What the posterior conditions on, :math:`s \subseteq r`.

        Returns:
            The mean, with shape :math:`(B, D)`, and the covariance, with shape :math:`(B, D, D)`.
        """
        check_observed(observed, self.modalities)
        mean, covariance = self.posterior(x, given)
        whole = self._posterior_covariance(self._information(observed))
        return mean, whole.expand_as(covariance)

    def expected_gap(self, observed: Tensor, given: Tensor, *, best: bool = False) -> Tensor:
        r"""Returns by how much the bound of a part is below the evidence, on average over data.

        .. math::
            \mathrm{E}\big[\log p(x_r) - \mathcal{L}_s(x_r)\big]
            = \operatorname{tr}(\Sigma_r^{-1} \Sigma_s) - D
            - \tfrac{1}{2} \log \frac{|\Sigma_s|}{|\Sigma_r|}

        for the posterior :math:`p(z \mid x_s)`, and
        :math:`\tfrac{1}{2} (\operatorname{tr}(\Sigma_r^{-1} \Sigma_s) - D)` for
        :meth:`cross_posterior`, the least that is possible.

        Arguments:
            observed: What was observed, :math:`r`, with shape :math:`(B, M)`.
            given: What the posterior conditions on, :math:`s \subseteq r`, with shape
                :math:`(B, M)` or :math:`(S, B, M)`.
            best: Whether the posterior is :meth:`cross_posterior`.

        Returns:
            The gap, in nats, with shape :math:`(B)`.
        """
        check_observed(observed, self.modalities)
        given = as_mask(given, self.modalities, len(observed))
        part = self._posterior_covariance(self._information(given))
        whole = self._posterior_covariance(self._information(observed))
        ratio = torch.linalg.solve(whole, part)
        excess = ratio.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - self.latent_dim
        return 0.5 * excess if best else excess - 0.5 * torch.logdet(ratio)

    def model(self) -> MVAE:
        r"""Returns this model as an MVAE with the exact experts.

        Its posterior is :math:`p(z \mid x_s)` for every subset. Everything but the noise is a
        parameter; for any data, the experts are at the optimum of bounds that score what is given.

        Raises:
            ValueError: If the prior is not the standard normal, or a :math:`\Lambda_m` is not
                diagonal: an MVAE has diagonal experts.
        """
        if self.prior_mean.any() or not torch.equal(
            self.prior_covariance, torch.eye(self.latent_dim, dtype=torch.float64)
        ):
            raise ValueError(
                "'prior_mean' and 'prior_covariance' should be those of the standard normal to "
                f"make an MVAE, but are {self.prior_mean.tolist()} and "
                f"{self.prior_covariance.tolist()}."
            )
        check_diagonal(self.information)
        encoders, decoders = {}, {}
        for m in self.modalities:
            precision, natural = self.message({m: probe(self.data_dims[m])}, [m])
            encoders[m] = Expert(precision[0].diagonal(), natural)
            decoders[m] = likelihood(self.weight[m], self.bias[m], self.covariance[m])
        return MVAE(encoders, decoders, self.latent_dim)

    def sample(
        self, n: int, *, generator: Generator | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draws complete samples.

        Arguments:
            n: The number of samples.
            generator: The random generator, PyTorch's own if None.

        Returns:
            The batch, and the latents it was made from, with shape :math:`(n, D)`.
        """
        z = _normal(self.prior_mean.expand(n, -1), self.prior_covariance, generator)
        return self.observe(z, generator=generator), z

    def observe(self, z: Tensor, *, generator: Generator | None = None) -> dict[str, Tensor]:
        r"""Draws :math:`x \sim p(x \mid z)`.

        Arguments:
            z: The latents, with shape :math:`(B, D)`.
            generator: The random generator, PyTorch's own if None.
        """
        return {
            m: _normal(z @ self.weight[m].T + self.bias[m], self.covariance[m], generator)
            for m in self.modalities
        }

    def _information(self, mask: Tensor) -> Tensor:
        """The sum of the information matrices of what a mask holds, (*, D, D)."""
        information = torch.stack([self.information[m] for m in self.modalities])  # (M, D, D)
        return torch.where(mask[..., None, None], information, 0).sum(dim=-3)

    def _posterior_covariance(self, precision: Tensor) -> Tensor:
        return torch.linalg.inv(torch.linalg.inv(self.prior_covariance) + precision)

    def _stacked(self, modalities: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The weight (N, D), bias (N) and covariance (N, N) of some modalities as one."""
        return (
            torch.cat([self.weight[m] for m in modalities]),
            torch.cat([self.bias[m] for m in modalities]),
            torch.block_diag(*(self.covariance[m] for m in modalities)),
        )


def _log_normal(residual: Tensor, factor: Tensor, size: Tensor | float) -> Tensor:
    """The log-density of a normal, from the Cholesky factor of its covariance, in `size` dims."""
    white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return -0.5 * (white.square().sum(dim=(-2, -1)) + log_det + size * math.log(2 * math.pi))


def _double(values: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _normal(mean: Tensor, covariance: Tensor, generator: Generator | None) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    return mean + noise @ torch.linalg.cholesky(covariance).T

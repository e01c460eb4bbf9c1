r"""The public operation: checks its arguments, then runs one of the backends."""

from __future__ import annotations

__all__ = ["Product", "gaussian_poe"]

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.autograd.forward_ad
from torch import Generator, Tensor

from mmpoe.gaussian import check_power

from . import _reference, backends
from ._arguments import PRIOR_IN, Inputs, Outputs, Want


class Product(NamedTuple):
    """A fused posterior: a sample, its parameters and its divergence from the prior."""

    z: Tensor
    """The sample, with shape ([S,] B, \\*), or (R, \\*) for R pairs."""
    loc: Tensor
    """The mean, with the same shape."""
    log_scale: Tensor
    """The log standard deviation, with the same shape."""
    kl: Tensor
    """The divergence from the prior, in nats, with shape ([S,] B) or (R)."""


def gaussian_poe(
    loc: Sequence[Tensor],
    log_scale: Sequence[Tensor],
    given: Tensor,
    prior: tuple[Tensor, Tensor] | None = None,
    *,
    rows: Tensor | None = None,
    noise: Tensor | None = None,
    generator: Generator | None = None,
    sample: bool = True,
    temperature: float = 1.0,
    power: int = 2,
    clamp: float | None = None,
    common_noise: Tensor | None = None,
    prior_in: str = "always",
    outputs: Sequence[str] = Product._fields,
    backend: str | None = None,
) -> Product:
    r"""Multiplies a Gaussian prior by the given experts, samples, and measures what was learned.

    .. math::
        q(z \mid x_s) \propto p(z) \prod_{m \in s} \mathcal{N}(z; \mu_m, \sigma_m^2), \qquad
        z = \mu + T \sigma \epsilon, \qquad
        \mathrm{kl} = \mathrm{KL}\big(q(z \mid x_s) \,\|\, p(z)\big)

    A row given nothing has the prior as its posterior, to the bit, and a divergence of exactly 0.
    What an expert holds where it is not given, NaN included, changes no bit of any result; it
    receives a gradient of exactly 0 there.

    Arguments:
        loc: The means of the :math:`M` experts, each with shape :math:`(B, *)`.
        log_scale: Their log standard deviations, each with shape :math:`(B, *)`.
        given: Which experts take part, boolean, with shape :math:`(B, M)`; :math:`(S, B, M)` for
            :math:`S` subsets of each sample; or :math:`(R, M)` for any :math:`R` pairs of a sample
            and a subset, with `rows`.
        prior: The mean and log standard deviation of the prior, each with shape :math:`(B, *)`;
            None is the standard normal.
        rows: The sample that each pair is about, int64, with shape :math:`(R)`, in any order;
            pairs in the order of their samples are found fastest. None is one pair for each sample
            and subset.
        noise: Standard normal noise :math:`\epsilon`, with the shape of `z`; drawn if None.
        generator: The random generator to draw the noise from, PyTorch's own if None.
        sample: Whether to sample; if not, `z` is the mean.
        temperature: The temperature :math:`T` of the sample; the divergence is always that of
            :math:`T = 1`.
        power: The power of the inverse scale that adds up, see
            :func:`mmpoe.gaussian.product_of_experts`.
        clamp: The limit :math:`c` of a soft clamp :math:`c \tanh(v / c)` on every `loc` and
            `log_scale`, those of the prior included; None leaves them alone.
        common_noise: How much noise the experts have in common, :math:`\gamma \ge 0`, relative to
            the prior variance, with one number per channel (the first event dimension): the sum
            :math:`R = \sum_m \sigma_p^2 / \sigma_m^2` counts as :math:`R / (1 + \gamma R)`. None
            is the plain product, as is 0.
        prior_in: The products that the prior is a factor of: ``"always"``; ``"full"``, those of
            all experts; or ``"never"``. That of none is the prior in any case, and divergences are
            from the prior.
        outputs: What to compute of ``"z"``, ``"loc"``, ``"log_scale"`` and ``"kl"``; what is not
            asked for is None. With many subsets, writing the parameters takes most of the time.
        backend: The backend to run (``"cuda"``, ``"cpu"``, ``"eager"``); chosen if None.

    Returns:
        The sample, mean and log standard deviation, with shape :math:`(B, *)`, :math:`(S, B, *)`
        or :math:`(R, *)`, and the divergence in nats, summed over event dimensions, with shape
        :math:`(B)`, :math:`(S, B)` or :math:`(R)`, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, if `rows` holds what is no
            sample, or if common noise is asked for without the prior; the message says which.
        RuntimeError: If the backend asked for cannot run here, or cannot run this call.

    References:
        | Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018)
        | https://arxiv.org/abs/1802.05335

    Example:
        >>> loc, log_scale = [torch.ones(1, 1)], [torch.zeros(1, 1)]
        >>> q = gaussian_poe(loc, log_scale, torch.tensor([[True]]), sample=False)
        >>> q.loc, q.log_scale
        (tensor([[0.5000]]), tensor([[-0.3466]]))
    """
    want = _wanted(outputs)
    check_power(power)
    if clamp is not None and not clamp > 0:
        raise ValueError(f"'clamp' should be positive or None, but is {clamp!r}.")
    inputs = Inputs(
        list(loc),
        list(log_scale),
        given,
        rows,
        *(prior or (None, None)),
        noise,
        None,  # the seed: a fused backend draws one
        common_noise,
        power,
        clamp or 0.0,
        temperature,
        prior_in,
    )
    _check(inputs)

    first = inputs.loc[0]
    call = (first.device, first.dtype, len(inputs.loc), _beyond(inputs))
    if first.numel() == 0 or given.numel() == 0:
        call = (*call, True)
    choice = backends.choose(backend, *call)

    compute = want
    if not sample:  # z is loc: write it once
        inputs = inputs._replace(noise=None)
        compute = (False, want[0] or want[1], want[2], want[3])
    elif noise is None:
        inputs = _draw(inputs, generator, choice)
    if choice == "eager":
        results = _reference.forward(inputs)
        results = Outputs(*(t if w else None for t, w in zip(results, compute, strict=True)))
    else:
        from . import _operators  # registers operators: not on import of the library

        results = _operators.run(inputs, compute)
    if not sample:
        mean = results.loc
        results = results._replace(z=mean if want[0] else None, loc=mean if want[1] else None)
    return Product(*cast("tuple[Tensor, ...]", results))


def _draw(inputs: Inputs, generator: Generator | None, backend: str) -> Inputs:
    """Draws noise for PyTorch, a seed for kernels, which draw the noise themselves."""
    first = inputs.loc[0]
    if backend == "eager":
        like = {"dtype": first.dtype, "device": first.device}
        return inputs._replace(noise=torch.randn(inputs.shape, generator=generator, **like))
    bounds = (-(2**63), 2**63 - 1)
    seed = torch.randint(*bounds, (), generator=generator, device=first.device)
    return inputs._replace(seed=seed)


def _beyond(inputs: Inputs) -> str | None:
    """Says what only PyTorch can do of what is asked for, None if kernels can do it all."""
    if (reason := backends.beyond_kernels()) is not None:
        return reason
    if inputs.noise is not None and inputs.noise.requires_grad and torch.is_grad_enabled():
        return "does not compute a gradient of 'noise'"
    return None


def _wanted(outputs: Sequence[str]) -> Want:
    if outputs is Product._fields:
        return (True, True, True, True)
    if unknown := set(outputs) - set(Product._fields):
        raise ValueError(
            f"'outputs' should name some of {', '.join(Product._fields)}, "
            f"but names {', '.join(sorted(map(repr, unknown)))}."
        )
    z, loc, log_scale, kl = (name in outputs for name in Product._fields)
    return z, loc, log_scale, kl


def _check(inputs: Inputs) -> None:
    loc, log_scale, given, rows, prior_loc, prior_log_scale, noise, _, common_noise, *_ = inputs
    if not loc or len(loc) != len(log_scale):
        raise ValueError(
            "'loc' and 'log_scale' should hold one tensor per expert, at least one, "
            f"but hold {len(loc)} and {len(log_scale)}."
        )
    if given.dtype != torch.bool:
        raise ValueError(f"'given' should be boolean, but has dtype {given.dtype}.")
    if given.dim() not in (2, 3) or given.shape[-1] != len(loc):
        raise ValueError(
            f"'given' should have one column per expert ({len(loc)}) and shape (B, M) or "
            f"(S, B, M), but has shape {tuple(given.shape)}."
        )

    first = loc[0]
    if not first.is_floating_point():
        raise ValueError(f"'loc' should be floating-point, but has dtype {first.dtype}.")
    if rows is None and (first.dim() == 0 or first.shape[0] != given.shape[-2]):
        raise ValueError(
            f"'loc' should hold one row per row of 'given' ({given.shape[-2]}), "
            f"but has shape {tuple(first.shape)}."
        )
    if rows is not None:
        _check_rows(rows, given, first)
    if (prior_loc is None) != (prior_log_scale is None):
        raise ValueError("'prior' should be a pair of tensors or None, but holds a None.")
    shape, dtype, device = first.shape, first.dtype, first.device
    for part in (*loc, *log_scale, prior_loc, prior_log_scale):
        if part is None:
            continue
        if part.shape != shape or part.dtype != dtype or part.device != device:
            raise ValueError(_name_mismatch(inputs))

    if noise is not None and noise.shape != inputs.shape:
        raise ValueError(
            f"'noise' should have the shape of z, {inputs.shape}, "
            f"but has shape {tuple(noise.shape)}."
        )
    channels = first.shape[1] if first.dim() > 1 else 1
    if common_noise is not None and (
        common_noise.shape != (channels,) or not common_noise.is_floating_point()
    ):
        raise ValueError(
            f"'common_noise' should be floating-point, with one number per channel ({channels}), "
            f"but is {_describe(common_noise)}."
        )
    if inputs.prior_in not in PRIOR_IN:
        raise ValueError(
            f"'prior_in' should be one of {', '.join(PRIOR_IN)}, but is {inputs.prior_in!r}."
        )
    if common_noise is not None and inputs.prior_in != "always":
        raise ValueError(
            "'prior_in' should be \"always\" with 'common_noise', which is relative to the prior, "
            f"but is {inputs.prior_in!r}."
        )


def _check_rows(rows: Tensor, given: Tensor, first: Tensor) -> None:
    pairs = tuple(given.shape[:1])
    if given.dim() != 2 or rows.shape != pairs or rows.dtype != torch.int64:
        raise ValueError(
            f"'rows' should be int64, with the sample of each pair of 'given', which has shape "
            f"{tuple(given.shape)}, but is {_describe(rows)}."
        )
    if first.dim() == 0 or rows.device != first.device:
        raise ValueError(f"'rows' should be on {first.device}, but is {_describe(rows)}.")


def _name_mismatch(inputs: Inputs) -> str:
    """Names the first tensor that is not like the first expert's mean."""
    names = [f"loc[{m}]" for m in range(len(inputs.loc))]
    names += [f"log_scale[{m}]" for m in range(len(inputs.loc))] + ["prior[0]", "prior[1]"]
    tensors = (*inputs.loc, *inputs.log_scale, inputs.prior_loc, inputs.prior_log_scale)
    described = [_describe(t) for t in tensors if t is not None]
    name, wrong = next((n, d) for n, d in zip(names, described, strict=False) if d != described[0])
    return f"'{name}' should be like 'loc[0]', {described[0]}, but is {wrong}."


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"

"""A fused forward pass in Triton, for four experts: a rival of the kernels.

It does what is needed to be fast: experts are read once for all subsets, one call of the generator
gives four numbers, everything between is in registers. It lacks what inputs without surprises do
not need: sums that are stable for any scale, the soft clamp, noise in common, strides.
"""

# Triton turns the annotations of a kernel into its types: no postponed ones here

__all__ = ["fused", "pack"]

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.bench_poe import EXPERTS

QUADS = 128
"""Groups of four elements that a program works on."""


@triton.jit
def _expert(loc, log_scale, at, inside, prior_loc, prior_log_scale):  # noqa: ANN001, ANN202
    """The precision relative to the prior, and that times the distance of the means."""
    mean = tl.load(loc + at, mask=inside, other=0.0).to(tl.float32)
    log_sigma = tl.load(log_scale + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.exp(-2.0 * (log_sigma - prior_log_scale))
    return weight, weight * (mean - prior_loc)


@triton.jit(do_not_specialize=["seed"])
def _forward(  # noqa: ANN202
    loc_0,  # noqa: ANN001
    loc_1,  # noqa: ANN001
    loc_2,  # noqa: ANN001
    loc_3,  # noqa: ANN001
    log_scale_0,  # noqa: ANN001
    log_scale_1,  # noqa: ANN001
    log_scale_2,  # noqa: ANN001
    log_scale_3,  # noqa: ANN001
    prior_loc,  # noqa: ANN001
    prior_log_scale,  # noqa: ANN001
    bits,  # noqa: ANN001
    noise,  # noqa: ANN001
    z,  # noqa: ANN001
    kl,  # noqa: ANN001
    seed,  # noqa: ANN001
    samples,  # noqa: ANN001
    size,  # noqa: ANN001
    subsets,  # noqa: ANN001
    DRAWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One program has one chunk of one sample, for all subsets."""
    b, c = tl.program_id(0), tl.program_id(1)
    quad = c * GROUPS + tl.arange(0, GROUPS)
    inner = c * 4 * GROUPS + tl.arange(0, 4 * GROUPS)
    inside = inner < size
    at = b.to(tl.int64) * size + inner
    mu = tl.load(prior_loc + at, mask=inside, other=0.0).to(tl.float32)
    rho = tl.load(prior_log_scale + at, mask=inside, other=0.0).to(tl.float32)
    w0, d0 = _expert(loc_0, log_scale_0, at, inside, mu, rho)
    w1, d1 = _expert(loc_1, log_scale_1, at, inside, mu, rho)
    w2, d2 = _expert(loc_2, log_scale_2, at, inside, mu, rho)
    w3, d3 = _expert(loc_3, log_scale_3, at, inside, mu, rho)
    sharpness = tl.exp(-rho)
    for s in range(subsets):
        row = s * samples + b
        mask = tl.load(bits + row)
        i0, i1 = (mask & 1).to(tl.float32), ((mask >> 1) & 1).to(tl.float32)
        i2, i3 = ((mask >> 2) & 1).to(tl.float32), ((mask >> 3) & 1).to(tl.float32)
        share = 1.0 / (1.0 + i0 * w0 + i1 * w1 + i2 * w2 + i3 * w3)
        shift = (i0 * d0 + i1 * d1 + i2 * d2 + i3 * d3) * share
        out = row.to(tl.int64) * size + inner
        if DRAWS:
            n0, n1, n2, n3 = tl.randn4x(seed, row * (size // 4) + quad)
            eps = tl.join(tl.join(n0, n1), tl.join(n2, n3)).reshape(4 * GROUPS)
        else:
            eps = tl.load(noise + out, mask=inside, other=0.0).to(tl.float32)
        tl.store(z + out, mu + shift + tl.exp(rho) * tl.sqrt(share) * eps, mask=inside)
        scaled = shift * sharpness
        part = 0.5 * (share - 1.0 - tl.log(share) + scaled * scaled)
        total = tl.sum(tl.where(inside, part, 0.0), 0)
        tl.store(kl + row * tl.num_programs(1) + c, total)


def pack(given: Tensor) -> Tensor:
    """Returns the subsets, with shape (S, B, M), as one number for each of S and B."""
    powers = 2 ** torch.arange(given.shape[-1], device=given.device)
    return (given * powers).sum(dim=-1).to(torch.int32)


def fused(*inputs: Tensor, bits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns `z` and `kl` for subsets that are packed; noise is drawn if it is None.

    Raises:
        ValueError: If there are not four experts, or a sample's size is no multiple of four.
    """
    if len(inputs) != 2 * EXPERTS + 2 or inputs[0][0].numel() % 4:
        raise ValueError(
            "'inputs' should be four experts and a prior whose samples have a multiple of four "
            f"elements, but are {len(inputs)} tensors of shape {tuple(inputs[0].shape)}."
        )
    first, (subsets, samples) = inputs[0], bits.shape
    size = first[0].numel()
    blocks = triton.cdiv(size, 4 * QUADS)
    z = torch.empty(subsets, *first.shape, dtype=first.dtype, device=first.device)
    kl = torch.empty(subsets, samples, blocks, device=first.device)
    _forward[(samples, blocks)](
        *inputs,
        bits,
        z if noise is None else noise,
        z,
        kl,
        int(torch.randint(2**31 - 1, ())),
        samples,
        size,
        subsets,
        DRAWS=noise is None,  # pyright: ignore[reportArgumentType]
        GROUPS=QUADS,  # pyright: ignore[reportArgumentType]
    )
    return z, kl.sum(dim=-1)

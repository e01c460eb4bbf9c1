r"""The noise of the kernels in PyTorch: the same numbers, up to rounding."""

from __future__ import annotations

__all__ = ["normal", "words"]

import math

import torch
from torch import Tensor


def words(counter: Tensor, seed: int) -> Tensor:
    r"""Applies Philox4x32-10, which turns a counter and a key into four random words.

    Arguments:
        counter: Counters of four 32-bit words, int64, with shape (*, 4).
        seed: The key, 64 bits.

    References:
        | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon, Moraes, Dror & Shaw, 2011)
        | https://doi.org/10.1145/2063384.2063405

    Example:
        >>> [hex(w) for w in words(torch.zeros(4, dtype=torch.int64), 0).tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = counter.unbind(dim=-1)
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        (p_high, p_low), (q_high, q_low) = _multiply(a, 0xD2511F53), _multiply(c, 0xCD9E8D57)
        a, b, c, d = q_high ^ b ^ low, q_low, p_high ^ d ^ high, p_low
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return torch.stack([a, b, c, d], dim=-1)


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Returns the high and low 32 bits of the product of 32-bit numbers."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)  # 48 bits: int64 holds them
    total = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (total >> 32), total & 0xFFFFFFFF


def normal(seed: Tensor, rows: int, size: int) -> Tensor:
    """Draws what the kernels draw from a seed: standard normal noise, in float64.

    There is a row for each pair, with `size` elements.
    """
    quads = -(-size // 4)
    row = torch.arange(rows, device=seed.device)[:, None].expand(rows, quads)
    quad = torch.arange(quads, device=seed.device).expand(rows, quads)
    zero = torch.zeros_like(quad)
    a, b, c, d = words(torch.stack([quad, zero, row, zero], dim=-1), int(seed)).unbind(dim=-1)
    pairs = [normal for u, angle in ((a, b), (c, d)) for normal in _box_muller(u, angle)]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :size]


def _box_muller(u: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    uniform = ((u >> 8).float() + 0.5).double() * 2**-24  # float32 rounds the largest up to 1
    radius = torch.sqrt(-2 * torch.log(uniform))
    turn = 2 * math.pi * ((angle >> 8).double() * 2**-24 - 0.5)
    return radius * torch.cos(turn), radius * torch.sin(turn)

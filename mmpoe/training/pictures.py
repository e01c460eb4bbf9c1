"""Images as PNG files, which need no other package."""

from __future__ import annotations

__all__ = ["check_images", "png"]

import struct
import zlib

import torch
from torch import Tensor


def png(images: Tensor) -> bytes:
    r"""Returns images side by side, as a PNG file.

    Arguments:
        images: The images, from 0 (black) to 1, with shape :math:`(N, C, H, W)`, where :math:`C`
            is 1 or 3. Numbers outside that range are clipped to it, and NaN is black.

    Example:
        >>> png(torch.zeros(2, 1, 8, 8))[:4]
        b'\x89PNG'
    """
    row = torch.cat(list(images), dim=-1).permute(1, 2, 0)  # (H, N W, C)
    row = (255 * row.float().nan_to_num(0).clamp(0, 1)).round().to(torch.uint8).cpu()
    height, width, channels = row.shape
    unfiltered = torch.zeros(height, 1, dtype=torch.uint8)  # a byte in front of each line
    lines = torch.cat([unfiltered, row.reshape(height, -1)], dim=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines.numpy().tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def check_images(name: str, images: Tensor) -> None:
    """Raises a ValueError unless these are images that can be shown."""
    holds = images.dim() == 4 and images.is_floating_point() and images.shape[1] in (1, 3)
    if not (holds and images.numel() > 0):
        raise ValueError(
            f"'images' should return floating-point images of shape (N, C, H, W), where C is 1 or "
            f"3, but {name!r} has dtype {images.dtype} and shape {tuple(images.shape)}."
        )


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

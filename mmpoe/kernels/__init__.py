r"""The Gaussian product of experts as one operation: product, sample and divergence together.

A *backend* is one implementation of the same mathematics: ``"cuda"`` and ``"cpu"`` are fused
kernels, compiled from one source on first use; ``"eager"`` is plain PyTorch and always there.
"""

__all__ = [
    "BACKENDS",
    "Product",
    "gaussian_poe",
    "last_backend",
    "status",
    "use_backend",
    "warmup",
]

from .backends import BACKENDS, last_backend, status, use_backend, warmup
from .operation import Product, gaussian_poe

PoE = Product  # its name before there was a rule `mmpoe.posteriors.PoE`

r"""The Gaussian product of experts as one operation: product, sample and divergence together.

A *backend* is one implementation of the same mathematics. The eager backend is plain PyTorch and
always there; the names ``"cuda"`` and ``"cpu"`` are reserved for fused ones.
"""

__all__ = ["BACKENDS", "PoE", "gaussian_poe", "last_backend", "status", "use_backend"]

from .backends import BACKENDS, last_backend, status, use_backend
from .operation import PoE, gaussian_poe

r"""The Gaussian product of experts as one operation: product, sample and divergence together.

A *backend* is one implementation of the same mathematics: ``"cuda"`` and ``"cpu"`` are fused
kernels, compiled from one source on first use; ``"eager"`` is plain PyTorch and always there.

Normalisation and depthwise convolution of convolutional cells have kernels too, see `cells`.

From a call to a kernel: `operation` checks the arguments and asks `backends` which one runs;
`_operators` makes it a function that PyTorch can differentiate and trace; `_launch` allocates what
comes out and packs the arguments; `_cpu` or `_cuda` launches what `jit` compiled.
"""

__all__ = [
    "BACKENDS",
    "BuildError",
    "Product",
    "Specialisation",
    "build",
    "cuda_binary",
    "depthwise_convolution",
    "gaussian_poe",
    "instance_norm",
    "last_backend",
    "status",
    "use_backend",
]

from .backends import BACKENDS, build, last_backend, status, use_backend
from .cells import depthwise_convolution, instance_norm
from .jit import BuildError, Specialisation, cuda_binary
from .operation import Product, gaussian_poe

# former names
PoE = Product
warmup = build

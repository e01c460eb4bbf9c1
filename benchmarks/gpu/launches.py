"""A few launches of the kernels, for programs that look on: compute-sanitizer and ncu.

compute-sanitizer --tool memcheck python -m benchmarks.gpu.launches
"""

from __future__ import annotations

import argparse
import os

import torch

from mmpoe.kernels import gaussian_poe

from .device import Device

SHAPES = ((3, 7), (2, 8, 24, 24))
"""A sample that is no multiple of a thread's elements, and one of several blocks."""


def main() -> None:
    """Runs forward and backward on each shape, for three subsets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    device = Device(dry=parser.parse_args().dry)
    # every tensor its own allocation, so that an access beyond it is found
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    for shape in SHAPES:
        tensors = [torch.randn(shape, device=device.type, requires_grad=True) for _ in range(10)]
        given = torch.rand(3, shape[0], 4, device=device.type) < 0.6
        prior = tensors[8], tensors[9]
        q = gaussian_poe(tensors[:4], tensors[4:8], given, prior, backend=device.fused)
        torch.autograd.grad(q.z.sum() + q.kl.sum(), tensors)
    device.synchronize()
    print(f"launched forward and backward for shapes {SHAPES}")


if __name__ == "__main__":
    main()

r"""The choice of a backend while ``torch.compile`` traces.

A module of its own, since importing it imports the compiler.
"""

from __future__ import annotations

__all__ = ["choose"]

import torch

from . import backends

choose = torch.compiler.assume_constant_result(backends.choose)

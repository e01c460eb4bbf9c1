r"""Compares every backend present with the float64 reference, and prints a table.

python -m mmpoe.kernels.selftest
"""

from __future__ import annotations

__all__: list[str] = []

import argparse
import sys

from . import backends, jit
from ._comparison import compare, compare_norm


def main() -> int:
    """Prints the status of every backend and how far it is from the reference; 1 if too far."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong = 0
    for name, state in backends.status().items():
        print(f"{name}: {state}")
        if state != "available" or name == "eager":
            continue
        try:
            rows = [*compare(name), *compare_norm(name)]
        except (RuntimeError, jit.BuildError) as error:
            print(f"  failed: {error}")
            wrong += 1
            continue
        for row in rows:
            right = row.error <= row.tolerance
            wrong += not right
            dtype = str(row.dtype).removeprefix("torch.")
            print(f"  {row.case:28} {dtype:9} {row.error:8.1e}  {'ok' if right else 'WRONG'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

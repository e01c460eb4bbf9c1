"""The time that ``import mmpoe`` takes on top of ``import torch, pyro``.

Both are run in fresh interpreters, in turn, so that a drift of the machine hits them alike; the
ratio of each pair is taken, and the median of the ratios printed. Exits with 1 if that is above
1.05; a smoke run measures too little to tell.

    python -m benchmarks.bench_import
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys

LIMIT = 1.05
"""The largest median ratio of the promise."""


def seconds(code: str) -> float:
    """Returns the processor time that an interpreter needs for some code, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one pair, to see that it runs")
    smoke = parser.parse_args().smoke
    pairs = 1 if smoke else 15

    alone, together = "import torch, pyro", "import mmpoe"
    seconds(together)  # fill the caches of files
    times = [(seconds(alone), seconds(together)) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in times)
    print(f"{platform.machine()}, Python {platform.python_version()}, {pairs} pairs")
    print(f"import torch, pyro: {statistics.median(a for a, _ in times):.2f} s of processor time")
    print(f"import mmpoe:       {statistics.median(b for _, b in times):.2f} s")
    median = statistics.median(ratios)
    print(f"ratio: median {median:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    if median > LIMIT and not smoke:
        sys.exit(f"The median ratio should be at most {LIMIT}, but is {median:.3f}.")


if __name__ == "__main__":
    main()

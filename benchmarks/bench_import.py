"""The time that ``import mmpoe`` takes on top of ``import torch, pyro``.

All are run in fresh interpreters, in turn, so that a drift of the machine hits them alike. Other
work on the machine can only add to the time of a process, so the least of each is compared. Exits
with 1 if the ratio is above 1.02; a smoke run measures too little to tell. Modules of mmpoe are
imported on first use, so what the first model adds is measured too.

    python -m benchmarks.bench_import
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys

LIMIT = 1.02
"""The largest ratio of the promise."""


def seconds(code: str) -> float:
    """Returns the processor time that an interpreter needs for some code, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one round, to see that it runs")
    smoke = parser.parse_args().smoke
    rounds = 1 if smoke else 15

    alone, together = "import torch, pyro", "import torch, pyro, mmpoe"
    model = "import torch, pyro, mmpoe; mmpoe.MMHVAE"
    seconds(model)  # fill the caches of files
    times = [[seconds(code) for code in (alone, together, model)] for _ in range(rounds)]
    least, *others = map(min, zip(*times, strict=True))
    print(f"{platform.machine()}, Python {platform.python_version()}, {rounds} rounds")
    print(f"{alone}: {least:.2f} s of processor time")
    for code, found in zip((together, model), others, strict=True):
        print(f"{code}: {found / least:.3f} times that")
    if others[0] / least > LIMIT and not smoke:
        sys.exit(f"The ratio should be at most {LIMIT}, but is {others[0] / least:.3f}.")


if __name__ == "__main__":
    main()

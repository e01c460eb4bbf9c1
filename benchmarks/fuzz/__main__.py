"""Changes files at random and reads them: every reader returns, or raises what it documents.

A process of its own reads, with little memory: it must not die, and no input may take all memory.
An input that fails is kept.

    python -m benchmarks.fuzz
    python -m benchmarks.fuzz --seconds 30 --readers images index
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mmpoe.models import is_out_of_memory

from .changes import changed
from .readers import READERS, Reader

MEMORY = 3 * 2**29
"""The memory that reading may take beside that of the libraries, in bytes."""

PATIENCE = 120
"""How much longer than asked for the process may take before it counts as hanging, in seconds."""


def main() -> int:
    """Prints how often each reader read and refused; returns 1 if one did anything else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="the time for all readers")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return _work(options.worker, options.readers, options.seconds, options.seed)

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", str(folder)]
    command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
    command += ["--readers", *options.readers]
    with (folder / "errors.txt").open("wb") as errors:
        try:
            code = subprocess.run(
                command, stderr=errors, timeout=options.seconds + PATIENCE, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code == 0:
        shutil.rmtree(folder)
        return 0
    print((folder / "errors.txt").read_text(errors="replace")[-4000:])
    how = "hung or died" if code < 0 else "raised what it does not document"
    print(f"\nFAILED: a reader {how} (seed {options.seed}); its input is in {folder / 'input'}.")
    return 1


def _work(folder: Path, readers: list[str], seconds: float, first: int) -> int:
    """Tries readers in turn, each as long as the others."""
    warnings.simplefilter("ignore")
    for name in readers:
        (folder / name).mkdir()
        READERS[name].write(folder / name)
    try:  # once before memory is limited, so that libraries are there
        for name in readers:
            _attempt(READERS[name], _contents(folder / name), folder / "input", agree=True)
        _limit_memory()
        print(f"{'reader':14} {'inputs':>7} {'read':>7} {'refused':>8} {'no memory':>10}")
        for k, name in enumerate(readers):
            left = len(readers) - k
            share = seconds / left
            seconds -= _fuzz(name, folder, share, first)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _fuzz(name: str, folder: Path, seconds: float, first: int) -> float:
    """Tries a reader, prints what came of it, and returns the seconds that it took."""
    reader, whole = READERS[name], _contents(folder / name)
    counts: Counter[str] = Counter()
    start = time.monotonic()

    @settings(
        max_examples=20,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def some(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(whole)))
        contents = {**whole, file: data.draw(changed(whole[file]))}
        agree = data.draw(st.booleans())
        counts[_attempt(reader, contents, folder / "input", agree=agree)] += 1

    while time.monotonic() - start < seconds:
        first += 1
        seed(first)(some)()
    print(
        f"{name:14} {counts.total():7} {counts['read']:7} {counts['refused']:8} "
        f"{counts['no memory']:10}",
        flush=True,
    )
    return time.monotonic() - start


def _attempt(reader: Reader, contents: dict[str, bytes], folder: Path, *, agree: bool) -> str:
    """Reads some files, and returns what came of it; raises what is not documented."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    if agree:
        reader.agree(folder)
    try:
        reader.read(folder)
    except reader.error as error:
        if str(folder) not in str(error):
            raise AssertionError(f"the message names no file: {error}") from error
        return "refused"
    except Exception as error:
        if is_out_of_memory(error):  # which a subcommand tells with advice
            return "no memory"
        raise
    return "read"


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())

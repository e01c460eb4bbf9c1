"""One session on an NVIDIA GPU: everything that needs one, in nine minutes at most.

Each stage is a process of its own with a time limit: one that fails or takes too long is recorded
with what it said, and the next one runs. Results are on disk as soon as a stage ends: `gpu.json`,
its tables `gpu.md`, and all output in `gpu.log`. The same command resumes: finished stages do not
run again. A dry run has tiny sizes on a CPU, to see that every line runs; its numbers say nothing.
Exits with 1 if a stage did not finish or a check does not hold.

    python -m benchmarks.gpu --out runs/gpu
    python -m benchmarks.gpu --out runs/gpu --stages kernels compiled --again
    python -m benchmarks.gpu --out runs/gpu-dry --dry
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks._results import RESULTS

from .session import BUDGET, Session
from .stages import STAGES


def main() -> int:
    """Runs the stages that are asked for."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE")
    parser.add_argument("--again", action="store_true", help="run finished stages again")
    parser.add_argument("--dry", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all stages")
    parser.add_argument("--write", action="store_true", help="put results into the documentation")
    options = parser.parse_args()
    if options.dry and options.write:
        parser.error("a dry run has no results to write")

    # so that a session that is stopped ends the process of its stage
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        session = Session(options.out, dry=options.dry, again=options.again)
    except ValueError as error:
        parser.error(str(error))
    right = session.run([s for s in STAGES if s.name in options.stages], options.budget)
    if options.write:
        session.write(RESULTS)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())

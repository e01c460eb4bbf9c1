r"""From a folder of ReMIND to results beside the paper's, on a machine with GPUs.

    python -m benchmarks.paper_scale.run --remind ROOT --transforms ROOT/registration \
        --split splits/split_empty_0.csv --processes 4 --out runs/paper

Runs one command after the other, each of which it prints; with --dry-run it prints them alone.
The same command resumes where it was stopped: training continues, and what is done is not done
again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from examples.medical_mri_us.config import read_config
from mmpoe.training import write_file

ALWAYS = {"train", "compare"}
"""The steps that see for themselves what there is left to do."""

TOLERANT = {"prepare", "synthesize", "evaluate"}
"""The steps that exit with 1 when some cases failed, which is no reason to stop."""


def plan(options: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the command of each step, in order.

    Raises:
        ValueError: If the configuration cannot be used.
    """
    size = read_config(options.config, options.set).size
    out: Path = options.out
    index, model, evaluation = out / "data" / "index.csv", out / "run", out / "evaluation"
    call = [sys.executable, "-m", "examples.medical_mri_us"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    several = [*torchrun, "--nproc_per_node", options.processes, *call[1:]]

    release = ["--tcia", options.tcia] if options.tcia else ["--remind", options.remind]
    release += ["--transforms", options.transforms] if options.transforms else []
    changes = [part for change in options.set for part in ("--set", change)]
    weights = ["--compare", out / "published"] if options.weights else []
    how = ["--given", "us", "--target", "t2,cet1,flair", "--samples", 1]
    steps: dict[str, list[object]] = {
        "prepare": [*call, "prepare", *release, "--split", options.split, "--size", size,
                    "--out", out / "data"],
        "check": [*call, "check", index, "--out", out / "check"],
        "train": [*several, "train", "--config", options.config, *changes, "--data", index,
                  "--out", model, "--resume"],
        "import-official": [*call, "import-official", options.weights, "--out", out / "published"],
        "synthesize": [*call, "synthesize", model, "--input-dir", index, *how,
                       "--out", out / "synthetic"],
        "evaluate": [*call, "evaluate", model, "--data", index, "--out", evaluation,
                     "--protocol", "strict,mmhvae-2026", *weights],
        "compare": [sys.executable, "-m", "benchmarks.paper_scale.compare", evaluation],
    }  # fmt: skip
    if not options.weights:
        del steps["import-official"]
    return {name: [str(part) for part in command] for name, command in steps.items()}


def execute(steps: dict[str, list[str]], done: Path) -> int:
    """Runs the steps that are not done, and notes each that is, with its command.

    Arguments:
        steps: The command of each, in order.
        done: The folder for the notes.

    Returns:
        0; 1 if some cases failed; or the exit code of the step that failed, which is the last.
    """
    done.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name, command in steps.items():
        note, line = done / f"{name}.done", shlex.join(command)
        if name not in ALWAYS and note.is_file() and note.read_text() == line:
            print(f"Done already: {name}", flush=True)
            continue
        print(line, flush=True)
        code = subprocess.run(command, check=False).returncode
        if code not in ((0, 1) if name in TOLERANT else (0,)):
            print(f"Stopped: {name} exited with {code}.", file=sys.stderr)
            return code
        write_file(note, line.encode())
        worst = max(worst, code)
    return worst


def main() -> int:
    """Does what the command line asks for, and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    release = parser.add_mutually_exclusive_group(required=True)
    release.add_argument("--remind", type=Path, help="the folder of the nrrd release")
    release.add_argument("--tcia", type=Path, help="or a folder with its DICOM files")
    parser.add_argument("--transforms", type=Path, help="the published affine/ and rigid/")
    parser.add_argument("--split", type=Path, required=True, help="a CSV file: case, split")
    parser.add_argument("--out", type=Path, required=True, help="the folder for everything")
    parser.add_argument("--config", type=Path, default=Path("paper"), help="of the training")
    parser.add_argument("--set", action="append", default=[], help="an entry of it to change")
    parser.add_argument("--processes", type=int, default=1, help="how many train, one per GPU")
    parser.add_argument("--weights", type=Path, help="published ones, to evaluate beside")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    options = parser.parse_args()
    try:
        steps = plan(options)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if options.dry_run:
        print("\n".join(shlex.join(command) for command in steps.values()))
        return 0
    return execute(steps, options.out)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``python -m examples.medical_mri_us demo`` and its relatives."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any, Union

from mmpoe.extras import needs

with needs("medical"):
    import tyro

    from mmpoe.models import is_out_of_memory
    from mmpoe.training import CheckpointError, DeviceMemoryError, NonFiniteError, WorkerError

    from . import demo
    from .data import CaseError, ImageError
    from .outputs import RESOURCES
    from .subcommands import (
        calibrate,
        check,
        downstream,
        evaluate,
        import_official,
        phantom,
        prepare,
        report,
        synthesize,
        train,
    )
    from .writing import patient_output

SUBCOMMANDS: dict[str, Any] = {
    "demo": (demo.Demo, demo.run),
    "phantom": (phantom.Phantom, phantom.run),
    "prepare": (prepare.Prepare, prepare.run),
    "check": (check.Check, check.run),
    "train": (train.Train, train.run),
    "calibrate": (calibrate.Calibrate, calibrate.run),
    "synthesize": (synthesize.Synthesize, synthesize.run),
    "evaluate": (evaluate.Evaluate, evaluate.run),
    "downstream": (downstream.Downstream, downstream.run),
    "report": (report.Report, report.run),
    "import-official": (import_official.ImportOfficial, import_official.run),
}
"""The options of each subcommand, and the function that runs it and returns the exit code."""

PROGRAM = "python -m examples.medical_mri_us"

DESCRIPTION = f"""Synthesis of missing brain MRI and intra-operative ultrasound from what there is.

Start with: {PROGRAM} demo

Exit codes: 0 all is well, 1 some cases failed, 2 usage or configuration, 3 data, 4 a checkpoint,
5 disk, memory or permissions, 130 and 143 stopped by Ctrl-C or SIGTERM. With --debug, errors show
where they come from.
"""


def main() -> int:
    """Runs the subcommand that the command line asks for, and returns the exit code."""
    with patient_output():
        return _main()


def _main() -> int:
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        options, run = parse(arguments)
        return run(options)
    except (Exception, KeyboardInterrupt) as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        code, message = explain(error)
        print(message, file=sys.stderr)
        return code


def parse(arguments: list[str]) -> tuple[Any, Any]:
    """Returns the options of the subcommand, and what runs it; exits with 2 on wrong usage."""
    kinds = [
        Annotated[kind, tyro.conf.subcommand(name, **_default(kind))]
        for name, (kind, _) in SUBCOMMANDS.items()
    ]
    subcommand: Any = Union[tuple(kinds)]  # noqa: UP007
    options = tyro.cli(subcommand, prog=PROGRAM, description=DESCRIPTION, args=arguments)
    runs = dict(SUBCOMMANDS.values())
    return options, runs[type(options)]


def explain(error: BaseException) -> tuple[int, str]:
    """Returns the exit code for an error, and what to print."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "Interrupted."
    message = f"Error: {error}"
    if isinstance(error, (DeviceMemoryError, WorkerError)):
        return 5, message
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
        return 5, (
            f"Error: out of memory: {first}. Take a smaller batch, model or size, or give this "
            "process more memory."
        )
    if isinstance(error, CheckpointError):
        return 4, message
    if isinstance(error, (CaseError, ImageError)):
        return 3, message
    if isinstance(error, OSError):
        return (5 if error.errno in RESOURCES else 2), message
    if isinstance(error, (ValueError, ImportError, NonFiniteError)):
        return 2, message
    return 1, f"Unexpected error: {type(error).__name__}: {error} (--debug shows where it is from)"


def _default(kind: type) -> dict[str, Any]:
    """The demo can be run without any option."""
    return {"default": kind()} if kind is demo.Demo else {}


if __name__ == "__main__":
    sys.exit(main())

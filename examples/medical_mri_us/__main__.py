"""The command line: ``python -m examples.medical_mri_us demo`` and its relatives."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mmpoe.extras import needs
from mmpoe.training import CheckpointError, NonFiniteError

with needs("medical"):
    import tyro

    from .demo import Demo, run
    from .official import convert
    from .phantom import make_dataset
    from .verbs import check, prepare


@dataclass(frozen=True)
class Phantom:
    """Make a data set of phantom patients: NIfTI files and index.csv.

    The same arguments give the same patients. A run that was stopped goes on where it was.
    """

    out: Path
    """The folder to write."""
    train: int = 100
    """The number of training patients, with missing modalities."""
    test: int = 20
    """The number of test patients, complete."""
    size: int = 64
    """The height and width of the slices, in pixels over 96 mm."""
    slices: int = 8
    """The number of slices, 2 mm apart."""
    missingness: Literal["remind-files", "paper-87"] = "remind-files"
    """How modalities go missing: as in the files of ReMIND, or in 87 % of patients."""
    seed: int = 0
    """What the patients are drawn from."""
    workers: int = 2
    """The number of processes."""


@dataclass(frozen=True)
class ImportOfficial:
    """Convert published MMHVAE weights into model.safetensors and model.json.

    The file is read as tensors alone: code inside is never run.
    """

    checkpoint: tyro.conf.Positional[Path]
    """The published file, CP_main_<epoch>.pth."""
    out: Path
    """The folder to write."""


Verb = (
    Annotated[Demo, tyro.conf.subcommand("demo", default=Demo())]
    | Annotated[Phantom, tyro.conf.subcommand("phantom")]
    | Annotated[prepare.Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[check.Check, tyro.conf.subcommand("check")]
    | Annotated[ImportOfficial, tyro.conf.subcommand("import-official")]
)


PROGRAM = "python -m examples.medical_mri_us"

DESCRIPTION = f"""Synthesis of missing brain MRI and intra-operative ultrasound from what there is.

Start with: {PROGRAM} demo
"""


def main() -> int:
    """Runs the verb that the command line asks for, and returns the exit code."""
    try:
        verb: Demo | Phantom | ImportOfficial | prepare.Prepare | check.Check = tyro.cli(
            Verb, prog=PROGRAM, description=DESCRIPTION
        )  # pyright: ignore
        if isinstance(verb, Demo):
            return run(verb)
        if isinstance(verb, prepare.Prepare):
            return prepare.run(verb)
        if isinstance(verb, check.Check):
            return check.run(verb)
        if isinstance(verb, ImportOfficial):
            model = convert(verb.checkpoint, verb.out)
            parameters = sum(p.numel() for p in model.parameters())
            print(
                f"Wrote {verb.out}: an MMHVAE of {', '.join(model.modalities)}, "
                f"{len(model.groups)} latent groups, {parameters:,} parameters."
            )
            return 0
        index = make_dataset(
            verb.out,
            train=verb.train,
            test=verb.test,
            size=verb.size,
            slices=verb.slices,
            missingness=verb.missingness,
            seed=verb.seed,
            workers=verb.workers,
        )
        print(f"Wrote {index}.")
        return 0
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except CheckpointError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 4
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 5 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 2
    except (ValueError, NonFiniteError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``python -m examples.medical_mri_us demo`` and its relatives."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mmpoe.extras import needs
from mmpoe.training import CheckpointError, NonFiniteError

with needs("medical"):
    import tyro

    from .demo import Demo, run
    from .official import convert
    from .verbs.phantom import Phantom
    from .verbs.phantom import run as make_phantom


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
    | Annotated[ImportOfficial, tyro.conf.subcommand("import-official")]
)


PROGRAM = "python -m examples.medical_mri_us"

DESCRIPTION = f"""Synthesis of missing brain MRI and intra-operative ultrasound from what there is.

Start with: {PROGRAM} demo
"""


def main() -> int:
    """Runs the verb that the command line asks for, and returns the exit code."""
    try:
        verb: Demo | Phantom | ImportOfficial = tyro.cli(
            Verb, prog=PROGRAM, description=DESCRIPTION
        )  # pyright: ignore
        if isinstance(verb, Demo):
            return run(verb)
        if isinstance(verb, ImportOfficial):
            model = convert(verb.checkpoint, verb.out)
            parameters = sum(p.numel() for p in model.parameters())
            print(
                f"Wrote {verb.out}: an MMHVAE of {', '.join(model.modalities)}, "
                f"{len(model.groups)} latent groups, {parameters:,} parameters."
            )
            return 0
        return make_phantom(verb)
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

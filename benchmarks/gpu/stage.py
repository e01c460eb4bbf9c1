"""The process of one stage: it writes each row that the stage finds at once.

python -m benchmarks.gpu.stage kernels --rows rows.jsonl --dry
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path


def main() -> None:
    """Runs a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    from .device import Device

    stage = importlib.import_module(f"{__package__}.{options.name}")
    with options.rows.open("a") as file:
        for row in stage.rows(Device(dry=options.dry)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()

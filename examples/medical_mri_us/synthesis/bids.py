"""Derivatives of BIDS: where syntheses go, and what they are called."""

from __future__ import annotations

__all__ = ["derivative", "open_derivatives"]

import json
import re
from pathlib import Path

import mmpoe
from mmpoe.training import write_file

SUFFIXES = {"t1": "T1w", "cet1": "T1w", "t2": "T2w", "flair": "FLAIR"}
"""The suffixes of modalities that BIDS has; others keep their names."""

CASE = re.compile(r"sub-(?P<subject>[A-Za-z0-9]+)(_ses-(?P<session>[A-Za-z0-9]+))?$")
"""A case that is called as in BIDS."""


def open_derivatives(root: Path, case: str) -> tuple[Path, str]:
    """Makes the folder of a case, and ``dataset_description.json`` if it is not there yet.

    Arguments:
        root: The folder of the derivatives.
        case: The name of the case; what is no letter or digit of one that is not called as in BIDS
            is left out.

    Returns:
        The folder for its files, and how their names begin.
    """
    found = CASE.match(case)
    name = case if found else f"sub-{re.sub(r'[^A-Za-z0-9]', '', case) or 'unknown'}"
    folder = root.joinpath(*name.split("_"), "anat")
    folder.mkdir(parents=True, exist_ok=True)
    description = root / "dataset_description.json"
    if not description.exists():
        content = {
            "Name": "Synthetic images, for research only",
            "BIDSVersion": "1.8.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "mmpoe", "Version": mmpoe.__version__}],
        }
        write_file(description, (json.dumps(content, indent=2) + "\n").encode())
    return folder, name


def derivative(name: str, target: str, what: str) -> str:
    """Returns the name of a file.

    Example:
        >>> derivative("sub-01_ses-a", "cet1", "mean")
        'sub-01_ses-a_ce-gadolinium_desc-mean_T1w.nii.gz'
    """
    contrast = "_ce-gadolinium" if target == "cet1" else ""
    return f"{name}{contrast}_desc-{what}_{SUFFIXES.get(target, target)}.nii.gz"

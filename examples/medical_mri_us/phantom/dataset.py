"""A folder of phantom patients with missing modalities, made once and kept."""

import csv
import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.medical_mri_us.checks import check_choice, check_integer
from examples.medical_mri_us.modalities import MODALITIES

from .atlas import Atlas, load_atlas
from .cache import GENERATOR_VERSION, cache_folder, ensure_writable, is_cached
from .missingness import MISSINGNESS, draw_patterns
from .parallel import run_all
from .patient import render_patient
from .storage import PARTIAL, write_case, write_text

__all__ = ["INDEX_COLUMNS", "cached_dataset", "make_dataset"]

INDEX_COLUMNS = ("case", "split", *MODALITIES, "fov", "label")
"""The header of `index.csv`; files are relative to it, an empty cell is a missing modality."""

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Recipe:
    """What the patients of a dataset depend on, but for their number."""

    size: int
    slices: int
    missingness: str
    seed: int
    generator_version: int = GENERATOR_VERSION

    def observed(self, split: str, number: int) -> list[bool]:
        """Returns which modalities a patient has; test patients have them all."""
        if split == "test":
            return [True] * len(MODALITIES)
        rng = np.random.default_rng([self.seed, _SPLITS.index(split), number, 1])
        return draw_patterns(self.missingness, 1, rng)[0].tolist()

    def make(self, folder: Path, atlas: Atlas, numbered: tuple[str, int]) -> None:
        """Renders the patient with a number in a split and writes it."""
        split, number = numbered
        case = folder / _case_name(split, number)
        seed = [self.seed, _SPLITS.index(split), number]
        patient = render_patient(seed, atlas, size=self.size, slices=self.slices)
        observed = self.observed(split, number)
        info = {
            "case": case.name,
            "split": split,
            "observed": [n for n, there in zip(MODALITIES, observed, strict=True) if there],
            "generator_version": self.generator_version,
            **patient.info,
        }
        write_case(case, patient, observed, info)


def make_dataset(
    folder: str | os.PathLike[str],
    *,
    train: int = 100,
    test: int = 20,
    size: int = 64,
    slices: int = 8,
    missingness: str = "remind-files",
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Renders patients into a folder, one subfolder each, and lists them in `index.csv`.

    A patient depends on `size`, `slices`, `seed`, the split and its number alone, so neither
    `workers` nor the number of patients changes it. A run that was interrupted goes on where it
    stopped, and a finished dataset can be extended. The index is written last.

    Arguments:
        folder: Where to put the dataset.
        train: The number of patients with missing modalities.
        test: The number of complete patients.
        size: The number of pixels along depth and along lateral, over 96 mm.
        slices: The number of slices, 2 mm apart.
        missingness: How modalities go missing, see `MISSINGNESS`.
        seed: What all randomness starts from.
        workers: The number of processes; 1 renders in this one. A script that asks for more
            needs the usual `if __name__ == "__main__":`.
        progress: Whether to show a progress bar.

    Returns:
        The path of `index.csv`.
    """
    train, test, recipe = _check(train, test, size, slices, missingness, seed)
    workers = check_integer("workers", workers, 1)
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"'folder' should be a path, but is {folder!r}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'folder' should be a folder, but '{folder}' is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    _check_recipe(folder, recipe)

    cases = [("train", i) for i in range(train)] + [("test", i) for i in range(test)]
    missing = [case for case in cases if not (folder / _case_name(*case)).is_dir()]
    with tqdm(
        total=len(cases),
        initial=len(cases) - len(missing),
        desc="phantom",
        unit="patient",
        disable=not progress or not missing,
    ) as bar:
        if missing:
            make = partial(recipe.make, folder, load_atlas())
            run_all(make, missing, min(workers, len(missing)), bar.update)
    write_text(folder / "index.csv", _index(folder, recipe, cases))
    for leftover in folder.glob(f"{PARTIAL}*/"):
        shutil.rmtree(leftover, ignore_errors=True)
    return folder / "index.csv"


def cached_dataset(
    *,
    train: int = 100,
    test: int = 20,
    size: int = 64,
    slices: int = 8,
    missingness: str = "remind-files",
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Returns the dataset with these arguments, which only the first call renders.

    It lies below the folder that the environment variable `MMPOE_CACHE` names, by default
    `~/.cache/mmpoe`. The arguments are those of `make_dataset`.

    Raises:
        CacheError: If that folder cannot be written.
    """
    train, test, recipe = _check(train, test, size, slices, missingness, seed)
    key = json.dumps({"train": train, "test": test, **vars(recipe)}, sort_keys=True)
    folder = cache_folder("phantom", hashlib.sha256(key.encode()).hexdigest()[:16])
    if is_cached(folder / "index.csv"):
        return folder / "index.csv"
    return make_dataset(
        ensure_writable(folder),
        train=train,
        test=test,
        size=size,
        slices=slices,
        missingness=missingness,
        seed=seed,
        workers=workers,
        progress=progress,
    )


def _check(
    train: int, test: int, size: int, slices: int, missingness: str, seed: int
) -> tuple[int, int, _Recipe]:
    train, test = check_integer("train", train, 0), check_integer("test", test, 0)
    if train + test == 0:
        raise ValueError("'train' and 'test' should not both be 0.")
    recipe = _Recipe(
        size=check_integer("size", size, 16),
        slices=check_integer("slices", slices, 1),
        missingness=check_choice("missingness", missingness, MISSINGNESS),
        seed=check_integer("seed", seed, 0),
    )
    return train, test, recipe


def _check_recipe(folder: Path, recipe: _Recipe) -> None:
    """Notes down what the patients of a folder depend on, so that no others get among them."""
    file = folder / "dataset.json"
    text = json.dumps(vars(recipe), indent=2) + "\n"
    if not file.exists():
        write_text(file, text)
    elif file.read_text() != text:
        raise ValueError(
            f"'folder' should be empty or hold a dataset with the same arguments, but '{folder}' "
            f"was made with {' '.join(file.read_text().split())}."
        )


def _case_name(split: str, number: int) -> str:
    return f"{split}-{number:04d}"


def _index(folder: Path, recipe: _Recipe, cases: list[tuple[str, int]]) -> str:
    """Returns the text of `index.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_COLUMNS)
    for split, number in cases:
        case = _case_name(split, number)
        observed = recipe.observed(split, number)
        files = [
            f"{case}/{name}.nii.gz" if there else ""
            for name, there in zip(MODALITIES, observed, strict=True)
        ]
        writer.writerow([case, split, *files, f"{case}/fov.nii.gz", f"{case}/tumour.nii.gz"])
    return text.getvalue()

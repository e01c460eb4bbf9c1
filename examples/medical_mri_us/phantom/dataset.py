"""A folder of phantom patients with missing modalities, made once and kept."""

import csv
import hashlib
import io
import json
import os
from functools import partial
from pathlib import Path

from tqdm import tqdm

from examples.medical_mri_us.checks import check_integer
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.training import sweep

from .atlas import load_atlas
from .cache import cache_folder, ensure_writable, is_cached
from .parallel import run_all
from .recipe import Recipe, case_name, check_recipe
from .storage import write_text

__all__ = ["INDEX_COLUMNS", "cached_dataset", "make_dataset"]

INDEX_COLUMNS = ("case", "split", *MODALITIES, "fov", "label", "landmarks")
"""The header of `index.csv`; files are relative to it, an empty cell is a missing modality."""


def make_dataset(
    folder: str | os.PathLike[str],
    *,
    train: int = 100,
    test: int = 20,
    size: int = 64,
    slices: int | None = None,
    missingness: str = "remind-files",
    seed: int = 0,
    anatomy: str = "mni",
    brain_shift_mm: float = 0.0,
    misalign_mm: float = 0.0,
    mnar: bool = False,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Renders patients into a folder, one subfolder each, and lists them in `index.csv`.

    A patient depends on the split and its number and on the arguments that describe a patient,
    so neither `workers` nor the number of patients changes it. A run that was interrupted goes
    on where it stopped, and a finished dataset can be extended. The index is written last.

    Arguments:
        folder: Where to put the dataset.
        train: The number of patients with missing modalities.
        test: The number of complete patients.
        size: The number of pixels along depth and along lateral, over 96 mm.
        slices: The number of slices, 2 mm apart; by default 8, 16 and 32 at sizes of 64, 96, 192.
        missingness: How modalities go missing, see `MISSINGNESS`.
        seed: What all randomness starts from.
        anatomy: What patients are deformations of, see `ANATOMIES`.
        brain_shift_mm: How far the brain shifts between MR and ultrasound at most, up to 15 mm.
        misalign_mm: The root mean square of a rigid registration error, up to 20 mm.
        mnar: Whether ceT1 is present more often when the tumour enhances, see
            `given_enhancement`.
        workers: The number of processes; 1 renders in this one. A script that asks for more
            needs the usual `if __name__ == "__main__":`.
        progress: Whether to show a progress bar.

    Returns:
        The path of `index.csv`.
    """
    recipe = check_recipe(
        size, slices, missingness, seed, anatomy, brain_shift_mm, misalign_mm, mnar
    )
    train, test = _check_counts(train, test)
    workers = check_integer("workers", workers, 1)
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"'folder' should be a path, but is {folder!r}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'folder' should be a folder, but '{folder}' is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    _note_down(folder, recipe)

    cases = [("train", i) for i in range(train)] + [("test", i) for i in range(test)]
    missing = [case for case in cases if not (folder / case_name(*case)).is_dir()]
    atlases = [load_atlas(name) for name in recipe.anatomies()] if missing else []
    with tqdm(
        total=len(cases),
        initial=len(cases) - len(missing),
        desc="phantom",
        unit="patient",
        disable=not progress or not missing,
    ) as bar:
        if missing:
            make = partial(recipe.make, folder, atlases)
            run_all(make, missing, min(workers, len(missing)), bar.update)
    write_text(folder / "index.csv", _index(folder, recipe, cases))
    sweep(folder)
    return folder / "index.csv"


def cached_dataset(
    *,
    train: int = 100,
    test: int = 20,
    size: int = 64,
    slices: int | None = None,
    missingness: str = "remind-files",
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Returns the dataset with these arguments, which only the first call renders.

    It lies below the folder that the environment variable `MMPOE_CACHE` names, by default
    `~/.cache/mmpoe`. The arguments are those of `make_dataset`, the others at their defaults.

    Raises:
        CacheError: If that folder cannot be written.
    """
    recipe = check_recipe(size, slices, missingness, seed)
    train, test = _check_counts(train, test)
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


def _check_counts(train: int, test: int) -> tuple[int, int]:
    train, test = check_integer("train", train, 0), check_integer("test", test, 0)
    if train + test == 0:
        raise ValueError("'train' and 'test' should not both be 0.")
    return train, test


def _note_down(folder: Path, recipe: Recipe) -> None:
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


def _index(folder: Path, recipe: Recipe, cases: list[tuple[str, int]]) -> str:
    """Returns the text of `index.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_COLUMNS)
    for split, number in cases:
        case = case_name(split, number)
        observed = recipe.observed(split, number)
        files = [
            f"{case}/{name}.nii.gz" if there else ""
            for name, there in zip(MODALITIES, observed, strict=True)
        ]
        others = ("fov.nii.gz", "tumour.nii.gz", "landmarks.csv")
        writer.writerow([case, split, *files, *(f"{case}/{name}" for name in others)])
    return text.getvalue()

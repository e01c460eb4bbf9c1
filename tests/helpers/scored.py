"""Small subjects, models and evaluations for the tests of scores and reports."""

import csv

import nibabel as nib
import numpy as np
import torch

from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe.models import image_mmhvae
from mmpoe.training import save_checkpoint

SIZE, DEPTH = 32, 3
ARCHITECTURE = {"size": SIZE, "channels": 1, "patch": 2, "widths": [8, 4], "latents": [3, 2]}


def tiny_model(seed=0, modalities=MODALITIES):
    torch.manual_seed(seed)
    return image_mmhvae(list(modalities), **ARCHITECTURE).eval()


def view():
    """A field of view with a border, and a slice without any."""
    fov = np.zeros((DEPTH, SIZE, SIZE), dtype=bool)
    fov[:2, 3:29, 2:30] = True
    return fov


def make_subject(seed, held=MODALITIES):
    rng = np.random.default_rng(seed)
    fov = view()
    rows = np.mgrid[:SIZE, :SIZE].sum(axis=0) / 9
    images = {
        m: np.where(fov, np.sin(rows + k + rng.random(fov.shape)) * 0.8, -1).astype(np.float32)
        for k, m in enumerate(held)
    }
    return Subject(f"case-{seed}", images, fov, None)


def write_dataset(folder, cases, modalities=MODALITIES):
    """Writes an index of cases, each with a name, a split and what it has."""
    rows = []
    for seed, (name, split, held) in enumerate(cases):
        rng = np.random.default_rng(seed)
        (folder / name).mkdir(parents=True)
        fov = np.moveaxis(view(), 0, -1)
        files = {"fov": fov.astype(np.uint8)}
        for m in held:
            smooth = np.add.outer(np.arange(SIZE), rng.random(SIZE) * 9)[..., None]
            files[m] = np.where(fov, 60 + 2 * smooth + 40 * rng.random(fov.shape), 0)
        for m, image in files.items():
            data = image.astype(np.uint8 if m == "fov" else np.float32)
            nib.Nifti1Image(data, np.eye(4)).to_filename(folder / name / f"{m}.nii.gz")
        row = {"case": name, "split": split}
        rows.append(row | {m: f"{name}/{m}.nii.gz" for m in files})
    path = folder / "index.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["case", "split", *modalities, "fov"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "dataset.json").write_text('{"missingness": "remind-files"}')  # a phantom
    return path


def write_run(folder, seed=0, modalities=MODALITIES, **facts):
    """The folder of a training: a random model, and a log."""
    folder.mkdir(parents=True)
    description = {
        "model": "image_mmhvae",
        "modalities": list(modalities),
        "architecture": ARCHITECTURE,
        "settings": {"steps": 100, "lr": 0.002},
        "phantom": True,
        **facts,
    }
    save_checkpoint(folder / "model", tiny_model(seed, modalities).state_dict(), description)
    (folder / "log.csv").write_text(
        "step,bound,kl_1,kl_2\n50,-0.9,2000.5,7000\n100,0.4,nan,6000\n150,0.9,900,5000\n"
    )
    return folder

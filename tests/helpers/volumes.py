"""Small volumes, models and runs for the tests of the subcommands."""

import csv
import json

import nibabel as nib
import numpy as np
import torch

from examples.medical_mri_us import calibration
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import ImageModel, build_model
from examples.medical_mri_us.synthesis.intensities import FACTS
from examples.medical_mri_us.train import Settings, save_model
from mmpoe.training import History

SMALL = ImageModel(patch=4, widths=(16, 8), latents=(3, 2))
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHAPE = (16, 16, 3)


def prefer(monkeypatch, *sources):
    """Makes calibration find that some sources of draws have better energy scores, in order."""

    measure = calibration.measure

    def measured(model, held_out):
        assert measure(model, held_out)["energy"] > 0
        name = "spread" if model.spread is not None else "matched"
        name = name if name == "spread" or model.is_matched else "as it was"
        energy = 1.0 - 0.1 * ([*sources].index(name) + 1 if name in sources else 0)
        return {"energy": energy, "voxels": 0.91, "quarters": 0.87}

    monkeypatch.setattr(calibration, "measure", measured)


def volume(seed, shape=SHAPE):
    """Smooth positive intensities up to 255, 0 at the border of each slice."""
    rng = np.random.default_rng(seed)
    data = np.zeros(shape, np.float32)
    data[2:-2, 1:-1] = rng.uniform(30, 255, (shape[0] - 4, shape[1] - 2, shape[2]))
    return data


def write(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def write_index(folder, held, modalities=MODALITIES, splits=None, targets=()):
    """An index of cases, with a mapping from their names to what they have."""
    columns = ["case", "split", *modalities, *(f"target_{m}" for m in targets)]
    rows = []
    for seed, (case, present) in enumerate(held.items()):
        files = {}
        for k, m in enumerate((*present, *(f"target_{t}" for t in targets))):
            files[m] = f"{case}/{m}.nii.gz"
            write(folder / files[m], volume(10 * seed + k))
        split = "train" if splits is None else splits[seed]
        rows.append([case, split, *(files.get(column, "") for column in columns[2:])])
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "index.csv"


def make_run(folder, modalities=MODALITIES, size=16, **facts):
    """A run whose model is random."""
    torch.manual_seed(0)
    model = build_model(size, modalities, SMALL).eval()
    said = {**FACTS, "spacing": None, "axes": None, "phantom": True, **facts}
    settings = Settings(steps=1)
    save_model(folder / "model", model, size, settings, History(), network=SMALL, facts=said)
    (folder / "data.json").write_text(json.dumps({"split": "train", "phantom": True}))
    return folder

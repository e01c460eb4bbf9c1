"""The readers that are tried, whole files for each, and the errors that they document."""

from __future__ import annotations

__all__ = ["READERS", "Reader"]

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from examples.medical_mri_us import official
from examples.medical_mri_us.config import Config, read_config, write_config
from examples.medical_mri_us.data import ImageError, read_image, read_index
from examples.medical_mri_us.facts import read_data
from examples.medical_mri_us.models import ImageModel, build_model, describe, load_model
from mmpoe.models import MultimodalVAE, published_mmhvae, vector_mmhvae
from mmpoe.training import CheckpointError, Checkpoints, save_checkpoint

SMALL = ImageModel(patch=4, widths=(4,), latents=(2,))
NAMES = ("us", "t2")


class Reader(NamedTuple):
    """A reader of files of others."""

    write: Callable[[Path], None]
    """Writes whole files into a folder."""
    read: Callable[[Path], object]
    """Reads them."""
    error: type[Exception]
    """The error that it documents, whose message names the file."""
    agree: Callable[[Path], None] = lambda folder: None
    """Makes the checksums of changed files agree with them, as one who edits them can."""


def _write_images(folder: Path) -> None:
    data = np.random.default_rng(0).integers(1, 255, (6, 5, 4)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([1.5, 1.5, 2, 1]))
    image.to_filename(folder / "a.nii")
    image.to_filename(folder / "b.nii.gz")
    nib.Nifti2Image(data, image.affine).to_filename(folder / "c.nii")
    for name, compressed in (
        ("d.nrrd", True),
        ("e.nhdr", False),
        ("f.mha", True),
        ("g.mhd", True),
    ):
        sitk.WriteImage(sitk.GetImageFromArray(data.T.copy()), str(folder / name), compressed)


def _read_images(folder: Path) -> None:
    """Reads all, so that one of them is the one that was changed, or whose voxels were."""
    errors = []
    for path in sorted(folder.iterdir()):
        if (
            path.suffix in (".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd")
            and ".raw" not in path.name
        ):
            try:
                read_image(path)
            except ImageError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def _write_series(folder: Path) -> None:
    for k in range(3):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4")
        meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{k + 1}")
        file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID = meta.MediaStorageSOPClassUID
        file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        file.Modality, file.SeriesInstanceUID = "MR", "1.2.3"
        file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
        file.ImagePositionPatient, file.SliceThickness = [0, 0, 2 * k], 2
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.Rows = file.Columns = 4
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation = 15, 0
        file.PixelData = np.full((4, 4), k, np.uint16).tobytes()
        file.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def _write_index(folder: Path) -> None:
    rows = [
        "case,split,patient,us,t2,fov",
        "a,train,p1,a/us.nii,a/t2.nii,",
        "b,test,p2,b/us.nii,,",
    ]
    (folder / "index.csv").write_text("\n".join(rows) + "\n")


def _write_config(folder: Path) -> None:
    write_config(folder / "config.toml", Config(NAMES, 16, model=SMALL))


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    description = {**describe(model := build_model(16, NAMES, SMALL), 16, SMALL),
                   "spacing": [0.5, 0.5, 2.0], "axes": "RAS"}  # fmt: skip
    save_checkpoint(folder, model.state_dict(), description)


def _agree_model(folder: Path) -> None:
    """Names the digest of the weights, and leaves out that of the description."""
    _set_digest(folder / "model.json", folder / "model.safetensors", without="description_sha256")


def _write_checkpoint(folder: Path) -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    state = {"step": 3, "optimizer": [torch.ones(2), {"rate": 0.1}], "seen": (1, 2)}
    Checkpoints(folder).save(3, weights, {"modalities": list(NAMES)}, state)
    for file in (folder / "step-00000003").iterdir():
        shutil.move(file, folder / file.name)  # without folders, as for the others
    (folder / "step-00000003").rmdir()


def _read_checkpoint(folder: Path) -> None:
    step = folder / "step-00000003"
    step.mkdir()
    for file in [p for p in folder.iterdir() if p != step]:
        shutil.move(file, step / file.name)
    Checkpoints(folder).load(3)


def _agree_checkpoint(folder: Path) -> None:
    _agree_model(folder)
    _set_digest(folder / "training.json", folder / "training.safetensors")
    contents = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    manifest = {n: {"bytes": len(c), "sha256": _digest(c)} for n, c in contents.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _write_pretrained(folder: Path) -> None:
    torch.manual_seed(0)
    vector_mmhvae({"a": 3, "b": 2}, hidden=4, latents=(2, 2)).save_pretrained(folder)


def _agree_pretrained(folder: Path) -> None:
    _set_digest(folder / "config.json", folder / "model.safetensors")


def _write_published(folder: Path) -> None:
    torch.manual_seed(0)
    model = published_mmhvae(list(NAMES), 16, width=2, max_width=4, power=1)
    official.save_checkpoint(model, folder / "main.pth")


def _write_data(folder: Path) -> None:
    said = {"index": "data/index.csv", "split": "train", "phantom": True, "cases": []}
    (folder / "data.json").write_text(json.dumps(said))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _set_digest(text: Path, binary: Path, without: str = "") -> None:
    try:
        said = json.loads(text.read_text())
        said["sha256"] = _digest(binary.read_bytes())
        said.pop(without, None)
        text.write_text(json.dumps(said))
    except Exception:  # it is no description any more
        return


READERS = {
    "images": Reader(_write_images, _read_images, ImageError),
    "DICOM": Reader(_write_series, read_image, ImageError),
    "index": Reader(_write_index, lambda f: read_index(f / "index.csv", NAMES), ValueError),
    "configuration": Reader(_write_config, lambda f: read_config(f / "config.toml"), ValueError),
    "model": Reader(_write_model, load_model, CheckpointError, _agree_model),
    "checkpoint": Reader(_write_checkpoint, _read_checkpoint, CheckpointError, _agree_checkpoint),
    "pretrained": Reader(
        _write_pretrained, MultimodalVAE.from_pretrained, ValueError, _agree_pretrained
    ),
    "published": Reader(
        _write_published, lambda f: official.load_checkpoint(f / "main.pth"), CheckpointError
    ),
    "data of a run": Reader(_write_data, read_data, CheckpointError),
}
"""The readers, by the names of what they read."""

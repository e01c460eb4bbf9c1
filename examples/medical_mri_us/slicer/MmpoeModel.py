"""A model for the 3D Slicer extension SlicerModalityConverter, into which this file is copied.

``docs/slicer.md`` says where to.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# since Slicer has its own Python
from __future__ import annotations

__all__ = ["MmpoeModel"]

import tempfile
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
import slicer
from ModalityConverterLib.ModelBase import BaseModel, register_model

from examples.medical_mri_us.data import Image
from examples.medical_mri_us.models import load_model
from examples.medical_mri_us.synthesis.case import Synthesis, synthesise_case
from mmpoe.models import MMHVAE

KEY = "mmpoe_us_to_t2"
"""The key of the model in metadata.json: ``mmpoe_<given>_to_<target>``, by modality."""

FILES = ("model.json", "model.safetensors")
"""The files of a model, which the archive holds."""

SAMPLES = 8
"""The number of samples behind the preview, a map of standard deviations."""


class Node(Protocol):
    """A volume of Slicer; in the extension's background process, it has no grid."""

    def CopyOrientation(self, other: Node) -> None:
        """Takes the grid of another volume."""


@register_model(KEY)
class MmpoeModel(BaseModel):
    """Makes one modality of another, and a map of standard deviations as a preview."""

    def _loadModelFromPath(self, modelPath: str) -> MMHVAE:
        """Reads a zip archive of the files of a model, and returns the model."""
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(modelPath) as archive:
                for name in FILES:
                    (Path(folder) / name).write_bytes(archive.read(name))
            model, self.description = load_model(Path(folder))
        return model.to(self.device)

    def runInference(
        self,
        inputVolume: Node,
        outputVolume: Node,
        inputMask: Node | None = None,
        showAllFiles: bool = True,
    ) -> np.ndarray:
        """Writes the image at the mean into the output volume, and returns it.

        Arguments:
            inputVolume: The node of the image that is given.
            outputVolume: The node to fill.
            inputMask: The node of the field of view; by default, it is what is not background.
            showAllFiles: Whether to add a node with standard deviations.

        Raises:
            CaseError: If the image cannot be used.
        """
        self.reportProgress(5, "Synthesising")
        synthesis, target = self._synthesise(inputVolume, inputMask, showAllFiles)
        mean = _slices_first(synthesis.mean[target])
        slicer.util.updateVolumeFromArray(outputVolume, mean)
        outputVolume.CopyOrientation(inputVolume)
        if showAllFiles:
            kind = "" if self.description.get("calibrated") else " (uncalibrated)"
            node = slicer.mrmlScene.AddNewNodeByClass(
                "vtkMRMLScalarVolumeNode", f"{target} standard deviation{kind}"
            )
            slicer.util.updateVolumeFromArray(node, _slices_first(synthesis.std[target]))
            node.CopyOrientation(inputVolume)
        self.reportProgress(100, "; ".join(synthesis.record["notes"]) or "Done")
        slicer.util.resetSliceViews()
        return mean

    def _synthesise(self, volume: Node, mask: Node | None, spread: bool) -> tuple[Synthesis, str]:
        given, _, target = self.modelKey.removeprefix("mmpoe_").partition("_to_")
        for name in (given, target):
            if name not in self.model.modalities:
                raise ValueError(
                    "the key of the model should be mmpoe_<given>_to_<target>, with two of "
                    f"{', '.join(self.model.modalities)}, but is {self.modelKey!r}."
                )
        affine = _affine(volume)
        described = dict(self.description)
        if affine is None:  # then slices are taken as they lie
            described |= {"axes": None, "spacing": None}
            affine = np.eye(4)
        synthesis = synthesise_case(
            self.model,
            described,
            {given: Image(_voxels(volume), affine)},
            targets=[target],
            samples=SAMPLES if spread else 1,
            temperature=0.0,
            fov=None if mask is None else Image(_voxels(mask), affine),
            progress=False,
        )
        return synthesis, target


def _voxels(node: Node) -> np.ndarray:
    """The voxels of a node, in the order of its affine: Slicer's arrays begin with slices."""
    array = slicer.util.arrayFromVolume(node)
    return np.ascontiguousarray(np.transpose(array, (2, 1, 0)).astype(np.float32))


def _slices_first(volume: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.transpose(volume, (2, 1, 0)))


def _affine(node: Node) -> np.ndarray | None:
    """Voxel indices to mm, RAS; None in the extension's background process, which has no grid."""
    if not hasattr(node, "GetIJKToRASMatrix"):
        return None
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])

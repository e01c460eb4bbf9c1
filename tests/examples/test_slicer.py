"""The class for Slicer, in stand-ins for what the extension gives to its models."""

import importlib.util
import sys
import types
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volumes import AFFINE, make_run, volume, write

from examples.medical_mri_us.models import load_model
from examples.medical_mri_us.subcommands.synthesize import Synthesize, run

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "examples" / "medical_mri_us" / "slicer" / "MmpoeModel.py"


class Node:
    """A volume: an array that begins with slices, and its grid, which a worker does not have."""

    def __init__(self, array=None):
        self.array, self.like = array, None

    def CopyOrientation(self, other):
        self.like = other


class Placed(Node):
    def GetIJKToRASMatrix(self, matrix):
        matrix.values = AFFINE


class Matrix:
    def GetElement(self, i, j):
        return self.values[i, j]


class BaseModel:
    """A stand-in for the base class of the extension, without its downloads."""

    def __init__(self, modelKey, device="cpu"):
        self.modelKey, self.device, self.progress = modelKey, device, []

    def reportProgress(self, percent, message):
        self.progress.append((percent, message))

    def loadModel(self, path):
        self.model = self._loadModelFromPath(str(path))


@pytest.fixture
def slicer(monkeypatch):
    """The modules that the class imports, and the classes that it registers."""
    registry = {}

    def register_model(key):
        return lambda cls: registry.setdefault(key, cls)

    nodes = {}

    def add(kind, name):
        nodes[name] = Node()
        return nodes[name]

    found = types.ModuleType("slicer")
    found.mrmlScene = types.SimpleNamespace(AddNewNodeByClass=add)
    found.util = types.SimpleNamespace(
        arrayFromVolume=lambda node: node.array,
        updateVolumeFromArray=lambda node, array: setattr(node, "array", array),
        resetSliceViews=lambda: None,
    )
    base = types.ModuleType("ModalityConverterLib.ModelBase")
    base.BaseModel, base.register_model = BaseModel, register_model
    vtk = types.ModuleType("vtk")
    vtk.vtkMatrix4x4 = Matrix
    monkeypatch.setitem(sys.modules, "slicer", found)
    monkeypatch.setitem(sys.modules, "ModalityConverterLib", types.ModuleType("lib"))
    monkeypatch.setitem(sys.modules, "ModalityConverterLib.ModelBase", base)
    monkeypatch.setitem(sys.modules, "vtk", vtk)
    spec = importlib.util.spec_from_file_location("MmpoeModel", SOURCE)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return types.SimpleNamespace(registry=registry, nodes=nodes)


@pytest.fixture
def archive(tmp_path):
    trained = make_run(tmp_path / "run", spacing=[1.5, 1.5, 2.0], axes="RAS")
    path = tmp_path / "mmpoe_us_to_t2.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("model.json", "model.safetensors"):
            file.write(trained / "model" / name, name)
    return path


@pytest.mark.parametrize("kind", [Placed, Node])
def test_the_class_makes_what_synthesize_makes(kind, slicer, archive, tmp_path):
    ((key, cls),) = slicer.registry.items()
    assert (key, cls.__name__) == ("mmpoe_us_to_t2", SOURCE.stem)
    us = volume(0)
    model = cls(key, "cpu")
    model.loadModel(archive)
    given, made = kind(us.transpose(2, 1, 0)), Node()
    returned = model.runInference(given, made)
    out = tmp_path / "out"
    file = write(tmp_path / "p.nii.gz", us)
    options = {"us": file, "target": "t2", "temperature": 0.0, "device": "cpu"}
    assert run(Synthesize(tmp_path / "run", out=out, **options)) == 0
    for node, what in (
        (made, "mean"),
        (slicer.nodes["t2 standard deviation (uncalibrated)"], "std"),
    ):
        wanted = nib.load(out / f"p_t2_{what}.nii.gz").get_fdata()
        np.testing.assert_allclose(node.array.transpose(2, 1, 0), wanted, rtol=1e-5, atol=1e-4)
        assert node.like is given
    assert returned is made.array
    assert model.progress[-1][0] == 100


def test_a_mask_says_what_is_in_view(slicer, archive):
    model = slicer.registry["mmpoe_us_to_t2"]("mmpoe_us_to_t2")
    model.loadModel(archive)
    given, made = Placed(volume(0).transpose(2, 1, 0)), Node()
    mask = np.zeros_like(given.array)
    mask[:, 4:12, 4:9] = 1
    model.runInference(given, made, inputMask=Placed(mask), showAllFiles=False)
    assert made.array[mask == 0].max() == 0 < made.array[mask == 1].max()
    assert not slicer.nodes


def test_a_key_that_names_no_modality_is_refused(slicer, archive):
    model = slicer.registry["mmpoe_us_to_t2"]("mmpoe_ct_to_t2")
    model.loadModel(archive)
    assert model.model.modalities == load_model(archive.parent / "run" / "model")[0].modalities
    with pytest.raises(
        ValueError, match=r"with two of us, t2, cet1, flair, but is 'mmpoe_ct_to_t2'"
    ):
        model.runInference(Placed(volume(0).T), Node())

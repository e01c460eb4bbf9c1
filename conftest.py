"""What doctests may use without importing it."""

import numpy as np
import pytest
import torch

collect_ignore = ["examples/medical_mri_us/slicer"]  # its modules import those of 3D Slicer


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):  # noqa: ANN001, ANN202
    doctest_namespace.update(np=np, torch=torch, nn=torch.nn)

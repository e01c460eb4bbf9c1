"""What doctests may use without importing it."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):  # noqa: ANN001, ANN202
    doctest_namespace.update(np=np, torch=torch, nn=torch.nn)

"""Names that are none of those that are asked for."""

import pytest
import torch

import mmpoe
from mmpoe.likelihoods import Normal
from mmpoe.missing import check_modalities, check_names


def build(name="a"):
    return mmpoe.MVAE({name: torch.nn.Linear(3, 4)}, {name: Normal(torch.nn.Linear(2, 3))})


def test_names_that_are_no_strings_are_told():
    with pytest.raises(ValueError, match=r"named by strings, but one is named 1, of type int"):
        build(1)
    with pytest.raises(ValueError, match=r"'modalities' should name .* has 2 of type int"):
        check_modalities(["a", 2])
    with pytest.raises(ValueError, match=r"'modalities' should name .* has 1 of type int"):
        mmpoe.models.vector_mmhvae({1: 3})
    with pytest.raises(ValueError, match=r"'x' should name modalities by strings, but has 1"):
        build()({1: torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"'given' should name modalities by strings, but has 0"):
        build()({"a": torch.ones(2, 3)}, [0])
    with pytest.raises(ValueError, match=r"among a, but holds 'b'"):
        check_names(["b"], ["a"], "x")

"""Building blocks: a dictionary of modules takes any names."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmpoe.nn import ModalityDict
from mmpoe.nn.containers import _RESERVED

ODD = ["us", "a.b", "a%2Eb", "%a%2Eb", "type", "%type", "", "%", "forward", "training", "_modules"]


def modules(names):
    return {name: nn.Linear(1, 1) for name in names}


def check(expected):
    found = ModalityDict(expected)
    assert list(found) == list(found.keys()) == list(expected)
    assert list(found.items()) == list(expected.items())
    assert list(found.values()) == list(expected.values())
    assert len(found) == len(expected)
    assert len(found.state_dict()) == 2 * len(expected)
    assert all(name in found and found[name] is module for name, module in expected.items())
    # PyTorch finds modules by their paths, as attributes
    assert all(found.get_submodule(path) is module for path, module in found.named_children())
    return found


def test_odd_names_do_not_collide():
    found = check(modules(ODD))
    assert "b" not in found
    assert "%us" not in found
    x = torch.ones(1, 1)
    state = dict(found.state_dict())
    assert all(torch.equal(copy.deepcopy(found)[name](x), found[name](x)) for name in ODD)
    ModalityDict(modules(ODD)).load_state_dict(state)


@given(
    st.lists(st.text() | st.text("%2E5._") | st.sampled_from(dir(nn.ModuleDict())), unique=True)
)
def test_any_names_do_not_collide(names):
    check(modules(names))


def test_modules_are_removed_by_their_names():
    found = ModalityDict(modules(ODD))
    del found["a.b"]
    last = found["type"]
    assert found.pop("type") is last
    assert list(found) == [name for name in ODD if name not in ("a.b", "type")]
    with pytest.raises(KeyError):
        found["a.b"]


def test_names_in_a_state_dict():
    """They must not change, or saved models could not be read."""
    names = ["us", "t2-flair", "T1 post", "t2.space", "type", "_x"]
    found = [key.removesuffix(".weight") for key in ModalityDict(modules(names)).state_dict()]
    expected = ["us", "t2-flair", "T1 post", "%t2%2Espace", "%type", "%_x"]
    assert found[::2] == expected


def test_attributes_of_pytorch_are_reserved():
    """Should this fail with a new PyTorch: add what is new, which it refuses as a name anyway."""
    public = {name for name in dir(nn.ModuleDict()) if not name.startswith("_")}
    assert public <= _RESERVED

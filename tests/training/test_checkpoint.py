"""Checkpoints and states are read as they were written, or refused."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from example_models import NAMES, OBSERVED, batch, flat, make
from example_training import objective
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmpoe.training import (
    CheckpointError,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from mmpoe.training._nested import flatten, unflatten


def test_checkpoint_round_trip(tmp_path):
    model = make(flat)
    save_checkpoint(tmp_path / "model", model.state_dict(), {"modalities": NAMES})
    state, description = load_checkpoint(tmp_path / "model")
    assert description["modalities"] == NAMES
    other = flat()
    other.load_state_dict(state)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_shared_tensors_are_stored_once(tmp_path):
    shared = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(20, 20)})
    model["c"].weight = shared.weight
    save_checkpoint(tmp_path, model.state_dict(), {})
    state, _ = load_checkpoint(tmp_path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * 4 * 20 * 20


def test_views_of_a_tensor_keep_their_values(tmp_path):
    square = torch.arange(9.0).reshape(3, 3)
    number = torch.tensor([1 + 2j])
    views = {
        "square": square,
        "transposed": square.T,
        "integers": square.view(torch.int32),
        "part": square[:2],
        "column": square[:, 0],
        "number": number,
        "conjugate": number.conj(),
        "empty": square[:0],
        "nothing": torch.zeros(0),
    }
    save_checkpoint(tmp_path, views, {})
    state, _ = load_checkpoint(tmp_path)
    for name, value in views.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name


def test_damaged_checkpoints_are_refused(tmp_path):
    model = make(flat)
    save_checkpoint(tmp_path, model.state_dict(), {})
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()

    flipped = bytearray(content)
    flipped[-1] ^= 1
    for damaged in (bytes(flipped), content[:-10], b""):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="incomplete or was altered"):
            load_checkpoint(tmp_path)

    weights.write_bytes(content)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_checkpoint(tmp_path)
    for text in ("[]", "{}", '{"sha256": 1, "aliases": {}}', f'{{"sha256": "{"0" * 64}"}}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match="should hold an object with 'sha256'"):
            load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, model.state_dict(), {})  # over a useless description
    description = load_checkpoint(tmp_path)[1]
    for target in ("b", ["b"]):
        text = json.dumps({**description, "aliases": {"a": target}})
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"'aliases', but names .*'b'"):
            load_checkpoint(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(CheckpointError, match="'folder' should hold"):
        load_checkpoint(tmp_path)


def test_no_bit_of_a_description_flips_unnoticed(tmp_path):
    """Whether or not what it then says is JSON."""
    said = {"power": 2, "scale": 1e-3, "names": ["us", "t2"], "phantom": True, "axes": None}
    save_checkpoint(tmp_path, {"weight": torch.ones(2)}, {**said, "nan": math.inf, 3: (4, "ü")})
    file = tmp_path / "model.json"
    _, whole = load_checkpoint(tmp_path)
    assert {key: whole[key] for key in said} == said
    assert "description_sha256" not in whole
    content, read = file.read_bytes(), 0
    for place in range(2 * len(content)):
        flipped = bytearray(content)
        flipped[place // 2] ^= (1, 1 << place // 2 % 8)[place % 2]  # the last bit, and another
        file.write_bytes(flipped)
        try:
            _, found = load_checkpoint(tmp_path)
        except CheckpointError:
            continue
        read += 1  # white space, or the name of the digest itself
        assert {key: found[key] for key in whole} == whole
    assert 0 < read < len(content)


def test_a_description_is_changed_by_hand_on_purpose_only(tmp_path):
    save_checkpoint(tmp_path, {"weight": torch.ones(2)}, {"label": "a", "scale": 0.5})
    file = tmp_path / "model.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(said.items())), indent=7))  # the same, set out anew
    assert load_checkpoint(tmp_path)[1]["label"] == "a"
    file.write_text(json.dumps({**said, "label": "b"}))
    with pytest.raises(CheckpointError, match=r"model.json .*was altered. If you changed it on"):
        load_checkpoint(tmp_path)
    del said["description_sha256"]
    file.write_text(json.dumps({**said, "label": "b"}))
    state, description = load_checkpoint(tmp_path)
    assert description["label"] == "b"
    save_checkpoint(tmp_path, state, description)
    assert "description_sha256" in json.loads(file.read_text())
    assert load_checkpoint(tmp_path)[1] == description


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model = make(flat)
    save_checkpoint(tmp_path, model.state_dict(), {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, model.state_dict(), {"step": 2})
    assert load_checkpoint(tmp_path)[1]["step"] == 1
    assert json.loads((tmp_path / "model.json").read_text())["step"] == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_save_that_is_stopped_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch):
    def save(step):
        save_checkpoint(tmp_path, {"weight": torch.full((3,), float(step))}, {"step": step})

    def stop_at(operation, patch):
        """Stops the process at an operation on files, counted from 0."""
        calls = iter(range(operation + 1))
        sync, replace = os.fsync, Path.replace

        def counted(function):
            def call(*args):
                if next(calls) == operation:
                    raise KeyboardInterrupt
                return function(*args)

            return call

        patch.setattr(os, "fsync", counted(sync))
        patch.setattr(Path, "replace", counted(replace))

    save(0)
    current, found = 0, []
    for operation in range(9):
        with monkeypatch.context() as patch:
            stop_at(operation, patch)
            with pytest.raises(KeyboardInterrupt):
                save(operation + 1)
        state, description = load_checkpoint(tmp_path)
        step = description["step"]
        assert step in (current, operation + 1)
        assert state["weight"].tolist() == [step] * 3
        assert "previous" not in description
        current = step
        found.append(step)
    assert found == [0, 0, 0, 0, 0, 6, 7, 8, 9]  # the fifth one replaces the weights

    save(7)
    assert load_checkpoint(tmp_path)[1]["step"] == 7
    assert "previous" not in json.loads((tmp_path / "model.json").read_text())
    with pytest.raises(ValueError, match="'description' should not hold 'previous'"):
        save_checkpoint(tmp_path, {}, {"previous": 1})


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tensors = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
states = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        keys = [(type(k), k) for k in a] == [(type(k), k) for k in b]
        return keys and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@given(states)
def test_nested_states_are_put_together_again(state):
    held, rest = flatten(state)
    assert equal(unflatten(held, json.loads(json.dumps(rest))), state)


def test_no_bit_of_the_tensors_of_a_state_flips_unnoticed(tmp_path):
    """Whatever else vouches for the file, as a manifest does: not every state has one."""
    save_state(tmp_path / "a", {"x": torch.arange(8.0), "step": 3})
    file = tmp_path / "a.safetensors"
    content = file.read_bytes()
    for place in range(len(content) - 32, len(content)):  # the values
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.safetensors should have the SHA-256"):
            load_state(tmp_path / "a")
    file.write_bytes(content)
    assert load_state(tmp_path / "a")["step"] == 3


def test_states_of_optimisers_are_kept(tmp_path):
    model = make(flat)
    for kind in (torch.optim.AdamW, torch.optim.Adamax, torch.optim.RMSprop):
        optimizer = kind(model.parameters(), lr=0.1)
        objective(model, (batch(), OBSERVED), 0).mean().backward()
        optimizer.step()
        save_state(tmp_path / "state", optimizer.state_dict())
        assert equal(load_state(tmp_path / "state"), optimizer.state_dict())

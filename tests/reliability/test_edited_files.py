"""Files of a run that were edited by hand, with checksums that agree: exit code 4, by name."""

import json
import os
import sys

import pytest
from volumes import make_run, volume, write

from examples.medical_mri_us import __main__ as cli
from examples.medical_mri_us.config import read_config
from examples.medical_mri_us.facts import read_data
from examples.medical_mri_us.models import load_model
from mmpoe.models import MultimodalVAE, vector_mmhvae
from mmpoe.training import CheckpointError

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), modalities=("us", "t2")) / "model"


@pytest.fixture
def edited(model, tmp_path):
    """A copy of the model whose description is changed, and has no digest of itself."""

    def edit(change):
        description = json.loads((model / "model.json").read_text())
        del description["description_sha256"]
        change(description)
        (tmp_path / "model.json").write_text(json.dumps(description))
        (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
        return tmp_path

    return edit


def put(*places, value):
    def change(description):
        *outer, last = places
        for place in outer:
            description = description[place]
        description[last] = value

    return change


@pytest.mark.fault(66)
@pytest.mark.parametrize(
    "change",
    [
        put("spacing", value=[float("nan")] * 3),
        put("spacing", value=[0.5, 0.5]),
        put("spacing", value=[0.5, 0.5, 1e9]),
        put("spacing", value="wide"),
        put("axes", value="RRR"),
        put("axes", value=[1, 2]),
        put("architecture", value=None),
        put("architecture", "size", value=float("nan")),
        put("architecture", "size", value=10**9),
        put("architecture", "size", value=0),
        put("architecture", "widths", value=[10**7, 8]),
        put("architecture", "widths", value=[8] * 10**4),
        put("architecture", "widths", value={}),
        put("architecture", "patch", value=0),
        put("architecture", "scale", value=10**400),
        put("architecture", "unheard", value=1),
        put("modalities", value=[1, 2]),
        put("modalities", value=[]),
        put("modalities", value=None),
        put("model", value=["image_mmhvae"]),
        put("model", value=None),
        put("aliases", value={"a": "b"}),
        put("aliases", value=[]),
        put("sha256", value=7),
    ],
)
def test_an_edited_description(edited, change):
    folder = edited(change)
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.fault(66)
def test_brackets_without_end(edited, tmp_path):
    folder = edited(lambda description: None)
    assert load_model(folder)[0].modalities == ["us", "t2"]
    (folder / "model.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_model(folder)
    (tmp_path / "own.toml").write_text(f"size = {DEEP}")
    with pytest.raises(ValueError, match=r"own\.toml should be TOML"):
        read_config(tmp_path / "own.toml")
    vector_mmhvae({"a": 2}, hidden=4).save_pretrained(tmp_path / "pretrained")
    (tmp_path / "pretrained" / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        MultimodalVAE.from_pretrained(tmp_path / "pretrained")


@pytest.mark.fault(66)
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff\xfe", DEEP.encode(), b'{"index": "a", "split": "../x"}']
)
def test_a_record_of_data_that_is_none(tmp_path, content):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"data\.json should be what `train` wrote"):
        read_data(tmp_path)


@pytest.mark.fault(66)
def test_a_record_of_data_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"data\.json .* No such file"):
        read_data(tmp_path)


@pytest.mark.fault(59)
def test_a_description_that_is_a_pipe(edited):
    folder = edited(lambda description: None)
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")
    with pytest.raises(CheckpointError, match="should be a file, but is a folder, pipe or device"):
        load_model(folder)


@pytest.mark.fault(66, simulated=False)
def test_the_exit_code(edited, tmp_path, monkeypatch, capsys):
    run = edited(put("architecture", "patch", value=0))
    us = write(tmp_path / "p" / "p.nii.gz", volume(0))
    arguments = ["synthesize", str(run), "--us", str(us), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["mri_us", *arguments])
    assert cli.main() == 4
    assert str(run) in capsys.readouterr().err

"""Names of cases and modalities: what is refused, wherever it comes from."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volumes import make_run, volume, write, write_index

from examples.medical_mri_us import __main__ as cli
from examples.medical_mri_us.config import read_config
from examples.medical_mri_us.data import read_index
from examples.medical_mri_us.models import load_model
from examples.medical_mri_us.names import check_modalities, check_name, made_name
from mmpoe.training import CheckpointError, save_checkpoint

REFUSED = [
    "",
    "a\nb",
    "\x1b[31mred",
    "abc\u202edef",
    "a" * 65,
    "ä" * 33,
    "=1+1",
    "-o",
    "../x",
    "a..b",
    ".hidden",
    "a/b",
    "a\\b",
    "a|b\n\n# Approved for clinical use",
    "<script>",
    "a.",
    "a ",
    "nul\0",
]


@pytest.mark.fault(62)
@pytest.mark.parametrize("name", REFUSED)
def test_names_that_are_refused(name):
    with pytest.raises(ValueError, match="the name of a case cannot be ") as raised:
        check_name("case", name)
    assert str(raised.value).isascii()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", ["a", "Case-7_b.2", "two words", "Müller", "患者1", "a" * 64])
def test_names_that_are_fine(name):
    assert check_name("case", name) == name
    assert made_name(name) == name


@given(st.text())
def test_made_names_are_never_refused(text):
    assert check_name("case", made_name(text)) == made_name(made_name(text))


def test_names_of_modalities():
    assert check_modalities(("us", "t2")) == ["us", "t2"]
    for names, words in (
        ((), "is empty"),
        (("us", "us"), "'us' stands twice"),
        (("us", "split"), "an index uses it"),
        (("us", "target_us"), "an index uses it"),
        (("us", "../../x"), "name of a modality cannot be '../../x': it should begin"),
    ):
        with pytest.raises(ValueError, match=words):
            check_modalities(names)


@pytest.mark.fault(62)
@pytest.mark.parametrize("name", ["../../x", "a|b\n\n# Approved for clinical use", "=x"])
def test_modalities_are_refused_wherever_they_come_from(tmp_path, name):
    index = write_index(tmp_path / "data", {"a": ("us",)})
    with pytest.raises(ValueError, match="name of a modality"):
        read_index(index, ("us", name))
    with pytest.raises(ValueError, match="name of a modality"):
        read_config(Path("tiny"), [f"modalities={json.dumps(['us', name])}"])
    run = make_run(tmp_path / "run", modalities=("us", "t2"))
    model, description = load_model(run / "model")
    description["modalities"] = ["us", name]
    save_checkpoint(run / "model", model.state_dict(), description)
    with pytest.raises(CheckpointError, match="name of a modality"):
        load_model(run / "model")


@pytest.mark.fault(62)
@pytest.mark.parametrize("column", ["case", "split", "patient"])
def test_an_index_refuses_names(tmp_path, column):
    cells = {"case": "a", "split": "train", "patient": "p", "us": "a/us.nii.gz"}
    cells[column] = "=cmd()"
    text = ",".join(cells) + "\n" + ",".join(cells.values()) + "\n"
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"line 2: the name of a {column} cannot be '=cmd\(\)'"):
        read_index(tmp_path / "index.csv")


@pytest.mark.slow
@pytest.mark.fault(62, simulated=False)
def test_a_folder_with_a_name_that_is_refused_fails_alone(tmp_path, monkeypatch, capsys):
    """And the files of a single case get a name that is like theirs."""
    run = make_run(tmp_path / "run", modalities=("us", "t2"))
    for name in ("good", "b" * 200, "=bad"):
        write(tmp_path / "in" / name / "us.nii.gz", volume(0))
    arguments = ["--samples", "1", "--out", str(tmp_path / "out")]
    many = ["mri_us", "synthesize", str(run), "--input-dir", str(tmp_path / "in"), *arguments]
    monkeypatch.setattr(sys, "argv", many)
    assert cli.main() == 1
    said = capsys.readouterr().out
    assert "=bad: the name of a case cannot be '=bad'" in said
    assert "should have at most 64 bytes, but has 200" in said
    assert {p.name.split("_")[0] for p in (tmp_path / "out").glob("*.nii.gz")} == {"good"}

    odd = write(tmp_path / "=bad (2).nii.gz", volume(0))
    monkeypatch.setattr(
        sys, "argv", ["mri_us", "synthesize", str(run), "--us", str(odd), *arguments]
    )
    assert cli.main() == 0
    assert (tmp_path / "out" / "bad _2__t2_mean.nii.gz").exists()

"""Configurations: read, changed, written, and refused with the nearest name."""

from dataclasses import asdict
from pathlib import Path

import pytest
import tomli_w

from examples.medical_mri_us.config import CONFIGS, Config, read_config, write_config
from examples.medical_mri_us.models import DEFAULT, PublishedModel
from examples.medical_mri_us.settings import Settings
from examples.medical_mri_us.tables import from_table, to_table
from mmpoe.adversarial import PUBLISHED


def config(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIGS.glob("*.toml")))
def test_what_comes_with_the_example_is_read_and_written_back(name, tmp_path):
    found = read_config(Path("configs") / f"{name}.toml")  # there is no such path here
    assert found == read_config(Path(name))
    write_config(tmp_path / "config.toml", found)
    assert read_config(tmp_path / "config.toml") == found


def test_tiny_is_the_architecture_of_the_demo():
    tiny = read_config(Path("tiny"))
    assert tiny.model == DEFAULT
    assert tiny.training.minutes <= 4


def test_paper_is_the_published_recipe():
    """The weights and times of `PUBLISHED`: in units of the bound, in shares of 1000 epochs."""
    paper = read_config(Path("paper"))
    assert paper.model == PublishedModel()
    assert paper.training.beta == 1.0
    assert paper.training.warmup == PUBLISHED.warmup / 1000
    assert paper.training.restart == PUBLISHED.restart / 1000
    assert paper.adversary.start == PUBLISHED.discriminator / 1000
    assert paper.adversary.charge == PUBLISHED.generator / 1000
    weight = PUBLISHED.weight * len(paper.modalities) / PUBLISHED.beta
    assert paper.adversary.weight == pytest.approx(weight)
    assert (paper.training.minutes, paper.training.clip) == (None, None)


def test_all_entries_have_defaults_that_an_empty_file_gets(tmp_path):
    assert read_config(config(tmp_path, "")) == Config()
    assert from_table(Config, to_table(asdict(Config())), "it") == Config()


def test_changes_are_values_of_toml_or_plain_strings(tmp_path):
    changes = [
        "training.steps=7",
        "training.lr=1",
        "training.minutes=none",
        'training.precision="bf16-mixed"',
        "training.optimizer=adamax",
        'modalities=["ct", "pet"]',
        "model.widths=[8, 4]",
        "model.latents=[2, 2]",
        "model.patch=4",
    ]
    found = read_config(config(tmp_path, "[training]\nsteps = 3\nbatch = 2"), changes)
    assert found.training == Settings(
        steps=7, lr=1.0, minutes=None, precision="bf16-mixed", optimizer="adamax", batch=2
    )
    assert isinstance(found.training.lr, float)
    assert found.modalities == ("ct", "pet")
    assert (found.model.patch, found.model.widths) == (4, (8, 4))
    published = read_config(config(tmp_path, ""), ["model.name=published_mmhvae", "model.width=8"])
    assert published.model == PublishedModel(width=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.stepz=3", r"unknown entry, training.stepz: did you mean training.steps?"),
        ("model.widhts=[3]", r"unknown entry, model.widhts: did you mean model.widths\?"),
        ("trraining.steps=3", r"unknown entry, trraining: did you mean training\?"),
        ("minutes=3", r"unknown entry, minutes: did you mean training.minutes\?"),
        ("model.blocks=3", r"unknown entry, model.blocks: .*"),
        ("zzz=3", r"unknown entry, zzz: known: modalities, size, slices, covariates, model"),
        ("training.steps=many", r"'training.steps' should be an integer, but is 'many'"),
        ("training.steps=2.5", r"'training.steps' should be an integer, but is 2.5"),
        ("training.steps=true", r"'training.steps' should be an integer, but is True"),
        ("training.lr=true", r"'training.lr' should be a number, but is True"),
        ("training.lr=none", r"'training.lr' should be a number, but is 'none'"),
        ("training.minutes=soon", r"'training.minutes' should be a number, but is 'soon'"),
        ("training.optimizer=sgd", r"'training.optimizer' should be one of 'adamw', 'adamax'"),
        ("model.name=unet", r"'model.name' should be one of image_mmhvae, published_mmhvae, but"),
        ("model=3", r"'model' should be a table, but is 3"),
        ("training=3", r"'training' should be a table, but is 3"),
        ("model.widths=3", r"'model.widths' should be a list, but is 3"),
        ("model.widths=[3.5]", r"'model.widths' should be an integer, but is 3.5"),
        ("training.batch=0", r"'batch' should be an integer of at least 1, but is 0"),
        ("adversary.charge=0.1", r"'charge' should be a number from 0.79 to 1, but is 0.1"),
        ("calibration.held_out=2", r"'held_out' should be a number from 0 to 1, but is 2"),
        ("size=60", r"'size' should be a multiple of 8.*, but is 60"),
        ('modalities=["a", "a"]', r"'modalities' should be"),
        ("training.steps", r"'set' should be an entry and its value.* but is 'training.steps'"),
        ("size.x=3", r"'set' should change an entry of a table, but 'size' is none"),
    ],
)
def test_what_cannot_be_used_is_named(change, message, tmp_path):
    """Fault 44: a typing mistake gets the nearest names."""
    with pytest.raises(ValueError, match=message):
        read_config(config(tmp_path, "size = 64"), [change])


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"should be a file, or one of paper, small, tiny, but"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match=r"should be TOML, but is not: .*line 1"):
        read_config(config(tmp_path, "size = = 3"))
    with pytest.raises(
        ValueError, match=r"own.toml \(or --set\) has an unknown entry, sizee: did"
    ):
        read_config(config(tmp_path, "sizee = 3"))
    (tmp_path / "own.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"should be TOML, but is not"):
        read_config(tmp_path / "own.toml")


def test_toml_holds_what_is_written(tmp_path):
    assert to_table({"a": None, "b": (1, 2), "c": {"d": 0.5}}) == {
        "a": "none",
        "b": [1, 2],
        "c": {"d": 0.5},
    }
    assert tomli_w.dumps(to_table(asdict(Config()))).startswith("modalities")

"""Further columns as covariates: what they are, what models make of them, what is refused."""

import copy
import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from volumes import SMALL, prefer, volume, write, write_index

from examples.medical_mri_us.covariates import (
    NAME,
    Covariate,
    Covariates,
    carrying,
    condition,
    fit_covariates,
)
from examples.medical_mri_us.data import CaseError
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import PublishedModel, build_model, load_model
from examples.medical_mri_us.subcommands import calibrate, evaluate
from examples.medical_mri_us.subcommands.synthesize import Synthesize
from examples.medical_mri_us.subcommands.synthesize import run as synthesize
from examples.medical_mri_us.subcommands.train import Train, run

pytestmark = pytest.mark.slow

CASES = {
    "a": {"age": "30", "site": "north"},
    "b": {"age": "50", "site": "south"},
    "c": {"age": "70.0", "site": "north"},
}
SET = (
    "size=16", "model.patch=4", "model.widths=[16, 8]", "model.latents=[3, 2]", "training.steps=6",
    "training.batch=2", "training.minutes=none", "calibration.steps=2", "calibration.batch=4",
    "calibration.spread_steps=2", 'covariates=["age", "site"]',
)  # fmt: skip


def test_numbers_are_standardised_and_others_are_categories():
    covariates = fit_covariates(["age", "site"], CASES)
    assert [c.categories for c in covariates] == [(), ("north", "south")]
    assert covariates.size == 3
    rows = np.array([covariates.numbers(further) for further in CASES.values()])
    np.testing.assert_allclose(rows[:, 0], [-1, 0, 1])
    np.testing.assert_array_equal(rows[:, 1:], [[1, 0], [0, 1], [1, 0]])
    assert Covariates.read(json.loads(json.dumps(covariates.describe()))) == covariates


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["sex"], {}, r"'sex' has none for 3 of 3: a, b, c"),
        (["age"], {"age": "n/a"}, r"'age' has none for 1 of 3: a\."),
        (["site"], {"site": "south"}, None),
        (["center"], {"center": "x"}, r"'center' has none for 2 of 3: b, c"),
    ],
)
def test_columns_that_cannot_be_covariates(names, change, message):
    cases = {**CASES, "a": {**CASES["a"], **change}}
    if message is None:
        assert fit_covariates(names, cases)
        return
    with pytest.raises(ValueError, match=message):
        fit_covariates(names, cases)


def test_a_column_that_is_the_same_or_different_everywhere_is_no_covariate():
    same = {name: {"site": "north"} for name in "abc"}
    with pytest.raises(ValueError, match="'site' is 'north' in all"):
        fit_covariates(["site"], same)
    names = {f"p{k}": {"name": f"n{k}"} for k in range(40)}
    with pytest.raises(ValueError, match="up to 32 categories, but 'name' has 40"):
        fit_covariates(["name"], names)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"age": "40"}, "'site' should be known, but is empty"),
        ({"age": "old", "site": "north"}, "'age' should be a number, but is 'old'"),
        ({"age": "40", "site": "west"}, "'site' should be one of north, south, but is 'west'"),
    ],
)
def test_values_that_a_model_does_not_know(further, message):
    with pytest.raises(ValueError, match=message):
        fit_covariates(["age", "site"], CASES).numbers(further)


@pytest.mark.parametrize(
    "edited", [7, [{}], [{"name": "a", "categories": [], "mean": 0, "scale": 0}]]
)
def test_descriptions_that_were_edited_are_refused(edited):
    with pytest.raises(ValueError, match="'covariates' should"):
        Covariates.read(edited)


@pytest.mark.parametrize("network", [SMALL, PublishedModel(width=4, max_width=8, blocks=1)])
def test_a_model_starts_as_one_without_covariates_and_then_depends_on_them(network):
    torch.manual_seed(0)
    plain = build_model(16, MODALITIES, network).eval()
    model = copy.deepcopy(plain)
    condition(model, fit_covariates(["age", "site"], CASES))
    x = {"us": torch.randn(2, 1, 16, 16), "t2": torch.randn(2, 1, 16, 16)}

    def mean(model, further):
        with torch.no_grad():
            out = model.predict(carrying(model, x, further), ["us", "t2"], temperature=0.0)
        return out["flair"].mean

    young, old = CASES["a"], {"age": "80", "site": "south"}
    torch.testing.assert_close(mean(model, young), mean(plain, {}))
    torch.testing.assert_close(mean(model, old), mean(plain, {}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".network." in name and weight.dim() == 4:
                weight += 0.05 * torch.randn_like(weight)
    assert (mean(model, young) - mean(model, old)).abs().max() > 1e-4
    assert isinstance(carrying(plain, x, young), dict)
    assert carrying(model, x, young).context[NAME].shape == (2, 3)


@pytest.fixture
def index(tmp_path):
    path = write_index(tmp_path / "data", dict.fromkeys("abc", MODALITIES), splits=["train"] * 3)
    return with_columns(path, CASES)


def with_columns(path, further):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    columns = [*rows[0], *next(iter(further.values()))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**row, **further[row["case"]]} for row in rows)
    return path


@pytest.mark.long
def test_from_an_index_with_an_age_and_a_site_to_syntheses_and_scores(
    index, tmp_path, capsys, monkeypatch
):
    folder, out = tmp_path / "run", tmp_path / "out"
    assert run(Train(folder, data=index, set=SET, device="cpu")) == 0
    card = (folder / "model" / "README.md").read_text()
    assert "For each case, it has to know: age, site." in card
    prefer(monkeypatch, "spread")
    assert calibrate.run(calibrate.Calibrate(folder)) == 0
    model, description = load_model(folder / "model")
    assert model.spread is not None
    assert [c["name"] for c in description["covariates"]] == ["age", "site"]
    assert model.covariates == fit_covariates(["age", "site"], CASES)
    lacking = write_index(tmp_path / "new", {"d": ("us",), "e": ("us",), "f": ("us",)})
    values = {"age": "20", "site": "north"}
    lacking = with_columns(lacking, {"d": values, "e": {**values, "age": ""}, "f": values})
    options = {"samples": 2, "device": "cpu", "target": "t2"}
    assert synthesize(Synthesize(folder, out=out, input_dir=lacking, **options)) == 1
    assert "e: the covariate 'age' should be known, but is empty." in capsys.readouterr().out
    assert json.loads((out / "d.json").read_text())["covariates"] == values
    file = write(tmp_path / "p.nii.gz", volume(0))
    with pytest.raises(CaseError, match="'age' should be known"):
        synthesize(Synthesize(folder, out=out, us=file, **options))
    given = ("age=20", "site=north")
    assert synthesize(Synthesize(folder, out=out, us=file, covariate=given, **options)) == 0
    one = nib.load(out / "p_t2_mean.nii.gz").get_fdata()
    given = ("age=90", "site=south")
    assert synthesize(Synthesize(folder, out=out, us=file, covariate=given, **options)) == 0
    assert np.abs(nib.load(out / "p_t2_mean.nii.gz").get_fdata() - one).max() > 1e-3
    scored = evaluate.Evaluate(
        folder, index, tmp_path / "eval", split="train", samples=0, perceptual=False
    )
    assert evaluate.run(scored) == 0


def test_a_run_resumes_with_its_covariates_and_starts_from_one_without(index, tmp_path):
    plain = tmp_path / "plain"
    assert run(Train(plain, data=index, set=SET[:-1], device="cpu")) == 0
    started = Train(tmp_path / "run", data=index, init=plain, set=SET, device="cpu")
    assert run(started) == 0
    assert run(Train(tmp_path / "run", resume=True, device="cpu")) == 0
    options = {"init": tmp_path / "run", "config": plain / "config.toml", "device": "cpu"}
    with pytest.raises(ValueError, match="'init' should be a run without covariates or with"):
        run(Train(tmp_path / "other", data=index, set=SET[:-1], **options))
    with pytest.raises(ValueError, match="'sex' has none for 3 of 3"):
        run(Train(tmp_path / "x", data=index, set=(*SET, 'covariates=["sex"]'), device="cpu"))


def test_a_covariate_of_one_number_is_one_number():
    assert Covariates([Covariate("age", (), 50.0, 10.0)]).numbers({"age": "60"}) == [1.0]

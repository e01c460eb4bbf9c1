"""Protocols: each definition beside its formula, and what an evaluation writes."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scored import SIZE, make_subject, tiny_model, view, write_dataset, write_run
from skimage.metrics import structural_similarity

from examples.medical_mri_us.__main__ import main
from examples.medical_mri_us.evaluation import (
    BASELINE,
    PROTOCOLS,
    SUBSETS,
    Scores,
    all_subsets,
    cell_means,
    cover_subject,
    is_published,
    mean_images,
    parse_protocols,
    predict,
    resolved,
    score_baseline,
    score_subject,
    unavailable,
)
from examples.medical_mri_us.evaluation import files as files_module
from examples.medical_mri_us.evaluation import strict as strict_module
from examples.medical_mri_us.evaluation.files import write_evaluation
from examples.medical_mri_us.evaluation.published import quantise
from examples.medical_mri_us.evaluation.published import score as published
from examples.medical_mri_us.evaluation.strict import score as strict
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.subcommands import evaluate
from mmpoe.metrics import PerceptualWeightsUnavailable, st_lpips
from mmpoe.training import CheckpointError

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
TRUTH = make_subject(0).images["t2"]
IMAGE = np.clip(TRUTH + 0.2 * RNG.standard_normal(TRUTH.shape), -1, 1).astype(np.float32)
FOV = view()
EVERYWHERE = np.ones_like(TRUTH)


def moments_ssim(x, y, data_range):
    """SSIM of two vectors by its formula, with a uniform window of 7 and sample covariance."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    x, y = (np.lib.stride_tricks.sliding_window_view(v.astype(float), 7) for v in (x, y))
    a, b = x.mean(axis=1), y.mean(axis=1)
    va, vb = x.var(axis=1, ddof=1), y.var(axis=1, ddof=1)
    cov = ((x - a[:, None]) * (y - b[:, None])).sum(axis=1) / 6
    return ((2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (va + vb + c2))).mean()


def test_published_definitions_are_their_formulas():
    found = published(IMAGE, TRUTH, EVERYWHERE, FOV, {"lpips"})
    true, image = quantise(TRUTH), quantise(IMAGE)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 2)
    assert np.isnan(found["lpips"]).all()
    for k in range(2):  # the third slice has no signal
        limits = true[k].max() - true[k].min()
        error = ((true[k] - image[k]) ** 2.0).mean()
        assert found["psnr"][k] == pytest.approx(10 * np.log10(float(limits) ** 2 / error))
        assert found["l1"][k] == pytest.approx(np.abs(true[k] - image[k]).mean())
        rows = [moments_ssim(a, b, limits) for a, b in zip(image[k], true[k], strict=True)]
        assert found["ssim"][k] == pytest.approx(np.mean(rows), rel=1e-9)
        in_2d = structural_similarity(true[k], image[k], data_range=limits)
        assert abs(found["ssim"][k] - in_2d) > 1e-3  # rows alone are another metric


def test_intensities_are_cut_to_whole_numbers_not_rounded():
    values = np.array([-1, -1 / 255, 0.0, 0.9999, 1], np.float32)
    assert quantise(values).tolist() == [0, 127, 127, 254, 255]
    torch_way = (255 * (torch.from_numpy(IMAGE) + 1) / 2).int().numpy()
    np.testing.assert_array_equal(quantise(IMAGE), torch_way)


def test_published_outputs_are_background_where_the_first_input_is():
    first = EVERYWHERE.copy()
    first[:, :16] = -1
    filled = np.where(first > -1, IMAGE, -1)
    a = published(IMAGE, TRUTH, first, FOV, {"lpips"})
    b = published(filled, TRUTH, EVERYWHERE, FOV, {"lpips"})
    assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)
    whole = published(IMAGE, TRUTH, EVERYWHERE, FOV, {"lpips"})
    assert not np.array_equal(a["psnr"], whole["psnr"])


def test_strict_is_one_number_per_case_in_view():
    found = strict(IMAGE, TRUTH, EVERYWHERE, FOV, {"ms_ssim", "lpips", "st_lpips"})
    assert all(values.shape == (1,) for values in found.values())
    error = ((IMAGE - TRUTH) / 2)[FOV]
    assert found["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()))
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    junk = np.where(FOV, IMAGE, 0.7).astype(np.float32)
    again = strict(junk, TRUTH, EVERYWHERE, FOV, {"ms_ssim", "lpips", "st_lpips"})
    assert all(np.array_equal(found[name], again[name], equal_nan=True) for name in found)
    similarity = [
        structural_similarity(
            np.where(FOV[k], (TRUTH[k] + 1) / 2, 0),
            np.where(FOV[k], (IMAGE[k] + 1) / 2, 0),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1][FOV[k]].mean()
        for k in range(2)
    ]
    assert found["ssim"] == pytest.approx(np.mean(similarity))


def test_strict_shows_networks_what_is_in_view():
    if "st_lpips" in unavailable(PROTOCOLS["strict"], SIZE):
        pytest.skip("the weights of ST-LPIPS are not installed")
    found = strict(IMAGE, TRUTH, EVERYWHERE, FOV, {"lpips", "ms_ssim"})
    a, b = (np.where(FOV, (v + 1) / 2, 0)[:2] for v in (IMAGE, TRUTH))
    assert found["st_lpips"] == pytest.approx(st_lpips(a, b).mean())


@pytest.mark.fault(45, simulated=True)
def test_what_cannot_be_computed_has_a_reason_and_no_number(monkeypatch):
    def absent(*_, **__):
        raise PerceptualWeightsUnavailable("no weights here")

    from examples.medical_mri_us.evaluation import protocols

    monkeypatch.setitem(protocols.PERCEPTUAL, "lpips", absent)
    monkeypatch.setattr(strict_module, "lpips", lambda *_, **__: pytest.fail("computed"))
    reasons = unavailable(PROTOCOLS["strict"], 64)
    assert reasons["ms_ssim"] == "needs images of at least 161 pixels"
    assert "no weights here" in reasons["lpips"]
    assert "psnr" not in reasons
    assert unavailable(PROTOCOLS["strict"], 64, perceptual=False)["st_lpips"] == "not asked for"

    missing = {"strict": {**reasons, "st_lpips": "not asked for"}}
    scores = list(
        score_subject("m", tiny_model(), make_subject(0), [PROTOCOLS["strict"]], missing)
    )
    cells = cell_means(scores, missing)
    lpips = [cell for cell in cells if cell["metric"] == "lpips"]
    assert len(lpips) == 60
    assert all(cell["mean"] is None and "no weights" in cell["reason"] for cell in lpips)
    assert all(cell["dropped"] == 0 for cell in lpips)


def test_protocols_are_asked_for_by_name():
    assert [p.name for p in parse_protocols("mmhvae-2026, strict")] == ["mmhvae-2026", "strict"]
    for wrong in ("mine", "strict,mine", "", ","):
        with pytest.raises(ValueError, match=r"'protocol' should be some of strict, mmhvae-2026"):
            parse_protocols(wrong)


def test_the_published_table_has_8_inputs_and_19_cross_modal_cells():
    marked = [given for given in SUBSETS if is_published(given)]
    assert len(marked) == 8
    assert ("us",) in marked
    assert sum(m not in given for given in marked for m in MODALITIES) == 19
    assert sum(m not in given for given in SUBSETS for m in MODALITIES) == 28
    assert all_subsets(["a", "b"]) == (("a",), ("b",), ("a", "b"))
    assert not is_published(["a"])


def test_incomplete_cases_count_where_they_have_inputs_and_truth():
    protocol = PROTOCOLS["mmhvae-2026"]
    missing = {protocol.name: {"lpips": "absent"}}
    scores = []
    for subject in (make_subject(0), make_subject(1, held=("us", "t2"))):
        scores += score_subject("m", tiny_model(), subject, [protocol], missing)
    cells = {
        (tuple(c["given"]), c["target"]): c
        for c in cell_means(scores, missing)
        if c["metric"] == "psnr"
    }
    assert len(cells) == 60
    assert cells[("us",), "t2"]["cases"] == 2
    assert cells[("us",), "t2"]["n"] == 4  # slices with any signal
    assert cells[("us",), "flair"]["cases"] == 1
    assert cells[("us",), "t2"]["kind"] == "cross"
    assert cells[("us", "t2"), "t2"]["kind"] == "self"


def test_targets_are_the_truth_where_an_index_has_them():
    subject = make_subject(0, held=("us", "t2"))
    other = make_subject(5).images["flair"]
    asked = replace(subject, targets={"t2": other})
    protocol, missing = PROTOCOLS["strict"], {"strict": {"ms_ssim", "lpips", "st_lpips"}}
    scores = {
        s.target: s
        for s in score_subject("m", tiny_model(), asked, [protocol], missing)
        if s.given == ("us",)
    }
    image = predict(tiny_model(), asked, ["us"])["t2"]
    expected = -10 * np.log10((((image - other) / 2)[FOV] ** 2).mean())
    assert scores["t2"].values["psnr"] == pytest.approx(expected)
    assert set(scores) == {"us", "t2"}


def test_averages_are_over_cases_or_slices_and_leave_out_what_is_not_finite():
    def scored(protocol, case, values):
        value = {m.name: np.asarray(values) for m in PROTOCOLS[protocol].metrics}
        return Scores("m", protocol, case, ("us",), "t2", value)

    missing = {"strict": {}, "mmhvae-2026": {}}
    cells = cell_means(
        [
            scored("strict", "a", [1.0]),
            scored("strict", "b", [4.0]),
            scored("mmhvae-2026", "a", [1.0, 3.0, np.inf]),
            scored("mmhvae-2026", "b", [8.0]),
        ],
        missing,
    )
    by = {c["protocol"]: c for c in cells if c["metric"] == "psnr"}
    found = by["strict"]
    assert (found["mean"], found["n"], found["unit"], found["dropped"]) == (2.5, 2, "case", 0)
    assert found["sd"] == pytest.approx(np.std([1, 4], ddof=1))
    found = by["mmhvae-2026"]
    assert (found["mean"], found["n"], found["unit"], found["dropped"]) == (4.0, 3, "slice", 1)
    assert found["cases"] == 2


def test_the_baseline_is_the_mean_image_of_who_has_it():
    training = [make_subject(k, held=("us", "t2")) for k in range(3)]
    means = mean_images(iter(training))
    assert set(means) == {"us", "t2"}
    pixel = np.mean([(s.images["t2"][k, 9, 9] + 1) / 2 for s in training for k in range(2)])
    assert means["t2"][9, 9] == pytest.approx(pixel, rel=1e-5)
    missing = {"strict": {"ms_ssim", "lpips", "st_lpips"}}
    rows = list(score_baseline(means, make_subject(9), [PROTOCOLS["strict"]], missing))
    assert {(s.model, s.target, s.given) for s in rows} == {
        (BASELINE, "us", ()),
        (BASELINE, "t2", ()),
    }
    error = (means["t2"] - (make_subject(9).images["t2"] + 1) / 2)[FOV]
    found = next(s for s in rows if s.target == "t2").values["psnr"]
    assert found == pytest.approx(-10 * np.log10((error**2).mean()), rel=1e-5)


def test_levels_that_few_draws_cannot_tell_are_left_out():
    assert resolved(2) == []
    assert resolved(8) == [0.5]
    assert resolved(18) == [0.5]
    assert resolved(19) == [0.5, 0.9]


class Known:
    """Stands for a model whose means and noise are known, and that is given the truth."""

    modalities, spread = ("us", "t2"), None

    def __init__(self, mean_sd, noise_sd):
        self.sds = mean_sd, noise_sd

    def parameters(self):
        return iter([torch.zeros(1)])

    def predict(self, x, given, *, samples):
        from mmpoe.distributions import Draws

        batch = next(iter(x.values()))
        loc = self.sds[0] * torch.randn(samples, *batch.shape)
        normal = torch.distributions.Normal(loc, self.sds[1])
        return {m: Draws(torch.distributions.Independent(normal, 3)) for m in self.modalities}


def test_coverage_of_means_and_of_whole_predictions():
    """A truth with variance 0.03 + 0.01: whole predictions cover it, means do not."""
    subject = make_subject(0, held=("us", "t2"))
    torch.manual_seed(1)
    truth = 0.2 * torch.randn(3, SIZE, SIZE).numpy()
    subject = replace(subject, images={"us": truth, "t2": truth}, fov=np.ones_like(truth) > 0)
    model = Known(0.1, 0.03**0.5)
    rows = list(cover_subject("m", model, subject, 39))
    for level in (0.5, 0.9):
        found = {
            r["intervals"]: r["coverage"]
            for r in rows
            if (r["level"], r["given"], r["target"]) == (level, ("us",), "t2")
        }
        assert found["predictive"] == pytest.approx(level, abs=0.02)
        assert found["mean"] < level - 0.15
    assert {r["kind"] for r in rows} == {"cross", "self"}


def test_files_of_an_evaluation(evaluated):
    out = evaluated / "eval"
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        "cells.json",
        "cases.csv",
        "statistics.json",
        "coverage.json",
        "tables.md",
        "views/a.npz",
        "views/b.npz",
    }
    facts = json.loads((out / "cells.json").read_text())
    assert facts["phantom"] is True
    assert set(facts["models"]) == {"ours", "theirs"}
    assert all(cell["protocol"] in PROTOCOLS for cell in facts["cells"])
    n = {
        (c["protocol"], c["target"]): c["n"]
        for c in facts["cells"]
        if (c["model"], c["given"], c["metric"]) == ("ours", ["us"], "psnr")
    }
    assert n["strict", "t2"] == 3
    assert n["strict", "flair"] == 2
    assert n["mmhvae-2026", "t2"] == 6
    coverage = json.loads((out / "coverage.json").read_text())
    assert coverage["levels"] == [0.5, 0.9]
    assert {c["intervals"] for c in coverage["cells"]} == {"mean", "predictive"}


def test_an_evaluation_that_is_half_written_is_none(tmp_path, monkeypatch):
    """Also over an earlier one: the file that says what was evaluated comes last."""
    parts = {"cells": {}, "cases": "", "statistics": {}, "coverage": {}, "tables": "", "views": {}}
    write_evaluation(tmp_path, **parts)
    assert (tmp_path / "cells.json").is_file()
    write = files_module.write_file
    for stop in ("cases.csv", "tables.md", "statistics.json", "coverage.json", "cells.json"):

        def stopped(path, content, stop=stop):
            if path.name == stop:
                raise KeyboardInterrupt
            write(path, content)

        monkeypatch.setattr(files_module, "write_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_evaluation(tmp_path, **parts)
        assert not (tmp_path / "cells.json").exists()


def test_whose_images_are_a_phantom_is_told_apart(evaluated, tmp_path):
    """A model of a phantom may be scored on patients, and a dataset.json may be another tool's."""
    run = evaluated / "ours"
    shutil.copytree(evaluated / "data", tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text('{"channel_names": {"0": "T2"}}')  # nnU-Net's
    options = evaluate.Evaluate(
        run, tmp_path / "data" / "index.csv", tmp_path / "eval", "strict", samples=0, views=0
    )
    assert evaluate.run(replace(options, perceptual=False)) == 0
    assert json.loads((tmp_path / "eval" / "cells.json").read_text())["phantom"] is False
    tables = (tmp_path / "eval" / "tables.md").read_text()
    assert "nothing here was measured on patients" not in tables
    assert "The model was trained on simulated patients, a phantom. For research only" in tables


def test_every_number_stands_under_the_name_of_its_protocol(evaluated):
    out = evaluated / "eval"
    rows = list(csv.DictReader((out / "cases.csv").read_text().splitlines()))
    assert {row["protocol"] for row in rows} == set(PROTOCOLS)
    assert {row["model"] for row in rows} == {"ours", "theirs", BASELINE}
    tests = json.loads((out / "statistics.json").read_text())["tests"]
    assert all(test["protocol"] in PROTOCOLS for test in tests)
    tables = (out / "tables.md").read_text()
    assert "nothing here was measured on patients" in tables
    parts = tables.split("\n\n")
    named = "`strict`", "`mmhvae-2026`"
    heads = [parts[k - 1] for k, part in enumerate(parts) if part.startswith("| given")]
    assert len(heads) == 2 * (4 + 3)  # both kinds, metrics that can be computed
    assert all(head.startswith("**") and any(n in head for n in named) for head in heads)
    assert tables.index("Cross-modal") < tables.index("Self-reconstruction")


def test_cells_are_the_means_of_the_cases(evaluated):
    out = evaluated / "eval"
    facts = json.loads((out / "cells.json").read_text())
    cell = next(
        c
        for c in facts["cells"]
        if (c["protocol"], c["model"], c["given"], c["target"], c["metric"])
        == ("strict", "theirs", ["us"], "t2", "ssim")
    )
    values = [
        float(row["value"])
        for row in csv.DictReader((out / "cases.csv").read_text().splitlines())
        if (row["protocol"], row["model"], row["given"], row["target"], row["metric"])
        == ("strict", "theirs", "us", "t2", "ssim")
    ]
    assert cell["mean"] == pytest.approx(np.mean(values), rel=1e-6)
    assert cell["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-5)


def test_a_model_against_itself_is_identical(evaluated, tmp_path):
    run = evaluated / "ours"
    index = evaluated / "data" / "index.csv"
    options = evaluate.Evaluate(
        run, index, tmp_path, "strict", compare=(run,), samples=0, views=0, perceptual=False
    )
    assert evaluate.run(options) == 0
    tests = json.loads((tmp_path / "statistics.json").read_text())["tests"]
    against = [test for test in tests if test["other"] == "ours'"]
    assert against
    assert all(test["identical"] and test["p"] == 1 for test in against)
    facts = json.loads((tmp_path / "cells.json").read_text())
    means = {}
    for c in facts["cells"]:
        if c["given"]:
            means.setdefault(c["model"], []).append(c["mean"])
    assert means["ours"] == means["ours'"]


def answer(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["mri_us", *map(str, arguments)])
    code = main()
    captured = capsys.readouterr()
    return code, captured.err


def test_exit_codes(evaluated, tmp_path, capsys, monkeypatch):
    run, index = evaluated / "ours", evaluated / "data" / "index.csv"
    out = ["--out", tmp_path / "out", "--samples", 0, "--views", 0, "--no-perceptual"]

    def ask(*arguments):
        return answer(capsys, monkeypatch, "evaluate", *arguments, *out)

    code, text = ask(run, "--data", index, "--protocol", "mine")
    assert code == 2
    assert "'protocol' should be some of" in text
    code, text = ask(run, "--data", tmp_path / "none.csv")
    assert code == 2
    assert "none.csv" in text
    code, text = ask(run, "--data", index.parent)
    assert code == 2
    assert f"Did you mean {index}?" in text
    code, text = ask(run, "--data", index, "--split", "other")
    assert code == 3
    assert "no case of split 'other', but of test, train" in text
    code, text = ask(tmp_path, "--data", index)
    assert code == 4, text

    cases = [(name, "test", ("us", "t2")) for name in ("good", "bad")]
    broken = write_dataset(tmp_path / "data", cases)
    (tmp_path / "data" / "bad" / "t2.nii.gz").write_bytes(b"broken")
    code, text = ask(run, "--data", broken, "--protocol", "strict")
    assert code == 1
    assert "1 case was left out, of 2." in text
    facts = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert "bad" in facts["problems"][0]
    assert {c["n"] for c in facts["cells"] if c["metric"] == "psnr"} == {1}


def test_models_that_cannot_be_compared_are_named(evaluated, tmp_path):
    other = write_run(tmp_path / "other", modalities=("us", "t2"))
    index = evaluated / "data" / "index.csv"
    options = evaluate.Evaluate(evaluated / "ours", index, tmp_path / "out", compare=(other,))
    with pytest.raises(ValueError, match=r"'compare' should hold models of us, t2, cet1, flair"):
        evaluate.run(options)
    missing = replace(options, compare=(tmp_path / "none",))
    with pytest.raises((CheckpointError, OSError), match="none"):
        evaluate.run(missing)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"samples": 1}, r"'samples' should be an integer of at least 2, but is 1"),
        ({"views": -1}, r"'views' should be an integer of at least 0, but is -1"),
        ({"device": "tpu"}, r"'device' should be auto, cpu or cuda, but is 'tpu'"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(bad, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate.run(evaluate.Evaluate(tmp_path, tmp_path, tmp_path / "out", **bad))
    assert not (tmp_path / "out").exists()

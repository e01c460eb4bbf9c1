"""The synthesis benchmark trains, goes on, scores and tells the truth in its tables."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.synthesis import costs, run, scoring, table
from benchmarks.synthesis.run import BASELINE, Profile, compare
from benchmarks.synthesis.systems import build
from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.modalities import MODALITIES

TINY = Profile(6, 3, 32, 2, seconds=0.01, seeds=2, batch=2, trial=1)


def subject(name, modalities=MODALITIES, seed=0):
    rng = np.random.default_rng(seed)
    fov = np.ones((2, 32, 32), dtype=bool)
    fov[:, :4] = False
    fov[1, :9] = False
    images = {
        m: np.where(fov, rng.uniform(-1, 1, fov.shape), -1).astype(np.float32) for m in modalities
    }
    return Subject(name, images, fov, None)


TRAIN = [subject("a"), subject("b", ["us", "t2"], 1), subject("c", ["us", "cet1"], 2)]
TEST = [subject(name, seed=seed) for name, seed in (("x", 5), ("y", 6), ("z", 7))]


def test_score_is_what_its_definition_says():
    s, other = TEST[0], TEST[1].images["us"]
    found = scoring.score(other, s.images["us"], s.fov)
    difference = (other - s.images["us"])[s.fov] / 2
    assert found["psnr"] == pytest.approx(-10 * np.log10(np.mean(difference**2)), abs=1e-4)
    assert -1 < found["ssim"] < 0.3
    outside = np.where(s.fov, other, 55.0).astype(np.float32)
    assert scoring.score(outside, s.images["us"], s.fov) == found
    assert scoring.score(s.images["us"], s.images["us"], s.fov)["ssim"] == pytest.approx(1)


@pytest.mark.parametrize(("name", "subsets", "targets"), [("unet", 15, 4), ("mhvae", 3, 2)])
def test_every_cell_that_a_system_handles_is_scored(name, subsets, targets):
    torch.manual_seed(0)
    system = build(name, MODALITIES, 32)
    cells = scoring.score_system(system, TEST)
    assert len(cells) == subsets * targets
    assert len({(tuple(c["given"]), c["target"]) for c in cells}) == len(cells)
    assert all(len(c[k]) == 3 and np.isfinite(c[k]).all() for c in cells for k in table.METRICS)
    alone = scoring.score_system(system, TEST[1:2])
    assert alone[0]["psnr"] == pytest.approx([cells[0]["psnr"][1]], abs=1e-3)


def test_baseline_is_the_mean_image_whatever_is_given():
    cells = scoring.baseline(TRAIN, TEST)
    assert all(cell["target"] not in cell["given"] for cell in cells)
    assert len(cells) == 28
    assert len({tuple(c["psnr"]) for c in cells if c["target"] == "us"}) == 1
    mean = np.mean([np.where(s.fov, s.images["t2"], 0) for s in TRAIN[:2]], axis=0)
    everywhere = np.where(TRAIN[0].fov[:1], mean.sum(0) / TRAIN[0].fov.sum(0).clip(1), 0)
    truth = TEST[0]
    inside = truth.fov[0]
    error = (everywhere[0] - truth.images["t2"])[:, inside] / 2
    one = next(c for c in cells if c["target"] == "t2")
    weights = truth.fov[:, inside]
    expected = -10 * np.log10(np.mean(error[weights] ** 2))
    assert one["psnr"][0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", ["unet", "mmgan"])
def test_training_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    seconds = []

    def trained(folder, stop=0):
        torch.manual_seed(0)
        system = build(name, MODALITIES, 32)
        original, calls = system.loss, iter(range(1, 9))

        def loss(batch, done):
            if next(calls) == stop:
                signal.raise_signal(signal.SIGINT)
            return original(batch, done)

        system.loss = loss
        keep, watch = tmp_path / folder, run.Stopwatch()
        history = run.train(system, TRAIN, steps=4, batch=2, seed=0, keep=keep, watch=watch)
        assert len(history.bounds) == (stop or 4)
        seconds.append(watch.seconds)
        return list(system.network.parameters())

    whole, stopped, resumed = trained("whole"), trained("parts", stop=2), trained("parts")
    assert not torch.equal(stopped[0], whole[0])
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert seconds[2] > seconds[1]  # both goes count


def test_stopwatches_go_on(monkeypatch):
    clock = iter([100.0, 103.0, 500.0, 600.0, 604.0])
    monkeypatch.setattr(run.time, "process_time", lambda: next(clock))
    state = run.Stopwatch().state_dict()
    assert state == {"seconds": 3.0}
    later = run.Stopwatch()
    later.load_state_dict(state)
    assert later.seconds == 7.0


def test_a_finished_run_is_not_done_again(tmp_path, capsys):
    assert compare("mopoe", 0, TRAIN, TEST, TINY, tmp_path) == 0
    written = (tmp_path / "mopoe-0.json").read_text()
    facts = json.loads(written)
    assert facts["patients"] == ["x", "y", "z"]
    assert facts["steps"] == json.loads((tmp_path / "mopoe.plan.json").read_text())["steps"]
    assert len(facts["cells"]) == 60
    assert compare("mopoe", 0, TRAIN, TEST, TINY, tmp_path) == 0
    assert "is there already" in capsys.readouterr().out
    assert (tmp_path / "mopoe-0.json").read_text() == written


def test_budgets_buy_steps_in_proportion(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 22.0])
    monkeypatch.setattr(run.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(run, "train", lambda *a, **k: None)
    assert run.affordable_steps("unet", TRAIN, replace(TINY, trial=4, seconds=60)) == 120
    assert run.affordable_steps("unet", TRAIN, replace(TINY, trial=4, seconds=0.01)) == 1


def fake_run(system, seed, shift, patients=12, places=None):
    """A run whose score of patient n is n plus the shift, in every cell."""
    places = places or [(g, m) for g in scoring.SUBSETS for m in MODALITIES]
    scores = [float(n + shift) for n in range(patients)]
    cells = [
        {"given": list(g), "target": m, "psnr": scores, "ssim": [s / 100 for s in scores]}
        for g, m in places
    ]
    names = [f"p{n}" for n in range(patients)]
    facts = {"steps": 7, "parameters": 1_000_000, "processor_seconds": 3.0, "skipped": 0}
    return {"system": system, "seed": seed, **facts, "patients": names, "cells": cells}


@pytest.fixture
def folder(tmp_path):
    pair = [(g, m) for g in [("us",), ("t2",), ("us", "t2")] for m in ("us", "t2")]
    cross = [(g, m) for g in scoring.SUBSETS for m in MODALITIES if m not in g]
    runs = [
        fake_run("mmhvae", 0, 10),
        fake_run("mmhvae", 1, 12),
        fake_run("unet", 0, 13),
        fake_run("mhvae", 0, 5, places=pair),
        fake_run(BASELINE, 0, 1, places=cross),
    ]
    for i, content in enumerate(runs):
        (tmp_path / f"run-{i}.json").write_text(json.dumps(content))
    (tmp_path / "unet.plan.json").write_text("{}")
    return tmp_path


def test_seeds_are_averaged_before_patients(folder):
    results = {r.system: r for r in table.read(folder)}
    assert list(results) == [BASELINE, "unet", "mhvae", "mmhvae"]
    place = (("us",), "t2")
    assert results["mmhvae"].cells[place]["psnr"].tolist() == [n + 11 for n in range(12)]
    assert table.mean_over(results["mhvae"], "psnr", [place, (("us",), "flair")]) is None


def test_tables_put_what_was_missing_first_and_test_whole_systems(folder):
    text = table.markdown(table.read(folder), "quick")
    assert text.index("## Missing modalities, averaged") < text.index("## Reconstruction")
    assert "not clinical" in text
    first = text[text.index("## Missing modalities, averaged") :].split("PSNR, dB, mean of")[0]
    assert "| unet | 18.50 (3.61) / 18.5 (3.6) |" in first
    assert "| mmhvae | 16.50 (3.61) / 16.5 (3.6) |" in first
    assert "| mhvae |" not in first  # it lacks cells
    tests = text.split("beside mmhvae:")
    assert "| unet | 18.50 ± 3.61 | +2.00 | 0.00049 | 0.00098 | better | 12 |" in tests[1]
    assert "| mhvae |" not in tests[1]
    assert "| mhvae | 10.50 ± 3.61 | -6.00 |" in tests[3]  # the pair alone
    assert "Bonferroni-corrected for 3 comparisons" in tests[3]
    own = text[text.index("## Reconstruction") :]
    assert f"| {BASELINE} |" not in own
    assert (
        "| iUS+T2 | mhvae | 10.50 (3.61) / 10.5 (3.6) | 10.50 (3.61) / 10.5 (3.6) |  |  |" in own
    )


def test_too_few_patients_are_not_tested(tmp_path):
    for system in ("unet", "mmhvae"):
        (tmp_path / f"{system}-0.json").write_text(json.dumps(fake_run(system, 0, 1, patients=3)))
    assert "Not tested: 'scores' should hold at least" in table.markdown(
        table.read(tmp_path), "smoke"
    )


def test_runs_of_other_patients_are_not_mixed(folder):
    (folder / "z-9.json").write_text(json.dumps(fake_run("unet", 1, 1, patients=11)))
    with pytest.raises(ValueError, match=r"unet .* other patients"):
        table.read(folder)
    with pytest.raises(ValueError, match=r"'folder' should hold scores"):
        table.read(folder / "nothing")


def test_costs_count_what_layers_do():
    cost = costs.measure("unet", 16, full=False, repeats=1)
    network = build("unet", MODALITIES, 16).network
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    macs = 0

    def count(layer, inputs, output):
        nonlocal macs
        macs += layer.weight[0].numel() * output.numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 8, 16, 16))
    assert cost.macs == macs


def test_quoted_figures_are_marked_as_such():
    measured = costs.Cost("resvit", 123_290_000, 0, 67_410_000_000, 1500.0, 1400.0, None)
    text = costs.markdown([measured], "a machine")
    row = next(line for line in text.splitlines() if line.startswith("| resvit"))
    assert "| 123.29 M | 67.41 | 1500 (1400) | - | *293 M* | *274 G* | - |" in row
    assert "not ours" in text

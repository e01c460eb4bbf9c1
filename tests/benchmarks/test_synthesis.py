"""The synthesis benchmark trains, resumes, scores and tells the truth in its tables."""

import json
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from benchmarks.synthesis import costs, figures, results, scoring, statistics, table, training
from benchmarks.synthesis.profiles import Profile
from benchmarks.synthesis.scoring import BASELINE
from benchmarks.synthesis.systems import LABELS, build
from benchmarks.synthesis.training import compare
from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.evaluation import PROTOCOLS
from examples.medical_mri_us.modalities import MODALITIES
from mmpoe import metrics

pytestmark = pytest.mark.slow

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
    np.testing.assert_equal(scoring.score(outside, s.images["us"], s.fov), found)
    same = scoring.score(s.images["us"], s.images["us"], s.fov)
    assert same["ssim"] == pytest.approx(1)
    assert same["st_lpips"] == pytest.approx(0, abs=1e-6)
    unit = [np.where(s.fov, (v + 1) / 2, 0) for v in (other, s.images["us"])]
    assert found["st_lpips"] == pytest.approx(metrics.st_lpips(*unit).mean(), rel=1e-4)


def test_costly_metrics_look_at_a_fixed_part_of_the_slices():
    rng = np.random.default_rng(0)
    image, truth = rng.uniform(-1, 1, (2, 8, 32, 32)).astype(np.float32)
    fov = np.ones((8, 32, 32), dtype=bool)
    before = scoring.score(image, truth, fov)
    published = scoring.score_published(image, truth, truth, fov)
    unseen = image.copy()
    unseen[[0, 1, 3, 4, 5, 7]] = 0.9
    after = scoring.score(unseen, truth, fov)
    assert after["st_lpips"] == before["st_lpips"]
    assert after["psnr"] != before["psnr"]
    np.testing.assert_equal(scoring.score_published(unseen, truth, truth, fov), published)
    seen = image.copy()
    seen[2] = 0.9
    assert scoring.score(seen, truth, fov)["st_lpips"] != before["st_lpips"]


def test_the_published_protocol_is_that_of_the_evaluation():
    s, image = TEST[0], TEST[1].images["us"]
    first, truth = s.images["t2"], s.images["us"]
    found = scoring.score_published(image, truth, first, s.fov)
    rows = PROTOCOLS["mmhvae-2026"].score(image, truth, first, s.fov, {"lpips"})
    assert found["psnr"] == pytest.approx(rows["psnr"].mean())
    assert found["ssim"] == pytest.approx(rows["ssim"].mean())


@pytest.mark.usefixtures("unperceived")
def test_samples_are_of_systems_with_latents_and_of_a_seed():
    torch.manual_seed(0)
    system = build("mmhvae", MODALITIES, 32)
    calls = []
    original = system.synthesise

    def synthesise(x, given, targets, temperature=0.0):
        calls.append(temperature)
        return original(x, given, targets, temperature)

    system.synthesise = synthesise
    scoring.score_system(system, TEST[:1])
    assert calls == [0.0, 0.7] * 15
    mean, drawn, again, other = (
        scoring.images_of(system, TEST[0], ["us"], *how)["t2"]
        for how in ((), (0.7, 3), (0.7, 3), (0.7, 4))
    )
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    assert not np.array_equal(drawn, mean)


@pytest.fixture
def unperceived(monkeypatch):
    """Leaves out the metrics that are networks, which take seconds for all cells."""
    monkeypatch.setattr(scoring, "absent", lambda: dict.fromkeys(scoring.PERCEPTUAL, "no"))


@pytest.mark.parametrize(("name", "subsets", "targets"), [("unet", 15, 4), ("mhvae", 3, 2)])
@pytest.mark.usefixtures("unperceived")
def test_every_cell_that_a_system_handles_is_scored(name, subsets, targets):
    torch.manual_seed(0)
    system = build(name, MODALITIES, 32)
    cells = scoring.score_system(system, TEST)
    assert len(cells) == subsets * targets
    assert len({(tuple(c["given"]), c["target"]) for c in cells}) == len(cells)
    for cell in cells:
        for scores in (cell, cell["mmhvae-2026"]):
            assert np.isfinite([scores["psnr"], scores["ssim"]]).all()
            assert len(scores["psnr"]) == len(scores["lpips"]) == 3
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
    watches = []

    def trained(folder, stop=0):
        torch.manual_seed(0)
        system = build(name, MODALITIES, 32)
        original, calls = system.loss, iter(range(1, 9))

        def loss(batch, done):
            if next(calls) == stop:
                signal.raise_signal(signal.SIGINT)
            return original(batch, done)

        system.loss = loss
        keep, watch = tmp_path / folder, training.Stopwatch()
        watches.append(watch)
        history = training.train(system, TRAIN, steps=4, batch=2, seed=0, keep=keep, watch=watch)
        assert len(history.bounds) == (stop or 4)
        return list(system.network.parameters())

    whole, stopped, resumed = trained("whole"), trained("parts", stop=2), trained("parts")
    assert not torch.equal(stopped[0], whole[0])
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert watches[0].before == 0 < watches[2].before  # both goes count


def test_stopwatches_go_on(monkeypatch):
    clock = iter([100.0, 103.0, 500.0, 600.0, 604.0])
    monkeypatch.setattr(training.time, "process_time", lambda: next(clock))
    state = training.Stopwatch().state_dict()
    assert state == {"seconds": 3.0}
    later = training.Stopwatch()
    later.load_state_dict(state)
    assert later.seconds == 7.0


@pytest.mark.usefixtures("unperceived")
def test_a_finished_run_is_not_done_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scoring, "SUBSETS", (("us",), ("us", "t2")))
    assert compare("mopoe", 0, TRAIN, TEST, TINY, tmp_path) == 0
    written = (tmp_path / "mopoe-0.json").read_text()
    facts = json.loads(written)
    assert facts["patients"] == ["x", "y", "z"]
    assert facts["steps"] == json.loads((tmp_path / "mopoe.plan.json").read_text())["steps"]
    assert len(facts["cells"]) == 8
    assert facts["scoring_seconds"] > 0
    system = training.load_trained(tmp_path, "mopoe", 0)
    assert not system.network.training
    assert scoring.score_system(system, TEST)[0]["psnr"] == facts["cells"][0]["psnr"]
    assert compare("mopoe", 0, TRAIN, TEST, TINY, tmp_path) == 0
    assert "is there already" in capsys.readouterr().out
    assert (tmp_path / "mopoe-0.json").read_text() == written
    with pytest.raises(ValueError, match=r"seconds = 9, but is of 0.01: remove .*--out"):
        compare("mopoe", 0, TRAIN, TEST, replace(TINY, seconds=9), tmp_path)


def test_weights_of_unfinished_runs_are_not_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"'folder' should hold mopoe-0.json and mopoe-0.safe"):
        training.load_trained(tmp_path, "mopoe", 0)


@pytest.mark.parametrize("name", list(LABELS))
def test_weights_come_back(name, tmp_path):
    torch.manual_seed(0)
    system = build(name, MODALITIES, 32)
    training.save_weights(system, tmp_path, name, 3)
    (tmp_path / f"{name}-3.json").write_text('{"size": 32}')
    again = training.load_trained(tmp_path, name, 3).network.state_dict()
    for key, value in system.network.state_dict().items():
        assert torch.equal(again[key], value)


@pytest.mark.parametrize(("step", "seconds", "affordable"), [(0.5, 60, 120), (0.5, 0.01, 1)])
def test_budgets_buy_steps_whatever_a_start_costs(monkeypatch, step, seconds, affordable):
    assert trial(monkeypatch, start=1.0, step=step, seconds=seconds) == affordable


def test_trial_steps_that_seem_to_cost_nothing_cost_half_the_mean(monkeypatch):
    assert trial(monkeypatch, start=3.0, step=0.0, seconds=60) == 200


def trial(monkeypatch, start, step, seconds):
    now = 10.0

    def train(*arguments, steps, **others):
        nonlocal now
        now += start + step * steps

    monkeypatch.setattr(training.time, "process_time", lambda: now)
    monkeypatch.setattr(training, "train", train)
    return training.affordable_steps("unet", TRAIN, replace(TINY, trial=4, seconds=seconds))


def fake_run(system, seed, shift, patients=12, places=None):
    """A run whose score of patient n is n plus the shift in every cell, or one minus that."""
    places = places or [(g, m) for g in scoring.SUBSETS for m in MODALITIES]
    scores = np.arange(patients) * (1 + 1e-6 * shift) + shift  # no two differences are equal
    none = [float("nan")] * patients
    published = {"psnr": list(scores + 3), "ssim": list(scores / 100), "lpips": none}
    one = {"psnr": list(scores), "ssim": list(scores / 100), "st_lpips": list(1 - scores / 100)}
    one |= {"lpips": none, "mmhvae-2026": published}
    cells = [{"given": list(g), "target": m, **one} for g, m in places]
    names = [f"p{n}" for n in range(patients)]
    facts = {"steps": 7, "parameters": 1_000_000, "processor_seconds": 3.0, "skipped": 0}
    facts |= {"scoring_seconds": 2.0, "commit": "abc"}
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


PSNR, SSIM, ST_LPIPS = results.METRICS[:3]


def test_seeds_are_averaged_before_patients(folder):
    found = {r.system: r for r in results.read(folder)}
    assert list(found) == [BASELINE, "U-Net", "MHVAE", "MMHVAE"]
    place = (("us",), "t2")
    scores = found["MMHVAE"].score(PSNR, [place])
    assert scores == pytest.approx(np.arange(11, 23), abs=1e-3)
    by_seed = found["MMHVAE"].by_seed(PSNR, [place])
    assert by_seed.mean(axis=1) == pytest.approx([15.5, 17.5], abs=1e-3)
    assert found["MHVAE"].score(PSNR, [place, (("us",), "flair")]) is None


def test_tables_put_what_was_missing_first_and_test_whole_systems(folder):
    text = table.report(folder, "quick")
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert all("hantom" in heading for heading in headings)
    assert headings[1] == "## Summary (phantom)"
    assert headings[-1] == "## Reconstruction of what was given (phantom)"
    assert "not clinical" in text
    assert "`python -m benchmarks.synthesis.run --profile quick --write`, commit" in text
    summary = text[text.index("## Summary") : text.index("## What was run")]
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    best = "| **18.50** (3.61) | **18.5** (3.6) | **81.50** (3.61) | n/a | 1.00 |"
    assert rows[2] == f"| U-Net {best}"
    assert rows[3].endswith("| n/a | 2.00 |")
    assert rows[4].startswith(f"| {BASELINE} | 6.50")
    assert "MHVAE | 10" not in summary  # it lacks cells
    assert "| U-Net | 1.00 M | 1 | 7 | 3 | 2 | 0 | abc |" in text
    beside, *_, seeds = text.split("## Beside MMHVAE")[1].split("## ")[:2]
    whole, pair = beside.split("handles as well")
    # 12 patients, all better: the exact p is 2^-11, for two other systems doubled
    assert "| U-Net | 18.50 (3.61) | +2.00 | +1.00 | 0.00049 | 0.00098 | better |" in whole
    assert "| U-Net | 81.50 (3.61) | -2.00 | +1.00 | 0.00049 | 0.00098 | better |" in whole
    assert "| MHVAE |" not in whole
    assert "| MHVAE | 10.50 (3.61) | -6.00 | -1.00 | 0.00049 | 0.0015 | worse |" in pair
    assert "| MMHVAE | 1 | 17.50 | 17.5 | 82.50 | n/a |" in seeds
    own = text[text.index("## Reconstruction") :]
    assert f"| {BASELINE} |" not in own
    assert "| T2 | iUS+T2 | **18.50** (3.61) | 10.50 (3.61) | 16.50 (3.61) |" in own


def test_every_cell_is_a_row_and_published_ones_are_marked(folder):
    text = table.report(folder, "quick").split("one by one")[1].split("## Recon")[0]
    assert "LPIPS, % ↓, protocol `strict`:" in text
    assert "\nLPIPS" not in text  # its weights are absent
    first = text.split("SSIM, % ↑, protocol `strict`")[0]
    rows = [line for line in first.splitlines() if re.match(r"\| (iUS|T2|ceT1|FLAIR) ", line)]
    assert len(rows) == 28
    assert sum("•" in row for row in rows) == 19
    assert "| T2 | • iUS | 6.50 (3.61) | **18.50** (3.61) | 10.50 (3.61) | 16.50 (3.61) |" in rows
    assert "| FLAIR | iUS+T2+ceT1 | 6.50 (3.61) | **18.50** (3.61) |  | 16.50 (3.61) |" in rows


def test_verdict_counts_cells_that_are_best_or_tied(folder):
    rng = np.random.default_rng(0)
    path = folder / "run-2.json"  # the U-Net
    content = json.loads(path.read_text())
    cross = [c for c in content["cells"] if c["target"] not in c["given"]]
    for number, cell in enumerate(cross):
        ours = np.arange(12) + 11.0
        if number < 10:  # plainly behind
            cell["psnr"] = list(0.9 * ours)
        elif number < 16:  # ahead by chance
            noise = rng.normal(size=12)
            cell["psnr"] = list(ours + noise - noise.mean() + 0.01)
    path.write_text(json.dumps(content))
    found = results.content(results.read(folder), {"seeds": [0]})["verdict"]["strict/psnr"]
    assert found == {"cells": 28, "best": 10, "tied": 16, "uncorrected": 16, "tested": True}
    text = table.report(folder, "quick")
    assert "PSNR, dB: MMHVAE has the best mean in 10 of 28 cells (36%), and is best" in text
    assert "tied with the best in **16 (57%)**" in text
    assert " =" in text.split("one by one")[1].split("SSIM")[0]


def test_too_few_patients_are_not_tested(tmp_path):
    for system in ("unet", "mmhvae"):
        (tmp_path / f"{system}-0.json").write_text(json.dumps(fake_run(system, 0, 1, patients=3)))
    text = table.report(tmp_path, "smoke")
    assert "PSNR, dB: not tested, too few patients (3)." in text
    assert "too few patients for any test" in text
    assert " = |" not in text
    assert "tied with the best in" not in text


def test_runs_of_other_patients_are_not_mixed(folder):
    (folder / "z-9.json").write_text(json.dumps(fake_run("unet", 1, 1, patients=11)))
    with pytest.raises(ValueError, match=r"unet .* other patients"):
        results.read(folder)
    with pytest.raises(ValueError, match=r"'folder' should hold scores"):
        results.read(folder / "nothing")


def test_comparisons_are_scipys_with_an_effect():
    rng = np.random.default_rng(0)
    value, other = rng.normal(size=(2, 20))
    found = statistics.compare(value, other, higher=True)
    test = stats.wilcoxon(value, other)
    assert found.p == pytest.approx(test.pvalue)
    # the statistic is the smaller of the two sums of ranks, which add up to 210
    assert abs(found.effect) == pytest.approx(1 - 2 * test.statistic / 210)
    assert (found.effect > 0) == (stats.wilcoxon(value, other, alternative="greater").pvalue < 0.5)
    swapped = statistics.compare(value, other, higher=False)
    assert (swapped.effect, swapped.p) == (-found.effect, found.p)
    assert statistics.compare(value, value, higher=True) == statistics.Difference(0, 0, 1)
    assert statistics.compare(value + 1, value, higher=True).effect == 1


def test_a_standing_corrects_for_the_systems_of_a_cell():
    base = np.arange(20.0)
    change = -np.arange(1.0, 21)
    change[[10, 18, 19]] *= -1  # ranks 11, 19 and 20 of 210: p is 0.04
    near = base + change / 100
    far = base - 1 - 0.1 * base
    p = statistics.compare(near, base, higher=True).p
    assert statistics.ALPHA / 2 < p < statistics.ALPHA
    found = statistics.standing({"a": near, "b": base, "c": far}, higher=True)
    assert found.best == "b"
    assert found.tied == ("a", "b")
    assert found.uncorrected == ("b",)
    assert "c" not in found.tied
    less = statistics.standing({"a": -base, "b": base}, higher=False)
    assert less.best == "a"
    assert statistics.testable(6, 2)
    assert not statistics.testable(5, 2)


def test_ranks_are_those_of_each_patient_and_cell():
    cells = [
        {"a": np.array([3.0, 1.0]), "b": np.array([2.0, 2.0]), "c": np.array([1.0, 2.0])},
        {"a": np.array([3.0, 3.0]), "b": np.array([2.0, 2.0]), "c": np.array([1.0, 1.0])},
    ]
    found = statistics.mean_ranks(cells, higher=True)
    assert {k: v.tolist() for k, v in found.items()} == {
        "a": [1.0, 2.0],
        "b": [2.0, 1.75],
        "c": [3.0, 2.25],
    }
    assert statistics.mean_ranks(cells, higher=False)["a"].tolist() == [3.0, 2.0]


def test_results_are_written_with_what_made_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "load", lambda profile: (TRAIN, TEST))
    networks = lambda folder, name, seed: build(name, MODALITIES, 32)
    monkeypatch.setattr(figures, "load_trained", networks)
    to = tmp_path / "results"
    text = table.report(folder, "smoke", to=to)
    found = json.loads((to / "synthesis.json").read_text())
    assert list(found)[:6] == ["command", "commit", "machine", "seeds", "date", "profile"]
    assert found["seeds"] == [0, 1]
    assert len(found["cells"]) == 60
    assert found["cross_modal"]["strict/psnr"]["U-Net"] == [18.5, 3.6056]
    assert (to / "synthesis.md").read_text() == text
    for name in ("synthesis_ranks.png", "synthesis_images_1.png", "synthesis_images_2.png"):
        assert f"]({name})" in text
        assert (to / name).stat().st_size < 300_000
        with Image.open(to / name) as image:
            assert image.size[0] > 300
    assert (to / "synthesis.json").stat().st_size < 200_000


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

"""The uncertainty benchmark measures what spreads as it should, and what does not."""

import json

import numpy as np
import pytest
import torch

from benchmarks.synthesis.uncertainty import __main__ as command
from benchmarks.synthesis.uncertainty import measure, tables
from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.train import build_model
from mmpoe.metrics import energy_score

pytestmark = pytest.mark.slow

SIZE, SLICES, DRAWS = 32, 3, 39


def noise(shape, generator):
    """Voxels that vary together in blocks, and by themselves."""
    common = torch.randn(*shape[:-2], 4, 4, generator=generator)
    common = common.repeat_interleave(8, -1).repeat_interleave(8, -2)
    return 0.1 * common + 0.2 * torch.randn(shape, generator=generator)


def subject(name, modalities=MODALITIES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fov = np.ones((SLICES, SIZE, SIZE), dtype=bool)
    fov[:, :5] = False
    images = {m: noise((SLICES, SIZE, SIZE), generator).numpy() for m in modalities}
    label = np.zeros(fov.shape, dtype=np.uint8)
    label[1, 10:20, 10:20] = 1
    label[2, 10:12, 10:12] = 3  # too few
    return Subject(name, images, fov, label)


def exchangeable(scale, together=True):
    """Draws that are distributed as the images of `subject` are, times a scale."""

    def draw(model, patient, given, samples):
        generator = torch.Generator().manual_seed(sum(map(ord, patient.name)) + len(given))
        shape = (samples, SLICES, SIZE, SIZE)
        for place in (slice(0, 2), slice(2, 3)):
            drawn = {}
            for m in MODALITIES:
                values = noise(shape, generator) if together else 0.2236 * torch.randn(shape)
                values = scale * values[:, place]
                drawn[m] = values / 10, values
            yield place, drawn

    return draw


def mean_of(spread, key, kind="predictive"):
    return np.mean([row[key] for row in spread.rows if row["kind"] == kind])


@pytest.fixture
def patients():
    return [subject(f"patient {n}", seed=n) for n in range(3)]


def test_draws_like_the_truth_are_calibrated(monkeypatch, patients):
    monkeypatch.setattr(measure, "draw", exchangeable(1.0))
    spread = measure.measure(None, patients, DRAWS)
    assert len(spread.rows) == 3 * 9 * 2  # 3 + 3 + 2 + 1 targets
    for level in (50, 90):
        for name, within in (("voxels", 0.01), ("blocks", 0.04), ("labels", 0.12)):
            assert mean_of(spread, f"{name}_{level}") == pytest.approx(level / 100, abs=within)
    assert mean_of(spread, "rmse") == pytest.approx(mean_of(spread, "deviation"), rel=0.03)
    curve = spread.curves["predictive"]
    assert len(curve["error"]) == 10
    assert np.all(np.diff(curve["deviation"]) > 0)
    assert np.mean(curve["error"]) == pytest.approx(np.mean(curve["deviation"]), rel=0.03)


def test_draws_that_spread_too_little_or_apart_are_found(monkeypatch, patients):
    scores = {}
    for name, draw in {
        "right": exchangeable(1.0),
        "narrow": exchangeable(0.3),
        "apart": exchangeable(1.0, together=False),
    }.items():
        monkeypatch.setattr(measure, "draw", draw)
        scores[name] = measure.measure(None, patients, DRAWS)
    assert mean_of(scores["narrow"], "voxels_90") < 0.5
    assert mean_of(scores["apart"], "voxels_90") == pytest.approx(0.9, abs=0.02)
    assert mean_of(scores["apart"], "blocks_90") < 0.5  # which voxels alone do not tell
    assert mean_of(scores["right"], "voxels_90", kind="mean") < 0.3
    energies = {name: mean_of(s, "energy") for name, s in scores.items()}
    assert energies["right"] < energies["narrow"]
    assert energies["right"] < energies["apart"]


def test_what_is_out_of_view_is_never_read(monkeypatch, patients):
    monkeypatch.setattr(measure, "draw", exchangeable(1.0))
    expected = measure.measure(None, patients[:1], DRAWS)
    for m in MODALITIES:
        patients[0].images[m][~patients[0].fov] = 55.0
    assert measure.measure(None, patients[:1], DRAWS) == expected


def test_functionals_are_means_in_view():
    patient = subject("p")
    fov = torch.from_numpy(patient.fov)
    values = torch.randn(2, SLICES, SIZE, SIZE)
    blocks = measure._blocks(values, fov)
    assert blocks.shape == (2, SLICES * 12)  # the first row of blocks is in view by 3 / 8
    torch.testing.assert_close(blocks[1, 0], values[1, 0, 8:16, :8].mean())
    fov[:, :5], fov[:, :4] = True, False
    first = measure._blocks(values, fov)
    torch.testing.assert_close(first[0, 0], values[0, 0, 4:8, :8].mean())
    regions = measure._regions(patient)
    assert [int(r.sum()) for r in regions] == [896, 796, 892, 100]
    means = measure._means(values, regions)
    torch.testing.assert_close(means[0, 3], values[0, 1, 10:20, 10:20].mean())
    assert measure._means(values, []).shape == (2, 0)


def test_energy_scores_are_per_root_of_the_voxels(monkeypatch, patients):
    monkeypatch.setattr(measure, "draw", exchangeable(1.0))
    patient = patients[0]
    row = measure.measure(None, [patient], DRAWS).rows[1]
    assert (row["given"], row["target"], row["kind"]) == (["us"], "t2", "predictive")
    torch.manual_seed(0)
    parts = [drawn["t2"][1] for _, drawn in exchangeable(1.0)(None, patient, ("us",), DRAWS)]
    drawn, truth = torch.cat(parts, dim=1), torch.from_numpy(patient.images["t2"])
    inside = torch.from_numpy(patient.fov)[0]
    scores = energy_score(drawn[:, :, inside], truth[:, inside]) / inside.sum().sqrt()
    assert row["energy"] == pytest.approx(scores.mean().item(), rel=1e-5)


def test_few_complete_patients_teach_and_incomplete_ones_are_there():
    few = [subject("a"), subject("b", ["us", "t2"]), subject("c"), subject("d", ["us"])]
    more = [subject("e"), subject("f")]
    names = lambda number: [s.name for s in command.teachers(few, more, number)]
    assert names(1) == ["a", "b", "d"]
    assert names(3) == ["a", "c", "e", "b", "d"]
    with pytest.raises(ValueError, match=r"'number' should be at most 4, but is 5"):
        names(5)
    found = command.conditions(command.SETTINGS["quick"])
    assert [c.name for c in found] == [
        "naive", "complete-2", "complete-5", "complete-10", "complete-20",
        "bootstrap-2", "bootstrap-5", "bootstrap-20", "spread",
    ]  # fmt: skip


def test_a_condition_calibrates_a_model_and_leaves_the_rest_of_it(tmp_path, patients):
    settings = command.Settings(1, 19, 2, 2, complete=(2,), bootstrap=(), spread=2, apart=1)
    torch.manual_seed(0)
    model = build_model(SIZE, MODALITIES)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    naive, matched, spread = command.conditions(settings)
    assert spread.complete == 1
    about = {"model": "abc"}
    for condition in (naive, matched, spread):
        path = tmp_path / f"{condition.name}.json"
        command.measure_one(condition, model, patients[:2], patients[2:], settings, path, about)
        assert model.is_matched == (condition is matched)
        assert condition is spread or model.spread is None
        assert command.is_finished(path, about)
        assert not command.is_finished(path, {"model": "other"})
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    found = json.loads((tmp_path / "complete-2.json").read_text())
    assert {row["patient"] for row in found["rows"]} == {"patient 2"}
    assert not command.is_finished(tmp_path / "nothing.json", about)


def fake(name, teacher, complete, shift, patients=12):
    keys = [f"{f}_{level}" for f in measure.FUNCTIONALS for level in (50, 90)]
    rows = []
    for n in range(patients):
        for target, extra in (("t2", 0.0), ("flair", 0.2)):
            values = dict.fromkeys(keys, 0.4 + shift + extra)
            values |= {"energy": 1 + n - shift + extra, "rmse": 0.2, "deviation": 0.1}
            place = {"patient": f"p{n}", "given": ["us"], "target": target, "spearman": 0.3}
            rows += [{**place, "kind": kind, **values} for kind in measure.KINDS]
    curve = {"deviation": [0.1, 0.2], "error": [0.2, 0.3]}
    return {
        "condition": {"name": name, "teacher": teacher, "complete": complete},
        "settings": {"draws": 39},
        "steps": 3,
        "processor_seconds": 1.0,
        "rows": rows,
        "curves": dict.fromkeys(measure.KINDS, curve),
    }


FOUND = [
    fake("naive", None, 0, 0.0),
    fake("complete-5", "complete", 5, 0.3),
    fake("bootstrap-5", "bootstrap", 5, 0.25),
]


def test_tables_say_how_much_is_covered_and_test_energy_scores():
    text = tables.markdown(FOUND, "quick", 5)
    assert "The training set has 5; beyond those" in text
    row = next(line for line in text.splitlines() if line.startswith("| complete | 5 |"))
    assert row.count("| 80 (0) ") == 6
    assert row.endswith("| 6.3000 (3.6056) | 0.00098 |")
    naive = next(line for line in text.splitlines() if line.startswith("| naive | - | 50 (0) |"))
    assert naive.endswith("| - |")
    few = [{**f, "rows": [r for r in f["rows"] if r["patient"] < "p1"]} for f in FOUND]
    assert "| n/a |" in tables.markdown(few, "smoke", 0)


def test_results_are_by_condition_and_figures_are_small(tmp_path):
    content = tables.results(FOUND)
    assert content["coverage"]["complete-5"]["predictive"]["blocks"]["90"] == pytest.approx(0.8)
    assert content["conditions"][0]["energy_score"]["mean"] == pytest.approx(6.6)
    json.dumps(content, allow_nan=False)
    tables.draw_figure(FOUND, tmp_path / "figure.png")
    assert 5_000 < (tmp_path / "figure.png").stat().st_size < 300_000


def test_labels_that_no_slice_has_are_no_numbers():
    without = [{**f, "rows": [{**r, "labels_90": None} for r in f["rows"]]} for f in FOUND]
    assert tables.results(without)["coverage"]["naive"]["mean"]["labels"]["90"] is None
    assert "| - |" in tables.markdown(without, "quick", 5)

"""Downstream tasks: each measure beside its definition, and what the subcommand writes."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import SPACING, subject
from scipy import ndimage
from scored import write_run

from examples.medical_mri_us.__main__ import main
from examples.medical_mri_us.data import CaseError, load_subject, read_index
from examples.medical_mri_us.downstream import (
    ANY_MR,
    BINS,
    Synthesiser,
    choose_cases,
    draw_motion,
    landmarks,
    move,
    register_ultrasound,
    registration,
    score_registration,
    segmentation,
    training_volumes,
)
from examples.medical_mri_us.phantom import cached_dataset
from examples.medical_mri_us.subcommands import downstream

pytestmark = pytest.mark.slow


def points(rng, count=25):
    return np.array(SPACING) * (rng.uniform(size=(count, 3)) * [6, 24, 24] + [1, 25, 20])


@pytest.mark.parametrize("limits", BINS)
def test_motion_displaces_landmarks_by_what_the_bin_says_and_is_smooth(limits):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        where = points(rng)
        motion = draw_motion(rng, where, (96, 96), limits)
        moved = motion.forward(where)
        mean = np.linalg.norm(moved - where, axis=1).mean()
        assert limits[0] - 1e-2 <= mean <= limits[1] + 1e-2
        assert np.allclose(moved + motion.displacement(moved), where, atol=1e-6)
        assert np.array_equal(moved[:, 0], where[:, 0])  # within slices
        step = 1e-3
        jacobian = [
            (motion.displacement(where + step * np.eye(3)[a]) - motion.displacement(where)) / step
            for a in (1, 2)
        ]
        matrix = np.eye(2) + np.stack(jacobian, axis=-1)[:, 1:, :]
        assert np.linalg.det(matrix).min() > 0.3  # nothing folds


def test_bending_is_a_cubic_spline():
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(2, 7, 7))
    motion = registration.Motion(2.0, np.zeros((2, 2)), np.zeros(2), coefficients, np.zeros(2))
    knot = np.array([[3.0, 2 * registration.MESH, registration.MESH]])  # a knot, inside
    weights = np.outer([1, 4, 1], [1, 4, 1]) / 36
    expected = 2 * (coefficients[:, 2:5, 1:4] * weights).sum(axis=(1, 2))
    assert motion.displacement(knot)[0] == pytest.approx([0, *expected])


def test_a_moved_image_shows_points_where_forward_says():
    rng = np.random.default_rng(3)
    centre = np.array([[8.0, 45.0, 50.0]])
    motion = draw_motion(rng, centre, (96, 96), BINS[1])
    grid = np.stack(np.mgrid[:8, :64, :64], -1) * np.array(SPACING)
    blob = np.exp(-(((grid - centre) ** 2).sum(-1)) / (2 * 4.0**2)).astype(np.float32)
    moved = move(2 * blob - 1, motion, SPACING) / 2 + 0.5
    seen = (grid * moved[..., None]).sum((0, 1, 2)) / moved.sum()
    assert np.abs(seen - motion.forward(centre)[0])[1:].max() < 0.4


def test_registration_finds_the_motion_of_the_same_contrast():
    s, rng = subject(), np.random.default_rng(1)
    where = points(rng)
    motion = draw_motion(rng, where, (96, 96), BINS[1])
    rigid = replace(motion, bending=np.zeros_like(motion.bending))
    none = score_registration(s, where, rigid, None, "t2", "correlation")
    assert none.tre == none.initial > 3
    assert not none.diverged
    true = score_registration(s, where, rigid, s.images["t2"], "t2", "correlation")
    assert true.tre < 0.5
    assert true.initial == none.initial
    other = score_registration(s, where, rigid, -s.images["t2"], "t2", "information")
    assert other.tre < 1.5


def test_a_registration_without_result_moves_nothing_and_counts_as_diverged(monkeypatch):
    s, rng = subject(), np.random.default_rng(1)
    where = points(rng)
    motion = draw_motion(rng, where, (96, 96), BINS[1])

    def lost(*arguments, **named):
        raise RuntimeError("All samples map outside moving image buffer.")

    monkeypatch.setattr(registration, "_optimise", lost)
    outcome = score_registration(s, where, motion, s.images["t2"], "t2", "correlation")
    assert outcome.failed
    assert outcome.diverged
    assert outcome.tre == outcome.initial
    worse = registration.Outcome(initial=2.0, tre=2.1, seconds=1.0)
    assert worse.diverged
    assert not replace(worse, tre=1.9).diverged


def test_landmarks_lie_on_the_grid_of_the_subject():
    index = cached_dataset(train=1, test=1, size=32, slices=2, workers=1, progress=False)
    case = read_index(index)[-1]
    s = load_subject(case)
    voxels = registration.landmarks(case, s) / s.spacing
    assert voxels.shape[1] == 3
    assert np.abs(voxels[:, 0] - np.rint(voxels[:, 0])).max() < 1e-2
    halves = np.abs(voxels[:, 1:] * 2 - np.rint(voxels[:, 1:] * 2)).max()
    assert halves < 1e-2  # between two pixels
    whole = np.rint(voxels).astype(int)
    assert s.fov[tuple(whole.T)].all()
    with pytest.raises(ValueError, match=r"'case' should have landmarks"):
        registration.landmarks(replace(case, landmarks=None), s)


def test_dice_and_surface_distance_are_what_their_definitions_say():
    truth = np.zeros((4, 16, 16), dtype=bool)
    truth[1:3, 4:8, 4:8] = True
    found = np.roll(truth, 2, axis=1)
    score = segmentation.score_volume(found, truth, SPACING)
    assert score.dice == pytest.approx(0.5)
    surface = lambda v: v & ~ndimage.binary_erosion(v)
    a, b = (np.argwhere(surface(v)) * np.array(SPACING) for v in (found, truth))
    far = np.linalg.norm(a[:, None] - b[None], axis=-1)
    expected = np.concatenate([far.min(0), far.min(1)]).mean()
    assert score.assd == pytest.approx(expected, abs=1e-5)
    same = segmentation.score_volume(truth, truth, SPACING)
    assert (same.dice, same.assd) == (1.0, 0.0)
    nothing = segmentation.score_volume(np.zeros_like(truth), truth, SPACING)
    assert nothing.dice == 0
    assert np.isnan(nothing.assd)
    with pytest.raises(ValueError, match=r"'truth' should mark a tumour"):
        segmentation.score_volume(truth, np.zeros_like(truth), SPACING)


def test_network_learns_tumours_it_is_shown_and_looks_at_neighbours():
    s = subject(shape=(4, 32, 32))
    shown = replace(s, images={**s.images, "us": np.where(s.label > 0, 0.9, s.images["us"] / 3)})
    slices = segmentation.Examples([shown.images["us"].astype("f4")] * 2, [shown] * 2)
    assert len(slices) == 8
    image, truth = slices[0]
    assert image.shape == (3, 32, 32)
    assert image.min() == -1  # out of view
    assert truth.unique().tolist() == [0, 1]
    network = segmentation.train(slices, steps=60, seed=0)
    found = segmentation.segment(network, shown.images["us"], s.fov)
    assert segmentation.score_volume(found, segmentation.tumour_of(s), SPACING).dice > 0.6
    assert not (found & ~s.fov).any()
    volume = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4)
    stacked = segmentation._between_neighbours(volume).numpy()
    assert np.array_equal(stacked[1], volume)
    assert np.array_equal(stacked[0], volume[[0, 0, 1]])


def test_what_is_learnt_from_is_moved_with_its_outline(monkeypatch):
    s = subject(shape=(2, 32, 32))
    volume = np.where(s.label > 0, 0.5, -0.5).astype("f4")
    slices = segmentation.Examples([volume], [replace(s, fov=np.ones_like(s.fov))])
    torch.manual_seed(0)
    areas = []
    for _ in range(20):
        image, truth = slices[0]
        inside = truth[0] > 0
        areas.append(int(inside.sum()))
        assert image[1][inside].mean() > image[1][~inside].mean() + 0.4
    assert len(set(areas)) > 10  # stretched
    monkeypatch.setattr(segmentation, "_symmetric", lambda: torch.zeros(()))
    monkeypatch.setattr(torch, "rand", lambda size: torch.full(size, 0.9))  # mirrored alone
    image, truth = slices[0]
    torch.testing.assert_close(image, slices.images[0].flip(-1))
    assert torch.equal(truth, slices.truths[0].flip(-1))


def test_oedema_counts_as_tumour_and_what_is_out_of_view_does_not():
    s = subject(shape=(3, 24, 24))
    label, fov = np.zeros(s.fov.shape, dtype=np.uint8), np.zeros_like(s.fov)
    label[:, 4:20, 4:20] = np.arange(1, 5).repeat(4)  # all parts, side by side
    label[:, 10:12, 10:12] = 0  # a hole
    label[:, 12, 20] = 2  # a spike
    fov[:, :12] = True
    found = segmentation.tumour_of(replace(s, label=label, fov=fov))
    expected = np.zeros_like(fov)
    expected[:, 4:12, 4:20] = True
    expected[:, 4, [4, 19]] = False  # corners are rounded
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match=r"'subject' should have labels"):
        segmentation.tumour_of(replace(s, label=None))


def test_sources_are_given_all_mr_for_ultrasound_and_ultrasound_alone_for_mr():
    some = subject(modalities=["us", "t2", "cet1"], shape=(2, 32, 32))
    alone = subject("alone", modalities=["us"], shape=(2, 32, 32))
    asked = []

    def make(subject, given, target):
        asked.append((subject.name, tuple(given), target))
        return subject.images["us"] / 2

    source = Synthesiser(["us", "t2", "flair"], make)
    volumes, whose = training_volumes(source, [some, alone])
    assert asked == [("a", ("t2",), "us")]
    assert [s.name for s in whose] == ["a"]
    assert np.array_equal(volumes[0], some.images["us"] / 2)
    assert len(training_volumes("mr", [some, alone])[0]) == 2
    assert len(training_volumes("true", [some, alone])[0]) == 2
    asked.clear()
    where = np.array([[2.0, 20.0, 20.0], [2.0, 28.0, 24.0]])
    found = register_ultrasound(source, [some], [where], ["t2", "cet1"])
    assert asked == [("a", ("us",), "t2")]  # once for all bins
    assert [(c["target"], *c["bin"]) for c in found["cells"]] == [("t2", *b) for b in BINS]


@pytest.fixture(scope="module")
def phantom(cache):
    return cached_dataset(train=2, test=1, size=32, slices=4, workers=1, progress=False)


@pytest.fixture
def rewritten(phantom, tmp_path):
    """Writes the index again, with columns of a split emptied, or other files in them."""

    def write(split, **cells):
        with phantom.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row |= cells if row["split"] == split else {}
        path = phantom.parent / f"{tmp_path.name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def options(tmp_path, index, **others):
    if not (tmp_path / "run").exists():
        write_run(tmp_path / "run")
    few = {"steps": 2, "gate": 0.0, "targets": ("t2",), "least_ml": 0.01, "device": "cpu"}
    return downstream.Downstream(tmp_path / "run", index, tmp_path / "out", **few | others)


def test_landmarks_move_with_the_slices_that_are_padded(phantom):
    """Larger slices stay whole."""
    case = read_index(phantom)[-1]
    whole = landmarks(case, load_subject(case))
    for size in (48, 24):
        chosen = choose_cases([case], size, modalities=("us", ANY_MR), points=True)
        (s,), (cut,) = chosen.subjects, chosen.points
        assert s.fov.shape[1:] == (max(size, 32), max(size, 32))
        seen = np.rint(cut / s.spacing).astype(int)
        before = load_subject(case)
        there = np.rint(whole / before.spacing).astype(int)
        inside = ((seen >= 0) & (seen < s.fov.shape)).all(axis=1)
        assert inside.all()
        old = before.images["us"][tuple(there[inside].T)]
        assert np.array_equal(s.images["us"][tuple(seen[inside].T)], old)


def test_the_verb_writes_dice_and_errors_of_the_model_beside_references(phantom, tmp_path, capsys):
    assert downstream.run(options(tmp_path, phantom)) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["downstream.json", "downstream.md"]
    found = json.loads((out / "downstream.json").read_text())
    assert set(found["segmentation"]) == {"true", "mr", "model"}
    assert all(0 <= v["dice"][0] <= 1 for v in found["segmentation"].values())
    assert set(found["registration"]) == {"none", "direct", "true", "model"}
    cells = {name: v["cells"] for name, v in found["registration"].items()}
    assert [c["bin"] for c in cells["model"]] == [list(b) for b in BINS]
    assert [c["tre"] for c in cells["none"]] == [c["initial"] for c in cells["model"]]
    assert [c["tre"] for c in cells["model"]] != [c["tre"] for c in cells["true"]]
    assert found["phantom"] is True
    text = (out / "downstream.md").read_text()
    assert "nothing here was measured on patients" in text
    assert text in capsys.readouterr().out
    for line in ("| synthetic iUS of run |", "| raw MR", "| synthetic MR of run |", "### To T2"):
        assert line in text


def test_below_the_gate_nothing_but_the_reference_is_segmented(phantom, tmp_path, capsys):
    asked = options(tmp_path, phantom, gate=1.0, task=("segmentation",))
    assert downstream.run(asked) == 3
    out, errors = capsys.readouterr()
    assert "below the gate of 1.00" in out
    assert "below the gate of 1.00" in errors
    found = json.loads((tmp_path / "out" / "downstream.json").read_text())
    assert set(found["segmentation"]) == {"true"}
    assert "registration" not in found


def test_cases_that_lack_something_are_skipped_and_broken_ones_listed(phantom, tmp_path, capsys):
    cases = read_index(phantom)
    lacking = [replace(cases[0], label=None, images={"us": cases[0].images["us"]}), *cases[1:]]
    chosen = choose_cases(lacking, 32, modalities=("us", ANY_MR), labels=True)
    assert chosen.skipped == {cases[0].name: "no MR, no labels"}
    assert len(chosen.subjects) == 2
    own = choose_cases(cases, 32, modalities=("us", "mr"))  # a name as any other
    assert set(own.skipped.values()) == {"no mr"}
    big = choose_cases(cases, 32, modalities=("us",), labels=True, least_ml=1e3)
    assert not big.subjects
    assert all("ml of tumour in view" in why for why in big.skipped.values())
    thin = cached_dataset(train=1, test=1, size=32, slices=2, workers=1, progress=False)
    few = choose_cases(read_index(thin)[-1:], 32, modalities=("us",), points=True)
    assert list(few.skipped.values()) == ["fewer than 4 slices"]
    (tmp_path / "points.csv").write_text("x,y\n1,2\n")
    wrong = [replace(cases[-1], landmarks=tmp_path / "points.csv")]
    broken = choose_cases(wrong, 32, modalities=("us",), points=True)
    assert not broken.subjects
    assert "points.csv" in str(broken.problems[0])


@pytest.mark.parametrize(
    ("task", "split", "column", "message"),
    [
        ("segmentation", "train", "label", r"no case of split 'train' with .* labels"),
        ("segmentation", "test", "label", r"no case of split 'test' with .* labels of at least"),
        ("registration", "test", "landmarks", r"no case of split 'test' with landmarks"),
        ("registration", "test", "t2", r"landmarks, ultrasound and t2"),
    ],
)
def test_an_index_that_a_task_cannot_use(task, split, column, message, rewritten, tmp_path):
    index = rewritten(split, **{column: ""})
    with pytest.raises(CaseError, match=message):
        downstream.run(options(tmp_path, index, task=(task,)))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"task": ()}, r"'task' should be some of segmentation, registration"),
        ({"steps": 0}, r"'steps' should be an integer of at least 1, but is 0"),
        ({"gate": 2.0}, r"'gate' should be a number from 0 to 1, but is 2.0"),
        ({"seed": -1}, r"'seed' should be"),
        ({"least_ml": 0.0}, r"'least-ml' should be a positive number"),
        ({"targets": ("us",)}, r"'targets' should be some of t2, cet1, flair, .* but is us"),
        ({"targets": ()}, r"'targets' should be .* but is empty"),
        ({"device": "tpu"}, r"'device' should be auto, cpu or cuda"),
    ],
)
def test_bad_options_are_named_before_anything_is_done(bad, message, phantom, tmp_path):
    with pytest.raises(ValueError, match=message):
        downstream.run(options(tmp_path, phantom, **bad))
    assert not (tmp_path / "out").exists()


def test_a_model_without_ultrasound_is_refused(phantom, tmp_path):
    write_run(tmp_path / "run", modalities=("t2", "cet1"))
    with pytest.raises(ValueError, match=r"'model' should be one of ultrasound, us, and MR"):
        downstream.run(options(tmp_path, phantom))


def test_monai_is_asked_for_by_its_extra(phantom, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.unet", None)
    with pytest.raises(ModuleNotFoundError, match=r"monai.*mmpoe\[downstream\]"):
        downstream.run(options(tmp_path, phantom))


def test_exit_codes_of_the_command_line(rewritten, tmp_path, capsys, monkeypatch):
    index = rewritten("test", label="", landmarks="")
    asked = options(tmp_path, index)
    words = ["downstream", asked.model, "--data", index, "--out", asked.out, "--device", "cpu"]
    for more, code, text in (
        (["--task", "registration"], 3, "with landmarks"),
        (["--task", "registration", "--targets", "ct"], 2, "'targets' should be some of"),
    ):
        monkeypatch.setattr(sys, "argv", ["mri_us", *map(str, [*words, *more])])
        assert main() == code
        assert text in capsys.readouterr().err

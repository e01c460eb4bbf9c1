"""The ablations change one thing at a time, and their tables tell the truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.synthesis.ablations import __main__ as command
from benchmarks.synthesis.ablations import figure, missing, tables, variants
from benchmarks.synthesis.ablations.factors import variants as every_variant
from benchmarks.synthesis.ablations.variants import BASE, FUSIONS, MeanFusion, Variant, build
from benchmarks.synthesis.profiles import Profile
from benchmarks.synthesis.scoring import SUBSETS
from benchmarks.synthesis.systems import build as build_system
from benchmarks.synthesis.systems.common import predict_means
from examples.medical_mri_us.data import Subject
from examples.medical_mri_us.modalities import MODALITIES

pytestmark = pytest.mark.slow

SIZE = 32
TINY = Profile(6, 3, SIZE, 2, seconds=0.01, seeds=1, batch=2, trial=1)


def batch(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = {m: torch.rand(rows, 1, SIZE, SIZE, generator=generator) * 2 - 1 for m in MODALITIES}
    observed = torch.tensor([[True] * 4, [True, False, True, False], [False, True, False, False]])
    for column, m in enumerate(MODALITIES):
        x[m][~observed[:rows, column]] = torch.nan
    fov = torch.ones(rows, 1, SIZE, SIZE, dtype=torch.bool)
    fov[:, :, :9] = False
    return x, observed[:rows], fov


def built(variant, seed=1):
    torch.manual_seed(seed)
    return build(variant, MODALITIES, SIZE)


def loss_of(system, done=0.5, data=None, seed=2):
    torch.manual_seed(seed)
    return system.loss(batch() if data is None else data, done)


def subject(name, seed=0, modalities=MODALITIES):
    rng = np.random.default_rng(seed)
    fov = np.ones((2, SIZE, SIZE), dtype=bool)
    fov[:, :4] = False
    images = {m: rng.uniform(-1, 1, fov.shape).astype(np.float32) for m in modalities}
    return Subject(name, images, fov, None)


def test_the_base_is_the_slim_system_of_the_comparison_to_the_bit():
    torch.manual_seed(1)
    slim = build_system("mmhvae", MODALITIES, SIZE)
    base = built(BASE)
    for done in (0.05, 0.9):
        assert torch.equal(loss_of(slim, done), loss_of(base, done))
    x, _, _ = batch()
    given = torch.tensor([[True, False, False, False]] * 3)
    clean = {m: v.nan_to_num() for m, v in x.items()}
    for m, image in slim.synthesise(clean, given, MODALITIES).items():
        assert torch.equal(image, base.synthesise(clean, given, [m])[m])


@pytest.mark.parametrize("variant", every_variant(SIZE), ids=lambda v: v.name)
def test_every_variant_trains_and_synthesises_without_reading_what_is_missing(variant):
    system = built(variant)
    losses = loss_of(system, done=0.9)
    assert losses.shape == (3,)
    losses.sum().backward()
    gradients = [p.grad for p in system.network.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)
    x, observed, _ = batch()
    images = system.synthesise(x, observed, ["flair"])["flair"]
    assert images.shape == (3, 1, SIZE, SIZE)
    assert bool(images.isfinite().all())


def test_variants_are_told_apart_and_differ_in_one_thing():
    found = every_variant(64)
    assert len({v.name for v in found}) == len(found) == 34
    for v in found:
        changed = {k for k, value in vars(v).items() if value != getattr(BASE, k)}
        changed -= {"name", "factor", "label", "discard"}
        assert len(changed) == (v != BASE) or v.name == "before"
    assert {v.fusion for v in found} == set(FUSIONS)
    assert [v.groups for v in found if v.groups] == [1, 2, 3, 4, 5]
    assert sorted({v.beta for v in found}) == [0.001, 0.01, 0.1, 1.0]


def test_fewer_groups_are_the_coarsest_of_one_pyramid():
    for count in range(1, 5):
        network = built(replace(BASE, groups=count)).network
        assert [g.shape[1:] for g in network.groups] == [(2**n, 2**n) for n in range(1, count + 1)]
    whole, few = (built(replace(BASE, groups=count)).network for count in (4, 1))
    assert whole.groups[-1].shape == (16, 16, 16)  # as the finest of the base
    # the path down goes on to the same resolution and width
    h = few.groups[0].merge(None, torch.zeros(2, 16, 2, 2))
    assert h.shape == (2, 32, 16, 16)


def test_mean_fusion_is_one_expert_of_mean_parameters():
    rng = torch.Generator().manual_seed(0)
    loc, log_scale = torch.randn(2, 3, 2, 4, generator=rng, dtype=torch.float64)
    prior = torch.randn(2, 2, 4, generator=rng, dtype=torch.float64)
    given = torch.tensor([[True, False, True], [False, False, False]])
    loc[1] = torch.nan
    q = MeanFusion()(list(loc), list(log_scale), given, (prior[0], prior[1]), temperature=0.0)
    mean = (loc[0, 0] + loc[2, 0]) / 2
    precision = (-(log_scale[0, 0] + log_scale[2, 0])).exp()
    own = (-2 * prior[1, 0]).exp()
    expected = (precision * mean + own * prior[0, 0]) / (precision + own)
    torch.testing.assert_close(q.loc[0], expected)
    torch.testing.assert_close(q.log_scale[0], -(precision + own).log() / 2)
    torch.testing.assert_close(q.loc[1], prior[0, 1])
    assert q.kl[1] == 0


def test_a_mixture_synthesises_the_mean_over_what_is_given():
    system = built(replace(BASE, fusion="MoE"))
    assert system.network.family == "singletons"
    x, observed, _ = batch()
    found = system.synthesise(x, observed, ["t2"])["t2"]
    alone = {
        m: predict_means(
            system.network, x, observed & (torch.arange(4) == MODALITIES.index(m)), ["t2"]
        )["t2"]
        for m in MODALITIES
    }
    torch.testing.assert_close(found[1], (alone["us"][1] + alone["cet1"][1]) / 2)
    torch.testing.assert_close(found[2], alone["t2"][2])


def test_zero_imputation_gives_zeros_to_all_experts():
    system = built(replace(BASE, fusion="zero imputation"))
    x, observed, _ = batch()
    found = system.synthesise(x, observed, ["t2"])["t2"]
    zeros = {m: v.nan_to_num(0.0) for m, v in x.items()}
    everything = torch.ones_like(observed)
    expected = predict_means(system.network, zeros, everything, ["t2"])["t2"]
    torch.testing.assert_close(found, expected)
    other = predict_means(system.network, zeros, observed, ["t2"])["t2"]
    assert not torch.allclose(found[1], other[1])


def test_several_subsets_are_averaged(monkeypatch):
    drawn = []

    def subsets(observed, samples, proper):
        drawn.append((samples, proper))
        return observed.expand(samples, *observed.shape)

    def bound(output, batch, given, beta, reconstruction):
        assert torch.equal(given, batch[2])  # each subset beside the row it is of
        assert output.kl[0].shape == (6,)
        return torch.tensor([1.0, 2.0, 3.0, 3.0, 4.0, 5.0])

    monkeypatch.setattr(variants, "random_subsets", subsets)
    monkeypatch.setattr(variants, "bound", bound)
    found = loss_of(built(replace(BASE, subsets=2)))
    assert drawn == [(2, True)]
    torch.testing.assert_close(found, -torch.tensor([2.0, 3.0, 4.0]))


def test_the_adversary_charges_in_the_last_fifth_alone():
    system, base = built(replace(BASE, adversary=True)), built(BASE)
    assert torch.equal(loss_of(system, 0.5), loss_of(base, 0.5))
    assert torch.equal(loss_of(system, 0.795), loss_of(base, 0.795))  # it learns, and charges not
    data = batch()
    charged = loss_of(system, 0.9, data) - loss_of(base, 0.9, data)
    assert charged[0] > 0
    assert system.adversary.start == 0.79
    critic_loss = system.adversary.loss(system.adversary.network, data, 0.9)
    assert critic_loss.shape == (3,)
    assert bool(critic_loss.isfinite().all())


def test_dropping_is_nested_and_counted():
    subjects = [subject(f"p{n}", n) for n in range(20)]
    before = {(s.name, m) for s in subjects for m in MODALITIES}
    for share in (0.0, 0.25, 0.5, 0.75, 0.95):
        found = missing.drop(subjects, share)
        images = {(s.name, m) for s in found for m in s.images}
        assert len(images) == round(80 * (1 - share))
        assert images <= before
        assert all(s.images for s in found)
        whole = missing.complete(found)
        assert missing.left(20, share) == (len(images), len(found), len(whole))
        before = images
    assert missing.left(20, 0.25).complete < 20
    kept = missing.drop(subjects, 0.5)[0]
    m = next(iter(kept.images))
    assert kept.images[m] is next(s for s in subjects if s.name == kept.name).images[m]


def test_patients_who_are_scored_are_not_trained_on(monkeypatch):
    asked = {}
    monkeypatch.setattr(missing, "cached_dataset", lambda **options: asked.update(options))
    monkeypatch.setattr(missing, "read_index", lambda index: list(range(9)))
    monkeypatch.setattr(missing, "load_subjects", lambda cases, progress: (cases, []))
    assert missing.complete_patients(TINY) == [3, 4, 5, 6, 7, 8]
    assert asked == {"train": 0, "test": 9, "size": SIZE, "slices": 2}


def test_a_variant_is_trained_on_what_is_left_and_done_once(tmp_path, monkeypatch, capsys):
    held_out = [subject(f"t{n}", 50 + n) for n in range(2)]
    whole = [subject(f"p{n}", n) for n in range(TINY.patients)]
    monkeypatch.setattr(command, "load", lambda profile: ([subject("i")], held_out))
    monkeypatch.setattr(command, "complete_patients", lambda profile: whole)
    variant = Variant("few", "missing images", "10%", missing=0.1, discard=True)
    train_on, test_on = command.patients(variant, TINY)
    assert [s.name for s in train_on] == [
        s.name for s in missing.complete(missing.drop(whole, 0.1))
    ]
    assert test_on == held_out
    assert [s.name for s in command.patients(BASE, TINY)[0]] == ["i"]
    assert command.possible(variant, TINY)
    assert not command.possible(replace(variant, missing=0.95), TINY)
    for _ in range(2):
        assert command.train_all([variant], TINY, "tiny", tmp_path, workers=1) == 0
    assert "1 runs are there, 0 to do" in capsys.readouterr().out
    facts = json.loads((tmp_path / "few-0.json").read_text())
    assert facts["patients"] == ["t0", "t1"]
    assert facts["system"] == "few"


def fake_run(folder, name, shift, own=0.0, patients=12):
    """A run whose score of patient n is n plus the shift; reconstructions are better."""
    cells = []
    for given in SUBSETS:
        for m in MODALITIES:
            base = [n + shift + own * (m in given) for n in range(patients)]
            scores = {"psnr": base, "ssim": [b / 100 for b in base]}
            cells.append({"given": list(given), "target": m, **scores})
    facts = {"steps": 7, "parameters": 2_000_000, "patients": [f"p{n}" for n in range(patients)]}
    (folder / f"{name}-0.json").write_text(json.dumps({**facts, "cells": cells}))


@pytest.fixture
def found(tmp_path):
    profile = replace(TINY, patients=200)
    for name, shift in [
        ("base", 10.0), ("fusion-moe", 8.5), ("fusion-gpoe", 10.25), ("groups-1", 7.0),
        ("missing-0", 12.0), ("missing-50", 11.5), ("missing-50-complete", 9.0),
        ("missing-95", 9.5), ("beta-1", 6.0),
    ]:  # fmt: skip
        fake_run(tmp_path, name, shift, own=2.0)
    return tables.read(tmp_path, every_variant(SIZE), 1), profile


@pytest.mark.long
def test_tables_compare_with_the_base_and_put_what_was_missing_first(found):
    text = tables.markdown(*found, "quick")
    assert text.startswith("# Ablations of the MMHVAE on phantom patients, profile 'quick'")
    fusion = text[text.index("## Fusion") :]
    assert "| exact PoE (base) | 2.00 M | 7 | 15.50 (3.61) | - | - | 15.5 (3.6)" in fusion
    assert "| MoE | 2.00 M | 7 | 14.00 (3.61) | -1.50 | 0.00098 | 14.0 (3.6) | -1.5" in fusion
    assert "| exact PoE (base) | 2.00 M | 7 | 17.50 (3.61) | - | - |" in fusion  # reconstruction
    assert "ST-LPIPS" not in text  # not scored
    rows = text[text.index("## Missing images") :]
    left = missing.left(200, 0.5)
    assert 0 < left.complete < 40
    assert f"| 50% | 400 | {left.patients} | {left.complete} | 17.00" in rows
    assert "17.00 (3.61) | 14.50 (3.61) | +2.50 | 0.00049" in rows
    assert "none is complete" in rows  # at 95 %
    assert "the same" in rows


def test_results_hold_what_tables_show(found):
    scores, profile = found
    content = tables.results(scores, profile)
    one = {v["name"]: v for v in content["variants"]}["fusion-moe"]
    assert one["scores"]["cross_psnr"]["mean"] == pytest.approx(14.0)
    assert one["scores"]["cross_psnr"]["difference"] == pytest.approx(-1.5)
    assert one["scores"]["self_psnr"]["mean"] == pytest.approx(16.0)
    half = {v["name"]: v for v in content["variants"]}["missing-50"]
    assert half["left"]["images"] == 400
    assert len(json.dumps(content)) < 100_000


@pytest.mark.long
def test_scores_of_metrics_that_not_all_have_are_left_out(found, tmp_path):
    def also_perceptual(paths):
        for path in paths:
            run = json.loads(path.read_text())
            for cell in run["cells"]:
                cell["st_lpips"] = [0.25] * 12
            path.write_text(json.dumps(run))
        return tables.read(tmp_path, every_variant(SIZE), 1)

    scores = also_perceptual([tmp_path / "base-0.json"])
    assert scores[0].values["cross", "st_lpips"].tolist() == [0.25] * 12
    assert "ST-LPIPS" not in tables.markdown(scores, found[1], "quick")
    scores = also_perceptual(tmp_path.glob("*-0.json"))
    text = tables.markdown(scores, found[1], "quick")
    assert "ST-LPIPS, %, lower is better" in text
    assert "25.0 (0.0) | +0.0 | 1 |" in text


def test_tables_need_the_base(tmp_path):
    fake_run(tmp_path, "fusion-moe", 0.0)
    with pytest.raises(ValueError, match=r"'folder' should hold the scores of the base"):
        tables.read(tmp_path, every_variant(SIZE), 1)


def test_the_figure_is_drawn_from_the_scores(found, tmp_path, monkeypatch):
    lines = []
    original = figure._line

    def line(axis, scores, *, metric, place, label, **options):
        lines.append((label, metric, [(place(s.variant), s.variant.name) for s in scores]))
        original(axis, scores, metric=metric, place=place, label=label, **options)

    monkeypatch.setattr(figure, "_line", line)
    figure.draw(*found, tmp_path / "figure.png")
    assert 5_000 < (tmp_path / "figure.png").stat().st_size < 300_000
    shown = {(label, metric): points for label, metric, points in lines}
    assert shown["complete patients alone", "psnr"] == [
        (0.0, "missing-0"), (50.0, "missing-50-complete"),
    ]  # fmt: skip
    assert (0.01, "base") in shown["divergence", "ssim"]

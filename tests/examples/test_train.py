"""Training and its pictures on tiny subjects: what is given, what is scored, what is kept."""

import json
import os
import signal
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Laplace

from examples.medical_mri_us import critics as critics_module
from examples.medical_mri_us import train as train_module
from examples.medical_mri_us.critics import Critics
from examples.medical_mri_us.data import Subject, TargetSlices, batch_targets
from examples.medical_mri_us.evaluation import synthesise
from examples.medical_mri_us.modalities import MODALITIES
from examples.medical_mri_us.models import ImageModel
from examples.medical_mri_us.report.panel import _slice_with_most_tumour, draw_panel, draw_training
from examples.medical_mri_us.train import (
    Settings,
    bound,
    build_model,
    infer,
    load_model,
    save_model,
    train,
)
from mmpoe.adversarial import discriminator_loss
from mmpoe.training import CheckpointError, load_state

PNG = b"\x89PNG"
SIDE = 16


SMALL = ImageModel(patch=4, widths=(16, 8), latents=(3, 2))


def subject(seed, modalities=MODALITIES):
    """A subject of noise, in view but for its upper rows."""
    rng = np.random.default_rng(seed)
    fov = np.ones((3, SIDE, SIDE), bool)
    fov[:, : 2 + seed % 3] = False
    noise = {m: rng.uniform(-1, 1, fov.shape).astype(np.float32) for m in modalities}
    images = {m: np.where(fov, image, -1).astype(np.float32) for m, image in noise.items()}
    return Subject(str(seed), images, fov, label=None)


def batch(*subjects):
    return batch_targets(list(TargetSlices(subjects)))


class Deaf:
    """A model that keeps what it is given and always predicts 0, at a divergence of 3 nats."""

    def __call__(self, x, given):
        self.given = given
        zero = torch.zeros(len(given), 1, SIDE, SIDE)
        return SimpleNamespace(
            likelihoods={m: Independent(Laplace(zero, 0.5), 3) for m in MODALITIES},
            kl=[torch.ones(len(given)), 2 * torch.ones(len(given))],
        )


def test_slices_are_conditioned_on_random_subsets_of_what_was_observed():
    model, parts = Deaf(), batch(*map(subject, range(8)), subject(8, MODALITIES[1:]))
    observed = parts[2]
    torch.manual_seed(0)
    _, given = infer(model, parts)
    assert given is model.given
    assert model.given.shape == observed.shape
    assert model.given.any(dim=1).all()
    assert not (model.given & ~observed).any()
    assert len(model.given.unique(dim=0)) > 5  # rows are given different subsets
    several = observed.sum(dim=1) > 1
    assert several.any()
    assert (observed & ~given).any(dim=1)[several].all()  # something is hidden from each
    whole = [infer(model, parts, proper=False)[1] for _ in range(20)]
    assert any((given == observed).all(dim=1)[several].any() for given in whole)


def test_bound_is_per_pixel_in_view_and_ignores_the_others():
    x, _, observed, fov = batch(subject(0), subject(1, ("us", "flair")), subject(2, ("cet1",)))

    torch.manual_seed(0)
    output, given = infer(Deaf(), (x, x, observed, fov))
    assert given.any(dim=1).all()
    assert (observed & ~given).any()

    def score(targets):
        return bound(output, (x, targets, observed, fov), given, 0.1, 0.3)

    found = score(x)
    for row, entry in enumerate(found):
        inside = fov[row]
        scores = [
            Laplace(0.0, 0.5).log_prob(x[m][row][inside]).sum()
            * (0.3 if given[row, column] else 1)
            for column, m in enumerate(MODALITIES)
            if observed[row, column]
        ]
        expected = (sum(scores) - 0.1 * 3) / inside.sum()
        torch.testing.assert_close(entry, expected)
    elsewhere = {m: torch.where(fov, image, 0.7) for m, image in x.items()}
    assert torch.equal(score(elsewhere), found)
    inside = {m: torch.where(fov, 0.7, image) for m, image in x.items()}
    assert not torch.isclose(score(inside), found).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("minutes", -1),
        ("minutes", float("nan")),
        ("batch", 0),
        ("accumulate", 0),
        ("optimizer", "sgd"),
        ("floor", 1.5),
        ("weight_decay", -1),
        ("clip", 0),
        ("average", -0.1),
        ("warmup", 2),
        ("lr", 0.0),
        ("beta", -0.1),
        ("beta", float("inf")),
        ("restart", -0.1),
        ("restart", 1.5),
        ("restart", float("nan")),
        ("rare", 2),
        ("rare", -0.5),
        ("seed", -1),
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"'{name}' should be .*, but is {value!r}"):
        train([subject(0)], Settings(**{name: value}), progress=False)


@pytest.mark.slow
def test_a_model_is_built_again_from_its_own_description(tmp_path):
    settings = Settings(steps=2, minutes=None, batch=2)
    subjects = [subject(0), subject(1)]
    model, history = train(subjects, settings, network=SMALL, progress=False)
    facts = {"phantom": True}
    save_model(tmp_path, model, SIDE, settings, history, network=SMALL, facts=facts)
    again, description = load_model(tmp_path)
    architecture = {**asdict(SMALL), "widths": [16, 8], "latents": [3, 2], "size": SIDE}
    assert {"name": description["model"], **description["architecture"]} == architecture
    assert description["phantom"] is True
    want, have = (synthesise(m, subject(2), ["us"])["t2"] for m in (model.cpu(), again))
    assert np.array_equal(want, have)

    file = tmp_path / "model.json"
    whole = json.loads(file.read_text())
    del whole["description_sha256"]
    for broken in ({}, {"size": SIDE}, {**description["architecture"], "depth": 3}):
        file.write_text(json.dumps({**whole, "architecture": broken}))
        words = "holds no model that can be built|is of another architecture"
        with pytest.raises(CheckpointError, match=words):
            load_model(tmp_path)


def test_synthesis_is_at_the_mean():
    torch.manual_seed(0)
    model = build_model(SIDE)
    first, second = (synthesise(model, subject(0), ["us", "t2"]) for _ in range(2))
    for m in MODALITIES:
        assert np.array_equal(first[m], second[m])
    x = {m: torch.from_numpy(subject(0).images[m])[:, None] for m in ("us", "t2")}
    drawn = [model.predict(x)["flair"].mean for _ in range(2)]
    assert not torch.equal(*drawn)  # there is noise to be left out


def test_the_panel_shows_the_slice_with_most_tumour():
    label = np.zeros((5, SIDE, SIDE), np.uint8)
    label[1, :2] = 1
    label[3, :4] = 1
    label[4, :3] = 4
    noise = subject(0)
    fov = np.ones(label.shape, bool)
    for labels, expected in ((label, 3), (0 * label, 2), (None, 2)):
        assert _slice_with_most_tumour(Subject("a", noise.images, fov, labels)) == expected


def test_the_panel_is_drawn():
    assert draw_panel(build_model(SIDE), subject(0), [["us"]]).startswith(PNG)


@pytest.mark.parametrize(
    "bounds",
    [
        [],
        [1.0],
        [float("nan")] * 3,
        [-3.0, float("nan"), -2.0, float("inf"), -1.5],
        [float("nan"), *np.linspace(-3, 1, 200), float("-inf")],
    ],
)
def test_training_is_drawn_whatever_was_skipped(bounds):
    assert draw_training(bounds).startswith(PNG)


def test_a_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Fault 36: the same weights as if it had not been stopped."""
    subjects = [subject(0), subject(1, MODALITIES[:2])]
    options = {"network": SMALL, "progress": False}
    settings = Settings(steps=6, minutes=None, batch=2, save_every=2)
    whole, history = train(subjects, settings, **options)
    bounds, original, calls = history.bounds, train_module.bound, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train_module, "bound", stop)
    _, history = train(subjects, settings, keep=tmp_path, **options)
    assert (len(history.bounds), history.exit_code) == (3, 143)
    model, history = train(subjects, settings, keep=tmp_path, resume=True, **options)
    assert history.bounds == bounds
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
    )

    other = Settings(steps=6, minutes=None, batch=2, save_every=2, lr=0.1)
    with pytest.raises(CheckpointError, match=r"'settings', should hold 0.1 as 'lr', .* 0.002"):
        train(subjects, other, keep=tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match=r"'resume' be True, but .* up to step 6"):
        train(subjects, settings, keep=tmp_path, **options)


def test_own_modalities_and_harmonised_targets():
    """What is scored is the target, where there is one; what is given is the image."""
    names = ["photo", "sketch"]
    subjects = []
    for seed in range(2):
        one = subject(seed, names)
        dark = np.where(one.fov, np.float32(-0.9), np.float32(-1))
        subjects.append(replace(one, targets={"sketch": dark}))
    settings = Settings(steps=60, minutes=None, batch=4, lr=1e-2)
    model, history = train(subjects, settings, modalities=names, network=SMALL, progress=False)
    assert model.modalities == names
    assert history.bounds[-1] > history.bounds[0]
    x = {"sketch": torch.from_numpy(subjects[0].images["sketch"])[:, None]}
    made = model.cpu().predict(x, temperature=0.0)
    inside = torch.from_numpy(subjects[0].fov)[:, None]
    assert made["sketch"].mean[inside].mean() < -0.6  # as dark as the targets
    assert made["photo"].mean[inside].mean() > -0.5


def test_the_optimiser_starts_afresh_when_it_is_to():
    """That of the model alone, at that share of the training, and never if it is 1 or None."""
    subjects, critics = [subject(0), subject(1, MODALITIES[:2])], Critics(1.0, 4, start=0.5)
    found = {}
    for share in (None, 0.5, 1.0):
        settings = Settings(steps=4, minutes=None, batch=4, optimizer="adamax", restart=share)
        kind = Mock(wraps=torch.optim.Adamax)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(train_module.OPTIMIZERS, "adamax", kind)
            model, _ = train(subjects, settings, network=SMALL, critics=critics, progress=False)
        found[share] = [p.detach() for p in model.parameters()], kind.call_count
    for share, count in ((0.5, 2), (1.0, 1)):
        pairs = zip(found[None][0], found[share][0], strict=True)
        assert found[share][1] == count
        assert all(torch.equal(a, b) for a, b in pairs) is (count == 1)


def test_discriminators_learn_from_a_bank_what_was_never_observed(tmp_path, monkeypatch):
    """No batch after the first two shows the second modality; the bank is kept with the run."""
    subjects = [subject(0, MODALITIES[:1]), subject(1, MODALITIES[:2])]
    settings = Settings(steps=6, minutes=None, batch=2, rare=0.0, save_every=3)
    drawn = iter([1, 1, 1, 1, *[0] * 8])

    def sampler(weights, batch, number):
        half = len(weights) // 2  # slices of the first subject come first
        return [[half * next(drawn) for _ in range(batch)] for _ in range(number)]

    monkeypatch.setattr(train_module, "WeightedBatches", sampler)
    shown = []

    def watched(output, networks, targets, observed, scored, **options):
        shown.append((observed[:, 1].any().item(), scored[:, 1].any().item(), options["bank"]))
        return discriminator_loss(output, networks, targets, observed, scored, **options)

    monkeypatch.setattr(critics_module, "discriminator_loss", watched)
    two = MODALITIES[:2]
    critics = Critics(weight=1.0, width=4, start=0.0, charge=0.0, bank=3)
    options = {"network": SMALL, "critics": critics, "progress": False}
    train(subjects, settings, modalities=two, keep=tmp_path, **options)
    seen, scored, banks = zip(*shown, strict=True)
    assert seen == (True, True, False, False, False, False)
    assert all(scored[2:])
    assert len(banks[0].images[two[1]]) == 3
    state = load_state(tmp_path / "checkpoints" / "step-00000006" / "training")["also"]["bank"]
    assert torch.equal(state[f"images.{two[1]}"], banks[0].images[two[1]])


def test_discriminators_are_trained_late_and_their_loss_counts_later():
    subjects = [subject(0), subject(1, MODALITIES[:2])]
    settings = Settings(steps=4, minutes=None, batch=4)
    plain, _ = train(subjects, settings, network=SMALL, progress=False)
    for charge, same in ((1.0, True), (0.5, False)):
        critics = Critics(weight=1.0, width=4, start=0.5, charge=charge)
        judged, _ = train(subjects, settings, network=SMALL, critics=critics, progress=False)
        pairs = zip(plain.parameters(), judged.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same
    off = Critics(weight=0.0)
    unjudged, _ = train(subjects, settings, network=SMALL, critics=off, progress=False)
    pairs = zip(plain.parameters(), unjudged.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

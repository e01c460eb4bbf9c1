"""The log of a run: numbers, images and warnings."""

import csv
import io
import math
import re
import shutil
import signal
import sys
import types
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from example_models import flat, hierarchical, make
from example_training import objective, train
from torch import nn

import mmpoe
from mmpoe.objectives import mixture_elbo
from mmpoe.training import Adversary, CollapseWarning, Optimizer, Run


def numbers(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_has_a_row_per_interval(tmp_path):
    kls = []

    def watch(model, data, progress):
        x, observed = data
        output = model(x, given=observed)
        kls.append([kl.mean().item() for kl in output.kl])
        return mmpoe.elbo(output, x, observed)

    run = Run(tmp_path, save_every=100, log_every=4, evaluate=lambda model, step: 0.5 * step)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        history = train(make(hierarchical), objective=watch, steps=10, run=run)
    rows = numbers(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    for row in rows[:2]:
        step = int(row["step"])
        assert float(row["bound"]) == pytest.approx(sum(history.bounds[step - 4 : step]) / 4)
        found = [float(row["kl_1"]), float(row["kl_2"])]
        assert found == pytest.approx(kls[step - 1])
        assert row["score"] == ""
    assert rows[2]["score"] == "5.0"
    assert history.best == history.checkpoint


DAMAGE = {
    "null bytes after a loss of power": lambda text: text + "\0" * 700,
    "null bytes in the middle": lambda text: text[:90] + "\0" * 20 + text[110:],
    "semicolons": lambda text: text.replace(",", ";"),
    "another encoding": lambda text: text.encode("utf-16"),
    "a byte that is no text": lambda text: text[:60].encode() + b"\xff" + text[60:].encode(),
    "a line that lacks a number": lambda text: text.replace("\n4,", "\n4;"),
    "a step that is none": lambda text: text.replace("\n4,", "\nfour,"),
    "other text": lambda text: "see the other log\n",
}


@pytest.mark.fault(75)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_log_is_kept_aside_and_the_run_resumes(damage, tmp_path):
    whole, cut, folder = make(flat), make(flat), tmp_path
    torch.manual_seed(0)
    train(whole, steps=8, run=Run(folder, log_every=2, save_every=4))
    shutil.rmtree(folder / "checkpoints" / "step-00000008")  # as if killed before it
    text = (folder / "log.csv").read_text()
    damaged = damage(text)
    damaged = damaged.encode() if isinstance(damaged, str) else damaged
    (folder / "log.csv").write_bytes(damaged)
    (folder / "log-damaged-1.csv").write_text("of another time")
    with pytest.warns(UserWarning, match=r"log.csv was damaged \(.*\): .* log-damaged-2.csv"):
        train(cut, steps=8, run=Run(folder, resume=True, log_every=2, save_every=4))
    assert (folder / "log-damaged-1.csv").read_text() == "of another time"
    assert (folder / "log-damaged-2.csv").read_bytes() == damaged
    assert [row["step"] for row in numbers(folder / "log.csv")] == ["6", "8"]
    assert all(map(torch.equal, whole.parameters(), cut.parameters()))


@pytest.mark.parametrize("kept", [0, 3, 70, None])
def test_a_log_that_ends_in_the_middle_of_a_line_is_no_damaged_one(kept, tmp_path):
    """A process that is killed may leave that."""
    train(make(flat), steps=4, run=Run(tmp_path, log_every=2))
    text = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(text[:kept] + "1" * (kept is None))
    train(make(flat), steps=8, run=Run(tmp_path, resume=True, log_every=2))
    steps = [row["step"] for row in numbers(tmp_path / "log.csv")]
    assert steps[-2:] == ["6", "8"]
    assert steps[:-2] == ["2", "4"][: max(0, text[:kept].count("\n") - 1)]
    assert [p.name for p in tmp_path.glob("log*")] == ["log.csv"]


@pytest.mark.parametrize("build", [flat, hierarchical])
def test_the_log_has_divergences_of_objectives_that_do_not_call_the_model(build, tmp_path):
    def watch(model, data, progress):
        with watched(model) as q:
            bound = mixture_elbo(model, *data)
        kls.append([kl.mean().item() for kl in q[-1].kl])
        return bound

    @contextmanager
    def watched(model):
        seen, infer = [], model.infer
        model.infer = lambda *args, **options: seen.append(infer(*args, **options)) or seen[-1]
        yield seen
        del model.infer

    kls = []
    run = Run(tmp_path, save_every=100, log_every=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        train(make(build), objective=watch, steps=8, run=run)
    for row in numbers(tmp_path / "log.csv"):
        found = [float(row[name]) for name in row if name.startswith("kl_")]
        assert found == pytest.approx(kls[int(row["step"]) - 1])


@pytest.mark.slow
def test_collapsed_groups_are_reported_once(tmp_path):
    def ignoring(model, data, progress):  # the divergence costs so much that latents are useless
        x, observed = data
        return mmpoe.elbo(model(x, given=observed), x, observed, beta=1000.0)

    run = Run(tmp_path, log_every=2)
    torch.manual_seed(0)
    optimizer = Optimizer(lr=3e-2)
    with pytest.warns(CollapseWarning, match=r"of 2 latent groups, .* kl_1 = .* nats") as caught:
        train(make(hierarchical), objective=ignoring, steps=300, optimizer=optimizer, run=run)
    told = [name for w in caught for name in ("kl_1 =", "kl_2 =") if name in str(w.message)]
    assert len(told) == len(set(told))


SHOWN = {
    "samples/us": torch.linspace(-0.5, 1.5, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5),
    "mean µ": torch.tensor([0.0, 0.5, math.nan, 1.0]).reshape(1, 1, 2, 2),
}


def test_images_are_written_as_files(tmp_path):
    """With each checkpoint, from the averaged model, and without a trace in the run."""
    plain, model = make(flat), make(flat)
    torch.manual_seed(1)
    train(plain, steps=5)
    seen = []

    def show(averaged, step):
        seen.append((step, averaged.training, torch.is_grad_enabled(), averaged is model))
        return {name: several + 0 * torch.rand(()) for name, several in SHOWN.items()}

    torch.manual_seed(1)
    run = Run(tmp_path, save_every=3, images=show)
    train(model, steps=5, run=run)
    assert seen == [(step, False, False, False) for step in (3, 5)]
    assert all(map(torch.equal, plain.state_dict().values(), model.state_dict().values()))
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [
        *(f"mean %C2%B5-{step:08d}.png" for step in (3, 5)),
        *(f"samples%2Fus-{step:08d}.png" for step in (3, 5)),
    ]
    image_of = pytest.importorskip("PIL.Image", reason="needs Pillow to read PNG files").open
    with image_of(tmp_path / "images" / "samples%2Fus-00000003.png") as image:
        found = torch.tensor(np.array(image))  # (H, N W, C)
    side_by_side = torch.cat(list(SHOWN["samples/us"]), dim=2).movedim(0, 2)
    assert torch.equal(found, (255 * side_by_side.clamp(0, 1)).round().to(torch.uint8))
    with image_of(tmp_path / "images" / "mean %C2%B5-00000005.png") as image:
        assert np.array(image).tolist() == [[0, 128], [0, 255]]


def test_bad_images_are_named(tmp_path):
    bad = [torch.zeros(2, 2, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 1, 4, 4).int()]
    for i, images in enumerate([*bad, torch.zeros(0, 1, 4, 4)]):
        run = Run(tmp_path / str(i), images=lambda model, step, images=images: {"us": images})
        with pytest.raises(ValueError, match=r"'images' should return .* but 'us' has dtype"):
            train(make(flat), steps=1, run=run)


def test_tensorboard_reads_what_was_logged(tmp_path):
    """Numbers and images, also of a run that was stopped and resumes."""
    reason = "needs tensorboard, the extra of that name"
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=reason
    )
    image_of = pytest.importorskip("PIL.Image", reason="needs Pillow to read PNG files").open

    def stop(model, data, done):
        if done == 0.5 and not stopped:
            stopped.append(done)
            signal.raise_signal(signal.SIGTERM)
        return objective(model, data, done)

    stopped = []
    for again in (False, True):
        run = Run(
            tmp_path,
            resume=again,
            save_every=2,
            log_every=2,
            tensorboard=True,
            images=lambda model, step: SHOWN,
            evaluate=lambda model, step: float(step),
        )
        history = train(make(flat), objective=stop, steps=8, run=run)
        assert history.interrupted != again

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == sorted(SHOWN)
    assert {"bound", "kl_1", "lr", "norm", "skipped", "score", "seconds"} <= set(
        events.Tags()["scalars"]
    )
    rows = numbers(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    for name in ("bound", "kl_1", "lr", "score"):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(int(row["step"]), float(row[name])) for row in rows]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([v for _, v in expected])
    for name, several in SHOWN.items():
        shown = events.Images(name)
        assert [e.step for e in shown] == [2, 4, 6, 8]
        with image_of(io.BytesIO(shown[-1].encoded_image_string)) as image:
            assert np.array(image).max() == 255
            assert image.height >= several.shape[2]
    assert not (tmp_path / "images").exists()


def test_the_progress_bar_shows_losses(capsys):
    """Bound and, once it takes part, the adversary; nothing if that is not asked for."""
    torch.manual_seed(0)
    discriminator = nn.Linear(1, 1)
    adversary = Adversary(discriminator, lambda c, data, done: c(torch.ones(1, 1)), start=0.5)
    train(make(flat), steps=4, adversary=adversary, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"Training: 100%.* 4/4 .*bound=-?\d.*adversary=-?\d", shown)
    train(make(flat), steps=4)
    assert capsys.readouterr().err == ""


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"mmpoe\[tensorboard\]"):
        train(make(flat), run=Run(tmp_path, tensorboard=True))

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.folder, self.purge_step, self.rows = folder, purge_step, []
            writers.append(self)

        def add_scalar(self, name, value, step):
            self.rows.append((name, step))

        def flush(self):
            pass

        def close(self):
            self.rows.append("closed")

    writers = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(make(flat), steps=4, run=Run(tmp_path, log_every=2, save_every=9, tensorboard=True))
    (writer,) = writers
    assert writer.folder == tmp_path / "tensorboard"
    assert writer.purge_step == 1
    assert [row[1] for row in writer.rows if row[0] == "bound"] == [2, 4]
    assert writer.rows[-1] == "closed"

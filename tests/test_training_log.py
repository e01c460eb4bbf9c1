"""What a training tells, in numbers and warnings."""

import csv
import sys
import types
import warnings

import pytest
import torch
from example_models import flat, hierarchical, make
from example_training import train

import mmpoe
from mmpoe.training import CollapseWarning, Run


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


def test_collapsed_groups_are_told_once(tmp_path):
    def ignoring(model, data, progress):  # the divergence costs so much that latents are useless
        x, observed = data
        return mmpoe.elbo(model(x, given=observed), x, observed, beta=1000.0)

    run = Run(tmp_path, log_every=2)
    torch.manual_seed(0)
    with pytest.warns(CollapseWarning, match=r"of 2 latent groups, .* kl_1 = .* nats") as caught:
        train(make(hierarchical), objective=ignoring, steps=300, lr=3e-2, run=run)
    told = [name for w in caught for name in ("kl_1 =", "kl_2 =") if name in str(w.message)]
    assert len(told) == len(set(told))


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

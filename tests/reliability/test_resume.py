"""A run resumes from its checkpoint to the same bits, whatever stopped it."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import Training, same

import mmpoe
from mmpoe.training import Checkpoints, CollapseWarning, Run, fit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "helpers" / "trainings.py"
STEPS = 24


@pytest.fixture(autouse=True)
def _collapse():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        yield


@pytest.fixture(scope="module")
def whole():
    """A run that nothing stopped: its tensors, and its bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        training = Training()
        history = training.fit(STEPS)
    return training.tensors(), history.bounds


def stopped(training, after, number=signal.SIGTERM):
    """Makes a run send a signal to itself, in the step after so many."""
    objective, calls = training.objective, []

    def stop(model, batch, done):
        calls.append(done)
        if len(calls) == 2 * after + 2:  # two batches make a step
            os.kill(os.getpid(), number)
        return objective(model, batch, done)

    training.objective = stop
    return training


@pytest.mark.fault(36)
@pytest.mark.parametrize("after", [0, 3, 4, 9, 12])  # 5 steps are a pass over the data
def test_resumed_weights_are_the_same_to_the_last_bit(after, whole, tmp_path):
    """Optimisers, schedules, averages, generators, position, adversary, bank."""
    history = stopped(Training(), after).fit(STEPS, tmp_path)
    assert len(history.bounds) == after + 1
    assert history.interrupted
    other = Training(seed=9)  # nothing is left of this start
    resumed = other.fit(STEPS, tmp_path, resume=True)
    assert resumed.bounds == whole[1]
    assert not resumed.interrupted
    assert same(other.tensors(), whole[0])


@pytest.mark.fault(36)
def test_many_stops_change_no_bit(whole, tmp_path):
    """Stopped again and again."""
    for seed, after in enumerate((2, 0, 7, 4)):
        stopped(Training(seed), after).fit(STEPS, tmp_path, resume=True)
    last = Training(seed=8)
    assert last.fit(STEPS, tmp_path, resume=True).bounds == whole[1]
    assert same(last.tensors(), whole[0])


def test_keeping_and_evaluating_change_no_bit(whole, tmp_path):
    """Random numbers of an evaluation are drawn again in training."""
    seen = []

    def evaluate(model, step):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mmpoe.models.UncalibratedWarning)
            model.predict({"a": torch.zeros(2, 3)}, samples=2)
        return -abs(step - 10) + torch.rand(()).item() + random.random()

    training = Training()
    history = training.fit(STEPS, tmp_path, evaluate=evaluate)
    assert history.bounds == whole[1]
    assert same(training.tensors(), whole[0])
    assert seen == [5, 10, 15, 20, 24]
    # the last two and the best are kept
    assert Checkpoints(tmp_path / "checkpoints").steps() == [10, 20, 24]
    assert history.best == tmp_path / "checkpoints" / "step-00000010"
    assert history.checkpoint == tmp_path / "checkpoints" / "step-00000024"


def test_a_finished_run_is_read_back(whole, tmp_path):
    Training().fit(STEPS, tmp_path)
    again = Training(seed=1)
    history = again.fit(STEPS, tmp_path, resume=True)
    assert history.bounds == whole[1]
    assert same(again.tensors(), whole[0])
    with pytest.raises(ValueError, match=r"'resume' be True, but .* up to step 24"):
        Training().fit(STEPS, tmp_path)


def test_the_log_has_each_step_once(tmp_path):
    """Steps after the last checkpoint are trained and logged again."""

    def fail(model, batch, done):
        if done > 0.5:
            raise RuntimeError("the machine")
        return objective(model, batch, done)

    training = Training()
    objective, training.objective = training.objective, fail
    with pytest.raises(RuntimeError, match=r"the machine"):
        training.fit(STEPS, tmp_path, log_every=2)
    text = (tmp_path / "log.csv").read_text()
    assert text.splitlines()[-1].startswith("12,")
    (tmp_path / "log.csv").write_text(text + "1")  # killed while it wrote
    Training().fit(STEPS, tmp_path, resume=True, log_every=2)  # from step 10
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len({row.count(",") for row in rows}) == 1
    steps = sorted({*range(2, STEPS + 1, 2), 5, 15})
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, steps)]
    numbers = [row.split(",")[rows[0].split(",").index("adversary")] for row in rows[1:]]
    assert [number == "" for number in numbers] == [step < 0.2 * STEPS + 1 for step in steps]


@pytest.mark.fault(36)
def test_workers_repeat_their_augmentations(tmp_path):
    """With loader processes, whose generators start from what a pass starts from."""

    def make(seed):
        training = Training(seed)
        loader = training.loader
        training.loader = torch.utils.data.DataLoader(
            loader.dataset, batch_size=4, shuffle=True, collate_fn=loader.collate_fn, num_workers=1
        )
        return training

    whole = make(0)
    bounds = whole.fit(8).bounds
    stopped(make(0), 2).fit(8, tmp_path)
    other = make(5)
    assert other.fit(8, tmp_path, resume=True).bounds == bounds
    assert same(other.tensors(), whole.tensors())


@pytest.mark.fault(36)
@pytest.mark.parametrize("after", [1, 4, 5])  # 3 steps are a pass over the data
def test_workers_that_persist_resume_in_the_same_order(after, tmp_path):
    """New ones draw a seed, which those that are used again do not."""

    def learn(seed, stop=None, **options):
        seen = []

        def objective(model, rows, done):
            seen.append(rows.flatten().tolist())
            if len(seen) == stop:
                signal.raise_signal(signal.SIGTERM)
            return -model(rows).square().flatten()

        torch.manual_seed(seed)
        rows = torch.utils.data.TensorDataset(torch.arange(9.0)[:, None])
        loader = torch.utils.data.DataLoader(
            rows,
            3,
            shuffle=True,
            num_workers=1,
            persistent_workers=True,
            collate_fn=lambda few: torch.stack([row for (row,) in few]),
        )
        more = {"steps": 9, "progress": False, "accelerator": "cpu"}
        fit(torch.nn.Linear(1, 1), loader, objective, **more, **options)
        return seen

    whole = learn(0)
    first = learn(0, after, run=Run(tmp_path))
    assert first + learn(7, run=Run(tmp_path, resume=True)) == whole
    assert sorted(sum(whole[3:6], [])) == list(range(9))  # noqa: RUF017


def start(folder, steps, every):
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / "tests" / "helpers" / "trainings.py",
            folder,
            str(steps),
            str(every),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "start\n"
    return process


def wait_for_step(folder, step):
    deadline = time.monotonic() + 60
    checkpoints = Checkpoints(folder / "checkpoints")
    while max(checkpoints.steps(), default=-1) < step and time.monotonic() < deadline:
        time.sleep(0.01)
    return checkpoints


@pytest.mark.long
@pytest.mark.fault(34)
def test_a_killed_run_always_leaves_a_checkpoint_and_ends_at_the_same_bits(tmp_path):
    """Kill -9 at any moment, most of which are spent saving."""
    steps, moments, last = 150, random.Random(0), 0
    for _ in range(3):
        process = start(tmp_path, steps, 1)
        checkpoints = wait_for_step(tmp_path, last + 5)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        for step in checkpoints.steps():
            assert len(checkpoints.load(step).state["bounds"]) == step
        assert last + 5 <= max(checkpoints.steps()) < steps
        last = max(checkpoints.steps())
    printed, errors = start(tmp_path, steps, 1).communicate(timeout=300)
    assert printed == "done\n", errors
    assert not list((tmp_path / "checkpoints").glob(".*"))  # nothing half written is left

    whole = Training()
    whole.fit(steps)
    assert same(load_file(tmp_path / "last.safetensors"), whole.tensors())


@pytest.mark.fault(35)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_program_after_its_step_with_a_checkpoint(number, tmp_path):
    """SIGTERM exits with 143, Ctrl-C with 130."""
    process = start(tmp_path, 100_000, 5)
    wait_for_step(tmp_path, 10)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number, errors
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    last = checkpoints.steps()[-1]
    assert printed == f"stopped after {last} steps\n"
    assert len(checkpoints.load(last).state["bounds"]) == last


def test_a_second_signal_acts_at_once():
    training = Training()

    def impatient(model, batch, done):
        if done > 0.5:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch, done)

    objective, training.objective = training.objective, impatient
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        training.fit(STEPS)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_handlers_are_as_before(number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    history = stopped(Training(), 2, number).fit(STEPS)
    assert (history.signal, history.exit_code) == (number, 128 + number)
    assert len(history.bounds) == 3
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before

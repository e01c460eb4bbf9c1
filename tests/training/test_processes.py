"""Several processes on a CPU, started by torchrun, learn what one learns from the joined batch."""

import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from distributed_training import PATTERNS, Given, learn, synthesize, volumes
from example_models import OBSERVED, batch
from safetensors.torch import load_file

import mmpoe
from mmpoe.training import CheckpointError, Checkpoints, Run, fit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def torchrun(processes, *arguments):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"),
            *(
                str(processes),
                ROOT / "tests" / "helpers" / "distributed_training.py",
                *map(str, arguments),
            ),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gradients_are_those_of_the_joined_batch(tmp_path):
    """Also where a modality is missing in one process, or in its last batch, or in all of them."""
    torchrun(2, "gradients", tmp_path)
    ranks = [load_file(tmp_path / f"gradients-{rank}.safetensors") for rank in (0, 1)]
    for pattern, batches in PATTERNS.items():
        start = learn([[0]], 1)
        joined = learn([sum(batches, [])], 1)  # noqa: RUF017
        for name, expected in joined.items():
            own, other = (rank[f"{pattern}.{name}"] for rank in ranks)
            assert torch.equal(own, other)
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
        moved = sum(not torch.equal(joined[name], start[name]) for name in joined)
        assert moved > len(joined) / 2


def test_shared_out_weights_take_the_steps_of_the_joined_batch(tmp_path):
    """With the code of the documentation, whatever modalities a process lacks."""
    torchrun(2, "shards", tmp_path)
    ranks = [load_file(tmp_path / f"shards-{rank}.safetensors") for rank in (0, 1)]
    batches = list(chain.from_iterable(PATTERNS.values()))
    joined = [one + other for one, other in zip(batches[::2], batches[1::2], strict=True)]
    vae = Given(joined)
    optimizer = torch.optim.SGD(vae.parameters(), 0.05)
    for rows in joined:
        x = {m: values[rows] for m, values in batch().items()}
        (-mmpoe.elbo(vae(x, OBSERVED[rows]), x, OBSERVED[rows]).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, expected in vae.model.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank[name], expected.detach(), rtol=1e-5, atol=1e-6)


def test_processes_stop_together_and_resume_to_the_same_bits(tmp_path):
    """One of three processes hears SIGTERM; only the first one writes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    printed = torchrun(3, "train", tmp_path, whole, 0)
    expected = load_file(tmp_path / "train-0.safetensors")
    assert "rank 0 saves" in printed
    assert "rank 1 saves" not in printed
    noise = re.findall(r"rank \d: 12 None (.*)", printed)
    assert len(set(noise)) == 3  # each process draws its own

    printed = torchrun(3, "train", tmp_path, cut, 5)
    assert sorted(re.findall(r"rank \d: \d+ \d+", printed)) == [
        f"rank {k}: 5 15" for k in range(3)
    ]
    assert Checkpoints(cut / "checkpoints").steps() == [4, 5]
    torchrun(3, "train", tmp_path, cut, 0)
    for rank in range(3):
        found = load_file(tmp_path / f"train-{rank}.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    model = torch.nn.Linear(1, 1)
    run = Run(cut, resume=True)
    with pytest.raises(CheckpointError, match=r"should be of 1 processes, .* but is of 3"):
        fit(model, [torch.ones(1, 1)], lambda m, x, d: m(x), steps=1, run=run, progress=False)


def test_two_processes_synthesise_each_volume_once(tmp_path):
    """And as one process does."""
    printed = torchrun(2, "synthesize", tmp_path)
    assert f"done: {[f'patient {i}' for i in range(5)]}" in printed
    shares = [load_file(tmp_path / f"synthesize-{rank}.safetensors") for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 2]
    found = {name: volume for share in shares for name, volume in share.items()}
    expected = synthesize(volumes())
    assert found.keys() == expected.keys()
    for name, volume in expected.items():
        assert torch.equal(found[name], volume)

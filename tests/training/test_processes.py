"""Several processes on a CPU, started by torchrun, learn what one learns from the joined batch."""

import os
import re
import shutil
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from distributed_training import PATTERNS, Given, learn, synthesize, train, volumes
from example_models import OBSERVED, batch
from safetensors.torch import load_file

import mmpoe
from mmpoe.training import Checkpoints, ProcessesWarning, load_checkpoint, processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start(options, arguments):
    program = ROOT / "tests" / "helpers" / "distributed_training.py"
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


def torchrun(processes, *arguments):
    return end(start(["--standalone", "--nproc_per_node", str(processes)], arguments))


def two_nodes(*arguments):
    """A process on each of two machines, which are addresses of this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    nodes = [
        start(
            [
                *("--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"),
                *("--rdzv_endpoint", f"127.0.0.2:{port}", "--local_addr", f"127.0.0.{2 + node}"),
            ],
            arguments,
        )
        for node in (0, 1)
    ]
    return "".join(end(node) for node in nodes)


@pytest.mark.long
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


@pytest.mark.long
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
    written, description = load_checkpoint(tmp_path / "vae")
    assert description["modalities"] == vae.modalities
    assert written.keys() == vae.state_dict().keys()
    assert all(torch.equal(written[f"model.{name}"], value) for name, value in ranks[0].items())
    assert not (tmp_path / "shared").exists()


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.fault(80, simulated=False)  # the patch is of a variable of the environment
def test_two_machines_are_as_two_processes_and_may_become_one(tmp_path, monkeypatch):
    """They stop together and resume to the bits of two processes; or one goes on alone."""
    whole, cut, fewer = tmp_path / "whole", tmp_path / "cut", tmp_path / "fewer"
    torchrun(2, "train", tmp_path, whole, 0)
    expected = load_file(tmp_path / "train-1.safetensors")

    printed = two_nodes("train", tmp_path, cut, 5)
    assert sorted(re.findall(r"rank \d: \d+ \d+", printed)) == ["rank 0: 5 15", "rank 1: 5 15"]
    shutil.copytree(cut, fewer)
    two_nodes("train", tmp_path, cut, 0)
    for rank in (0, 1):
        found = load_file(tmp_path / f"train-{rank}.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    monkeypatch.setenv("RANK", "0")
    with pytest.warns(ProcessesWarning, match=r"was on 2 processes, and resumes on 1: .* same"):
        train(fewer, 0)
    assert Checkpoints(fewer / "checkpoints").steps() == [10, 12]


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


@pytest.mark.parametrize(
    "units", [{}, {"amx_bf16": False, "bf16_tiles": 3}, {"avx512_bf16": True}]
)
def test_half_precision_asks_the_processor_for_its_units(units, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    fabric = processes.make_fabric("bf16-mixed", "cpu")
    with fabric.autocast():
        x = torch.ones(2, 2) @ torch.ones(2, 2)
    has = units.get("avx512_bf16", False)
    assert x.dtype == (torch.bfloat16 if has else torch.float32)
    assert ("This CPU has no units for bfloat16" in caplog.text) is not has

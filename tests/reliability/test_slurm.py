"""The script for Slurm: a job that is told to stop saves, and goes back into the queue."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from trainings import Training, same

from mmpoe.training import Checkpoints

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "_static" / "train.sbatch"

STANDINS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo node-1; else echo "$@" >> "$FOLDER/queue"; fi',
    "torchrun": 'echo "$@" >> "$FOLDER/started"; exec "$PYTHON" "$PROGRAM" "$FOLDER/run" 40 2',
}
"""Shell scripts in place of the commands."""


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def start(restarts):
        return subprocess.Popen(
            ["bash", SCRIPT],
            env={
                **os.environ,
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "FOLDER": str(tmp_path),
                "PYTHON": sys.executable,
                "PROGRAM": str(ROOT / "tests" / "helpers" / "trainings.py"),
                "SLURM_NNODES": "2",
                "SLURM_JOB_ID": "17",
                "SLURM_JOB_NODELIST": "node-[1-2]",
                "SLURM_RESTART_COUNT": str(restarts),
            },
        )

    return start


@pytest.mark.long
@pytest.mark.fault(35, simulated=True)
def test_a_job_that_is_stopped_goes_back_into_the_queue_and_ends_at_the_same_bits(job, tmp_path):
    """By SIGTERM to the script alone; the second turn comes to the end, and asks for no third."""
    process = job(0)
    checkpoints, deadline = Checkpoints(tmp_path / "run" / "checkpoints"), time.monotonic() + 120
    while max(checkpoints.steps(), default=0) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
    last = max(checkpoints.steps())
    assert 6 <= last < 40
    assert len(checkpoints.load(last).state["bounds"]) == last

    assert job(1).wait(timeout=300) == 0
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
    whole = Training()
    whole.fit(40)
    assert same(load_file(tmp_path / "run" / "last.safetensors"), whole.tensors())
    first, second = (tmp_path / "started").read_text().splitlines()
    assert "--nnodes 2 --nproc_per_node 4" in first
    assert "--rdzv_endpoint node-1:29500 --rdzv_id 17-0" in first
    assert "--rdzv_id 17-1" in second


@pytest.mark.long
def test_a_job_that_fails_keeps_its_exit_code(job, tmp_path):
    """And does not go back into the queue."""
    (tmp_path / "run").write_text("a file in the place of the folder")
    assert job(0).wait(timeout=300) == 1
    assert not (tmp_path / "queue").exists()

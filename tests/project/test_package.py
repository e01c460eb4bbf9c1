"""Importing the library does nothing but import, and names what it promises."""

import subprocess
import sys

import pytest

import mmpoe
from benchmarks import bench_import

SCRIPT = """
import sys, threading
import torch, pyro
before = set(sys.modules)
threads, state = threading.active_count(), torch.get_rng_state()
import mmpoe
assert threading.active_count() == threads
assert torch.equal(torch.get_rng_state(), state)
print(",".join(sorted({m.split(".")[0] for m in set(sys.modules) - before})))
"""


def test_import_loads_nothing_else():
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "mmpoe"


def test_import_benchmark_fails_beyond_its_limit(monkeypatch):
    cost = {"import torch, pyro": 1.0, "import mmpoe": 1.04}
    monkeypatch.setattr(bench_import, "seconds", cost.__getitem__)
    monkeypatch.setattr(sys, "argv", ["bench_import"])
    bench_import.main()
    cost["import mmpoe"] = 1.06
    with pytest.raises(SystemExit, match=r"at most 1\.05, but is 1\.060"):
        bench_import.main()
    monkeypatch.setattr(sys, "argv", ["bench_import", "--smoke"])  # measures too little to tell
    bench_import.main()


def test_public_names_exist():
    for name in mmpoe.__dict__:
        module = getattr(mmpoe, name)
        for public in getattr(module, "__all__", []):
            assert hasattr(module, public), f"{name}.{public}"
    assert mmpoe.elbo is mmpoe.objectives.elbo
    assert mmpoe.MVAE is mmpoe.models.MVAE
    assert mmpoe.objectives.log_marginal is mmpoe.evidence.log_marginal

"""Importing the library does nothing but import, and names what it promises."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

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
print(*sorted(set(sys.modules) - before))
assert mmpoe.MVAE is mmpoe.models.MVAE
loaded = set(sys.modules) - before
print(*sorted({m.split(".")[0] for m in loaded}))
print(*(f"mmpoe.{name}" in loaded for name in ("models", "training", "imputer")))
"""


def test_import_loads_nothing_else_and_modules_on_first_use():
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert out.stdout.split("\n")[:3] == ["mmpoe", "mmpoe", "True False False"]


@pytest.mark.parametrize(
    "script",
    [
        "from mmpoe import *\nassert MMHVAE is models.MMHVAE and elbo is objectives.elbo",
        "from mmpoe import *\nassert kernels.gaussian_poe",
        "import mmpoe.pyro\nassert callable(mmpoe.pyro.guide)",
        "import mmpoe.training as training\nassert training.fit",
        "from mmpoe.models import MMHVAE\nimport mmpoe\nassert mmpoe.MMHVAE is MMHVAE",
        "import mmpoe\nassert set(mmpoe.__all__) <= set(dir(mmpoe))\n"
        "assert 'MVAE' not in vars(mmpoe)\n"
        "assert all(getattr(mmpoe, name) for name in mmpoe.__all__)",
    ],
    ids=["star", "star of modules", "pyro", "as", "from a module", "dir"],
)
def test_names_are_found_before_their_modules_are_used(script, monkeypatch):
    monkeypatch.delitem(sys.modules, "mmpoe")  # the package itself starts afresh
    exec(script, {})


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mmpoe' has no attribute 'MVEA'"):
        mmpoe.MVEA  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'MVEA'"):
        from mmpoe import MVEA  # noqa: F401


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    tree = ast.parse(Path(mmpoe.__file__).read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {alias.asname: node.module for alias in node.names}
    assert set(found) == set(mmpoe.__all__)
    named = {name: module for name, module in found.items() if module is not None}
    assert named == mmpoe._ORIGINS


@pytest.mark.parametrize("name", ["MVAE", "MultimodalImputer", "calibrate"])
def test_names_pickle_by_their_place(name):
    value = getattr(mmpoe, name)
    assert pickle.loads(pickle.dumps(value)) is value


def test_import_benchmark_fails_beyond_its_limit(monkeypatch, capsys):
    cost = {
        "import torch, pyro": 1.0,
        "import torch, pyro, mmpoe": 1.019,
        "import torch, pyro, mmpoe; mmpoe.MMHVAE": 1.05,
    }
    monkeypatch.setattr(bench_import, "seconds", cost.__getitem__)
    monkeypatch.setattr(sys, "argv", ["bench_import"])
    bench_import.main()
    assert "mmpoe.MMHVAE: 1.050 times that" in capsys.readouterr().out
    cost["import torch, pyro, mmpoe"] = 1.021
    with pytest.raises(SystemExit, match=r"at most 1\.02, but is 1\.021"):
        bench_import.main()
    monkeypatch.setattr(sys, "argv", ["bench_import", "--smoke"])  # measures too little to tell
    bench_import.main()


def test_public_names_exist():
    for name in dir(mmpoe):
        module = getattr(mmpoe, name)
        for public in getattr(module, "__all__", []):
            assert hasattr(module, public), f"{name}.{public}"
    assert mmpoe.elbo is mmpoe.objectives.elbo
    assert mmpoe.MVAE is mmpoe.models.MVAE
    assert mmpoe.objectives.log_marginal is mmpoe.evidence.log_marginal

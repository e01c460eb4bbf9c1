"""No pickle is loaded anywhere, since whoever wrote it runs code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADERS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


def faults(code):
    """The lines that may load a pickle."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names]
            if any(name.split(".")[0] in LOADERS for name in names):
                yield node.lineno
        if isinstance(node, ast.Call):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            loads = ast.unparse(node.func) == "torch.load"
            if loads and options.get("weights_only") != "True":
                yield node.lineno
            if options.get("allow_pickle", "False") != "False":
                yield node.lineno


@pytest.mark.fault(32)
@pytest.mark.fault(55)
@pytest.mark.parametrize("package", ["mmpoe", "examples"])
def test_nothing_loads_a_pickle(package):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    found = {str(file): list(faults(file.read_text())) for file in files}
    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import numpy, cloudpickle.x",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
    ],
)
def test_what_loads_a_pickle_is_found(code):
    assert list(faults(f"x = 1\n{code}")) == [2]
    assert not list(faults("import json\nnp.load(f)\ntorch.load(f, weights_only=True)"))

"""Examples and benchmarks use public names alone, and modules say what their packages export."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import mmpoe

ROOT = Path(__file__).parents[2]
FILES = sorted(p for folder in ("examples", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
PUBLIC = {found.name for found in pkgutil.iter_modules(mmpoe.__path__) if found.name[0] != "_"}

COMMANDS = {"mmpoe.kernels.selftest"}
"""Modules that are run by ``python -m``."""


def exported(module):
    """The names that a module of mmpoe exports."""
    if module == "mmpoe":
        return PUBLIC | {name for name in dir(mmpoe) if name[0] != "_"} | {"__version__"}
    return set(importlib.import_module(module).__all__)


def is_module(name):
    package, _, last = name.rpartition(".")
    return name == "mmpoe" or (package == "mmpoe" and last in PUBLIC)


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def is_of_mmpoe(node):
    return not node.level and (node.module or "").split(".")[0] == "mmpoe"


def why_not(dotted):
    """The first part of a dotted name that is not public, None if all of it is."""
    parts = dotted.split(".")
    here = "mmpoe"
    for part in parts[1:]:
        name = f"{here}.{part}"
        if is_private(part) or (is_module(here) and part not in exported(here)):
            return name
        here = name
    return None


def bindings(tree):
    """The dotted names of mmpoe that the names of a file stand for."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mmpoe":
                    bound[alias.asname or "mmpoe"] = alias.name if alias.asname else "mmpoe"
        elif isinstance(node, ast.ImportFrom) and is_of_mmpoe(node):
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def dotted(node):
    """A chain of attributes as a list of names, None for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else None


def instances(tree, bound):
    """The names that are made by a call of a name of mmpoe, or annotated with one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            chain = dotted(node.value.func)
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.arg) and node.annotation is not None:
            chain, names = dotted(node.annotation), [node.arg]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            chain, names = dotted(node.annotation), [node.target.id]
        else:
            continue
        if chain and chain[0] in bound:
            found.update(names)
    return found


def violations(source):
    """The names of mmpoe that a file uses although they are not public."""
    tree = ast.parse(source)
    bound = bindings(tree)
    made = instances(tree, bound)
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            imported = [a.name for a in node.names if a.name.split(".")[0] == "mmpoe"]
            found.update(name for name in imported if not is_module(name))
        elif isinstance(node, ast.ImportFrom) and is_of_mmpoe(node):
            if is_module(node.module):
                names = [f"{node.module}.{a.name}" for a in node.names]
            else:
                found.add(node.module)
        elif isinstance(node, ast.Attribute) and (chain := dotted(node)):
            if chain[0] in bound:
                names = [".".join([bound[chain[0]], *chain[1:]])]
            elif chain[0] in made and is_private(chain[1]):
                found.add(".".join(chain[:2]))
        found.update(reason for name in names if (reason := why_not(name)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_and_benchmarks_use_public_names(path):
    assert violations(path.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from mmpoe.missing import check_observed", "mmpoe.missing.check_observed"),
        ("from mmpoe.missing.subsets import subsets", "mmpoe.missing.subsets"),
        ("from mmpoe.nn.cells import ReflectingBlock", "mmpoe.nn.cells"),
        ("from mmpoe.missing._draws import draw_at", "mmpoe.missing._draws"),
        ("from mmpoe import _anything", "mmpoe._anything"),
        ("from mmpoe import nothing", "mmpoe.nothing"),
        ("import mmpoe.missing._draws", "mmpoe.missing._draws"),
        ("import mmpoe.nn.cells as cells\ncells.MLP", "mmpoe.nn.cells"),
        ("import mmpoe\nmmpoe.nn.cells.MLP", "mmpoe.nn.cells"),
        ("import mmpoe as m\nm.missing.check_names([], [], '')", "mmpoe.missing.check_names"),
        ("from mmpoe import nn\nnn.convolution(2)", "mmpoe.nn.convolution"),
        ("from mmpoe.models import MVAE\nMVAE._make()", "mmpoe.models.MVAE._make"),
        ("import mmpoe\nvae = mmpoe.MVAE({}, {})\nvae._groups", "vae._groups"),
        (
            "from mmpoe.models import MVAE\ndef f(vae: MVAE):\n    return vae._groups",
            "vae._groups",
        ),
        ("def f():\n    from mmpoe.nn import convolution", "mmpoe.nn.convolution"),
    ],
)
def test_private_names_are_found(source, found):
    assert violations(source) == {found}


@pytest.mark.parametrize(
    "source",
    [
        "import mmpoe\nvae = mmpoe.MVAE({}, {})\nvae.groups\nmmpoe.missing.collate([])",
        "import mmpoe.training\nfrom mmpoe import kernels\nkernels.status()",
        "from mmpoe.nn import MLP\nclass A(MLP):\n    def f(self):\n        return self._own",
        "import mmpoe\nmmpoe.__version__\nmmpoe.nn.MLP.__init__",
        "from torch import _C\n_C._cuda\nfrom .common import _own",
    ],
)
def test_public_names_are_left_alone(source):
    assert violations(source) == set()


def modules():
    """The modules inside the packages of mmpoe that are not private."""
    for name in sorted(PUBLIC):
        package = importlib.import_module(f"mmpoe.{name}")
        for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
            if found.name[0] != "_":
                yield f"mmpoe.{name}.{found.name}"


@pytest.mark.parametrize("module", [*modules()])
def test_modules_list_what_their_packages_export(module):
    package = importlib.import_module(module.rpartition(".")[0])
    names = getattr(importlib.import_module(module), "__all__", [])
    listed = bool(names) and all(
        name in package.__all__
        and getattr(package, name) is getattr(importlib.import_module(module), name)
        for name in names
    )
    assert listed or module in COMMANDS


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_exported_names_are_there(name):
    module = importlib.import_module(f"mmpoe.{name}")
    assert all(hasattr(module, exported_name) for exported_name in module.__all__)

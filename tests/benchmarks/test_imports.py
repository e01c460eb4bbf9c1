"""The modules of the benchmarks import each other without circles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, root, modules):
    """The modules that a file imports, inside functions too."""
    here = path.parent.relative_to(root).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in modules else origin


def check(root):
    files = {module_name(path, root): path for path in (root / "benchmarks").rglob("*.py")}
    graph = {
        name: {found for found in imports(path, root, files) if found in files} - {name}
        for name, path in files.items()
    }
    TopologicalSorter(graph).prepare()
    return graph


def test_benchmarks_have_no_circle_of_imports():
    graph = check(ROOT)
    assert "benchmarks.synthesis.training" in graph["benchmarks.synthesis.run"]
    assert "benchmarks._results" in graph["benchmarks.synthesis.table"]


def test_a_circle_is_found_inside_functions_too(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text("from . import b\n")
    (folder / "b.py").write_text("def f():\n    from .a import g\n")
    with pytest.raises(CycleError):
        check(tmp_path)

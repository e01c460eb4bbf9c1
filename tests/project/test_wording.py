"""Docstrings begin with their subject."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for f in ("mmpoe", "examples", "benchmarks") for p in (ROOT / f).rglob("*.py"))
BAD = re.compile(r"(What|Where|Which|Whether what|Those)\b")


def bad_strings(source):
    """The docstrings, of attributes too, that begin with a word that is no subject."""
    found = []
    for node in ast.walk(ast.parse(source)):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if alone and isinstance(node.value.value, str) and BAD.match(node.value.value.strip()):
            found.append(node.value.value.strip().splitlines()[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_their_subject(path):
    assert bad_strings(path.read_text()) == []


def test_bad_docstrings_are_found():
    source = 'a = 1\n"""What it is."""\ndef f():\n    """Which one."""\n'
    assert bad_strings(source) == ["What it is.", "Which one."]
    assert bad_strings('def f():\n    """Whatever it is."""\n') == []

"""Results are plain JSON that says how it was made, and the documentation shows what there is."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import torch

from benchmarks import _results


def test_results_hold_json_alone(tmp_path):
    content = {"a": np.float32(1.5), "b": [np.nan, np.inf, 1], "c": torch.ones(2), 3: (True, None)}
    _results.write("x", content, "# X\n\n", tmp_path)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": 1.5, "b": [None, None, 1], "c": [1.0, 1.0], "3": [True, None]}
    assert '"b": [null, null, 1]' in text  # numbers on one line
    assert (tmp_path / "x.md").read_text() == "# X\n"
    facts = _results.facts("command", "quick", [0, 1])
    assert facts["command"] == "command"
    assert facts["seeds"] == [0, 1]
    assert set(facts["machine"]) >= {"cpu", "cores", "torch"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])


def test_documentation_includes_what_there_is_and_names_what_is_not(tmp_path):
    path = Path(__file__).parents[2] / "docs" / "_ext" / "benchmark_results.py"
    spec = importlib.util.spec_from_file_location("benchmark_results", path)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    assert extension.show("x", "make x", tmp_path) == "*Not measured yet:* `make x`."
    (tmp_path / "x.md").touch()
    shown = extension.show("x", "make x", tmp_path)
    assert shown.startswith("```{include} ../benchmarks/results/x.md\n")
    shown = {
        "benchmarks": ["synthesis", "downstream", "ablations", "uncertainty", "synthesis_costs"],
        "fusion": ["fusion"],
        "kernels": ["gpu"],
        "medical_data": ["data_path"],
        "reliability": ["reliability", "kills", "mutants"],
        "tables_and_omics": ["omics", "tables"],
    }
    assert tuple(shown) == extension.PAGES
    for page, names in shown.items():
        text = (path.parents[1] / f"{page}.md").read_text()
        assert [name for name, _ in extension.LINE.findall(text)] == names
        source = [text]
        extension.fill(None, "another", source)
        assert source == [text]
        extension.fill(None, page, source)
        assert "{results}" not in source[0]


def test_work_is_done_once(tmp_path, capsys):
    path, calls = tmp_path / "a" / "b.json", []

    def work():
        calls.append(1)
        return {"x": float("nan"), "y": 1.0}

    assert _results.once(path, work) == {"x": None, "y": 1.0}
    assert capsys.readouterr().out == "b\n"
    assert _results.once(path, work) == {"x": None, "y": 1.0}
    assert len(calls) == 1

"""The comparison on tables: what it measures, and that tables say what it found."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.tables import __main__ as command
from benchmarks.tables.data import TABLES, load
from benchmarks.tables.markdown import compare, gather, markdown
from benchmarks.tables.measure import measure
from benchmarks.tables.methods import OURS, Encoding
from benchmarks.tables.patterns import PATTERNS, draw

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "benchmarks" / "results" / "tables.json"
Z = np.random.default_rng(0).normal(size=(1200, 8))


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_hide_as_many_cells_as_asked(name):
    observed = draw(name, Z, 0.3, 0)
    assert observed.any(axis=1).all()
    share = 1 - observed.mean(axis=0)
    affected = share > 0
    rate = share[affected].mean() if name != "Two-phase" else share.mean()
    assert rate == pytest.approx(0.3, abs=0.06 if "Block" in name else 0.03)
    assert np.array_equal(observed, draw(name, Z, 0.3, 0))
    again = np.array_equal(observed, draw(name, Z, 0.3, 1))
    assert again == (name == "Polarisation-MNAR")  # which has nothing to draw


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_depend_on_what_they_say(name):
    """The means of what is missing differ from those of what is not only where values matter."""
    apart = []
    for seed in range(5):
        observed = draw(name, Z, 0.3, seed)
        for column in np.flatnonzero(~observed.all(axis=0)):
            z, seen = Z[:, column], observed[:, column]
            feature = z**2 if "olarisation" in name else z
            apart.append(abs(feature[~seen].mean() - feature[seen].mean()))
    itself = name in ("Self-masking-MNAR", "Censoring-MNAR", "Panel-MNAR") or "olaris" in name
    assert (np.mean(apart) > 0.3) == itself or name in ("Latent-factor-MNAR", "Cluster-MNAR")
    if name == "MCAR":
        assert np.mean(apart) < 0.1


def test_panels_are_missing_from_some_column_on():
    observed = draw("Panel-MNAR", Z, 0.3, 0)
    observed = observed[observed[:, 0]]  # the others keep some cell
    assert (np.diff(observed.astype(int), axis=1) <= 0).all()


def test_tables_have_categories_and_numbers():
    table = load("iris")
    assert table.categorical == ["target"]
    assert table.frame.shape == (150, 5)
    assert abs(table.standardised().mean(axis=0)).max() < 1e-9
    assert load("digits").frame.shape == (500, 17)
    assert len(TABLES) - 1 >= 8


def test_registry_tables_are_complete():
    try:
        tables = [load(name) for name in ("penguins", "Boston", "crabs", "tips", "Salaries")]
    except OSError as error:
        pytest.skip(f"the data are not in the cache, and were not sent: {error}")
    assert [len(t.frame) for t in tables] == [333, 500, 200, 244, 397]
    assert not any(t.frame.isna().any(axis=None) for t in tables)
    assert sum(bool(t.categorical) for t in tables) == 4


def test_tables_are_encoded_as_numbers():
    frame = pd.DataFrame({"x": [1.0, np.nan, 3.0], "c": ["u", "v", None]})
    table = Encoding(frame, {"c": ["u", "v"]}).table
    assert table[:, 0] == pytest.approx([-1.0, np.nan, 1.0], nan_ok=True)
    assert table[:, 1:].tolist()[:2] == [[1.0, 0.0], [0.0, 1.0]]
    assert np.isnan(table[2, 1:]).all()


@pytest.mark.parametrize("method", ["KNN", "ridge", "IterativeImputer", "SoftImpute"])
def test_opponents_beat_the_mean(method):
    found = measure("generated", "MCAR", 0, method, networks=0)
    mean = measure("generated", "MCAR", 0, "mean", networks=0)
    for key in ("NRMSE", "CRPS"):
        assert found[key] < mean[key]
    assert found["accuracy"] > mean["accuracy"]
    assert method == "IterativeImputer" or found["log loss"] < mean["log loss"]
    assert 0.6 < found["coverage"] < 1


def test_a_table_of_numbers_alone_has_no_scores_of_categories():
    found = measure("linnerud", "MCAR", 0, "IterativeImputer", networks=0)
    assert found["accuracy"] is None
    assert found["NRMSE"] > 0


@pytest.mark.slow
def test_a_comparison_resumes_and_its_tables_hold_what_it_found(tmp_path, capsys):
    arguments = ["--profile", "smoke", "--out", str(tmp_path), "--workers", "1"]
    arguments += ["--methods", "mean", "ridge", OURS]
    assert command.main(arguments) == 0
    first = json.loads((tmp_path / "tables.json").read_text())
    assert "generated MCAR 0 ridge\n" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "generated MCAR 0 ridge\n" not in capsys.readouterr().out
    scores = gather(first, "MCAR")
    assert scores[OURS]["NRMSE"][0] < scores["mean"]["NRMSE"][0]
    assert (tmp_path / "tables.md").read_text() == markdown(first).rstrip("\n") + "\n"


def test_a_method_that_lacks_tables_is_not_compared():
    def run(value):
        return {
            "seconds": 1.0, "NRMSE": value, "CRPS": value, "coverage": 0.9, "accuracy": None,
            "log loss": None,
        }  # fmt: skip

    runs = {
        "a": {"t": [run(1.0)], "u": [run(1.2)]},
        "b": {"t": [run(0.1)]},
        OURS: {"t": [run(0.5)], "u": [run(0.71)]},
    }
    found = compare({"patterns": {"MCAR": runs}})
    assert {(v.column.key, v.opponent, v.winner) for v in found} == {
        ("NRMSE", "a", OURS),
        ("CRPS", "a", OURS),
    }


@pytest.fixture(scope="module")
def found():
    if not FOUND.exists():
        pytest.skip("not measured yet")
    return json.loads(FOUND.read_text())


def test_tables_are_those_of_the_results(found):
    assert FOUND.with_suffix(".md").read_text() == markdown(found).rstrip("\n") + "\n"
    assert found["profile"] == "full"
    assert set(found["patterns"]) <= set(PATTERNS)
    assert len(gather(found, "MCAR")[OURS]["NRMSE"]) >= 8

"""The benchmark with another library fails when it should, and the README shows what it wrote."""

import math
import re
import sys
from pathlib import Path

import pytest

from benchmarks import bench_multivae
from benchmarks._multivae import Parity
from benchmarks.bench_multivae import Time

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measured(monkeypatch):
    """What the benchmark will have measured, in place of measuring it: all promises kept."""
    ratios = {
        "conditional": 50.0,
        "gradients": 1e-7,
        "loss": 1.0,
        **dict.fromkeys((2, 4, 6, 8, 10), 200.0),
    }

    def products(modalities, *args, **options):
        theirs = ratios[modalities]
        return {"ours": [Time(1.0, 0.1)] * 3, "theirs": [Time(theirs, theirs / 2)] * 3}

    def hierarchy(modalities, *args, **options):
        return {name: [Time(modalities, 0.0)] for name in ("pairs", "drawn", "theirs")}

    def likelihoods(*args, **options):
        times = {"conditional": ratios["conditional"], "joint": 1.0}
        named = {f"{name}, ours": [Time(1.0, 0.0)] for name in times}
        named |= {f"{name}, theirs": [Time(t, 0.0)] for name, t in times.items()}
        elapsed = {name: [Time(1.0, 0.0, t[0].total / 2)] for name, t in named.items()}
        named["decoder"] = [Time(0.75, 0.0)]
        return {"times": named, "on all cores": elapsed, "values": {"ours": 1.0, "theirs": 1.0}}

    def parity(*args):
        return Parity((1.0, ratios["loss"]), (1.0, 1.0), ratios["gradients"])

    monkeypatch.setattr(bench_multivae, "compare_products", products)
    monkeypatch.setattr(bench_multivae, "compare_hierarchy", hierarchy)
    monkeypatch.setattr(bench_multivae, "compare_likelihoods", likelihoods)
    monkeypatch.setattr(bench_multivae.peer, "mopoe_parity", parity)
    monkeypatch.setattr(bench_multivae.peer, "importable", lambda: True)
    monkeypatch.setattr(sys, "argv", ["bench_multivae"])
    return ratios


def test_kept_promises_are_no_failure(measured, capsys):
    bench_multivae.main()
    shown = capsys.readouterr().out
    assert "| 8 | 255 | 1000 ms | 200.0 s | 200 |" in shown
    assert "as M to the power of 1.00" in shown
    assert "50 % of MultiVae's time" in shown
    assert "by the clock | 500 ms | 25.0 s | 50 |" in shown
    assert "needs 750 ms for these samples, 75% of" in shown
    assert "could be 67 times as fast" in shown


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (2, 0.98, r"2 modalities: 0\.98 times as fast"),
        (10, 20.0, r"10 modalities: 20\.00 times as fast"),
        ("conditional", 15.0, r"conditional likelihood: 15\.0 times as fast"),
        ("gradients", 1e-4, r"gradients of 3 modalities differ by 1\.0e-04"),
        ("loss", 1.001, r"losses of 3 modalities are 1\.0 and 1\.001"),
        ("gradients", math.nan, r"gradients of 3 modalities differ by nan"),
    ],
)
def test_broken_promises_are_failures(measured, name, value, message):
    measured[name] = value
    with pytest.raises(SystemExit, match=rf"Not as promised: .*{message}"):
        bench_multivae.main()


def test_the_other_library_is_asked_for(measured, monkeypatch):
    monkeypatch.setattr(bench_multivae.peer, "importable", lambda: False)
    with pytest.raises(SystemExit, match="pip install --group bench"):
        bench_multivae.main()


def test_the_readme_shows_what_was_measured():
    results = (ROOT / "benchmarks/results/multivae.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    rows = re.findall(r"\| (\d+) \| \d+ \| (.*? m?s) \| (.*? m?s) \|", results)
    times = {int(number): (ours, theirs) for number, ours, theirs in rows}
    assert (
        f"takes {times[8][0]} with eight modalities, and {times[10][0]} with ten; with equal "
        "networks, loss and gradients, [MultiVae](https://github.com/AgatheSenellart/MultiVae) "
        f"1.0.3 takes {times[8][1]} and {times[10][1]}."
    ) in readme


def test_the_readme_shows_what_the_comparison_of_systems_wrote():
    results = (ROOT / "benchmarks/results/synthesis.md").read_text()
    summary = results.split("## Summary")[1].split("\n## ")[0].split("\n| ")[2:]
    systems = [line.split(" |")[0] for line in summary]
    table = (ROOT / "README.md").read_text().split("| phantoms |")[1].split("\n\n")[0]
    rows = table.splitlines()[2:]
    # ours, the one that comes next, and the baseline
    assert [row.split(" |")[0] for row in rows] == [f"| {systems[k]}" for k in (0, 1, -1)]
    for row in rows:
        assert any(line.startswith(row[2:].removesuffix(" |")) for line in summary), row

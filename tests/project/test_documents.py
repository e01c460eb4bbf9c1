"""The examples and numbers of README and documentation are what the code does and says."""

import doctest
import re
from pathlib import Path

import pytest
import torch

import mmpoe

ROOT = Path(__file__).parents[2]
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_first_example_runs(name):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(code, name, "exec"), names)
    assert names["table"].isfinite().any()
    assert names["table"].shape[1:] == (12,)


def test_pictures_exist():
    for target in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file()


def test_doctests_of_the_concepts():
    (code,) = re.findall(r"```python\n(.*?)```", CONCEPTS, flags=re.DOTALL)
    test = doctest.DocTestParser().get_doctest(
        code, {"torch": torch, "mmpoe": mmpoe}, "concepts.md", "docs/concepts.md", 0
    )
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0
    assert result.failed == 0


def row(text):
    """The cells of the row of a table that starts with some text."""
    (line,) = [line for line in CONCEPTS.splitlines() if line.startswith(f"| {text} |")]
    return [cell.strip().replace("\u2212", "-") for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("power", "name"), [(2, "`power=2`, exact product"), (1, "`power=1`, published code")]
)
def test_numbers_of_the_two_powers(power, name):
    loc = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    mean, log_scale = mmpoe.gaussian.product_of_experts(loc, scale.log(), power=power)
    assert row(name) == [f"{mean:.4f}", f"{log_scale.exp():.4f}"]


def test_numbers_of_over_counting():
    steps = [(0.9, 0.5), (-1.1, 0.8)]  # a_l, q_l

    def precisions(j):
        upwards = [j]
        for a, q in steps:
            upwards.append(a**2 * upwards[-1] / (1 + q * upwards[-1]))
        return upwards

    rows = zip(precisions(1.0), precisions(8.0), precisions(9.0), strict=True)
    for level, (first, second, both) in enumerate(rows, start=1):
        cells = row(f"$z_{level}$")
        found = [float(cell.rstrip(" %")) for cell in cells]
        excess = 100 * ((first + second) / both - 1)
        assert found[:4] == pytest.approx([first, second, first + second, both], abs=5e-4)
        assert found[4] == pytest.approx(excess, abs=0.5)

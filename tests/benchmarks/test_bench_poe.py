"""Opponents of the fused operation compute the same, and sentences say what was measured."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import bench_poe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("subsets", [1, 15])
def test_lean_code_computes_the_same(subsets):
    case = bench_poe.Case("", subsets, (2, 3, 4), torch.float32, draws=False)
    inputs, given, _, noise = bench_poe.problem(case)
    lean = bench_poe.with_noise(bench_poe.lean)(*inputs, given=given, noise=noise)
    fused = bench_poe.fuse_with("eager")(*inputs, given=given, noise=noise)
    for a, b in zip(lean, fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_noise_that_is_not_given_is_drawn_for_each_call():
    case = bench_poe.Case("", 2, (2, 3, 4), torch.bfloat16, draws=True)
    inputs, *_ = bench_poe.problem(case)
    given = torch.ones(2, 2, bench_poe.EXPERTS, dtype=torch.bool)
    fuse = bench_poe.with_noise(bench_poe.lean)
    a, b = (fuse(*inputs, given=given, noise=None)[0] for _ in range(2))
    assert a.dtype == torch.bfloat16
    assert not torch.equal(a, b)


@pytest.mark.parametrize("page", ["README.md", "docs/kernels.md"])
def test_pages_say_how_much_faster_than_the_same_guarantees_the_kernels_are(page):
    text = " ".join((ROOT / page).read_text().split())
    assert re.search(r"at least three times as fast as .* where latents are large", text)
    results = (ROOT / "benchmarks" / "results" / "poe.txt").read_text()
    lines = re.findall(r"^(?:finest level|15 subsets) .*$", results, re.MULTILINE)
    ratios = [re.findall(r"([\d.]+)x", line)[:2] for line in lines]  # eager and compiled
    assert len(ratios) == sum(case.name != "coarsest level" for case in bench_poe.CASES)
    assert all(float(ratio) >= 3 for pair in ratios for ratio in pair)


def test_pages_say_how_much_longer_lean_compiled_code_takes():
    results = (ROOT / "benchmarks" / "results" / "poe.txt").read_text()
    rows = re.findall(
        r"^(finest level|15 subsets) .* (drawn|given) .*?([\d.]+)x +\d+ ", results, re.M
    )
    ratios = {(case, noise): float(ratio) for case, noise, ratio in reversed(rows)}  # float32 last
    low, high = min(float(r) for *_, r in rows), max(float(r) for *_, r in rows)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"without them, compiled, takes {low} to {high} times as long there" in readme
    kernels = " ".join((ROOT / "docs" / "kernels.md").read_text().split())
    assert (
        f"it takes {ratios['finest level', 'drawn']} times as long as the kernels on the finest "
        f"level, {ratios['finest level', 'given']} times if the noise is given, and "
        f"{ratios['15 subsets', 'given']} to {ratios['15 subsets', 'drawn']} times for 15 subsets"
    ) in kernels

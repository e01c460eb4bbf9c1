"""The design page says what is so: its layers, and what runs where, how often and on what.

That encoders run once is tested for every objective in `tests/objectives/test_contract.py`.
"""

import inspect
import pkgutil
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from example_models import (
    MODELS,
    NAMES,
    OBSERVED,
    batch,
    conditioned,
    hierarchical,
    make,
    noise_for,
)
from torch import nn

import mmpoe
from mmpoe import kernels
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Normal
from mmpoe.missing import pack, subsets
from mmpoe.models import Output
from mmpoe.objectives import elbo, mhvae, mixture_elbo, mmhvae, mopoe, mvae, mvtcae
from mmpoe.oracles import LinearGaussian
from mmpoe.posteriors import CommonNoisePoE, GPoE, MoE, MoPoE, PoE, Posterior

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "design.md").read_text()
SVG = "{http://www.w3.org/2000/svg}"
RULES = {
    "PoE": PoE,
    "MoPoE": MoPoE,
    "GPoE": lambda: GPoE(3),
    "CommonNoisePoE": lambda: CommonNoisePoE(4),
    "MoE": MoE,
}


def drawn_layers():
    """The packages of each layer of the drawing, and the pages that they are linked to."""
    drawing = ElementTree.parse(DOCS / "_static" / "layers.svg")
    groups = [g for g in drawing.iter(f"{SVG}g") if g.get("class") == "layer"]
    names = [[text.text for text in g.iter(f"{SVG}text")] for g in groups]
    return names, [a.get("href") for g in groups for a in g.iter(f"{SVG}a")]


def test_layers_are_those_that_are_enforced_and_all_packages():
    names, links = drawn_layers()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in settings["contracts"] if c["containers"] == ["mmpoe"])
    enforced = [layer.split(" : ") for layer in contract["layers"]]
    assert [sorted(layer) for layer in names] == [sorted(layer) for layer in enforced]
    assert contract["exhaustive"]

    drawn = [name for layer in names for name in layer]
    assert sorted(drawn) == sorted(found.name for found in pkgutil.iter_modules(mmpoe.__path__))
    assert links == [f"api/{name}.html" for name in drawn if name != "extras"]
    pages = {path.stem for path in (DOCS / "api").glob("*.md")} - {"index"}
    assert pages == set(drawn) - {"extras"}


def test_every_page_of_the_api_is_listed_once():
    index = (DOCS / "api" / "index.md").read_text()
    pages = {path.stem for path in (DOCS / "api").glob("*.md")} - {"index"}
    listed = re.findall(r"^   mmpoe\.(\w+)$", index, flags=re.MULTILINE)
    toctree = index.split(":hidden:")[1].strip("`\n").split()
    assert sorted(listed) == sorted(toctree) == sorted(pages)


@pytest.mark.parametrize("drawing", ["layers.svg", "batch.svg"])
def test_drawings_follow_the_theme(drawing):
    text = (DOCS / "_static" / drawing).read_text()
    assert f"_static/{drawing}" in PAGE
    assert 'fill="currentColor"' in text
    colours = re.findall(r"(?:fill|stroke)(?:=\"|: )([^;\"]+)", text)
    assert {c for c in colours if not c.startswith("var(--color-")} <= {"currentColor", "none"}


# the verbs


@pytest.mark.parametrize("name", ["flat", "hierarchical", "common noise"])
def test_a_call_is_the_verbs_in_a_row(name):
    model, x = make(MODELS[name]), batch()
    noise = noise_for(model)
    called = model(x, OBSERVED, noise=noise)
    q = model.infer(model.encode(x, OBSERVED), OBSERVED, noise=noise)
    by_hand = Output(model.decode(q.state), q.kl, q.z, q.posteriors, q.priors)
    assert all(torch.equal(a, b) for a, b in zip(called.z, q.z, strict=True))
    assert torch.equal(elbo(called, x, OBSERVED), elbo(by_hand, x, OBSERVED))
    log_p = model.log_likelihood(q.state, x, OBSERVED)
    torch.testing.assert_close(log_p - sum(q.kl), elbo(called, x, OBSERVED))


def test_a_mask_of_subsets_is_the_same_as_its_pairs():
    model, x = make(hierarchical), batch()
    given = torch.stack([OBSERVED, OBSERVED & torch.tensor([True, False, True])])
    noise = noise_for(model, subsets=(2,))
    rows = torch.arange(8).repeat(2)
    as_mask = conditioned(model, x, given, noise=noise)
    pairs = [n.flatten(0, 1) for n in noise]
    as_pairs = conditioned(model, x, given.flatten(0, 1), rows=rows, noise=pairs)
    for mask, pair in zip(as_mask.z, as_pairs.z, strict=True):
        assert torch.equal(mask.flatten(0, 1), pair)


def test_a_row_that_has_two_of_eight_modalities_costs_three_pairs():
    names = [str(m) for m in range(8)]
    encoders = {m: nn.Linear(3, 4) for m in names}
    model = mmpoe.MVAE(encoders, {m: Normal(nn.Linear(2, 3)) for m in names})
    observed = torch.zeros(1, 8, dtype=torch.bool)
    observed[0, :2] = True
    assert len(pack(*subsets(observed))[1]) == 3
    assert len(subsets(observed)[0]) == 255
    fused = rows_fused(model)
    mixture_elbo(model, {m: torch.randn(1, 3) for m in names}, observed)
    assert fused == [3]


# masks


def without_masks(module, seen):
    """Notes every call of a module, and that no argument of it is a mask."""

    def note(module, arguments, keywords, output):
        tensors = [a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor)]
        assert all(a.is_floating_point() for a in tensors)
        assert all(a is None or isinstance(a, (torch.Tensor, int)) for a in arguments)
        seen.append(module)

    module.register_forward_hook(note, with_kwargs=True)


def test_prior_merge_and_decoders_are_called_without_masks():
    model, seen = make(hierarchical), []
    parts = [model.groups[1].prior, *(group.merge for group in model.groups)]
    parts += list(model.decoders.values())
    for part in parts:
        without_masks(part, seen)
    for given in (OBSERVED, torch.stack([OBSERVED, ~OBSERVED & OBSERVED])):
        seen.clear()
        elbo(model(batch(), given), batch(), OBSERVED)
        assert {id(part) for part in seen} == {id(part) for part in parts}
    seen.clear()
    mixture_elbo(model, batch(), OBSERVED)
    assert {id(part) for part in seen} == {id(part) for part in parts}


def rows_decoded(model):
    """The number of states that each decoder gets from now on."""
    rows = dict.fromkeys(NAMES, 0)

    def count(module, arguments, keywords, output, m):
        dims = arguments[1] if len(arguments) > 1 else keywords.get("batch_dims", 1)
        rows[m] += arguments[0].shape[:dims].numel()

    for m in NAMES:
        hook = lambda *call, m=m: count(*call, m)
        model.decoders[m].register_forward_hook(hook, with_kwargs=True)
    return rows


@pytest.mark.parametrize("samples", [0, 3])
def test_only_scored_rows_are_decoded(samples):
    model, x = make(hierarchical), batch(filler=torch.nan)
    given = OBSERVED.expand(samples, *OBSERVED.shape) if samples else OBSERVED
    q = model.infer(model.encode(x, OBSERVED), given)
    scored = OBSERVED & torch.tensor([[True, False, True]]) & (torch.arange(8) < 6)[:, None]
    decoded = rows_decoded(model)
    model.log_likelihood(q.state, x, scored)
    wanted = dict(zip(NAMES, (scored.sum(dim=0) * max(samples, 1)).tolist(), strict=True))
    assert decoded == wanted


@pytest.mark.parametrize("objective", [mixture_elbo, mmhvae, mhvae, mopoe, mvae, mvtcae])
def test_objectives_over_subsets_decode_no_more_than_they_score(objective):
    model = make(hierarchical)
    decoded, scored = rows_decoded(model), dict.fromkeys(NAMES, 0)
    score = model.log_likelihood

    def note(state, x, cells, *, weight=None, **options):
        counted = cells if weight is None else cells & (weight > 0)
        for m, column in zip(NAMES, counted.sum(dim=0).tolist(), strict=True):
            scored[m] += column
        return score(state, x, cells, weight=weight, **options)

    model.log_likelihood = note
    objective(model, batch(filler=torch.nan), OBSERVED)
    assert decoded == scored
    assert min(decoded.values()) > 0


def test_the_output_of_a_model_has_every_modality_of_every_row():
    model = make(hierarchical)
    decoded = rows_decoded(model)
    model(batch(), OBSERVED)
    assert decoded == dict.fromkeys(NAMES, 8)


# rules, and the operation that they call


def rows_fused(model):
    """The number of pairs of every call of a rule from now on."""
    fused = []

    def counting(fuse):
        def count(factors, draw):
            fused.append(len(factors.given))
            return fuse(factors, draw)

        return count

    for group in model.groups:
        group.posterior.fuse = counting(group.posterior.fuse)
    return fused


def calls(monkeypatch):
    """Lists the rows that experts have in every call of the fused operation from now on."""
    found, operation = [], kernels.gaussian_poe

    def counting(loc, *args, **kwargs):
        found.append("of samples" if kwargs["rows"] is not None else len(loc[0]))
        return operation(loc, *args, **kwargs)

    monkeypatch.setattr(kernels, "gaussian_poe", counting)
    return found


def claimed(rule, case):
    """Whether the operation reads experts of samples or of pairs, by the table of the page."""
    table = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    (head,) = [row for row in table if row[0] == "rule"]
    (cells,) = [row for row in table if f"posteriors.{rule}`" in row[0]]
    pairs = len(pack(*subsets(OBSERVED))[1])
    return {"experts of samples": "of samples", "experts of pairs": pairs}[cells[head.index(case)]]


def flat(rule):
    return mmpoe.MVAE(
        {m: nn.Linear(3, 8) for m in "abc"},
        {m: Normal(nn.Linear(4, 3)) for m in "abc"},
        latent_dim=4,
        posterior=rule,
    )


class Features(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        return [x] * self.groups


def deep(rules, *, expert_sees_state, prior):
    groups = [
        LatentGroup(
            (4,),
            nn.Linear(3 + 4 * (level > 0 and expert_sees_state), 8),
            prior=nn.Linear(4, 8) if level and prior else None,
            expert_sees_state=expert_sees_state,
            posterior=rule,
        )
        for level, rule in enumerate(rules)
    ]
    decoders = {m: Normal(nn.Linear(4, 3)) for m in "abc"}
    return mmpoe.MMHVAE({m: Features(len(rules)) for m in "abc"}, groups, decoders)


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {m: torch.randn(8, 3, generator=generator).to(dtype) for m in "abc"}


def infer_pairs(model, dtype=torch.float32):
    given, rows, _ = pack(*subsets(OBSERVED))
    return model.infer(model.encode(data(dtype), OBSERVED), given, rows=rows)


@pytest.mark.parametrize("name", RULES)
def test_one_pair_per_sample_is_one_call_of_the_operation(name, monkeypatch):
    model, found = flat(RULES[name]()), calls(monkeypatch)
    model.infer(model.encode(data(), OBSERVED), OBSERVED)
    assert found == [8]


@pytest.mark.parametrize("name", RULES)
def test_the_operation_of_pairs_that_share_experts(name, monkeypatch):
    model, found = flat(RULES[name]()), calls(monkeypatch)
    infer_pairs(model)
    assert found == [claimed(name, "several pairs share experts")]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("expert_sees_state", "prior"), [(True, True), (False, True), (True, False)]
)
def test_the_operation_of_groups_that_see_the_state(name, expert_sees_state, prior, monkeypatch):
    rules = [RULES[name](), RULES[name]()]
    model = deep(rules, expert_sees_state=expert_sees_state, prior=prior)
    found = calls(monkeypatch)
    infer_pairs(model)
    assert found == [
        claimed(name, "several pairs share experts"),
        claimed(name, "experts or prior see the state"),
    ]


def test_a_group_below_that_sees_no_state_shares_its_experts_too(monkeypatch):
    model, found = deep([PoE(), PoE()], expert_sees_state=False, prior=False), calls(monkeypatch)
    infer_pairs(model)
    assert found == ["of samples"] * 2


@pytest.mark.parametrize("name", MODELS)
def test_a_group_calls_its_rule_once(name):
    model = make(MODELS[name])
    model.fix_shapes(batch())
    given, rows, _ = pack(*subsets(OBSERVED))
    encodings = model.encode(batch(), OBSERVED)
    fused = rows_fused(model)
    model.infer(encodings, given, rows=rows)
    assert fused == [len(given)] * len(model.groups)


def test_pairs_that_stand_several_times_are_fused_once_where_experts_are_shared():
    model = make(hierarchical)
    fused = rows_fused(model)
    several = OBSERVED.expand(5, *OBSERVED.shape)
    q = model.infer(model.encode(batch(), OBSERVED), several)
    assert fused == [8, 40]
    assert q.z[0].std(dim=0).min() > 0  # and sampled apart


@pytest.mark.parametrize("name", RULES)
def test_compiled_there_is_no_gathering(name):
    torch.manual_seed(0)
    model = flat(RULES[name]()).double()
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    def step(x, given, rows, noise):
        return model.infer(model.encode(x, OBSERVED), given, rows=rows, noise=noise).kl

    given, rows, _ = pack(*subsets(OBSERVED))
    noise = [torch.randn(len(rows), 4, dtype=torch.float64)]
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    got = compiled(data(torch.float64), given, rows, noise)
    torch.compiler.reset()
    torch.testing.assert_close(got, step(data(torch.float64), given, rows, noise))
    (graph,) = graphs
    assert "nonzero" not in graph


def test_rules_of_the_library_give_a_pair_without_experts_the_prior_to_the_bit():
    nan = [torch.full((2, 4), torch.nan)] * 3
    prior = (torch.randn(2, 4), torch.randn(2, 4))
    for build in RULES.values():
        q = build()(nan, nan, torch.zeros(2, 3, dtype=torch.bool), prior)
        assert torch.equal(q.loc, prior[0])
        assert torch.equal(q.log_scale, prior[1])
        assert (q.kl == 0).all()


def test_a_rule_is_one_method():
    assert Posterior.__abstractmethods__ == {"fuse"}
    assert mmpoe.likelihoods.Likelihood.__abstractmethods__ == {"distribution"}
    for build in RULES.values():
        kind = next(c for c in type(build()).__mro__ if "fuse" in vars(c))
        assert "forward" not in vars(kind)


def test_what_infers_is_one_argument():
    """It is called `experts` wherever there is a choice; `predict` alone makes one by itself."""
    public = [mmpoe.models, mmpoe.evidence, mmpoe.imputation, mmpoe.objectives]
    found = {f"{p.__name__}.{name}": getattr(p, name) for p in public for name in p.__all__}
    vae = mmpoe.models.MultimodalVAE
    found |= {name: f for name, f in vars(vae).items() if callable(f) and name[0] != "_"}
    defaults = {}
    for name, function in found.items():
        if isinstance(function, type):
            continue
        parameters = inspect.signature(function).parameters
        assert not [p for p in parameters if "match" in p], name
        if "experts" in parameters:
            defaults[name] = parameters["experts"].default
    assert {name for name, default in defaults.items() if default is None} == {"predict"}
    assert {"infer", "mmpoe.evidence.log_weights"} <= set(defaults)
    others = {defaults[name] for name in defaults if name not in ("predict", "family_of")}
    assert others == {"trained"}


# results


def test_the_bound_of_the_exact_posterior_is_the_evidence():
    oracle = LinearGaussian.random(["a", "b"], latent_dim=2, data_dim=3)
    x, _ = oracle.sample(5)
    observed = torch.ones(5, 2, dtype=torch.bool)
    model = oracle.model()
    bound = mmpoe.evidence.log_weights(model, x, observed, samples=2)
    wanted = oracle.log_prob(x, observed).expand(2, -1)
    torch.testing.assert_close(bound, wanted, rtol=0, atol=1e-10)
    assert "1e-10" in PAGE


def test_static_shapes_give_the_same_numbers():
    model = make(hierarchical)
    noise = noise_for(model)
    gathered = model(batch(filler=torch.nan), OBSERVED, noise=noise)
    model.gather = False
    static = model(batch(filler=torch.nan), OBSERVED, noise=noise)
    torch.testing.assert_close(static.z, gathered.z)
    torch.testing.assert_close(static.kl, gathered.kl)

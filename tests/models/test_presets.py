"""The ready models of every kind of data keep what all models promise, and learn."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributions

import mmpoe
from mmpoe.likelihoods import (
    Bernoulli,
    Categorical,
    Columns,
    Laplace,
    Normal,
    Ordinal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from mmpoe.missing import random_subsets
from mmpoe.models import image_mmhvae, sequence_mmhvae, vector_mmhvae, volume_mmhvae
from mmpoe.objectives import mixture_elbo
from mmpoe.training import load_checkpoint, save_checkpoint

NAMES = ["us", "t2.space", "type"]
CHANNELS = dict(zip(NAMES, [1, 2, 3], strict=True))
PYRAMID = {"widths": [6, 4], "latents": [3, 2]}

# every pattern of three modalities, the empty one included
OBSERVED = torch.tensor([[b >> m & 1 for m in range(3)] for b in range(8)]).bool()


def vectors(names=NAMES, **options):
    sizes = {m: 2 * CHANNELS[m] for m in names}
    return vector_mmhvae(sizes, hidden=8, latents=(2, 3, 4), **options)


PRESETS = {
    "vectors": vectors,
    "markov vectors": partial(vectors, markov=True),
    "private vectors": partial(vectors, private=2),
    "mixed vectors": partial(vectors, likelihoods={"type": Bernoulli, "us": Laplace}),
    "sequences": lambda names=NAMES: sequence_mmhvae(names, 12, channels=CHANNELS, **PYRAMID),
    "images": lambda names=NAMES: image_mmhvae(names, (8, 12), channels=CHANNELS, **PYRAMID),
    "markov images": lambda names=NAMES: image_mmhvae(
        names, (8, 12), channels=CHANNELS, likelihoods={"type": Bernoulli}, markov=True, **PYRAMID
    ),
    "volumes": lambda names=NAMES: volume_mmhvae(names, (8, 8, 12), channels=CHANNELS, **PYRAMID),
}
SIDES = {"sequences": (12,), "images": (8, 12), "volumes": (8, 8, 12)}
every_preset = pytest.mark.parametrize("name", PRESETS)


def make(name, names=NAMES):
    torch.manual_seed(0)
    return PRESETS[name](names)


def batch(name, filler=0.0):
    generator = torch.Generator().manual_seed(0)
    kind, x = name.split()[-1], {}
    for column, m in enumerate(NAMES):
        shape = (2 * CHANNELS[m],) if kind == "vectors" else (CHANNELS[m], *SIDES[kind])
        values = torch.rand(8, *shape, generator=generator).round()
        seen = OBSERVED[:, column].reshape(8, *[1] * len(shape))
        x[m] = torch.where(seen, values, filler)
    return x


def noise_for(model):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, *group.shape, generator=generator) for group in model.groups]


@every_preset
def test_shapes_and_divergences(name):
    model, x = make(name), batch(name)
    output = model(x, OBSERVED)
    for m in NAMES:
        assert output.likelihoods[m].batch_shape == (8,)
        assert output.likelihoods[m].mean.shape == x[m].shape
    for group, kl, z, q, p in zip(model.groups, *output[1:], strict=True):
        assert z.shape[1:] == group.shape
        torch.testing.assert_close(kl, distributions.kl_divergence(q, p))


@every_preset
@pytest.mark.parametrize("filler", [7.0, math.inf, math.nan])
def test_missing_slots_change_no_bit(name, filler):
    model = make(name)
    noise = noise_for(model)

    def run(value):
        x = batch(name, value)
        bound = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
        return [bound, *torch.autograd.grad(bound.mean(), list(model.parameters()))]

    for a, b in zip(run(filler), run(0.0), strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)


@every_preset
def test_every_parameter_takes_part(name):
    model, x = make(name), batch(name)
    (-mixture_elbo(model, x, OBSERVED).mean()).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@every_preset
def test_rows_do_not_influence_each_other(name):
    model, x = make(name), batch(name)
    noise = noise_for(model)
    together = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
    assert together[0] == 0  # nothing is observed: at the prior, and nothing to score
    for b in (0, 3, 7):
        row = {m: v[b : b + 1] for m, v in x.items()}
        output = model(row, OBSERVED[b : b + 1], noise=[n[b : b + 1] for n in noise])
        alone = mmpoe.elbo(output, row, OBSERVED[b : b + 1])
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-4, atol=1e-3)


@every_preset
def test_empty_batches_and_prior_samples(name):
    model, x = make(name), batch(name)
    nothing = {m: v[:0] for m, v in x.items()}
    assert mixture_elbo(model, nothing, OBSERVED[:0]).shape == (0,)
    drawn = model({}, OBSERVED & False)
    assert [kl.abs().max().item() for kl in drawn.kl] == [0.0] * len(model.groups)
    assert all(drawn.likelihoods[m].mean.shape == v.shape for m, v in x.items())


@every_preset
def test_order_of_modalities_does_not_matter(name):
    order = [2, 0, 1]
    names = [NAMES[i] for i in order]
    model, swapped = make(name), make(name, names)
    swapped.load_state_dict(model.state_dict())
    x, noise = batch(name), noise_for(model)
    output = model(x, OBSERVED, noise=noise)
    if name.startswith("private"):  # so are their blocks
        noise[-1] = noise[-1].unflatten(1, (3, 2))[:, order].flatten(1)
    permuted = swapped(x, OBSERVED[:, order], noise=noise)
    expected = mmpoe.elbo(output, x, OBSERVED)
    torch.testing.assert_close(mmpoe.elbo(permuted, x, OBSERVED[:, order]), expected)


@every_preset
def test_saved_models_are_the_same(name, tmp_path):
    model, x = make(name), batch(name)
    save_checkpoint(tmp_path, model.state_dict(), {"name": name})
    state, description = load_checkpoint(tmp_path)
    torch.manual_seed(1)
    loaded = PRESETS[description["name"]]()
    loaded.load_state_dict(state)
    noise = noise_for(model)
    one, two = model(x, OBSERVED, noise=noise), loaded(x, OBSERVED, noise=noise)
    assert torch.equal(mmpoe.elbo(one, x, OBSERVED), mmpoe.elbo(two, x, OBSERVED))


@every_preset
def test_double_precision(name):
    model, x = make(name), batch(name)
    noise = noise_for(model)
    single = mmpoe.elbo(model(x, OBSERVED, noise=noise), x, OBSERVED)
    x = {m: v.double() for m, v in x.items()}
    output = model.double()(x, OBSERVED, noise=[n.double() for n in noise])
    bound = mmpoe.elbo(output, x, OBSERVED)
    assert bound.dtype == output.z[-1].dtype == torch.float64
    torch.testing.assert_close(bound.float(), single, rtol=1e-4, atol=1e-3)


BUILDERS = {
    "vectors": lambda markov: vectors(markov=markov),
    "images": lambda markov: image_mmhvae(
        NAMES, 16, channels=CHANNELS, widths=[6, 5, 4], latents=[3, 2, 2], markov=markov
    ),
}


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("markov", [True, False])
def test_a_markov_path_forgets_all_but_the_group_above(kind, markov):
    """Changes z of the first group, and the noise of the second such that its z stays."""
    torch.manual_seed(0)
    model = BUILDERS[kind](markov).double()
    shapes = [(2 * c,) if kind == "vectors" else (c, 16, 16) for c in CHANNELS.values()]
    x = {m: torch.rand(4, *s).double() for m, s in zip(NAMES, shapes, strict=True)}
    noise = [torch.randn(4, *group.shape).double() for group in model.groups]
    one = model(x, noise=noise)
    changed = [noise[0] + 1, *noise[1:]]
    q = model(x, noise=changed).posteriors[1]
    changed[1] = (one.z[1] - q.loc) / q.scale
    two = model(x, noise=changed)

    assert (one.z[0] - two.z[0]).abs().max() > 0.01
    torch.testing.assert_close(two.z[1], one.z[1])
    pairs = [(two.posteriors[2].loc, one.posteriors[2].loc)]
    pairs += [(two.likelihoods[m].mean, one.likelihoods[m].mean) for m in NAMES]
    differences = [(a - b).abs().max().item() for a, b in pairs]
    if markov:
        assert max(differences) < 1e-11
    else:
        assert min(differences) > 1e-6


def views(rows, generator):
    """Two views of two shared numbers, one of them bent."""
    mix = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, generator=mix), torch.randn(2, 4, generator=mix)
    shared = torch.randn(rows, 2, generator=generator)
    return {"a": shared @ first / 1.5, "b": (shared @ second).tanh()}


def bumps(rows, generator, sides):
    """A bump at a random place, bright in one modality and dark and half as high in the other."""
    centre = 0.25 + 0.5 * torch.rand(rows, len(sides), generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, s) for s in sides], indexing="ij"))
    offset = grid - centre.reshape(rows, -1, *[1] * len(sides))
    bump = (-offset.square().mean(dim=1, keepdim=True) / 0.05).exp()
    return {"a": 1.6 * bump - 0.8, "b": 0.4 - 0.8 * bump}


def without_latents(x, kind):
    """The highest bound without latents, for likelihoods with one scale a modality."""
    total = 0
    for v in x.values():
        v = v.flatten(1)
        if kind is distributions.Laplace:
            scale = (v - v.median(dim=0).values).abs().mean()
        else:
            scale = (v - v.mean(dim=0)).square().mean().sqrt()
        total += v.shape[1] * kind(0.0, scale).log_prob(scale)
    return total


LEARNERS = {
    "vectors": (lambda: vector_mmhvae({"a": 6, "b": 4}, hidden=32, latents=(2, 4)), views),
    "markov vectors": (
        lambda: vector_mmhvae({"a": 6, "b": 4}, hidden=32, latents=(2, 4), markov=True),
        views,
    ),
    "private vectors": (
        lambda: vector_mmhvae({"a": 6, "b": 4}, hidden=32, latents=(2, 4), private=2),
        views,
    ),
    "sequences": (
        lambda: sequence_mmhvae(["a", "b"], 16, widths=[16, 8], latents=[4, 2]),
        partial(bumps, sides=(16,)),
    ),
    "images": (
        lambda: image_mmhvae(["a", "b"], (8, 16), widths=[16, 8], latents=[4, 2]),
        partial(bumps, sides=(8, 16)),
    ),
    "volumes": (
        lambda: volume_mmhvae(["a", "b"], 8, widths=[16, 8], latents=[4, 2]),
        partial(bumps, sides=(8, 8, 8)),
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.slow
def test_learns_from_incomplete_data(name):
    build, draw = LEARNERS[name]
    torch.manual_seed(0)
    model, generator = build(), torch.Generator().manual_seed(0)
    test, complete = draw(64, generator), torch.ones(64, 2, dtype=torch.bool)
    start = mmpoe.elbo(model(test, complete), test, complete).mean()

    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        x, observed = draw(32, generator), torch.rand(32, 2, generator=generator) < 0.8
        observed[~observed.any(dim=1)] = True
        loss = -mmpoe.elbo(model(x, random_subsets(observed)[0]), x, observed).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    bound = mmpoe.elbo(model(test, complete), test, complete).mean()
    kind = distributions.Laplace if name in ("images", "volumes") else distributions.Normal
    assert bound > max(start, without_latents(test, kind)) + 4
    for source, target in [("a", "b"), ("b", "a")]:
        predicted = model.predict(test, [source], targets=[target], temperature=0.0)[target].mean
        error = (predicted - test[target]).square().mean()
        spread = (test[target] - test[target].mean(dim=0)).square().mean()
        assert error < 0.4 * spread


def test_experts_start_precise_and_priors_near_standard():
    for build in (vectors, PRESETS["sequences"]):
        torch.manual_seed(0)
        model = build()
        name = "vectors" if build is vectors else "sequences"
        output = model(batch(name), OBSERVED)
        assert output.posteriors[0].log_scale[OBSERVED.all(dim=1)].mean() < -1.5
        assert output.priors[1].log_scale.abs().mean() < 0.5


MANY_OUTPUTS = {
    "us": partial(ZeroInflatedNegativeBinomial, inverse_dispersion=2.0),
    "t2.space": partial(Categorical, classes=5),
    "type": ZeroInflatedPoisson,
}


@pytest.mark.parametrize("name", ["vectors", "private vectors", "sequences", "images"])
def test_networks_return_what_a_likelihood_takes(name):
    torch.manual_seed(0)
    model = {
        "vectors": vectors,
        "private vectors": partial(vectors, private=2),
        "sequences": lambda **options: sequence_mmhvae(
            NAMES, 12, channels=CHANNELS, **PYRAMID, **options
        ),
        "images": lambda **options: image_mmhvae(
            NAMES, (8, 12), channels=CHANNELS, **PYRAMID, **options
        ),
    }[name](likelihoods=MANY_OUTPUTS)
    x = batch(name)
    output = model(x, OBSERVED)
    for m in NAMES:
        assert output.likelihoods[m].sample().shape == x[m].shape
    mixture_elbo(model, x, OBSERVED).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decoders.parameters())


@pytest.mark.slow
def test_columns_of_several_kinds_are_learned():
    """The category and the count of a row follow from a number that is seen."""
    torch.manual_seed(0)
    kinds = {
        "size": partial(Normal, scale=0.3, learn_scale=True),
        "grade": partial(Ordinal, levels=3),
        "site": partial(Categorical, classes=3),
        "visits": Poisson,
    }
    model = vector_mmhvae(
        {"exam": 1, "clinical": 4},
        likelihoods={"clinical": partial(Columns, columns=kinds)},
        hidden=32,
        latents=(2, 2),
    )
    code = torch.arange(3.0).repeat(20)[:, None]
    order = torch.tensor([2.0, 0.0, 1.0])[code.long()]
    x = {"exam": code - 1, "clinical": torch.cat([1 - code, code, order, 4 * code], dim=1)}
    observed = torch.ones(60, 2, dtype=torch.bool)
    valid = {"clinical": torch.rand(60, 4) < 0.7}
    filled = {**x, "clinical": torch.where(valid["clinical"], x["clinical"], 0)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        (-mixture_elbo(model, filled, observed, valid=valid).mean()).backward()
        optimizer.step()
    p = model.predict({"exam": x["exam"][:3]}, targets=["clinical"], temperature=0.0)["clinical"]
    assert torch.equal(p.mean[:, 2], order[:3, 0])
    torch.testing.assert_close(p.mean, x["clinical"][:3], rtol=0.1, atol=0.5)


def test_a_network_inside_another_returns_one_number_for_each_feature():
    def make(network):
        return Categorical(torch.nn.Sequential(network, torch.nn.Unflatten(1, (3, 2))), 3)

    model = vectors(likelihoods={"type": make})
    assert model({}, OBSERVED & False).likelihoods["type"].sample().shape == (8, 2)


def test_columns_are_as_many_as_features():
    columns = partial(Columns, columns=[Normal, Normal])
    with pytest.raises(ValueError, match=r"'columns' .* entries of shape \(4,\), but has 2"):
        vectors(likelihoods={"t2.space": columns})


def test_likelihoods_are_as_asked():
    model = vectors(likelihoods={"type": Bernoulli}, scale=0.7)
    assert isinstance(model.decoders["type"], Bernoulli)
    scale = model.decoders["us"].scale
    assert isinstance(model.decoders["us"], Normal)
    assert scale.requires_grad
    assert scale.item() == pytest.approx(0.7)
    for build in (sequence_mmhvae, image_mmhvae, volume_mmhvae):
        model = build(NAMES, 16, likelihoods={"type": Bernoulli}, scale=0.7, **PYRAMID)
        assert isinstance(model.decoders["type"], Bernoulli)
        kind = Normal if build is sequence_mmhvae else Laplace
        assert isinstance(model.decoders["us"], kind)
        assert model.decoders["us"].scale.item() == pytest.approx(0.7)


def test_the_example_of_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "api" / "models.md"
    verbs, presets = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(verbs, page.name, "exec"), names)
    assert names["bound"].shape == (5,)
    assert names["protein"].shape == (5, 6)
    torch.testing.assert_close(
        names["vae"](names["x"], names["observed"]).kl[0], names["both"].kl[0]
    )
    exec(compile(presets, page.name, "exec"), names)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert names["vae"]({}, nothing).likelihoods["protein"].mean.shape == (2, 25)


def test_only_heads_of_images_are_bounded():
    torch.manual_seed(0)
    sequences = sequence_mmhvae(NAMES, 16, **PYRAMID)
    images = image_mmhvae(NAMES, 16, likelihoods={"type": Normal}, **PYRAMID)
    with torch.no_grad():
        for model in (sequences, images):
            for decoder in model.decoders.values():
                decoder.network[1].weight.mul_(100)
    drawn = sequences({}, OBSERVED & False).likelihoods["us"].mean
    assert drawn.abs().max() > 1
    drawn = images({}, OBSERVED & False).likelihoods
    assert drawn["us"].mean.abs().max() <= 1
    assert drawn["type"].mean.abs().max() > 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: vector_mmhvae(["a"]), r"'modalities' should map names to numbers of features"),
        (lambda: vector_mmhvae({}), r"'modalities' should be a list of distinct names"),
        (lambda: vector_mmhvae({"a": 0}), r"'modalities' should be at least 1, but is 0"),
        (lambda: vectors(private=-1), r"'private' should be at least 0, but is -1"),
        (lambda: vectors(scale=0.0), r"'scale' should be positive"),
        (lambda: vectors(likelihoods={"t2": Normal}), r"'likelihoods' should hold .* 't2'"),
        (lambda: vector_mmhvae({"a": 1}, latents=()), r"'latents' should have an entry for each"),
        (lambda: vector_mmhvae({"a": 1}, latents=8), r"'latents' should be a list .* but is 8"),
        (lambda: image_mmhvae(["a"], 8, widths=8), r"'widths' should be a list .* but is 8"),
        (lambda: vector_mmhvae({"a": 1}, latents=(2, 0)), r"'latents' should be at least 1"),
        (lambda: vector_mmhvae({"a": 1}, hidden=0), r"'hidden' should be at least 1, but is 0"),
        (lambda: sequence_mmhvae("us", 16), r"'modalities' should be a list of distinct names"),
        (lambda: sequence_mmhvae(["a"], 20), r"'size' should be a multiple of 8, .* but is"),
        (lambda: volume_mmhvae(["a"], (16, 16)), r"'size' should be one number or three"),
        (lambda: volume_mmhvae(["a"], (16, 16, 12)), r"multiple of 8, .* but is \(16, 16, 12\)"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()

"""Columns of several kinds in one modality are scored, drawn and predicted each as its own."""

import copy
import warnings
from functools import partial

import pyro
import pytest
import torch
from torch import nn

import mmpoe
from mmpoe.distributions import Draws
from mmpoe.likelihoods import (
    Bernoulli,
    Categorical,
    Columns,
    Laplace,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    ZeroInflatedPoisson,
)
from mmpoe.likelihoods._scoring import check_scored, log_likelihood
from mmpoe.nn import Conditional
from mmpoe.objectives import mixture_elbo

KINDS = {
    ("age", "weight"): partial(Normal, scale=torch.tensor([0.5, 2.0]), learn_scale=True),
    "visits": NegativeBinomial,
    "site": partial(Categorical, classes=3),
    "stage": partial(Ordinal, levels=4),
    "alive": Bernoulli,
    "lesions": ZeroInflatedPoisson,
}
NAMES = ["age", "weight", "visits", "site", "stage", "alive", "lesions"]
WIDTH = 2 + 1 + 3 + 1 + 1 + 2
X = torch.tensor([[0.3, -1.0, 7.0, 2.0, 3.0, 1.0, 0.0], [1.2, 0.0, 0.0, 0.0, 1.0, 0.0, 4.0]])


def make(kinds=None, seed=0):
    torch.manual_seed(seed)
    return Columns(nn.Linear(2, WIDTH), KINDS if kinds is None else kinds)


def states(*shape, dtype=torch.float32):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(3)).to(dtype)


def separate(likelihood, z):
    """The distributions of likelihoods of one column or block, with the same parameters."""
    phi, found, start = likelihood.network(z), [], 0
    for part, size in zip(likelihood.parts, likelihood.sizes, strict=True):
        width = size * (part.outputs or 1)
        piece = phi[:, start : start + width]
        start += width
        alone = copy.deepcopy(part)
        alone.network = nn.Identity() if part.outputs is None else nn.Unflatten(1, (-1, size))
        found.append(alone(piece))
    assert start == WIDTH
    return found


def test_each_column_has_its_own_distribution():
    likelihood, z = make(), states(2)
    p, parts, start = likelihood(z), separate(likelihood, z), 0
    assert p.batch_shape == (2,)
    assert p.event_shape == (7,)
    elements = p.base_dist.log_prob(X)
    assert elements.shape == X.shape
    torch.testing.assert_close(p.log_prob(X), elements.sum(dim=1))
    for q, size in zip(parts, likelihood.sizes, strict=True):
        block = slice(start, start + size)
        torch.testing.assert_close(elements[:, block].sum(dim=1), q.log_prob(X[:, block]))
        if q is not parts[2]:  # the classes
            torch.testing.assert_close(p.mean[:, block], q.mean)
            torch.testing.assert_close(p.stddev[:, block], q.stddev)
        start += size


def test_moments_of_a_class_are_the_code_and_the_indicator():
    likelihood, z = make(), 5 * states(50)
    p, q = likelihood(z), separate(likelihood, z)[2]
    assert torch.equal(p.mean[:, 3], q.mean[:, 0].argmax(dim=-1).float())
    assert len(p.mean[:, 3].unique()) > 1
    share = q.mean[:, 0].amax(dim=-1)
    torch.testing.assert_close(p.stddev[:, 3], (share * (1 - share)).sqrt())


def test_draws_are_data():
    p = make()(states(3))
    torch.manual_seed(0)
    x = p.sample((20_000,))
    assert x.shape == (20_000, 3, 7)
    check_scored(p, x[0], torch.ones(3, dtype=torch.bool), "clinical")
    assert x[..., 3].unique().tolist() == [0, 1, 2]
    assert x[..., 4].unique().tolist() == [0, 1, 2, 3]
    numbers = [0, 1, 2, 4, 5, 6]
    error = (x.double().mean(dim=0) - p.mean)[:, numbers] / p.stddev[:, numbers]
    assert error.abs().max() < 5 / 20_000**0.5
    hit = (x[..., 3] == p.mean[:, 3]).double()
    torch.testing.assert_close(hit.std(dim=0).float(), p.stddev[:, 3], rtol=0, atol=0.02)


def test_many_draws_have_the_moments_of_their_mixture():
    p = make()(states(6, 3), 2)
    mixture = Draws(p)
    shares = p.base_dist.parts[2].probs.mean(dim=0)[:, 0]  # (3, classes)
    assert torch.equal(mixture.mean[:, 3], shares.argmax(dim=-1).float())
    top = shares.amax(dim=-1)
    torch.testing.assert_close(mixture.stddev[:, 3], (top * (1 - top)).sqrt())
    numbers = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(mixture.mean[:, numbers], p.mean.mean(dim=0)[:, numbers])
    variance = p.variance.mean(dim=0) + p.mean.var(dim=0, unbiased=False)
    torch.testing.assert_close(mixture.variance[:, numbers], variance[:, numbers])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for kinds in (KINDS, {"a": partial(Categorical, classes=WIDTH)}):
        p = make(kinds).to(dtype)(states(2, dtype=dtype))
        x = p.sample()
        assert x.dtype == p.mean.dtype == p.stddev.dtype == p.log_prob(x).dtype == wanted


def test_shapes_and_expansion():
    likelihood, z = make(), states(4, 2)
    p = likelihood(z, 2)
    assert p.batch_shape == (4, 2)
    assert p.mean.shape == p.sample().shape == (4, 2, 7)
    torch.testing.assert_close(p.log_prob(X)[1], likelihood(z[1]).log_prob(X))
    wide = likelihood(z[1]).expand((3, 2))
    torch.testing.assert_close(wide.log_prob(X), likelihood(z[1]).log_prob(X).expand(3, 2))
    assert wide.sample().shape == wide.mean.shape == (3, 2, 7)
    assert likelihood(z[0, :0]).sample().shape == (0, 7)
    assert not p.has_rsample
    numbers = Columns(nn.Linear(2, 2), [Normal, Laplace])(z[0])
    assert numbers.rsample((5,)).requires_grad
    assert numbers.rsample((5,)).shape == (5, 2, 2)


def test_gradients_are_right():
    likelihood, z = make().double(), states(2, dtype=torch.float64)
    names, values = zip(*likelihood.named_parameters(), strict=True)
    assert len(names) == 2 + 1 + 1 + 2

    def log_prob(*parameters):
        p = torch.func.functional_call(likelihood, dict(zip(names, parameters, strict=True)), (z,))
        return p.log_prob(X.double())

    assert torch.autograd.gradcheck(log_prob, values)


def test_elements_that_are_not_valid_are_never_read():
    valid = torch.tensor([[True, False, True, False, True, False, True], [False] * 6 + [True]])
    results = []
    for filler in (0.0, -1.0, 99.5, torch.nan, torch.inf):
        likelihood = make()
        x = torch.where(valid, X, filler)
        seen = torch.ones(2, dtype=torch.bool)
        p = likelihood(states(2))
        check_scored(p, x, seen, "clinical", valid)
        log_p = log_likelihood(p, x, seen, valid=valid)
        gradients = torch.autograd.grad(log_p.sum(), list(likelihood.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        results.append([log_p, *gradients])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    elements = p.base_dist.log_prob(X)
    torch.testing.assert_close(log_p, torch.where(valid, elements, 0).sum(dim=1))


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("visits", -1, "integers of at least 0"),
        ("site", 3, "integers from 0 to 2"),
        ("site", 0.5, "integers from 0 to 2"),
        ("stage", 4, "integers from 0 to 3"),
        ("alive", 2, "numbers from 0 to 1"),
        ("lesions", 0.5, "integers of at least 0"),
    ],
)
def test_values_outside_the_support_name_their_column(column, value, wanted):
    p, x = make()(states(2)), X.clone()
    assert torch.equal(p.base_dist.support.check(x), torch.ones(2, 7, dtype=torch.bool))
    x[1, NAMES.index(column)] = value
    pattern = rf"should hold {wanted} in column '{column}', but 'clinical' holds {value} in row 1"
    with pytest.raises(ValueError, match=pattern):
        check_scored(p, x, torch.ones(2, dtype=torch.bool), "clinical")
    check_scored(p, x, torch.tensor([True, False]), "clinical")


def test_exposures_and_covariates():
    kinds = {
        "a": partial(Poisson, exposure="years"),
        "b": Poisson,
        ("c", "d"): partial(ZeroInflatedPoisson, exposure="area"),
    }
    context = {
        "years": torch.tensor([1.0, 2.0]),
        "area": torch.tensor([[3.0, 4.0], [5.0, 6.0]]),
        "age": torch.tensor([0.1, 0.2]),
    }
    torch.manual_seed(0)
    plain = Columns(
        nn.Linear(3, 6), {key: k.func if key != "b" else k for key, k in kinds.items()}
    )
    exposed = Columns(Conditional(plain.network, ["age"]), kinds)
    z = states(2)
    expected = plain(torch.cat([z, context["age"][:, None]], dim=1)).mean
    scale = torch.tensor([[1.0, 1.0, 3.0, 4.0], [2.0, 1.0, 5.0, 6.0]])
    assert exposed.asks_for_context
    assert not plain.asks_for_context
    assert Columns(plain.network, kinds).asks_for_context
    torch.testing.assert_close(exposed(z, context=context).mean, scale * expected)
    with pytest.raises(ValueError, match=r"hold 'area', the exposure of ZeroInflatedPoisson, but"):
        exposed(z, context={k: v for k, v in context.items() if k != "area"})


# in models --------------------------------------------------------------------------------------


def model():
    torch.manual_seed(0)
    decoders = {"clinical": make(), "image": Normal(nn.Linear(2, 3))}
    encoders = {"clinical": nn.Linear(7, 4), "image": nn.Linear(3, 4)}
    return mmpoe.MVAE(encoders, decoders, latent_dim=2)


def batch():
    torch.manual_seed(1)
    x = {"clinical": X.repeat(3, 1), "image": torch.randn(6, 3)}
    return x, torch.tensor([[True, True], [True, False], [False, True]] * 2)


def test_bounds_score_valid_columns():
    vae, (x, observed) = model(), batch()
    valid = {"clinical": torch.rand(6, 7) < 0.7}
    noise = [torch.zeros(6, 2)]
    output = vae(x, observed, noise=noise)
    bound = mmpoe.elbo(output, x, observed, valid=valid)
    columns = output.likelihoods["clinical"].base_dist.log_prob(x["clinical"])
    scored = valid["clinical"] & observed[:, :1]
    expected = torch.where(scored, columns, 0).sum(dim=1)
    expected = expected + torch.where(
        observed[:, 1], output.likelihoods["image"].log_prob(x["image"]), 0
    )
    torch.testing.assert_close(bound, expected - output.kl[0])
    mixed = mixture_elbo(vae, x, observed, valid=valid)
    mixed.mean().backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_predictions_and_imputations_are_codes():
    vae, (x, observed) = model(), batch()
    seen = {"image": x["image"]}
    predicted = vae.predict(seen, targets=["clinical"], temperature=0.0)["clinical"]
    assert predicted.mean.shape == predicted.stddev.shape == (6, 7)
    assert set(predicted.mean[:, 3].tolist()) <= {0, 1, 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mmpoe.models.core.UncalibratedWarning)
        several = vae.predict(seen, targets=["clinical"], samples=8)["clinical"]
        imputed = mmpoe.impute(vae, x, observed, draws=5)["clinical"].draws
    assert set(several.mean[:, 3].tolist()) <= {0, 1, 2}
    assert several.sample().shape == (8, 6, 7)
    assert imputed.shape == (5, 6, 7)
    assert torch.equal(imputed[:, observed[:, 0]], x["clinical"][observed[:, 0]].expand(5, 4, 7))
    assert set(imputed[:, :, 3].flatten().tolist()) <= {0, 1, 2}


def test_pyro_scores_the_same():
    vae, (x, observed) = model(), batch()
    valid = {"clinical": torch.rand(6, 7) < 0.7}
    pyro.clear_param_store()
    with pyro.validation_enabled():
        trace = pyro.poutine.trace(mmpoe.pyro.model(vae)).get_trace(x, observed, valid)
        trace.compute_log_prob()
    z = trace.nodes["z_1"]["value"]
    columns = vae.decoders["clinical"](z).base_dist.log_prob(x["clinical"])
    expected = torch.where(valid["clinical"] & observed[:, :1], columns, 0).sum()
    torch.testing.assert_close(trace.nodes["x_clinical"]["log_prob_sum"], expected)


def test_compiles():
    torch.compiler.reset()
    kinds = {("a", "b"): Normal, "c": partial(Categorical, classes=3)}
    likelihood, z = Columns(nn.Linear(2, 5), kinds), states(2)
    x = likelihood(z).sample()
    compiled = torch.compile(
        lambda z, x: likelihood(z).log_prob(x), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(z, x), likelihood(z).log_prob(x))


# bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"a likelihood for each column, but is empty"),
        ({("a", "b"): Normal, "a": Normal}, r"name each column once, but repeats 'a'"),
        ({"a": nn.Identity}, r"a likelihood of a of a network, but makes .* type Identity"),
        ({"a": "normal"}, r"a likelihood of a of a network, but .* type str"),
        ({"a": partial(Columns, columns=[Normal])}, r"of a of a network, but .* type Columns"),
        ({"a": lambda f: Normal(nn.Sequential(f))}, r"a of the network it is given, but wraps it"),
        ({"a": partial(Normal, scale="optimal")}, r"of a whose scale is .* but it is 'optimal'"),
    ],
)
def test_bad_columns_are_named(columns, message):
    with pytest.raises(ValueError, match=rf"'columns' should .*{message}"):
        Columns(nn.Identity(), columns)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"'scale' should be .* entry, \(2,\), but has shape \(3"):
        Columns(nn.Identity(), {("a", "b"): partial(Normal, scale=torch.ones(3))})
    with pytest.raises(ValueError, match=r"network of Columns .* \(2, 2\), .* 0, 1, .* \(2, 3\)"):
        Columns(nn.Linear(2, 3), [Normal, Normal])(states(2))
    assert make().network_shape((7,)) == (WIDTH,)
    with pytest.raises(ValueError, match=r"'columns' .* entries of shape \(5,\), but has 7: age,"):
        make().network_shape((5,))

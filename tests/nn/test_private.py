"""Private latents: each modality tells about its own block alone, and no decoder sees another's.

The exact model: z ~ N(0, 1) is shared, w_m ~ N(0, 1) is private, and x_m | z, w_m is
N(a_m z + b_m w_m + c_m, psi_m). Then x_m | z ~ N(a_m z + c_m, b_m^2 + psi_m), and what x_m says
about w_m depends on z.
"""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

import mmpoe
from mmpoe.hierarchy import LatentGroup
from mmpoe.likelihoods import Laplace, Normal
from mmpoe.missing import as_mask
from mmpoe.models import vector_mmhvae
from mmpoe.nn import (
    BottomUp,
    Concatenate,
    GaussianHead,
    ImageHead,
    OwnBlock,
    Patchify,
    PrivateExpert,
    TopDown,
)

NAMES = ["us", "t2", "flair"]
OBSERVED = torch.tensor([[b >> m & 1 for m in range(3)] for b in range(8)]).bool()
A, B, C, PSI = [1.0, -2.0, 0.5], [0.7, 1.5, -1.0], [0.5, -0.25, 0.1], [1.0, 0.5, 0.3]
X = [1.0, -1.0, 0.4]


class SharedMessage(nn.Module):
    """What x_m says about z, with w_m integrated out; for the private group, x_m itself."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x):
        m = self.m
        variance = (B[m] ** 2 + PSI[m]) / A[m] ** 2
        log_scale = torch.full_like(x, 0.5 * math.log(variance))
        return [torch.cat([(x - C[m]) / A[m], log_scale], dim=1), x]


class PrivateMessage(nn.Module):
    """What x_m says about w_m given z, the state."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, state_and_x):
        m, (z, x) = self.m, state_and_x.split(1, dim=1)
        log_scale = torch.full_like(x, 0.5 * math.log(PSI[m] / B[m] ** 2))
        return torch.cat([(x - C[m] - A[m] * z) / B[m], log_scale], dim=1)


class Affine(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, z_and_w):
        z, w = z_and_w.split(1, dim=1)
        return A[self.m] * z + B[self.m] * w + C[self.m]


def exact():
    experts = {m: PrivateExpert(PrivateMessage(i), i, 3) for i, m in enumerate(NAMES)}
    groups = [
        LatentGroup((1,), nn.Identity()),
        LatentGroup((3,), experts, Concatenate()),
    ]
    decoders = {
        m: Normal(nn.Sequential(OwnBlock(1, i, 3), Affine(i)), scale=PSI[i] ** 0.5)
        for i, m in enumerate(NAMES)
    }
    return mmpoe.MMHVAE({m: SharedMessage(i) for i, m in enumerate(NAMES)}, groups, decoders)


@pytest.mark.parametrize(
    "subset", [s for k in (1, 2, 3) for s in itertools.combinations(range(3), k)]
)
def test_evidence_is_exact_for_every_subset(subset):
    """For any sample: the log of the importance weight is log p(x_s)."""
    a, b, c, psi = (np.array(v)[list(subset)] for v in (A, B, C, PSI))
    covariance = np.outer(a, a) + np.diag(b**2 + psi)
    evidence = multivariate_normal(c, covariance).logpdf(np.array(X)[list(subset)])

    names = [NAMES[m] for m in subset]
    x = {NAMES[m]: torch.full((20, 1), X[m], dtype=torch.float64) for m in subset}
    torch.manual_seed(0)
    noise = [torch.randn(20, size, dtype=torch.float64) for size in (1, 3)]
    output = exact()(x, as_mask(names, NAMES, 20), noise=noise)
    log_w = sum(output.likelihoods[m].log_prob(x[m]) for m in names)
    for z, p, q in zip(output.z, output.priors, output.posteriors, strict=True):
        log_w = log_w + p.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(log_w, torch.full_like(log_w, evidence), rtol=0, atol=1e-10)


class Levels(BottomUp):
    """The levels of a pyramid, and the finest one again, for the private group."""

    def forward(self, x):
        features = super().forward(x)
        return [*features, features[-1]]


def image_model():
    """Private channels below two shared groups of images, from the same parts."""
    experts = {m: PrivateExpert(GaussianHead(4, 2), i, 3) for i, m in enumerate(NAMES)}
    free = {"expert_sees_state": False}
    groups = [
        LatentGroup((3, 4, 4), GaussianHead(6, 3), TopDown(3, 6, 4, size=4), **free),
        LatentGroup(
            (2, 8, 8), GaussianHead(4, 2), TopDown(2, 4, None), nn.Conv2d(4, 4, 1), **free
        ),
        LatentGroup((6, 8, 8), experts, Concatenate(), **free),
    ]
    heads = {m: nn.Sequential(OwnBlock(2, i, 3), ImageHead(6, 1, 2)) for i, m in enumerate(NAMES)}
    return mmpoe.MMHVAE(
        {m: Patchify(1, 4, 2) for m in NAMES},
        groups,
        {m: Laplace(head) for m, head in heads.items()},
        trunk=Levels([6, 4]),
    )


MODELS = {
    "vectors": (
        lambda: vector_mmhvae(dict.fromkeys(NAMES, 5), hidden=8, latents=(2, 3), private=2),
        (5,),
    ),
    "images": (image_model, (1, 16, 16)),
}


@pytest.fixture(params=MODELS)
def case(request):
    """A model with blocks of two, a batch, and noise."""
    build, shape = MODELS[request.param]
    torch.manual_seed(0)
    model = build()
    x = {m: torch.rand(8, *shape) for m in NAMES}
    noise = [torch.randn(8, *group.shape) for group in model.groups]
    return model, x, noise


def blocks(w):
    return w.unflatten(1, (3, 2)).unbind(dim=1)


def test_blocks_of_absent_modalities_stay_at_the_prior(case):
    model, x, noise = case
    output = model(x, OBSERVED, noise=noise)
    q = output.posteriors[-1]
    for column in range(3):
        absent = ~OBSERVED[:, column]
        assert not blocks(q.loc)[column][absent].any()
        assert not blocks(q.log_scale)[column][absent].any()
        assert torch.equal(blocks(output.z[-1])[column][absent], blocks(noise[-1])[column][absent])
        assert (blocks(q.log_scale)[column][~absent] < 0).all()


def test_a_modality_changes_its_own_block_alone(case):
    model, x, noise = case
    before = model(x, OBSERVED, noise=noise)
    for column, m in enumerate(NAMES):
        after = model({**x, m: x[m] + 1}, OBSERVED, noise=noise)
        assert not torch.equal(after.z[0], before.z[0])
        for other in range(3):
            same = torch.equal(blocks(after.z[-1])[other], blocks(before.z[-1])[other])
            assert same == (other != column)


def test_decoders_see_no_block_of_another(case):
    model, x, noise = case
    noise = [n.requires_grad_() for n in noise]
    likelihoods = model(x, OBSERVED, noise=noise).likelihoods
    for column, m in enumerate(NAMES):
        *shared, private = torch.autograd.grad(
            likelihoods[m].mean.square().sum(), noise, retain_graph=True
        )
        assert all(gradient.any() for gradient in shared)
        for other in range(3):
            assert bool(blocks(private)[other].any()) == (other == column)


def test_divergence_is_that_of_the_blocks_given(case):
    model, x, noise = case
    output = model(x, OBSERVED, noise=noise)
    q, zero = output.posteriors[-1], torch.zeros(())
    each = mmpoe.gaussian.kl_divergence(q.loc, q.log_scale, zero, zero)
    total = sum(
        torch.where(OBSERVED[:, column], block.flatten(1).sum(dim=1), 0)
        for column, block in enumerate(blocks(each))
    )
    assert (total[1:] > 0).all()
    torch.testing.assert_close(output.kl[-1], total)


def test_missing_slots_change_no_bit(case):
    model, x, noise = case

    def run(filler):
        held = {
            m: torch.where(OBSERVED[:, i].reshape(8, *[1] * (v.dim() - 1)), v, filler)
            for i, (m, v) in enumerate(x.items())
        }
        bound = mmpoe.elbo(model(held, OBSERVED, noise=noise), held, OBSERVED)
        return [bound, *torch.autograd.grad(bound.mean(), list(model.parameters()))]

    for a, b in zip(run(math.nan), run(0.0), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_own_block_without_a_state_above():
    w = torch.arange(6.0).reshape(1, 6)
    assert OwnBlock(size=2, block=2, blocks=3)(w).tolist() == [[4.0, 5.0]]
    z = torch.ones(1, 1)
    assert Concatenate()(None, w) is w
    assert Concatenate()(z, w).tolist() == [[1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]


@pytest.mark.parametrize("block", [-1, 3])
def test_blocks_that_do_not_exist_are_errors(block):
    message = rf"'block' should be at least 0 and below 'blocks' \(3\), but is {block}"
    with pytest.raises(ValueError, match=message):
        PrivateExpert(nn.Identity(), block, 3)
    with pytest.raises(ValueError, match=message):
        OwnBlock(2, block, 3)


def test_the_example_of_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "api" / "nn.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names = {}
    exec(compile(code, page.name, "exec"), names)
    rna, protein = names["w"].chunk(2, dim=1)
    assert rna.shape == (5, 3)
    assert rna.all()
    assert not protein.any()

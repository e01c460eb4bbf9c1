"""Calibration: expectations over exchangeable draws, closed forms, and draws that are wrong."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from mmpoe.metrics import (
    coverage,
    crps,
    energy_score,
    linear_functionals,
    mean_with_error,
    project,
    rank_histogram,
)

F64 = torch.float64
PER_ELEMENT = [coverage, crps]
ALL = [*PER_ELEMENT, energy_score]

levels = st.floats(0.01, 0.99)
pools = st.lists(st.integers(-3, 3), min_size=2, max_size=9)  # ties included


def leave_one_out(pool):
    """Every choice of one exchangeable value as the truth: draws (K, K + 1), truth (K + 1)."""
    pool = torch.as_tensor(pool, dtype=F64)
    keep = ~torch.eye(len(pool), dtype=torch.bool)
    return torch.stack([pool[k] for k in keep], dim=1), pool


def normal_crps(loc, scale, y):
    w = (y - loc) / scale
    return scale * (w * (2 * norm.cdf(w) - 1) + 2 * norm.pdf(w) - 1 / math.sqrt(math.pi))


def stratified(count, variance):
    """The mid-quantiles of a centred normal distribution."""
    return torch.as_tensor(norm.ppf((np.arange(count) + 0.5) / count) * math.sqrt(variance))


# coverage


@given(pools, levels)
def test_expected_coverage_is_the_level_for_any_number_of_draws(pool, level):
    draws, truth = leave_one_out(pool)
    assert coverage(draws, truth, level).mean().item() == pytest.approx(level, abs=1e-12)


@given(st.integers(1, 200), levels)
def test_expected_coverage_is_the_level_without_ties(count, level):
    truth = torch.arange(count + 1, dtype=F64) - 0.5  # one truth of each rank
    draws = torch.arange(count, dtype=F64)[:, None].expand(count, count + 1)
    found = coverage(draws, truth, level)
    assert found.mean().item() == pytest.approx(level, abs=1e-12)
    torch.testing.assert_close(found, found.flip(0))  # central


@pytest.mark.parametrize(("count", "level"), [(19, 0.9), (39, 0.9), (99, 0.9), (3, 0.5)])
def test_interval_of_whole_ranks_is_between_quantiles(count, level):
    rng = np.random.default_rng(0)
    draws, truth = rng.standard_normal((count, 500)), rng.standard_normal(500)
    low, high = np.quantile(
        draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull"
    )  # interpolates at p (K + 1), here an integer
    found = coverage(torch.from_numpy(draws), torch.from_numpy(truth), level)
    np.testing.assert_allclose(found, (low < truth) & (truth < high), atol=1e-9)


def test_interpolated_quantiles_cover_less():
    draws = torch.rand(100, 20_000, dtype=F64, generator=torch.Generator().manual_seed(0))
    low, high = draws.quantile(torch.tensor([0.05, 0.95], dtype=F64), dim=0)
    found = mean_with_error(high - low)  # the probability of a uniform truth
    assert abs(found.mean - 0.9 * 99 / 101) < 4 * found.error
    assert found.error < 1e-3
    assert round(0.9 * 99 / 101, 3) == 0.882


def test_draws_that_spread_too_little_cover_too_little():
    expected = 2 * norm.cdf(norm.ppf(0.95) * math.sqrt(0.9 / 2.5)) - 1
    assert expected == pytest.approx(0.6763143, abs=5e-8)
    truth = stratified(4001, 2.5)
    for variance, covered in [(0.9, expected), (2.5, 0.9)]:
        draws = stratified(2000, variance)[:, None].expand(2000, 4001)
        assert coverage(draws, truth).mean().item() == pytest.approx(covered, abs=1e-3)


def test_rank_histogram_of_exchangeable_draws_is_flat():
    for pool in ([0, 1, 2, 3], [1, 1, 1], [2, 0, 0, 1, 2, 5, 5]):
        for bins in (1, 3, 4, 10):
            found = rank_histogram(*leave_one_out(pool), bins=bins)
            torch.testing.assert_close(found, torch.full((bins,), 1 / bins, dtype=F64))


def test_rank_histogram_shows_what_is_wrong():
    truth = stratified(501, 1.0)

    def histogram(loc, variance):
        draws = loc + stratified(200, variance)[:, None].expand(200, 501)
        return rank_histogram(draws, truth, bins=4)

    narrow, wide, low = histogram(0, 0.25), histogram(0, 4.0), histogram(-0.5, 1.0)
    assert narrow[[0, 3]].min() > 0.3 > 0.2 > narrow[[1, 2]].max()
    assert wide[[0, 3]].max() < 0.2 < 0.3 < wide[[1, 2]].min()
    assert (low.diff() > 0).all()
    edges = norm.cdf(norm.ppf([0.25, 0.5, 0.75]) * 0.5)  # where the truth is, by its own quantiles
    np.testing.assert_allclose(narrow, np.diff([0, *edges, 1]), atol=0.01)


def test_rank_histogram_counts_only_what_is_scored():
    draws = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    truth, mask = draws.roll(1, 2)[0], torch.tensor([True, True, False, True, False])
    torch.testing.assert_close(
        rank_histogram(draws, truth, mask=mask[:, None]),
        rank_histogram(draws[:, mask], truth[mask]),
    )
    assert rank_histogram(draws, truth, mask=torch.zeros(5, 3, dtype=torch.bool)).isnan().all()


# scores


def pairwise(draws, truth, distance):
    """The fair score from all pairs."""
    count = len(draws)
    pairs = [distance(a, b) for a, b in itertools.combinations(draws, 2)]
    return sum(distance(a, truth) for a in draws) / count - sum(pairs) / (count * (count - 1))


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12),
    st.floats(-1e3, 1e3),
)
def test_crps_is_its_formula_and_the_energy_score_in_one_dimension(draws, truth):
    draws = torch.tensor(draws, dtype=F64)[:, None]
    truth = torch.tensor([truth], dtype=F64)
    expected = pairwise(draws, truth, lambda a, b: (a - b).abs())
    torch.testing.assert_close(crps(draws, truth), expected, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(energy_score(draws, truth), expected, rtol=1e-10, atol=1e-9)


def test_energy_score_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(6, 4, 3, 2, dtype=F64, generator=generator)
    truth = torch.randn(4, 3, 2, dtype=F64, generator=generator)
    expected = pairwise(draws, truth, lambda a, b: (a - b).flatten(1).norm(dim=1))
    torch.testing.assert_close(energy_score(draws, truth), expected)


VALUES = torch.tensor([[-1.0, 2.0], [0.5, 0.5], [3.0, -2.0]], dtype=F64)
PROBABILITIES = torch.tensor([0.2, 0.5, 0.3], dtype=F64)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_scores_are_unbiased_for_any_number_of_draws(count):
    truth = torch.tensor([0.8, -0.3], dtype=F64)
    outcomes = torch.cartesian_prod(*[torch.arange(3)] * count)  # (3^K, K)
    probability = PROBABILITIES[outcomes].prod(dim=1)  # (3^K)
    draws = VALUES[outcomes].transpose(0, 1)  # (K, 3^K, 2)

    to_truth = VALUES - truth
    between = VALUES[:, None] - VALUES
    pair = PROBABILITIES[:, None] * PROBABILITIES

    exact = PROBABILITIES @ to_truth.abs() - (pair[..., None] * between.abs()).sum((0, 1)) / 2
    found = probability @ crps(draws, truth.expand(len(outcomes), 2))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)

    exact = PROBABILITIES @ to_truth.norm(dim=1) - (pair * between.norm(dim=2)).sum() / 2
    found = probability @ energy_score(draws, truth.expand(len(outcomes), 2))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("count", "rows"), [(2, 100_000), (10, 20_000), (100_000, 2)])
def test_crps_of_a_normal_distribution(count, rows):
    draws = torch.randn(count, rows, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = mean_with_error(crps(1 + 2 * draws, torch.full((rows,), 2.5, dtype=F64)))
    # E|X - X'| and E|X - y| have standard deviations below 2 each, per draw
    error = 4 / math.sqrt(count * rows)
    assert abs(found.mean - normal_crps(1, 2, 2.5)) < 4 * error
    assert error < 0.01


def test_a_common_offset_does_not_cancel():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(-512, 512, (50, 20), generator=generator) / 512
    truth = torch.randint(-512, 512, (20,), generator=generator) / 512
    for score in ALL:  # 8192 + n / 512 is exact in float32
        torch.testing.assert_close(
            score(draws + 8192, truth + 8192), score(draws, truth), rtol=0, atol=0
        )


def test_joint_scores_see_what_marginals_hide():
    rows, count = 400, 100
    generator = torch.Generator().manual_seed(0)

    def correlated(*shape, rho):
        noise = torch.randn(*shape, 8, dtype=F64, generator=generator)
        common = torch.randn(*shape, 1, dtype=F64, generator=generator)
        return math.sqrt(1 - rho) * noise + math.sqrt(rho) * common

    truth = correlated(rows, rho=0.9)
    right, wrong = correlated(count, rows, rho=0.9), correlated(count, rows, rho=0.0)
    total = torch.ones(1, 8, dtype=F64)

    assert abs(mean_with_error(crps(right, truth) - crps(wrong, truth)).mean) < 0.01
    assert coverage(wrong, truth).mean().item() == pytest.approx(0.9, abs=0.03)
    gap = mean_with_error(energy_score(wrong, truth) - energy_score(right, truth))
    assert gap.mean > 5 * gap.error > 0

    covered = [coverage(project(d, total), project(truth, total)).mean() for d in (right, wrong)]
    assert covered[0].item() == pytest.approx(0.9, abs=0.045)  # 3 standard errors
    spread = math.sqrt(8 / (8 + 56 * 0.9))  # of the sum, where draws are independent
    assert covered[1].item() == pytest.approx(2 * norm.cdf(1.645 * spread) - 1, abs=0.075)


# masks, dtypes, input


@pytest.mark.parametrize("score", ALL)
def test_what_is_not_scored_is_never_read(score):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(6, 4, 3, generator=generator)
    truth = torch.randn(4, 3, generator=generator)
    mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3, [False, True, False]])

    found = []
    for filler in (0.0, 7.0, math.inf, math.nan):
        x = torch.where(mask, draws, filler).requires_grad_(score is not coverage)
        values = score(x, torch.where(mask, truth, filler), mask=mask)
        if score is not coverage:
            values.nansum().backward()
            assert (x.grad[:, ~mask] == 0).all()
            assert (x.grad[:, mask] != 0).any()
        found.append((values.detach(), x.grad))
    for values, grad in found[1:]:
        torch.testing.assert_close(values, found[0][0], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(grad, found[0][1], rtol=0, atol=0)
    expected = mask if score is not energy_score else mask.any(dim=1)
    torch.testing.assert_close(found[0][0].isnan(), ~expected)


def test_masked_scores_are_those_of_what_is_left():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(6, 4, 3, generator=generator)
    truth = torch.randn(4, 3, generator=generator)
    columns = torch.tensor([True, False, True])
    for score in PER_ELEMENT:
        torch.testing.assert_close(
            score(draws, truth, mask=columns)[:, columns], score(draws, truth)[:, columns]
        )
    torch.testing.assert_close(
        energy_score(draws, truth, mask=columns),
        energy_score(draws[..., columns], truth[:, columns]),
    )


@pytest.mark.parametrize("score", ALL)
def test_shapes_and_dtypes(score):
    for dtype, expected in [(torch.bfloat16, torch.float32), (F64, F64)]:
        draws = torch.arange(24).reshape(4, 2, 3).to(dtype)
        found = score(draws, draws[1])
        assert found.dtype == expected
        torch.testing.assert_close(found, score(draws.to(expected), draws[1].to(expected)))
    assert score(torch.zeros(4, 0, 3), torch.zeros(0, 3)).shape[0] == 0
    if torch.cuda.is_available():
        torch.testing.assert_close(score(draws.cuda(), draws[1].cuda()).cpu(), found)


@pytest.mark.parametrize("score", [*ALL, rank_histogram])
def test_bad_input_is_named(score):
    draws, truth = torch.zeros(4, 2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"'draws' and 'truth' .* \(4, 2, 3\) and \(3, 2\)"):
        score(draws, truth.mT)
    with pytest.raises(ValueError, match=r"'draws' and 'truth' should be floating.*int64"):
        score(draws, truth.long())
    with pytest.raises(ValueError, match=r"'draws' should hold at least \d draws?, but holds 0"):
        score(draws[:0], truth)
    with pytest.raises(ValueError, match=r"'mask' should be boolean, but has dtype torch.float32"):
        score(draws, truth, mask=truth)
    with pytest.raises(ValueError, match=r"'mask' should broadcast .* \(2, 3\), .* \(2,\)"):
        score(draws, truth, mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'truth' should be finite wherever it is scored"):
        score(draws, truth + math.nan)
    with pytest.raises(ValueError, match=r"'draws' should be finite wherever it is scored"):
        score(draws + math.inf, truth)


def test_bad_options_are_named():
    draws, truth = torch.zeros(4, 2), torch.zeros(2)
    for level in (0, 1, 90, math.nan):
        with pytest.raises(ValueError, match=r"'level' should be between 0 and 1, but is"):
            coverage(draws, truth, level)
    with pytest.raises(ValueError, match=r"'bins' should be positive, but is 0"):
        rank_histogram(draws, truth, bins=0)
    for score in (crps, energy_score):
        with pytest.raises(ValueError, match=r"'draws' should hold at least 2 draws.* holds 1"):
            score(draws[:1], truth)


# functionals


def test_project_is_a_sum_over_all_of_a_sample():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 3, 2, generator=generator)
    weight = torch.randn(7, 3, 2, generator=generator)
    expected = torch.einsum("kbij,fij->kbf", x, weight)
    torch.testing.assert_close(project(x, weight), expected)
    torch.testing.assert_close(project(x[0], weight), expected[0])


def test_principal_axes_are_those_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([[1.0, 5.0], [0.1, 3.0]], dtype=F64)
    residuals = 10 + scale * torch.randn(50, 2, 2, dtype=F64, generator=generator)
    axes = linear_functionals(residuals, principal=3, random=0)
    assert axes.shape == (3, 2, 2)

    variances, vectors = np.linalg.eigh(np.cov(residuals.flatten(1).numpy(), rowvar=False))
    expected = torch.from_numpy(vectors[:, ::-1][:, :3].copy())
    torch.testing.assert_close((axes.flatten(1) @ expected).abs(), torch.eye(3, dtype=F64))
    torch.testing.assert_close(
        project(residuals, axes).var(dim=0), torch.from_numpy(variances[::-1][:3].copy())
    )


def test_random_directions_are_uniform_on_the_sphere():
    residuals = torch.zeros(3, 3)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return linear_functionals(residuals, principal=0, random=20_000, generator=generator)

    directions = draw(0)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20_000))
    moments = directions.mT @ directions / 20_000
    # the fourth moment of a coordinate is 1/5, so 4 standard errors are below 4 sqrt(0.2 / N)
    torch.testing.assert_close(moments, torch.eye(3) / 3, rtol=0, atol=0.0127)
    torch.testing.assert_close(
        (directions**4).mean(dim=0), torch.full((3,), 0.2), rtol=0, atol=0.01
    )
    assert directions.mean(dim=0).abs().max() < 4 * math.sqrt(1 / 3 / 20_000)
    assert torch.equal(draw(0), directions)
    assert not torch.equal(draw(1), directions)


def test_axes_of_the_scored_rows_understate_coverage():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(99, 200, 50, generator=generator)
    truth = torch.randn(200, 50, generator=generator)
    residuals = truth - draws.mean(dim=0)

    def covered(rows):
        axis = linear_functionals(residuals[rows], principal=1, random=0)
        return coverage(project(draws[:, 100:], axis), project(truth[100:], axis)).mean().item()

    assert covered(slice(0, 100)) == pytest.approx(0.9, abs=0.09)  # 3 standard errors
    assert covered(slice(100, 200)) < 0.8


def test_functionals_bring_principal_axes_first():
    residuals = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0]))
    found = linear_functionals(residuals, principal=2, random=5)
    assert found.shape == (7, 4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(found[:2], linear_functionals(residuals, principal=2, random=0))


def test_bad_functionals_are_named():
    with pytest.raises(ValueError, match=r"'functionals' .* \(4, 2, 3\), but has shape \(1, 2\)"):
        project(torch.zeros(4, 2, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"'functionals' .* \(3,\), but has shape \(1, 2, 3\)"):
        project(torch.zeros(3), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"'residuals' should be floating.*int64"):
        linear_functionals(torch.zeros(5, 3).long())
    with pytest.raises(ValueError, match=r"'residuals' should be finite"):
        linear_functionals(torch.full((5, 3), math.nan))
    with pytest.raises(ValueError, match=r"'principal' should be at most 3 .* \(5, 3\), but is 4"):
        linear_functionals(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"'principal' should be at most 1 .* \(2, 3\), but is 2"):
        linear_functionals(torch.zeros(2, 3), principal=2)
    with pytest.raises(ValueError, match=r"'random' should not be negative, but is -1"):
        linear_functionals(torch.zeros(5, 3), principal=0, random=-1)

r"""Mechanisms that make data missing, at rates that are exact over the data they are given."""

from __future__ import annotations

__all__ = ["mar", "mcar", "mnar", "patterns"]

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from ._checks import check_observed
from ._draws import draw_at


def mcar(
    batch_size: int,
    rate: Sequence[float] | Tensor,
    *,
    at_least_one: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    r"""Draws what is observed, completely at random: it depends on no data.

    Both a bound on the evidence :math:`\log p(x_r)` of what was observed, and an analysis of the
    complete rows alone, then stay valid (Rubin, 1976).

    Arguments:
        batch_size: The number of rows, :math:`B`.
        rate: The probability that each modality is missing, :math:`M` numbers. The :math:`M`
            columns of a table, to make single cells missing, are the same thing.
        at_least_one: Whether each row keeps at least one modality. Modalities are missing
            independently if not; if so, they are independent given that not all are missing, and
            `rate` is still the probability that each is missing.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        What is observed, boolean, with shape :math:`(B, M)`.

    Raises:
        ValueError: If a rate is not in :math:`[0, 1)`, or rows that keep a modality cannot have
            these rates, because they sum to :math:`M - 1` or more.

    References:
        | Inference and Missing Data (Rubin, 1976)
        | https://doi.org/10.1093/biomet/63.3.581

    Example:
        >>> observed = mcar(1000, [0.5, 0.5, 0.5])
        >>> observed.any(dim=1).all()
        tensor(True)
    """
    rates = _rates(rate)
    log_odds = _log_odds(torch.zeros_like(rates)[None], rates, at_least_one)  # (1, M)
    return _draw(log_odds.expand(batch_size, -1), at_least_one, generator)


def mar(
    driver: Tensor,
    rate: Sequence[float] | Tensor,
    *,
    slope: float | Sequence[float] | Tensor = 1.0,
    at_least_one: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    r"""Draws what is observed, at random given a driver that is itself always observed.

    .. math:: \mathrm{logit} \; p(m \text{ is missing} \mid d) = a_m + b_m d_m

    The intercepts :math:`a_m` are solved for, such that the expected rates over the given rows are
    those asked for. A bound on the evidence of what was observed stays valid (Rubin, 1976) if the
    driver is part of it; an analysis of the complete rows alone does not.

    Arguments:
        driver: What missingness depends on, with shape :math:`(B)`, or :math:`(B, M)` for one
            driver per modality: a covariate, a summary of a modality of rate 0, or a combination.
        rate: The expected share of rows in which each modality is missing, :math:`M` numbers.
        slope: The slope :math:`b_m`: a number, or one for each modality.
        at_least_one: Whether each row keeps at least one modality. If so, the equation is about a
            row in which some other modality is observed, and the rates are still those asked for.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        What is observed, boolean, with shape :math:`(B, M)`.

    Raises:
        ValueError: As :func:`mcar`, and if `driver` or `slope` has another shape, is not finite,
            or the driver has no row.

    References:
        | Inference and Missing Data (Rubin, 1976)
        | https://doi.org/10.1093/biomet/63.3.581

    Example:
        >>> observed = mar(torch.tensor([-9.0, 9.0]), [0.5, 0.0], slope=100.0)
        >>> observed
        tensor([[ True,  True],
                [False,  True]])
    """
    rates = _rates(rate)
    modalities = len(rates)
    if driver.shape[1:] not in ((), (modalities,)) or driver.dim() == 0 or not len(driver):
        raise ValueError(
            f"'driver' should have at least one row and shape (B) or (B, {modalities}), "
            f"but has shape {tuple(driver.shape)}."
        )
    slopes = torch.as_tensor(slope, dtype=torch.float64, device="cpu")
    if slopes.shape not in ((), (modalities,)):
        raise ValueError(
            f"'slope' should be one number or {modalities}, but has shape {tuple(slopes.shape)}."
        )
    drive = driver.detach().cpu().double().reshape(len(driver), -1) * slopes  # (B, M) or (B, 1)
    if not drive.isfinite().all():
        raise ValueError("'driver' and 'slope' should be finite, but their product is not.")

    log_odds = _log_odds(drive.expand(-1, modalities), rates, at_least_one)
    return _draw(log_odds, at_least_one, generator).to(driver.device)


def mnar(
    x: Mapping[str, Tensor] | Tensor,
    rate: Sequence[float] | Tensor,
    *,
    slope: float | Sequence[float] | Tensor = 1.0,
    summary: Callable[[Tensor], Tensor] | None = None,
    at_least_one: bool = True,
    generator: Generator | None = None,
) -> Tensor:
    r"""Draws what is observed, not at random: each modality censors itself.

    .. math:: \mathrm{logit} \; p(m \text{ is missing} \mid x) = a_m + b_m \, t(x_m)

    A bound on the evidence of what was observed is then a bound for the wrong model, and what
    maximises it is biased, unless the mechanism is part of the model (Rubin, 1976).

    Arguments:
        x: The complete data: a mapping from modality names to tensors of shape :math:`(B, *)`,
            whose order is that of the columns; or a table, :math:`(B, M)`, whose cells to censor.
        rate: The expected share of rows in which each modality is missing, :math:`M` numbers.
        slope: The slope :math:`b_m`: a number, or one for each modality.
        summary: The summary :math:`t`, a function of the entries :math:`(B, *)` of one modality
            with values of shape :math:`(B)`. By default, the mean of each entry, standardised
            over the rows.
        at_least_one: Whether each row keeps at least one modality, see :func:`mar`.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        What is observed, boolean, with shape :math:`(B, M)`.

    Raises:
        ValueError: As :func:`mar`, and if `x` is not complete, or a summary has another shape.

    References:
        | Inference and Missing Data (Rubin, 1976)
        | https://doi.org/10.1093/biomet/63.3.581

    Example:
        >>> income = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> mnar(income, [0.5], slope=100.0, at_least_one=False).flatten()
        tensor([ True,  True, False, False])
    """
    modalities = len(_rates(rate))
    if isinstance(x, Tensor) and x.dim() != 2:
        raise ValueError(
            f"'x' should be a mapping or a table of shape (B, M), but has shape {tuple(x.shape)}."
        )
    entries = list(x.unbind(dim=1)) if isinstance(x, Tensor) else list(x.values())
    if len(entries) != modalities or len({len(v) for v in entries}) != 1:
        raise ValueError(
            f"'x' should hold one modality per rate ({modalities}), each with as many rows, "
            f"but has shapes {[tuple(v.shape) for v in entries]}."
        )
    summary = _standardised_mean if summary is None else summary
    driver = [summary(v) for v in entries]
    for t in driver:
        if t.shape != entries[0].shape[:1] or not bool(t.isfinite().all()):
            raise ValueError(
                f"'summary' should make one finite number of each row ({len(entries[0])}) of 'x', "
                f"which should be complete, but makes {t}."
            )
    return mar(
        torch.stack(driver, dim=1),
        rate,
        slope=slope,
        at_least_one=at_least_one,
        generator=generator,
    )


def patterns(
    observed: Tensor,
    batch_size: int,
    weight: Sequence[float] | Tensor | None = None,
    *,
    generator: Generator | None = None,
) -> Tensor:
    r"""Draws what is observed from given patterns, such as those of another data set.

    Patterns are drawn completely at random, see :func:`mcar`.

    Arguments:
        observed: The patterns, boolean, with shape :math:`(P, M)`.
        batch_size: The number of rows to draw, :math:`B`.
        weight: How often each pattern is drawn, up to a factor, with shape :math:`(P)`; equally
            often if None.
        generator: The random generator, on the CPU; PyTorch's own if None.

    Returns:
        What is observed, boolean, with shape :math:`(B, M)`.

    Raises:
        ValueError: If `observed` is not a boolean matrix of at least one row, or `weight` does not
            have one finite number for each, at least 0 and not all 0.

    Example:
        >>> patterns(torch.tensor([[True, False], [True, True]]), 3, [1, 0])
        tensor([[ True, False],
                [ True, False],
                [ True, False]])
    """
    check_observed(observed)
    if not len(observed):
        raise ValueError("'observed' should hold at least one pattern, but holds none.")
    weights = torch.ones(len(observed)) if weight is None else torch.as_tensor(weight)
    weights = weights.detach().cpu().double()
    valid = weights.isfinite().all() and (weights >= 0).all() and (weights > 0).any()
    if weights.shape != (len(observed),) or not bool(valid):
        raise ValueError(
            f"'weight' should hold one number per pattern ({len(observed)}), at least 0 and not "
            f"all 0, but is {weight}."
        )
    point = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    return observed[draw_at(weights, point).to(observed.device)]


def _standardised_mean(entries: Tensor) -> Tensor:
    """The mean of each entry (B, *), less its mean and over its deviation over rows: (B)."""
    mean = entries.detach().double().reshape(len(entries), -1).mean(dim=1)
    deviation = mean.std(unbiased=False)
    return (mean - mean.mean()) / torch.where(deviation > 0, deviation, 1)


def _rates(rate: Sequence[float] | Tensor) -> Tensor:
    rates = torch.as_tensor(rate, dtype=torch.float64, device="cpu")
    if rates.dim() != 1 or not bool(((rates >= 0) & (rates < 1)).all()):
        raise ValueError(
            f"'rate' should hold one number per modality, at least 0 and under 1, but is {rate}."
        )
    return rates


def _log_odds(drive: Tensor, rate: Tensor, at_least_one: bool) -> Tensor:
    """The log odds of missing, (B, M), at intercepts for which the expected rates are right."""
    if not at_least_one or bool((rate == 0).any()):  # one of rate 0 is always kept
        return drive + _intercepts(drive, rate)
    if rate.sum() >= len(rate) - 1:
        raise ValueError(
            f"'rate' should sum to less than {len(rate) - 1} if rows of {len(rate)} modalities "
            f"keep at least one, but sums to {float(rate.sum()):.6g}."
        )
    return drive + _intercepts_of_kept(drive, rate)


def _intercepts(drive: Tensor, rate: Tensor) -> Tensor:
    """Intercepts (M) at which the mean of sigmoid(a + drive) over rows is the rate, bisected."""
    low, high = rate.logit() - drive.amax(dim=0), rate.logit() - drive.amin(dim=0)
    for _ in range(80):
        middle = (low + high) / 2
        short = (drive + middle).sigmoid().mean(dim=0) < rate
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2


def _intercepts_of_kept(drive: Tensor, rate: Tensor) -> Tensor:
    """The same for rows that keep at least one modality.

    What such a row misses is an exponential family in the intercepts, so the derivative of its
    mean is its covariance: Newton's method, with shorter steps as long as they overshoot. Where
    none helps, intercepts are bisected instead, with what rows tell of other modalities held.
    """

    def error_of(intercept: Tensor) -> Tensor:
        return _missing_of_kept(drive + intercept)[0].mean(dim=0) - rate

    intercept = _intercepts(drive, rate)
    error = error_of(intercept)
    for _ in range(100):
        if error.abs().max() < 1e-13:
            break
        _, covariance, log_other = _missing_of_kept(drive + intercept)
        step = torch.linalg.solve_ex(covariance, error)[0]
        for length in 0.5 ** torch.arange(20):
            candidate = intercept - length * step
            if error_of(candidate).norm() < (1 - length / 2) * error.norm():
                break
        else:
            candidate = _intercepts(drive + log_other, rate)
        intercept, error = candidate, error_of(candidate)
    if not error.abs().max() < 1e-10:
        raise ValueError(
            "'slope' should be smaller, or 'rate': no intercepts found that are exact to 1e-10 "
            f"(off by {float(error.abs().max()):.2g})."
        )
    return intercept


def _missing_of_kept(log_odds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (B, M) and row-averaged covariance (M, M) of the missing, given that not all are.

    Also returns the log probabilities that some other modality is observed, (B, M): by so much
    the log odds of missing are larger in rows that keep a modality.
    """
    log_p = logsigmoid(log_odds)
    log_all = log_p.sum(dim=1, keepdim=True)  # log p(all are missing)
    earlier, later = _exclusive_sum(log_p), _exclusive_sum(log_p.flip(1)).flip(1)
    some, some_other = -log_all.expm1(), -(earlier + later).expm1()
    observed = (-log_odds).sigmoid() / some
    missing = log_odds.sigmoid() * some_other / some  # 1 - observed would cancel
    covariance = -(log_all.exp() * observed).t() @ observed / len(log_odds)
    variance = (observed * missing).mean(dim=0)
    return missing, covariance.diagonal_scatter(variance), some_other.log()


def _draw(log_odds: Tensor, at_least_one: bool, generator: Generator | None) -> Tensor:
    """Draws what is observed, (B, M), modality by modality, from the log odds of missing."""
    uniform = torch.rand(log_odds.shape, generator=generator, dtype=torch.float64)
    if not at_least_one:
        return uniform >= log_odds.sigmoid()

    # while nothing is observed yet, a modality may only be missing if a later one can be observed
    p, log_p = log_odds.sigmoid(), logsigmoid(log_odds)
    later = _exclusive_sum(log_p.flip(1)).flip(
        1
    )  # log probability that all later ones are missing
    p_of_empty = p * later.expm1() / (log_p + later).expm1()
    observed = torch.zeros_like(log_odds, dtype=torch.bool)
    some = torch.zeros(len(log_odds), dtype=torch.bool)
    for m in range(log_odds.shape[1]):
        observed[:, m] = uniform[:, m] >= torch.where(some, p[:, m], p_of_empty[:, m])
        some |= observed[:, m]
    return observed


def _exclusive_sum(x: Tensor) -> Tensor:
    """The sum of all columns to the left of each."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1).cumsum(dim=1)

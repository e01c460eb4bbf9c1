r"""Kernels compared with the float64 reference; a GPU that computes something else is not used."""

from __future__ import annotations

__all__ = ["Case", "Row", "compare", "compare_norm", "failure"]

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from . import _cells, _cuda, _launch, _reference, jit
from ._arguments import Inputs, Outputs, gather
from ._cache import cached, log
from ._cells import Activation


class Case(NamedTuple):
    """The inputs of a comparison."""

    experts: int = 4
    subsets: int = 1
    event: tuple[int, ...] = (4, 8, 8)
    prior: bool = False
    noise: bool = False
    """Whether noise is given; else the kernel draws it."""
    clamp: float = 0.0
    power: int = 2
    common: bool = False
    """Whether experts have noise in common."""
    pairs: bool = False
    """Whether subsets are those of pairs, in any order, without the prior but for full ones."""
    sharpen: float = 0.0
    """How much sharper one expert is than the others, in log standard deviation."""


_CASES = {
    "4 experts, prior, noise": Case(prior=True, noise=True),
    "4 experts, standard prior": Case(noise=True),
    "seed": Case(prior=True),
    "15 subsets": Case(prior=True, subsets=15, noise=True),
    "8 experts, clamp, power 1": Case(experts=8, prior=True, clamp=3.0, power=1),
    "common noise": Case(prior=True, common=True, subsets=3, noise=True),
    "pairs": Case(prior=True, subsets=40, pairs=True),
    "odd size": Case(prior=True, event=(3, 5, 7), noise=True),
    "sharp experts": Case(prior=True, subsets=3, sharpen=40.0, noise=True),
    "12 experts": Case(experts=12, noise=True),
}

_TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Row(NamedTuple):
    """The largest error of one case, relative to the largest number it is compared with."""

    case: str
    dtype: torch.dtype
    error: float
    tolerance: float


def compare(device: torch.device | str, on: _launch.Launcher | None = None) -> Iterator[Row]:
    """Compares outputs and gradients with the float64 reference, case by case.

    The launcher of the device runs the kernels if `on` is None.
    """
    for name, case in _CASES.items():
        for dtype, tolerance in _TOLERANCES.items():
            yield Row(name, dtype, _error(_draw(case, torch.device(device), dtype), on), tolerance)


def failure(device: torch.device, program: jit.Program = jit.POE) -> str | None:
    """Says why the kernels are not to be used on a GPU, None if they are.

    On the first use of an architecture they are compared with PyTorch. The cache folder keeps
    whether they agree. A comparison that fails, because the GPU is full or busy for instance, says
    nothing about them: it is not kept, and the next process compares again. This one goes on with
    PyTorch, so that all its samples come from one backend.
    """
    driver = _cuda.launcher().driver
    architecture = driver.architecture(device)
    key = architecture, program.name
    if key not in verdicts:
        _cuda.check_not_capturing(driver)
        verdicts[key] = _verify(device, architecture, program)
    return verdicts[key]


verdicts: dict[tuple[int, str], str | None] = {}
"""Why not, for each architecture and program that were compared."""


def _verify(device: torch.device, architecture: int, program: jit.Program) -> str | None:
    others = (str(architecture), torch.__version__, str(_TOLERANCES))
    identity = "\0".join([*jit.sources(program).values(), *others])
    rows_of = compare if program == jit.POE else compare_norm

    def check() -> bytes:
        # a thread of its own has no inference mode, autocast, default device or fake tensors
        with ThreadPoolExecutor(1) as pool:
            rows = pool.submit(lambda: [*rows_of(device)]).result()
        worst = max(row.error / row.tolerance for row in rows)
        return b"right" if worst <= 1 else f"differ by {worst:.3g} times what they may".encode()

    try:
        name = f"{program.name}-comparison-sm{architecture}"
        verdict = cached(name, ".txt", identity, check).decode()
        if verdict == "right":
            return None
        reason = f"its kernels, compared with PyTorch on this GPU, {verdict}"
    except (RuntimeError, OSError, ImportError) as error:
        reason = (
            f"its kernels could not be compared with PyTorch on this GPU ({error}); "
            "the next process tries again"
        )
    log.error("No fused kernels on this GPU: %s. PyTorch runs instead.", reason)
    return reason


def compare_norm(device: torch.device | str, on: _cuda.Launcher | None = None) -> Iterator[Row]:
    """Compares normalisation and its gradient with PyTorch in float64, layout by layout."""
    for activation in (Activation(True, 1.0), Activation(False, 0.2)):
        for name, format in _FORMATS.items():
            for dtype, tolerance in _TOLERANCES.items():
                x, gradient = (
                    _images(k).to(device, dtype).contiguous(memory_format=format) for k in (0, 1)
                )
                y, statistics = _cells.norm_forward(x, None, activation, on)
                into = _cells.norm_backward(gradient, x, statistics, activation, on)
                leaf = x.double().requires_grad_()
                exact = functional.group_norm(leaf, leaf.shape[1], eps=_cells.EPSILON)
                exact = (
                    functional.silu(exact)
                    if activation.silu
                    else functional.leaky_relu(exact, 0.2)
                )
                exact_into = torch.autograd.grad(exact, leaf, gradient.double())[0]
                error = max(_relative(y, exact.detach()), _relative(into, exact_into))
                yield Row(f"normalisation, {name}", dtype, error, tolerance)


_FORMATS = {"usual layout": torch.contiguous_format, "channels_last": torch.channels_last}


def _images(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 20, 30, 31, generator=generator, dtype=torch.float32)


def _draw(case: Case, device: torch.device, dtype: torch.dtype) -> Inputs:
    generator, single = torch.Generator().manual_seed(20), torch.float32  # be the default another

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=single)).to(device, dtype)

    rows, event = 5, case.event
    given = torch.rand(case.subsets, rows, case.experts, generator=generator, dtype=single) < 0.6
    given[0, 0] = False
    of_pairs = torch.arange(rows, device=device).repeat(case.subsets) if case.pairs else None
    log_scale = [draw(rows, *event) for _ in range(case.experts)]
    log_scale[0] = log_scale[0] - case.sharpen
    missing = ~given.any(dim=0).to(device)
    loc = [draw(rows, *event) for _ in range(case.experts)]
    for m in range(case.experts):
        loc[m][missing[:, m]] = torch.nan
    gamma = torch.linspace(0, 2, event[0], device=device, dtype=single)
    return Inputs(
        loc,
        log_scale,
        (given.flatten(0, 1) if case.pairs else given).to(device),
        rows=of_pairs,
        prior_loc=draw(rows, *event) if case.prior else None,
        prior_log_scale=draw(rows, *event, scale=0.5) if case.prior else None,
        noise=draw(case.subsets, rows, *event) if case.noise else None,
        seed=None if case.noise else torch.tensor(1234567890123, device=device),
        common_noise=gamma if case.common else None,
        power=case.power,
        clamp=case.clamp,
        temperature=0.7,
        prior_in="full" if case.pairs else "always",
    )


def _error(inputs: Inputs, on: _launch.Launcher | None) -> float:
    double = [t.double() if t is not None and t.is_floating_point() else t for t in inputs.tensors]
    exact = gather(double, inputs.numbers)
    needed = [t is not None and t.is_floating_point() and t is not exact.noise for t in double]
    for leaf, need in zip(double, needed, strict=True):
        if leaf is not None:
            leaf.requires_grad_(need)

    outputs = _launch.forward(inputs, (True, True, True, True), on)
    weights = [_weights(t) for t in outputs if t is not None]
    gradients = _launch.backward(inputs, Outputs(*weights), needed, on)
    expected = _reference.forward(exact)
    double_weights = Outputs(*(t.double() for t in weights))
    expected = (*expected, *_reference.gradients(exact, double_weights, needed))
    found = zip((*outputs, *gradients), expected, strict=True)
    return max(_relative(a, b) for a, b in found if a is not None and b is not None)


def _weights(output: Tensor) -> Tensor:
    """Returns a gradient for an output: numbers without a pattern."""
    numbers = torch.arange(output.numel(), device=output.device)
    return torch.cos(numbers).view_as(output).to(output.dtype)


def _relative(value: Tensor, exact: Tensor) -> float:
    if not bool(value.isfinite().all()):
        return float("inf")
    scale = exact.abs().max().clamp(min=1)
    return ((value.double() - exact).abs().max() / scale).item()

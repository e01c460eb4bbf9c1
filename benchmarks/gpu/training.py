"""Training runs that are cut and resumed: they should end with the bits of one that was not."""

from __future__ import annotations

__all__ = ["rows"]

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.bench_mmhvae import NAMES
from mmpoe.likelihoods import Normal
from mmpoe.models import MVAE, MultimodalVAE, published_mmhvae
from mmpoe.nn import MLP
from mmpoe.objectives import mixture_elbo
from mmpoe.training import Run, fit

from .device import Device, Row, attempted
from .published import TINY


def rows(device: Device) -> Iterator[Row]:
    """Yields a check for each model and precision."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    steps = device.pick(40, 4)
    models = {"vectors": of_vectors, "images": of_images}
    cases = [*product(("32-true", "bf16-mixed"), models)]
    for precision, name in device.pick(cases, [cases[0], cases[3]]):
        what = f"{name}, {precision}: cut and resumed, the same bits"
        found = partial(compare, device, models[name], precision, steps)
        yield attempted({"check": what}, found)


def compare(device: Device, make: Callable[[], MultimodalVAE], precision: Any, steps: int) -> Row:  # noqa: ANN401
    """Trains once without and once with a cut, and compares the weights."""
    whole, bounds = train(device, make, precision, steps, None)
    with tempfile.TemporaryDirectory() as folder:
        _, first = train(device, make, precision, steps, Run(folder), cut=steps // 2)
        resumed, second = train(device, make, precision, steps, Run(folder, resume=True))
    same = all(torch.equal(whole[name], resumed[name]) for name in whole)
    quarter = steps // 4
    learned = device.dry or sum(bounds[-quarter:]) > sum(bounds[:quarter])  # few steps are noise
    return {
        "holds": same and learned and len(first) == steps // 2,
        "steps": f"{len(first)} and {len(second) - len(first)}",
        "first bound": round(bounds[0], 2),
        "last bound": round(bounds[-1], 2),
        "last, resumed": round(second[-1], 2),
    }


def train(
    device: Device,
    make: Callable[[], MultimodalVAE],
    precision: Any,  # noqa: ANN401
    steps: int,
    run: Run | None,
    cut: int = 0,
) -> tuple[dict[str, Tensor], list[float]]:
    """Returns the weights and the bounds of a run; SIGTERM cuts it after so many steps."""
    torch.manual_seed(0)
    model = make()
    calls = 0

    def objective(model: MultimodalVAE, batch: Any, done: float) -> Tensor:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == cut:
            signal.raise_signal(signal.SIGTERM)
        x, observed = batch
        return mixture_elbo(model, x, observed, family="full")

    batches = DataLoader(samples(model), batch_size=8, shuffle=True, collate_fn=model.collate)
    history = fit(
        model,
        batches,
        objective,
        steps=steps,
        precision=precision,
        accelerator=device.type,
        run=run,
        progress=False,
    )
    return model.state_dict(), history.bounds


def of_vectors() -> MVAE:
    """Returns a small model of four vectors."""
    encoders = {m: MLP(6, 8) for m in NAMES}
    return MVAE(encoders, {m: Normal(MLP(4, 6), learn_scale=True) for m in NAMES})


def of_images() -> MultimodalVAE:
    """Returns the published network, small."""
    return published_mmhvae(NAMES, **TINY)


def samples(model: MultimodalVAE) -> Any:  # noqa: ANN401
    """Returns samples for a model, every third of which lacks a modality."""
    shape = (6,) if isinstance(model, MVAE) else (1, TINY["size"], TINY["size"])
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(24):
        common = torch.rand(shape, generator=generator)
        names = NAMES if i % 3 else NAMES[1:]
        found.append(
            {m: (common + 0.1 * torch.rand(shape, generator=generator)) / 2 for m in names}
        )
    return found

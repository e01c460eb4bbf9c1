"""Several processes, as ``torchrun`` starts them, or one."""

from __future__ import annotations

__all__ = ["gather", "make_fabric", "mean"]

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mmpoe.extras import needs

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def make_fabric(precision: Precision, accelerator: str) -> Fabric:
    """Returns what runs a training: on one device, or on one for each process of ``torchrun``.

    Arguments:
        precision: ``"32-true"``, ``"bf16-mixed"``, or, on a GPU, ``"16-mixed"``.
        accelerator: ``"cpu"``, ``"cuda"``, or ``"auto"``, a GPU if there is one.

    Raises:
        ValueError: If `precision` is unknown, or it or `accelerator` need a GPU that is not there.
    """
    with needs("train"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

    if precision not in PRECISIONS:
        raise ValueError(
            f"'precision' should be one of {', '.join(PRECISIONS)}, but is {precision!r}."
        )
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("'accelerator' should be 'cpu' or 'auto' without a GPU, but is 'cuda'.")
    if precision == "16-mixed" and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise ValueError(
            "'precision' should be '32-true' or 'bf16-mixed' on a CPU, but is '16-mixed'."
        )
    world = local = 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    # a process whose batches lack a modality has no gradient for its networks
    strategy = DDPStrategy(find_unused_parameters=True) if world > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


def mean(fabric: Fabric, values: list[float]) -> list[float]:
    """Returns the means of some numbers over all processes."""
    if fabric.world_size == 1:
        return values
    mine = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    everyone = fabric.all_reduce(mine, reduce_op="mean")
    assert isinstance(everyone, Tensor)
    return everyone.tolist()


def gather(fabric: Fabric, state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the states of all processes, whose tensors have the same names and shapes."""
    if fabric.world_size == 1:
        return [dict(state)]
    everyone: list[dict[str, Tensor]] = [{} for _ in range(fabric.world_size)]
    for name, value in state.items():
        mine = value.to(fabric.device)
        found = [torch.empty_like(mine) for _ in everyone]
        torch.distributed.all_gather(found, mine)
        for process, theirs in zip(everyone, found, strict=True):
            process[name] = theirs.cpu()
    return everyone

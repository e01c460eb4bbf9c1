"""Training on Lightning Fabric: a loop, and checkpoints to go on from (extra ``mmpoe[train]``)."""

__all__ = [
    "Adversary",
    "CheckpointError",
    "Checkpoints",
    "CollapseWarning",
    "DeviceMemoryError",
    "History",
    "NonFiniteError",
    "Run",
    "WorkerError",
    "fit",
    "load_checkpoint",
    "load_state",
    "load_weights",
    "save_checkpoint",
    "save_state",
    "shard",
]

from .batches import shard
from .checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_state,
    load_weights,
    save_checkpoint,
    save_state,
)
from .faults import DeviceMemoryError, WorkerError
from .folder import Checkpoints
from .log import CollapseWarning
from .loop import fit
from .run import History, Run
from .steps import Adversary, NonFiniteError

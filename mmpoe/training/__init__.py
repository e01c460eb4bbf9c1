"""A training loop on Lightning Fabric, with checkpoints and a log (extra ``mmpoe[train]``)."""

__all__ = [
    "Adversary",
    "CheckpointError",
    "Checkpoints",
    "CollapseWarning",
    "Cosine",
    "DeviceMemoryError",
    "History",
    "NonFiniteError",
    "ObjectiveWarning",
    "Optimizer",
    "ProcessesWarning",
    "Run",
    "WorkerError",
    "fit",
    "load_checkpoint",
    "load_state",
    "load_weights",
    "lock",
    "save_checkpoint",
    "save_state",
    "scratch",
    "shard",
    "sweep",
    "write_file",
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
from .files import lock, scratch, sweep, write_file
from .folder import Checkpoints
from .log import CollapseWarning, ObjectiveWarning
from .loop import fit
from .processes import DeviceMemoryError, ProcessesWarning, WorkerError
from .run import Adversary, Cosine, History, Optimizer, Run
from .steps import NonFiniteError

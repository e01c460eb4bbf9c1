"""A short training loop on Lightning Fabric, and checkpoints (extra ``mmpoe[train]``)."""

__all__ = ["CheckpointError", "History", "fit", "load_checkpoint", "save_checkpoint"]

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .loop import History, fit

"""Images that a trained system synthesises: ultrasound from MR, and MR from ultrasound."""

from __future__ import annotations

__all__ = ["synthesiser", "synthetic"]

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.synthesis.systems import System
from examples.medical_mri_us.data import Subject, Volume
from examples.medical_mri_us.downstream import Synthesiser
from examples.medical_mri_us.modalities import MODALITIES

BACKGROUND = -1.0


def synthesiser(system: System) -> Synthesiser:
    """Returns a system as the tasks of the example use it."""
    return Synthesiser([m for m in MODALITIES if m in system.handled], partial(synthetic, system))


def synthetic(system: System, subject: Subject, given: Sequence[str], target: str) -> Volume:
    """Returns a modality as a system makes it of others, -1 outside the field of view.

    Arguments:
        system: The system, trained.
        subject: The patient.
        given: What to make it of.
        target: The modality.
    """
    device = next(system.network.parameters()).device
    x = {m: torch.from_numpy(subject.images[m])[:, None].to(device) for m in given}
    mask = torch.tensor([[m in given for m in MODALITIES]]).expand(len(subject.fov), -1)
    with torch.no_grad():
        made = system.synthesise(x, mask.to(device), [target])[target][:, 0].cpu().numpy()
    return np.where(subject.fov, made.clip(-1, 1), BACKGROUND).astype(np.float32)

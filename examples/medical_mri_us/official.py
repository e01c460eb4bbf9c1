"""The published MMHVAE weights: read, written, and run as the published code runs them.

Tensors are matched by their published names. What the published network hard-codes beyond its
weights, a background of -1, is :func:`fill_background` here.
"""

from __future__ import annotations

__all__ = [
    "as_exact_product",
    "convert",
    "fill_background",
    "load_checkpoint",
    "save_checkpoint",
]

import copy
import io
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmpoe
from mmpoe.gaussian import soft_clamp
from mmpoe.hierarchy import LatentGroup
from mmpoe.models import MMHVAE, is_out_of_memory, published_mmhvae
from mmpoe.posteriors import PoE
from mmpoe.training import CheckpointError, write_file
from mmpoe.training import save_checkpoint as save_folder

from .names import check_modalities
from .official_names import architecture_of, published_state, rename

SHOWN = 5
"""How many names an error shows."""


def load_checkpoint(path: str | os.PathLike[str]) -> MMHVAE:
    """Reads published weights, ``CP_main_<epoch>.pth``, of the MMHVAE or the MHVAE of 2023.

    Modalities, widths, depth, number of blocks and the (square) size of the images follow from the
    names and shapes of the tensors, and the precision from their dtype. The model fuses by the
    rule that the weights were trained with, ``power=1``, and is in evaluation mode.

    Arguments:
        path: The file. It is read as tensors alone: code inside is never run.

    Raises:
        CheckpointError: If it holds anything else, tensors are missing, unexpected or of another
            shape, or weights are not finite; the message names them.
        OSError: If it cannot be read.
    """
    return _load(path)[0]


def convert(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> MMHVAE:
    """Writes published weights as ``model.safetensors`` and ``model.json``, and returns the model.

    :func:`examples.medical_mri_us.train.load_model` reads models of the example's modalities.

    Arguments:
        path: The published file.
        folder: The folder to write, made if need be.

    Raises:
        CheckpointError: As :func:`load_checkpoint`.
        OSError: If the file cannot be read, or the folder not be written to.
    """
    model, architecture = _load(path)
    description = {
        "model": "published_mmhvae",
        "modalities": model.modalities,
        "architecture": architecture,
        "mmpoe": mmpoe.__version__,
        "torch": torch.__version__,
    }
    save_folder(folder, model.state_dict(), description)
    return model


def save_checkpoint(model: MMHVAE, path: str | os.PathLike[str]) -> None:
    """Writes weights under their published names: the inverse of :func:`load_checkpoint`.

    The file is replaced at once: a process that is stopped leaves the older one, whole.

    It holds weights alone; the published code fuses them by ``power=1``, whatever the model does.

    Arguments:
        model: A model that :func:`mmpoe.models.published_mmhvae` or :func:`load_checkpoint` built.
        path: The file to write.

    Raises:
        ValueError: If the model is of another architecture, or its images are not square: the
            tensors could not say so.
        OSError: If the file cannot be written.
    """
    state = published_state(model)
    parts: Any = model
    sides = tuple(parts.groups[0].merge.network[1].unflattened_size[1:])
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(
            "'model' should be one for square images, "
            f"but its coarsest features have sides of {sides}."
        )
    content = io.BytesIO()
    torch.save(state, content)
    write_file(Path(path), content.getvalue())


def fill_background(images: Tensor, mask: Tensor) -> Tensor:
    """Returns images that are -1, the background, outside a mask.

    The published network does this to each of its outputs. Its mask is where the first modality
    that it is given is above -1, ``x[first] > -1``.

    Arguments:
        images: The images, with shape :math:`(*, 1, H, W)`.
        mask: Where to keep them, boolean, broadcastable to that shape.

    Raises:
        ValueError: If the mask is not boolean.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"'mask' should be boolean, but has dtype {mask.dtype}.")
    return torch.where(mask, images, -1.0)


def as_exact_product(model: MMHVAE) -> MMHVAE:
    r"""Rewrites a model so that the product of Gaussians fuses one input as the published rule.

    The published rule adds inverse standard deviations, :math:`1/\sigma = 1/\sigma_p + \sum_m
    1/\sigma_m`. For one input it is a product of Gaussians (``power=2``) with the prior, if the
    expert is

    .. math::
        \frac{1}{\sigma'^2} = \frac{1}{\sigma_m^2} + \frac{2}{\sigma_p \sigma_m}, \qquad
        \mu' = \mu_m + \frac{\mu_p - \mu_m}{2 + \sigma_p / \sigma_m}

    For several inputs no such experts exist, and the rewritten model is another model: it counts
    the first term and the prior's share of the second, but not those between experts.

    Arguments:
        model: A model with ``power=1``, as of :func:`load_checkpoint`.

    Returns:
        A copy of the model with these experts and ``power=2``.

    Raises:
        ValueError: If the model fuses by another rule.
    """
    rewritten = copy.deepcopy(model)
    for level, group in enumerate(rewritten.groups):
        assert isinstance(group, LatentGroup)
        rule = group.posterior
        if not isinstance(rule, PoE) or rule.power != 1 or rule.clamp is None:
            raise ValueError(
                "'model' should fuse by a soft-clamped product of power 1, but group "
                f"{level} does not."
            )
        if group.prior is not None:
            group.prior = SoftClamp(group.prior, rule.clamp)
        group.expert = SingleInput(SoftClamp(group.expert, rule.clamp), group.prior)
        group.posterior = PoE(power=2)
    return rewritten


class SoftClamp(nn.Module):
    """A network whose outputs are softly clamped.

    Arguments:
        network: The network.
        limit: The limit of the clamp.
    """

    def __init__(self, network: nn.Module, limit: float) -> None:
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output, between minus and plus the limit."""
        return soft_clamp(self.network(x), self.limit)


class SingleInput(nn.Module):
    """An expert that makes a product of Gaussians the published rule, see `as_exact_product`.

    Arguments:
        expert: The expert of the published rule.
        prior: The prior, which sees the first channels of what the expert sees; None is the
            standard normal.
    """

    def __init__(self, expert: nn.Module, prior: nn.Module | None) -> None:
        super().__init__()
        self.expert, self.prior = expert, prior

    def forward(self, features: Tensor) -> Tensor:
        """Returns the mean and log standard deviation of the expert, stacked."""
        loc, log_scale = self.expert(features).chunk(2, dim=1)
        prior_loc, prior_log_scale = torch.zeros_like(loc), torch.zeros_like(loc)
        if self.prior is not None:
            state = features.chunk(2, dim=1)[0]  # as many channels as features
            prior_loc, prior_log_scale = self.prior(state).chunk(2, dim=1)
        share = 1 / (2 + torch.exp(prior_log_scale - log_scale))
        log_precision = -log_scale + torch.logaddexp(-log_scale, math.log(2) - prior_log_scale)
        return torch.cat([loc + share * (prior_loc - loc), -log_precision / 2], dim=1)


def _load(path: str | os.PathLike[str]) -> tuple[MMHVAE, dict[str, Any]]:
    """The model, and the arguments that build it but for its modalities."""
    state = rename(_read(path))
    try:
        modalities, architecture = architecture_of(state)
        check_modalities(modalities)
        model = published_mmhvae(modalities, **architecture)
    except Exception as error:  # of any type, for shapes that no model has
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path} should hold published MMHVAE weights: {error}") from error
    model.to(next(iter(state.values())).dtype)

    wanted = published_state(model)
    shared = [name for name in wanted if name in state]
    faults = {
        "lacks": [name for name in wanted if name not in state],
        "has the unexpected": [name for name in state if name not in wanted],
        "has, of another shape,": [
            f"{name} ({tuple(state[name].shape)}, not {tuple(wanted[name].shape)})"
            for name in shared
            if state[name].shape != wanted[name].shape
        ],
    }
    if any(faults.values()):
        said = "; ".join(f"{verb} {_list(names)}" for verb, names in faults.items() if names)
        raise CheckpointError(f"{path} should hold published MMHVAE weights, but {said}.")

    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])
    return model.eval(), architecture


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, by name."""
    with Path(path).open("rb") as file:
        try:
            if zipfile.is_zipfile(file) and any(
                entry.compress_type != zipfile.ZIP_STORED
                for entry in zipfile.ZipFile(file).infolist()
            ):
                raise ValueError(
                    "compressed, which PyTorch never does: it may inflate without end"
                )
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, for files of other kinds
            if is_out_of_memory(error):
                raise
            # not the words of PyTorch, which advise to run what code a file holds
            raise CheckpointError(
                f"{path} should be a file of tensors that PyTorch saved, but cannot be read as "
                f"one ({type(error).__name__}): it is another file, incomplete, or holds more "
                "than tensors, which is not loaded since it may be code; download it again."
            ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} should hold tensors by name, and nothing else.")
    kinds = sorted({str(value.dtype) for value in state.values()})
    if len(kinds) != 1 or not next(iter(state.values())).is_floating_point():
        raise CheckpointError(
            f"{path} should hold tensors of one floating-point dtype, "
            f"but holds {', '.join(kinds) or 'none'}."
        )
    for name, value in state.items():
        _check_tensor(name, value, path)
    return state


def _check_tensor(name: str, value: Tensor, path: str | os.PathLike[str]) -> None:
    """Raises a CheckpointError unless a tensor has a finite number of its own in each place."""
    kind = None
    if value.is_meta:
        kind = "one without values"
    elif value.layout != torch.strided:
        kind = f"sparse ({value.layout})"
    elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
        kind = "one that repeats its values"  # and claims more than the file holds
    if kind is not None:
        raise CheckpointError(f"{path} should hold dense tensors, but {name!r} is {kind}.")
    if not value.isfinite().all():
        number = int((~value.isfinite()).sum())
        raise CheckpointError(
            f"{path} should hold finite numbers, but {number} of {value.numel()} in {name!r} "
            "are NaN or infinite."
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

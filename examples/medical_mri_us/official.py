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
    "published_state",
    "save_checkpoint",
]

import copy
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmpoe
from mmpoe.gaussian import soft_clamp
from mmpoe.hierarchy import LatentGroup
from mmpoe.models import MMHVAE, published_mmhvae
from mmpoe.nn import InvertedResidualCell, ProjectionCell, SqueezeExcite, UpsampleConv
from mmpoe.nn.cells import ReflectingBlock
from mmpoe.posteriors import PoE
from mmpoe.training import CheckpointError
from mmpoe.training import save_checkpoint as save_folder

SHOWN = 5
"""How many names an error shows."""
OLD_NAMES = {"weight_g": "original0", "weight_v": "original1"}
"""How older versions of PyTorch name what weight normalisation learns."""


def load_checkpoint(path: str | os.PathLike[str]) -> MMHVAE:
    """Reads published weights, ``CP_main_<epoch>.pth``, of the MMHVAE or the MHVAE of 2023.

    Modalities, widths, depth, number of blocks and the (square) size of the images follow from the
    names and shapes of the tensors, and the precision from their dtype. The model fuses by the
    rule that the weights were trained with, ``power=1``, and is in evaluation mode.

    Arguments:
        path: The file. It is read as tensors alone: code inside is never run.

    Raises:
        CheckpointError: If it holds anything else, or tensors are missing, unexpected or of
            another shape; the message names them.
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
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def published_state(model: MMHVAE) -> dict[str, Tensor]:
    """Returns the weights by their published names, sharing memory with the model.

    Raises:
        ValueError: If the model is of another architecture.
    """
    try:
        state = {
            f"{name}.{suffix}": tensor
            for name, layer in _layers(model)
            for suffix, tensor in layer.state_dict().items()
        }
    except (AttributeError, IndexError, TypeError):  # there is no such layer
        state = {}
    if len(state) != len(model.state_dict()):
        raise ValueError(
            "'model' should be one that published_mmhvae builds, with residual cells, "
            "but is of another architecture."
        )
    return state


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


def _layers(model: MMHVAE) -> Iterator[tuple[str, nn.Module]]:
    """Each layer that has weights, after its published name."""
    parts: Any = model  # its modules have the types of any module
    names, groups = model.modalities, list(parts.groups)
    steps = [layer for group in groups for layer in group.merge.network]
    yield "bottleneck_down.linear", groups[0].expert[1]
    yield "bottleneck_up.linear", steps[0]

    for m in names:
        stem, pyramid = parts.encoders[m]
        yield f"first_conv.{m}", stem
        for d, cell in enumerate(pyramid.blocks):
            yield from _two_convolutions(f"conv_blocks_context.{m}.{d}", cell.layers)
        for d, convolution in enumerate(pyramid.strides):
            yield f"td.{m}.{d}", convolution

    cells: list[Any] = [s for s in steps if isinstance(s, InvertedResidualCell)]
    for i, cell in enumerate(cells):
        name = f"conv_blocks_localization.{i}"
        yield f"{name}.conv_0", cell.layers[1]
        yield f"{name}.dw_conv_1", cell.layers[4]
        yield from _excitation(f"{name}.se_2", cell.layers[7])
        yield f"{name}.conv_2", cell.layers[8]
    for i, step in enumerate(s for s in steps if isinstance(s, UpsampleConv)):
        yield f"tu.{i}.conv_1", step[1]
    below = [s for s in steps if isinstance(s, ProjectionCell)]  # below the last latent group
    for i, cell in enumerate([group.expert for group in groups[1:]] + below):
        yield from _two_convolutions(f"qz.{i}", cell)
        yield f"qz.{i}.last_conv", cell[7]
    for i, group in enumerate(groups[1:]):
        yield f"pz.{i}", group.prior

    for m in names:
        head, name = list(parts.decoders[m].network), f"final_blocks.{m}"
        for k, block in enumerate(head[:-5]):
            if isinstance(block, ReflectingBlock):
                yield f"{name}.res.{k}.conv_block.1", block.layers[0]
                yield f"{name}.res.{k}.conv_block.5", block.layers[3]
            else:
                yield f"{name}.res.{k}", block
        yield f"{name}.convt2", head[-5]
        yield f"{name}.convt3", head[-2]


def _two_convolutions(name: str, layers: Sequence[Any]) -> Iterator[tuple[str, nn.Module]]:
    yield f"{name}.conv_0", layers[2]
    yield f"{name}.conv_1", layers[5]
    yield from _excitation(f"{name}.se", layers[6])


def _excitation(name: str, excite: SqueezeExcite) -> Iterator[tuple[str, nn.Module]]:
    yield f"{name}.se.0", excite.layers[0]
    yield f"{name}.se.2", excite.layers[2]


def _load(path: str | os.PathLike[str]) -> tuple[MMHVAE, dict[str, Any]]:
    """The model, and the arguments that build it but for its modalities."""
    state = _rename(_read(path))
    try:
        modalities, architecture = _infer(state)
        model = published_mmhvae(modalities, **architecture)
    except ValueError as error:
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
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, for files of other kinds
            reason = str(error).split("\n")[0]
            raise CheckpointError(
                f"{path} should be a file of tensors that PyTorch saved, but cannot be read as "
                f"one: {type(error).__name__}: {reason}"
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
    return state


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the tensors of older files the names of newer ones."""
    modalities = _modalities(state)
    renamed = {}
    for old, tensor in state.items():
        name, _, suffix = old.rpartition(".")
        if suffix in OLD_NAMES:
            suffix = f"parametrizations.weight.{OLD_NAMES[suffix]}"
        head = re.match(r"final_blocks\.(\d+)\.(.*)", name)
        if head and head[1] not in modalities and int(head[1]) < len(modalities):
            name = f"final_blocks.{modalities[int(head[1])]}.{head[2]}"
        renamed[f"{name}.{suffix}"] = tensor
    return renamed


def _modalities(state: dict[str, Tensor]) -> list[str]:
    found = (re.fullmatch(r"first_conv\.([^.]+)\.weight", name) for name in state)
    return [match[1] for match in found if match]


def _infer(state: dict[str, Tensor]) -> tuple[list[str], dict[str, Any]]:
    """The modalities, and the other arguments of `published_mmhvae`, from names and shapes."""

    def length(name: str, axis: int) -> int:
        if name not in state:
            raise ValueError(f"it lacks {name}.")
        if state[name].dim() <= axis:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}.")
        return state[name].shape[axis]

    def count(pattern: str) -> int:
        found = (re.fullmatch(pattern, name) for name in state)
        return len({int(match[1]) for match in found if match})

    modalities = _modalities(state)
    if not modalities:
        raise ValueError("it lacks first_conv.<modality>.weight.")
    first = modalities[0]
    depth = 1 + count(r"td\.[^.]+\.(\d+)\.weight")
    width = length(f"first_conv.{first}.weight", 0)
    max_width = length("bottleneck_up.linear.parametrizations.weight.original1", 1) // 2
    features = length("bottleneck_down.linear.parametrizations.weight.original1", 1)
    channels = max(1, min(width * 2 ** (depth - 1), max_width))
    side = math.isqrt(features // channels)  # of the coarsest features
    if channels * side**2 != features:
        raise ValueError(
            f"bottleneck_down takes {features} features, which are no square of {channels} "
            "channels."
        )
    return modalities, {
        "size": side * 2 ** (depth - 1),
        "levels": depth if count(r"pz\.(\d+)\..*") else 1,
        "depth": depth,
        "width": width,
        "max_width": max_width,
        "blocks": count(r"final_blocks\.[^.]+\.res\.(\d+)\.conv_block\.1\.weight"),
        "head_width": length(f"final_blocks.{first}.convt3.weight", 1),
        "power": 1,
    }


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

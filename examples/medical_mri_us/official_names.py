"""The names that tensors have in the published MMHVAE files, and what follows from them."""

from __future__ import annotations

__all__ = ["architecture_of", "published_state", "rename"]

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from mmpoe.models import MMHVAE
from mmpoe.nn import InvertedResidualCell, ProjectionCell, SqueezeExcite, UpsampleConv

OLD_NAMES = {"weight_g": "original0", "weight_v": "original1"}
"""How older versions of PyTorch name what weight normalisation learns."""


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


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
        renamed[f"{name}.{suffix}" if name else suffix] = tensor
    return renamed


def _modalities(state: dict[str, Tensor]) -> list[str]:
    found = (re.fullmatch(r"first_conv\.([^.]+)\.weight", name) for name in state)
    return [match[1] for match in found if match]


def architecture_of(state: dict[str, Tensor]) -> tuple[list[str], dict[str, Any]]:
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
    # experts see the state and the features of a modality; without latents, there is the state
    experts = (v.shape for n, v in state.items() if re.fullmatch(r"qz\.\d+\.conv_0\.weight", n))
    return modalities, {
        "size": side * 2 ** (depth - 1),
        "levels": 1 + sum(len(v) > 1 and v[1] == 2 * v[0] for v in experts),
        "depth": depth,
        "width": width,
        "max_width": max_width,
        "blocks": count(r"final_blocks\.[^.]+\.res\.(\d+)\.conv_block\.1\.weight"),
        "head_width": length(f"final_blocks.{first}.convt3.weight", 1),
        "power": 1,
    }


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
            if isinstance(block, nn.Conv1d | nn.Conv2d | nn.Conv3d):  # fits the channels
                yield f"{name}.res.{k}", block
            else:
                yield f"{name}.res.{k}.conv_block.1", block.layers[0]
                yield f"{name}.res.{k}.conv_block.5", block.layers[3]
        yield f"{name}.convt2", head[-5]
        yield f"{name}.convt3", head[-2]


def _two_convolutions(name: str, layers: Sequence[Any]) -> Iterator[tuple[str, nn.Module]]:
    yield f"{name}.conv_0", layers[2]
    yield f"{name}.conv_1", layers[5]
    yield from _excitation(f"{name}.se", layers[6])


def _excitation(name: str, excite: SqueezeExcite) -> Iterator[tuple[str, nn.Module]]:
    yield f"{name}.se.0", excite.layers[0]
    yield f"{name}.se.2", excite.layers[2]

"""The models of the example: described in a few numbers, built, saved, and read again."""

from __future__ import annotations

__all__ = [
    "DEFAULT",
    "MOST_SLICES",
    "ImageModel",
    "Network",
    "PublishedModel",
    "add_spread",
    "architecture_of",
    "build_model",
    "describe",
    "is_calibrated",
    "load_model",
    "model_folder",
]

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mmpoe.imputation import Spread, add_matched_experts
from mmpoe.missing import Batch
from mmpoe.models import MMHVAE, image_mmhvae, is_out_of_memory, published_mmhvae
from mmpoe.nn import evaluation
from mmpoe.training import CheckpointError, load_checkpoint, load_weights

from .checks import check_integer, check_number
from .covariates import NAME, Covariates, condition, widen
from .data.geometry import SPACINGS
from .modalities import MODALITIES
from .names import check_modalities


@dataclass(frozen=True)
class ImageModel:
    """A small MMHVAE that folds pixels into patches: `mmpoe.models.image_mmhvae`."""

    name: Literal["image_mmhvae"] = "image_mmhvae"
    """The name of its builder."""
    patch: int = 2
    """The side of the patches, in pixels."""
    widths: tuple[int, ...] = (96, 64, 32)
    """The number of channels of each level, coarse to fine."""
    latents: tuple[int, ...] = (16, 16, 16)
    """The number of latent channels of each level, coarse to fine."""
    scale: float = 0.12
    """The Laplace scale that training starts from; images are in [-1, 1]."""
    clamp: float = 5.0
    """The limit of the soft clamp on the parameters of experts and priors."""


@dataclass(frozen=True)
class PublishedModel:
    """The network of the published MMHVAE and its variants: `mmpoe.models.published_mmhvae`."""

    name: Literal["published_mmhvae"] = "published_mmhvae"
    """The name of its builder."""
    levels: int | None = None
    """The number of latent groups; as many as there are resolutions if none."""
    depth: int | None = None
    """The number of resolutions; 7 if none, or fewer if images cannot be halved as often."""
    width: int = 16
    """The number of channels of the finest features."""
    max_width: int = 128
    """The largest number of channels of features."""
    blocks: int = 6
    """The number of residual blocks of an image head."""
    head_width: int = 8
    """The number of channels of an image head."""
    cell: Literal["residual", "inverted"] = "residual"
    """The cells of the encoders."""
    power: int = 2
    """2 for the product of Gaussians, 1 for the rule of the published code."""
    scale: float = 2e-3
    """The fixed scale of the Laplace likelihood; images are in [-1, 1]."""


Network = ImageModel | PublishedModel

BUILDERS = {"image_mmhvae": image_mmhvae, "published_mmhvae": published_mmhvae}
"""The builders of the models that are saved, by name."""

LARGEST_SIZE, LARGEST, MOST_LEVELS = 8192, 2048, 32
"""The largest height and width of slices, number of channels, and number of levels of a model that
is read: an edited number beyond them would take all memory before anything is compared."""

MOST_SLICES = 31
"""The largest number of slices that an encoder sees at once."""

AXES = frozenset(
    "".join(codes)
    for order in itertools.permutations(("LR", "AP", "IS"))
    for codes in itertools.product(*order)
)
"""The axes of voxels that there are, as of `data.axis_codes`."""

DEFAULT = ImageModel()
"""The model of the demo."""


def build_model(
    size: int,
    modalities: Sequence[str] = MODALITIES,
    network: Network = DEFAULT,
    covariates: Covariates | None = None,
    slices: int = 1,
) -> MMHVAE:
    """Builds a model, untrained, for slices of `size` times `size` pixels.

    Covariates, if there are any, are seen by its encoders and decoders, see `condition`. With more
    slices than one, its encoders see those beside each, see `widen`.

    Raises:
        ValueError: If the size cannot be halved as often as the network asks for, or a number of
            the network cannot be used.
    """
    model = BUILDERS[network.name](modalities, size, **architecture_of(network))
    widen(model, slices)
    condition(model, covariates or Covariates())
    return model


def describe(model: MMHVAE, size: int, network: Network = DEFAULT) -> dict[str, Any]:
    """Returns what is needed to build a model again."""
    covariates: Covariates = getattr(model, "covariates", Covariates())
    slices: int = getattr(model, "slices", 1)
    return {
        **({"covariates": covariates.describe()} if covariates else {}),
        **({"slices": slices} if slices > 1 else {}),
        "model": network.name,
        "modalities": model.modalities,
        "architecture": {"size": size, **architecture_of(network)},
    }


def model_folder(run: Path) -> Path:
    """Returns where the model of a run is: in ``model``, or in the folder itself."""
    return run / "model" if (run / "model" / "model.json").exists() else run


def load_model(
    folder: Path, modalities: Sequence[str] | None = None
) -> tuple[MMHVAE, dict[str, Any]]:
    """Reads what `train.save_model` wrote, or `official.convert`.

    Arguments:
        folder: The folder of the model.
        modalities: The modalities that it should have, in this order; any if None.

    Raises:
        CheckpointError: If the files are damaged, or hold another model.
    """
    state, description = load_checkpoint(folder)
    found = description.get("modalities")
    if not isinstance(found, list) or (modalities is not None and found != list(modalities)):
        wanted = "modalities by name" if modalities is None else ", ".join(modalities)
        raise CheckpointError(
            f"{folder} should hold a model of {wanted}, but holds one of {found}."
        )
    builder = description.get("model", "image_mmhvae")
    if builder not in tuple(BUILDERS):
        raise CheckpointError(
            f"{folder} should hold a model of {' or '.join(BUILDERS)}, but holds one of {builder}."
        )
    try:
        check_modalities(found)
        _check_architecture(description.get("architecture"))
        _check_facts(description)
        model = BUILDERS[builder](found, **description["architecture"])
        slices = check_integer("slices", description.get("slices", 1), 1)
        if slices > MOST_SLICES:
            raise ValueError(f"'slices' should be at most {MOST_SLICES}, but is {slices}.")
        widen(model, slices)
        condition(model, Covariates.read(description.get("covariates", [])))
        if description.get("matched", description.get("calibrated")):
            add_matched_experts(model)
        if description.get("spread") is not None:
            add_spread(model, description["spread"], description["architecture"]["size"])
        load_weights(model, state, folder)
    except CheckpointError:
        raise
    except Exception as error:  # of any type: what builds a model expects no edited numbers
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{folder} holds no model that can be built: {error}") from error
    return model.eval(), description


def add_spread(model: MMHVAE, rank: object, size: int) -> None:
    """Gives a model a spread to load the weights of.

    Arguments:
        model: The model.
        rank: The number of its factors.
        size: The height and width of the model's slices, in pixels.
    """
    rank = check_integer("spread", rank, 1)
    if rank > LARGEST:
        raise ValueError(f"'spread' should be at most {LARGEST}, but is {rank}.")
    covariates: Covariates = getattr(model, "covariates", Covariates())
    x = Batch(
        {m: torch.zeros(1, getattr(model, "slices", 1), size, size) for m in model.modalities},
        context={NAME: torch.zeros(1, covariates.size)} if covariates else {},
    )
    given = torch.ones(1, len(model.modalities), dtype=torch.bool)
    with torch.no_grad(), evaluation(model.modules()):
        state = model.infer(model.encode(x, given), given, temperature=0.0).state.h
    events = dict.fromkeys(model.modalities, (1, size, size))
    model.spread = Spread(model.modalities, tuple(state.shape[1:]), events, rank)


def is_calibrated(model: MMHVAE) -> bool:
    """Whether draws spread as they should: as was measured on held-out cases, if it was."""
    return not model.spread.off() if isinstance(model.spread, Spread) else model.is_matched


def _check_architecture(architecture: object) -> None:
    """Raises a ValueError unless an architecture has numbers that some model could have."""
    if not isinstance(architecture, dict):
        raise ValueError(f"'architecture' should be an object, but is {architecture!r}.")
    size = check_integer("size", architecture.get("size"), 1)
    if size > LARGEST_SIZE:
        raise ValueError(f"'size' should be at most {LARGEST_SIZE}, but is {size}.")
    for name, value in architecture.items():
        values = value if isinstance(value, list) else [value]
        numbers = [v for v in values if isinstance(v, (int, float))]
        if len(values) > MOST_LEVELS or any(not v <= LARGEST for v in numbers if name != "size"):
            raise ValueError(
                f"'{name}' should be up to {LARGEST}, and at most {MOST_LEVELS} of them, but is "
                f"{value!r:.100}."
            )


def _check_facts(description: Mapping[str, Any]) -> None:
    """Raises a ValueError if what is said of the images of a model cannot be."""
    spacing, axes = description.get("spacing"), description.get("axes")
    if spacing is not None:
        if not isinstance(spacing, list) or len(spacing) != 3:
            raise ValueError(f"'spacing' should be three numbers, but is {spacing!r}.")
        for value in spacing:
            check_number("spacing", value, *SPACINGS)
    if axes is not None and axes not in AXES:
        raise ValueError(f"'axes' should be three letters, as in 'RAS', but is {axes!r}.")


def architecture_of(network: Network) -> dict[str, Any]:
    """Returns the numbers of a network, by name."""
    return {key: value for key, value in asdict(network).items() if key != "name"}

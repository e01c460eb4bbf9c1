"""Weights to start from: those of another model, as far as two models share them."""

from __future__ import annotations

__all__ = ["Start", "read_start"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpoe.models import MMHVAE

from .config import Config
from .covariates import Covariates, condition, widen
from .models import Network, architecture_of, load_model, model_folder


@dataclass(frozen=True, eq=False)
class Start:
    """The model that a training run starts from."""

    run: Path
    """Its run, or its folder."""
    sha256: str
    """The SHA-256 of its weights."""
    size: int
    """The height and width of its slices, in pixels."""
    shared: tuple[str, ...]
    """The modalities that both models have."""
    fresh: tuple[str, ...]
    """The modalities that it lacks."""
    model: MMHVAE
    """The model itself."""

    def copy_to(self, model: MMHVAE) -> None:
        """Copies the weights that a model has under the same name and with the same shape.

        These are what all modalities share, and what belongs to a modality that both models have.
        The others stay as they are. Matched experts and spreads are not copied. Where the model
        has covariates and this one has none, it starts as one that does not look at them; so it is
        with slices.
        """
        if getattr(self.model, "slices", 1) == 1 and not getattr(self.model, "covariates", ()):
            widen(self.model, getattr(model, "slices", 1))
        if not getattr(self.model, "covariates", ()):
            condition(self.model, getattr(model, "covariates", Covariates()))
        own, given = model.state_dict(), self.model.state_dict()
        same = {n: w for n, w in given.items() if n in own and own[n].shape == w.shape}
        model.load_state_dict({**own, **same})

    def describe(self, size: int) -> str:
        """Says in words what is taken over by a model for slices of this size."""
        said = f"Starting from {self.run}: it knows {', '.join(self.shared)}"
        if self.fresh:
            said += f"; {', '.join(self.fresh)} start fresh"
        if size != self.size:
            said += f", and so does what depends on the size of slices, {self.size} there"
        return f"{said}."


def read_start(run: Path, config: Config) -> Start:
    """Reads a model to start from.

    Arguments:
        run: Its run, or its folder.
        config: The configuration of the model to train.

    Raises:
        ValueError: If it has another network, other covariates or slices, or none of the
            modalities.
        CheckpointError: If it cannot be read.
    """
    model, description = load_model(model_folder(run))
    _check_network(run, description, config.model)
    modalities, covariates = config.modalities, config.covariates
    theirs: Covariates = getattr(model, "covariates", Covariates())
    if theirs and [c.name for c in theirs] != list(covariates):
        wanted, found = ", ".join(covariates) or "none", ", ".join(c.name for c in theirs)
        raise ValueError(
            "'init' should be a run without covariates or with those of the configuration, "
            f"{wanted}, but {run} has {found}."
        )
    slices: int = getattr(model, "slices", 1)
    if slices not in (1, config.slices) or (theirs and slices != config.slices):
        raise ValueError(
            "'init' should be a run of 1 slice, or of as many as the configuration, "
            f"{config.slices}, but {run} has {slices}."
        )
    shared = tuple(m for m in modalities if m in model.modalities)
    if not shared:
        raise ValueError(
            f"'init' should be a run with one of {', '.join(modalities)}, but {run} has "
            f"{', '.join(model.modalities)}."
        )
    return Start(
        run=run,
        sha256=str(description["sha256"]),
        size=int(description["architecture"]["size"]),
        shared=shared,
        fresh=tuple(m for m in modalities if m not in shared),
        model=model,
    )


def _check_network(run: Path, description: Mapping[str, Any], network: Network) -> None:
    """Raises a ValueError that names the entries in which two networks differ."""
    wanted = {"name": network.name, **architecture_of(network)}
    found = {"name": description.get("model", "image_mmhvae"), **description["architecture"]}
    differing = [
        f"{name} = {_plain(found[name])} in place of {_plain(value)}"
        for name, value in wanted.items()
        if name in found and _plain(found[name]) != _plain(value)
    ]
    if differing:
        raise ValueError(
            f"'init' should be a run with the network of the configuration, but {run} has "
            f"{', '.join(differing)}."
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

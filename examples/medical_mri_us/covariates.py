"""Covariates: further columns of an index, such as an age or a site, that a model depends on."""

from __future__ import annotations

__all__ = [
    "NAME",
    "Covariate",
    "Covariates",
    "carrying",
    "condition",
    "fit_covariates",
    "widen",
]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmpoe.missing import Batch
from mmpoe.models import MMHVAE
from mmpoe.nn import Conditional

from .data.index import EMPTY

NAME = "covariates"
"""The name under which a batch carries the numbers of all covariates."""

MOST = 32
"""The largest number of categories of a covariate."""

SHOWN = 5
"""How many cases a message names."""


@dataclass(frozen=True)
class Covariate:
    """A covariate: a number, which is standardised, or one of some categories."""

    name: str
    categories: tuple[str, ...] = ()
    """The categories; none for a number."""
    mean: float = 0.0
    """The mean of the training cases, for a number."""
    scale: float = 1.0
    """Their standard deviation, for a number."""

    def numbers(self, text: str) -> list[float]:
        """Returns a value as numbers: one, or an indicator for each category.

        Raises:
            ValueError: If the value is empty, no number, or no category.
        """
        text = text.strip()
        if text.lower() in EMPTY:
            raise ValueError(f"the covariate {self.name!r} should be known, but is empty.")
        if self.categories:
            if text not in self.categories:
                known = ", ".join(self.categories)
                raise ValueError(
                    f"the covariate {self.name!r} should be one of {known}, but is {text!r}."
                )
            return [float(text == category) for category in self.categories]
        value = _number(text)
        if value is None:
            raise ValueError(f"the covariate {self.name!r} should be a number, but is {text!r}.")
        return [(value - self.mean) / self.scale]


class Covariates(tuple[Covariate, ...]):
    """The covariates of a model, in the order in which it takes their numbers."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """How many numbers they are in all."""
        return sum(len(c.categories) or 1 for c in self)

    def numbers(self, further: Mapping[str, str]) -> list[float]:
        """Returns the numbers of a case.

        Arguments:
            further: The text of its further columns.

        Raises:
            ValueError: If one is absent or cannot be used.
        """
        return [number for c in self for number in c.numbers(further.get(c.name, ""))]

    def describe(self) -> list[dict[str, Any]]:
        """Returns what `read` reads, ready for JSON."""
        return [
            {"name": c.name, "categories": list(c.categories), "mean": c.mean, "scale": c.scale}
            for c in self
        ]

    @classmethod
    def read(cls, described: object) -> Covariates:
        """Reads what `describe` returned.

        Raises:
            ValueError: If it is something else.
        """
        if not isinstance(described, list):
            raise ValueError(f"'covariates' should be a list, but is {described!r:.100}.")
        found = []
        for about in described:
            try:
                categories = tuple(map(str, about["categories"]))
                one = Covariate(
                    str(about["name"]), categories, float(about["mean"]), float(about["scale"])
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"'covariates' should hold covariates, but holds {about!r:.100}."
                ) from error
            if len(categories) > MOST or not (
                math.isfinite(one.mean) and 0 < one.scale < math.inf
            ):
                raise ValueError(f"'covariates' should be usable, but one is {about!r:.100}.")
            found.append(one)
        return cls(found)


def fit_covariates(names: Sequence[str], cases: Mapping[str, Mapping[str, str]]) -> Covariates:
    """Finds out what covariates are: numbers if all are, else categories.

    Arguments:
        names: The columns.
        cases: The further columns of each training case, by its name.

    Raises:
        ValueError: If a column is absent, empty in a case, the same in all, or has too many
            categories.
    """
    found = []
    for name in names:
        cells = {case: further.get(name, "").strip() for case, further in cases.items()}
        unknown = [case for case, cell in cells.items() if cell.lower() in EMPTY]
        if unknown:
            more = ", ..." if len(unknown) > SHOWN else ""
            raise ValueError(
                f"'covariates' should be columns with a value for each case, but {name!r} has "
                f"none for {len(unknown)} of {len(cells)}: {', '.join(unknown[:SHOWN])}{more}."
            )
        found.append(_fit(name, list(cells.values())))
    return Covariates(found)


def _fit(name: str, cells: Sequence[str]) -> Covariate:
    kinds = sorted(set(cells))
    if len(kinds) < 2:
        raise ValueError(
            f"'covariates' should differ between cases, but {name!r} is {kinds[0]!r} in all."
        )
    values = [_number(cell) for cell in cells]
    numbers = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
    if len(numbers) == len(cells) and numbers.std() > 0:
        return Covariate(name, (), float(numbers.mean()), float(numbers.std()))
    if len(kinds) > MOST:
        raise ValueError(
            f"'covariates' should have up to {MOST} categories, but {name!r} has {len(kinds)}."
        )
    return Covariate(name, tuple(kinds))


def widen(model: MMHVAE, slices: int) -> None:
    """Lets the encoders of a model see the slices beside each, as further channels of an image.

    Their weights are 0 at first, so that the model starts as one of single slices. It has the
    number as an attribute.

    Arguments:
        model: The model, of images with one channel. It is changed.
        slices: The number of slices, odd; 1 leaves the model as it is.
    """
    model.slices = slices  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    for m in model.modalities if slices > 1 else ():
        _widen(model.encoders[m], slices - 1)


def condition(model: MMHVAE, covariates: Covariates) -> None:
    """Lets the encoders and decoders of a model see covariates, which it has as an attribute.

    Each has further channels with the same number everywhere. Their weights are 0 at first, so
    that the model starts as one without covariates.

    Arguments:
        model: The model, of images with one channel. It is changed.
        covariates: The covariates; none leave the model as it is.
    """
    model.covariates = covariates  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    if not covariates:
        return
    for m in model.modalities:
        encoder = model.encoders[m]
        slices: int = getattr(model, "slices", 1)
        _widen(encoder, covariates.size, images=slices)
        model.encoders[m] = Conditional(encoder, [NAME])
        likelihood: Any = model.decoders[m]
        channels = _first_convolution(likelihood.network)[1].in_channels
        mix = nn.Conv2d(channels + covariates.size, channels, 1)
        with torch.no_grad():
            mix.weight.zero_()
            mix.weight[:, :channels, 0, 0] = torch.eye(channels)
            mix.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        likelihood.network = Conditional(nn.Sequential(mix, likelihood.network), [NAME])


def carrying(
    model: MMHVAE, x: Mapping[str, Tensor], further: Mapping[str, str]
) -> Mapping[str, Tensor]:
    """Returns slices of a case with its covariates, if the model has any.

    Arguments:
        model: The model.
        x: The slices by modality, (slices, *).
        further: The text of the further columns of the case.

    Raises:
        ValueError: If a covariate is absent or cannot be used.
    """
    covariates: Covariates = getattr(model, "covariates", Covariates())
    if not covariates:
        return x
    first = next(iter(x.values()))
    numbers = torch.tensor(covariates.numbers(further), dtype=first.dtype, device=first.device)
    return Batch(x, context={NAME: numbers.expand(len(first), -1)})


def _widen(encoder: nn.Module, more: int, images: int = 1) -> None:
    """Gives the first convolution of an encoder of some images more of them, with weights of 0."""
    parent, convolution = _first_convolution(encoder)
    wide = nn.Conv2d(
        convolution.in_channels // images * (images + more),
        convolution.out_channels,
        convolution.kernel_size,  # pyright: ignore[reportArgumentType]
        convolution.stride,  # pyright: ignore[reportArgumentType]
        convolution.padding,  # pyright: ignore[reportArgumentType]
        bias=convolution.bias is not None,
    )
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : convolution.in_channels] = convolution.weight
        if wide.bias is not None and convolution.bias is not None:
            wide.bias.copy_(convolution.bias)
    for name, child in parent.named_children():
        if child is convolution:
            setattr(parent, name, wide)


def _first_convolution(module: nn.Module) -> tuple[nn.Module, nn.Conv2d]:
    """The first convolution of a network, and the module that it is a part of."""
    for parent in module.modules():
        for child in parent.children():
            if isinstance(child, nn.Conv2d):
                return parent, child
    raise ValueError("the network should hold a convolution, but holds none.")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

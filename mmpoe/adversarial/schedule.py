"""Weights of the divergence and of the adversarial losses over a training run."""

from __future__ import annotations

__all__ = ["PUBLISHED", "Schedule", "Weights"]

from dataclasses import dataclass, replace
from typing import NamedTuple

from mmpoe.objectives import warmup

TIMES = ("warmup", "generator", "ramp", "discriminator", "bank", "restart")
"""The fields of a schedule that are times."""


class Weights(NamedTuple):
    """The weights and switches of one step."""

    beta: float
    """The weight of the divergence."""
    generator: float
    """The weight of the adversarial loss of the model; with 0, it need not be computed."""
    discriminator: bool
    """Whether to train discriminators."""
    bank: bool
    """Whether to remember real images."""
    restart: bool
    """Whether to reset the optimiser of the model before this step. In
    :func:`mmpoe.training.fit`, ``Optimizer(restart=...)`` does that."""


@dataclass(frozen=True)
class Schedule:
    r"""Weights over a training run; all times are in one unit: steps, epochs or shares of the run.

    Reconstruction comes first, as any discriminator can tell blurred images from real ones. Then
    discriminators are trained alone, and only then have they a weight in the loss of the model.

    Example:
        >>> schedule = Schedule(warmup=10, discriminator=20, generator=30, ramp=10, weight=0.1)
        >>> schedule(5)
        Weights(beta=0.5, generator=0.0, discriminator=False, bank=False, restart=False)
        >>> schedule(35)
        Weights(beta=1.0, generator=0.05, discriminator=True, bank=True, restart=False)
    """

    beta: float = 1.0
    """The last weight of the divergence."""
    warmup: float = 0
    """How long that weight rises linearly from 0."""
    weight: float = 1.0
    """The last weight of the adversarial loss of the model."""
    generator: float = 0
    """When that loss begins."""
    ramp: float = 0
    """How long its weight then rises linearly from 0."""
    discriminator: float = 0
    """When the training of discriminators begins."""
    bank: float | None = None
    """When real images begin to be remembered; with `discriminator` if None."""
    restart: float | None = None
    """When the optimiser of the model is reset; never if None."""

    def __post_init__(self) -> None:
        for name in TIMES:
            time = getattr(self, name)
            if time is not None and time < 0:
                raise ValueError(f"'{name}' should be at least 0, but is {time}.")
        for name in ("beta", "weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"'{name}' should be at least 0, but is {getattr(self, name)}.")
        if self.discriminator > self.generator:
            raise ValueError(
                "'discriminator' should be no later than 'generator', which needs it, "
                f"but they are {self.discriminator} and {self.generator}."
            )

    def over(self, length: float) -> Schedule:
        """Returns the same schedule in shares of a training run.

        Arguments:
            length: The length of the run, in the unit of this schedule.

        Raises:
            ValueError: If `length` is not positive.

        Example:
            >>> PUBLISHED.over(1000).discriminator
            0.79
        """
        if not length > 0:
            raise ValueError(f"'length' should be positive, but is {length}.")
        times = {name: getattr(self, name) for name in TIMES}
        return replace(self, **{n: t / length for n, t in times.items() if t is not None})

    def __call__(self, step: float) -> Weights:
        """Returns the weights of a step, from 0.

        Arguments:
            step: The step, the epoch, or the share of the run done so far.

        Raises:
            ValueError: If `step` is negative.
        """
        remembers = self.discriminator if self.bank is None else self.bank
        since = step - self.generator
        return Weights(
            beta=self.beta * warmup(step, self.warmup),
            generator=self.weight * warmup(since, self.ramp) if since >= 0 else 0.0,
            discriminator=step >= self.discriminator,
            bank=step >= remembers,
            restart=step == self.restart,
        )


PUBLISHED = Schedule(
    beta=1e-3,
    warmup=50,
    weight=0.025,
    generator=800,
    discriminator=790,
    bank=789,
    restart=780,
)
r"""The schedule of the published MMHVAE, in epochs, of which it has 1000.

Its weights are relative to the loss of that code, for images of :math:`P` pixels in [-1, 1] and
:math:`M` modalities: half the absolute error, averaged over pixels and observed modalities, plus
`beta` times the divergence over :math:`P M`, plus `generator` times :func:`adversarial_loss`,
summed over the subsets of a row.
"""

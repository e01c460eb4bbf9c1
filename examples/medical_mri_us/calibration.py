"""Calibration of a trained model: what makes draws spread as they should is kept if it does."""

from __future__ import annotations

__all__ = ["Calibrated", "Samples", "calibrate_model", "hold_out", "measure"]

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, WeightedRandomSampler

from mmpoe.imputation import Calibration, HeldOut, calibrate, fit_spread
from mmpoe.metrics import coverage, energy_score
from mmpoe.missing import collate, random_subsets
from mmpoe.models import MMHVAE

from .config import Matching
from .covariates import NAME, Covariates
from .data import Slices, StoredSubject, Subject
from .evaluation.synthesis import draw

SHARE = 5
"""One in so many cases is held out if the index has no split for it."""
RANK = 32
"""The number of factors of a spread."""
DRAWS = 19
"""The number of draws that coverage is measured with: the fewest that can tell 90 %."""
LEVEL, TOLERANCE = 0.9, 0.05
"""The coverage of the intervals that are measured, and how far it may be off."""
BLOCKS = (8, 16)
"""The sides of the blocks whose means are measured, in pixels."""

SOURCES = {
    None: "the model as it was trained, since nothing improved them",
    "matched": "matched experts",
    "spread": "a spread around the prediction",
}
"""The sources of draws, in words."""

Report = Callable[[int, float], object]


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration."""

    kept: str | None
    """The source of draws that has the best energy score, if it is not the model as it was."""
    energy: dict[str, float]
    """The energy score on held-out cases of each source of draws that was tried."""
    coverage: dict[str, float]
    """The share of held-out voxels, and of means over blocks and quarters, in 90 % intervals."""
    matching: Calibration | None
    """The fit of matched experts, if there was one."""
    interrupted: bool = False

    def facts(
        self, settings: Matching, subjects: Sequence[Subject | StoredSubject], cases: int
    ) -> dict[str, Any]:
        """Returns what ``model.json`` says of the calibration.

        Arguments:
            settings: How it was made.
            subjects: The cases that it learned from, or their tiles.
            cases: The number of held-out cases.
        """
        number = max((len(s.images) for s in subjects), default=0)
        whole = [s for s in subjects if len(s.images) == number]
        how = {
            **asdict(settings),
            "steps": 0 if self.matching is None else self.matching.best,
            "slices": len(Slices(subjects)),
            "complete": len(Slices(whole)),
            "complete_cases": len({s.name for s in whole}),
            "held_out_cases": cases,
            "energy": self.energy,
            "coverage": self.coverage,
            "interrupted": self.interrupted,
        }
        return {
            "calibrated": self.holds,
            "matched": self.kept == "matched",
            "spread": RANK if self.kept == "spread" else None,
            "calibration": how,
        }

    def told(self) -> str:
        """Returns the result in words."""
        tried = ", ".join(f"{name} {value:.4f}" for name, value in self.energy.items())
        said = f"Energy score on held-out cases (lower is better): {tried}."
        held = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.coverage.items())
        said += f" Draws come from {SOURCES[self.kept]}. 90 % intervals hold: {held}."
        return said if self.holds else f"{said} That is not calibrated: it should be 85 to 95 %."

    @property
    def holds(self) -> bool:
        """Whether all intervals hold about as much as they should."""
        shares = self.coverage.values()
        return bool(shares) and all(abs(v - LEVEL) <= TOLERANCE for v in shares)


class Samples(Sequence[dict[str, Tensor]]):
    """The slices of some subjects, each a mapping of what was observed.

    Arguments:
        subjects: The subjects, in memory or stored.
        model: The model that is to see them.
        flip: Whether to mirror every other slice at random.
    """

    def __init__(
        self,
        subjects: Sequence[Subject | StoredSubject],
        model: MMHVAE,
        *,
        flip: bool = False,
    ) -> None:
        self.modalities: Sequence[str] = model.modalities
        self.slices = Slices(subjects, flip=flip, slices=getattr(model, "slices", 1))
        self.covariates: Covariates = getattr(model, "covariates", Covariates())

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # pyright: ignore
        return self.seen(index)[0]

    def seen(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """Returns a slice with the covariates of its case, if there are any, and its view."""
        images, fov = self.slices[index]
        if not self.covariates:
            return dict(images), fov
        further = self.slices.subjects[self.slices.places[index][0]].further
        context = {NAME: torch.tensor(self.covariates.numbers(further))}
        return {**images, "context": context}, fov  # pyright: ignore[reportReturnType]

    def batch(self, places: Iterable[int]) -> _Batch:
        """Returns some slices with those beside them, their views, and the slices alone.

        What was observed comes second. Views and slices are by modality.
        """
        found = [self.seen(k) for k in places]
        x, observed = collate([images for images, _ in found], self.modalities)
        views = dict.fromkeys(x, torch.stack([fov for _, fov in found]))
        return x, observed, views, {m: v[:, :1] for m, v in x.items()}


_Batch = tuple[Mapping[str, Tensor], Tensor, dict[str, Tensor], dict[str, Tensor]]


class _Batches:
    """Batches of slices, mirrored at random, with their fields of view."""

    def __init__(
        self, model: MMHVAE, subjects: Sequence[Subject | StoredSubject], size: int
    ) -> None:
        samples = Samples(subjects, model, flip=True)
        weights = samples.slices.weights(0.3)
        self.loader = DataLoader(
            range(len(samples)),  # pyright: ignore[reportArgumentType]
            size,
            sampler=WeightedRandomSampler(weights.tolist(), len(samples), replacement=True),
            collate_fn=samples.batch,
        )

    def __iter__(self) -> Iterator[_Batch]:
        return iter(self.loader)


def hold_out(subjects: Sequence[Subject]) -> tuple[list[Subject], list[Subject]]:
    """Splits cases into those to learn from and one in five to measure on, in order of name."""
    several = sorted((s for s in subjects if len(s.images) > 1), key=lambda s: s.name)
    apart = {s.name for s in several[SHARE - 1 :: SHARE] or several[-1:]}
    return [s for s in subjects if s.name not in apart], [s for s in several if s.name in apart]


def calibrate_model(
    model: MMHVAE,
    subjects: Sequence[Subject | StoredSubject],
    held_out: Sequence[Subject],
    settings: Matching,
    *,
    report: Report | None = None,
) -> Calibrated:
    """Fits matched experts, then a spread, and keeps what improves draws of held-out cases.

    Nothing else of the model changes. The result depends on the seed of torch alone, not on an
    earlier calibration, which it replaces.

    Arguments:
        model: The model.
        subjects: The cases to learn from, with slices of the model's size: where they are larger,
            their tiles, each as a case of the same name.
        held_out: The cases that tell what helps, and that set the scale, or their tiles.
        settings: How both are fitted.
        report: Is called after each step with its number and its loss.

    Raises:
        ValueError: If there is no held-out case.
    """
    if not held_out:
        raise ValueError("'held_out' should hold at least one case, but is empty.")
    model.spread = None
    for group in model.groups:
        group.matched = None
    energy = {"as it was": measure(model, held_out)["energy"]}
    kept, history, matched = None, None, [None] * len(model.groups)
    if settings.steps and any(len(s.images) == len(model.modalities) for s in subjects):
        history = calibrate(
            model,
            Samples(subjects, model),
            teacher=settings.teacher,
            steps=settings.steps,
            batch_size=settings.batch,
            lr=settings.lr,
            held_out=settings.held_out,
            after_step=report,
        )
        energy["matched"] = measure(model, held_out)["energy"]
        if history.best > 0 and energy["matched"] < energy["as it was"]:
            kept, matched = "matched", [group.matched for group in model.groups]
        for group, experts in zip(model.groups, matched, strict=True):
            group.matched = experts
    interrupted = history is not None and history.interrupted
    if settings.spread_steps and not interrupted:
        try:
            fit_spread(
                model,
                _Batches(model, subjects, 8),
                _held_out(model, held_out),
                rank=RANK,
                steps=settings.spread_steps,
                after_step=report,
            )
            energy["spread"] = measure(model, held_out)["energy"]
        except KeyboardInterrupt:
            model.spread, interrupted = None, True
        if model.spread is not None:
            if energy["spread"] < min(v for k, v in energy.items() if k != "spread"):
                kept = "spread"
                for group in model.groups:
                    group.matched = None
            else:
                model.spread = None
    shares = measure(model, held_out)
    del shares["energy"]
    return Calibrated(kept, energy, shares, history, interrupted)


def measure(model: MMHVAE, subjects: Sequence[Subject], draws: int = DRAWS) -> dict[str, float]:
    """Measures draws of cases, of which random modalities are hidden, alike in every call.

    Arguments:
        model: The model.
        subjects: The cases.
        draws: The number of draws.

    Returns:
        The mean energy score of voxels and of means over blocks, per root of their number; and the
        shares of voxels, means over blocks and means over quarters of a slice in 90 % intervals.
    """
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for subject in subjects:
            observed = torch.tensor([[m in subject.images for m in model.modalities]])
            given = random_subsets(observed, proper=True, generator=generator)[0, 0]
            names = [m for m, g in zip(model.modalities, given.tolist(), strict=True) if g]
            fov = torch.from_numpy(subject.fov)
            for place, drawn in draw(model, subject, names, draws):
                for m in [m for m in subject.images if m not in names]:
                    truth = torch.from_numpy(subject.images[m][place])
                    for key, value in _scores(drawn[m][1], truth, fov[place]).items():
                        found.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def _scores(drawn: Tensor, truth: Tensor, fov: Tensor) -> dict[str, float]:
    """The scores of draws (K, D, H, W) of some slices of a case."""
    shown = fov.any(dim=2).any(dim=1)
    if not bool(shown.any()):
        return {}
    drawn, truth, fov = drawn[:, shown], truth[shown], fov[shown]
    scores = {"voxels": (drawn[:, fov], truth[fov])}
    for side in (*BLOCKS, fov.shape[-1] // 2):
        values, true = (_means(v, fov, side) for v in (drawn, truth[None]))
        name = "quarters" if side == fov.shape[-1] // 2 else f"blocks of {side}"
        if true.numel():
            scores[name] = values, true[0]
    energy = energy_score(drawn, truth, mask=fov) / fov.sum(dim=(1, 2)).sqrt()
    found = {key: float(coverage(a, b, LEVEL).mean()) for key, (a, b) in scores.items()}
    total = float(energy.mean())
    if "blocks of 8" in scores:
        a, b = scores["blocks of 8"]
        total += float(energy_score(a[:, None], b[None])) / math.sqrt(len(b))
    return {"energy": total, **found}


def _means(volumes: Tensor, fov: Tensor, side: int) -> Tensor:
    """Means over blocks that are in view by half, of volumes (K, D, H, W): shape (K, N)."""
    inside = functional.avg_pool2d(fov[:, None].to(volumes), side)[:, 0]
    total = functional.avg_pool2d(torch.where(fov, volumes, 0), side)
    counted = inside >= 0.5
    return total[:, counted] / inside[counted]


def _held_out(model: MMHVAE, subjects: Sequence[Subject]) -> HeldOut:
    """The slices of cases, and the patient of each: all tiles of one have the same name."""
    samples = Samples(subjects, model)
    x, observed, valid, truth = samples.batch(range(len(samples)))
    number = {s.name: k for k, s in enumerate(subjects)}
    cases = [number[subjects[s].name] for s, _ in samples.slices.places]
    return HeldOut(x, observed, valid=valid, truth=truth, cases=cases)

"""A whole evaluation: all models on all cases of a split, by all protocols."""

from __future__ import annotations

__all__ = ["Options", "Results", "load_one_by_one", "score_all"]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from examples.medical_mri_us.data import Case, CaseError, Subject, load_subjects, turned
from examples.medical_mri_us.windows import pad_subject

from . import protocols as named
from .baseline import mean_images
from .coverage import cover_subject
from .models import Trained
from .scores import Scores, score_baseline, score_subject


class Options(Protocol):
    """The options of an evaluation."""

    @property
    def protocol(self) -> str:
        """The names of the protocols, with commas between them."""
        ...

    @property
    def samples(self) -> int:
        """The number of latent samples behind intervals; 0 for none."""
        ...

    @property
    def perceptual(self) -> bool:
        """Whether to compute the metrics by networks."""
        ...

    @property
    def seed(self) -> int:
        """The seed of the latent samples."""
        ...


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    protocols: list[named.Protocol]
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each protocol the metrics that could not be computed, and why."""
    scores: list[Scores] = field(default_factory=list)
    covered: list[dict[str, Any]] = field(default_factory=list)
    """The coverage of intervals, case by case."""
    problems: list[CaseError] = field(default_factory=list)
    """The faults of the cases that were left out."""


def score_all(
    models: Sequence[Trained], cases: Sequence[Case], test: Sequence[Case], options: Options
) -> Results:
    """Scores models, and the mean images of the training cases, on the cases of a split.

    Cases are in memory one at a time.

    Arguments:
        models: The models, all of the same modalities.
        cases: All cases of the index; those of the split ``train`` make the baseline.
        test: The cases to score.
        options: The protocols, and what else can be chosen.
    """
    results = Results(named.parse_protocols(options.protocol))
    training = [case for case in cases if case.split == "train"]
    reading = tqdm(training, desc="Baseline", unit="case")
    size, axes = models[0].size, models[0].axes
    means = mean_images(load_one_by_one(reading, size, [], axes), models[0].model.modalities, size)
    for protocol in results.protocols:
        reasons = named.unavailable(protocol, size, perceptual=options.perceptual)
        results.missing[protocol.name] = reasons
    scoring = tqdm(test, desc="Scoring", unit="case")
    for subject in load_one_by_one(scoring, size, results.problems, axes):
        how = results.protocols, results.missing
        results.scores.extend(score_baseline(means, subject, *how, size=size))
        for trained in models:
            name, model = trained.name, trained.model
            seed = options.seed
            results.scores.extend(score_subject(name, model, subject, *how, seed, size=size))
            if options.samples:
                rows = cover_subject(name, model, subject, options.samples, seed, size=size)
                results.covered.extend(rows)
    return results


def load_one_by_one(
    cases: Iterable[Case], size: int, problems: list[CaseError], axes: str | None = None
) -> Iterator[Subject]:
    """Loads cases one at a time.

    Arguments:
        cases: The cases.
        size: The height and width that smaller slices are padded to, in pixels.
        problems: A list, to which is added what was wrong with cases that cannot be used.
        axes: Where the axes of the model point to, if it has its own.
    """
    for case in cases:
        subjects, found = load_subjects([case], progress=False)
        problems += found
        for subject in subjects:
            yield pad_subject(turned(subject, axes), size)

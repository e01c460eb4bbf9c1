"""Scores a trained model on held-out cases, by named protocols."""

from __future__ import annotations

__all__ = ["Evaluate", "run"]

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.medical_mri_us.card import write_card
from examples.medical_mri_us.checks import check_integer
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import read_index
from examples.medical_mri_us.evaluation import (
    ALPHA,
    INTERVALS,
    SPREAD_LIMIT,
    about_data,
    about_models,
    cell_means,
    choose,
    choose_device,
    compare,
    coverage_means,
    load_one_by_one,
    load_trained,
    make_view,
    note,
    parse_protocols,
    resolved,
    score_all,
    summary,
    write_cases,
    write_evaluation,
    write_tables,
)
from examples.medical_mri_us.facts import is_phantom
from examples.medical_mri_us.models import is_calibrated
from examples.medical_mri_us.outputs import open_folder


@dataclass(frozen=True)
class Evaluate:
    """Score a trained model on held-out cases, and compare it with others, case by case.

    Writes cells.json, cases.csv, statistics.json, coverage.json, tables.md and views/, of which
    `report` makes a page, and adds the tables to the model card of a training run. Cases may lack
    modalities: a cell counts the cases that have its inputs and its truth.
    """

    model: tyro.conf.Positional[Path]
    """The folder of a training run, or of a saved model."""
    data: Path
    """The index of the data, a CSV file."""
    out: Path
    """The folder to write."""
    protocol: str = "strict,mmhvae-2026"
    """The protocols, with commas between them."""
    compare: tuple[Path, ...] = ()
    """Further trainings or models to score on the same cases, and to test against."""
    split: str = "test"
    """The split of the index to score."""
    samples: int = 19
    """The number of latent samples behind intervals and standard deviations; 0 for neither. 90 %
    intervals need 19, 50 % intervals 3."""
    views: int = 3
    """The number of cases to keep images of."""
    perceptual: bool = True
    """Whether to compute LPIPS and ST-LPIPS, which take most of the time."""
    seed: int = 0
    """The seed of the latent samples."""
    device: str = "auto"
    """The device: auto, cpu, cuda or cuda:1."""

    def check(self) -> None:
        """Raises a ValueError that names the option, if there is one that cannot be used."""
        parse_protocols(self.protocol)
        check_integer("views", self.views, 0)
        check_integer("seed", self.seed, 0)
        if self.samples != 0:
            check_integer("samples", self.samples, 2)


def run(options: Evaluate) -> int:
    """Runs the subcommand; the exit code is 0, 1 if cases were left out, or 3 for bad data.

    Raises:
        ValueError: If an option or the index cannot be used.
        CheckpointError: If a model cannot be read.
        OSError: If the folder cannot be written to.
    """
    options.check()
    start = time.monotonic()
    device = choose_device(options.device)
    open_folder(options.out)
    models = load_trained((options.model, *options.compare), device)
    first = models[0]
    cases = read_index(options.data, first.model.modalities)
    test = [case for case in cases if case.split == options.split]
    if not test:
        splits = ", ".join(sorted({case.split for case in cases}))
        return _stop(f"{options.data} has no case of split '{options.split}', but of {splits}.")

    about = about_models(models, options.model, device)
    results = score_all(models, cases, test, options)
    if not results.scores:
        return _stop(f"{options.data} has no case of split '{options.split}' that can be used.")
    shown = choose(results.scores, first.name, results.protocols[0].name, options.views)
    cases_shown = [case for case in test if case.name in shown]
    views = {
        subject.name: make_view(
            first.model, subject, options.samples, options.seed, size=first.size
        )
        for subject in load_one_by_one(cases_shown, first.size, [], first.axes)
    }
    phantom = is_phantom(options.data)
    said = note(phantom, trained_on_phantom=bool(first.description.get("phantom")))
    cells = cell_means(results.scores, results.missing)
    tests = compare(results.scores, first.name)
    tables = write_tables(cells, tests, first.model.modalities, said)
    write_evaluation(
        options.out,
        cells={
            **about,
            **about_data(options.data, options.split, cases, results, phantom=phantom),
            "seed": options.seed,
            "minutes": (time.monotonic() - start) / 60,
            "views": {
                "cases": {case: shown[case] for case in views},
                "spread_limit": SPREAD_LIMIT,
                "samples": options.samples,
            },
            "cells": cells,
        },
        cases=write_cases(results.scores),
        statistics={"model": first.name, "alpha": ALPHA, "tests": tests},
        coverage={
            "samples": options.samples,
            "levels": resolved(options.samples),
            "calibrated": {t.name: is_calibrated(t.model) for t in models},
            "intervals": INTERVALS,
            "cells": coverage_means(results.covered),
        },
        tables=tables,
        views=views,
    )
    if (options.model / "data.json").is_file():
        write_card(options.model, tables)
    minutes = (time.monotonic() - start) / 60
    print(f"{summary(cells, first.name)}\nWrote {options.out} ({minutes:.1f} minutes).")
    if results.problems:
        lost = counted(len(results.problems), "case was", "cases were")
        print(f"{lost} left out, of {len(test)}.", file=sys.stderr)
    return 1 if results.problems else 0


def _stop(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 3

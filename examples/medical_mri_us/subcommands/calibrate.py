"""``calibrate``: draws of a trained model that spread as they should, and how far they do."""

from __future__ import annotations

__all__ = ["Calibrate", "run"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from examples.medical_mri_us.calibration import calibrate_model, hold_out
from examples.medical_mri_us.card import write_card
from examples.medical_mri_us.config import read_config
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.data import (
    Case,
    CaseError,
    Slices,
    Subject,
    load_subjects,
    read_index,
    turned,
)
from examples.medical_mri_us.facts import read_data
from examples.medical_mri_us.models import load_model
from examples.medical_mri_us.outputs import open_folder
from examples.medical_mri_us.synthesis.slices import tile_stride
from examples.medical_mri_us.windows import tile_subject
from mmpoe.training import lock, save_checkpoint

FEW = 5
"""With fewer held-out cases than this, a calibration comes with a warning."""
HELD_OUT = "val"
"""The split of the cases that tell what helps, if the index has it."""


@dataclass(frozen=True)
class Calibrate:
    """Make draws of the model of a run spread as they should, for intervals that match errors.

    Matched experts and a spread around the prediction learn from the training cases; nothing else
    of the model changes. Cases of the split 'val', or one in five training cases if there are
    none, tell which of them improves draws, if any does, and how much 90 % intervals hold. A
    second calibration replaces the first, with the same result.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run."""
    data: Path | None = None
    """The index of the cases; by default, that of the training run."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An entry of the configuration to change, as in calibration.steps=100."""


def run(options: Calibrate) -> int:
    """Calibrates the model, and saves it with what improves its draws.

    Raises:
        ValueError: If an option cannot be used, no held-out case has two modalities, or the folder
            is in use.
        CaseError: If there is no case that can be used.
        CheckpointError: If the run has no model that can be read.
    """
    folder = open_folder(options.run)
    with lock(folder):
        return _calibrate(folder, options)


def _calibrate(folder: Path, options: Calibrate) -> int:
    model, description = load_model(folder / "model")
    config = read_config(folder / "config.toml", options.set)
    data = read_data(folder)
    index = Path(data["index"]) if options.data is None else options.data
    cases = read_index(index, model.modalities)
    training = [c for c in cases if c.split == data["split"]]
    axes = description.get("axes")
    subjects = _load(training, axes)
    if not subjects:
        raise CaseError(f"{index}: none of {counted(len(training), 'training case')} can be used.")
    held_out = _load([c for c in cases if c.split == HELD_OUT], axes)
    held_out = [s for s in held_out if len(s.images) > 1]
    if not held_out:
        subjects, held_out = hold_out(subjects)
        tell = "training case tells", "training cases tell"
        print(
            f"{index} has no split '{HELD_OUT}': {counted(len(held_out), *tell)} what helps. "
            "The model has learned from them, so that it may be further off on new ones."
        )
    if not held_out or not subjects:
        raise ValueError(
            f"{index} should list two cases that have two modalities, to learn from one and to "
            "measure on the other."
        )
    number = len(held_out)
    stride = tile_stride(model, config.size)
    tiles, held_out = (
        [tile for s in some for tile in tile_subject(s, config.size, stride)]
        for some in (subjects, held_out)
    )
    parts = ("slice",) if len(tiles) == len(subjects) else ("tile of slices", "tiles of slices")
    complete = [tile for tile in tiles if len(tile.images) == len(model.modalities)]
    print(
        f"Calibrating on {counted(len(Slices(tiles)), *parts)}, {len(Slices(complete))} of them "
        f"complete, of {counted(len(subjects), 'case')}."
    )
    if number < FEW:
        print(f"So few held-out cases ({number}) can hardly tell: check the coverage.")

    settings = config.calibration
    torch.manual_seed(config.training.seed)
    if torch.cuda.is_available():
        model.cuda()
    with tqdm(
        total=settings.steps + settings.spread_steps, desc="Calibrating", unit="step"
    ) as bar:

        def show(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.5g}", refresh=False)
            bar.update()

        found = calibrate_model(model, tiles, held_out, settings, report=show)
    code = 130 if found.interrupted else 0
    print(found.told())
    if found.interrupted and found.kept is None:
        print("It was stopped: what was saved before stays.")
        return code
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    facts = found.facts(settings, tiles, number)
    save_checkpoint(folder / "model", state, {**description, **facts})
    write_card(folder)
    return code


def _load(cases: Sequence[Case], axes: str | None) -> list[Subject]:
    """Loads cases, and turns them to the axes of the model."""
    return [turned(s, axes) for s in load_subjects(cases)[0]]

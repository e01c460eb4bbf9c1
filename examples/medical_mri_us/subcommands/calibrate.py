"""``calibrate``: matched experts for a trained model, for samples that spread as they should."""

from __future__ import annotations

__all__ = ["Calibrate", "run"]

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from examples.medical_mri_us.card import write_card
from examples.medical_mri_us.config import read_config
from examples.medical_mri_us.counts import counted
from examples.medical_mri_us.covariates import NAME, Covariates
from examples.medical_mri_us.data import (
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
from mmpoe.imputation import calibrate
from mmpoe.models import MMHVAE
from mmpoe.training import lock, save_checkpoint

FEW = 5
"""With fewer complete cases than this, a calibration comes with a warning."""


@dataclass(frozen=True)
class Calibrate:
    """Fit matched experts to the model of a run, for standard deviations that match errors.

    They learn from the training cases, complete ones above all; nothing else of the model changes.
    A model that has matched experts gets new ones, which start afresh. If no step improves them,
    the model stays as it was.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run."""
    data: Path | None = None
    """The index of the cases; by default, that of the training run."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An entry of the configuration to change, as in calibration.steps=100."""


class Samples(Sequence[dict[str, Tensor]]):
    """The slices of some subjects, each a mapping of what was observed.

    Arguments:
        subjects: The subjects.
        model: The model that is to see them.
    """

    def __init__(self, subjects: Sequence[Subject], model: MMHVAE) -> None:
        self.slices = Slices(subjects, slices=getattr(model, "slices", 1))
        self.covariates: Covariates = getattr(model, "covariates", Covariates())

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # pyright: ignore
        images, _ = self.slices[index]
        if not self.covariates:
            return dict(images)
        further = self.slices.subjects[self.slices.places[index][0]].further
        context = {NAME: torch.tensor(self.covariates.numbers(further))}
        return {**images, "context": context}  # pyright: ignore[reportReturnType]


def run(options: Calibrate) -> int:
    """Fits the experts, and saves the model with them if they are better than at the start.

    Raises:
        ValueError: If an option cannot be used, no training case has all modalities, or the folder
            is in use.
        CaseError: If there is no case that can be used.
        CheckpointError: If the run has no model that can be read.
    """
    folder = open_folder(options.run)
    with lock(folder):
        return _calibrate(folder, options)


def _calibrate(folder: Path, options: Calibrate) -> int:
    model, description = load_model(folder / "model")
    if model.is_matched:
        print("The model was calibrated before: its matched experts start afresh.")
        for group in model.groups:
            group.matched = None
    config = read_config(folder / "config.toml", options.set)
    data = read_data(folder)
    index = Path(data["index"]) if options.data is None else options.data
    cases = [c for c in read_index(index, model.modalities) if c.split == data["split"]]
    loaded = [turned(s, description.get("axes")) for s in load_subjects(cases)[0]]
    if not loaded:
        raise CaseError(f"{index}: none of {counted(len(cases), 'training case')} can be used.")
    stride = tile_stride(model, config.size)
    subjects = [tile for s in loaded for tile in tile_subject(s, config.size, stride)]
    whole = [s for s in loaded if len(s.images) == len(model.modalities)]
    samples = Samples(subjects, model)
    complete = [s for s in subjects if len(s.images) == len(model.modalities)]
    complete = len(Samples(complete, model))
    parts = ("slice",) if len(subjects) == len(loaded) else ("tile of slices", "tiles of slices")
    print(
        f"Fitting matched experts to {counted(len(samples), *parts)}, {complete} of them "
        f"complete, of {counted(len(whole), 'case')}."
    )
    if 0 < len(whole) < FEW:
        print("So few complete cases can hardly tell how others spread: check the coverage.")

    settings = config.calibration
    torch.manual_seed(config.training.seed)
    if torch.cuda.is_available():
        model.cuda()
    bar = tqdm(total=settings.steps, desc="Calibrating", unit="step")

    def show(step: int, loss: float) -> None:
        bar.set_postfix(loss=f"{loss:.5g}", refresh=False)
        bar.update()

    with bar:
        history = calibrate(
            model,
            samples,
            teacher=settings.teacher,
            steps=settings.steps,
            batch_size=settings.batch,
            lr=settings.lr,
            held_out=settings.held_out,
            after_step=show,
        )
    code = 130 if history.interrupted else 0
    if history.best == 0:
        before = "calibrated as before" if description.get("calibrated") else "not calibrated"
        print(
            f"No step of {len(history.losses)} improved the matched experts: the model stays as "
            f"it was, {before}."
        )
        return code
    how = {
        **asdict(settings),
        "steps": history.best,
        "slices": len(samples),
        "complete": complete,
        "complete_cases": len(whole),
        "interrupted": history.interrupted,
    }
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    save_checkpoint(
        folder / "model", state, {**description, "calibrated": True, "calibration": how}
    )
    write_card(folder)
    losses = list(history.held_out.values()) or history.losses[:1] + history.losses[-1:]
    print(f"Held-out loss {losses[0]:.1f} -> {min(losses):.1f} nats, at step {history.best}.")
    return code

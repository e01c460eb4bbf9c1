"""Keeps a run in a folder: checkpoints from which it resumes bit for bit, and a log."""

from __future__ import annotations

__all__ = ["Keeper"]

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._formats import FORMAT, migrate
from .batches import Stream
from .checkpoint import OWN, CheckpointError, check_description, load_weights
from .files import check_writable, lock, sweep
from .folder import Checkpoints
from .log import Log, Watch, recent
from .processes import ProcessesWarning, gather
from .run import History, Run
from .steps import Report, Steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Keeper:
    """Writes what a :class:`Run` asks for, and restores a run that was stopped.

    Arguments:
        run: What to keep, and where.
        fabric: What runs the training.
        stepper: The learners and the averaged weights.
        stream: The batches, with their position and random state.
        history: The history, which is restored too.
    """

    def __init__(
        self, run: Run, fabric: Fabric, stepper: Steps, stream: Stream, history: History
    ) -> None:
        self.run, self.fabric, self.stepper = run, fabric, stepper
        self.stream, self.history = stream, history
        self.folder = Path(run.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.model = stepper.model.network
        names = getattr(self.model, "modalities", None)
        own = {} if names is None else {"modalities": list(names)}
        self.description = {**own, **run.description}
        self.first = fabric.global_rank == 0
        self.log: Log | None = None
        self.known: set[str] = set()  # groups whose collapse was reported
        self.best: tuple[int, float] | None = None
        self.saved = -1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Locks the folder, restores the last checkpoint if asked to, and opens the log.

        Raises:
            OSError: If the folder cannot be written to.
            ValueError: If the folder holds checkpoints and the run is not to resume, it is in use,
                JSON cannot hold the description, or that has a key of the checkpoint itself.
            CheckpointError: If the last checkpoint is damaged, or that of another run.
        """
        self._check_description()
        if self.first:
            check_writable(self.folder)
        with ExitStack() as stack:
            if self.first:
                stack.enter_context(lock(self.folder))
                sweep(self.folder)
                self.checkpoints.clean()
            steps = self.checkpoints.steps()
            if steps and not self.run.resume:
                raise ValueError(
                    f"'folder' should be a new one, or 'resume' be True, but {self.folder} holds "
                    f"checkpoints up to step {steps[-1]}."
                )
            if steps:
                self._load(steps[-1])
            if self.first:
                done = len(self.history.bounds)
                self.log = Log(self.folder, done, tensorboard=self.run.tensorboard)
                stack.callback(self.log.close)
            self.fabric.barrier()
            yield

    def _check_description(self) -> None:
        try:
            json.dumps(self.description)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"'description' should be something JSON holds: {error}.") from error
        for key in OWN:
            if key in self.description:
                raise ValueError(
                    f"'description' should not hold {key!r}, a key of the checkpoint itself, "
                    f"but holds {self.description[key]!r} there."
                )

    def logs(self, number: int) -> bool:
        """Whether a row of the log is due after a number of steps."""
        return number % self.run.log_every == 0 or self._saves(number)

    def after_step(self, report: Report, lr: float, watch: Watch, done: float) -> None:
        """Logs and saves what is due.

        Arguments:
            report: The numbers of the step.
            lr: Its learning rate.
            watch: The divergences of its latent groups.
            done: The share of the run done before it.
        """
        number = len(self.history.bounds)
        if self.logs(number):
            row = {"lr": lr, "bound": recent(self.history.bounds, self.run.log_every)}
            if len(report.losses) > 1:
                row["adversary"] = report.losses[1]
            row |= {"norm": report.norms[0], **watch.kl, "skipped": self.history.skipped}
            if self._saves(number):
                row |= self._evaluate()
            self._write(row)
            if self.first and done >= 0.5:
                watch.warn(self.known)
        if self._saves(number):
            self._save()

    def finish(self) -> None:
        """Saves the last state, unless that was done."""
        if self.saved != len(self.history.bounds):
            score = {} if self.history.interrupted else self._evaluate()
            if score:
                self._write(score)
            self._save()

    def _saves(self, number: int) -> bool:
        return number % self.run.save_every == 0 and not self.history.interrupted

    def _write(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            number, seconds = len(self.history.bounds), round(self.history.seconds, 3)
            # columns for which the first row may have no number
            later = ["adversary"] * (len(self.stepper.learners) > 1)
            later += ["score"] * (self.run.evaluate is not None)
            first = {"step": number, "seconds": seconds}
            self.log.write({**first, **row, **{name: row.get(name, "") for name in later}})

    def _evaluate(self) -> dict[str, float]:
        """Writes images, and returns the score, if there is one, noted if it is the best."""
        run = self.run
        if self.log is None or (run.evaluate is None and run.images is None):
            return {}
        model, number, score = self._averaged(), len(self.history.bounds), None
        with self.stream.randomness.kept(), torch.no_grad():
            if run.images is not None:
                self.log.show(number, run.images(model, number))
            if run.evaluate is not None:
                score = run.evaluate(model, number)
        if score is None:
            return {}
        score = float(score)
        if not math.isnan(score) and (self.best is None or score > self.best[1]):
            self.best = (number, score)
        return {"score": score}

    def _averaged(self) -> nn.Module:
        """The model with averaged weights, or with its own before the first step."""
        averaged = self.stepper.averaged
        if averaged.n_averaged == 0:
            averaged.module.load_state_dict(self.model.state_dict())
        return averaged.module

    def _save(self) -> None:
        number, stream = len(self.history.bounds), self.stream
        start = gather(self.fabric, stream.start)
        now = gather(self.fabric, stream.randomness.state_dict())
        if self.first:
            state = {
                **self.stepper.state_dict(),
                "also": {name: part.state_dict() for name, part in self.run.also.items()},
                "format": FORMAT,
                "passes": stream.passes,
                "position": stream.position,
                "start": start,
                "deal": stream.deal,
                "random": now,
                "bounds": torch.tensor(self.history.bounds, dtype=torch.float64),
                "seconds": self.history.seconds,
                "best": self.best,
                "known": sorted(self.known),
            }
            self.history.checkpoint = self.checkpoints.save(
                number,
                self._averaged().state_dict(),
                {"step": number, "torch": torch.__version__, **self.description},
                state,
                best=None if self.best is None else self.best[0],
            )
        self.saved = number
        self._note_best()

    def _load(self, step: int) -> None:
        path = self.checkpoints.path(step)
        weights, description, state = self.checkpoints.load(step)
        state = migrate(state, path)
        check_description(description, self.description, path)
        try:
            self._restore(weights, state, path)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} should hold the state of a run, but it cannot be restored: {error!r}."
            ) from error
        self._note_best()

    def _restore(self, weights: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        self._check_parts(state, path)
        load_weights(self.stepper.averaged.module, weights, path)
        self.stepper.load_state_dict(state, path)

        rank, states = self.fabric.global_rank, state["random"]
        place = state["passes"], state["position"]
        if len(states) == self.fabric.world_size:
            self.stream.seek(*place, state["start"][rank], state["deal"])
        for name, part in self.run.also.items():
            part.load_state_dict(state["also"][name])
        if len(states) == self.fabric.world_size:
            self.stream.randomness.load_state_dict(states[rank])
        else:
            self._warn_of_processes(len(states))
            self.stream.take_over(*place, state["start"][0], state["deal"], states)

        self.history.bounds = state["bounds"].tolist()
        self.history.skipped, self.history.seconds = state["skipped"], state["seconds"]
        self.best, self.known = state["best"], set(state["known"])
        self.saved, self.history.checkpoint = len(self.history.bounds), path

    def _warn_of_processes(self, before: int) -> None:
        if self.first:
            now = self.fabric.world_size
            warnings.warn(
                f"The run was on {before} process{'es' * (before > 1)}, and resumes on {now}: its "
                f"batches are the same, dealt out anew. A step is the mean over {now} of them "
                f"(times 'accumulate') in place of {before}, so that weights will not be "
                "bit-identical to those of a run that was not stopped.",
                ProcessesWarning,
                stacklevel=2,
            )

    def _check_parts(self, state: dict[str, Any], path: Path) -> None:
        """Raises a CheckpointError if a state lacks a part that changes."""
        for name in self.run.also:
            if name not in state["also"]:
                raise CheckpointError(
                    f"{path} should hold {name!r}, of 'also', but holds "
                    f"{', '.join(map(repr, state['also'])) or 'nothing'} of that kind."
                )

    def _note_best(self) -> None:
        if self.best is not None:
            self.history.best = self.checkpoints.path(self.best[0])

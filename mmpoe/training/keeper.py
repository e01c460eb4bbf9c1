"""Keeps a training: checkpoints that it can go on from to the last bit, and a log."""

from __future__ import annotations

__all__ = ["Keeper"]

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel

from .batches import Stream
from .checkpoint import CheckpointError, check_description, load_weights
from .distributed import gather
from .files import check_writable
from .folder import Checkpoints, lock
from .log import Log, Watch
from .randomness import Randomness
from .run import History, Run
from .steps import Steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Keeper:
    """Writes what a :class:`Run` asks for, and puts a training back to where one was stopped.

    Arguments:
        run: What to keep, and where.
        fabric: What runs the training.
        stepper: Who learns, and the number of skipped steps.
        averaged: The averaged weights.
        stream: The batches, and the place in them.
        randomness: All that random numbers are drawn from.
        history: What has happened; brought up to date when a training goes on.
    """

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        stepper: Steps,
        averaged: AveragedModel,
        stream: Stream,
        randomness: Randomness,
        history: History,
    ) -> None:
        self.run, self.fabric, self.stepper, self.averaged = run, fabric, stepper, averaged
        self.stream, self.randomness, self.history = stream, randomness, history
        self.folder = Path(run.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.model = stepper.learners[0].network
        names = getattr(self.model, "modalities", None)
        own = {} if names is None else {"modalities": list(names)}
        self.description = {**own, **run.description}
        self.first = fabric.global_rank == 0
        self.log: Log | None = None
        self.known: set[str] = set()  # groups whose collapse was told
        self.best: tuple[int, float] | None = None
        self.saved = -1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Goes on from the last checkpoint, if asked to, and keeps the folder to itself.

        Raises:
            OSError: If the folder cannot be written to.
            ValueError: If the folder holds checkpoints and is not to be resumed, is in use, or the
                description is nothing that JSON can hold.
            CheckpointError: If the last checkpoint cannot be gone on from.
        """
        try:
            json.dumps(self.description)
        except (TypeError, ValueError) as error:
            raise ValueError(f"'description' should be something JSON holds: {error}.") from error
        if self.first:
            check_writable(self.folder)
        with ExitStack() as stack:
            if self.first:
                stack.enter_context(lock(self.folder))
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

    def logs(self, number: int) -> bool:
        """Whether there is to be a row of the log after a number of steps."""
        return number % self.run.log_every == 0 or self._saves(number)

    def after_step(self, row: dict[str, Any], watch: Watch, done: float) -> None:
        """Logs and saves what is due.

        Arguments:
            row: What to log of the step.
            watch: What was seen of the latent groups.
            done: The share of the training done before the step.
        """
        number = len(self.history.bounds)
        if self.logs(number):
            score = self._evaluate() if self._saves(number) else {}
            self._write({**row, "skipped": self.history.skipped, **score})
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
            # columns that the first row has no number for
            later = ["adversary"] * (len(self.stepper.learners) > 1)
            later += ["score"] * (self.run.evaluate is not None)
            first = {"step": number, "seconds": seconds}
            self.log.write({**first, **row, **{name: row.get(name, "") for name in later}})

    def _evaluate(self) -> dict[str, float]:
        """Shows images, and returns the score, if there is one, noted if it is the best."""
        if self.log is None or (self.run.evaluate is None and self.run.images is None):
            return {}
        model, number, score = self._averages(), len(self.history.bounds), None
        with self.randomness.kept(), torch.no_grad():
            if self.run.images is not None:
                self.log.show(number, self.run.images(model, number))
            if self.run.evaluate is not None:
                score = self.run.evaluate(model, number)
        if score is None:
            return {}
        score = float(score)
        if not math.isnan(score) and (self.best is None or score > self.best[1]):
            self.best = (number, score)
        return {"score": score}

    def _averages(self) -> torch.nn.Module:
        if self.averaged.n_averaged == 0:
            self.averaged.module.load_state_dict(self.model.state_dict())
        return self.averaged.module

    def _save(self) -> None:
        number = len(self.history.bounds)
        start = gather(self.fabric, self.stream.start)
        now = gather(self.fabric, self.randomness.state_dict())
        if self.first:
            scaler = self.stepper.scaler
            state = {
                "learners": [learner.state_dict() for learner in self.stepper.learners],
                "averaged": int(self.averaged.n_averaged),
                "scaler": None if scaler is None else scaler.state_dict(),
                "also": {name: part.state_dict() for name, part in self.run.also.items()},
                "passes": self.stream.passes,
                "position": self.stream.position,
                "start": start,
                "random": now,
                "bounds": torch.tensor(self.history.bounds, dtype=torch.float64),
                "skipped": self.stepper.skipped,
                "row": self.stepper.row,
                "restarted": self.stepper.restarted,
                "seconds": self.history.seconds,
                "best": self.best,
                "known": sorted(self.known),
            }
            self.history.checkpoint = self.checkpoints.save(
                number,
                self._averages().state_dict(),
                {"step": number, "torch": torch.__version__, **self.description},
                state,
                best=None if self.best is None else self.best[0],
            )
        self.saved = number
        self._note()

    def _load(self, step: int) -> None:
        path = self.checkpoints.path(step)
        weights, description, state = self.checkpoints.load(step)
        check_description(description, self.description, path)
        processes, learners = len(state["random"]), self.stepper.learners
        if processes != self.fabric.world_size:
            raise CheckpointError(
                f"{path} should be of {self.fabric.world_size} processes, as this run is, "
                f"but is of {processes}."
            )
        if len(state["learners"]) != len(learners):
            raise CheckpointError(
                f"{path} should be of a training with{'out' * (len(learners) == 1)} an adversary, "
                "as this run is, but is not."
            )
        for name in self.run.also:
            if name not in state["also"]:
                raise CheckpointError(
                    f"{path} should hold {name!r}, of 'also', but holds "
                    f"{', '.join(map(repr, state['also'])) or 'nothing'} of that kind."
                )
        load_weights(self.averaged.module, weights, path)
        self.averaged.n_averaged.fill_(state["averaged"])
        for learner, entry in zip(learners, state["learners"], strict=True):
            learner.load_state_dict(entry, path)
        if self.stepper.scaler is not None and state["scaler"]:
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.stepper.skipped, self.stepper.row = state["skipped"], state["row"]
        self.stepper.restarted = state["restarted"]

        rank = self.fabric.global_rank
        self.stream.seek(state["passes"], state["position"], state["start"][rank])
        for name, part in self.run.also.items():
            part.load_state_dict(state["also"][name])
        self.randomness.load_state_dict(state["random"][rank])

        self.history.bounds = state["bounds"].tolist()
        self.history.skipped, self.history.seconds = state["skipped"], state["seconds"]
        self.best, self.known, self.saved = state["best"], set(state["known"]), step
        self.history.checkpoint = path
        self._note()

    def _note(self) -> None:
        if self.best is not None:
            self.history.best = self.checkpoints.path(self.best[0])

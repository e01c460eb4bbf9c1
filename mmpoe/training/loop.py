"""The training loop."""

from __future__ import annotations

__all__ = ["fit"]

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmpoe.extras import needs

from ._keeper import Keeper
from .batches import Stream
from .log import Sign, Watch, recent
from .processes import SIGNALS, Precision, deferred_signals, explained, make_fabric, mean
from .run import Adversary, Cosine, History, Optimizer, Run, check, check_integer
from .steps import Learner, Report, Steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Objective = Callable[[Any, Any, float], Tensor]


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective,
    *,
    steps: int,
    minutes: float | None = None,
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    schedule: Cosine = Cosine(),  # noqa: B008
    adversary: Adversary | None = None,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    run: Run | None = None,
    progress: bool = True,
) -> History:
    r"""Maximises an objective by gradient steps, and leaves a model with averaged weights.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current step, with the averaged weights; a
    second signal acts at once. Started by ``torchrun``, each process has its share of the batches,
    and the gradient is the mean over processes.

    Arguments:
        model: The model, compiled by :func:`torch.compile` or not; it holds the averaged weights
            at the end, in evaluation mode, on the device that it was trained on.
        batches: The batches, iterated again and again: any structure of tensors. A run that
            resumes draws those of the pass again up to where it was. It does not if they are
            those of a DataLoader whose batch sampler has a length and a method ``skip(number)``,
            an iterator over the rest of the pass behind its first `number` batches. It draws
            from generators at its first batch alone, what ``iter`` of the sampler draws there;
            samples should draw from none.
        objective: Called with the model, a batch and the share of the run done so far (0 to 1);
            returns one bound per sample, whose mean is maximised. Return the negative of a loss,
            such as :func:`~mmpoe.objectives.posterior_matching`. An objective that rewards
            divergence in the first step, as the negative of a bound does, is told with an
            :class:`ObjectiveWarning`, unless the model is compiled.
        steps: The number of steps.
        minutes: The longest time that the run may take, if there is a limit; the share of the run
            done is that of steps or of time, whichever is larger.
        optimizer: The optimiser: learning rate, weight decay, clipping, averaging and so on.
        schedule: The learning rate over the run.
        adversary: Networks to train against the model.
        precision: ``"32-true"``; ``"bf16-mixed"``; or, on a GPU, ``"16-mixed"``. On a CPU without
            units for bfloat16, the second one is the first, and a warning in the log says so.
        accelerator: ``"cpu"``, ``"cuda"``, or ``"auto"``, a GPU if there is one.
        run: Where to keep checkpoints and a log, if anywhere.
        progress: Whether to show a progress bar.

    Returns:
        The history of the run.

    Raises:
        TypeError: If `optimizer` is not an :class:`Optimizer`.
        ValueError: If `objective` or the loss of `adversary` returns something else than numbers
            with a gradient, a number is outside its range, `batches` has no batch or can be
            iterated only once (and is too short for all steps), or the folder of the run holds
            checkpoints and it is not to resume, or is in use.
        CheckpointError: If the checkpoint to resume from is damaged, of a later version of mmpoe,
            or that of another model or kind of optimiser.
        NonFiniteError: If too many steps in a row were skipped; the message says where the batches
            of the last one were saved.
        DeviceMemoryError: If the device has run out of memory; the message says what needs less.
        WorkerError: If a process of a DataLoader has died; the message says what it may have been
            loading.
        OSError: If the folder of the run cannot be written to, which is found before the first
            step, or a checkpoint cannot; older ones are unchanged.

    References:
        | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019)
        | https://arxiv.org/abs/1711.05101
    """
    check_integer("steps", steps, 1)
    check("minutes", minutes, "positive or None", minutes is None or minutes > 0)
    if not isinstance(optimizer, Optimizer):
        made = isinstance(optimizer, torch.optim.Optimizer)
        shown = f"an instance of {type(optimizer).__name__}" if made else repr(optimizer)
        raise TypeError(
            "'optimizer' should be options, from which 'fit' makes an optimiser, such as "
            f"Optimizer(lr=1e-3, make=torch.optim.Adamax), but is {shown}."
        )

    fabric = make_fabric(precision, accelerator)
    model.train()
    learners = _learners(fabric, model, objective, optimizer, adversary)
    stepper = Steps(fabric, learners, optimizer, None if run is None else Path(run.folder))
    stream, history = _stream(fabric, batches), History()
    keeper = None if run is None else Keeper(run, fabric, stepper, stream, history)
    with explained(stream, history), ExitStack() as stack:
        if keeper is not None:
            stack.enter_context(keeper.opened())
        heard = stack.enter_context(deferred_signals())
        bar = stack.enter_context(
            _bar(len(history.bounds), steps, shown=progress and fabric.global_rank == 0)
        )
        start = time.monotonic() - history.seconds
        while history.signal is None and (done := _done(history, steps, minutes)) < 1:
            number, watch, sign = len(history.bounds) + 1, Watch(), Sign()
            lr = schedule(optimizer.lr, number - 1, done)
            active = keeper is not None and keeper.logs(number)
            with watch.over(model, active=active), sign.over(model, active=number == 1):
                report = stepper.take(stream, done, lr)
            sign.warn()
            history.bounds.append(-report.losses[0])
            history.skipped = stepper.skipped
            history.seconds, history.signal = _agree(fabric, time.monotonic() - start, heard)
            _show(bar, history, report)
            if keeper is not None:
                keeper.after_step(report, lr, watch, done)
        if keeper is not None:
            keeper.finish()

    history.seconds = time.monotonic() - start
    if stepper.averaged.n_averaged > 0:
        stepper.model.network.load_state_dict(stepper.averaged.module.state_dict())
    model.eval()
    return history


def _learners(
    fabric: Fabric,
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    adversary: Adversary | None,
) -> list[Learner]:
    """The model, and its adversary if there is one."""

    def loss(batch: object, done: float) -> Tensor:
        bound = objective(model, batch, done)
        _check_result("objective", bound)
        return -bound

    learners = [Learner(fabric, _unwrapped(model), loss, optimizer.build)]
    if adversary is not None:
        network, against = adversary.network.train(), adversary.loss

        def loss_of_adversary(batch: object, done: float) -> Tensor:
            result = against(network, batch, done)
            _check_result("adversary.loss", result)
            return result

        own = _unwrapped(network)
        learners.append(Learner(fabric, own, loss_of_adversary, adversary.build, adversary.start))
    return learners


def _check_result(argument: str, result: object) -> None:
    """Raises a ValueError unless a function returned numbers with a gradient."""
    shown = None
    if not isinstance(result, Tensor):
        shown = f"a {type(result).__name__}"
    elif not result.is_floating_point() or result.dim() > 2 or result.numel() == 0:
        shown = f"dtype {result.dtype} and shape {tuple(result.shape)}"
    elif not result.requires_grad:
        shown = "a tensor without a gradient: was it detached, or computed under no_grad?"
    if shown is not None:
        raise ValueError(
            f"'{argument}' should return a tensor with one number per sample, of shape (B) or "
            f"(S, B), or their mean, with a gradient, but returns {shown}."
        )


def _unwrapped(network: nn.Module) -> nn.Module:
    """Unwraps a compiled module, whose parameters have other names."""
    return getattr(network, "_orig_mod", network)


def _stream(fabric: Fabric, batches: Iterable[Any]) -> Stream:
    """This process's share of the batches; all but the first process get noise of their own."""
    rank, world = fabric.global_rank, fabric.world_size
    seed = fabric.broadcast(torch.initial_seed() % 2**62)
    stream = Stream(batches, fabric.device, rank, world, seed)
    if rank > 0:
        stream.randomness.seed(seed + rank)
    return stream


def _done(history: History, steps: int, minutes: float | None) -> float:
    """The share of the run done: that of steps or of time, whichever is larger."""
    share = len(history.bounds) / steps
    return share if minutes is None else max(share, history.seconds / (60 * minutes))


def _agree(fabric: Fabric, seconds: float, heard: Sequence[int]) -> tuple[float, int | None]:
    """The time and the signal, if there was one, that all processes agree on."""
    flags = [float(number in heard) for number in SIGNALS]
    seconds, *flags = mean(fabric, [seconds, *flags])
    flagged = [int(number) for number, flag in zip(SIGNALS, flags, strict=True) if flag]
    return seconds, flagged[0] if flagged else None


def _bar(done: int, steps: int, *, shown: bool) -> Any:  # noqa: ANN401
    with needs("train"):  # imported here, so that importing mmpoe stays cheap
        from tqdm.auto import tqdm

    return tqdm(total=steps, initial=done, desc="Training", unit="step", disable=not shown)


def _show(bar: Any, history: History, report: Report) -> None:  # noqa: ANN401
    """Shows the recent bound, and the loss of an adversary that takes part."""
    losses = [("bound", recent(history.bounds, 50))]
    losses += [("adversary", loss) for loss in report.losses[1:]]
    bar.set_postfix({name: f"{loss:.4g}" for name, loss in losses}, refresh=False)
    bar.update()

"""The log of a run: rows of numbers, images, and whether latent groups are in use."""

from __future__ import annotations

__all__ = ["CollapseWarning", "ObjectiveWarning"]

import csv
import io
import itertools
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from mmpoe.extras import needs
from mmpoe.hierarchy import LatentGroup, Step
from mmpoe.models import Output
from mmpoe.objectives import collapsed, group_kl

from .files import write_file


class CollapseWarning(UserWarning):
    """Posterior collapse: the divergence of a latent group is near zero."""


class ObjectiveWarning(UserWarning):
    """An objective rises with the divergence of the latents, as a loss does."""


class Log:
    """Rows of numbers by step in a CSV file, and images; for TensorBoard too, if asked for.

    The first row names the columns. When a run resumes from `step`, later rows are dropped.

    Arguments:
        folder: Where to write ``log.csv`` and the folder ``tensorboard`` or ``images``.
        step: The step from which the run resumes.
        tensorboard: Whether to write for TensorBoard too (extra ``mmpoe[tensorboard]``).
    """

    def __init__(self, folder: Path, step: int = 0, *, tensorboard: bool = False) -> None:
        self.path, self.folder = folder / "log.csv", folder / "images"
        self.writer: Any = None
        if tensorboard:
            with needs("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        self.columns: list[str] = []
        if self.path.exists():
            head, *rows = (self._read() if step else []) or [[]]
            self.columns = head
            kept = [head, *(row for row in rows if int(row[0]) <= step)]
            write_file(self.path, _text(kept if head else []).encode())

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row, which begins with its step."""
        lines = [] if self.columns else [list(row)]
        self.columns = self.columns or list(row)
        with self.path.open("a", newline="") as file:
            file.write(_text([*lines, [row.get(name, "") for name in self.columns]]))
        if self.writer is not None:
            for name, value in row.items():
                if name != "step" and value != "":
                    self.writer.add_scalar(name, value, int(row["step"]))
            self.writer.flush()

    def show(self, step: int, images: Mapping[str, Tensor]) -> None:
        """Writes images, for TensorBoard or else as PNG files.

        Arguments:
            step: The step.
            images: Images from 0 to 1 by name, with shape (N, C, H, W), where C is 1 or 3.

        Raises:
            ValueError: If they have another shape, or are not floating-point.
        """
        for name, several in images.items():
            holds = several.is_floating_point() and several.dim() == 4 and several.numel() > 0
            if not (holds and several.shape[1] in (1, 3)):
                raise ValueError(
                    f"'images' should return floating-point images of shape (N, C, H, W), where C "
                    f"is 1 or 3, but {name!r} has dtype {several.dtype} and shape "
                    f"{tuple(several.shape)}."
                )
            shown = several.detach().float().nan_to_num(0).clamp(0, 1).cpu()
            if self.writer is not None:
                self.writer.add_images(name, shown, step)
            else:
                self.folder.mkdir(exist_ok=True)
                # quoted, so that different names never share a file
                path = self.folder / f"{quote(name, safe=' ')}-{step:08d}.png"
                write_file(path, png(shown))

    def _read(self) -> list[list[str]]:
        """The rows of the log, the names first; of a damaged log none, which is kept aside."""
        try:
            return _rows(self.path.read_bytes())
        except (csv.Error, ValueError) as error:
            places = (self.path.with_name(f"log-damaged-{i}.csv") for i in itertools.count(1))
            aside = next(place for place in places if not place.exists())
            self.path.replace(aside)
            warnings.warn(
                f"{self.path} was damaged ({error}): it is kept as {aside.name}, and the log "
                "begins anew.",
                stacklevel=5,
            )
            return []

    def close(self) -> None:
        """Closes the writer of TensorBoard."""
        if self.writer is not None:
            self.writer.close()


class Watch:
    """The divergences of the latent groups in the last inference of a model.

    Attributes:
        kl: The mean divergence of each group, in nats, by name, coarse to fine: ``kl_1``,
            ``kl_2``, ... Empty if there was none: the model has no latent groups, or is compiled
            and was not called.
        collapsed: The names of the groups that have collapsed, see
            :func:`mmpoe.objectives.collapsed`.
    """

    def __init__(self) -> None:
        self.kl: dict[str, float] = {}
        self.collapsed: list[str] = []

    @contextmanager
    def over(self, model: nn.Module, *, active: bool = True) -> Iterator[None]:
        """Watches a model in a ``with`` block, if `active`."""
        if not active:
            yield
            return
        handles = [model.register_forward_hook(self._look)]
        if not hasattr(model, "_orig_mod"):  # hooks inside a compiled model would compile it anew
            groups = [module for module in model.modules() if isinstance(module, LatentGroup)]
            steps: list[Step] = []  # of one inference, coarse to fine
            for level, group in enumerate(groups):
                look = partial(self._look_at_group, steps, level, len(groups))
                handles.append(group.register_forward_hook(look))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def warn(self, known: set[str]) -> None:
        """Warns of collapsed groups that are not known yet."""
        new = [name for name in self.collapsed if name not in known]
        known.update(new)
        if new:
            values = ", ".join(f"{name} = {self.kl[name]:.2g} nats" for name in new)
            warnings.warn(
                f"{len(new)} of {len(self.kl)} latent groups, counted from the coarsest, have "
                f"collapsed: {values}. A slower warm-up of the divergence, or free bits (see "
                "mmpoe.objectives), may bring them into use.",
                CollapseWarning,
                stacklevel=4,
            )

    def _look(self, model: nn.Module, inputs: object, output: Any) -> None:  # noqa: ANN401
        if getattr(output, "kl", None) and getattr(output, "posteriors", None):
            self._note(output)

    def _look_at_group(
        self, steps: list[Step], level: int, groups: int, _: nn.Module, inputs: object, step: Step
    ) -> None:
        """Collects the steps of an inference, which objectives run without a call of the model."""
        steps[level:] = [step]
        if len(steps) == groups:
            self._note(Output({}, [s.kl for s in steps], [], [s.posterior for s in steps], []))
            steps.clear()

    def _note(self, output: Output) -> None:
        values, flags = group_kl(output).tolist(), collapsed(output).tolist()
        names = [f"kl_{i + 1}" for i in range(len(values))]
        self.kl = dict(zip(names, values, strict=True))
        self.collapsed = [n for n, flag in zip(names, flags, strict=True) if flag]


class Sign:
    r"""Tells bounds from losses: a bound falls with each divergence that it contains.

    .. math:: \partial \, \mathrm{bound} / \partial \, \mathrm{KL}_{lb} = -\beta / B \le 0

    for the divergence of group :math:`l` and sample :math:`b`. An objective without divergences
    tells nothing.
    """

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []  # of the loss, the negative of the objective

    @contextmanager
    def over(self, model: nn.Module, *, active: bool = True) -> Iterator[None]:
        """Looks at the gradients of a step in a ``with`` block, if `active`."""
        if not active or hasattr(model, "_orig_mod"):
            yield
            return
        groups = [module for module in model.modules() if isinstance(module, LatentGroup)]
        handles = [group.register_forward_hook(self._look) for group in groups]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def warn(self) -> None:
        """Warns if the objective rewards divergence, and nowhere holds it down."""
        values = torch.cat(self.gradients) if self.gradients else torch.zeros(1)
        if bool((values <= 0).all() & (values < 0).any()):
            warnings.warn(
                "'objective' rises with the divergence of the latents, which a bound should hold "
                "down: 'fit' maximises. If it is a loss, return its negative.",
                ObjectiveWarning,
                stacklevel=3,
            )

    def _look(self, group: nn.Module, inputs: object, step: Step) -> None:
        if step.kl.requires_grad:
            step.kl.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        self.gradients.append(gradient.detach().flatten().float().cpu())


def recent(values: Sequence[float], number: int) -> float:
    """Returns the mean of the last values, leaving out those that are not finite."""
    finite = [value for value in values[-number:] if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def png(images: Tensor) -> bytes:
    r"""Returns images side by side, as a PNG file.

    Arguments:
        images: The images, from 0 (black) to 1, with shape :math:`(N, C, H, W)`, where :math:`C`
            is 1 or 3.

    Example:
        >>> png(torch.zeros(2, 1, 8, 8))[:4]
        b'\x89PNG'
    """
    row = torch.cat(list(images), dim=-1).permute(1, 2, 0)  # (H, N W, C)
    row = (255 * row).round().to(torch.uint8)
    height, width, channels = row.shape
    unfiltered = torch.zeros(height, 1, dtype=torch.uint8)  # a byte in front of each line
    lines = torch.cat([unfiltered, row.reshape(height, -1)], dim=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines.numpy().tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _rows(content: bytes) -> list[list[str]]:
    """The rows of a log, the names first, without a last one that is incomplete.

    Raises:
        ValueError: If anything else is not as :class:`Log` writes it.
    """
    text = content.decode()
    whole, _, _ = text.rpartition("\n")  # a process that is killed may leave a part of a line
    if "\0" in text:
        raise ValueError(f"it holds {text.count(chr(0))} null bytes")
    rows = list(csv.reader(whole.splitlines()))
    if rows and rows[0][:1] != ["step"]:
        raise ValueError(f"its first column should be 'step', but is {whole[:50]!r}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]) or not row[0].isdecimal():
            raise ValueError(f"line {number} should be a step and {len(rows[0]) - 1} numbers")
    return rows


def _text(rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()

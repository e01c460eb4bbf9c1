"""What a training tells: rows of numbers, and whether latent groups are in use."""

from __future__ import annotations

__all__ = ["CollapseWarning", "Log", "Watch"]

import csv
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from torch import Tensor, nn

from mmpoe.extras import needs
from mmpoe.objectives import collapsed, group_kl

from .files import write_file
from .pictures import check_images, png


class CollapseWarning(UserWarning):
    """A latent group holds next to nothing, so that the model does without it."""


class Log:
    """Rows of numbers by step, in a CSV file, and images; for TensorBoard if that is asked for.

    The first row says what the columns are. Rows after `step`, of a training that now goes on from
    there, are dropped.

    Arguments:
        folder: Where to write ``log.csv`` and the folder ``tensorboard`` or ``images``.
        step: The step that the training goes on from.
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
            head, *rows = list(csv.reader(self.path.read_text().splitlines())) or [[]]
            self.columns = head if step else []
            kept = [head, *(r for r in rows if len(r) == len(head) and int(r[0]) <= step)]
            write_file(self.path, _text(kept if step else []).encode())

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
            check_images(name, several)
            if self.writer is not None:
                shown = several.detach().float().nan_to_num(0).clamp(0, 1).cpu()
                self.writer.add_images(name, shown, step)
            else:
                self.folder.mkdir(exist_ok=True)
                # names may hold anything, and different ones must not meet in one file
                path = self.folder / f"{quote(name, safe=' ')}-{step:08d}.png"
                write_file(path, png(several.detach()))

    def close(self) -> None:
        """Closes what is open."""
        if self.writer is not None:
            self.writer.close()


class Watch:
    """Looks at the outputs of a model in a ``with`` block: how much each latent group holds.

    Attributes:
        kl: The mean divergence of each group in the last output, in nats, by name, coarse to fine:
            ``kl_1``, ``kl_2``, ... It is empty if nothing of the kind was seen.
        collapsed: The names of those groups that hold next to nothing, see
            :func:`mmpoe.objectives.collapsed`.

    Arguments:
        model: The model.
        active: Whether to look at all.
    """

    def __init__(self, model: nn.Module, *, active: bool = True) -> None:
        self.model, self.active = model, active
        self.kl: dict[str, float] = {}
        self.collapsed: list[str] = []

    def __enter__(self) -> Watch:
        if self.active:
            self._handle = self.model.register_forward_hook(self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.active:
            self._handle.remove()

    def warn(self, known: set[str]) -> None:
        """Warns of collapsed groups that are not known yet."""
        new = [name for name in self.collapsed if name not in known]
        known.update(new)
        if new:
            values = ", ".join(f"{name} = {self.kl[name]:.2g} nats" for name in new)
            warnings.warn(
                f"{len(new)} of {len(self.kl)} latent groups, counted from the coarsest, hold "
                f"next to nothing: {values}. A slower warm-up of the divergence, or free bits "
                "(see mmpoe.objectives), may bring them into use.",
                CollapseWarning,
                stacklevel=4,
            )

    def _look(self, model: nn.Module, inputs: object, output: Any) -> None:  # noqa: ANN401
        if getattr(output, "kl", None) and getattr(output, "posteriors", None):
            values, flags = group_kl(output).tolist(), collapsed(output).tolist()
            names = [f"kl_{i + 1}" for i in range(len(values))]
            self.kl = dict(zip(names, values, strict=True))
            self.collapsed = [n for n, flag in zip(names, flags, strict=True) if flag]


def _text(rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()

r"""The estimator: learns from a table with missing cells, and fills them."""

from __future__ import annotations

__all__ = ["MultimodalImputer"]

import inspect
import sys
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mmpoe.imputation import calibrate
from mmpoe.objectives import log_marginal
from mmpoe.training import Optimizer, fit

from ._network import Modality, SideBySide, build
from ._tables import KINDS, Column, Source, read, write

ROWS = 256
"""How many rows are filled at once."""
MOST_CALIBRATED = 62
"""How many modalities matched experts can be fitted for: subsets are drawn as bits."""


class MultimodalImputer:
    r"""Fills missing cells from what each row has, in tables of mixed types and sets of arrays.

    Each column is a modality of an :class:`~mmpoe.models.MMHVAE`, or each group of columns, so
    that whatever cells a row lacks, the others form its posterior. Training maximises the evidence
    lower bound of what was observed (and of random parts of it): valid if cells are missing at
    random. It is an estimator as those of scikit-learn, which it does not need: it can be cloned,
    searched over and put into a pipeline. Threads that fit or draw take turns, since PyTorch has
    one generator for all of them: results are those of one thread, and so is the speed. Processes
    fit several at once.

    ==================  ==========================================  ==========================
    Kind                Chosen for                                  Likelihood
    ==================  ==========================================  ==========================
    ``"numeric"``       numbers                                     normal, learned scale
    ``"categorical"``   booleans, strings, objects, categories      categorical
    ``"count"``         nothing by itself: say so with `kinds`      negative binomial
    ==================  ==========================================  ==========================

    Arguments:
        groups: For some names, the columns that one encoder reads together, all numeric: views,
            spectra, items of a scale. Every other column is on its own. A dictionary of arrays has
            its groups already.
        kinds: For some columns, what they hold. The columns of a data frame go by their names,
            those of an array by their positions, arrays of a dictionary by theirs.
        latents: The number of latents of each group, coarse to fine.
        hidden: The number of features of hidden layers.
        steps: The number of training steps.
        batch_size: The number of rows of a batch.
        lr: The highest learning rate.
        calibrated: Whether to fit matched experts after training (:func:`mmpoe.calibrate`), which
            then fill what is missing: with draws that spread as they should.
        random_state: The seed of training and draws: an integer, a NumPy ``RandomState``, or None
            for a new one each time.

    Attributes:
        model_: The model.
        history_: What happened during training, a :class:`~mmpoe.training.History`.
        columns_: What was learned about each column: its kind, categories, mean and scale.
        n_features_in_: The number of columns.
        feature_names_in_: Their names, if the table was a data frame with strings for names.

    References:
        | Handling Incomplete Heterogeneous Data using VAEs (Nazábal et al., 2020)
        | https://arxiv.org/abs/1807.03653

    Example:
        >>> X = np.random.default_rng(0).normal(size=(100, 1)) * [1.0, 2.0, -1.0]
        >>> X[::3, 1] = np.nan
        >>> imputer = MultimodalImputer(steps=20, calibrated=False, random_state=0)
        >>> np.isnan(imputer.fit_transform(X)).any()
        np.False_
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Hashable]] | None = None,
        *,
        kinds: Mapping[Hashable, str] | None = None,
        latents: Sequence[int] = (8, 16),
        hidden: int = 64,
        steps: int = 1000,
        batch_size: int = 128,
        lr: float = 3e-3,
        calibrated: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.groups = groups
        self.kinds = kinds
        self.latents = latents
        self.hidden = hidden
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.calibrated = calibrated
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> MultimodalImputer:  # noqa: ANN401
        """Learns from a table with missing cells.

        Arguments:
            X: The table: an array (n, d), a data frame, or a mapping from names to arrays (n) or
                (n, k). Missing cells are NaN, or None or NA in arrays and frames of objects.
            y: Ignored.

        Raises:
            ValueError: If there are no rows, a column has no observed cell or holds infinity or
                what its kind does not allow, `groups` or `kinds` name other columns, or there are
                more modalities than matched experts can be fitted for.
        """
        sources = read(X)
        kinds = self._kinds(sources)
        self.columns_ = [Column.learn(source, kinds.get(source.label)) for source in sources]
        self.modalities_ = self._modalities(X, sources)
        self.n_features_in_ = len(sources)
        labels = [source.label for source in sources]
        self._labels = None if _positions(labels) else labels
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        if hasattr(X, "iloc") and all(isinstance(label, str) for label in labels):
            self.feature_names_in_ = np.array(labels, dtype=object)
        self._seed = _seed(self.random_state)
        if self.calibrated and len(self.modalities_) > MOST_CALIBRATED:
            raise ValueError(
                f"'calibrated' should be False for more than {MOST_CALIBRATED} modalities, but "
                f"there are {len(self.modalities_)}; or put columns together in 'groups'."
            )

        table = self._encode(sources)
        table = table[~table.isnan().all(dim=1)]
        with _seeded(self._seed):
            self.model_ = build(self.modalities_, self.hidden, self.latents)
            batches = DataLoader(TensorDataset(table), self.batch_size, shuffle=True)
            optimizer = Optimizer(lr=self.lr)
            networks = SideBySide(self.model_, self.modalities_)
            self.history_ = fit(
                networks,
                batches,
                self._bound,
                steps=self.steps,
                optimizer=optimizer,
                progress=False,
            )
            networks.write(self.model_.to(_device(networks)).eval())
            if self.calibrated:
                calibrate(
                    self.model_,
                    self._split(table),
                    teacher="all",
                    steps=self.steps,
                    batch_size=self.batch_size,
                    held_out=0.1 if len(table) >= 20 else 0.0,
                )
        return self

    def transform(self, X: Any) -> Any:  # noqa: ANN401
        """Fills missing cells with what is expected of them, and leaves the others as they are.

        That is the mean of the likelihood at the mean of the latents, or the most likely category.

        Arguments:
            X: A table with the columns of the one that was fitted.

        Returns:
            A table of the same type. Integer columns of a data frame are rounded.

        Raises:
            ValueError: If the columns differ, or a cell is infinite or of an unknown category.
        """
        table = self._encode(self._read(X))
        parts = []
        for rows in table.split(ROWS):
            x, observed = self._split(self._move(rows))
            p = self.model_.predict(x, observed, temperature=0.0)
            means = [
                p[m.name].mean.argmax(dim=-1) if m.kind == "categorical" else p[m.name].mean
                for m in self.modalities_
            ]
            parts.append(self._join(means))
        return self._write(X, table, torch.cat(parts))

    def fit_transform(self, X: Any, y: object = None) -> Any:  # noqa: ANN401
        """Learns from a table and fills it, as :meth:`fit` and :meth:`transform`."""
        return self.fit(X).transform(X)

    def impute(self, X: Any, draws: int = 20) -> list[Any]:  # noqa: ANN401
        """Fills missing cells several times over, as they might have been.

        Each data set can be analysed as if it were complete, and the results pooled with
        :func:`mmpoe.imputation.rubin_pool`. The draws of a row share their latents, so that filled
        cells go together. The same call returns the same draws.

        Arguments:
            X: A table with the columns of the one that was fitted.
            draws: The number of data sets K.

        Returns:
            The completed data sets, tables of the same type.

        Raises:
            ValueError: As :meth:`transform`, and if `draws` is not positive.
        """
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"'draws' should be an integer of at least 1, but is {draws!r}.")
        table = self._encode(self._read(X))
        parts = []
        with _seeded(self._seed + 1):
            for rows in table.split(ROWS):
                x, observed = self._split(self._move(rows))
                p = self.model_.predict(x, observed, samples=draws)
                cells = [
                    p[m.name].sample().reshape(draws, len(rows), -1) for m in self.modalities_
                ]
                parts.append(self._join(cells))
        return [self._write(X, table, filled) for filled in torch.cat(parts, dim=1)]

    def score(self, X: Any, y: object = None, samples: int = 100) -> float:  # noqa: ANN401
        r"""Estimates the mean log-evidence :math:`\log p(x_r)` of the observed cells of a row.

        It is importance-weighted, in expectation a lower bound, in nats and in the units of the
        table: densities of numbers, probabilities of categories and counts. Rows without observed
        cells count 0.

        Arguments:
            X: A table with the columns of the one that was fitted.
            y: Ignored.
            samples: The number of latent samples for each row.
        """
        table = self._encode(self._read(X))
        scale = torch.tensor([column.scale for column in self.columns_], dtype=table.dtype)
        total = -torch.where(table.isnan(), 0, scale.log()).sum(dtype=torch.float64)
        with _seeded(self._seed + 1), torch.no_grad():
            for rows in table.split(ROWS):
                x, observed = self._split(self._move(rows))
                valid = {m: ~v.isnan() for m, v in x.items()}
                log_p = log_marginal(self.model_, x, observed, samples=samples, valid=valid)
                total += log_p.double().sum().cpu()
        return total.item() / len(table)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the arguments of the constructor, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> MultimodalImputer:  # noqa: ANN401
        """Sets arguments of the constructor.

        Raises:
            ValueError: If there is no such argument.
        """
        for name, value in params.items():
            if name not in self._parameters():
                raise ValueError(
                    f"'params' should hold arguments among {', '.join(self._parameters())}, "
                    f"but holds {name!r}."
                )
            setattr(self, name, value)
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ANN401
        """Returns the names of the columns, which are those that went in."""
        self._check_fitted()
        return np.array([str(column.label) for column in self.columns_], dtype=object)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        shown = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(allow_nan=True, categorical=True, string=True),
        )

    @classmethod
    def _parameters(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _kinds(self, sources: Sequence[Source]) -> dict[Hashable, str]:
        """The kinds that the caller chose, by column."""
        kinds = dict(self.kinds or {})
        by_modality: dict[Hashable, list[Hashable]] = {s.modality: [] for s in sources}
        for source in sources:
            by_modality[source.modality].append(source.label)
        known = {source.label for source in sources}
        chosen = {}
        for name, kind in kinds.items():
            if kind not in KINDS:
                raise ValueError(
                    f"'kinds' should be among {', '.join(KINDS)}, "
                    f"but that of {name!r} is {kind!r}."
                )
            if name in known:
                chosen[name] = kind
            elif name in by_modality:
                chosen |= dict.fromkeys(by_modality[name], kind)
            else:
                raise _unknown("kinds", name, [source.label for source in sources])
        return chosen

    def _modalities(self, X: Any, sources: Sequence[Source]) -> list[Modality]:  # noqa: ANN401
        """The modalities that the columns form."""
        labels = [source.label for source in sources]
        together: dict[str, list[int]] = {}
        if isinstance(X, Mapping):
            if self.groups is not None:
                raise ValueError("'groups' should be None: a dictionary of arrays has its own.")
            for position, source in enumerate(sources):
                together.setdefault(source.modality, []).append(position)
        else:
            taken: set[int] = set()
            for name, members in (self.groups or {}).items():
                positions = []
                for label in members:
                    if label not in labels:
                        raise _unknown("groups", label, labels)
                    positions.append(labels.index(label))
                if not positions or taken & set(positions) or len(set(positions)) < len(positions):
                    raise ValueError(
                        "'groups' should have columns, each in one group and once, "
                        f"but {name!r} has {list(members)}."
                    )
                taken |= set(positions)
                together[name] = positions
            for position, source in enumerate(sources):
                if position not in taken:
                    if source.modality in together:
                        raise ValueError(
                            "'groups' should have other names than the columns outside, "
                            f"but one is {source.modality!r}."
                        )
                    together[source.modality] = [position]
        modalities = []
        for name, positions in together.items():
            columns = [self.columns_[position] for position in positions]
            kinds = {column.kind for column in columns}
            if len(columns) > 1 and kinds != {"numeric"}:
                raise ValueError(
                    f"'groups' should hold numeric columns, but {name!r} has "
                    f"{', '.join(f'{c.label!r} ({c.kind})' for c in columns)}. "
                    "Leave the others on their own."
                )
            classes = max(2, len(columns[0].categories))
            modalities.append(Modality(name, positions, columns[0].kind, classes))
        return modalities

    def _bound(self, networks: SideBySide, batch: list[Tensor], done: float) -> Tensor:
        """The bound of what a row has, or of a random part of it: of what the model is given."""
        (table,) = batch
        keep = torch.rand_like(table) < torch.rand_like(table[:, :1])
        keep = keep | (torch.rand_like(table[:, :1]) < 0.5)
        table = torch.where(keep, table, torch.nan)
        return networks.bound(table, self._split(table)[1], min(1.0, 5 * done))

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise _not_fitted(type(self).__name__)

    def _read(self, X: Any) -> list[Source]:  # noqa: ANN401
        """Takes apart a table that should be like the one that was fitted."""
        self._check_fitted()
        sources = read(X)
        labels = [source.label for source in sources]
        if len(labels) != self.n_features_in_:
            raise ValueError(
                f"X has {len(labels)} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )
        if not _positions(labels) and self._labels is not None and labels != self._labels:
            raise ValueError(
                "'X' should have the columns that it had when it was fitted "
                f"({', '.join(map(str, self._labels))}), but has {', '.join(map(str, labels))}."
            )
        return sources

    def _encode(self, sources: Sequence[Source]) -> Tensor:
        """The table as a tensor, NaN where cells are missing, with shape (n, d)."""
        pairs = zip(self.columns_, sources, strict=True)
        cells = np.stack([column.encode(source) for column, source in pairs], axis=1)
        return torch.from_numpy(cells).to(torch.get_default_dtype())

    def _move(self, rows: Tensor) -> Tensor:
        return rows.to(_device(self.model_))

    def _split(self, table: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The modalities of a table, and which of them have an observed cell."""
        x = {m.name: table[:, m.columns] for m in self.modalities_}
        return x, torch.stack([~v.isnan().all(dim=1) for v in x.values()], dim=1)

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `_split`, for cells with shape (*, k)."""
        order = [column for m in self.modalities_ for column in m.columns]
        joined = torch.cat([part.to(torch.get_default_dtype()) for part in parts], dim=-1).cpu()
        return joined[..., np.argsort(order)]

    def _write(self, X: Any, table: Tensor, filled: Tensor) -> Any:  # noqa: ANN401
        missing = table.isnan()
        cells = [
            column.decode(filled[missing[:, j], j].double().numpy())
            for j, column in enumerate(self.columns_)
        ]
        return write(X, cells, self.columns_)


def _device(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def _positions(labels: Sequence[Hashable]) -> bool:
    """Whether columns have no names."""
    return list(labels) == list(range(len(labels)))


def _seed(random_state: Any) -> int:  # noqa: ANN401
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if hasattr(random_state, "randint"):
        return int(random_state.randint(2**31))
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
        return int(random_state)
    raise ValueError(
        "'random_state' should be an integer, a numpy.random.RandomState or None, "
        f"but is {random_state!r}."
    )


_drawing = threading.RLock()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws from a seed inside, and leaves the random state outside alone.

    PyTorch initialises networks and draws noise from one generator of the whole process, so
    that threads take turns.
    """
    with _drawing, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _unknown(argument: str, name: Hashable, labels: Sequence[Hashable]) -> ValueError:
    return ValueError(
        f"'{argument}' should name columns of 'X' ({', '.join(map(str, labels))}), "
        f"but names {name!r}."
    )


def _not_fitted(name: str) -> Exception:
    """The error of scikit-learn, a ValueError, if it is in use, since its tools look for that."""
    exceptions = sys.modules.get("sklearn.exceptions")
    kind = ValueError if exceptions is None else exceptions.NotFittedError
    return kind(f"This {name} is not fitted yet: call 'fit' first.")

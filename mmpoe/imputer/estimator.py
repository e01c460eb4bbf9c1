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

from ._blend import Blend
from ._features import Features
from ._hidden import HiddenNetwork
from ._network import Modality
from ._tables import KINDS, Column, Source, read, write
from .distribution import PredictiveDistribution

ROWS = 4096
"""How many rows are filled at once."""


class MultimodalImputer:
    r"""Predicts missing cells from what each row has, in tables of mixed types and sets of arrays.

    Each column is a modality, or each group of columns. Predictions are a blend of

    * linear products of experts (:class:`~mmpoe.posteriors.LinearPoE`), a few of a ladder of
      factors and shrinkages, averaged, the expert of each modality tempered; and
    * hierarchies (:class:`~mmpoe.models.MMHVAE`) that were trained to predict hidden modalities
      from those that are left, with a weight for each modality and pattern, 0 where they do not
      lower the error.

    All choices are made on rows left out, with whole modalities hidden: which members and tempers,
    the weights, the scale of each column, the degrees of freedom of its Student t distribution,
    and the width of intervals, which are conformal. A pattern of what is given is calibrated
    when it is first asked for. Cells have to be missing completely at random, or at random given
    what is observed.

    It is an estimator as those of scikit-learn, which it does not need: it can be cloned,
    searched over and put into a pipeline. Threads that fit take turns, since PyTorch has one
    generator for all of them: results are those of one thread, and so is the speed. Processes fit
    several at once.

    ==================  ==========================================  ==============================
    Kind                Chosen for                                  Predictive distribution
    ==================  ==========================================  ==============================
    ``"numeric"``       numbers                                     Student t, joint in each row
    ``"categorical"``   booleans, strings, objects, categories      probabilities
    ``"count"``         nothing by itself: say so with `kinds`      that of a logarithm, rounded
    ==================  ==========================================  ==============================

    Arguments:
        groups: For some names, the columns that form one modality, all numeric: omics, views,
            spectra, items of a scale. Every other column is on its own. A dictionary of arrays has
            its groups already.
        kinds: For some columns, what they hold. The columns of a data frame go by their names,
            those of an array by their positions, arrays of a dictionary by theirs.
        networks: The number of hierarchies that are averaged; with 0, the linear part predicts
            alone, in a fraction of the time.
        steps: The number of training steps of each.
        random_state: The seed of folds, training and draws: an integer, a NumPy ``RandomState``,
            or None for a new one each time.

    Attributes:
        networks_: The hierarchies.
        linear_: The linear products of experts that are averaged.
        columns_: What was learned about each column: its kind, categories, mean and scale.
        modalities_: The modalities that the columns form.
        n_features_in_: The number of columns.
        feature_names_in_: Their names, if the table was a data frame with strings for names.

    References:
        | Handling Incomplete Heterogeneous Data using VAEs (Nazábal et al., 2020)
        | https://arxiv.org/abs/1807.03653
        | Distribution-Free Predictive Inference for Regression (Lei et al., 2018)
        | https://arxiv.org/abs/1604.04173

    Example:
        >>> X = np.random.default_rng(0).normal(size=(100, 1)) * [1.0, 2.0, -1.0]
        >>> X[::3, 1] = np.nan
        >>> imputer = MultimodalImputer(networks=0, random_state=0)
        >>> np.isnan(imputer.fit_transform(X)).any()
        np.False_
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Hashable]] | None = None,
        *,
        kinds: Mapping[Hashable, str] | None = None,
        networks: int = 3,
        steps: int = 250,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.groups = groups
        self.kinds = kinds
        self.networks = networks
        self.steps = steps
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> MultimodalImputer:  # noqa: ANN401
        """Learns from a table with missing cells.

        Arguments:
            X: The table: an array (n, d), a data frame, or a mapping from names to arrays (n) or
                (n, k). Missing cells are NaN, or None or NA in arrays and frames of objects.
            y: Ignored.

        Raises:
            ValueError: If there are no rows, a column has no observed cell or holds infinity or
                what its kind does not allow, `groups` or `kinds` name other columns, or a number
                is outside its range.
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
        _check_count("networks", self.networks, 0)
        _check_count("steps", self.steps, 1)

        table = self._encode(sources)
        table = table[~np.isnan(table).all(axis=1)]
        features = Features(table, self.columns_, self.modalities_)

        def train(rows: np.ndarray) -> HiddenNetwork:
            return HiddenNetwork(self.modalities_, features, self.steps).fit(rows)

        with _seeded(self._seed):
            self._blend = Blend(features, table, self._seed).fit(train, self.networks)
        self.networks_ = [network.model for network in self._blend.networks]
        self.linear_ = [member.whole for member in self._blend.members]
        return self

    def transform(self, X: Any) -> Any:  # noqa: ANN401
        """Fills missing cells with what is expected of them, and leaves the others as they are.

        That is the mean of a number or count, and the most likely category.

        Arguments:
            X: A table with the columns of the one that was fitted.

        Returns:
            A table of the same type. Integer columns of a data frame are rounded.

        Raises:
            ValueError: If the columns differ, or a cell is infinite or of an unknown category.
        """
        table = self._encode(self._read(X))
        parts = [self._missing(rows)._expected() for rows in _chunks(table)]
        return self._write(X, table, np.concatenate(parts))

    def fit_transform(self, X: Any, y: object = None) -> Any:  # noqa: ANN401
        """Learns from a table and fills it, as :meth:`fit` and :meth:`transform`."""
        return self.fit(X).transform(X)

    def impute(self, X: Any, draws: int = 20) -> list[Any]:  # noqa: ANN401
        """Fills missing cells several times over, as they might have been.

        Each data set can be analysed as if it were complete, and the results pooled with
        :func:`mmpoe.imputation.rubin_pool`. Filled cells of a row are drawn jointly, so that they
        go together. The same call returns the same draws.

        Arguments:
            X: A table with the columns of the one that was fitted.
            draws: The number of data sets K.

        Returns:
            The completed data sets, tables of the same type.

        Raises:
            ValueError: As :meth:`transform`, and if `draws` is not positive.
        """
        _check_count("draws", draws, 1)
        table = self._encode(self._read(X))
        parts = [
            self._missing(rows)._sample(draws, self._seed + i)
            for i, rows in enumerate(_chunks(table))
        ]
        return [self._write(X, table, filled) for filled in np.concatenate(parts, axis=1)]

    def predict_distribution(
        self,
        X: Any,  # noqa: ANN401
        given: Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
    ) -> PredictiveDistribution:
        """Predicts cells from other cells of their rows, with all that is known of them.

        Arguments:
            X: A table with the columns of the one that was fitted.
            given: The modalities to predict from, where they are observed; all but the target if
                None. They go by the names of groups, of arrays of a dictionary, and of columns on
                their own; those of an array without names are "x0", "x1" and so on.
            target: The modality that is predicted whole, or several, whether observed or not. If
                None, all cells that are missing, or belong to modalities that are not given.

        Returns:
            The distribution of the columns of the target, of all columns if that is None: means,
            deviations, quantiles, conformal intervals, densities, scores and draws.

        Raises:
            ValueError: As :meth:`transform`, and if a name is unknown, or both given and target.
        """
        table = self._encode(self._read(X))
        targets = None if target is None else self._named("target", target)
        if given is not None:
            kept = self._named("given", given)
        else:
            kept = [m for m in self.modalities_ if targets is None or m not in targets]
        if targets is not None and (both := [m.name for m in targets if m in kept]):
            raise ValueError(f"'target' should not be given, but {both[0]!r} is.")
        left = np.full(table.shape, np.nan)
        for m in kept:
            left[:, m.columns] = table[:, m.columns]
        chosen = np.arange(table.shape[1])
        if targets is not None:
            chosen = np.array([column for m in targets for column in m.columns])
        return self._predict(left, chosen)

    def score(self, X: Any, y: object = None) -> float:  # noqa: ANN401
        r"""Returns the mean over rows of the pseudo-log-likelihood of what they have.

        .. math:: \sum_m \log p(x_m \mid x_{\setminus m})

        Each modality that a row observed is predicted from the others, in nats and in the units
        of the table: densities of numbers, probabilities of categories and counts. Rows without
        observed cells count 0.

        Arguments:
            X: A table with the columns of the one that was fitted.
            y: Ignored.

        References:
            | Statistical Analysis of Non-Lattice Data (Besag, 1975)
            | https://doi.org/10.2307/2987782
        """
        table = self._encode(self._read(X))
        total = 0.0
        for m in self.modalities_:
            left, chosen = table.copy(), np.array(m.columns)
            left[:, chosen] = np.nan
            p = self._predict(left, chosen)
            total += p._log_prob_joint(table[:, chosen]).sum()
        return float(total / len(table))

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
        return hasattr(self, "_blend")

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

    def _check_fitted(self) -> None:
        if not hasattr(self, "_blend"):
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

    def _encode(self, sources: Sequence[Source]) -> np.ndarray:
        """The table as numbers, NaN where cells are missing, with shape (n, d)."""
        pairs = zip(self.columns_, sources, strict=True)
        return np.stack([column.encode(source) for column, source in pairs], axis=1)

    def _named(self, argument: str, names: str | Sequence[str]) -> list[Modality]:
        """The modalities of some names."""
        known = {m.name: m for m in self.modalities_}
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in known:
                raise ValueError(
                    f"'{argument}' should name modalities ({', '.join(known)}), but names {name!r}."
                )
        if argument == "target" and not names:
            raise ValueError("'target' should name at least one modality, but is empty.")
        return [known[name] for name in names]

    def _missing(self, table: np.ndarray) -> PredictiveDistribution:
        """The distribution of the missing cells of an encoded table."""
        return self._predict(table, np.arange(table.shape[1]))

    def _predict(self, table: np.ndarray, chosen: np.ndarray) -> PredictiveDistribution:
        """The distribution of the missing cells of some columns of an encoded table."""
        wanted = np.zeros(table.shape, dtype=bool)
        wanted[:, chosen] = np.isnan(table[:, chosen])
        prediction = self._blend.predict(table, wanted)
        return PredictiveDistribution(
            self._blend, prediction, self.columns_, table, wanted, chosen
        )

    def _write(self, X: Any, table: np.ndarray, filled: np.ndarray) -> Any:  # noqa: ANN401
        missing = np.isnan(table)
        cells = [
            column.decode(filled[missing[:, j], j]) for j, column in enumerate(self.columns_)
        ]
        return write(X, cells, self.columns_)


def _chunks(table: np.ndarray) -> list[np.ndarray]:
    return [table[i : i + ROWS] for i in range(0, len(table), ROWS)]


def _check_count(name: str, value: Any, least: int) -> None:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"'{name}' should be an integer of at least {least}, but is {value!r}.")


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

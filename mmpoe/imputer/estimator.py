r"""The estimator: learns from a table with missing cells, and fills them."""

from __future__ import annotations

__all__ = ["MultimodalImputer"]

import inspect
import sys
import threading
import warnings
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ._blend import Blend
from ._features import Features
from ._hidden import HiddenNetwork
from ._network import Modality
from ._tables import KINDS, Column, Source, contain, is_mapping, read, write
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
        groups: For some names, the columns that form one modality, of any kinds: omics, views,
            spectra, items of a scale, a clinical table. Every other column is on its own. A
            dictionary of arrays has its groups already.
        kinds: For some columns, what they hold. The columns of a data frame go by their names,
            those of an array by their positions, arrays of a dictionary by theirs.
        networks: The number of hierarchies that are averaged; with 0, the linear part predicts
            alone, in a fraction of the time.
        steps: The most training steps of each; training ends before where validation says so.
        handle_unknown: What a category is that was not there when the table was fitted: an
            ``"error"``, or ``"missing"``: it says nothing about the other cells, and stays as it
            is.
        keep_empty_features: Whether to keep columns without an observed cell as they are, since
            nothing is known of them. If not, they are left out of what comes back. A warning names
            them.
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
        handle_unknown: str = "error",
        keep_empty_features: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.groups = groups
        self.kinds = kinds
        self.networks = networks
        self.steps = steps
        self.handle_unknown = handle_unknown
        self.keep_empty_features = keep_empty_features
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> MultimodalImputer:  # noqa: ANN401
        """Learns from a table with missing cells.

        Arguments:
            X: The table: an array (n, d), a data frame of pandas, a mapping from names to arrays
                (n) or (n, k), or a sparse matrix. Missing cells are NaN, or None or NA in arrays
                and frames of objects. What has no entry in a sparse matrix is 0, and was observed:
                it takes the memory of a dense one.
            y: Ignored.

        Raises:
            ValueError: If there are no rows, no column has an observed cell, one holds infinity,
                dates or what its kind does not allow, `groups` or `kinds` name other columns, or
                an option is none of its choices.
        """
        sources = read(X)
        kinds = self._kinds(sources)
        labels = [source.label for source in sources]
        _check_choice("handle_unknown", self.handle_unknown, ("error", "missing"))
        self._empty = _empty(sources, keep=self.keep_empty_features)
        self.n_features_in_ = len(sources)
        self._arrays = list(dict.fromkeys(source.modality for source in sources))
        sources = [s for j, s in enumerate(sources) if j not in self._empty]
        self.columns_ = [Column.learn(source, kinds.get(source.label)) for source in sources]
        self.modalities_ = self._modalities(X, sources, {labels[j] for j in self._empty})
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

        def train(
            rows: np.ndarray, questions: list[tuple[np.ndarray, np.ndarray]]
        ) -> HiddenNetwork:
            return HiddenNetwork(self.modalities_, features, self.steps).fit(rows, questions)

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
            A table of the same type and dtypes, or a data frame, see :meth:`set_output`. Columns
            of integers are rounded.

        Raises:
            ValueError: If the columns differ, or a cell is infinite or of an unknown category.
        """
        table = self._encode(self._read(X))
        parts = [self._missing(rows)._expected() for rows in _chunks(table)]
        out = self._write(X, np.concatenate(parts))
        return contain(out, self.get_feature_names_out().tolist(), self._output(), X)

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
        return [self._write(X, filled) for filled in np.concatenate(parts, axis=1)]

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

    def set_output(self, *, transform: str | None = None) -> MultimodalImputer:
        """Chooses what :meth:`transform` and :meth:`fit_transform` return.

        Arguments:
            transform: ``"default"``, a table of the same type; ``"pandas"`` or ``"polars"``, a
                data frame; None leaves it as it is. Without a choice, it is that of
                ``sklearn.set_config(transform_output=)``.

        Raises:
            ValueError: If it is something else.
        """
        if transform is not None:
            _check_choice("transform", transform, ("default", "pandas", "polars"))
            self._sklearn_output_config = {"transform": transform}  # which its clones take over
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ANN401
        """Returns the names of the columns that come back.

        Arguments:
            input_features: The names of the columns that went in, if these had none: "x0", "x1"
                and so on by default.

        Raises:
            ValueError: If these are not as many as columns, or other names than those.
        """
        self._check_fitted()
        count = self.n_features_in_
        names = [f"x{j}" for j in range(count)] if self._labels is None else self._labels
        if input_features is not None:
            given = list(input_features)
            # the words are those of scikit-learn, whose tools look for them
            wanted = None
            if len(given) != count:
                wanted = "should have length equal to the number of columns"
            elif self._labels is not None and given != names:
                wanted = "is not equal to feature_names_in_"
            if wanted is not None:
                raise ValueError(
                    f"input_features {wanted} ({count}: {', '.join(map(str, names))}): "
                    f"it has {len(given)}, {', '.join(map(str, given))}."
                )
            names = given
        left_out = () if self.keep_empty_features else self._empty
        kept = [str(name) for j, name in enumerate(names) if j not in left_out]
        return np.array(kept, dtype=object)

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
            input_tags=InputTags(allow_nan=True, categorical=True, sparse=True, string=True),
        )

    @classmethod
    def _parameters(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _kinds(self, sources: Sequence[Source]) -> dict[Hashable, str]:
        """The kinds that the caller chose, by column."""
        kinds = _mapping("kinds", self.kinds, "columns to what they hold")
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

    def _modalities(
        self,
        X: Any,  # noqa: ANN401
        sources: Sequence[Source],
        empty: Collection[Hashable],
    ) -> list[Modality]:
        """The modalities that the columns form, but for some that are empty."""
        labels = [source.label for source in sources]
        together: dict[str, list[int]] = {}
        if is_mapping(X):
            if self.groups is not None:
                raise ValueError("'groups' should be None: a dictionary of arrays has its own.")
            for position, source in enumerate(sources):
                together.setdefault(source.modality, []).append(position)
        else:
            taken: set[int] = set()
            groups = _mapping("groups", self.groups, "names to lists of columns")
            for name, members in groups.items():
                if isinstance(members, str):
                    raise ValueError(
                        "'groups' should map names to lists of columns, "
                        f"but {name!r} has the string {members!r}."
                    )
                positions = []
                known = [label for label in members if label not in empty]
                if members and not known:
                    continue
                for label in known:
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
        return [self._modality(name, positions) for name, positions in together.items()]

    def _modality(self, name: str, positions: list[int]) -> Modality:
        """The modality of some columns: of one kind, or in parts of one kind each."""
        columns = [self.columns_[position] for position in positions]
        kinds = {column.kind for column in columns}
        if len(columns) == 1 or kinds == {"numeric"}:
            classes = max(2, len(columns[0].categories))
            return Modality(name, positions, columns[0].kind, classes)
        pairs = list(zip(positions, columns, strict=True))
        numbers = [position for position, column in pairs if column.kind == "numeric"]
        parts = [self._modality(f"{name} (numbers)", numbers)] if numbers else []
        parts += [
            self._modality(f"{name} ({column.label})", [position])
            for position, column in pairs
            if column.kind != "numeric"
        ]
        return Modality(name, positions, "mixed", 2, tuple(parts))

    def _check_fitted(self) -> None:
        if not hasattr(self, "_blend"):
            raise _not_fitted(type(self).__name__)

    def _read(self, X: Any) -> list[Source]:  # noqa: ANN401
        """Takes apart a table that should be like the one that was fitted."""
        self._check_fitted()
        sources = read(X)
        labels = [source.label for source in sources]
        arrays = list(dict.fromkeys(source.modality for source in sources))
        if is_mapping(X) and arrays != self._arrays:
            raise ValueError(
                "'X' should hold the arrays that it held when it was fitted, in their order "
                f"({', '.join(self._arrays)}), but holds {', '.join(arrays)}. An array of NaN "
                "stands for one that all rows lack."
            )
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
        return [source for j, source in enumerate(sources) if j not in self._empty]

    def _encode(self, sources: Sequence[Source]) -> np.ndarray:
        """The table as numbers, NaN where cells are missing, with shape (n, d)."""
        pairs = zip(self.columns_, sources, strict=True)
        unknown = self.handle_unknown
        return np.stack([column.encode(source, unknown) for column, source in pairs], axis=1)

    def _named(self, argument: str, names: str | Sequence[str]) -> list[Modality]:
        """The modalities of some names."""
        known = {m.name: m for m in self.modalities_}
        names = [names] if isinstance(names, str) or not isinstance(names, Iterable) else names
        names = list(names)
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise ValueError(
                    f"'{argument}' should name modalities ({', '.join(known)}), "
                    f"but names {name!r}."
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

    def _write(self, X: Any, filled: np.ndarray) -> Any:  # noqa: ANN401
        pairs = enumerate(zip(self.columns_, self._read(X), strict=True))
        cells = [column.decode(filled[source.missing, j]) for j, (column, source) in pairs]
        keep = self.keep_empty_features
        return write(X, cells, self.columns_, empty=self._empty, keep_empty=keep)

    def _output(self) -> str:
        """The container of :meth:`transform`: as chosen here, or for all of scikit-learn."""
        chosen = getattr(self, "_sklearn_output_config", {}).get("transform")
        sklearn = sys.modules.get("sklearn")
        if chosen is None and sklearn is not None:
            chosen = sklearn.get_config()["transform_output"]
        return chosen or "default"


def _chunks(table: np.ndarray) -> list[np.ndarray]:
    return [table[i : i + ROWS] for i in range(0, len(table), ROWS)]


def _check_count(name: str, value: Any, least: int) -> None:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"'{name}' should be an integer of at least {least}, but is {value!r}.")


def _mapping(name: str, value: Any, wanted: str) -> dict[Any, Any]:  # noqa: ANN401
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"'{name}' should map {wanted}, or be None, but is {value!r}.")
    return dict(value or {})


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:  # noqa: ANN401
    if value not in choices:
        raise ValueError(f"'{name}' should be one of {', '.join(choices)}, but is {value!r}.")


def _empty(sources: Sequence[Source], *, keep: bool) -> frozenset[int]:
    """The positions of columns without an observed cell, which a warning names."""
    empty = [j for j, source in enumerate(sources) if source.missing.all()]
    shown = ", ".join(repr(sources[j].label) for j in empty)
    if len(empty) == len(sources):
        raise ValueError(f"'X' should have an observed cell, but has none in {shown}.")
    if empty:
        how = "stay as they are" if keep else "are left out; 'keep_empty_features' keeps them"
        warnings.warn(f"Columns without an observed cell {how}: {shown}.", stacklevel=3)
    return frozenset(empty)


def _positions(labels: Sequence[Hashable]) -> bool:
    """Whether columns have no names."""
    return list(labels) == list(range(len(labels)))


def _seed(random_state: Any) -> int:  # noqa: ANN401
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if hasattr(random_state, "randint"):
        return int(random_state.randint(2**31))
    whole = isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool)
    if whole and random_state >= 0:
        return int(random_state)
    raise ValueError(
        "'random_state' should be an integer of at least 0, a numpy.random.RandomState or None, "
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

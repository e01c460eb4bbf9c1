r"""Batches of MuData and AnnData objects whose modalities measured other cells, and results back.

Neither package is imported before :func:`to_mudata` is called: a batch needs what any of their
objects has.
"""

from __future__ import annotations

__all__ = ["MuDataset", "from_mudata", "to_mudata"]

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .extras import needs
from .missing import check_modalities, check_names, collate


class MuDataset(Dataset[dict[str, Any]]):
    r"""The cells of a MuData object, each with the modalities that measured it.

    A cell is known by its name: a modality whose `obs_names` lack it is missing there. Sparse
    counts stay sparse until a batch is made of some rows. A sample is what
    :func:`mmpoe.missing.collate` takes: give a `torch.utils.data.DataLoader` this data set and
    ``collate_fn=model.collate``.

    Arguments:
        data: A MuData object, or a mapping from modality names to AnnData objects.
        layers: For some modalities, the layer to read in place of `X`.

    Attributes:
        modalities: The names of the modalities.
        obs_names: The names of all :math:`n` cells, a pandas index.
        observed: The modalities that measured each cell, boolean, with shape :math:`(n, M)`.

    Raises:
        ValueError: If there is no modality, it has no such layer or no values, or it names a cell
            twice.

    References:
        | MUON: Multimodal Omics Analysis Framework (Bredikhin et al., 2022)
        | https://doi.org/10.1186/s13059-021-02577-8
    """

    def __init__(self, data: Any, layers: Mapping[str, str] | None = None) -> None:  # noqa: ANN401
        parts = _parts(data)
        self.modalities = list(parts)
        layers = {} if layers is None else layers
        check_names(list(layers), self.modalities, argument="layers")
        self._values = {m: _values(m, part, layers.get(m)) for m, part in parts.items()}
        self.obs_names = _all_names(data, parts)
        self._places = {m: _places(m, part, self.obs_names) for m, part in parts.items()}
        self.observed = torch.from_numpy(np.stack([p >= 0 for p in self._places.values()], axis=1))

    def __len__(self) -> int:
        return len(self.obs_names)

    def __getitem__(self, cell: int) -> dict[str, Any]:
        return self.__getitems__([cell])[0]

    def __getitems__(self, cells: Sequence[int]) -> list[dict[str, Any]]:
        """Returns some cells, each a mapping of its modalities, and its name under ``"id"``."""
        index = np.asarray(cells, dtype=int)
        samples: list[dict[str, Any]] = [{"id": name} for name in self.obs_names[index]]
        for m, places in self._places.items():
            places = places[index]
            held = np.flatnonzero(places >= 0)
            for number, row in zip(held, _rows(self._values[m], places[held]), strict=True):
                samples[number][m] = row
        return samples


def from_mudata(
    data: Any,  # noqa: ANN401
    layers: Mapping[str, str] | None = None,
) -> tuple[MutableMapping[str, Tensor], Tensor]:
    r"""Makes one batch of all cells of a MuData object. It is dense: see :class:`MuDataset`.

    Arguments:
        data: A MuData object, or a mapping from modality names to AnnData objects.
        layers: For some modalities, the layer to read in place of `X`.

    Returns:
        The :class:`~mmpoe.missing.Batch`, whose `ids` are the names of the cells, and the boolean
        mask of what was observed, with shape :math:`(n, M)`.

    Raises:
        ValueError: As :class:`MuDataset`.
    """
    cells = MuDataset(data, layers)
    return collate(cells.__getitems__(range(len(cells))), cells.modalities)


def to_mudata(
    data: Any,  # noqa: ANN401
    imputed: Mapping[str, Any],
    latents: Any = None,  # noqa: ANN401
    *,
    layer: str = "imputed",
) -> Any:  # noqa: ANN401
    r"""Makes a MuData object of results: every modality has all cells. It needs the extra `omics`.

    Imputed values are a layer of each modality, whose `obs` says by ``"observed"`` which cells it
    measured. Latents are ``obsm["latents"]`` of the whole.

    Arguments:
        data: What was read by :class:`MuDataset`; it stays as it is.
        imputed: For some modalities, values of all :math:`n` cells in the order of `obs_names` of
            the data set, with shape :math:`(n, C)`.
        latents: The latents of all cells, with shape :math:`(n, K)`, if there are any.
        layer: The name of the layer.

    Raises:
        ValueError: If a modality is unknown, or values have another shape.
    """
    with needs("omics"):
        from anndata import AnnData  # pyright: ignore[reportMissingImports]
        from mudata import MuData, set_options  # pyright: ignore[reportMissingImports]

    import pandas as pd

    cells, parts = MuDataset(data), _parts(data)
    check_names(list(imputed), cells.modalities, argument="imputed")
    mods = {}
    for column, m in enumerate(cells.modalities):
        if m not in imputed:
            continue
        values = _array("imputed", imputed[m], (len(cells), len(parts[m].var_names)), m)
        seen = {"observed": cells.observed[:, column].numpy()}
        obs = pd.DataFrame(seen, index=cells.obs_names)
        mods[m] = AnnData(obs=obs, var=parts[m].var.copy(), layers={layer: values})
    with set_options(pull_on_update=False):  # "observed" is of one modality
        out = MuData(mods)
    if latents is not None:
        out.obsm["latents"] = _array("latents", latents, (len(cells), None))
    return out


def _parts(data: Any) -> dict[str, Any]:  # noqa: ANN401
    """The AnnData objects by modality."""
    parts = getattr(data, "mod", data)
    if not isinstance(parts, Mapping):
        raise ValueError(
            "'data' should be a MuData object, or map modality names to AnnData objects, "
            f"but is of type {type(data).__name__}."
        )
    check_modalities(list(parts))
    for m, part in parts.items():
        if not all(hasattr(part, name) for name in ("obs_names", "X", "layers")):
            raise ValueError(
                f"'data' should map modality names to AnnData objects, but {m!r} is of type "
                f"{type(part).__name__}."
            )
    return dict(parts)


def _values(modality: str, part: Any, layer: str | None) -> Any:  # noqa: ANN401
    """The values of a modality: a matrix whose rows can be read."""
    if layer is not None and layer not in part.layers:
        raise ValueError(
            f"'layers' should name a layer of {modality!r} ({', '.join(part.layers)}), "
            f"but names {layer!r}."
        )
    values = part.X if layer is None else part.layers[layer]
    if values is None:
        raise ValueError(
            f"'layers' should name a layer of {modality!r} ({', '.join(part.layers)}), which has "
            "no 'X'."
        )
    names, shape = part.obs_names, tuple(values.shape)
    if len(shape) != 2 or shape[0] != len(names):
        raise ValueError(
            f"'data' should hold values of {modality!r} with one row per cell, shape "
            f"({len(names)}, C), but has shape {shape}."
        )
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", "f") not in "biuf":
        raise ValueError(f"'data' should hold numbers in {modality!r}, but holds {dtype}.")
    return values.tocsr() if getattr(values, "format", "csr") != "csr" else values


def _all_names(data: Any, parts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The names of all cells: in the order of the object, else of their first modality."""
    if hasattr(data, "mod"):
        return data.obs_names
    names, *others = (part.obs_names for part in parts.values())
    for more in others:
        names = names.append(more.difference(names, sort=False))
    return names


def _places(modality: str, part: Any, names: Any) -> np.ndarray:  # noqa: ANN401
    """The row of each cell in a modality, -1 where it has none."""
    own = part.obs_names
    if not own.is_unique:
        raise ValueError(
            f"'data' should name each cell once, but {modality!r} repeats "
            f"{own[own.duplicated()][0]!r}: 'obs_names_make_unique' may help."
        )
    return np.asarray(own.get_indexer(names))


def _rows(values: Any, places: np.ndarray) -> Tensor:  # noqa: ANN401
    """Some rows of a matrix, dense; files are read in their order."""
    order = np.argsort(places)
    rows = values[places[order]]
    rows = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return torch.from_numpy(rows[back]).to(torch.get_default_dtype())


def _array(
    argument: str,
    values: Any,  # noqa: ANN401
    wanted: tuple[int, int | None],
    modality: str | None = None,
) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    fits = array.ndim == 2 and all(
        w in (None, s) for w, s in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        shown = f"({wanted[0]}, {'K' if wanted[1] is None else wanted[1]})"
        of = "" if modality is None else f" of {modality!r}"
        raise ValueError(
            f"'{argument}'{of} should have one row per cell, shape {shown}, "
            f"but has shape {array.shape}."
        )
    return array

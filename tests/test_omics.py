"""Batches of modalities that measured other cells: masks by names, sparse rows, results back."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import DataLoader

from mmpoe.missing import Batch
from mmpoe.models import vector_mmhvae
from mmpoe.omics import MuDataset, from_mudata, to_mudata

pd = pytest.importorskip("pandas", reason="names of cells are a pandas index")

RNA = np.arange(12.0).reshape(4, 3)
ATAC = -np.arange(6.0).reshape(3, 2)


def part(names, values, layers=None):
    """The attributes of an AnnData object, without the package."""
    names = pd.Index(names)
    var = pd.DataFrame(index=[f"{values.shape[1]}-{i}" for i in range(values.shape[1])])
    return SimpleNamespace(
        obs_names=names, X=values, layers=layers or {}, var=var, var_names=var.index
    )


def unpaired(kind=scipy.sparse.csr_matrix):
    return {"rna": part(list("abcd"), kind(RNA)), "atac": part(list("dxb"), ATAC)}


@pytest.mark.parametrize(
    "kind",
    [
        np.array,
        scipy.sparse.csr_matrix,
        scipy.sparse.csr_array,
        scipy.sparse.csc_array,
        scipy.sparse.coo_array,
    ],
)
def test_the_mask_comes_from_names_of_cells(kind):
    x, observed = from_mudata(unpaired(kind))
    assert isinstance(x, Batch)
    assert x.ids == ["a", "b", "c", "d", "x"]
    assert observed.T.tolist() == [[True] * 4 + [False], [False, True, False, True, True]]
    torch.testing.assert_close(x["rna"][:4], torch.tensor(RNA).float())
    torch.testing.assert_close(x["atac"][[3, 4, 1]], torch.tensor(ATAC).float())
    assert x["rna"][4].isnan().all()


def test_rows_are_those_that_were_asked_for_in_their_order():
    cells = MuDataset(unpaired())
    x, observed = from_mudata(unpaired())
    for rows in ([3, 0, 4], [4], [1, 1]):
        for sample, row in zip(cells.__getitems__(rows), rows, strict=True):
            assert sample.pop("id") == x.ids[row]
            assert [m in sample for m in cells.modalities] == observed[row].tolist()
            assert all(torch.equal(v, x[m][row]) for m, v in sample.items())
    assert cells[0]["id"] == "a"
    assert torch.equal(cells.observed, observed)


def test_no_cells_are_an_empty_batch():
    assert from_mudata({"rna": part([], RNA[:0])})[1].shape == (0, 1)


def test_a_model_takes_its_batches():
    model = vector_mmhvae({"rna": 3, "atac": 2}, hidden=4, latents=[2])
    loader = DataLoader(MuDataset(unpaired()), 2, collate_fn=model.collate)
    sizes = [model(x, observed).kl[0].shape for x, observed in loader]
    assert sizes == [(2,), (2,), (1,)]


def test_a_layer_is_read_in_place_of_the_values():
    data = unpaired()
    data["rna"].layers["log"] = np.log1p(RNA)
    x, _ = from_mudata(data, layers={"rna": "log"})
    torch.testing.assert_close(x["rna"][:4], torch.tensor(RNA).log1p().float())


@pytest.mark.parametrize(
    ("data", "layers", "match"),
    [
        (
            part(["a"], RNA[:1]),
            None,
            r"'data' should be a MuData object, or map .* SimpleNamespace",
        ),
        ({}, None, r"'modalities' should be a list of distinct names, at least one"),
        (unpaired(), {"prot": "log"}, r"'layers' should hold modalities among rna, atac"),
        (unpaired(), {"rna": "log"}, r"'layers' should name a layer of 'rna' \(\), .* 'log'"),
        ({"rna": part(["a", "a"], RNA[:2])}, None, r"name each cell once, but 'rna' repeats 'a'"),
        ({"rna": RNA}, None, r"map modality names to AnnData objects, but 'rna' is .* ndarray"),
        ({"rna": part(["a"], RNA)}, None, r"of 'rna' with one row .* \(1, C\), .* shape \(4, 3\)"),
        ({"rna": part(list("abcd"), RNA.astype(str))}, None, r"should hold numbers in 'rna'"),
    ],
)
def test_what_cannot_be_read_is_named(data, layers, match):
    with pytest.raises(ValueError, match=match):
        MuDataset(data, layers)


def test_a_part_without_values_is_named():
    empty = part(list("abcd"), RNA, {"log": RNA})
    empty.X = None
    with pytest.raises(ValueError, match=r"a layer of 'rna' \(log\), which has no 'X'"):
        MuDataset({"rna": empty})


MEASURE = """
import resource, sys
from types import SimpleNamespace
import numpy as np, pandas as pd, scipy.sparse, torch
from torch.utils.data import DataLoader
from mmpoe.missing import collate
from mmpoe.omics import MuDataset
torch.set_num_threads(1)
rng = np.random.default_rng(0)
n, genes, each = 100_000, 2000, 40
counts = scipy.sparse.csr_array(
    (rng.poisson(2.0, n * each).astype("f4"), rng.integers(0, genes, n * each),
     np.arange(0, n * each + 1, each)), shape=(n, genes))
part = SimpleNamespace(obs_names=pd.RangeIndex(n).astype(str), X=counts, layers={})
cells = MuDataset({"rna": part})
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
next(iter(DataLoader(cells, 256, collate_fn=collate)))
before, total = peak(), 0.0
for x, observed in DataLoader(cells, 256, shuffle=True, collate_fn=collate):
    total += x["rna"].double().sum().item()
assert total == counts.sum(dtype=float), (total, counts.sum())
print(peak() - before)
"""


@pytest.mark.long
def test_a_hundred_thousand_cells_take_the_memory_of_a_batch():
    """Dense, they would take 800 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 60  # MB


# ---------------------------------------------------------------- the packages themselves


def test_results_come_back_with_all_cells_in_every_modality():
    anndata = pytest.importorskip("anndata", reason="needs anndata")
    mudata = pytest.importorskip("mudata", reason="needs mudata")
    plain = unpaired()
    parts = {
        m: anndata.AnnData(p.X, obs=pd.DataFrame(index=p.obs_names), var=p.var.copy())
        for m, p in plain.items()
    }
    with mudata.set_options(pull_on_update=False):
        data = mudata.MuData(parts)
    cells = MuDataset(data)
    x, observed = from_mudata(data)
    assert sorted(cells.obs_names) == ["a", "b", "c", "d", "x"]
    for m in ("rna", "atac"):
        column = cells.modalities.index(m)
        for row, name in enumerate(cells.obs_names):
            there = name in plain[m].obs_names
            assert bool(observed[row, column]) == there
            if there:
                wanted = data[m][name].X
                wanted = wanted.toarray() if hasattr(wanted, "toarray") else wanted
                np.testing.assert_array_equal(x[m][row], wanted[0])

    imputed = {"rna": torch.ones(5, 3), "atac": np.zeros((5, 2))}
    out = to_mudata(data, imputed, latents=torch.full((5, 4), 2.0))
    assert list(out.obs_names) == list(cells.obs_names)
    for m, values in imputed.items():
        np.testing.assert_array_equal(out[m].layers["imputed"], np.asarray(values))
        assert list(out[m].var_names) == list(data[m].var_names)
        column = cells.modalities.index(m)
        assert out[m].obs["observed"].tolist() == observed[:, column].tolist()
    np.testing.assert_array_equal(out.obsm["latents"], np.full((5, 4), 2.0))
    assert "imputed" not in data["rna"].layers

    with pytest.raises(ValueError, match=r"'imputed' of 'rna' .* shape \(5, 3\), .* \(4, 3\)"):
        to_mudata(data, {"rna": np.zeros((4, 3))})
    with pytest.raises(ValueError, match=r"'latents' should have .* \(5, K\), but has .* \(5,\)"):
        to_mudata(data, imputed, latents=np.zeros(5))
    with pytest.raises(ValueError, match=r"'imputed' should hold modalities among"):
        to_mudata(data, {"protein": np.zeros((5, 2))})


def test_packages_that_are_absent_are_named(monkeypatch):
    for name in ("anndata", "mudata"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"mmpoe\[omics\]"):
        to_mudata(unpaired(), {})

"""The model of a table: networks run side by side are those that run one after the other."""

import torch

import mmpoe
from mmpoe.imputer._network import Modality, SideBySide, build

MODALITIES = [
    Modality("a", [0], "numeric", 2),
    Modality("b", [1], "categorical", 3),
    Modality("views", [2, 3, 4], "numeric", 2),
    Modality("c", [5], "numeric", 2),
    Modality("d", [6], "count", 2),
    Modality("e", [7], "categorical", 2),
    Modality("f", [8], "categorical", 3),
    Modality("g", [9], "count", 2),
    Modality("items", [12, 10, 11], "numeric", 2),
]


def made(seed=0, dtype=torch.float64):
    """A model with parameters that differ, a table with holes, and what is given."""
    torch.manual_seed(seed)
    model = build(MODALITIES, hidden=8, latents=[2, 3]).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    table = torch.randn(20, 13, dtype=dtype)
    table[:, [1, 8]] = torch.randint(3, (20, 2)).to(dtype)
    table[:, [6, 7, 9]] = torch.randint(2, (20, 3)).to(dtype)
    table[torch.rand(20, 13) < 0.3] = torch.nan
    x = {m.name: table[:, m.columns] for m in MODALITIES}
    observed = torch.stack([~v.isnan().all(dim=1) for v in x.values()], dim=1)
    given = observed & (torch.rand(observed.shape) < 0.6)
    given[0] = False
    return model, table, x, observed, given


def one_by_one(model, x, observed, given, beta):
    valid = {m: ~v.isnan() for m, v in x.items()}
    torch.manual_seed(5)
    return mmpoe.elbo(model(x, given), x, observed, beta, valid=valid, validate=False)


def test_networks_side_by_side_have_the_bound_of_single_ones():
    model, table, x, observed, given = made()
    whole = SideBySide(model, MODALITIES)
    torch.manual_seed(5)
    bound = whole.bound(table, given, beta=0.7)
    torch.testing.assert_close(
        bound, one_by_one(model, x, observed, given, 0.7), rtol=1e-11, atol=1e-11
    )


def test_networks_side_by_side_learn_what_single_ones_do():
    model, table, x, observed, given = made()
    whole = SideBySide(model, MODALITIES)
    own, _, _, _, _ = made()  # steps down and priors are shared, so that each needs its own
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (whole, own)]
    for _ in range(3):
        torch.manual_seed(5)
        bounds = [whole.bound(table, given), one_by_one(own, x, observed, given, 1.0)]
        for bound, optimizer in zip(bounds, optimizers, strict=True):
            optimizer.zero_grad()
            (-bound.mean()).backward()
            optimizer.step()
    whole.write(model)
    for (name, a), (other, b) in zip(
        model.named_parameters(), own.named_parameters(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_what_was_written_back_is_the_model_that_was_stacked():
    model, *_ = made()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    SideBySide(model, MODALITIES).write(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_a_hole_or_a_hidden_cell_held_is_never_read():
    model, table, _, _, given = made()
    whole = SideBySide(model, MODALITIES)
    cells = table.clone().requires_grad_()
    torch.manual_seed(5)
    whole.bound(cells, given).sum().backward()
    assert (cells.grad[table.isnan()] == 0).all()
    for p in whole.parameters():
        assert p.grad is None or p.grad.isfinite().all()


def test_few_tensors_hold_the_weights_of_many_columns():
    many = [Modality(f"x{i}", [i], "numeric", 2) for i in range(20)]
    model = build(many, hidden=8, latents=[2, 2])
    whole = SideBySide(model, many)
    assert sum(p.numel() for p in whole.parameters()) == sum(p.numel() for p in model.parameters())
    assert len(list(whole.parameters())) < len(list(model.parameters())) / 10


def test_any_number_of_experts_is_fused(monkeypatch):
    """The fused operation takes 32 at once: of more, products are multiplied."""
    model, table, x, observed, given = made()
    whole = SideBySide(model, MODALITIES)
    monkeypatch.setattr("mmpoe.imputer._network.AT_ONCE", 2)
    torch.manual_seed(5)
    bound = whole.bound(table, given)
    torch.testing.assert_close(
        bound, one_by_one(model, x, observed, given, 1.0), rtol=1e-11, atol=1e-11
    )

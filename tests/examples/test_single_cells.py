"""Covariates and exposures are worth as much as the generated cells say, under every objective."""

import pytest
import torch

from examples.single_cells import OBJECTIVES, evidence, main, make_cells, make_model, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_and_depth_are_worth_many_nats(name):
    cells, observed, _ = make_cells(2000, seed=0)
    test, seen, truth = make_cells(300, seed=1)
    values = []
    for covariates in (False, True):
        torch.manual_seed(0)
        model = make_model(covariates=covariates)
        train(model, OBJECTIVES[name], cells, observed, steps=120)
        values.append(evidence(model, test, seen))
    assert values[0] + 15 < values[1] < truth[seen[:, 0]].mean()


def test_the_table_has_a_line_for_each_objective(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["single_cells.py", "--smoke"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(OBJECTIVES)

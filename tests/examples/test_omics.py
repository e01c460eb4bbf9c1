"""The example of omics: its table on generated patients, and what it hides."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="data frames need pandas")
pytest.importorskip("sklearn", reason="ridge needs scikit-learn")

from examples.omics import Ridge, generated, hide, main, split  # noqa: E402


def test_patients_lack_whole_modalities():
    table, groups = generated()
    train, test = split(table)
    assert len(train) == 168
    assert not set(train.index) & set(test.index)
    holes = hide(train, groups)
    for columns in groups.values():
        absent = holes[columns].isna().to_numpy()
        assert (absent.all(axis=1) == absent.any(axis=1)).all()
        assert 0.2 < absent.mean() < 0.4
    assert holes.dtypes.equals(train.dtypes)


def test_ridge_does_not_read_what_it_predicts():
    table, groups = generated()
    train, test = split(table)
    ridge = Ridge(hide(train, groups), groups)
    other = test.assign(**{"clinical age": 0.0, "clinical grade": "II"})
    first, second = (ridge.predict(x, "clinical") for x in (test, other))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_modality(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["omics.py", "--smoke"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(generated()[1])
    rows = [np.array(line.split()[1:], dtype=float) for line in lines[1:]]
    for row in rows:
        assert row[2] > row[1] > 0.3  # mmpoe explains more than ridge does
        assert 0.85 < row[-1] < 0.95
    assert len(rows[-1]) == 6  # with categories

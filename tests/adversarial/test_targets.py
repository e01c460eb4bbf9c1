"""Scored targets, one by one."""

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from mmpoe.adversarial import scored_targets


@hypothesis_given(st.data())
def test_rules_target_by_target(data):
    size, rows, number = (data.draw(st.integers(1, 4)) for _ in range(3))
    bits = data.draw(st.lists(st.booleans(), min_size=rows * size, max_size=rows * size))
    observed = torch.tensor(bits).reshape(rows, size)
    more = rows * size * number
    bits = data.draw(st.lists(st.booleans(), min_size=more, max_size=more))
    given = torch.tensor(bits).reshape(number, rows, size) & observed
    for rule, expected in {
        "hidden": lambda g, r: not g,
        "unobserved": lambda g, r: not r,
        "all": lambda g, r: True,
    }.items():
        found = scored_targets(given, observed, rule)
        assert found.shape == given.shape
        for s in range(number):
            for b in range(rows):
                for m in range(size):
                    g, r = given[s, b, m], observed[b, m]
                    assert found[s, b, m] == (bool(given[s, b].any()) and expected(g, r))
        assert torch.equal(scored_targets(given[0], observed, rule), found[0])
        order = torch.randperm(size)
        assert torch.equal(
            scored_targets(given[..., order], observed[:, order], rule), found[..., order]
        )
    assert torch.equal(scored_targets(given, observed), scored_targets(given, observed, "hidden"))


def test_bad_targets_are_named():
    observed = torch.tensor([[True, False]])
    with pytest.raises(
        ValueError, match=r"'rule' should be one of hidden, unobserved, all, but i"
    ):
        scored_targets(observed, observed, "missing")
    with pytest.raises(ValueError, match=r"'given' .* \(B, M\) is \(1, 2\), .* shape \(1, 3\)"):
        scored_targets(torch.ones(1, 3, dtype=torch.bool), observed)
    with pytest.raises(ValueError, match=r"'given' should be boolean .* dtype torch.float32"):
        scored_targets(torch.ones(1, 2), observed)
    with pytest.raises(ValueError, match=r"'given' should hold subsets of .* but holds 1 that"):
        scored_targets(~observed, observed)
    with pytest.raises(ValueError, match=r"'observed' should be boolean"):
        scored_targets(observed, observed.float())

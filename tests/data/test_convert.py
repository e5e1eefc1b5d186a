"""Which examples are held out for testing, and the numbers of owners."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.data.convert import hold_out, number_owners
from heterofl_flwr.errors import DataError


@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=60), share=st.sampled_from([0.1, 0.2, 0.5, 0.9, 1 / 3]))
def test_of_each_group_the_share_is_held_out(groups, share):
    """The slow twin counts through the groups one by one."""
    part, seen, expected = Fraction(str(share)).limit_denominator(1_000_000), dict.fromkeys(groups, 0), []
    for group in groups:
        seen[group] += 1
        expected.append(int(seen[group] * part) > int((seen[group] - 1) * part))
    if any(expected):
        assert hold_out("here", torch.tensor(groups), share).tolist() == expected
    else:
        with pytest.raises(DataError, match=f"here has no test split, .* {len(groups)} examples in {len(seen)} groups"):
            hold_out("here", torch.tensor(groups), share)


def test_owners_are_numbered_in_the_order_of_their_names():
    assert [own.tolist() for own in number_owners(["b", "d", "b"], ["c", "d"])] == [[0, 2, 0], [1, 2]]
    assert [own.tolist() for own in number_owners([10, 9, 10])] == [[1, 0, 1]]
    assert number_owners(None, None) == []

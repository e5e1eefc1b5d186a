"""Which examples are held out for testing, and the numbers of owners."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.data.convert import hold_out, number_owners
from heterofl_flwr.errors import DataError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_every_fifth_of_each_group_is_held_out(groups):
    """The slow twin counts through the groups one by one."""
    seen, expected = dict.fromkeys(groups, 0), []
    for group in groups:
        seen[group] += 1
        expected.append(seen[group] % 5 == 0)
    if any(expected):
        assert hold_out("here", torch.tensor(groups)).tolist() == expected
    else:
        with pytest.raises(DataError, match=f"here has no test split, and none of its {len(seen)} groups"):
            hold_out("here", torch.tensor(groups))


def test_owners_are_numbered_in_the_order_of_their_names():
    assert [own.tolist() for own in number_owners(["b", "d", "b"], ["c", "d"])] == [[0, 2, 0], [1, 2]]
    assert [own.tolist() for own in number_owners([10, 9, 10])] == [[1, 0, 1]]
    assert number_owners(None, None) == []

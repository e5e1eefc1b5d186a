"""Views follow the entries: against one entry at a time."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.elastic_models.interception import Operators, follow
from heterofl_flwr.elastic_models.movement_rules import block
from heterofl_flwr.elastic_models.trace import Trace

FACTORS = st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5)


def _grouped(factors, data):
    """Return a shape whose axes are products of neighbouring factors."""
    ends = data.draw(st.sets(st.integers(1, len(factors)))) | {len(factors)}
    starts = [0, *sorted(ends)]
    return [math.prod(factors[a:b]) for a, b in pairwise(starts)]


@given(FACTORS, st.data())
def test_an_entry_of_a_view_depends_on_what_it_depended_on_before(factors, data):
    before, after = (_grouped(factors, data) for _ in range(2))
    trace = Trace()
    tensor = torch.empty(before, device="meta")
    trace.fresh(tensor)
    with Operators(partial(follow, trace)):
        viewed = tensor.view(after)
    assert len(trace.rows(viewed)) == len(after)
    for old, new in zip(_needs(trace, tensor), _needs(trace, viewed), strict=True):
        assert old == new


def _needs(trace, tensor):
    """Yield for each entry, in memory's order, the positions that must be kept for it to be kept."""
    rows = [None if row is None else trace.positions.roots(row) for row in trace.rows(tensor)]
    for place in np.ndindex(*tensor.shape):
        yield {int(row[at]) for row, at in zip(rows, place, strict=True) if row is not None} - {0}


@given(FACTORS, st.data())
def test_a_block_holds_the_same_entries_on_both_sides(factors, data):
    before, after = (_grouped(factors, data) for _ in range(2))
    for axis, length in enumerate(before):
        if length > 1:
            (first, last), (start, stop) = block(before, after, axis)
            assert first <= axis < last
            assert math.prod(before[first:last]) == math.prod(after[start:stop])
            assert math.prod(before[:first]) == math.prod(after[:start])

"""Positions that are kept together, lengths that remember their axes, and views that follow the entries."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.elastic_models.channels import Positions
from heterofl_flwr.elastic_models.lengths import Trace
from heterofl_flwr.elastic_models.rules import Operators, follow

NUMBERS = st.integers(0, 11)
FACTORS = st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5)


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6), max_size=5))
def test_positions_united_are_one_set(rounds):
    positions = Positions()
    positions.new(11)
    sets = {number: {number} for number in range(12)}
    for pairs in rounds:
        positions.unite(*(np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1)))
        for first, second in pairs:
            for number in (both := sets[first] | sets[second]):
                sets[number] = both
        assert positions.roots(np.arange(12)).tolist() == [min(sets[number]) for number in range(12)]


def _grouped(factors, data):
    """Return a shape whose axes are products of neighbouring factors."""
    ends = data.draw(st.sets(st.integers(1, len(factors)))) | {len(factors)}
    return [math.prod(factors[a:b]) for a, b in pairwise([0, *sorted(ends)])]


@given(FACTORS, st.data())
def test_a_view_keeps_what_each_entry_depends_on(factors, data):
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

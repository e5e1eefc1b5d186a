import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.elastic_models.channels import Positions

NUMBERS = st.integers(0, 11)


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6), max_size=5))
def test_positions_united_are_one_set(rounds):
    positions = Positions()
    positions.new(11)
    sets = {number: {number} for number in range(12)}
    for pairs in rounds:
        one, two = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
        positions.unite(one, two)
        for first, second in pairs:
            for number in (both := sets[first] | sets[second]):
                sets[number] = both
        assert positions.roots(np.arange(12)).tolist() == [min(sets[number]) for number in range(12)]


def test_there_is_room_for_as_many_as_are_asked_for():
    positions = Positions()
    rows = [positions.new(number) for number in (3, 1, 5000)]
    assert np.concatenate(rows).tolist() == list(range(1, 5005))
    assert len(positions) == 5005
    assert positions.roots(rows[2]).tolist() == rows[2].tolist()


def test_a_row_is_united_with_one_position():
    positions = Positions()
    row = positions.new(4)
    positions.unite(row.reshape(2, 2), row[:1])
    assert positions.roots(row).tolist() == [1, 1, 1, 1]

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import Aggregator, Axis, Plan, prefix
from heterofl_flwr.core.axes import CoupledAxis, axis_of_channels, positions
from tests.core import twin


@st.composite
def _axes(draw):
    """Return the places of an axis and the groups that its channels belong to."""
    groups = [(n, draw(st.integers(0, n))) for n in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))]
    channels = [(-1, 0), *((group, channel) for group, (number, _) in enumerate(groups) for channel in range(number))]
    return draw(st.lists(st.sampled_from(channels), min_size=1, max_size=12)), groups


def _kept(places, held):
    return {place for place, (group, channel) in enumerate(places) if group < 0 or channel in held[group]}


@given(_axes())
def test_an_axis_keeps_the_first_channels_of_each_group(case):
    places, groups = case
    axis = axis_of_channels(places, groups)
    assert positions(axis) == _kept(places, [range(kept) for _, kept in groups])
    assert axis.full == len(places)
    assert axis.sliced(prefix) == axis


@given(st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(0, 4), st.data())
def test_what_is_chosen_of_a_group_is_kept_wherever_it_stands(sizes, shift, data):
    groups = [(number, data.draw(st.integers(0, number))) for number in sizes]
    places = [(group, channel) for group, number in enumerate(sizes) for channel in range(number)]
    places = data.draw(st.permutations(places * 2))
    slice_function = twin.rolling(shift)
    axis = axis_of_channels(places, groups).sliced(slice_function)
    assert positions(axis) == _kept(places, [slice_function(number, kept) for number, kept in groups])


def test_a_plain_axis_stays_plain():
    assert axis_of_channels([(4, 0), (4, 1)] * 3, {4: (2, 1)}) == Axis(6, 3, 3)
    assert axis_of_channels([(0, 0), (0, 1)], [(2, 2)]) == Axis(2, 2)
    assert axis_of_channels([(-1, 0)] * 3, []) == Axis(3, 3)


def test_entries_of_one_channel_side_by_side_are_a_prefix_that_is_chosen_by_channel():
    axis = axis_of_channels([(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 2)], [(3, 1)])
    assert (axis.full, axis.kept, axis.index) == (6, 2, None)
    assert axis.sliced(twin.rolling(1)).index == (2, 3)
    assert axis != Axis(6, 2)


def test_it_contains_what_it_holds():
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    large, small = (axis_of_channels(places, [(2, kept), (2, 1)]) for kept in (2, 1))
    assert large.contains(small)
    assert not small.contains(large)
    assert large.contains(Axis(4, 3))
    assert not large.contains(Axis(4, 3, 1, (1, 2, 3)))
    assert not large.contains(Axis(5, 1))
    assert hash(large) == hash(axis_of_channels(places, [(2, 2), (2, 1)]))


def test_a_whole_axis_is_a_plain_one_whatever_is_chosen():
    axis = CoupledAxis(2, 2, 1, None, ((1, 1),), ((0, 0), (-1, 0)))
    assert axis.sliced(twin.rolling(1)) == Axis(2, 2)


def test_a_choice_that_keeps_another_number_of_entries_is_refused():
    axis = axis_of_channels([(0, 0), (0, 0), (0, 1)], [(2, 1)])
    with pytest.raises(ValueError, match="expected 2 ascending positions"):
        axis.sliced(twin.rolling(1))


def test_clients_of_unequal_parts_are_averaged():
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    plan = Plan({"weight": (axis_of_channels(places, [(2, 1), (3, 2)]),)})
    aggregator = Aggregator({"weight": torch.zeros(5)})
    aggregator.add(plan, {"weight": torch.tensor([1.0, 2, 3])})
    aggregator.add(Plan({"weight": (Axis(5, 5),)}), {"weight": torch.full((5,), 5.0)})
    assert aggregator.result()["weight"].tolist() == [3, 5, 3.5, 4, 5]

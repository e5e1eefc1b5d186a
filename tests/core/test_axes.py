"""Axes, coupled axes, and regions of tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.core import Axis, axes_between, prefix
from heterofl_flwr.core.axes import build_channel_axis, positions
from heterofl_flwr.core.slice_plan import Plan, Region
from tests.core import strategies, twin


def _positions(axis):
    return set(twin.positions(axis.size, axis.local_size, axis.parts, axis.index))


@given(data=st.data(), one=strategies.axis())
def test_an_axis_contains_another_that_keeps_no_more_positions(data, one):
    other = data.draw(strategies.axis(one.size))
    assert one.contains(other) == (_positions(other) <= _positions(one))
    assert not Axis(one.size + 1, one.size + 1).contains(one)


INVALID = [(4, 5), (4, -1), (8, 4, 3), (8, 3, 2), (8, 4, 0), (8, 4, -2), (8, 2, 2, (4,)), (8, 0, 1, (0,))]
INVALID += [(8, 2, 1, own) for own in ((1,), (2, 1), (2, 2), (-1, 2), (6, 8))]


@pytest.mark.parametrize("axis", INVALID)
def test_lengths_and_positions_that_do_not_fit_raise(axis):
    with pytest.raises(ShapeError, match=r"cannot keep|does not divide into .* parts|ascending positions below"):
        Axis(*axis)


@pytest.mark.parametrize("as_sequence", [tuple, list, np.array, torch.tensor])
def test_a_functions_positions_become_plain_numbers(as_sequence):
    chosen = Axis(8, 4, 2).sliced(lambda full, kept: as_sequence([1, 3]))
    assert chosen == Axis(8, 4, 2, (1, 3))
    assert hash(chosen) == hash(Axis(8, 4, 2, (1, 3)))


@pytest.mark.parametrize("axis", [Axis(8, 8), Axis(8, 8, 4), Axis(8, 8, 1, tuple(range(8)))])
def test_a_whole_axis_and_a_prefix_have_one_form(axis):
    assert axis.sliced(prefix) == axis.sliced(twin.rolling(1)) == Axis(8, 8)
    assert Axis(8, 4, 2).sliced(lambda full, kept: range(kept)) == Axis(8, 4, 2)


def test_axes_come_from_two_shapes():
    assert axes_between((8, 3, 5), (4, 3, 1)) == (Axis(8, 4), Axis(3, 3), Axis(5, 1))
    assert axes_between((), ()) == ()
    assert axes_between((8, 8), (4, 2), {1: 2}) == (Axis(8, 4), Axis(8, 2, 2))
    assert axes_between((8, 8), (8, 4), {0: 2, 1: 2}) == (Axis(8, 8), Axis(8, 4, 2))  # a whole axis has no parts


def _kept(places, held):
    return {place for place, (group, channel) in enumerate(places) if group < 0 or channel in held[group]}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(0, 4), st.data())
def test_what_is_chosen_of_a_group_is_kept_wherever_it_stands(sizes, shift, data):
    groups = [(number, data.draw(st.integers(0, number))) for number in sizes]
    places = [(group, channel) for group, number in enumerate(sizes) for channel in range(number)]
    places = data.draw(st.permutations([*places * 2, (-1, 0)]))
    whole, slice_function = build_channel_axis(places, groups), twin.rolling(shift)
    assert positions(whole) == _kept(places, [range(kept) for _, kept in groups])
    assert whole.sliced(prefix) == whole
    assert hash(whole) == hash(build_channel_axis(places, groups))
    axis = whole.sliced(slice_function)
    assert positions(axis) == _kept(places, [slice_function(number, kept) for number, kept in groups])


def test_a_plain_axis_stays_plain():
    assert build_channel_axis([(4, 0), (4, 1)] * 3, {4: (2, 1)}) == Axis(6, 3, 3)
    assert build_channel_axis([(0, 0), (0, 1)], [(2, 2)]) == Axis(2, 2)
    assert build_channel_axis([(-1, 0)] * 3, []) == Axis(3, 3)


def test_a_choice_of_another_number_of_entries_is_refused():
    axis = build_channel_axis([(0, 0), (0, 0), (0, 1)], [(2, 1)])
    with pytest.raises(ValueError, match="expected 2 ascending positions"):
        axis.sliced(twin.rolling(1))
    with pytest.raises(ConfigError, match=r"table have more entries of some channels .* expected slice_rule='prefix'"):
        Plan({"table": (axis,)}).check_groups()


@given(axes=strategies.axes(), transposed=st.booleans())
def test_a_region_reads_what_the_twin_cuts(axes, transposed):
    tensor = torch.randn([axis.size for axis in axes], generator=torch.Generator().manual_seed(0))
    if transposed:  # the same values in another memory order
        backwards = list(range(tensor.dim()))[::-1]
        tensor = tensor.permute(backwards).contiguous().permute(backwards)
    local = Region(tensor, axes).read()
    assert torch.equal(local, twin.cut(tensor, twin.held(axes)))
    assert local.is_contiguous()
    assert not local.numel() or local.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()

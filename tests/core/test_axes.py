from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import Axis, axes_between, prefix
from heterofl_flwr.errors import ShapeError
from tests.core import strategies, twin


def _positions(axis):
    return set(twin.positions(axis.full, axis.kept, axis.parts, axis.index))


@given(data=st.data(), one=strategies.axis())
def test_an_axis_never_claims_to_contain_what_it_lacks(data, one):
    other = data.draw(strategies.axis(one.full))
    if one.contains(other):
        assert _positions(other) <= _positions(one)


@given(data=st.data(), full=st.sampled_from([1, 2, 4, 6, 12]))
def test_prefixes_of_equal_parts_contain_one_another_exactly(data, full):
    parts = data.draw(st.sampled_from([parts for parts in (1, 2, 3) if full % parts == 0]))
    one, other = (Axis(full, parts * data.draw(st.integers(0, full // parts)), parts) for _ in range(2))
    assert one.contains(other) == (_positions(other) <= _positions(one))


def test_axes_of_different_lengths_contain_nothing_of_one_another():
    assert not Axis(8, 8).contains(Axis(4, 2))


def test_a_whole_axis_contains_every_other_of_its_length():
    assert Axis(8, 8).contains(Axis(8, 4, 2))
    assert Axis(8, 8).contains(Axis(8, 2, 1, (3, 5)))


def test_an_axis_contains_itself_but_not_another_choice():
    assert Axis(8, 2, 1, (3, 5)).contains(Axis(8, 2, 1, (3, 5)))
    assert not Axis(8, 2, 1, (3, 5)).contains(Axis(8, 2, 1, (3, 4)))
    assert not Axis(8, 4, 2).contains(Axis(8, 4))


@pytest.mark.parametrize(("full", "kept"), [(4, 5), (4, -1), (0, 1)])
def test_an_axis_keeps_at_least_none_and_at_most_all(full, kept):
    with pytest.raises(ShapeError, match=f"an axis of {full} entries cannot keep {kept}"):
        Axis(full, kept)


@pytest.mark.parametrize(("full", "kept", "parts"), [(8, 4, 3), (8, 3, 2), (8, 4, 0), (8, 4, -2)])
def test_an_axis_that_does_not_divide_into_its_parts_is_refused(full, kept, parts):
    with pytest.raises(ShapeError, match=f"keeps {kept} of {full} entries does not divide into {parts} parts"):
        Axis(full, kept, parts)


@pytest.mark.parametrize(
    ("axis", "index"),
    [
        ((8, 2), (1,)),
        ((8, 2), (1, 2, 3)),
        ((8, 2), (2, 1)),
        ((8, 2), (2, 2)),
        ((8, 2), (-1, 2)),
        ((8, 2), (6, 8)),
        ((8, 2, 2), (4,)),
        ((8, 0), (0,)),
    ],
)
def test_positions_that_do_not_fit_are_refused(axis, index):
    expected = Axis(*axis).part[1]
    with pytest.raises(ShapeError, match=f"expected {expected} ascending positions below .* of each part, got"):
        Axis(*axis, *[1] * (3 - len(axis)), index)


def test_long_lists_of_wrong_positions_are_shortened():
    with pytest.raises(ShapeError, match=r"got 20: 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.$"):
        Axis(30, 10, 1, tuple(range(20)))


def test_an_axis_never_changes():
    with pytest.raises(FrozenInstanceError):
        Axis(4, 2).kept = 3


@pytest.mark.parametrize("as_sequence", [tuple, list, np.array, torch.tensor])
def test_a_functions_positions_become_plain_numbers(as_sequence):
    chosen = Axis(8, 4, 2).sliced(lambda full, kept: as_sequence([1, 3]))
    assert chosen == Axis(8, 4, 2, (1, 3))
    assert hash(chosen) == hash(Axis(8, 4, 2, (1, 3)))


def test_a_slice_function_sees_one_part_and_is_not_asked_about_whole_axes():
    seen = []

    def slice_function(full, kept):
        seen.append((full, kept))
        return range(full - kept, full)

    assert Axis(12, 4, 2).sliced(slice_function) == Axis(12, 4, 2, (4, 5))
    assert Axis(12, 12).sliced(slice_function) == Axis(12, 12)
    assert seen == [(6, 2)]


def test_a_chosen_prefix_is_the_prefix():
    assert Axis(8, 4, 2).sliced(lambda full, kept: range(kept)) == Axis(8, 4, 2).sliced(prefix) == Axis(8, 4, 2)


@pytest.mark.parametrize("axis", [Axis(8, 8), Axis(8, 8, 4), Axis(8, 8, 1, tuple(range(8)))])
def test_a_whole_axis_has_one_form(axis):
    assert axis.sliced(prefix) == axis.sliced(twin.rolling(1)) == Axis(8, 8)


def test_a_slice_function_that_keeps_too_many_is_refused():
    with pytest.raises(ShapeError, match="expected 2 ascending positions below 4 of each part, got 4: 0, 1, 2, 3"):
        Axis(8, 4, 2).sliced(lambda full, kept: range(full))


def test_axes_come_from_two_shapes():
    assert axes_between((8, 3, 5), (4, 3, 1)) == (Axis(8, 4), Axis(3, 3), Axis(5, 1))
    assert axes_between((), ()) == ()
    assert axes_between((8, 8), (4, 2), {1: 2}) == (Axis(8, 4), Axis(8, 2, 2))


def test_whole_axes_have_no_parts():
    assert axes_between((8, 8), (8, 4), {0: 2, 1: 2}) == (Axis(8, 8), Axis(8, 4, 2))


@pytest.mark.parametrize(
    ("full", "local", "parts"),
    [((8,), (8, 1), None), ((8,), (), None), ((8,), (9,), None), ((8,), (4,), {1: 2}), ((8,), (4,), {-1: 2})],
)
def test_shapes_that_are_no_slice_of_one_another_are_refused(full, local, parts):
    with pytest.raises(ShapeError):
        axes_between(full, local, parts)

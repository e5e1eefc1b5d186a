import copy

import pytest
import torch

from heterofl_flwr.elastic_models.trace import Length, Source, Trace


@pytest.fixture
def trace():
    return Trace()


def _length(trace, number):
    row = trace.positions.new(number)
    return row, Length.of(number, (Source(trace, lambda: row),))


def _kept_together(trace, *rows):
    return len({tuple(trace.positions.roots(row)) for row in rows}) == 1


def test_a_length_is_the_number_that_it_is(trace):
    _, six = _length(trace, 6)
    assert six == 6
    assert hash(six) == hash(6)
    assert torch.zeros(six, 2).shape == (6, 2)
    assert torch.zeros(2, 6).view(six // 3, -1).shape == (2, 6)
    assert [*range(six)] == [0, 1, 2, 3, 4, 5]
    assert copy.deepcopy(six) is six


def test_products_and_exact_parts_remember(trace):
    _, six = _length(trace, 6)
    _, two = _length(trace, 2)
    assert (6 * six).sources == (six * 1).sources == six.sources
    assert (six * two).sources == six.sources + two.sources
    assert (six // two).divisors == two.sources
    assert (six // two * two).divisors == two.sources
    assert (two * six // 3) == 4


def test_what_is_no_length_forgets(trace):
    _, six = _length(trace, 6)
    for number in (six + 1, six // 4, six - six, -six, six / 2, six * 0.5, six**2):
        assert not isinstance(number, Length)
    with pytest.raises(TypeError):
        six // "2"


def test_an_axis_of_a_length_is_cut_as_its_source(trace):
    row, six = _length(trace, 6)
    other = trace.positions.new(6)
    trace.use(six, other)
    assert _kept_together(trace, row, other)


def test_an_axis_of_a_part_is_cut_as_each_part(trace):
    row, six = _length(trace, 6)
    other = trace.positions.new(3)
    trace.use(six // 2, other)
    assert _kept_together(trace, row[:3], row[3:], other)


def test_axes_in_proportion_are_left_alone(trace):
    row, three = _length(trace, 3)
    trace.use(three * 2, row.repeat(2))
    assert len(set(trace.positions.roots(row))) == 3


def test_what_divides_stays_whole(trace):
    row, six = _length(trace, 6)
    heads, two = _length(trace, 2)
    other = trace.positions.new(3)
    trace.use(six // two, other)
    assert trace.open(heads) is None
    assert trace.open(row) is not None


def test_an_axis_of_a_plain_number_stays_whole(trace):
    other = trace.positions.new(6)
    trace.use(6, other)
    assert trace.open(other) is None


def test_a_source_of_a_whole_axis_is_whole(trace):
    row, six = _length(trace, 6)
    trace.use(six, None)
    assert trace.open(row) is None


def test_a_number_that_is_never_used_has_no_positions(trace):
    source = Source(trace, lambda: pytest.fail("made"))
    assert not source.used

import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core.axes import Axis
from heterofl_flwr.core.slices import chain_of
from tests.core import twin


@given(data=st.data(), dims=st.integers(0, 4))
def test_shells_share_out_a_tensor_by_the_smallest_slice_that_holds_each_entry(data, dims):
    columns = []
    number = data.draw(st.integers(1, 4))
    for _ in range(dims):
        parts, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        kept = sorted((data.draw(st.integers(0, size)) for _ in range(number)), reverse=True)
        columns.append([Axis(parts * size, parts * own, parts if own < size else 1) for own in kept])
    slices = list(dict.fromkeys(zip(*columns, strict=True))) if dims else [()]
    shape = [column[0].full for column in columns]
    chain = chain_of(tuple(data.draw(st.permutations(slices))))
    found = torch.full(shape, -1)
    seen = torch.zeros(shape)
    for depth, views in enumerate(chain.shells(found)):
        for view in views:
            view.fill_(depth)
    for views in chain.shells(seen):
        for view in views:
            view += 1
    assert seen.eq(1).all()  # no entry is left out, none is met twice
    expected = torch.zeros(shape, dtype=found.dtype)
    for axes in slices:
        for _, origin in twin.entries(twin.held(axes)):
            expected[origin] += 1
    assert torch.equal(found, expected)


def test_in_two_dimensions_a_shell_is_an_l():
    tensor = torch.arange(16).view(4, 4)
    chain = chain_of(((Axis(4, 3), Axis(4, 4)), (Axis(4, 1), Axis(4, 2))))
    outside, (below, beside), (core,) = chain.shells(tensor)
    assert [view.tolist() for view in outside] == [[[12, 13, 14, 15]]]
    assert below.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert beside.tolist() == [[2, 3]]
    assert core.tolist() == [[0, 1]]


def test_slices_that_cross_or_choose_positions_are_no_chain():
    assert chain_of(((Axis(2, 1), Axis(2, 2)), (Axis(2, 2), Axis(2, 1)))) is None
    assert chain_of(((Axis(4, 2, 1, (1, 3)),),)) is None
    assert chain_of(((Axis(4, 2, 2),), (Axis(4, 2),))) is None


def test_a_chain_knows_which_axes_are_cut():
    assert chain_of(((Axis(4, 4), Axis(4, 2)),)).cut == {1}
    assert chain_of(((Axis(4, 4), Axis(4, 2)), (Axis(4, 2), Axis(4, 2)))).cut == {0, 1}
    assert chain_of(((),)).cut == set()

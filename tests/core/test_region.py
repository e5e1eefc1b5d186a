import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core.axes import Axis
from heterofl_flwr.core.slices import Region, is_prefix
from tests.core import strategies, twin


def _tensor(axes, seed=0, kept=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn([axis.kept if kept else axis.full for axis in axes], generator=generator)


@given(axes=strategies.axes(), transposed=st.booleans())
def test_a_region_reads_what_the_twin_cuts(axes, transposed):
    tensor = _tensor(axes)
    if transposed:  # the same values in another memory order
        backwards = list(range(tensor.dim()))[::-1]
        tensor = tensor.permute(backwards).contiguous().permute(backwards)
    local = Region(tensor, axes).read()
    assert torch.equal(local, twin.cut(tensor, twin.held(axes)))
    assert local.is_contiguous()
    assert not local.numel() or local.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@given(axes=strategies.axes(), weight=st.sampled_from([1.0, 0.0, 2.5]))
def test_adding_touches_exactly_the_held_entries(axes, weight):
    total, local = _tensor(axes), _tensor(axes, seed=1, kept=True)
    expected = total.clone()
    for place, origin in twin.entries(twin.held(axes)):
        expected[origin] += weight * local[place]
    Region(total, axes).add(local, weight)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


@given(rest=strategies.axes(3), data=st.data(), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_adding_rows_touches_only_those_rows(rest, data, dtype):
    axes = (Axis(4, 4), *rest)
    total, local = _tensor(axes), _tensor(axes, seed=1, kept=True).to(dtype)
    rows = sorted(data.draw(st.sets(st.integers(0, 3))))
    expected = total.clone()
    for place, origin in twin.entries(twin.held(axes)):
        if origin[0] in rows:
            expected[origin] += 2.0 * local[place].float()
    Region(total, axes).add_rows(local, torch.tensor(rows, dtype=torch.long), 2.0)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("index", "expected"), [(None, True), ((0, 1), False)])
def test_only_axes_without_positions_are_prefixes(index, expected):
    assert is_prefix((Axis(4, 4), Axis(4, 2, 1, index))) is expected


def test_a_prefix_region_is_a_view_without_index_tensors():
    tensor = torch.zeros(4, 6)
    view = Region(tensor, (Axis(4, 2), Axis(6, 2, 2))).view
    assert view.data_ptr() == tensor.data_ptr()
    assert view.shape == (2, 2, 1)

"""Regions of tensors, and chains of nested slices, against their slow twin."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import counting_mean, plan
from heterofl_flwr.core.axes import Axis
from heterofl_flwr.core.counting_mean import nest
from heterofl_flwr.core.plan import Region
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


@given(data=st.data(), dims=st.integers(0, 4))
def test_shells_part_a_tensor_by_the_smallest_slice(data, dims):
    columns = []
    number = data.draw(st.integers(1, 4))
    for _ in range(dims):
        parts, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        kept = sorted((data.draw(st.integers(0, size)) for _ in range(number)), reverse=True)
        columns.append([Axis(parts * size, parts * own, parts if own < size else 1) for own in kept])
    slices = list(dict.fromkeys(zip(*columns, strict=True))) if dims else [()]
    shape = [column[0].full for column in columns]
    chain = nest(tuple(data.draw(st.permutations(slices))))
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


def test_positions_that_clients_keep_are_not_kept_after_them():
    caches = plan._find_geometry, counting_mean._nest_prefixes
    sizes = set()
    for start in range(1, 20):
        axes = (Axis(30, 2, 1, (start, start + 1)),)
        Region(torch.zeros(30), axes)
        nest((axes,))
        sizes.add(tuple(cache.cache_info().currsize for cache in caches))
    assert len(sizes) == 1


def test_slices_that_cross_or_choose_positions_are_no_chain():
    assert nest(((Axis(2, 1), Axis(2, 2)), (Axis(2, 2), Axis(2, 1)))) is None
    assert nest(((Axis(4, 2, 1, (1, 3)),),)) is None
    assert nest(((Axis(4, 2, 2),), (Axis(4, 2),))) is None

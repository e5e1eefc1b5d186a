import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import Axis
from heterofl_flwr.core import counting_mean as module
from heterofl_flwr.core.counting_mean import empty_sum, mean_in_place


@pytest.mark.parametrize(
    ("dtype", "sum_dtype"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_sums_are_of_single_precision_at_least(dtype, sum_dtype, device, shape):
    total = empty_sum(torch.empty(shape, dtype=dtype, device=device))
    assert (total.dtype, total.device.type, tuple(total.shape)) == (sum_dtype, device, shape)


@st.composite
def _nested_counts(draw):
    """Draw slices of a matrix with parts, each within the one before, and how often each was held."""
    parts = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    full = tuple(4 * number for number in parts)
    sizes = sorted(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)), reverse=True)
    whole_rows = draw(st.booleans())
    counts = {}
    for size in sizes:
        rows = Axis(full[0], full[0]) if whole_rows else Axis(full[0], size * parts[0], 1 if size == 4 else parts[0])
        count = draw(st.sampled_from([1.0, 2.0, 0.0, 0.25]))
        if whole_rows and draw(st.booleans()):
            count = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=full[0], max_size=full[0])))
        counts[rows, Axis(full[1], size * parts[1], 1 if size == 4 else parts[1])] = count
    return full, counts


@pytest.mark.parametrize("divisor", [module._divisor, lambda *_: None], ids=["by counts", "by shells"])
@given(drawn=_nested_counts())
def test_shells_and_a_full_tensor_of_counts_agree(drawn, divisor):
    full, counts = drawn
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(full, generator=generator)
    fast = torch.randn(full, generator=generator)
    slow = fast.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_divisor", divisor)
        mean_in_place(fast, old, counts, {})
    held = module.held_by(slow, counts)
    slow = torch.where(held > 0, slow / held.where(held > 0, 1.0), old)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=0)


def test_nested_slices_need_no_tensor_of_counts(monkeypatch):
    monkeypatch.setattr(module, "held_by", None)
    total = torch.full((4, 4), 6.0)
    counts = {(Axis(4, 2), Axis(4, 1)): 2.0, (Axis(4, 3), Axis(4, 4)): 1.0}
    mean_in_place(total, torch.zeros(4, 4), counts, {})
    assert total.tolist() == [[2, 6, 6, 6], [2, 6, 6, 6], [6, 6, 6, 6], [0, 0, 0, 0]]


def test_slices_that_cross_are_counted_entry_by_entry():
    total = torch.full((2, 2), 6.0)
    counts = {(Axis(2, 1), Axis(2, 2)): 2.0, (Axis(2, 2), Axis(2, 1)): 1.0}
    mean_in_place(total, torch.full((2, 2), -1.0), counts, {})
    assert total.tolist() == [[2, 3], [6, -1]]


def test_parameters_cut_alike_along_one_axis_share_their_counts():
    counts = {(Axis(4, 4),): 1.0, (Axis(4, 2),): 1.0}
    shared = {}
    for value in (6.0, 8.0):
        total = torch.full((4,), value)
        mean_in_place(total, torch.zeros(4), counts, shared)
        assert total.tolist() == [value / 2, value / 2, value, value]
    assert len(shared) == 1


def test_shared_counts_are_told_apart_by_type():
    counts = {(Axis(2, 2),): 2.0, (Axis(2, 1),): 1.0}
    shared = {}
    for dtype in (torch.float32, torch.float64):
        total = torch.ones(2, dtype=dtype)
        mean_in_place(total, torch.zeros(2, dtype=dtype), counts, shared)
        assert torch.equal(total, torch.ones(2, dtype=dtype) / torch.tensor([3, 2], dtype=dtype))
    assert len(shared) == 2

"""The counting mean against its slow twin, and the properties that make it safe to use."""

import copy
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, RoundError
from heterofl_flwr.core import Aggregation, Axis, CountingMean, Plan, Robust, RobustMean, counting_mean, prefix
from heterofl_flwr.core.aggregator import CheckedReply
from heterofl_flwr.core.counting_mean import empty_sum
from tests.core import strategies

SPACING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-23, torch.float64: 2**-52}


def _assert_close(found, expected, replies):
    """Compare with the twin: single precision sums, rounded once to the parameter's dtype."""
    for name, value in found.items():
        largest = max([1.0, *(reply.values[name].abs().max().item() for reply in replies if _has(reply, name))])
        accurate = 1e-12 if value.dtype == torch.float64 else 1e-6
        np.testing.assert_allclose(
            value.double().numpy(), expected[name], rtol=SPACING[value.dtype], atol=accurate * largest, err_msg=name
        )


def _has(reply, name):
    return name in reply.values and reply.values[name].numel() > 0


@given(drawn=st.one_of(strategies.rounds(), strategies.rounds(functions=(prefix,))))
def test_the_mean_is_the_twins(drawn):
    found = drawn.result()
    means, held = drawn.expected()
    _assert_close(found, means, drawn.replies)
    for name, old in drawn.state.items():
        unheld = torch.as_tensor(~held[name])
        assert found[name].dtype == old.dtype
        assert torch.equal(found[name][unheld], old[unheld])  # to the bit


@given(drawn=strategies.rounds())
def test_no_argument_is_changed(drawn):
    before = copy.deepcopy(drawn)
    for value in drawn.result().values():
        value.fill_(99.0)  # the result is the caller's own
    assert (drawn.plans, drawn.options) == (before.plans, before.options)
    assert all(torch.equal(drawn.state[name], own) for name, own in before.state.items())
    for reply, own in zip(drawn.replies, before.replies, strict=True):
        assert (reply.labels, reply.weight) == (own.labels, own.weight)
        assert all(torch.equal(reply.values[name], own.values[name]) for name in own.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    assert empty_sum(torch.empty(2, dtype=dtype, device="meta")).dtype == torch.float32
    state = {"w": torch.zeros(3, 2, dtype=dtype)}
    plan = Plan.between(state, state)
    for labels in (None, [0, 1, 2]):
        aggregator = Aggregation(state, label_rows=["w"])
        for _ in range(1000):  # in half precision a sum of 1000 would lose its last digits
            aggregator.add(plan, {"w": torch.full((3, 2), 1.0, dtype=dtype)}, labels=labels)
        assert torch.equal(aggregator.result()["w"], torch.ones(3, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((Axis(2, 1), Axis(2, 2)), (Axis(2, 2), Axis(2, 1)), [[4, 3], [5, 0]]),
        ((Axis(4, 2, 2),), (Axis(4, 2),), [4, 5, 3, 0]),
    ],
)
def test_slices_that_cross_are_averaged_entry_by_entry(one, other, expected):
    aggregation = Aggregation({"w": torch.zeros([axis.size for axis in one])})
    for axes, value in ((one, 3.0), (other, 5.0)):
        aggregation.add(Plan({"w": axes}), {"w": torch.full([axis.local_size for axis in axes], value)})
    assert aggregation.result()["w"].tolist() == expected


def test_label_rows_that_do_not_exist_are_refused():
    for name in ("x", "s"):
        with pytest.raises(ConfigError, match=f"label_rows names {name}, which"):
            Aggregation({"w": torch.zeros(4, 2), "s": torch.zeros(())}, ["w", name])


@pytest.mark.parametrize("aggregator", [CountingMean, partial(RobustMean, robust=Robust())])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floating_point_is_averaged_and_the_rest_stays(dtype, aggregator):
    state = {"w": torch.zeros(2), "count": torch.full((2,), 2**24 + 1).to(dtype)}
    aggregator = Aggregation(state, aggregator=aggregator)
    with pytest.raises(ConfigError, match=f"only floating point can be averaged; leave count \\({dtype}\\) out"):
        aggregator.add(Plan.between(state, state), state)
    aggregator.add(Plan.between(state, {"w": (2,)}), {"w": torch.ones(2)})
    new = aggregator.result()
    assert torch.equal(new["count"], state["count"])
    assert new["count"].data_ptr() != state["count"].data_ptr()


def test_a_result_is_given_once():
    state, plan, (reply, *_) = strategies.three_replies()
    aggregator = Aggregation(state)
    aggregator.result()
    with pytest.raises(HeteroFLError, match="has given its result: make a new one"):
        aggregator.result()
    with pytest.raises(HeteroFLError, match="has given its result"):
        aggregator.add(plan, reply)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda name, own: {name: own / 0}, "body contains NaN or infinity"),
        (lambda name, own: {name: own[:1]}, r"body has shape \(1, .*, expected"),
        (lambda name, own: {name: own.double()}, "body is torch.float64, expected torch.float32"),
        (lambda name, own: {f"my_{name}": own}, "body is missing; .*; my_body is no parameter"),
    ],
)
def test_an_aggregator_of_ones_own_returns_a_usable_model(change, fault):
    class Own(CountingMean):
        def result(self):
            return {key: own for old in super().result().items() for key, own in change(*old).items()}

    state, plan, (reply, *_) = strategies.three_replies()
    aggregation = Aggregation(state, aggregator=Own)
    aggregation.add(plan, reply)
    with pytest.raises(RoundError, match=rf"Own\.result returned a model that is not usable: {fault}"):
        aggregation.result()


def test_the_memory_does_not_grow_with_the_replies(monkeypatch):
    state, plan, _ = strategies.three_replies()
    plans = [plan, Plan.between(state, state)]
    made = []
    monkeypatch.setattr(counting_mean, "empty_sum", lambda own: made.append(own.numel()) or empty_sum(own))
    aggregator = Aggregation(state)
    for client in range(100):
        sub = {name: torch.ones(shape) for name, shape in plans[client % 2].shapes.items()}
        kept_alive = weakref.ref(sub["body"])
        aggregator.add(plans[client % 2], sub)
        del sub
        assert kept_alive() is None
    assert sum(made) == sum(value.numel() for value in state.values())


def sum_on(device, replies_device, state, robust):
    """Return the mean of two clients, one with a slice and some labels, with the state on a device."""
    aggregator = partial(RobustMean, robust=Robust()) if robust else CountingMean
    state = {name: tensor.to(device) for name, tensor in state.items()}
    aggregation = Aggregation(state, ["linear.weight"], aggregator=aggregator)
    for shape, labels in (((3, 2), [0, 2]), ((3, 4), None)):
        plan = Plan.between(state, {"linear.weight": shape})
        tensor = torch.arange(12.0).view(3, 4)[: shape[0], : shape[1]].contiguous().to(replies_device)
        aggregation.add(plan, {"linear.weight": tensor}, labels=labels)
    return aggregation.result()["linear.weight"]


@pytest.mark.gpu
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("replies_device", ["cpu", "cuda"])
def test_sums_are_where_the_state_is(replies_device, robust):
    state = {"linear.weight": torch.full((3, 4), 7.0)}
    result = sum_on("cuda", replies_device, state, robust)
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), sum_on("cpu", "cpu", state, robust))


def test_no_sum_mixes_devices():
    """On a CPU alone: torch's fake tensors refuse to compute what lies on two devices."""
    state = {"weight": torch.empty(4, 6), "bias": torch.empty(4)}
    plans = [Plan.between(state, {"weight": (size, size), "bias": (size,)}) for size in (4, 2, 4)]
    with FakeTensorMode():
        state = {name: torch.empty(tensor.shape, device="cuda") for name, tensor in state.items()}
        mean = CountingMean(state)
        for plan, device in zip(plans, ("cpu", "cuda", "cuda"), strict=True):
            tensors = {name: torch.ones(shape, device=device) for name, shape in plan.shapes.items()}
            mean.add(CheckedReply(plan=plan, tensors=tensors, weight=2.0))
        assert {tensor.device.type for tensor in mean.result().values()} == {"cuda"}
        assert mean.holders("weight").device.type == "cuda"

"""The counting mean against its slow twin, and the properties that make it safe to use."""

import copy
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import Aggregator, Plan, prefix, width
from heterofl_flwr.core import counting_mean as aggregate
from heterofl_flwr.core import counting_mean as mean
from heterofl_flwr.errors import ConfigError, HeteroFLError, ReplyError, ShapeError
from tests.core import strategies, twin

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


@pytest.mark.parametrize("divisor", [mean._divisor, lambda *_: None], ids=["by counts", "by shells"])
@given(drawn=strategies.rounds())
def test_the_mean_is_the_twins(drawn, divisor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mean, "_divisor", divisor)
        found = drawn.result()
    means, held = drawn.expected()
    _assert_close(found, means, drawn.replies)
    for name, old in drawn.state.items():
        unheld = torch.as_tensor(~held[name])
        assert found[name].dtype == old.dtype
        assert torch.equal(found[name][unheld], old[unheld])  # to the bit


@pytest.mark.parametrize("divisor", [mean._divisor, lambda *_: None], ids=["by counts", "by shells"])
@given(drawn=strategies.rounds(functions=(prefix,)))
def test_so_it_is_for_prefixes_alone(drawn, divisor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mean, "_divisor", divisor)
        found = drawn.result()
    _assert_close(found, drawn.expected()[0], drawn.replies)


@given(drawn=strategies.rounds(), data=st.data())
def test_another_order_of_replies_changes_nothing(drawn, data):
    order = data.draw(st.permutations(range(len(drawn.plans))))
    shuffled = {name: value.double().numpy() for name, value in drawn.result(order).items()}
    _assert_close(drawn.result(), shuffled, drawn.replies)


@given(drawn=strategies.rounds())
def test_no_argument_is_changed(drawn):
    state, plans, replies, options = copy.deepcopy((drawn.state, drawn.plans, drawn.replies, drawn.options))
    tensors = [*drawn.state.values(), *(value for reply in drawn.replies for value in reply.values.values())]
    versions = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
    found = drawn.result()
    for value in found.values():
        value.fill_(99.0)  # the result is the caller's own
    assert [(tensor._version, tensor.data_ptr()) for tensor in tensors] == versions
    assert all(torch.equal(drawn.state[name], state[name]) for name in state)
    assert drawn.plans == plans
    assert drawn.options == options
    for reply, before in zip(drawn.replies, replies, strict=True):
        assert (reply.labels, reply.weight) == (before.labels, before.weight)
        assert all(torch.equal(reply.values[name], before.values[name]) for name in before.values)


@given(number=st.integers(1, 6), data=st.data(), shape=st.lists(st.integers(1, 4), max_size=3))
def test_full_rates_without_labels_give_the_plain_mean(number, data, shape):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    sent = torch.randn([number, *shape], generator=generator)
    weights = data.draw(st.lists(st.sampled_from([1.0, 1.0, 2.0, 10.0]), min_size=number, max_size=number))
    for given_weights in ([1.0] * number, weights):
        aggregator = Aggregator({"w": torch.full(shape, 5.0)})
        plan = Plan.between({"w": shape}, {"w": shape})
        for value, weight in zip(sent, given_weights, strict=True):
            aggregator.add(plan, {"w": value}, weight=weight)
        expected = np.average(sent.double().numpy(), axis=0, weights=given_weights)
        np.testing.assert_allclose(aggregator.result()["w"].numpy(), expected, rtol=1e-5, atol=1e-6)


def _three_replies():
    """Return a round with label rows, the plan of its second client, and that client's good reply."""
    generator = torch.Generator().manual_seed(0)
    full = {"body": (4, 4), "linear.weight": (5, 4), "linear.bias": (5,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in full.items()}
    plan = Plan.between(full, {"body": (2, 2), "linear.weight": (5, 2), "linear.bias": (5,)})
    replies = [{name: torch.randn(shape, generator=generator) for name, shape in plan.shapes.items()} for _ in range(3)]
    return state, plan, replies


def _change(name, value):
    return lambda sub: {**sub, name: value(sub[name])}


def _set(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


BAD_REPLIES = {
    "unknown name": (lambda sub: {**sub, "head": torch.zeros(1)}, {}, r"1 names are not in its plan \('head'\)"),
    "missing name": (lambda sub: {"body": sub["body"]}, {}, "2 parameters of its plan are missing"),
    "nothing": (lambda sub: {}, {}, "3 parameters of its plan are missing"),
    "shape": (_change("body", lambda body: body[:1]), {}, r"body has shape \(1, 2\), expected \(2, 2\)"),
    "more dimensions": (_change("body", lambda body: body[None]), {}, r"body has shape \(1, 2, 2\)"),
    "a shape that broadcasts": (_change("body", lambda body: body[:, :1]), {}, r"body has shape \(2, 1\)"),
    "the global shape": (_change("body", lambda body: torch.zeros(4, 4)), {}, r"body has shape \(4, 4\)"),
    "dtype": (_change("body", torch.Tensor.half), {}, "body is torch.float16, expected torch.float32"),
    "double": (_change("body", torch.Tensor.double), {}, "body is torch.float64, expected torch.float32"),
    "integers": (_change("body", torch.Tensor.long), {}, "body is torch.int64, expected torch.float32"),
    "nan": (_change("body", lambda body: _set(body, float("nan"))), {}, "body contains NaN or infinity"),
    "infinity": (_change("linear.bias", lambda bias: _set(bias, float("inf"))), {}, "linear.bias contains NaN"),
    "minus infinity": (_change("linear.bias", lambda bias: _set(bias, float("-inf"))), {}, "linear.bias contains NaN"),
    "numpy": (_change("body", torch.Tensor.numpy), {}, "body is ndarray, expected a dense tensor"),
    "a list": (_change("body", torch.Tensor.tolist), {}, "body is list, expected a dense tensor"),
    "none": (_change("body", lambda body: None), {}, "body is NoneType, expected a dense tensor"),
    "sparse": (_change("body", torch.Tensor.to_sparse), {}, "body is Tensor, expected a dense tensor"),
    "negative weight": (dict, {"weight": -1.0}, "its weight is -1.0, expected 0 or a number"),
    "nan weight": (dict, {"weight": float("nan")}, "its weight is nan, expected 0 or"),
    "infinite weight": (dict, {"weight": float("inf")}, "its weight is inf, expected 0 or"),
    "huge weight": (dict, {"weight": 1e300}, r"its weight is 1e\+300, expected 0 or a number from 1e-38 to 3e\+38"),
    "tiny weight": (dict, {"weight": 1e-300}, "its weight is 1e-300, expected 0 or"),
    "weight beyond floats": (dict, {"weight": 10**400}, "its weight is 1000"),
    "text weight": (dict, {"weight": "3"}, "its weight is '3', expected 0 or"),
    "no weight": (dict, {"weight": None}, "its weight is None, expected 0 or"),
    "complex weight": (dict, {"weight": 1 + 0j}, r"its weight is \(1\+0j\)"),
    "label too large": (dict, {"labels": [0, 5]}, r"labels \[5\] are out of range: expected whole numbers from 0 to 4"),
    "negative label": (dict, {"labels": [-1, 2]}, r"labels \[-1\] are out of range"),
    "text labels": (dict, {"labels": ["1", "2"]}, "labels cannot be read"),
    "one text": (dict, {"labels": "12"}, "labels cannot be read"),
    "labels that are truths": (dict, {"labels": [True, False]}, r"labels of type torch.bool in 1 dim"),
    "a label mask": (dict, {"labels": torch.tensor([True, False, True, False, False])}, "labels of type torch.bool"),
    "labels that are floats": (dict, {"labels": [1.0, 2.0]}, "labels of type torch.float32"),
    "labels in two dimensions": (dict, {"labels": [[1, 2], [3, 4]]}, "labels of type torch.int64 in 2 dimensions"),
    "no labels in two dimensions": (dict, {"labels": [[], []]}, "in 2 dimensions"),
    "ragged labels": (dict, {"labels": [[1], [2, 3]]}, "labels cannot be read"),
    "one label alone": (dict, {"labels": 3}, "labels of type torch.int64 in 0 dimensions"),
    "labels beyond integers": (dict, {"labels": [2**70]}, "labels cannot be read"),
    "labels that are none": (dict, {"labels": [None]}, "labels cannot be read"),
    "labels by name": (dict, {"labels": {1: 2}}, "labels cannot be read"),
}


@pytest.mark.parametrize("slice_function", [prefix, twin.rolling(1)], ids=["prefix", "rolling"])
@pytest.mark.parametrize("fault", BAD_REPLIES)
def test_a_refused_reply_changes_nothing(fault, slice_function):
    spoil, arguments, message = BAD_REPLIES[fault]
    state, plan, (first, bad, last) = _three_replies()
    plan = Plan.between(state, plan.shapes, slice_function=slice_function)
    results = []
    for with_bad in (False, True):
        aggregator = Aggregator(state, label_rows=["linear.weight", "linear.bias"])
        if with_bad:  # before any other, too
            with pytest.raises(ReplyError, match=message):
                aggregator.add(plan, spoil(bad), **arguments)
        aggregator.add(plan, first, labels=[0, 1])
        if with_bad:
            with pytest.raises(ReplyError, match=message):
                aggregator.add(plan, spoil(bad), **arguments)
        aggregator.add(plan, last, labels=[1, 4], weight=2.0)
        assert aggregator.replies == 2
        results.append(aggregator.result())
    assert all(torch.equal(results[0][name], results[1][name]) for name in state)


def test_labels_without_label_rows_are_refused():
    state, plan, (reply, *_) = _three_replies()
    aggregator = Aggregator(state)
    with pytest.raises(ReplyError, match="the reply names labels, but the aggregator has no label_rows"):
        aggregator.add(plan, reply, labels=[1])
    assert all(torch.equal(value, state[name]) for name, value in aggregator.result().items())


def test_labels_for_rows_that_the_plan_cuts_are_refused():
    state, _, (reply, *_) = _three_replies()
    plan = Plan.between(state, {"body": (2, 2), "linear.weight": (3, 2), "linear.bias": (3,)})
    aggregator = Aggregator(state, label_rows=["linear.weight", "linear.bias"])
    sub = {**reply, "linear.weight": torch.ones(3, 2), "linear.bias": torch.ones(3)}
    with pytest.raises(ReplyError, match=r"rows of linear\.weight, linear\.bias belong to classes, .* only some"):
        aggregator.add(plan, sub, labels=[1])


def test_all_faults_of_a_reply_are_named_at_once():
    state, plan, (reply, *_) = _three_replies()
    bad = {"body": reply["body"][:1], "linear.weight": reply["linear.weight"].half(), "extra": torch.zeros(1)}
    with pytest.raises(ReplyError) as caught:
        Aggregator(state).add(plan, bad, weight=-2.0)
    message = str(caught.value)
    for fault in (
        "its weight is -2.0",
        "('extra')",
        "('linear.bias')",
        "body has shape",
        "linear.weight is torch.float16",
    ):
        assert fault in message


def test_all_values_that_are_not_finite_are_named():
    state, plan, (reply, *_) = _three_replies()
    bad = {name: _set(value, float("nan")) for name, value in reply.items()}
    with pytest.raises(ReplyError, match=r"body contains .*; linear\.weight contains .*; linear\.bias contains"):
        Aggregator(state).add(plan, bad)


def test_many_faults_are_counted():
    state = {f"p{number}": torch.zeros(2) for number in range(9)}
    plan = Plan.between(state, state)
    with pytest.raises(ReplyError, match=r"p4 has shape \(3,\), expected \(2,\); and 4 more$"):
        Aggregator(state).add(plan, {name: torch.zeros(3) for name in state})
    with pytest.raises(ReplyError, match=r"9 parameters of its plan are missing \('p0', 'p1', 'p2', \.\.\.\)$"):
        Aggregator(state).add(plan, {})


def test_large_finite_values_are_no_fault():
    plan = Plan.between({"w": (2,), "v": (1,)}, {"w": (2,), "v": (1,)})
    aggregator = Aggregator({"w": torch.zeros(2), "v": torch.zeros(1)})
    sub = {"w": torch.tensor([3e38, 3e38]), "v": torch.zeros(1)}  # their sum is infinite
    aggregator.add(plan, sub)
    assert torch.equal(aggregator.result()["w"], sub["w"])


@pytest.mark.parametrize("values", [[-4.0, 0.0], [4.0, 4.0], [3.9, 4.1]])
def test_entries_beyond_the_largest_are_refused(values):
    plan = Plan.between({"w": (2,)}, {"w": (2,)})
    aggregator = Aggregator({"w": torch.zeros(2)}, largest=4.0)
    sub = {"w": torch.tensor(values)}
    if max(map(abs, values)) > 4:
        with pytest.raises(ReplyError, match=r"w has entries up to 4\.1, expected up to 4"):
            aggregator.add(plan, sub)
        sub = {"w": torch.zeros(2)}
    else:
        aggregator.add(plan, sub)
    assert torch.equal(aggregator.result()["w"], sub["w"])


def test_a_change_beyond_the_bound_is_refused_whatever_slice_it_is_of():
    state = {"w": torch.arange(9.0).view(3, 3), "b": torch.ones(1, dtype=torch.float16)}
    plan = Plan.between(state, {"w": (2, 2), "b": (1,)})
    aggregator = Aggregator(state, norm_bound=5.0)
    sub = plan.extract(state)
    far = {"w": sub["w"] + torch.tensor([[3.0, 0.0], [0.0, 4.01]]), "b": sub["b"]}
    with pytest.raises(ReplyError, match=r"its change has an L2 norm of 5\.008, expected up to 5"):
        aggregator.add(plan, far)
    near = {"w": sub["w"] + torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": sub["b"]}
    aggregator.add(plan, near)
    assert aggregator.replies == 1
    assert torch.equal(aggregator.result()["w"][:2, :2], near["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    state = {"w": torch.zeros(3, 2, dtype=dtype)}
    plan = Plan.between(state, state)
    for labels in (None, [0, 1, 2]):
        aggregator = Aggregator(state, label_rows=["w"])
        for _ in range(1000):  # in half precision a sum of 1000 would lose its last digits
            aggregator.add(plan, {"w": torch.full((3, 2), 1.0, dtype=dtype)}, labels=labels)
        assert torch.equal(aggregator.result()["w"], torch.ones(3, 2, dtype=dtype))


def test_rows_of_classes_that_nobody_has_keep_their_values():
    state, plan, replies = _three_replies()
    aggregator = Aggregator(state, label_rows=["linear.weight", "linear.bias"])
    for reply, labels in zip(replies, ([0, 3], [3, 3, 0], []), strict=True):
        aggregator.add(plan, reply, labels=labels)
    new = aggregator.result()
    for row in (1, 2, 4):
        assert torch.equal(new["linear.weight"][row], state["linear.weight"][row])
        assert new["linear.bias"][row] == state["linear.bias"][row]
    torch.testing.assert_close(new["linear.bias"][3], (replies[0]["linear.bias"][3] + replies[1]["linear.bias"][3]) / 2)
    torch.testing.assert_close(new["body"][:2, :2], sum(reply["body"] for reply in replies) / 3)


@pytest.mark.parametrize(
    "labels",
    [
        [3, 0],
        (0, 3),
        [3, 0, 3],
        range(0, 6, 3),
        np.array([3, 0]),
        torch.tensor([0, 3]),
        np.array([0, 3], dtype=np.int32),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_may_be_any_whole_numbers_in_any_order(labels, dtype):
    state, plan, (reply, *_) = _three_replies()
    aggregator = Aggregator(state, label_rows=["linear.bias"])
    given_labels = labels if dtype is None else torch.as_tensor(labels).to(dtype)
    aggregator.add(plan, reply, labels=given_labels)
    changed = (aggregator.result()["linear.bias"] != state["linear.bias"]).nonzero().flatten().tolist()
    assert changed == [0, 3]


def test_labels_of_few_bits_do_not_wrap_at_many_classes():
    state = {"w": torch.zeros(300)}
    plan = Plan.between(state, state)
    aggregator = Aggregator(state, label_rows=["w"])
    aggregator.add(plan, {"w": torch.ones(300)}, labels=torch.tensor([44, 255], dtype=torch.uint8))
    assert aggregator.result()["w"].nonzero().flatten().tolist() == [44, 255]


def test_plans_that_cut_label_rows_count_for_the_rows_they_hold():
    state = {"w": torch.zeros(4, 4)}
    cut, whole = Plan.between(state, {"w": (2, 2)}), Plan.between(state, {"w": (4, 4)})
    alone = Aggregator(state, label_rows=["w"])
    alone.add(cut, {"w": torch.ones(2, 2)})
    assert alone.result()["w"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    both = Aggregator(state, label_rows=["w"])
    both.add(cut, {"w": torch.ones(2, 2)})
    both.add(whole, {"w": torch.full((4, 4), 3.0)}, labels=[1, 3])
    assert both.result()["w"].tolist() == [[1, 1, 0, 0], [2, 2, 3, 3], [0, 0, 0, 0], [3, 3, 3, 3]]


def test_label_rows_of_different_numbers():
    # As in the Transformer: 2 words, and an embedding with one row more.
    state = {"token": torch.zeros(3, 2), "decoder": torch.zeros(2)}
    plan = Plan.between(state, {"token": (3, 1), "decoder": (2,)})
    for extra_rows, mask in ((True, 4.0), (False, 0.0)):
        aggregator = Aggregator(state, label_rows=["token", "decoder"], extra_rows=extra_rows)
        aggregator.add(plan, {"token": torch.full((3, 1), 4.0), "decoder": torch.full((2,), 4.0)}, labels=[1])
        new = aggregator.result()
        assert new["token"].tolist() == [[0, 0], [4, 0], [mask, 0]]
        assert new["decoder"].tolist() == [0, 4]


def test_classes_may_be_fewer_than_the_rows():
    state = {"w": torch.zeros(5)}
    plan = Plan.between(state, state)
    aggregator = Aggregator(state, label_rows=["w"], classes=3, extra_rows=True)
    aggregator.add(plan, {"w": torch.ones(5)}, labels=[0])
    with pytest.raises(ReplyError, match=r"labels \[3\] are out of range: expected whole numbers from 0 to 2"):
        aggregator.add(plan, {"w": torch.ones(5)}, labels=[3])
    assert aggregator.result()["w"].tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "classes", "reason"),
    [
        (["w", "x", "y"], None, "label_rows names x, y, which the model lacks"),
        (["s"], None, "label_rows names s, which the model lacks or which has no rows"),
        (["w"], 5, r"5 classes do not fit label_rows \{'w': 4\}: expected 1 to 4"),
        (["w"], 0, "0 classes do not fit"),
        (["w", "v"], 4, r"4 classes do not fit label_rows \{'w': 4, 'v': 3\}: expected 1 to 3"),
        ([], 3, "3 classes do not fit"),
    ],
)
def test_label_rows_that_do_not_exist_are_refused(rows, classes, reason):
    with pytest.raises(ConfigError, match=reason):
        Aggregator({"w": torch.zeros(4, 2), "v": torch.zeros(3), "s": torch.zeros(())}, rows, classes=classes)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floating_point_is_averaged(dtype):
    state = {"w": torch.zeros(2), "count": torch.zeros(2, dtype=dtype)}
    with pytest.raises(ConfigError, match=f"only floating point can be averaged; leave count \\({dtype}\\) out"):
        Aggregator(state).add(Plan.between(state, state), state)


def test_what_no_plan_names_stays_whatever_it_is():
    state = {"w": torch.zeros(2), "count": torch.tensor(7), "text": torch.tensor([True])}
    aggregator = Aggregator(state)
    aggregator.add(Plan.between(state, {"w": (2,)}), {"w": torch.ones(2)})
    new = aggregator.result()
    assert (new["count"].item(), new["text"].item()) == (7, True)
    assert new["count"].data_ptr() != state["count"].data_ptr()


def test_without_replies_nothing_changes():
    state = {"w": torch.randn(2, 2), "half": torch.randn(3).half()}
    new = Aggregator(state).result()
    assert all(torch.equal(new[name], value) and new[name] is not value for name, value in state.items())


def test_weight_zero_alone_changes_nothing():
    state = {"w": torch.randn(4, 4), "half": torch.randn(3).half()}
    for slice_function in (prefix, twin.rolling(1)):
        aggregator = Aggregator(state, label_rows=["w"])
        plan = Plan.between(state, {"w": (4, 2), "half": (2,)}, slice_function=slice_function)
        for labels in (None, [1]):
            aggregator.add(plan, {"w": torch.ones(4, 2), "half": torch.ones(2).half()}, weight=0.0, labels=labels)
        assert aggregator.replies == 2
        assert all(torch.equal(value, state[name]) for name, value in aggregator.result().items())


@pytest.mark.parametrize("weight", [1, True, np.float32(1), np.int64(1), 1e-30])
def test_any_real_number_is_a_weight(weight):
    aggregator = Aggregator({"w": torch.zeros(2)})
    aggregator.add(Plan.between({"w": (2,)}, {"w": (1,)}), {"w": torch.ones(1)}, weight=weight)
    assert aggregator.result()["w"].tolist() == [1, 0]


def test_a_result_is_given_once():
    state, plan, (reply, *_) = _three_replies()
    aggregator = Aggregator(state)
    aggregator.add(plan, reply)
    aggregator.result()
    with pytest.raises(HeteroFLError, match="has given its result: make a new one"):
        aggregator.result()
    with pytest.raises(HeteroFLError, match="has given its result"):
        aggregator.add(plan, reply)


def test_a_plan_of_another_model_is_refused():
    state, plan, (reply, *_) = _three_replies()
    with pytest.raises(ShapeError, match="the global state has no parameter body"):
        Aggregator({"w": torch.zeros(1)}).add(plan, reply)
    with pytest.raises(ShapeError, match=r"body of the global state is \(3, 3\)"):
        Aggregator({**state, "body": torch.zeros(3, 3)}).add(plan, reply)


def test_parameters_that_learn_may_be_given_as_they_are():
    model = torch.nn.Linear(4, 4)
    local = torch.nn.Linear(2, 2)
    aggregator = Aggregator(dict(model.named_parameters()))
    aggregator.add(Plan.of(model, local), dict(local.named_parameters()))
    new = aggregator.result()
    assert not any(value.requires_grad for value in new.values())
    assert torch.equal(new["weight"][:2, :2], local.weight)


def test_states_and_replies_may_have_any_memory_order():
    state = {"w": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "t": torch.randn(6, 4).t()}
    plan = Plan.between(state, {"w": (2, 3, 2, 2), "t": (2, 4)}, heads={"t": (2, 1)})
    sub = {"w": torch.randn(3, 2, 2, 2).transpose(0, 1), "t": torch.randn(4, 2).t()}
    aggregator = Aggregator(state)
    aggregator.add(plan, sub)
    new = aggregator.result()
    assert torch.equal(new["w"][:2], sub["w"])
    assert torch.equal(new["w"][2:], state["w"][2:])
    assert torch.equal(new["t"][:2][:, [0, 1, 3, 4]], sub["t"])
    assert torch.equal(new["t"][:, [2, 5]], state["t"][:, [2, 5]])


def test_the_memory_does_not_grow_with_the_replies(monkeypatch):
    state, plan, _ = _three_replies()
    plans = [plan, Plan.between(state, state)]
    made = []

    def counted(parameter):
        made.append(parameter.numel())
        return empty_sum(parameter)

    empty_sum = aggregate.empty_sum
    monkeypatch.setattr(aggregate, "empty_sum", counted)
    held = {}
    for number in (10, 1000):
        made.clear()
        aggregator = Aggregator(state)
        for client in range(number):
            sub = {name: torch.ones(shape) for name, shape in plans[client % 2].shapes.items()}
            kept_alive = weakref.ref(sub["body"])
            aggregator.add(plans[client % 2], sub)
            del sub
            assert kept_alive() is None
        held[number] = sum(made), len(aggregator._holders)
    assert held[10] == held[1000] == (sum(value.numel() for value in state.values()), 2)


@pytest.mark.parametrize(("slice_function", "kept"), [(prefix, True), (twin.scattered(1), False)])
def test_only_views_are_kept_between_replies(slice_function, kept):
    state, plan, (reply, *_) = _three_replies()
    plan = Plan.between(state, plan.shapes, slice_function=slice_function)
    aggregator = Aggregator(state)
    aggregator.add(plan, reply)
    assert (aggregator._holders[plan].regions is not None) is kept


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_federated_dropout_of_many_clients(rate):
    """Every client its own random subset, as in the worst case for the tallies."""
    state = {"one": torch.randn(6, 3), "two": torch.randn(4, 6)}
    local = {"one": (width(6, rate), 3), "two": (4, width(6, rate))}
    generator = torch.Generator().manual_seed(1)
    aggregator, replies = Aggregator(state), []
    for client in range(30):
        slice_function = twin.scattered(client)
        plan = Plan.between(state, local, slice_function=slice_function)
        values = {name: torch.randn(shape, generator=generator) for name, shape in local.items()}
        hidden = tuple(slice_function(6, width(6, rate)))
        replies.append(twin.Reply({"one": (hidden, (0, 1, 2)), "two": ((0, 1, 2, 3), hidden)}, values))
        aggregator.add(plan, values)
    _assert_close(aggregator.result(), twin.counting_mean(state, replies)[0], replies)

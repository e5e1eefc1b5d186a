"""Checks of replies: what is refused, with what error; and the rows that were trained."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core import Aggregation, Mix, Plan, width
from heterofl_flwr.core.check_reply import check_names
from heterofl_flwr.core.label_rows import find_label_rows, last_linear, whole_numbers
from tests.core import strategies


def _change(name, value):
    return lambda sub: {**sub, name: value(sub[name])}


def _set(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


BAD_REPLIES = {
    "unknown name": (lambda sub: {**sub, "head": torch.zeros(1)}, {}, r"1 names are not in its plan \('head'\)"),
    "missing name": (lambda sub: {"body": sub["body"]}, {}, "2 parameters of its plan are missing"),
    "shape": (_change("body", lambda body: body[:1]), {}, r"body has shape \(1, 2\), expected \(2, 2\)"),
    "dtype": (_change("body", torch.Tensor.half), {}, "body is torch.float16, expected torch.float32"),
    "nan": (_change("body", lambda body: _set(body, float("nan"))), {}, "body contains NaN or infinity"),
    "sparse": (_change("body", torch.Tensor.to_sparse), {}, "body is Tensor, expected a dense tensor"),
    "negative weight": (dict, {"weight": -1.0}, "its weight is -1.0, expected 0 or a number"),
    "huge weight": (dict, {"weight": 1e300}, r"its weight is 1e\+300, expected 0 or a number from 1e-38 to 3e\+38"),
    "complex weight": (dict, {"weight": 1 + 0j}, r"its weight is \(1\+0j\)"),
    "label too large": (
        dict,
        {"labels": [0, 5]},
        r"\[5\] are out of range .an ignore_index is no class.: expected whole numbers from 0 to 4, the rows of",
    ),
    "a label mask": (dict, {"labels": torch.tensor([True, False, True, False, False])}, "labels of type torch.bool"),
    "labels in two dimensions": (dict, {"labels": [[1, 2], [3, 4]]}, "labels of type torch.int64 in 2 dimensions"),
    "labels beyond integers": (dict, {"labels": [2**70]}, "labels cannot be read"),
}


@pytest.mark.parametrize(("spoil", "arguments", "message"), BAD_REPLIES.values(), ids=BAD_REPLIES)
def test_a_refused_reply_changes_nothing(spoil, arguments, message):
    state, plan, (first, bad, last) = strategies.three_replies()
    results = []
    for with_bad in (False, True):
        aggregator = Aggregation(state, label_rows=["linear.weight", "linear.bias"])
        for good, labels in ((first, [0, 1]), (last, [1, 4])):
            if with_bad:  # before any other, too
                with pytest.raises(ReplyError, match=message):
                    aggregator.add(plan, spoil(bad), **arguments)
            aggregator.add(plan, good, labels=labels, weight=2.0)
        assert aggregator.replies == 2
        results.append(aggregator.result())
    assert all(torch.equal(results[0][name], results[1][name]) for name in state)


def test_labels_that_name_no_whole_rows_are_refused():
    state, plan, (reply, *_) = strategies.three_replies()
    aggregator = Aggregation(state)
    for labels in ([1], {"linear": [1]}):
        with pytest.raises(ReplyError, match=r"the reply names labels, .*averaging=Averaging\(label_rows="):
            aggregator.add(plan, reply, labels=labels)
    assert all(torch.equal(value, state[name]) for name, value in aggregator.result().items())
    plan = Plan.between(state, {"body": (2, 2), "linear.weight": (3, 2), "linear.bias": (3,)})
    aggregator = Aggregation(state, label_rows=["linear.weight", "linear.bias"])
    sub = {**reply, "linear.weight": torch.ones(3, 2), "linear.bias": torch.ones(3)}
    with pytest.raises(
        ReplyError, match=r"rows of linear\.weight, linear\.bias belong to classes, .* only some.*let build\(rate\)"
    ):
        aggregator.add(plan, sub, labels=[1])
    with pytest.raises(ConfigError, match=r"names head, which the model lacks .*; expected some of body, linear\.bias"):
        Aggregation(state, label_rows=["head"])


def test_all_faults_of_a_reply_are_named_at_once():
    state, plan, (reply, *_) = strategies.three_replies()
    bad = {"body": reply["body"][:1], "linear.weight": reply["linear.weight"].half(), "extra": torch.zeros(1)}
    with pytest.raises(ReplyError) as caught:
        Aggregation(state).add(plan, bad, weight=-2.0)
    faults = "its weight is -2.0", "('extra')", "('linear.bias')", "body has shape", "linear.weight is torch.float16"
    assert all(fault in str(caught.value) for fault in faults)
    with pytest.raises(ReplyError, match=r"1 names are not in its plan \('v'\); 2 parameters of its plan are missing"):
        check_names(plan, ["v", "body"])


def test_entries_beyond_the_largest_are_refused():
    plan = Plan.between({"w": (2,)}, {"w": (2,)})
    aggregator = Aggregation({"w": torch.zeros(2)}, largest=4.0)
    with pytest.raises(ReplyError, match=r"w has entries up to 4\.1, expected up to 4"):
        aggregator.add(plan, {"w": torch.tensor([3.9, 4.1])})
    for values in ([-4.0, 0.0], [4.0, 4.0]):
        aggregator.add(plan, {"w": torch.tensor(values)})
    assert aggregator.result()["w"].tolist() == [0.0, 2.0]
    aggregator, large = Aggregation({"w": torch.zeros(2)}), torch.tensor([3e38, 3e38])
    aggregator.add(plan, {"w": large})  # their sum is infinite, which is no fault
    assert torch.equal(aggregator.result()["w"], large)


def test_a_change_beyond_the_bound_is_refused():
    state = {"w": torch.arange(9.0).view(3, 3), "b": torch.ones(1, dtype=torch.float16)}
    plan = Plan.between(state, {"w": (2, 2), "b": (1,)})
    aggregator = Aggregation(state, norm_bound=5.0)
    sub = plan.extract(state)
    far = {"w": sub["w"] + torch.tensor([[3.0, 0.0], [0.0, 4.01]]), "b": sub["b"]}
    with pytest.raises(ReplyError, match=r"its change has an L2 norm of 5\.008, expected up to 5"):
        aggregator.add(plan, far)
    near = {"w": sub["w"] + torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": sub["b"]}
    aggregator.add(plan, near)
    assert aggregator.replies == 1
    assert torch.equal(aggregator.result()["w"][:2, :2], near["w"])


def test_labels_of_few_bits_do_not_wrap_at_many_classes():
    state = {"w": torch.zeros(300)}
    plan = Plan.between(state, state)
    aggregator = Aggregation(state, label_rows=["w"])
    aggregator.add(plan, {"w": torch.ones(300)}, labels=torch.tensor([44, 255], dtype=torch.uint8))
    assert aggregator.result()["w"].nonzero().flatten().tolist() == [44, 255]


class Encoder(nn.Module):
    """All of its outputs scale, and it names its label rows itself."""

    label_rows = ("layer.bias",)

    def __init__(self, rate):
        super().__init__()
        self.layer = nn.Linear(4, width(8, rate))


def stack(rate):
    return nn.Sequential(nn.Linear(3, width(8, rate)), nn.Linear(width(8, rate), 5), nn.Linear(5, width(2, rate)))


SECOND = "1.weight", "1.bias"


def autoencoder(rate):
    """Return the layers of a VAE: the decoder's last has a row for each pixel."""
    hidden, names = width(32, rate), ("inner", "mean", "variance", "decoder", "last")
    sizes = (64, hidden), (hidden, 8), (hidden, 8), (8, hidden), (hidden, 64)
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in zip(names, sizes, strict=True)})


def two_heads(rate):
    hidden = width(16, rate)
    return nn.ModuleDict(
        {"body": nn.Linear(3, hidden), "digits": nn.Linear(hidden, 10), "months": nn.Linear(hidden, 12)}
    )


def test_the_last_linear_layer_is_the_last_at_any_depth():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.LayerNorm(4))
    assert last_linear(model) == ["1.0.weight", "1.0.bias"]
    assert last_linear(nn.Linear(2, 3, bias=False), "head") == ["head.weight"]
    assert last_linear(nn.ReLU()) == []


@pytest.mark.parametrize(
    ("build", "mix", "rows"),
    [
        (stack, "a1-b1", ()),  # a hidden layer of one width
        (lambda rate: stack(rate)[:2], "a1-b1", SECOND),
        (stack, "a1", ("2.weight", "2.bias")),
        (lambda rate: nn.Linear(3, 5), "a1-b1", ("weight", "bias")),
        (lambda rate: nn.Sequential(nn.Linear(3, 5, bias=False)), "a1-b1", ("0.weight",)),
        (
            lambda rate: weight_norm(nn.Linear(3, 5)),
            "a1-b1",
            ("bias", *(f"parametrizations.weight.original{number}" for number in (0, 1))),
        ),
        (lambda rate: nn.Sequential(nn.Linear(4, width(8, rate))), "a1-b1", ()),
        (lambda rate: nn.Conv2d(3, width(8, rate), 3), "a1-b1", ()),
        (lambda rate: nn.Sequential(*[nn.Linear(5, 5) for _ in range(1 + (rate == 1))]), "a1-b1", ()),
        (Encoder, "a1-b1", ("layer.bias",)),
        (autoencoder, "a1", ()),
        (autoencoder, "a1-b1", ()),
        (two_heads, "a1", ()),
        (two_heads, "a1-b1", ()),
        (lambda rate: nn.Sequential(nn.Linear(9, 4), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1)), "a1", ()),
        (lambda rate: nn.Sequential(nn.Linear(6, width(32, rate)), nn.Linear(width(32, rate), 6)), "a1", SECOND),
        (
            lambda rate: nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 24), nn.Linear(24, 6)),
            "a1",
            ("2.weight", "2.bias"),
        ),
    ],
)
def test_label_rows_are_named_or_those_of_the_last_linear_layer(build, mix, rows):
    assert find_label_rows(build, Mix.parse(mix)) == rows


@pytest.mark.parametrize("names", [("0.weight", "0.biass"), "0.weight", ("0.*",)])
def test_label_rows_that_the_model_lacks_are_refused(names):
    def build(rate):
        model = nn.Sequential(nn.Linear(3, 5))
        model.label_rows = names
        return model

    with pytest.raises(ConfigError, match=r"Sequential names .*; expected a tuple .* 0\.bias, 0\.weight"):
        find_label_rows(build, Mix.parse("a1"))


@pytest.mark.parametrize("labels", [{2, 1}, np.array([1, 2, 2]), torch.tensor([2, 1]), (1, np.int8(2))])
def test_labels_may_be_of_any_library(labels):
    assert whole_numbers(labels) == [1, 2]


@pytest.mark.parametrize("labels", [3, [0.0, 2.5], "02", torch.tensor([1.5]), [True, False]])
def test_labels_are_whole_numbers(labels):
    with pytest.raises(ConfigError, match=r"labels is .*; expected the classes of this client's data, as whole"):
        whole_numbers(labels)


def test_each_head_has_its_own_labels():
    state = {name: torch.zeros(size, 2) for name, size in (("main.weight", 3), ("aux.weight", 5), ("body", 4))}
    state["main.bias"] = torch.zeros(3)
    plan, ones = Plan.between(state, state), {name: torch.ones_like(tensor) for name, tensor in state.items()}
    aggregation = Aggregation(state, label_rows=["main.weight", "main.bias", "aux.weight"])
    aggregation.add(plan, ones, labels={"main": [2], "aux.weight": [0, 4]})
    new = aggregation.result()
    assert {
        name: tensor.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist() for name, tensor in new.items()
    } == {"main.weight": [2], "main.bias": [2], "aux.weight": [0, 4], "body": [0, 1, 2, 3]}
    aggregation = Aggregation(state, label_rows=["main.weight", "aux.weight"])
    aggregation.add(plan, ones, labels={"aux": [4]})
    assert aggregation.result()["main.weight"].all()  # a head without labels counts whole
    aggregation = Aggregation(state, label_rows=["main.weight", "aux.weight"])
    with pytest.raises(
        ReplyError, match=r"labels names 'body'; expected layers or parameters of label_rows: main\.weight"
    ):
        aggregation.add(plan, ones, labels={"body": [1]})
    with pytest.raises(
        ReplyError, match=r"out of range .*expected whole numbers from 0 to 2, the rows of main\.weight"
    ):
        aggregation.add(plan, ones, labels={"main": [3]})

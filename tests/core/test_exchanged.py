"""The parameters that are exchanged: those that are trained and that the model does not exclude."""

import copy

import pytest
import torch
from torch import nn

from heterofl_flwr.core.exchanged import (
    copy_exchanged,
    exchange_frozen,
    exchanged_dtype,
    exchanged_parameters,
    exclude_parameters,
    fingerprint,
    frozen_parameters,
    sample,
    shares_parameters,
)


def build(rate: float) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def freezing(rate: float) -> nn.Module:
    model = build(rate)
    model[0].requires_grad_(False)
    return model


def excluding(rate: float) -> nn.Module:
    model = build(rate)
    exclude_parameters(model, ["0.weight"])
    return model


def test_frozen_and_excluded_parameters_are_not_exchanged():
    assert list(exchanged_parameters(build(1.0))) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(exchanged_parameters(excluding(1.0))) == ["0.bias", "1.weight", "1.bias"]
    assert list(exchanged_parameters(freezing(1.0))) == ["1.weight", "1.bias"]
    assert list(frozen_parameters(freezing(1.0))) == ["0.weight", "0.bias"]


def test_parameters_are_exchanged_in_float32_or_wider():
    for narrow in (torch.float16, torch.bfloat16, torch.float32):
        assert exchanged_dtype(torch.zeros(1, dtype=narrow)) == torch.float32
    assert exchanged_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64


@pytest.mark.parametrize("wrap", [lambda model: model, copy.deepcopy, nn.Sequential])
def test_a_model_may_exchange_its_frozen_parameters(wrap):
    model = wrap(exchange_frozen(freezing(1.0)))
    assert len(exchanged_parameters(model)) == 4
    assert fingerprint(model) == ""


def test_a_copy_shares_what_is_never_exchanged():
    model = excluding(1.0)
    twin = copy_exchanged(nn.Sequential(model, model[1]))
    assert twin[0][0].weight is model[0].weight
    assert twin[0][0].bias is not model[0].bias
    assert twin[1] is twin[0][1]
    assert shares_parameters(model)
    assert not shares_parameters(build(1.0))


def test_a_fingerprint_is_of_what_is_never_exchanged_alone():
    model = excluding(1.0)
    found = fingerprint(model)
    assert fingerprint(build(1.0)) == ""
    assert fingerprint(copy.deepcopy(model).bfloat16()) == found
    nn.init.zeros_(model[1].weight)
    assert fingerprint(model) == found
    model[0].weight.data[-1, -1] += 1
    assert fingerprint(model) != found


def test_a_sample_has_entries_at_equal_distances():
    assert sample(torch.arange(6.0).view(2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert sample(torch.arange(1000.0)).tolist() == [*range(0, 1000, 3)]
    assert sample(torch.tensor(2.0)).tolist() == [2]


@pytest.mark.parametrize("wrap", [copy.deepcopy, lambda model: nn.ModuleDict({"one": model})])
def test_a_copy_and_a_model_around_it_exclude_the_same(wrap):
    found = exchanged_parameters(wrap(excluding(1.0)))
    assert [name.removeprefix("one.") for name in found] == ["0.bias", "1.weight", "1.bias"]


def test_a_tied_parameter_is_excluded_under_each_name():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    exclude_parameters(tied, ["1.weight"])
    assert list(exchanged_parameters(tied)) == ["0.bias", "1.bias"]


def test_marks_name_parameters_that_the_model_has_at_the_time():
    model = build(1.0)
    exclude_parameters(model, ["0.weight", "1.weight"])
    del model[1]
    assert list(exchanged_parameters(model)) == ["0.bias"]

"""Nesterov's momentum on the server: against torch, where nobody holds an entry."""

import pytest
import torch

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.stages.nesterov import Nesterov
from heterofl_flwr.stages.stage import RoundContext


def made(number):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, generator=generator), list(torch.randn(number, 3, 4, generator=generator))


def rounds(stage, value, changes, counts, first=1):
    """Yield the model after each round; entries that nobody holds do not change in the mean."""
    for number, (change, count) in enumerate(zip(changes, counts, strict=True), first):
        context = RoundContext(server_round=number, state={"w": value}, model=torch.nn.Identity())
        mean = torch.where(count > 0, value + change, value)
        value = stage.on_mean({"w": mean}, lambda name, count=count: count, context)["w"]
        yield value


@pytest.mark.parametrize(("momentum", "rate"), [(0.9, 1.0), (0.5, 0.3), (0.0, 1.0)])
def test_it_equals_that_of_torch_where_all_hold_everything(momentum, rate):
    start, changes = made(6)
    parameter = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=momentum > 0)
    ours = rounds(Nesterov(momentum, rate), start, changes, [torch.full((3, 4), 5)] * 6)
    for change, value in zip(changes, ours, strict=True):
        parameter.grad = -change
        sgd.step()
        torch.testing.assert_close(value, parameter.detach())


def test_a_round_without_holders_is_as_if_it_had_not_been():
    start, (first, lost, last) = made(3)
    all_, few = torch.full((3, 4), 5), torch.tensor([[5] * 4, [0] * 4, [5] * 4])
    *_, with_it = rounds(Nesterov(), start, [first, lost, last], [all_, few, all_])
    *_, without = rounds(Nesterov(), start, [first, last], [all_, all_])
    assert torch.equal(with_it[1], without[1])
    assert not torch.equal(with_it[0], without[0])


@pytest.mark.parametrize("arguments", [(1.0,), (-0.1,), (float("nan"),), (0.9, 0.0), (0.9, float("inf"))])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ConfigError, match=r"Nesterov: (momentum|learning_rate) is .*, expected"):
        Nesterov(*arguments)

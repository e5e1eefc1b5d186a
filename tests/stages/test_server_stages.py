"""The moving average and Nesterov's momentum on the server: against slow twins, and where nobody holds an entry."""

from itertools import pairwise

import pytest
import torch
from flwr.app import MetricRecord

from heterofl_flwr import Evaluation, MovingAverage
from heterofl_flwr.stages.server_optimizer import Nesterov
from heterofl_flwr.stages.server_stage import RoundContext
from tests.federation.tiny import equal, play


def average(num_rounds=5, *stages, **start):
    """Return a run of few clients a round, so that in some rounds nobody holds the outer entries."""
    seen = {}

    def evaluate(server_round, arrays):
        seen[server_round] = arrays.to_torch_state_dict()
        return MetricRecord({"found": 1.0})

    options = {"mix": "a1-b1-c1", "nodes": 6, "fraction_train": 0.3, "seed": 0, "evaluation": Evaluation()}
    start = {"evaluate_fn": evaluate, **start}
    found = play(num_rounds=num_rounds, stages=stages, start=start, **options)
    return found, found.progress, seen


def test_it_averages_the_models_of_all_rounds_entry_by_entry():
    plain, trained, _ = average()
    found, progress, seen = average(5, MovingAverage(0.8))
    assert all(equal(one.state, two.state) for one, two in zip(trained, progress, strict=True))
    expected = dict(trained[0].state)
    for before, after in pairwise(one.state for one in trained):
        for name, own in after.items():
            held = own != before[name]  # every client moves what it holds
            expected[name] = torch.where(held, 0.8 * expected[name] + 0.2 * own, expected[name])
    for name, own in found.state.items():
        torch.testing.assert_close(own, expected[name])
    assert not equal(found.state, plain.state)
    assert equal(progress[-1].evaluated, found.state)
    assert equal(seen[5], found.state)
    sent = found.grid.of("evaluate")[-1].content["arrays"].to_torch_state_dict()
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in sent.items())


def made(number):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, generator=generator), list(torch.randn(number, 3, 4, generator=generator))


def rounds(stage, value, changes, counts, first=1):
    """Yield the model after each round; entries that nobody holds do not change in the mean."""
    for number, (change, count) in enumerate(zip(changes, counts, strict=True), first):
        context = RoundContext(server_round=number, state={"w": value})
        mean = torch.where(count > 0, value + change, value)
        value = stage.on_mean({"w": mean}, lambda name, count=count: count, context)["w"]
        yield value


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "learning_rate": 0.3}, {"momentum": 0.0}])
def test_it_equals_that_of_torch_where_all_hold_everything(options):
    start, changes = made(6)
    momentum, rate = options.get("momentum", 0.9), options.get("learning_rate", 1.0)
    parameter = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=momentum > 0)
    ours = rounds(Nesterov(**options), start, changes, [torch.full((3, 4), 5)] * 6)
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

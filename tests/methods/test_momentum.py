"""Server momentum, and runs that go on where they stopped."""

from itertools import pairwise

import pytest
import torch
from flwr.app import ArrayRecord

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, RoundCallback
from tests.methods import digits_app
from tests.methods.tiny import build, build_normed, equal, make_app

NODES = 6


class Keep(RoundCallback):
    """Keeps what it is handed."""

    def __init__(self):
        self.progress = []

    def on_round_end(self, progress):
        self.progress.append(progress)
        return False


def run(num_rounds, momentum, *, first_round=1, arrays=None, velocity=None, build=build, app=None, **options):
    keep = Keep()
    options = {"fraction_train": 0.3, "assignment": "dynamic", "evaluation": Evaluation(every=0)} | options
    strategy = HeteroFL(build, "a1-b1-c1", server_momentum=momentum, callbacks=[keep], **options)
    strategy.federation.velocity = dict(velocity or {})
    with LocalGrid(app or make_app(build=build), NODES) as grid:
        result = strategy.start(grid, arrays, num_rounds, first_round=first_round)
    return strategy, result.arrays.to_torch_state_dict(), keep.progress


def twin(strategy, progress, momentum):
    """Do the same round by round and entry by entry: the mean of who held an entry, and its own momentum."""
    state = {name: tensor.clone() for name, tensor in strategy.federation.initial_state().items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for round_progress in progress:
        rates = round_progress.record.rates
        for name, tensor in state.items():
            for place in torch.cartesian_prod(*map(torch.arange, tensor.shape)).reshape(-1, tensor.dim()).tolist():
                place = tuple(place)
                added = [
                    1 + partition
                    for partition, rate in rates.items()
                    if all(
                        at < size for at, size in zip(place, strategy.federation.plan(rate).shapes[name], strict=True)
                    )
                ]
                if added:
                    velocity[name][place] = momentum * velocity[name][place] + sum(added) / len(added)
                    state[name][place] += velocity[name][place]
    return state, velocity


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_is_that_of_a_slow_twin_and_leaves_untrained_entries_alone(momentum):
    strategy, state, progress = run(5, momentum)
    assert min(max(one.record.rates.values()) for one in progress) < 1  # in some rounds nobody held the full model
    expected, velocity = twin(strategy, progress, momentum)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-5)
        if momentum:
            torch.testing.assert_close(strategy.federation.velocity[name], velocity[name], rtol=1e-5, atol=1e-5)


def test_entries_that_nobody_trained_do_not_move_and_keep_their_momentum():
    strategy, _, progress = run(8, 0.9, seed=3)
    for before, after in pairwise(progress):
        largest = strategy.federation.plan(max(after.record.rates.values())).shapes["hidden.bias"][0]
        for one, two in ((before.state, after.state), (before.momentum, after.momentum)):
            assert torch.equal(one["hidden.bias"][largest:], two["hidden.bias"][largest:])
            assert not torch.equal(one["hidden.bias"][:largest], two["hidden.bias"][:largest])


def test_without_momentum_there_is_none():
    strategy, _, progress = run(2, 0.0)
    assert strategy.federation.velocity == {}
    assert [one.momentum for one in progress] == [{}, {}]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_goes_on_equals_one_that_never_stopped(momentum, stop):
    options = {"build": build_normed, "evaluation": Evaluation(every=2, levels=True), "seed": 4}
    whole, state, progress = run(6, momentum, **options)
    _, half, begun = run(stop, momentum, **options)
    resumed, rest_state, rest = run(
        6, momentum, first_round=stop + 1, arrays=ArrayRecord(half), velocity=begun[-1].momentum, **options
    )
    assert equal(state, rest_state)
    assert equal(whole.federation.velocity, resumed.federation.velocity)
    for one, two in zip(progress[stop:], rest, strict=True):
        assert one.record.rates == two.record.rates
        assert one.record.train == two.record.train
        assert one.record.evaluate == two.record.evaluate
        assert equal(one.state, two.state)
        assert equal(one.moments, two.moments)


def test_real_training_that_goes_on_equals_one_that_never_stopped():
    options = {"build": digits_app.build, "app": digits_app.app, "assignment": "fix"}
    _, state, progress = run(4, 0.5, **options)
    torch.manual_seed(99)  # as in another process
    start = {"first_round": 3, "arrays": ArrayRecord(dict(progress[1].state)), "velocity": progress[1].momentum}
    _, resumed, _ = run(4, 0.5, **start, **options)
    assert equal(state, resumed)


def test_progress_of_a_round_does_not_change_later():
    _, _, progress = run(3, 0.9)
    assert not equal(progress[0].momentum, progress[1].momentum)
    assert not equal(progress[0].state, progress[1].state)

"""FedDyn: against a slow twin entry by entry, against the published form, after a break, and where it is misused."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import HeteroFL, SecureSum
from heterofl_flwr.stages.feddyn import FedDyn
from tests.federation.tiny import Watched, equal, play
from tests.stages.quadratic import NODES, RATE, RATES, SIZES, build, make_app, minimum_of, rounds_of
from tests.stages.test_secure_sum import is_lost, of_two

ALPHA, STEPS = 0.3, 3


app = make_app(lambda partition: STEPS)


def run(mix="a1-b1-c1", app=app, num_rounds=6, **options):
    return play(app, mix, NODES, num_rounds, build=build, stages=[FedDyn(ALPHA)], fraction_train=0.5, **options)


def holders(mix_rates, index, name):
    """Return which clients hold an entry: the hidden units are axis 0 of the first layer, axis 1 of the classifier."""
    place = 0 if name.startswith("hidden") else 1 if name == "classifier.weight" else None
    return [client for client, rate in enumerate(mix_rates) if place is None or index[place] < SIZES[rate]]


def falling(server_round):
    """Return a learning rate that falls to a fifth in round 3, and rises to a half in round 5."""
    return {1: 1.0, 2: 1.0, 3: 0.2, 4: 0.2}.get(server_round, 0.5)


@pytest.mark.parametrize(("mix", "learning_rate"), [("a1", None), ("a1-b1-c1", falling)])
def test_it_equals_a_slow_twin_and_the_paper_at_one_size(mix, learning_rate):
    found = run(mix, learning_rate=learning_rate)
    model = {
        name: own.detach().numpy().copy()
        for name, own in HeteroFL(build, mix).federation.architecture.initial_state().items()
    }
    for name, theta in model.items():
        goals = [minimum_of(client, 1.0)[name].numpy() for client in range(NODES)]
        for index in np.ndindex(*theta.shape):
            holding = holders(RATES[mix], index, name)
            gradient, h, value = dict.fromkeys(holding, 0.0), 0.0, theta[index]
            for server_round, drawn in enumerate(rounds_of(found.grid), 1):
                if learning_rate and server_round > 1:  # ours: the drift falls with the learning rate
                    h *= learning_rate(server_round) / learning_rate(server_round - 1)
                ends = {}
                for client in drawn:
                    if client not in holding:
                        continue
                    w = value
                    for _ in range(STEPS):
                        w -= RATE * (w - goals[client][index] - gradient[client] + ALPHA * (w - value))
                    ends[client] = w
                if not ends:
                    continue
                # Acar et al., algorithm 1; m is the number of clients that hold the entry.
                h -= ALPHA / len(holding) * sum(w - value for w in ends.values())
                for client, w in ends.items():
                    gradient[client] -= ALPHA * (w - value)
                value = sum(ends.values()) / len(ends) - h / ALPHA
            assert float(found.state[name][index]) == pytest.approx(value, abs=1e-9), (name, index)


def test_a_run_that_goes_on_has_the_same_model():
    with Watched(app, NODES) as grid:  # whose clients keep their state
        options = {"grid": lambda *_, **__: nullcontext(grid), "learning_rate": falling}
        rest = run(start={"resume": run(num_rounds=4, **options).progress[3]}, **options)
    assert equal(rest.state, run(learning_rate=falling).state)


@pytest.mark.parametrize("phase", ["train", "reveal"])
def test_after_a_secure_sum_that_stays_closed_clients_go_on_as_if_the_round_had_not_been(phase):
    def lost(grid, message):
        in_first = message.content["config"]["server-round"] == 1
        return in_first and is_lost(dict.fromkeys(range(3), phase), grid, message)

    options = {"build": build, "min_replies": 1, "node_config": of_two}
    found = play(
        app,
        "a1",
        NODES,
        3,
        grid=partial(Watched, lost=lost),
        stages=[SecureSum(100.0, holders=2), FedDyn(ALPHA)],
        **options,
    )
    assert [record.stages["summed-clients"] for record in found.records] == [0, NODES, NODES]
    expected = play(app, "a1", NODES, 2, stages=[FedDyn(ALPHA)], **options)
    for name, own in found.state.items():
        torch.testing.assert_close(own, expected.state[name], atol=1e-5, rtol=0)


def test_clients_that_lost_what_they_kept_over_a_break_do_not_begin_anew():
    with pytest.raises(AggregationError, match="the tensors that feddyn keeps are gone"):
        run(start={"resume": run(num_rounds=4).progress[3]})

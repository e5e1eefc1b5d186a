"""FedDyn: against a slow twin entry by entry, against the published form, after a break, and where it is misused."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import HeteroFL
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.stages.feddyn import FedDyn
from tests.federation.grouped import grouped
from tests.federation.tiny import Tiny, Watched, equal, play

ALPHA, RATE, STEPS, NODES = 0.3, 0.2, 3, 6
SIZES = {1.0: 8, 0.5: 4, 0.25: 2}


def build(rate):
    return Tiny(rate).double()


def wanted(partition, rate):
    """Return where a client's own loss has its minimum."""
    generator = torch.Generator().manual_seed(partition)
    full = {name: torch.randn(own.shape, generator=generator).double() for name, own in Tiny(1.0).named_parameters()}
    return {name: full[name][tuple(map(slice, own.shape))] for name, own in build(rate).named_parameters()}


def make_app(*, with_penalty=True):
    app = ClientApp()
    answer_queries(app, build)

    @app.train()
    def train(message, context):
        task = Task(message, context, build)
        model = task.model()
        goal = wanted(context.node_config["partition-id"], message.content["config"]["rate"])
        sgd = torch.optim.SGD(model.parameters(), RATE)
        for _ in range(STEPS):
            sgd.zero_grad()
            loss = sum((own - goal[name]).square().sum() / 2 for name, own in model.named_parameters())
            (loss + (task.penalty(model) if with_penalty else 0)).backward()
            sgd.step()
        return task.reply(model, num_examples=1)

    return app


def run(mix="a1-b1-c1", app=None, num_rounds=6, **options):
    return play(
        app or make_app(), mix, NODES, num_rounds, build=build, stages=[FedDyn(ALPHA)], fraction_train=0.5, **options
    )


def rounds_of(grid):
    """Return for each round the partitions that trained, in order, with their rates."""
    found = {}
    for message in grid.of("train"):
        config = message.content["config"]
        found.setdefault(config["server-round"], []).append((config["partition"], config["rate"]))
    return found.values()


def holders(mix_rates, index, shape, name):
    """Return which clients hold an entry: the hidden units are axis 0 of the first layer, axis 1 of the classifier."""
    place = 0 if name.startswith("hidden") else 1 if name == "classifier.weight" else None
    return [client for client, rate in enumerate(mix_rates) if place is None or index[place] < SIZES[rate]]


def falling(server_round):
    """Return a learning rate that falls to a fifth in round 3, and rises to a half in round 5."""
    return {1: 1.0, 2: 1.0, 3: 0.2, 4: 0.2}.get(server_round, 0.5)


@pytest.mark.parametrize(("mix", "learning_rate"), [("a1-b1-c1", None), ("a1", None), ("a1-b1-c1", falling)])
def test_it_equals_a_slow_twin_and_the_paper_at_one_size(mix, learning_rate):
    found = run(mix, learning_rate=learning_rate)
    rates = {"a1": [1.0] * 6, "a1-b1-c1": [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]}[mix]
    model = {
        name: own.detach().numpy().copy()
        for name, own in HeteroFL(build, mix).federation.architecture.initial_state().items()
    }
    for name, theta in model.items():
        goals = [wanted(client, 1.0)[name].numpy() for client in range(NODES)]
        for index in np.ndindex(*theta.shape):
            holding = holders(rates, index, theta.shape, name)
            gradient, h, value = dict.fromkeys(holding, 0.0), 0.0, theta[index]
            for server_round, drawn in enumerate(rounds_of(found.grid), 1):
                if learning_rate and server_round > 1:  # ours: the drift falls with the learning rate
                    h *= learning_rate(server_round) / learning_rate(server_round - 1)
                ends = {}
                for client, _ in drawn:
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
    whole = run(learning_rate=falling)
    with Watched(make_app(), NODES) as grid:  # whose clients keep their state
        options = {"grid": lambda *_, **__: nullcontext(grid), "learning_rate": falling}
        begun = run(num_rounds=4, **options)
        rest = run(start={"resume": begun.progress[3]}, **options)
    assert equal(rest.state, whole.state)


def test_clients_that_lost_what_they_kept_over_a_break_do_not_begin_anew():
    with pytest.raises(AggregationError, match="the tensors that feddyn keeps are gone"):
        run(start={"resume": run(num_rounds=4).progress[3]})


def test_a_loop_without_the_penalty_is_refused():
    with pytest.raises(AggregationError, match=r"feddyn: .* add task.penalty\(model\) to the loss"):
        run(app=make_app(with_penalty=False))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"assignment": "dynamic"}, "what FedDyn keeps stays with a client, so it keeps its slice"),
        ({"shared": ("hidden.*",)}, "what FedDyn keeps stays with a client for all parameters"),
        ({"weights": "examples"}, "FedDyn fits a mean in which each client counts once"),
    ],
)
def test_what_does_not_fit_is_refused(options, cause):
    with pytest.raises(ConfigError, match=cause):
        HeteroFL(build, "a1-b1", stages=[FedDyn()], **grouped(options))

    with pytest.raises(ConfigError, match="FedDyn: alpha is 0, expected a number above 0"):
        FedDyn(0)

"""A client that says num_examples=0 leaves no trace: the run is the one in which its training failed."""

import pytest
import torch
from flwr.clientapp import ClientApp

from heterofl_flwr import Adam, FedDyn, Privacy, Robust, Scaffold
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.stages.secure_sum import SecureSum
from tests.federation.tiny import build, equal, play

IDLE = 3


def make_app(without_examples):
    """Return clients that take two steps; ``without_examples`` is what ``IDLE`` does in round 1."""
    app = ClientApp()
    answer_queries(app, build)

    @app.train()
    def train(message, context):
        task, partition = Task(message, context, build), context.node_config["partition-id"]
        model = task.model()
        is_idle = partition == IDLE and message.content["config"]["server-round"] == 1
        if is_idle and without_examples == "fails":
            raise RuntimeError("no data")
        if is_idle and without_examples == "trains nothing":
            return task.reply(model, num_examples=0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            loss = sum((parameter - partition).square().sum() for parameter in model.parameters())
            (loss + task.penalty(model)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return task.reply(model, num_examples=0 if is_idle else 5)

    return app


CASES = {
    "plain": {},
    "examples": {"weights": "examples"},
    "robust": {"robust": Robust()},
    "FedDyn": {"stages": [FedDyn()]},
    "Scaffold": {"stages": [Scaffold()], "learning_rate": lambda server_round: 0.1},
    "SecureSum": {"stages": [SecureSum(holders=2)]},
    "clip and Adam": {"stages": [Adam()], "privacy": Privacy(clip=1.0)},
    "levels": {"by_level": ["hidden.bias"]},
    "int8": {"upload": "int8"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_client_without_examples_leaves_no_trace(case, monkeypatch):
    monkeypatch.setattr("heterofl_flwr.stages.secure_sum.secrets.randbits", lambda bits: 0)
    options = {"min_replies": 1, "node_config": lambda partition: {"secure-holders": 2}, **CASES[case]}
    failed, *others = (
        play(make_app(idle), "a1-b1", 4, 2, **options) for idle in ("fails", "trains nothing", "trains, and counts 0")
    )
    for run in others:
        assert equal(run.state, failed.state)
        assert equal(run.strategy.chain.state(), failed.strategy.chain.state())

"""Models that nobody wrote for this package train in a federation of mixed levels."""

import math

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch.nn import functional as F

from heterofl_flwr import HeteroFL, LocalGrid
from heterofl_flwr.client import answer_queries, reply, submodel
from heterofl_flwr.elastic_models import elastic
from tests.elastic_models.architectures import CASES

pytestmark = pytest.mark.models

RATES = {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.125, 4: 0.0625}
NAMES = ["resnet", "recurrent", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet", "vit"))]


def client_of(build, inputs):
    """Return a ClientApp whose nodes all have the same two examples, of two classes."""
    app = ClientApp()
    answer_queries(app, build, data=lambda context: [inputs])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = submodel(message, build)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss = F.cross_entropy(model(torch.cat([inputs, inputs])), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        optimizer.step()
        return reply(message, model, num_examples=2, metrics={"train-loss": loss.item()})

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        with torch.inference_mode():
            loss = F.cross_entropy(submodel(message, build)(inputs), torch.tensor([0, 1]))
        return reply(message, num_examples=2, metrics={"loss": loss.item()})

    return app


@pytest.mark.parametrize("name", NAMES)
def test_two_rounds_of_five_levels(name):
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    build = elastic(model, inputs)
    strategy = HeteroFL(build, mix="a1-b1-c1-d1-e1", assignment="fix")
    with LocalGrid(client_of(build, inputs), len(RATES)) as grid:
        result = strategy.start(grid, num_rounds=2)
    assert strategy.log.rates == RATES
    assert strategy.log.failures == {}
    assert sorted(result.train_metrics_clientapp) == sorted(result.evaluate_metrics_clientapp) == [1, 2]
    assert all(math.isfinite(metrics["loss"]) for metrics in result.evaluate_metrics_clientapp.values())
    new = result.arrays.to_torch_state_dict()
    before = dict(model.named_parameters(remove_duplicate=False))
    assert new.keys() == before.keys()
    assert all(tensor.isfinite().all() for tensor in new.values())
    moved = [name for name, tensor in new.items() if not torch.equal(tensor, before[name])]
    assert len(moved) > 0.9 * len(new)  # a bias before a norm has no gradient

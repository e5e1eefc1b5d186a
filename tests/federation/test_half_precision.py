"""Models in fewer bits: bfloat16, which numpy does not know, travels and is averaged in float32."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.common import parameters_to_ndarrays
from torch import nn

from heterofl_flwr import Evaluation, Mix, classic
from heterofl_flwr.client import own_part, reply, submodel
from heterofl_flwr.packing import count_packed
from heterofl_flwr.report import Costs
from tests.classic.fakes import Fake, fit_all, manager_of
from tests.federation import tiny
from tests.federation.tiny import NEVER, make_app

SHARED = {"shared": ["hidden.*", "norm.*"]}


def build(rate: float) -> nn.Module:
    """Return a model in bfloat16, but for one layer."""
    model = tiny.Tiny(rate, norm=True).bfloat16()
    model.hidden.float()
    model.hidden.register_forward_hook(lambda layer, args, output: output.bfloat16())
    return model


def set_all(message, context):
    """Train: set every parameter to a number that bfloat16 holds, another for each partition."""
    partition, model = context.node_config["partition-id"], submodel(message, build)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_((1 + partition) / 8)
    assert {own.dtype for own in own_part(message, model).values()} <= {torch.float32}
    return reply(message, model, num_examples=1)


@pytest.mark.parametrize("options", [{"upload": "float32"}, {"upload": "float16"}, {"upload": "int8"}, SHARED], ids=str)
def test_bfloat16_is_exchanged_in_float32(options):
    found = tiny.play(
        make_app(set_all, build=build), "a1-c1", 4, 2, build=build, evaluation=Evaluation(levels=True), **options
    )
    assert found.log.failures == found.log.evaluate_failures == {}
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    # Partitions 0 and 1 hold the whole, which 2 and 3 train a quarter of.
    rounding = 1e-2 if "upload" in options else 0.0
    torch.testing.assert_close(found.state["hidden.bias"][:2], torch.full((2,), 2.5 / 8), rtol=0, atol=rounding)
    torch.testing.assert_close(found.state["norm.bias"][2:], torch.full((6,), 1.5 / 8), rtol=0, atol=rounding)


def test_rows_that_are_only_rounded_are_not_trained():
    def train_one_row(message, context):
        model = submodel(message, build)
        with torch.no_grad():
            model.classifier.weight[1] += 1
        return reply(message, model, num_examples=1)

    before = {name: own.detach() + 1e-3 for name, own in build(1.0).float().named_parameters()}
    found = tiny.play(
        make_app(train_one_row, build=build),
        build=build,
        labels="inferred",
        start={"initial_arrays": ArrayRecord(before)},
    )
    changed = found.state["classifier.weight"] != before["classifier.weight"]
    assert changed.all(1).tolist() == changed.any(1).tolist() == [False, True, False, False]


def test_the_classic_api_sends_the_same_types():
    strategy = classic.HeteroFL(build, "a1-c1", wait=1.0, evaluation=NEVER)
    manager = manager_of(Fake("0", 1.0), Fake("1", 2.0))
    instructions = strategy.configure_fit(1, strategy.initialize_parameters(manager), manager)
    model = classic.submodel(parameters_to_ndarrays(instructions[0][1].parameters), instructions[0][1].config, build)
    sent = parameters_to_ndarrays(strategy.aggregate_fit(1, fit_all(instructions), [])[0])
    for array, own in zip(sent, classic.parameters_of(model), strict=True):
        assert array.dtype == own.dtype == np.float32


def test_costs_are_those_of_what_travels():
    costs = Costs(build, Mix.parse("a1"), torch.zeros(1, 3))
    expected = [count_packed(own.float()) for own in build(1.0).parameters()]
    assert costs.model().levels[0].bytes == sum(expected)

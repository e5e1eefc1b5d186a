"""Models in fewer bits: bfloat16, which numpy does not know, travels and is averaged in float32."""

import pytest
import torch
from torch import nn

from heterofl_flwr import Evaluation
from heterofl_flwr.client import own_part, reply, submodel
from tests.federation import tiny
from tests.federation.tiny import make_app

SHARED = {"shared": ["hidden.*", "norm.*"]}


def build(rate: float) -> nn.Module:
    """Return a model in bfloat16, but for one layer."""
    model = tiny.Tiny(rate, norm=True).bfloat16()
    model.hidden.float()
    model.hidden.register_forward_hook(lambda layer, args, output: output.bfloat16())
    return model


def set_all(message, context):
    """Train: set every parameter to a number that bfloat16 holds, another for each partition."""
    partition, model = context.node_config["partition-id"], submodel(message, build, context=context)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_((1 + partition) / 8)
    assert {own.dtype for own in own_part(message, model).values()} <= {torch.float32}
    return reply(message, model, num_examples=1, context=context)


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

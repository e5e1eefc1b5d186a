"""Models and plans together: a slice of the global model is the model of the smaller rate."""

import copy
import re
from pathlib import Path

import pytest
import torch

from heterofl_flwr.core import Plan, prefix
from heterofl_flwr.nn.measure_moments import collect_moments
from heterofl_flwr.nn.moments import LayerMoments, Moments
from heterofl_flwr.nn.static_norm import with_static_norm
from tests.core import twin

RATES = (1.0, 0.5, 0.25, 0.3, 0.0625)


SLICE_FUNCTIONS = {"prefix": prefix, "rolling": twin.rolling(2), "scattered": twin.scattered(8)}


@pytest.mark.parametrize("slice_function", SLICE_FUNCTIONS.values(), ids=SLICE_FUNCTIONS)
@pytest.mark.parametrize("name", ["cnn", "lenet", "preresnet18", "preresnet50"])
def test_a_smaller_model_is_the_global_one_with_the_rest_zeroed(small, inputs, name, slice_function):
    build, x = small(name), inputs(name)
    full = build(1.0)
    moments = collect_moments(full, [x])
    for rate in RATES[1:]:
        local, masked = build(rate), copy.deepcopy(full)
        plan = Plan.of(full, local, slice_function=slice_function)
        local.load_state_dict(plan.extract(full.state_dict()))
        twin.zero_extend(plan, masked, local)
        found = with_static_norm(local, _cut(moments, plan))(x)
        torch.testing.assert_close(found, with_static_norm(masked, moments)(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, with_static_norm(full, moments)(x), rtol=1e-4, atol=1e-5)


def test_the_rule_on_the_page_makes_a_slice_the_zeroed_model():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "model.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Tagger" in block)
    made: dict = {}
    exec(block, made)
    build, x = made["Tagger"], torch.randn(2, 6, 5)
    for rate in RATES[1:]:
        full, local = build(1.0), build(rate)
        plan, alone = Plan.of(full, local), copy.deepcopy(full)
        local.load_state_dict(plan.extract(full.state_dict()))
        with torch.no_grad():
            twin.zero_extend(plan, alone, local)
        torch.testing.assert_close(local(x), alone(x))


def _cut(moments, plan):
    """Return the moments of the channels that a smaller model keeps."""
    layers = {}
    for name, layer in moments.layers.items():
        (places,) = twin.held(plan.axes[f"{name}.weight"])
        layers[name] = LayerMoments(layer.count, layer.first_sum[list(places)], layer.second_sum[list(places)])
    return Moments(moments.kind, layers)

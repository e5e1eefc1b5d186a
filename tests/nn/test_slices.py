"""Models and plans together: a slice of the global model is the model of the smaller rate."""

import copy

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
        plan = Plan.of(full, local).sliced(slice_function)
        local.load_state_dict(plan.extract(full.state_dict()))
        twin.zero_extend(plan, masked, local)
        found = with_static_norm(local, _cut(moments, plan))(x)
        torch.testing.assert_close(found, with_static_norm(masked, moments)(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, with_static_norm(full, moments)(x), rtol=1e-4, atol=1e-5)


def _cut(moments, plan):
    """Return the moments of the channels that a smaller model keeps."""
    layers = {}
    for name, layer in moments.layers.items():
        (places,) = twin.held(plan.axes[f"{name}.weight"])
        layers[name] = LayerMoments(layer.count, layer.first_sum[list(places)], layer.second_sum[list(places)])
    return Moments(moments.kind, layers)
